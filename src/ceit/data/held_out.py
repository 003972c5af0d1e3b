"""Which labelled images a trained model is measured on: never one that it was trained on or chosen by.

And which ones an export of it is calibrated and checked with: none of a test split."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ceit.data.labelled import LabelledSet, as_dataset, cut_by_place, without_copies
from ceit.data.record import COPY, FIXED, NEW, TEST, TRAIN, UNUSED, VALIDATION, ImageRecord
from ceit.data.splits import ImageDataset, JoinedSplit, Split, cut_share, cut_validation
from ceit.messages import listed

ALL = "all"
ASKABLE = (TEST, VALIDATION, TRAIN, NEW, ALL)
"""What ``--split`` takes; ``new`` are images that came after the run was started."""
_LEFT_OUT = (TRAIN, VALIDATION, COPY, UNUSED)


@dataclass(frozen=True)
class Measured:
    """The images to measure on, what they are called, and what has to be said of how they were found."""

    split: Split
    name: str
    remarks: tuple[str, ...] = ()


def to_measure(
    found: LabelledSet, record: ImageRecord | None, training: Mapping[str, Any], asked: str | None
) -> Measured:
    """The images of ``found`` that ``asked`` names; by default all that the run was not trained on or chosen by.

    ``record`` is that of the run, if there is one; ``training`` is what the model's file tells of its training. Of data
    that come split it is the test part that counts, or what stands for it.

    Raises: ValueError if there are no such images.
    """
    if asked == ALL:
        return _all(found, record)
    if found.is_fixed:
        return _of_dataset(as_dataset(found, _cut_seed(training)), training, asked)
    if record is not None:
        return _by_record(found, record, asked)
    if is_fixed := training.get("images") == FIXED:
        known = f"the run was trained on {training.get('data', 'a set known by name')}, of which it keeps no record"
        effect = "images of that set are not recognised here and are measured too"
    elif "seed" not in training:
        known = "this checkpoint tells nothing of its training"
        effect = "images that it was trained on, if any, are measured too"
    else:
        known = "this checkpoint has no record of its images"
        effect = "what has changed in the data since it was trained cannot be known"
    remark = f"{known}: {effect}"
    is_test_part = found.unsplit is None and TRAIN not in found.parts
    if is_fixed or "seed" not in training or is_test_part:
        return replace(_others(found, asked), remarks=(remark,))
    old = "images" not in training
    try:
        dataset = as_dataset(cut_by_place(found) if old else found, _cut_seed(training))
        dataset = dataset if asked in (TRAIN, VALIDATION) else without_copies(dataset)
    except ValueError as error:
        raise ValueError(f"{error}; or say --split all, which measures all images") from error
    measured, total = _of_dataset(dataset, training, asked), sum(map(len, found.parts.values()))
    kept = f"measured are the {len(measured.split):,} of {total:,} images that its seed keeps for that"
    more = () if found.unsplit is None else (f"{kept}; --split all takes all",)
    return replace(measured, remarks=(remark, *dataset.remarks[len(found.remarks) :], *more))


def _all(found: LabelledSet, record: ImageRecord | None) -> Measured:
    remarks: tuple[str, ...] = ()
    if record is not None and not found.is_fixed:
        used, _ = record.parts_in(found)
        trained, chosen = (sum(np.count_nonzero(of == part) for of in used.values()) for part in (TRAIN, VALIDATION))
        if trained or chosen:
            remarks = (f"of these images the run was trained on {trained:,} and chosen by {chosen:,}",)
    return Measured(JoinedSplit.of(list(found.parts.values()), list(found.parts)), ALL, remarks)


def _by_record(found: LabelledSet, record: ImageRecord, asked: str | None) -> Measured:
    used, changes = record.parts_in(found)
    remarks = [str(changes)] if str(changes) and changes.came < sum(map(len, used.values())) else []
    if asked in (VALIDATION, TRAIN, NEW):
        return _chosen(found, {source: of == asked for source, of in used.items()}, asked, remarks)
    is_unsplit = found.unsplit is not None
    if not is_unsplit:
        if found.reported not in used:
            raise ValueError(f"{found.place} has no {found.reported} part: choose --split train, new or all")
        used = {found.reported: used[found.reported]}
    left_out = sum(np.isin(of, _LEFT_OUT).sum() for of in used.values())
    new, kept = (sum(np.count_nonzero(of == part) for of in used.values()) for part in (NEW, TEST))
    if left_out and not is_unsplit:
        why = "were trained on or chosen by, or are copies"
        remarks.append(f"{left_out:,} images of the {found.reported} part {why}: left out")
    if by_name := record.known_by_name_alone(found, used, _LEFT_OUT):
        why = "because of their names alone, as they have been edited or are other pictures"
        remarks.append(f"left out {why}: {by_name:,}; --split all measures them too")
    of_the_run = is_unsplit or kept > 0  # a test part of other data is all new
    if (left_out or kept) and of_the_run and new and asked is None:
        remarks.append(f"new images are measured too ({new:,}); --split test leaves them out")
    held_out = (TEST,) if asked == TEST and of_the_run else (TEST, NEW)
    chosen = {source: np.isin(of, held_out) for source, of in used.items()}
    return _chosen(found, chosen, TEST if left_out or not is_unsplit else ALL, remarks)


def _others(found: LabelledSet, asked: str | None) -> Measured:
    """Of data that have nothing to do with the training."""
    if found.unsplit is not None and asked in (None, NEW):
        return Measured(found.unsplit, ALL)
    name = found.reported if asked in (None, TEST) else asked
    if name not in found.parts:
        raise ValueError(
            f"{found.place} has no {asked or name} part, only {' and '.join(found.parts)}: choose --split all"
        )
    return Measured(found.parts[name], name)


def _of_dataset(dataset: ImageDataset, training: Mapping[str, Any], asked: str | None) -> Measured:
    """The split as training had it: where the data has no validation split, one was cut from the training images."""
    if asked in (None, TEST):
        return Measured(dataset.test, TEST)
    if asked == NEW:
        raise ValueError(f"which images of {dataset.name} are new cannot be known: there is no record of the training")
    train, validation = _as_trained(dataset, training)
    if asked == TRAIN:
        return Measured(train, TRAIN)
    if validation is None:
        what = f"{dataset.name} has no validation split, and the checkpoint tells of none"
        raise ValueError(f"{what}; choose test or train")
    return Measured(validation, VALIDATION)


def cut_to_train(
    dataset: ImageDataset, validation_percent: float, train_percent: float, seed: int
) -> tuple[ImageDataset, Split | None]:
    """The set with training and validation images as a run takes them, and those that it leaves unused.

    Without a validation split of its own one is cut from the training images; of those that are left as many train as
    asked for, of each class at least one. Raises: ValueError, naming the option, for a share that cannot be cut.
    """
    train, validation, unused = dataset.train, dataset.validation, None
    if validation is None and validation_percent > 0:
        try:
            train, validation = cut_validation(train, float(validation_percent), seed)
        except ValueError as error:
            fix = "add images or a validation part, or set validation_percent 0 and select last"
            raise ValueError(f"validation_percent {validation_percent:g}: {error}; {fix}") from error
    if train_percent < 100:
        try:
            unused, train = cut_share(train, train_percent, seed)
        except ValueError as error:
            rule = "it must leave at least one, and leave out one of each class; 100 takes all"
            left = round(len(train) * train_percent / 100)
            raise ValueError(f"train_percent {train_percent} leaves {left} of {len(train)} images: {rule}") from error
    return replace(dataset, train=train, validation=validation), unused


def _as_trained(dataset: ImageDataset, training: Mapping[str, Any]) -> tuple[Split, Split | None]:
    """Training and validation images as a run had them that keeps no record."""
    if "seed" not in training:
        return dataset.train, dataset.validation
    shares = training.get("validation_percent") or 0, training.get("train_percent", 100)
    dataset, _ = cut_to_train(dataset, *shares, _cut_seed(training))
    return dataset.train, dataset.validation


def _cut_seed(training: Mapping[str, Any]) -> int:
    """The seed that split the images of a run, as its model's file tells."""
    return training.get("split_seed", training.get("seed", 0))


def trained_in(found: LabelledSet, training: Mapping[str, Any]) -> np.ndarray:
    """Of each image of a set known by name, in the order of its parts, whether a run that took this set trained on it.

    ``training`` is what the model's file tells.
    """
    train, _ = _as_trained(as_dataset(found, _cut_seed(training)), training)
    keys = {train.key(index) for index in range(len(train))}
    return np.array(
        [part == TRAIN and images.key(i) in keys for part, images in found.parts.items() for i in range(len(images))]
    )


def to_probe(found: LabelledSet, record: ImageRecord | None, training: Mapping[str, Any]) -> tuple[Split, Split]:
    """Images that tell what features mean, and others to test that on: of an unsplit set those that the run trained
    and tested on, as far as it knows them.

    Raises: ValueError as ``as_dataset``.
    """
    if found.unsplit is not None:
        train, test = used_for(TRAIN, found, record), used_for(TEST, found, record)
        if train is not None and test is not None:
            return train, test
    dataset = as_dataset(found, _cut_seed(training))
    return dataset.train, dataset.test


def to_calibrate_and_check(
    found: LabelledSet, record: ImageRecord | None, training: Mapping[str, Any]
) -> tuple[Split, Split, str]:
    """Images to calibrate an export with, others to check it with, and what those are: validation images, if any.

    What the run recorded counts. A set without validation images, and a run that is not known, give a tenth of the
    training images.
    """
    train, validation = used_for(TRAIN, found, record), used_for(VALIDATION, found, record)
    if train is None:  # no record, or other data than the run's
        old = "images" not in training and "seed" in training  # such runs cut their images by place
        dataset = as_dataset(cut_by_place(found) if old else found, _cut_seed(training))
        train, validation = _as_trained(dataset, training)
    if validation is not None:
        return train, validation, "validation split"
    return *cut_validation(train, max(1, len(train) // 10), _cut_seed(training)), "training images"


def without_other_classes(found: LabelledSet, kept: Collection[str]) -> LabelledSet:
    """The images of the classes that the run was told to keep; how many others there are is said."""
    is_kept = torch.tensor([name in kept for name in found.class_names])
    parts = {name: split.subset(torch.nonzero(is_kept[split.labels]).flatten()) for name, split in found.parts.items()}
    if not any(map(len, parts.values())):
        there, wanted = (listed(sorted(names)) for names in (found.class_names, kept))
        raise ValueError(f"no image of {found.place} is of a class that the run kept ({wanted}); it has {there}")
    if left_out := sum(len(found.parts[name]) - len(split) for name, split in parts.items()):
        others = listed(name for name in found.class_names if name not in kept)
        line = f"left out: {left_out:,} images of classes that the run was told to leave out ({others})"
        found = replace(found, remarks=(*found.remarks, line))
    return replace(found, parts={name: split for name, split in parts.items() if len(split)})


def with_labels_of(class_names: Sequence[str], found: LabelledSet, split: Split) -> Split:
    """The split with every label as its class is numbered in ``class_names``; classes without images are no matter.

    Raises: ValueError naming the classes that the checkpoint does not know, or a name that two of its classes have,
    unless the set has the same names in the same order.
    """
    number = {name: i for i, name in enumerate(class_names)}
    given = [found.class_names[label] for label in split.labels.unique().tolist()]
    if strange := [name for name in given if name not in number]:
        what = f"{listed(map(repr, strange))} of {found.name}"
        raise ValueError(
            f"the checkpoint does not know {what}: it has {len(class_names):,} classes, {listed(class_names)}"
        )
    names = list(class_names)
    if names == list(found.class_names):
        return split
    if twice := [name for name in given if names.count(name) > 1]:
        raise ValueError(
            f"classes {names.index(twice[0])} and {number[twice[0]]} of the checkpoint are both called {twice[0]!r}: "
            f"which one {found.name} means cannot be known; give each class a name of its own"
        )
    return replace(split, labels=torch.tensor([number.get(name, -1) for name in found.class_names])[split.labels])


def used_for(part: str, found: LabelledSet, record: ImageRecord | None) -> Split | None:
    """The images of ``found`` that a run used for a part; None if there are none, or if that is not known."""
    if record is None or found.is_fixed:
        return None
    used, _ = record.parts_in(found)
    return _joined(found, {source: of == part for source, of in used.items()})


def _joined(found: LabelledSet, chosen: Mapping[str, np.ndarray]) -> Split | None:
    chosen = {source: np.flatnonzero(of) for source, of in chosen.items() if of.any()}
    parts = [found.parts[source].subset(torch.from_numpy(indices)) for source, indices in chosen.items()]
    return (parts[0] if len(parts) == 1 else JoinedSplit.of(parts)) if parts else None


def _chosen(found: LabelledSet, chosen: Mapping[str, np.ndarray], name: str, remarks: Sequence[str]) -> Measured:
    if (split := _joined(found, chosen)) is not None:
        return Measured(split, name, tuple(remarks))
    total, kind = sum(map(len, found.parts.values())), "a new one" if name == NEW else f"of the {name} part"
    raise ValueError(
        f"none of the {total:,} images of {found.place} is {kind} of this run: --split all measures all, also those "
        "that it was trained on"
    )
