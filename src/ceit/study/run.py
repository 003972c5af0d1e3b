"""Running cells, of studies and of sweeps: each once, whatever stops it in between."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from torch import Tensor

from ceit.data.batches.workers import HangingError
from ceit.data.record import ImageRecord
from ceit.inference.device import machine
from ceit.lock import InUseError, locked
from ceit.machine import MachineError
from ceit.messages import Say, is_lack_of_memory
from ceit.model.complexity import complexity
from ceit.study.cells import Cell, Places, Record, path_of, read_cell, require_same_images, write_cell
from ceit.train.checkpoint import checkpoints_in
from ceit.train.config import Distillation
from ceit.train.distributed import make_accelerator
from ceit.train.images import ImagesError
from ceit.train.log import Show
from ceit.train.probe import seconds_of_an_epoch
from ceit.train.recipe import seconds_of
from ceit.train.resolve import resolve
from ceit.train.run import Result, train
from ceit.train.run_directory import LOCK, RunDirectory, lines_of, planned_epochs, saved_config
from ceit.train.trackers import CannotBeginError
from ceit.train.trainer import INTACT, Trainer

_LOOK_AGAIN_SECONDS = 2.0


class RefusedError(ValueError):
    """A run cannot begin, though its images can be read and nothing lies in its directory."""


def run_cells(
    cells: Sequence[Cell],
    places: Places,
    run: Callable[[Cell, str], None],
    say: Say,
    *,
    word: str = "cell",
    wait: bool = True,
    is_ready: Callable[[Cell], bool] = lambda cell: True,
    is_moot: Callable[[Cell], bool] = lambda cell: False,
    is_enough: Callable[[], bool] = lambda: False,
) -> None:
    """``run`` every cell that is not finished and ``is_ready``, until ``is_enough``. A ``word`` says what cells are.

    One that ``is_moot`` is left untrained, as its result would count for nothing.

    Several processes with the same places share the cells out among them: each takes one that no other is running. At
    the end it waits until all are finished, to take over what another has left; unless ``wait``, it does not.

    Raises: ValueError for a cell's file that was changed, or cells that saw other images than others; OSError if
    results cannot be written; as ``run``.
    """
    for folder in {path_of(places.results, cell).parent for cell in cells}:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # or it would be found out when the first cell is trained
            pass
    say = cache(say)  # the same thing once only
    while waiting := [cell for cell in _waiting(cells, places) if not is_moot(cell)]:
        others = 0
        for cell in waiting:
            if is_enough():
                return
            if is_moot(cell):  # since a moment ago
                say(f"{cell.name} is left untrained: another {word} that it would count with has failed")
                continue
            if not is_ready(cell):
                others += 1
                continue
            places.runs.mkdir(parents=True, exist_ok=True)
            try:
                with locked(places.lock_of(cell), say):
                    if not path_of(places.results, cell).is_file():  # or another process was quicker
                        run(cell, f"{word} {cells.index(cell) + 1} of {len(cells)}: {cell.name}")
                        _waiting(cells, places)
            except InUseError:
                others += 1
        if others == len(waiting):
            if not wait:
                return
            say(f"waiting: other processes are running the {word}s that are left, {others}, or what these need")
            time.sleep(_LOOK_AGAIN_SECONDS)


def _waiting(cells: Sequence[Cell], places: Places) -> list[Cell]:
    """Those that are not finished; what the others saw is held against each other."""
    found = [read_cell(places.results, cell) for cell in cells]
    require_same_images(record for record in found if record is not None)
    return [cell for cell, record in zip(cells, found, strict=True) if record is None]


def train_cell(
    cell: Cell,
    places: Places,
    say: Say,
    show: Show,
    *,
    observe_test: Callable[[Tensor, Tensor], object] | None = None,
    share_cores: bool = True,
) -> Result:
    """Train one cell, or go on with it.

    Raises: InUseError if another process is training it; ValueError if its model is there without its file; as
    ``train``.
    """
    output = places.run_of(cell)
    if (output / "test.json").is_file() and not checkpoints_in(output / "checkpoints"):
        raise ValueError(
            f"{output} holds a finished model, and its cell's file {path_of(places.results, cell)} is missing: restore "
            "the file, or remove the directory to train it again"
        )
    return train(
        cell.config(places.models_for(cell)),
        cell.data,
        output,
        resume="auto",
        time_budget_seconds=None if cell.time_budget is None else seconds_of(cell.time_budget),
        say=say,
        show=show,
        observe_test=observe_test,
        share_cores=share_cores,
    )


def recorded(cell: Cell, places: Places, say: Say, show: Show, run: Callable[[Show], Record]) -> Record | None:
    """What ``run`` has found of a cell that it trains; None if the training failed, which is written as its result.

    A lack of memory is such a failure wherever it shows. Raises: ValueError if the run cannot begin; it is none that
    has failed. It is a RefusedError if its options may be the cause.
    """
    began, steps, output = time.monotonic(), itertools.count(), places.run_of(cell)
    config_file = output / "config.yaml"
    was_there, was_empty = config_file.is_file(), all(path.name == LOCK for path in output.glob("*"))

    def show_and_count(state: Record) -> None:
        next(steps)
        show(state)

    try:
        return run(show_and_count)
    except (InUseError, HangingError, CannotBeginError, ImagesError, MachineError):
        raise
    except (ValueError, RuntimeError, MemoryError) as error:
        is_new = config_file.is_file() and not was_there
        has_begun = isinstance(error, ValueError) and (is_new or next(steps) > 0)
        if not has_begun and not is_lack_of_memory(error):
            if isinstance(error, ValueError) and was_empty:
                raise RefusedError(str(error)) from error
            raise
        why = " ".join(str(error).split()) or "memory is full"
        write_failure(cell, places, say, why, time.monotonic() - began)
        return None


def write_failure(cell: Cell, places: Places, say: Say, why: str, seconds: float = 0.0) -> None:
    """The cell is finished without a model: it is not tried again, and tables say why."""
    why = why.removesuffix(INTACT)
    if "--device-batch-size" in why and not cell.scale:  # a command's option
        file, output = path_of(places.results, cell), places.run_of(cell)
        why += f"; in a sweep, set device_batch_size in options, or remove {file} and {output} to try again"
    say(f"{cell.name} failed: {why}")
    finish(cell, places, {"failed": why, "train_seconds": round(seconds, 1)})


def finish(cell: Cell, places: Places, found: Record) -> None:
    """Write what a cell has found; its model stays, its checkpoints go."""
    write_cell(places.results, cell, found)
    shutil.rmtree(places.run_of(cell) / "checkpoints", ignore_errors=True)


def found_by(result: Result) -> Record:
    """What a finished run found, as far as tables and figures may ask for it, but for the test split."""
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
    cost, images = complexity(result.model.config), ImageRecord.read(result.output)
    return {
        **({} if images is None else {"images": images.of_the_set}),
        "machine": machine(next(result.model.parameters()).device),
        "found": resolved["found"],
        "precision": resolved["precision"],
        "epochs": planned_epochs(resolved, lines),
        "parameters": cost.parameters,
        "macs": cost.live_macs,
        "curve": curve,
        "best": result.best,
        "validation_images": result.validation_images,
        "train_seconds": round(result.train_seconds, 1),
    }


def seconds_needed(cell: Cell) -> float:
    """Estimated seconds of a cell's training, from a few steps and one validation that are measured now.

    A teacher's share is left out. Raises: ValueError as ``train``.
    """
    if cell.time_budget is not None:
        return seconds_of(cell.time_budget)
    config = replace(cell.config(), initial_checkpoint=None, freeze_epochs=0.0, distillation=Distillation())
    with TemporaryDirectory() as folder:
        accelerator = make_accelerator(config)
        trainer = Trainer(resolve(config, cell.data, accelerator), RunDirectory(Path(folder)), accelerator)
        step_seconds, validation_seconds = seconds_of_an_epoch(trainer)
        return trainer.learner.work(trainer.run.steps) * step_seconds + trainer.epochs * validation_seconds
