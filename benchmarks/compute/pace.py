"""How long each training takes on one core of this machine: its steps timed, those of all networks in turn.

Cells are trained where there is room, beside other work or on a GPU, so the time that they took says little.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.compute.cell import trainer_of
from benchmarks.compute.plan import STUDY, Plan
from ceit.atomic import write_text
from ceit.data.batches.batch import Batch
from ceit.inference.device import machine
from ceit.messages import Say
from ceit.study.cells import Cell
from ceit.train.step import train_step
from ceit.train.trainer import Trainer

FILE = "pace.json"
ROUNDS = 7


@dataclass(frozen=True)
class Pace:
    """Core-minutes of a whole training, by what is trained."""

    core_minutes: dict[str, float]

    @classmethod
    def read(cls, results: Path) -> "Pace":
        """What ``measure_pace`` has written; nothing before."""
        file = results / STUDY / FILE
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}
        return cls({row: found["core_minutes"] for row, found in rows.items()})

    def of(self, cell: Cell) -> float | None:
        """Of a cell, trained or not; None for one whose like was not timed."""
        return self.core_minutes.get(row_of(cell))


def row_of(cell: Cell) -> str:
    """What the seeds of a row of the table share: another network, or another number of steps, has another pace."""
    options = cell.options
    return f"{cell.data}, {options['name']}, {options['steps']} steps of {options['macs']} MACs"


def measure_pace(plan: Plan, results: Path, rounds: int, say: Say) -> Path:
    """Time steps of every row of the table, and write medians and the core-minutes that follow; the file.

    A network whose setting is not chosen has the first of them: they differ in the optimizer and its rate alone. Every
    round goes through all networks, in turned order, and one round before the first gets all warm.
    """
    settings = {name: setting or next(iter(plan.settings)) for name, setting in plan.settings_of(results).items()}
    cells = {row_of(cell): cell for cell in plan.compared(settings) if cell.seed == plan.seeds[0]}
    with TemporaryDirectory(prefix="ceit-") as folder, ExitStack() as stack:
        timed = {
            row: TimedSteps(stack.enter_context(trainer_of(cell, Path(folder, str(number)))))
            for number, (row, cell) in enumerate(cells.items())
        }
        for number in range(rounds + 1):
            for row in sorted(timed, reverse=number % 2 == 1):
                timed[row].take(keep=number > 0)
            say(f"round {number} of {rounds}")
        rows = {row: steps.as_dict() for row, steps in timed.items()}
    file = results / STUDY / FILE
    found = {"rows": rows, "rounds": rounds, "machine": machine(torch.device("cpu"))}
    write_text(file, json.dumps(found, indent=1) + "\n")
    return file


class TimedSteps:
    """Steps of a training: over smaller images, if it begins with such, and over whole ones."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.steps, self.small_steps = trainer, trainer.progress.steps, trainer.learner.small_steps
        self.batches = _batches(trainer)
        self.seconds: dict[str, list[float]] = {"small": [], "full": []} if self.small_steps else {"full": []}

    def take(self, keep: bool) -> None:
        """One step of each kind with its batch, in core-seconds: those of all threads."""
        for kind, seconds in self.seconds.items():
            began = time.process_time()
            train_step(self.trainer.learner, *next(self.batches), 0 if kind == "small" else self.steps - 1)
            if keep:
                seconds.append(time.process_time() - began)

    def as_dict(self) -> dict[str, Any]:
        """Medians, and the whole training without validation."""
        seconds = {kind: median(found) for kind, found in self.seconds.items()}
        rounded = {kind: round(found, 4) for kind, found in seconds.items()}
        return {"seconds_per_step": rounded, "core_minutes": core_minutes(seconds, self.steps, self.small_steps)}


def core_minutes(seconds: Mapping[str, float], steps: int, small_steps: int) -> float:
    """Of a training whose first steps are ``small``, and the others ``full``."""
    of_small = small_steps * seconds["small"] if small_steps else 0.0
    return float(f"{(of_small + (steps - small_steps) * seconds['full']) / 60:.4g}")


def _batches(trainer: Trainer) -> Iterator[Batch]:
    for epoch in count():
        yield from trainer.train_loader.epoch(epoch)
