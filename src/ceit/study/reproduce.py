"""Running a study: cell by cell, each once, whatever stops it in between."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import torch
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.splits import ImageDataset
from ceit.inference.device import machine
from ceit.lock import InUseError, locked
from ceit.model import CeiT
from ceit.model.complexity import complexity
from ceit.study.cells import Record, folder_of, pack, path_of, read_cell, read_record, same_elsewhere, write_cell
from ceit.study.locality import attention_distances, shift_consistency
from ceit.study.plan import FAMILIES, TUNING, Cell, Scale, Study, load_study
from ceit.train.checkpoint import checkpoints_in
from ceit.train.config import Distillation
from ceit.train.distributed import make_accelerator
from ceit.train.learner import Say
from ceit.train.log import Show
from ceit.train.probe import seconds_of_an_epoch
from ceit.train.resolve import resolve
from ceit.train.run import Result, train
from ceit.train.run_directory import RunDirectory, lines_of, saved_config
from ceit.train.trainer import Trainer

_LOOKED_AT = 2000  # test images for shift consistency and attention distance, the first ones
_LOOK_AGAIN_SECONDS = 2.0
OF_THE_CELL = ("format", "study", "scale", "arm", "seed", "data", "options")
"""Of a cell's file: what is not found by running it."""


@dataclass(frozen=True)
class Places:
    """``results``: a folder of cells for each study and scale. ``runs``: the run directories of cells."""

    results: Path = Path("studies")
    runs: Path = Path("runs/studies")

    def run_of(self, cell: Cell) -> Path:
        """The run directory of a cell: its checkpoints until it is finished, its model for good."""
        return self.runs / cell.study / cell.scale / cell.name

    def lock_of(self, cell: Cell) -> Path:
        """The file that the process holds that trains a cell, or the same run for another study."""
        return self.runs / f"{cell.digest}.lock"

    def models_for(self, cell: Cell) -> dict[str, Path]:
        """Where the models lie that a cell needs, by arm: those of the same seed."""
        return {arm: self.run_of(replace(cell, arm=arm)) / "model.safetensors" for arm in cell.needs}


def reproduce(study: Study, scale: Scale, places: Places, say: Say, show: Show, wait: bool = True) -> list[Cell]:
    """Run every cell that is not finished, those of the learning rates first, and return the study's cells.

    Several processes with the same places share the cells out among them: each takes one that no other is running. At
    the end it waits until all are finished, to take over what another has left; unless ``wait``, it does not.

    Raises: ValueError for a cell's file that was changed, or as ``train``; OSError if results cannot be written;
    Interrupted after saving.
    """
    folder = folder_of(places.results, study.name, scale.name)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):  # or it would be found out when the first cell is trained
        pass
    rates = chosen_rates(scale, places)
    if study.tuned and rates is None:
        say(f"the learning rates of {scale.name} are chosen first: study {TUNING}")
        reproduce(load_study(TUNING), scale, places, say, show)
        rates = chosen_rates(scale, places)
    cells = study.cells(scale, rates or {})
    needed = {arm for cell in cells for arm in cell.needs}  # their models too, not only what they found
    said = set[str]()

    def say_once(words: str) -> None:
        if words not in said:
            said.add(words)
            say(words)

    while waiting := [cell for cell in cells if read_cell(places.results, cell) is None]:
        others = 0
        for cell in waiting:
            if not all(path_of(places.results, replace(cell, arm=arm)).is_file() for arm in cell.needs):
                others += 1
                continue
            words = f"cell {cells.index(cell) + 1} of {len(cells)}: {cell.name}"
            try:
                with _held(cell, places, say_once):
                    if path_of(places.results, cell).is_file():  # another process was quicker
                        continue
                    twin = None if cell.arm in needed else same_elsewhere(places.results, cell)
                    if twin is not None:
                        copy_twin(cell, twin, places)
                        say(f"{words} is the same run as {twin}")
                    else:
                        say_once(words)
                        run_cell(cell, places, say, show)
            except InUseError:
                others += 1
        if others == len(waiting):
            if not wait:
                break
            say_once(f"waiting: other processes are running the cells that are left, {others}, or what these need")
            time.sleep(_LOOK_AGAIN_SECONDS)
    return cells


@contextmanager
def _held(cell: Cell, places: Places, say: Say) -> Iterator[None]:
    """The cell's run, for this process alone. Raises: InUseError if another has it, for whatever study."""
    places.runs.mkdir(parents=True, exist_ok=True)
    with locked(places.lock_of(cell), say):
        yield


def copy_twin(cell: Cell, twin: Path, places: Places) -> None:
    """Write what another study found in the same run."""
    found = {key: value for key, value in read_record(twin).items() if key not in OF_THE_CELL}
    write_cell(places.results, cell, found | {"measured_as": twin.relative_to(places.results).as_posix()})


def chosen_rates(scale: Scale, places: Places) -> dict[str, float] | None:
    """The learning rate of each family that gave the best validation accuracy; None until all were tried.

    Raises: ValueError as ``read_cell``.
    """
    study = load_study(TUNING)
    scores: dict[str, dict[float, float]] = {family: {} for family in FAMILIES}
    for cell in study.cells(scale, {}):
        record = read_cell(places.results, cell)
        if record is None:
            return None
        scores[cell.arm.split(",")[0]][cell.options["peak_lr"]] = record["best"]["validation_top1_percent"]
    return {family: max(found, key=lambda rate: found[rate]) for family, found in scores.items()}


def run_cell(cell: Cell, places: Places, say: Say, show: Show) -> None:
    """Train one cell, or go on with it, and write its file.

    Raises: InUseError if another process is training it; ValueError if a model that it needs is not there, or its own
    is there without its file; as ``train``.
    """
    output, path = places.run_of(cell), path_of(places.results, cell)
    models = places.models_for(cell)
    for arm, model in models.items():
        if not model.is_file():
            finished = path_of(places.results, replace(cell, arm=arm))
            raise ValueError(f"{cell.name} needs the model of {arm}, and {model} is not there: remove {finished} too")
    if (output / "test.json").is_file() and not checkpoints_in(output / "checkpoints"):
        raise ValueError(
            f"{output} holds a finished model, and its cell's file {path} is missing: restore the file, or remove the "
            "directory to train it again"
        )
    right: list[bool] = []

    def observe(logits: Tensor, labels: Tensor) -> None:
        right.extend((logits.argmax(1) == labels).tolist())

    result = train(
        cell.config(models),
        cell.data,
        output,
        resume="auto",
        say=say,
        show=show,
        observe_test=observe,
        share_cores=False,  # cells are compared, also with those of other machines
    )
    write_cell(places.results, cell, _found(result, right))
    shutil.rmtree(output / "checkpoints", ignore_errors=True)


def _found(result: Result, right: list[bool]) -> Record:
    """What a finished run found, as far as tables and figures may ask for it."""
    lines = [json.loads(line) for line in lines_of(result.output / "metrics.jsonl")]
    curve = [
        {
            "epoch": line["epoch"],
            "step": line["step"],
            "train_loss": line["train_loss"],
            "validation_top1_percent": (line["validation"][result.best["weights"]] or {}).get("top1_percent"),
            "elapsed_seconds": line["elapsed_seconds"],
        }
        for line in lines
        if line["event"] == "epoch"
    ]
    resolved = saved_config(result.output)
    cost = complexity(result.model.config)
    return {
        "machine": machine(next(result.model.parameters()).device),
        "found": resolved["found"],
        "precision": resolved["precision"],
        "epochs": resolved["epochs"],
        "parameters": cost.parameters,
        "macs": cost.live_macs,
        "curve": curve,
        "best": result.best,
        "train_seconds": round(result.train_seconds, 1),
        "test": {
            "images": result.test.images,
            "loss": result.test.loss,
            "top1_percent": result.test.top1_percent,
            "right": pack(right),
        },
        "locality": _locality(result.model, result.dataset),
    }


def _locality(model: CeiT, dataset: ImageDataset) -> dict[str, Any]:
    parameter = next(model.parameters())
    device = parameter.device
    part = dataset.test.subset(torch.arange(min(_LOOKED_AT, len(dataset.test))))
    loader = make_loader(part, batch_size=250, img_size=dataset.img_size, preprocessing=dataset.preprocessing)
    model.eval()
    shifts, distances, sizes = [], [], []
    for images, labels in loader.epoch(0):
        images = images.to(device, parameter.dtype)
        shifts.append(shift_consistency(model, images))
        distances.append(attention_distances(model, images))
        sizes.append(len(labels))
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    by_shift = torch.tensor([list(found.values()) for found in shifts], dtype=torch.float64)
    by_block = torch.tensor(distances, dtype=torch.float64)
    return {
        "images": sum(sizes),
        "shift_consistency_percent": {
            str(pixels): round(value, 3) for pixels, value in zip(shifts[0], (weights @ by_shift).tolist(), strict=True)
        },
        "attention_distance": [round(value, 4) for value in (weights @ by_block).tolist()],
    }


def seconds_needed(cell: Cell) -> float:
    """Estimated seconds of a cell's training, from a few steps and one validation that are measured now.

    A teacher's share is left out. Raises: ValueError as ``train``.
    """
    config = replace(cell.config(), initial_checkpoint=None, distillation=Distillation())
    with TemporaryDirectory() as folder:
        accelerator = make_accelerator(config)
        trainer = Trainer(resolve(config, cell.data, accelerator), RunDirectory(Path(folder)), accelerator)
        step_seconds, validation_seconds = seconds_of_an_epoch(trainer)
        return trainer.epochs * (step_seconds * len(trainer.train_loader) + validation_seconds)
