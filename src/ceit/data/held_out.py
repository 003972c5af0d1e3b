"""Which labelled images a trained model is measured on: never one that it was trained on or chosen by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ceit.data.labelled import LabelledSet, as_dataset, cut_by_place, without_copies
from ceit.data.record import COPY, FIXED, NEW, TEST, TRAIN, UNUSED, VALIDATION, ImageRecord
from ceit.data.splits import ImageDataset, JoinedSplit, Split, cut_validation

ALL = "all"
ASKABLE = (TEST, VALIDATION, TRAIN, NEW, ALL)
"""What ``--split`` takes; ``new`` are images that came after the run was started."""


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
        return _of_dataset(as_dataset(found, training.get("seed", 0)), training, asked)
    if record is not None:
        return _by_record(found, record, asked)
    if training.get("images") == FIXED:
        remark = (
            f"the run was trained on {training.get('data', 'a set known by name')}, of which it keeps no record: "
            "images of that set are not recognised here and are measured too"
        )
        return replace(_others(found, asked), remarks=(remark,))
    if "seed" not in training:
        remark = (
            "this checkpoint tells nothing of its training: images that it was trained on, if any, are measured too"
        )
        return replace(_others(found, asked), remarks=(remark,))
    old = "images" not in training
    remark = (
        "this checkpoint has no record of its images: what has changed in the data since it was trained cannot be known"
    )
    if found.unsplit is None and "train" not in found.parts:  # a test part alone
        return replace(_others(found, asked), remarks=(remark,))
    try:
        dataset = as_dataset(cut_by_place(found) if old else found, training.get("seed", 0))
        dataset = dataset if asked in (TRAIN, VALIDATION) else without_copies(dataset)
    except ValueError as error:
        raise ValueError(f"{error}; or say --split all, which measures all images") from error
    measured, total = _of_dataset(dataset, training, asked), sum(map(len, found.parts.values()))
    kept = f"measured are the {len(measured.split):,} of {total:,} images that its seed keeps for that"
    more = () if found.unsplit is None else (f"{kept}; --split all takes all",)
    return replace(measured, remarks=(remark, *dataset.remarks[len(found.remarks) :], *more))


def _all(found: LabelledSet, record: ImageRecord | None) -> Measured:
    remarks: list[str] = []
    if record is not None and not found.is_fixed:
        used, _ = record.parts_in(found)
        counts = {part: sum(int((of == part).sum()) for of in used.values()) for part in (TRAIN, VALIDATION)}
        if sum(counts.values()):
            remarks.append(
                f"of these images the run was trained on {counts[TRAIN]:,} and chosen by {counts[VALIDATION]:,}"
            )
    return Measured(JoinedSplit.of(list(found.parts.values())), ALL, tuple(remarks))


def _by_record(found: LabelledSet, record: ImageRecord, asked: str | None) -> Measured:
    used, changes = record.parts_in(found)
    remarks = [str(changes)] if str(changes) and changes.came < sum(map(len, used.values())) else []
    if asked in (VALIDATION, TRAIN, NEW):
        chosen = {source: of == asked for source, of in used.items()}
        return _chosen(found, chosen, asked, remarks)
    sources = list(found.parts) if found.unsplit is not None else [found.reported]
    if missing := [source for source in sources if source not in found.parts]:
        raise ValueError(f"{found.place} has no {missing[0]} part: choose --split train, new or all")
    held_out = (TEST,) if asked == TEST and found.unsplit is not None else (TEST, NEW)
    chosen = {source: np.isin(used[source], held_out) for source in sources}
    left_out = sum(int(np.isin(used[source], (TRAIN, VALIDATION, COPY, UNUSED)).sum()) for source in sources)
    new = sum(int((used[source] == NEW).sum()) for source in sources)
    if found.unsplit is None and left_out:
        remarks.append(
            f"{left_out:,} images of the {found.reported} part were trained on or chosen by, or are copies: left out"
        )
    if found.unsplit is not None and left_out and new and asked is None:
        remarks.append(f"new images are measured too ({new:,}); --split test leaves them out")
    whole = found.unsplit is not None and not left_out
    return _chosen(found, chosen, ALL if whole else TEST, remarks)


def _others(found: LabelledSet, asked: str | None) -> Measured:
    """Of data that have nothing to do with the training."""
    if found.unsplit is not None and asked in (None, NEW):
        return Measured(found.unsplit, ALL)
    name = found.reported if asked in (None, TEST) else asked
    if name not in found.parts:
        raise ValueError(f"{found.place} has no {name} part, only {' and '.join(found.parts)}: choose --split all")
    return Measured(found.parts[name], name)


def _of_dataset(dataset: ImageDataset, training: Mapping[str, Any], asked: str | None) -> Measured:
    """The split as training had it: where the data has no validation split, one was cut from the training images."""
    if asked in (None, TEST):
        return Measured(dataset.test, TEST)
    if asked == NEW:
        raise ValueError(f"which images of {dataset.name} are new cannot be known: there is no record of the training")
    train, validation = dataset.train, dataset.validation
    if validation is None and "seed" in training and (percent := training.get("validation_percent")):
        train, validation = cut_validation(train, float(percent), training["seed"])
    if asked == TRAIN:
        return Measured(train, TRAIN)
    if validation is None:
        raise ValueError(
            f"{dataset.name} has no validation split, and the checkpoint tells of none; choose test or train"
        )
    return Measured(validation, VALIDATION)


def used_for(part: str, found: LabelledSet, record: ImageRecord | None) -> Split | None:
    """The images of ``found`` that a run used for a part; None if there are none, or if that is not known."""
    if record is None or found.is_fixed:
        return None
    used, _ = record.parts_in(found)
    return _joined(found, {source: of == part for source, of in used.items()})


def _joined(found: LabelledSet, chosen: Mapping[str, np.ndarray]) -> Split | None:
    parts = [
        found.parts[source].subset(torch.from_numpy(np.flatnonzero(of))) for source, of in chosen.items() if of.any()
    ]
    return (parts[0] if len(parts) == 1 else JoinedSplit.of(parts)) if parts else None


def _chosen(found: LabelledSet, chosen: Mapping[str, np.ndarray], name: str, remarks: Sequence[str]) -> Measured:
    split = _joined(found, chosen)
    if split is None:
        total = sum(map(len, found.parts.values()))
        raise ValueError(
            f"none of the {total:,} images of {found.place} is {'a new one' if name == NEW else f'of the {name} part'} "
            "of this run: --split all measures all, also those that it was trained on"
        )
    return Measured(split, name, tuple(remarks))
