"""What ``ceit reproduce``, ``ceit sweep`` and, of a single run, ``ceit demo`` share: a command that trains in one
process and goes on when it is given again. And tables of cells."""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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

_FREE = {"peak_lr", "warmup_lr", "warmup_epochs", "final_lr", "weight_decay", "label_smoothing", "layer_decay"}
_FREE |= {"seed", "split_seed"}
"""Options that cost no time: a run's estimate holds for all that differ in these alone."""


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


def print_cells(heads: Sequence[str], cells: Iterable[tuple[Cell, list[str], Record | None, bool]]) -> float:
    """A row for every cell: its words under ``heads``, minutes, status. Returns the seconds that are left.

    ``cells``: each with its words, what it has found if it is finished, and whether another cell is the same run.
    The minutes of one that is to run are those of one that is as long and was finished on such a machine, else
    estimated from steps now.
    """
    left, rows, seconds_of, here = 0.0, [], dict[str, float](), _kind(machine(default_device()))
    for cell, words, record, is_shared in cells:
        costly = sorted((name, value) for name, value in cell.options.items() if name not in _FREE)
        length = repr((cell.data, costly))
        minutes, status = "", "shared"
        if record is not None:
            minutes, status = f"{record['train_seconds'] / 60:.1f}", "failed" if "failed" in record else "done"
            if status == "done" and _kind(record["machine"]) == here:
                seconds_of[length] = record["train_seconds"]
        elif not is_shared:
            if length not in seconds_of:
                seconds_of[length] = seconds_needed(cell)
            minutes, status = f"{seconds_of[length] / 60:.1f}", "to run"
            left += seconds_of[length]
        rows.append([*words, minutes, Text(status, "green" if record else "dim")])
    print_table([*heads, "minutes", ""], rows)
    return left


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
