"""What a run did with every image: ``images.csv`` of its directory, and how later data are held against it.

An image is known by its content, whatever it is called, and, if that is new, by its name: an image that was turned or
saved anew is still the one that was trained on. See docs/decisions/splits.md.

Letters: n images.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ceit.data.cut import digest_of
from ceit.data.labelled import LabelledSet, with_parts
from ceit.data.splits import ImageDataset, Split
from ceit.paths import expanded
from ceit.weights.atomic import replace_files

FILE = "images.csv"
FIXED = "a fixed set"
"""What a model's file says in place of ``FILE`` where it was trained on a set known by name."""
NEW, TRAIN, VALIDATION, TEST, UNUSED, COPY = "new", "train", "validation", "test", "unused", "copy"
_WEIGHT = {TRAIN: 0, VALIDATION: 1, COPY: 2, TEST: 3, UNUSED: 4}  # of copies, the first says what they are
_HEAD = ("part", "source", "class", "name", "content")


@dataclass(frozen=True)
class Row:
    """One image: what the run used it for, the part that it came in, its class, its key and its digest."""

    part: str
    source: str
    class_name: str
    name: str
    content: int


@dataclass(frozen=True)
class Changes:
    """How data differ from the record: images that came, went, changed under their name, and go by another name."""

    came: int = 0
    went: int = 0
    changed: int = 0
    renamed: int = 0

    def __str__(self) -> str:
        kinds = {"came": self.came, "went": self.went, "changed": self.changed, "got another name": self.renamed}
        said = [f"{count:,} {kind}" for kind, count in kinds.items() if count]
        return f"images since this run was started: {', '.join(said)}" if said else ""


@dataclass(frozen=True)
class ImageRecord:
    """The images of a run, in the order in which it numbers them part by part."""

    rows: tuple[Row, ...]

    @classmethod
    def of(cls, parts: Mapping[str, Split], found: LabelledSet) -> "ImageRecord":
        """The record of the splits that a run has made of ``found``."""
        rows = []
        for part, split in parts.items():
            source = source_of(found, part)
            for index, (label, content) in enumerate(zip(split.labels.tolist(), _digests(split), strict=True)):
                rows.append(Row(part, source, found.class_names[label], split.key(index), content))
        return cls(tuple(rows))

    def write(self, folder: Path) -> None:
        """As ``images.csv``, whole or not at all."""
        replace_files({folder / FILE: self._encoded()})

    @property
    def identity(self) -> str:
        """What tells this record from that of another run."""
        return f"{digest_of(self._encoded()):016x}"

    def _encoded(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")  # a name may hold anything
        writer.writerow(_HEAD)
        writer.writerows((row.part, row.source, row.class_name, row.name, f"{row.content:016x}") for row in self.rows)
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
            raise ValueError(
                f"{path} is no record of a run's images ({error}): put back the one that it wrote"
            ) from error
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
        here = {source: _digests(split) for source, split in found.parts.items()}
        recorded = Counter(row.content for row in self.rows)
        present = Counter(content for contents in here.values() for content in contents)
        by_content: dict[int, str] = {}
        by_name: dict[tuple[str, str], str] = {}
        for row in sorted(self.rows, key=lambda row: _WEIGHT[row.part], reverse=True):
            by_content[row.content] = row.part
            by_name[row.source, row.name] = row.part
        names = {(row.name, row.content) for row in self.rows}
        parts: dict[str, np.ndarray] = {}
        new = changed = renamed = 0
        for source, contents in here.items():
            split, used = found.parts[source], []
            for index, content in enumerate(contents):
                key = split.key(index)
                if content in by_content:
                    used.append(by_content[content])
                    renamed += (key, content) not in names
                elif (source, key) in by_name:
                    used.append(by_name[source, key])
                    changed += 1
                else:
                    used.append(NEW)
                    new += 1
            parts[source] = np.array(used, object)
        copies = sum((present - recorded)[content] for content in recorded)  # of images that were there before
        went = max(0, (recorded - present).total() - changed)
        return parts, Changes(new + copies, went, changed, renamed - copies)

    def _of_its_classes(self, found: LabelledSet) -> LabelledSet:
        """Without the images of classes that came since."""
        known = {row.class_name for row in self.rows}
        present = {label for split in found.parts.values() for label in split.labels.unique().tolist()}
        came = {number for number in present if found.class_names[number] not in known}
        if not came:
            return found
        kept = [number for number in range(len(found.class_names)) if number not in came]
        numbers = torch.full((len(found.class_names),), -1)
        numbers[kept] = torch.arange(len(kept))
        parts = {source: _relabelled(split, numbers) for source, split in found.parts.items()}
        return replace(found, class_names=tuple(found.class_names[number] for number in kept), parts=parts)

    def restored(self, found: LabelledSet) -> tuple[ImageDataset, Changes]:
        """The data set that the run was started with, out of data that may have changed since: same images, same order.

        Images that came are left out. Raises: ValueError, with counts, if an image that it trains, chooses or tests by
        is gone, changed or of another class.
        """
        found = self._of_its_classes(found)
        _, changes = self.parts_in(found)
        places: dict[tuple[str, int], list[int]] = {}
        for source, split in found.parts.items():
            for index, content in enumerate(_digests(split)):
                places.setdefault((source, content), []).append(index)
        splits: dict[str, Split] = {}
        missing: list[str] = []
        for part in dict.fromkeys(row.part for row in self.rows if row.part in (TRAIN, VALIDATION, TEST)):
            rows = [row for row in self.rows if row.part == part]
            source = rows[0].source
            split = found.parts.get(source)
            keys = {} if split is None else {split.key(index): index for index in range(len(split))}
            chosen = []
            for row in rows:
                at = places.get((source, row.content), [])
                at = [i for i in at if found.class_names[int(found.parts[source].labels[i])] == row.class_name]
                if not at:
                    missing.append(row.name)
                else:
                    chosen.append(keys[row.name] if keys.get(row.name) in at else at[0])
            if split is not None:
                splits[part] = split.subset(torch.tensor(chosen, dtype=torch.int64))
        if missing:
            raise ValueError(
                f"{len(missing):,} of the {len(self.rows):,} images that this run was started with are gone, changed "
                f"or of another class (the first: {missing[0]}): put them back, or name another --output for a new run"
            )
        return with_parts(found, splits[TRAIN], splits.get(VALIDATION), splits[TEST]), changes


def _relabelled(split: Split, numbers: torch.Tensor) -> Split:
    kept = torch.nonzero(numbers[split.labels] >= 0).flatten()
    part = split.subset(kept)
    return replace(part, labels=numbers[part.labels])


def source_of(found: LabelledSet, part: str) -> str:
    """The part of the data that a split of the run comes from."""
    if found.unsplit is not None:
        return next(iter(found.parts))
    if part == TEST:
        return found.reported
    own_validation = VALIDATION in found.parts and found.reported != VALIDATION
    return VALIDATION if part == VALIDATION and own_validation else TRAIN


def _digests(split: Split) -> list[int]:
    if split.digests is None:
        raise ValueError("the images of a set known by name have no digests, and need none")
    return split.digests.tolist()
