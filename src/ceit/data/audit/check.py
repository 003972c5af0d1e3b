"""A whole data set read, to find what is wrong with it; nothing is changed. What is found stands in ``report``."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ceit.data.audit.duplicates import BLANK_CONTRAST, Prints, find_copies, pixel_digest, prints_of, small_picture
from ceit.data.audit.report import Copies, ImageName, Report
from ceit.data.cut import VALIDATION_PERCENT, digest_of
from ceit.data.encoded import EncodedSplit
from ceit.data.image import read_header
from ceit.data.labelled import UNSPLIT, LabelledSet, as_dataset, with_classes, without_empty_classes
from ceit.data.pixels import looks_cut, looks_dark_for_its_depth
from ceit.data.sources.choose import load_images, place_of
from ceit.data.sources.layout import understand
from ceit.data.sources.listing import LARGE_SIZE, shown_path, usual_statistics
from ceit.data.sources.shards.index import sha256_of
from ceit.data.sources.shards.load import has_shards, open_shards
from ceit.data.splits import ArraySplit, FileSplit, Split, cut_validation
from ceit.data.threads import BLOCK_IMAGES, read_all
from ceit.paths import expanded

_as_it_lies = partial(LabelledSet, img_size=LARGE_SIZE, statistics=usual_statistics(3))


def check(data: str | Path) -> Report:
    """Reads every image of ``data``, anything that ``load_images`` takes, and reports what is wrong.

    A folder is looked at as it lies on the disk, empty class folders and all; other data as they are loaded. A set that
    comes unsplit is one split, ``all``.

    Raises: ValueError for data that are no data set at all.
    """
    root, is_named = expanded(data), place_of(str(data)) is not None
    layout, changed_shards = list[str](), list[str]()
    if is_named or not root.is_dir():
        found = load_images(data, img_size=LARGE_SIZE, skip_broken=True)  # of this size: as they lie on the disk
        parts = {name: found.parts[name] for name in ("train", "validation", "test", UNSPLIT) if name in found.parts}
        found = replace(found, parts=parts)
    elif has_shards(root):
        found, changed_shards = _shards(root)
    else:
        understood = understand(root)
        layout, names = understood.lines(), {name for part in understood.splits.values() for name in part.classes}
        class_names = tuple(sorted(names))
        parts = {split: part.listing.split(class_names) for split, part in understood.splits.items()}
        found = _as_it_lies(name=root.resolve().name, place=f"folder {root}", class_names=class_names, parts=parts)
        found = replace(found, remarks=understood.remarks)
    reading = _Reading(found)
    for name in found.parts:
        reading.read(name)
    report = reading.report(tuple(layout), tuple(changed_shards))
    if is_named or ("train" in report.splits and report.untrained_classes):  # which is an error of its own
        return report
    return replace(report, refusal=reading.refusal(report))


def _shards(root: Path) -> tuple[LabelledSet, list[str]]:
    """Their images, and the names of those shards that have changed since they were written."""
    found = open_shards(root)
    parts = {name: found.samples.subset(torch.from_numpy(rows)) for name, rows in found.rows.items()}
    written = {shard.name: shard.sha256 for shard in found.index.shards if shard.sha256}
    hashes = read_all(lambda name: sha256_of(root / name), list(written), "hashing shards")
    changed = [name for name, sha256 in hashes if sha256 != written[name]]
    place = f"the folder of shards {root}"
    as_it_lies = _as_it_lies(name=found.index.name, place=place, class_names=found.index.class_names, parts=parts)
    return without_empty_classes(as_it_lies), changed


class _Inspection(NamedTuple):
    """What is found out about one image."""

    size: tuple[int, int]
    mode: str
    digest: bytes
    picture: np.ndarray
    dark: bool
    cut: bool
    content: int
    """What training knows the image by; 0 in a fixed set, which it knows whole."""


def _inspect(split: Split, index: int) -> _Inspection:
    image = split.read(index, in_chans=3)
    if isinstance(split, EncodedSplit):
        data = split.encoded(index)
        (size, mode), content = read_header(data, split.name(index)), digest_of(data)
    else:
        is_grey = isinstance(split, ArraySplit) and split.images.shape[1] == 1
        size, mode, content = image.size, "L" if is_grey else image.mode, 0
    dark, cut = looks_dark_for_its_depth(image), looks_cut(image)
    return _Inspection(size, mode, pixel_digest(image), small_picture(image), dark, cut, content)


@dataclass
class _Reading:
    """The images read so far; ``places`` has split and index of each, ``contents`` its digest."""

    found: LabelledSet
    places: list[tuple[str, int]] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    prints: list[Prints] = field(default_factory=list)
    unreadable: list[ImageName] = field(default_factory=list)
    dark: list[ImageName] = field(default_factory=list)
    cut: list[ImageName] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)

    def read(self, name: str) -> None:
        """Reads one split, keeping of each image its prints."""
        split = self.found.parts[name]
        waiting: list[_Inspection] = []
        for index, found in read_all(lambda index: _inspect(split, index), range(len(split)), f"reading {name}"):
            if isinstance(found, str):
                self.unreadable.append(self._name(name, index, found))
                continue
            self.places.append((name, index))
            self.contents.append(found.content)
            self.modes[found.mode] += 1
            self.sizes.add(found.size)
            if found.dark:
                self.dark.append(self._name(name, index))
            if found.cut:
                self.cut.append(self._name(name, index))
            waiting.append(found)
            if len(waiting) == BLOCK_IMAGES:
                self._keep(waiting)
        self._keep(waiting)

    def report(self, layout: tuple[str, ...], changed_shards: tuple[str, ...]) -> Report:
        """What all splits have shown, but for a refusal."""
        splits = tuple(self.found.parts)
        counts = {name: dict.fromkeys(splits, 0) for name in self.found.class_names}
        labels = {name: split.labels.tolist() for name, split in self.found.parts.items()}
        for name, index in self.places:
            counts[self.found.class_names[labels[name][index]]][name] += 1
        prints = Prints(*map(np.concatenate, zip(*self.prints, strict=True)))
        skipped = [ImageName("", line, "") for line in self.found.skipped]
        in_order = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        return Report(
            name=self.found.name,
            splits=splits,
            counts=counts,
            unreadable=(*self.unreadable, *skipped),
            changed_shards=changed_shards,
            copies=tuple(self._copies(prints, group) for group in find_copies(prints, self._picture)),
            blank=tuple(self._name(*self.places[i]) for i in np.flatnonzero(prints.contrast < BLANK_CONTRAST)),
            dark=tuple(self.dark),
            cut=tuple(self.cut),
            modes=dict(self.modes.most_common()),
            smallest=in_order[0] if in_order else None,
            largest=in_order[-1] if in_order else None,
            layout=layout,
            remarks=self.found.remarks,
        )

    def refusal(self, report: Report) -> str:
        """Why training would not take the images that can be read; empty if it would."""
        parts: dict[str, Split] = {}
        for name, split in self.found.parts.items():
            if len(split):  # else shards only tell of it
                good = [i for i, (place, _) in enumerate(self.places) if place == name]
                part = split.subset(torch.tensor([self.places[i][1] for i in good], dtype=torch.int64))
                parts[name] = replace(part, digests=np.array([self.contents[i] for i in good], np.uint64))
        classes = [name for name, by_split in report.counts.items() if any(by_split.values())]
        try:
            dataset = as_dataset(with_classes(replace(self.found, parts=parts), classes), seed=0)
        except ValueError as error:
            return str(error)
        if dataset.validation is None:
            try:
                cut_validation(dataset.train, VALIDATION_PERCENT, seed=0)
            except ValueError as error:
                fix = "add images or a validation part, or train with --validation-percent 0 --select last"
                return f"training chooses its model by some of the training images: {error}; {fix}"
        return ""

    def _keep(self, waiting: list[_Inspection]) -> None:
        self.prints.append(prints_of([image.picture for image in waiting], [image.digest for image in waiting]))
        waiting.clear()

    def _picture(self, place: int) -> np.ndarray:
        name, index = self.places[place]
        return small_picture(self.found.parts[name].read(index, in_chans=3))

    def _copies(self, prints: Prints, group: list[int]) -> Copies:
        digests = {prints.digest[i].tobytes() for i in group}
        return Copies(len(digests) == 1, tuple(self._name(*self.places[i]) for i in group))

    def _name(self, split_name: str, index: int, note: str = "") -> ImageName:
        split = self.found.parts[split_name]
        name = split.key(index)
        if isinstance(split, FileSplit):
            name = shown_path(split.paths[index], split.root).as_posix()
        return ImageName(split_name, name, self.found.class_names[int(split.labels[index])], note)
