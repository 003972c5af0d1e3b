"""Labelled images as a source found them, before any is trained on, and how they become a data set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from ceit.data.cut import tenths_by_content, tenths_by_place
from ceit.data.splits import ArraySplit, ImageDataset, SetDescription, Split, channel_statistics
from ceit.messages import listed, unknown

UNSPLIT = "all"
"""What the one part of a set is called that does not say what trains and what tests."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet(SetDescription):
    """What a source holds: the images of ``train``, ``validation`` and ``test``, or of ``all`` where it comes unsplit.

    ``place`` is what messages call it, ``class_names`` are those of all parts. ``statistics``, mean and standard
    deviation per channel, are for images that are not held in memory; else they are computed from those that train.
    """

    place: str
    parts: Mapping[str, Split]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def is_fixed(self) -> bool:
        """Whether it is a set known by name, whose images nobody adds to."""
        return any(part.digests is None for part in self.parts.values())

    @property
    def unsplit(self) -> Split | None:
        """All images, where none are set apart for testing."""
        return next(iter(self.parts.values())) if self.parts.keys() in ({UNSPLIT}, {"train"}) else None

    @property
    def reported(self) -> str:
        """The part that is set apart for testing: without ``test`` it is ``validation``, as in ImageNet."""
        return "test" if "test" in self.parts else "validation"


def of_classes(found: LabelledSet, classes: Sequence[str]) -> LabelledSet:
    """The images of these classes alone, numbered in the order given.

    Raises: ValueError as ``require_classes``, and for a part left without an image.
    """
    require_classes(classes, found.class_names, found.name)
    kept = with_classes(found, classes)
    if empty := [name for name, split in kept.parts.items() if not len(split)]:
        raise ValueError(f"the {empty[0]} split of {found.name} has no image of the classes {', '.join(classes)}")
    return kept


def with_classes(found: LabelledSet, classes: Sequence[str]) -> LabelledSet:
    """As ``of_classes`` for any of the set's classes; a part may be left without an image."""
    numbers = torch.full((len(found.class_names),), -1)
    numbers[[found.class_names.index(name) for name in classes]] = torch.arange(len(classes))
    parts = {}
    for name, split in found.parts.items():
        chosen = torch.nonzero(numbers[split.labels] >= 0).flatten()
        parts[name] = replace(split.subset(chosen), labels=numbers[split.labels[chosen]])
    return replace(found, class_names=tuple(classes), parts=parts)


def without_empty_classes(found: LabelledSet) -> LabelledSet:
    """A set that comes unsplit without classes that have no image, as a folder has none; a remark says which."""
    if found.unsplit is None:
        return found
    used = set(found.unsplit.labels.unique().tolist())
    empty = [name for number, name in enumerate(found.class_names) if number not in used]
    if not used or not empty:
        return found
    remark = f"no images in {listed(map(repr, empty))}: left out of the classes"
    kept = with_classes(found, [name for number, name in enumerate(found.class_names) if number in used])
    return replace(kept, remarks=(*found.remarks, remark))


def require_classes(classes: Sequence[str], there: Collection[str], name: str) -> None:
    """Raises: ValueError unless ``classes`` are at least two of those that are ``there`` in the set ``name``."""
    if strange := [asked for asked in classes if asked not in there]:
        raise ValueError(f"{unknown('class', strange[0], there)} in {name}")
    if twice := {asked for asked in classes if list(classes).count(asked) > 1}:
        raise ValueError(f"class {min(twice)!r} is named twice: name each class once")
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} classes of {name} are kept: a classifier needs at least two")


def cut_by_place(found: LabelledSet) -> LabelledSet:
    """The set without digests, so that it is cut by place, in exact shares: as runs without a record were."""
    return replace(found, parts={name: replace(split, digests=None) for name, split in found.parts.items()})


def as_dataset(found: LabelledSet, seed: int) -> ImageDataset:
    """The set with its splits as training takes them: its own, or cut about 80/10/10 by the seed.

    Without a test part the validation part is the reported one.

    Raises: ValueError for parts that cannot serve: no training images, a class that training lacks, fewer than two
    classes, a part without images.
    """
    if (images := found.unsplit) is not None:
        _require_classes(found, images)
        labels, digests = images.labels.numpy(), images.digests
        if digests is None:
            indices = tenths_by_place(labels, found.class_names, seed)
        else:
            indices = tenths_by_content(digests, labels, found.class_names, seed)
        parts = {name: images.subset(torch.from_numpy(chosen)) for name, chosen in indices.items()}
    else:
        if "train" not in found.parts:
            there = " and ".join(found.parts)
            raise ValueError(f"{found.place} has no training images, only {there}: add a part named train")
        if found.parts["train"].digests is not None:
            _require_classes(found, found.parts["train"])
        parts = {"test" if name == found.reported else name: part for name, part in found.parts.items()}
    if empty := [name for name, part in parts.items() if not len(part)]:
        raise ValueError(f"the {empty[0]} part of {found.place} has no image that can be read")
    return with_parts(found, parts["train"], parts.get("validation"), parts["test"])


def with_parts(found: LabelledSet, train: Split, validation: Split | None, test: Split) -> ImageDataset:
    """The data set of these splits."""
    description = {field.name: getattr(found, field.name) for field in fields(SetDescription)}
    mean, std = channel_statistics(train.pixels()) if isinstance(train, ArraySplit) else found.statistics
    return ImageDataset(**description, train=train, validation=validation, test=test, mean=mean, std=std)


def without_copies(dataset: ImageDataset) -> ImageDataset:
    """The set without test images that are copies of training or validation images; ``remarks`` count them, and
    validation images that are copies of training images, which stay.

    A fixed set stays as it is. Raises: ValueError if nothing is left to test on.
    """
    if copies := _copies_in_validation(dataset):
        line = f"{copies:,} of {len(dataset.validation or ()):,} validation images of {dataset.name} are copies of "
        line += "training images: they choose a model that has learnt them (ceit data check names them)"
        dataset = replace(dataset, remarks=(*dataset.remarks, line))
    is_copy = _is_copy(dataset)
    if not is_copy.any():
        return dataset
    if is_copy.all():
        raise ValueError(f"every test image of {dataset.name} is a copy of a training or validation image: take others")
    line = f"{is_copy.sum():,} of {len(is_copy):,} test images of {dataset.name} are copies of training or validation "
    line += "images: they are not measured (ceit data check names them)"
    test = dataset.test.subset(torch.from_numpy(np.flatnonzero(~is_copy)))
    return replace(dataset, test=test, remarks=(*dataset.remarks, line))


def copies_in_test(dataset: ImageDataset) -> Split | None:
    """The test images that ``without_copies`` leaves out; None if there are none."""
    is_copy = _is_copy(dataset)
    return dataset.test.subset(torch.from_numpy(np.flatnonzero(is_copy))) if is_copy.any() else None


def _copies_in_validation(dataset: ImageDataset) -> int:
    known, validation = dataset.train.digests, dataset.validation
    if validation is None or validation.digests is None or known is None:
        return 0
    return int(np.isin(validation.digests, known).sum())


def _is_copy(dataset: ImageDataset) -> np.ndarray:
    """Of each test image, bool ``(n,)``."""
    known = [split.digests for split in (dataset.train, dataset.validation) if split is not None]
    contents = [digests for digests in known if digests is not None]
    if dataset.test.digests is None or not contents:
        return np.zeros(len(dataset.test), bool)
    return np.isin(dataset.test.digests, np.concatenate(contents))


def _require_classes(found: LabelledSet, train: Split) -> None:
    """Raises: ValueError unless training has two classes and every class of the other parts."""
    counts = torch.bincount(train.labels, minlength=len(found.class_names))
    for name, part in found.parts.items():
        if len(strange := part.labels[counts[part.labels] == 0]):
            class_name = min(found.class_names[label] for label in strange.unique().tolist())
            where = f"class {class_name!r} of {found.place} is in {name} but not in train"
            raise ValueError(f"{where}: add it or remove it")
    trained = [name for name, count in zip(found.class_names, counts.tolist(), strict=True) if count]
    if len(trained) < 2:
        only = f"only the class {trained[0]!r}" if trained else "no training image that can be read"
        raise ValueError(f"{found.place} has {only}: a classifier needs at least two")
