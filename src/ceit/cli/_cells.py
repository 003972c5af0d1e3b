"""What ``ceit reproduce``, ``ceit sweep`` and, of a single run, ``ceit demo`` share: a command that trains in one
process and goes on when it is given again. And tables of cells."""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.inference.device import default_device, machine
from ceit.inference.memory import keep_freed_memory
from ceit.messages import as_typed
from ceit.study.cells import Cell, Record
from ceit.study.run import seconds_needed
from ceit.train.interruption import Interrupted
from ceit.train.trackers import flat

_FREE = {"peak_lr", "warmup_lr", "warmup_epochs", "final_lr", "weight_decay", "label_smoothing", "layer_decay"}
_FREE |= {"head_lr_factor", "batch_norm_bias_lr_factor", "schedule", "clip_norm", "class_weights", "max_skipped_steps"}
_FREE |= {"early_stopping_epochs", "seed", "split_seed"}
"""Options that cost no time: a run's estimate holds for all that differ in these alone."""
_FREE_IF_ON = {"mixing.mixup_alpha", "mixing.cutmix_alpha", "ema.decay", "augmentation.translate"}
_FREE_IF_ON |= {"augmentation.cutout", "augmentation.brightness", "augmentation.color_jitter"}
"""Numbers that cost the same time, whatever they are, above 0; at 0 they are off."""


@contextmanager
def training(command: Sequence[str], *, several: str, needs: Sequence[str]) -> Iterator[None]:
    """A command trains in the block; stopped, it says that the same command goes on.

    ``needs``: modules for the report, which would else be missed when all is trained.
    Raises: ValueError in one process of several, with what to do instead; Interrupted when stopped.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError(f"{' '.join(command[:2])} runs in one process: {several}")
    for module in needs:
        importlib.import_module(module)
    keep_freed_memory()
    try:
        yield
    except KeyboardInterrupt as stop:  # in a step, where training saves first, or between two cells
        said = f"stopped, nothing that was saved is lost; go on with: {as_typed(command)}"
        raise Interrupted(said, getattr(stop, "terminated", False)) from None


def print_cells(
    heads: Sequence[str], cells: Sequence[tuple[Cell, list[str], Record | None, str]], progress: Console
) -> float:
    """A row for every cell: its words under ``heads``, minutes, status. Returns the seconds that are left.

    ``cells``: each with its words, what it has found if it is finished, and the status of one that is not to run, else
    nothing. The minutes of one that is to run are those of one that is as long and was finished on such a machine, else
    estimated from steps now, which ``progress`` gets to know.
    """
    left, rows, seconds_of = 0.0, [], dict[str, float]()
    for number, (cell, words, record, instead) in enumerate(cells, start=1):
        length, device = _length(cell), "cpu" if cell.options.get("device") == "cpu" else default_device()
        minutes, status = "", instead
        if record is not None:
            minutes, status = f"{record['train_seconds'] / 60:.1f}", "failed" if "failed" in record else "done"
            ended = len(record.get("curve", ())) == record.get("epochs")  # it did not stop early
            if status == "done" and ended and _kind(record["machine"]) == _kind(machine(torch.device(device))):
                seconds_of[length] = record["train_seconds"]
        elif not instead:
            if length not in seconds_of:
                progress.print(f"measuring {heads[0]} {number} of {len(cells)}: {cell.name}", highlight=False)
                seconds_of[length] = seconds_needed(cell)
            minutes, status = f"{seconds_of[length] / 60:.1f}", "to run"
            left += seconds_of[length]
        rows.append([*words, minutes, Text(status, "green" if record else "dim")])
    print_table([*heads, "minutes", ""], rows)
    return left


def _length(cell: Cell) -> str:
    """What a cell's time depends on, of its plan."""
    costly = {name: value for name, value in flat(cell.options, ".") if name not in _FREE}
    costly |= {name: costly[name] > 0 for name in _FREE_IF_ON & costly.keys()}
    return repr((cell.data, sorted(costly.items())))


def _kind(of: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run's time depends on, of its machine."""
    return tuple(of.get(name) for name in ("processor", "threads", "accelerator"))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Rows below their heads, of dotted options the last words; what is too long for the terminal is folded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        is_number = head in ("epochs", "peak lr", "minutes")
        table.add_column(
            head.rpartition(".")[2], justify="right" if is_number else "left", overflow="fold", no_wrap=is_number
        )
    for row in rows:
        table.add_row(*(Text(word) if isinstance(word, str) else word for word in row))
    Console().print(table)
