"""Running a study: the learning rates first, then cell by cell."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.splits import ImageDataset
from ceit.messages import Say
from ceit.model import CeiT
from ceit.study.cells import Cell, Places, Record, pack, path_of, read_cell, read_record, same_elsewhere, write_cell
from ceit.study.locality import SHIFTS, attention_distances, shift_consistency
from ceit.study.plan import FAMILIES, TUNING, Scale, Study, load_study
from ceit.study.run import finish, found_by, recorded, run_cells, train_cell, write_failure
from ceit.train.log import Show

_LOOKED_AT = 2000  # test images for shift consistency and attention distance, the first ones
OF_THE_CELL = ("format", "study", "scale", "arm", "seed", "data", "options")
"""Of a cell's file: what is not found by running it."""


def reproduce(study: Study, scale: Scale, places: Places, say: Say, show: Show, wait: bool = True) -> list[Cell]:
    """Run every cell that is not finished, those of the learning rates first, and return the study's cells.

    ``wait``, and what it raises: as ``run_cells``; Interrupted after saving.
    """
    rates = chosen_rates(scale, places)
    if study.tuned and rates is None:
        say(f"the learning rates of {scale.name} are chosen first: study {TUNING}")
        reproduce(load_study(TUNING), scale, places, say, show)
        rates = chosen_rates(scale, places)
    cells, say_once = study.cells(scale, rates or {}), cache(say)
    needed = {arm for cell in cells for arm in cell.needs}  # their models too, not only what they found

    def is_ready(cell: Cell) -> bool:
        return all(path_of(places.results, replace(cell, arm=arm)).is_file() for arm in cell.needs)

    def run(cell: Cell, words: str) -> None:
        twin = None if cell.arm in needed else same_elsewhere(places.results, cell)
        if twin is None:
            say_once(words)
            run_cell(cell, places, say, show)
        else:
            found = {key: value for key, value in read_record(twin).items() if key not in OF_THE_CELL}
            measured_as = twin.relative_to(places.results).as_posix()
            write_cell(places.results, cell, found | {"measured_as": measured_as})
            say(f"{words} is the same run as {twin}")

    if not wait and all(path_of(places.results, cell).is_file() for cell in cells):
        fix = "another --results measures them anew"
        say(f"all {len(cells)} cells of {study.name} are finished in {places.results}, nothing is trained: {fix}")
    run_cells(cells, places, run, say, wait=wait, is_ready=is_ready)
    return cells


def chosen_rates(scale: Scale, places: Places) -> dict[str, float] | None:
    """The learning rate of each family, of the scale's, that gave the best validation accuracy.

    None until all were tried. Raises: ValueError as ``read_cell``, or if all of a family failed.
    """
    scores: dict[str, dict[float, float]] = {family: {} for family in FAMILIES}
    for cell in load_study(TUNING).cells(scale, {}):
        record = read_cell(places.results, cell)
        if record is None:
            return None
        if "failed" in record:
            continue
        scores[cell.arm.split(",")[0]][cell.options["peak_lr"]] = record["best"]["validation_top1_percent"]
    if lacking := [family for family, found in scores.items() if not found]:
        raise ValueError(f"no learning rate of {scale.name} was trained to its end for {lacking[0]}: see {TUNING}")
    return {family: max(found, key=lambda rate: found[rate]) for family, found in scores.items()}


def run_cell(cell: Cell, places: Places, say: Say, show: Show) -> None:
    """Train one cell, or go on with it, and write its file: what it found, or why it failed.

    Raises: ValueError if a model that it needs is not there, or if the run cannot begin.
    """
    if failed := [arm for arm in cell.needs if "failed" in _found(cell, arm, places)]:
        write_failure(cell, places, say, f"it needs the model of {failed[0]}, which failed")
        return
    for arm, model in places.models_for(cell).items():
        if not model.is_file():
            finished = path_of(places.results, replace(cell, arm=arm))
            raise ValueError(f"{cell.name} needs the model of {arm}, and {model} is not there: remove {finished} too")
    found = recorded(cell, places, say, show, lambda show: _train(cell, places, say, show))
    if found is not None:
        finish(cell, places, found)


def _found(cell: Cell, arm: str, places: Places) -> Record:
    """What another arm of the cell's study and seed has found."""
    path = path_of(places.results, replace(cell, arm=arm))
    return read_record(path) if path.is_file() else {}


def _train(cell: Cell, places: Places, say: Say, show: Show) -> Record:
    right: list[bool] = []

    def observe(logits: Tensor, labels: Tensor) -> None:
        right.extend((logits.argmax(1) == labels).tolist())

    # all threads, whatever other programs leave: cells are compared, also with those of other machines
    result = train_cell(cell, places, say, show, observe_test=observe, share_cores=False)
    test = {
        "images": result.test.images,
        "loss": result.test.loss,
        "top1_percent": result.test.top1_percent,
        "right": pack(right),
    }
    return found_by(result) | {"test": test, "locality": _locality(result.model, result.dataset)}


def _locality(model: CeiT, dataset: ImageDataset) -> dict[str, Any]:
    parameter, number = next(model.parameters()), min(_LOOKED_AT, len(dataset.test))
    part = dataset.test.subset(torch.arange(number))
    loader = make_loader(part, batch_size=250, img_size=dataset.img_size, preprocessing=dataset.preprocessing)
    model.eval()
    weights, shifts, distances = [], [], []  # of every batch
    for images, labels in loader.epoch(0):
        images = images.to(parameter.device, parameter.dtype)
        weights.append(len(labels) / number)
        shifts.append(list(shift_consistency(model, images).values()))
        distances.append(attention_distances(model, images))
    mean_shift, mean_distance = (
        (torch.tensor(weights, dtype=torch.float64) @ torch.tensor(found, dtype=torch.float64)).tolist()
        for found in (shifts, distances)
    )
    return {
        "images": number,
        "shift_consistency_percent": {str(n): round(value, 3) for n, value in zip(SHIFTS, mean_shift, strict=True)},
        "attention_distance": [round(value, 4) for value in mean_distance],
    }
