"""What a run did with every image: ``images.csv`` of its directory, and how later data are held against it.

An image is known by its content, whatever it is called, and, if that is new, by its name: an image that was turned or
saved anew is still the one that was trained on. See docs/decisions/splits.md.

Letters: n images.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ceit.atomic import replace_files
from ceit.data.cut import digest_of
from ceit.data.labelled import LabelledSet, with_classes, with_parts
from ceit.data.splits import ImageDataset, Split
from ceit.messages import listed
from ceit.paths import expanded

FILE = "images.csv"
FIXED = "a fixed set"
"""What a model's file says in place of ``FILE`` where it was trained on a set known by name."""
NEW, TRAIN, VALIDATION, TEST, UNUSED, COPY = "new", "train", "validation", "test", "unused", "copy"
_WEIGHT = {TRAIN: 0, VALIDATION: 1, COPY: 2, TEST: 3, UNUSED: 4}  # of copies, the first says what they are
_HEAD = ("part", "source", "class", "name", "content")


class Row(NamedTuple):
    """One image: what the run used it for, the part that it came in, its class, its key and its digest."""

    part: str
    source: str
    class_name: str
    name: str
    content: int


@dataclass(frozen=True)
class Changes:
    """How data differ from the record: images that came, went, changed under their name, and go by another name.

    There are ``came - went`` images more than were recorded. ``new_classes`` counts the images of classes that the
    record does not know.
    """

    came: int = 0
    went: int = 0
    changed: int = 0
    renamed: int = 0
    new_classes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = {"came": self.came, "went": self.went, "changed": self.changed, "got another name": self.renamed}
        said = [f"{count:,} {kind}" for kind, count in kinds.items() if count]
        if self.new_classes:
            said.append(f"{sum(self.new_classes.values()):,} of new classes ({listed(self.new_classes)})")
        return f"images since this run was started: {', '.join(said)}" if said else ""


@dataclass(frozen=True)
class ImageRecord:
    """The images of a run, in the order in which it numbers them part by part."""

    rows: tuple[Row, ...]

    @classmethod
    def of(cls, parts: Mapping[str, Split], found: LabelledSet) -> "ImageRecord":
        """The record of the splits that a run has made of ``found``."""
        rows = (_rows(part, source_of(found, part), split, found) for part, split in parts.items())
        return cls(tuple(chain.from_iterable(rows)))

    def write(self, folder: Path) -> None:
        """As ``images.csv``, whole or not at all."""
        replace_files({folder / FILE: self._encoded()})

    @property
    def is_of_unsplit(self) -> bool:
        """Whether the set came unsplit, so that the run cut it."""
        return any(row.part == TEST and row.source not in (TEST, VALIDATION) for row in self.rows)

    @property
    def identity(self) -> str:
        """What tells this record from that of another run."""
        return f"{digest_of(self._encoded()):016x}"

    @property
    def of_the_set(self) -> str:
        """What tells the images of the set, with their classes and parts, from others, whatever the run used them for.

        Neither the seed nor another name of an image makes a difference.
        """
        rows = sorted(f"{row.source}\n{row.class_name}\n{row.content:016x}\n" for row in self.rows)
        return f"{digest_of(''.join(rows).encode(errors='surrogateescape')):016x}"

    def _encoded(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")  # a name may hold anything
        writer.writerow(_HEAD)
        writer.writerows((*row[:-1], f"{row.content:016x}") for row in self.rows)
        return text.getvalue().encode(errors="surrogateescape")

    @classmethod
    def read(cls, folder: Path) -> "ImageRecord | None":
        """The record of the run in a folder, None if there is none. Raises: ValueError if it is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        text = path.read_bytes().decode(errors="surrogateescape")
        try:
            head, *lines = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
            if tuple(head) != _HEAD:
                raise ValueError(f"its columns are {', '.join(head) or 'none'}")
            if not lines:
                raise ValueError("it has no image")
            if strange := {line[0] for line in lines} - _WEIGHT.keys():
                raise ValueError(f"it has no part {min(strange)!r}")
            rows = tuple(Row(part, source, name, key, int(content, 16)) for part, source, name, key, content in lines)
        except (ValueError, IndexError, csv.Error) as error:
            what = f"{path} is no record of a run's images ({error})"
            raise ValueError(f"{what}: put back the one that it wrote") from error
        return cls(rows)

    @classmethod
    def of_run(cls, checkpoint: str, training: Mapping[str, Any]) -> "ImageRecord | None":
        """The record that lies beside a run's model, whose file tells of its ``training``; that of another run is none.

        Raises: ValueError if it is damaged.
        """
        if training.get("images") != FILE:
            return None
        path = expanded(checkpoint)
        record = cls.read(path if path.is_dir() else path.parent)
        return record if record is not None and record.identity == training.get("images_digest") else None

    def parts_in(self, found: LabelledSet) -> tuple[dict[str, np.ndarray], Changes]:
        """What the run used each image of ``found`` for, ``(n,)`` names of parts or ``new``, by part of the data.

        Raises: ValueError for images without digests, of which nothing can be known.
        """
        by_content: dict[int, str] = {}
        by_name: dict[tuple[str, str], str] = {}
        for row in sorted(self.rows, key=lambda row: _WEIGHT[row.part], reverse=True):
            by_content[row.content] = row.part
            by_name[row.source, row.name] = row.part
        here, used = _images(found), {}
        for source, rows in here.items():
            parts = [by_content.get(row.content) or by_name.get((source, row.name), NEW) for row in rows]
            used[source] = np.array(parts, object)
        return used, self._changes(found, here)

    def known_by_name_alone(self, found: LabelledSet, used: Mapping[str, np.ndarray], parts: Collection[str]) -> int:
        """How many images that ``parts_in`` takes for some of these parts have a content that the run has not seen."""
        contents = {row.content for row in self.rows}
        rows_of = _images(found)
        return sum(
            part in parts and row.content not in contents
            for source, of in used.items()
            for part, row in zip(of, rows_of[source], strict=True)
        )

    def _changes(self, found: LabelledSet, by_part: Mapping[str, Sequence[Row]]) -> Changes:
        """Contents are counted, not names: one name may stand for several images, ``1.jpg`` and ``1.png``."""
        rows_here = [*chain.from_iterable(by_part.values())]
        here, there = ([(row.source, row.name, row.content) for row in rows] for rows in (rows_here, self.rows))
        present, recorded = (Counter(content for _, _, content in images) for images in (here, there))
        extra, lacking = present - recorded, recorded - present
        was, stays = (Counter(image for image in images if image[2] in lacking) for images in (there, here))
        emptied = Counter((source, name) for source, name, _ in (was - stays).elements())
        filled = Counter((source, name) for source, name, content in here if content not in recorded)
        changed = min((emptied & filled).total(), lacking.total())
        same_name = Counter((name, content) for _, name, content in here)
        same_name &= Counter((name, content) for _, name, content in there)
        known, counts = {row.class_name for row in self.rows}, Counter(row.class_name for row in rows_here)
        return Changes(
            came=extra.total() - changed,
            went=lacking.total() - changed,
            changed=changed,
            renamed=(present & recorded).total() - same_name.total(),
            new_classes={name: counts[name] for name in found.class_names if counts[name] and name not in known},
        )

    def restored(self, found: LabelledSet) -> tuple[ImageDataset, Changes]:
        """The data set that the run was started with, out of data that may have changed since: same images, same order.

        Images that came are left out. Raises: ValueError, with counts, if an image that it trains, chooses or tests by
        is gone, changed or of another class.
        """
        changes = self._changes(found, _images(found))
        if changes.new_classes:
            found = with_classes(found, [name for name in found.class_names if name not in changes.new_classes])
        index_of: dict[tuple[str | int, ...], int] = {}  # by content and class, with the name and without
        for source, images in _images(found).items():
            for index, row in enumerate(images):
                image = source, row.content, row.class_name
                index_of[*image, row.name] = index
                index_of.setdefault(image, index)
        splits: dict[str, Split] = {}
        missing: list[str] = []
        for part in dict.fromkeys(row.part for row in self.rows if row.part in (TRAIN, VALIDATION, TEST)):
            rows = [row for row in self.rows if row.part == part]
            source, chosen = rows[0].source, list[int]()
            for row in rows:
                image = source, row.content, row.class_name
                index = index_of.get((*image, row.name), index_of.get(image))
                if index is None:
                    missing.append(row.name)
                else:
                    chosen.append(index)
            if source in found.parts:
                splits[part] = found.parts[source].subset(torch.tensor(chosen, dtype=torch.int64))
        if missing:
            raise ValueError(
                f"{len(missing):,} of the {len(self.rows):,} images that this run was started with are gone, changed "
                f"or of another class (the first: {missing[0]}): put them back, or name another --output for a new run"
            )
        if lacking := [part for part in (TRAIN, TEST) if part not in splits]:
            raise ValueError(f"{FILE} of this run has no {lacking[0]} image of these data: put back the one it wrote")
        return with_parts(found, splits[TRAIN], splits.get(VALIDATION), splits[TEST]), changes


def source_of(found: LabelledSet, part: str) -> str:
    """The part of the data that a split of the run comes from."""
    if found.unsplit is not None:
        return next(iter(found.parts))
    if part in (TEST, COPY):
        return found.reported
    return VALIDATION if part == VALIDATION and {VALIDATION, TEST} <= found.parts.keys() else TRAIN


def _images(found: LabelledSet) -> dict[str, list[Row]]:
    """Every image of the data, part by part; what it is used for is not known yet."""
    return {source: _rows(NEW, source, split, found) for source, split in found.parts.items()}


def _rows(part: str, source: str, split: Split, found: LabelledSet) -> list[Row]:
    """A row for every image of a split."""
    if split.digests is None:
        raise ValueError("the images of a set known by name have no digests, and need none")
    images = enumerate(zip(split.labels.tolist(), split.digests.tolist(), strict=True))
    return [Row(part, source, found.class_names[label], split.key(i), content) for i, (label, content) in images]
