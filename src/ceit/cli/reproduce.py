"""``ceit reproduce``: the paper's experiments, at any scale, cell by cell."""

import argparse
import importlib
import os
import shlex
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.cli.train import LiveProgress
from ceit.data.published import PUBLISHED
from ceit.data.sources import SETS
from ceit.inference.memory import keep_freed_memory
from ceit.study.cells import path_of, read_cell, read_record
from ceit.study.cluster import plan_text
from ceit.study.plan import FAMILIES, TUNING, Cell, Scale, Study, load_study, scale_of, scales, study_names
from ceit.study.report import write_report
from ceit.study.reproduce import Places, chosen_rates, reproduce, seconds_needed
from ceit.train.loop import Interrupted


def main(arguments: list[str]) -> None:
    """Run what is not finished of a study, then write its tables and figures.

    Raises: ValueError for an unknown study or scale, a cell's file that was changed, or as training does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print_studies(Console())
        return
    if options.study is None:
        parser.error("name a study; --list shows them")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    study = load_study(options.study)
    scale = scale_of(study, options.scale or ("cifar10" if "cifar10" in study.scales else study.scales[0]))
    if options.seeds is not None:
        study = replace(study, seeds={scale.name: options.seeds})
    places = Places(options.results, options.runs)
    command = ["ceit", "reproduce", options.study, "--scale", scale.name]
    command += [] if options.seeds is None else ["--seeds", str(options.seeds)]
    for name, place, usual in (("results", places.results, Places.results), ("runs", places.runs, Places.runs)):
        command += [] if place == usual else [f"--{name}", str(place)]
    if options.dry_run:
        print_plan(study, scale, places, shlex.join(command))
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("ceit reproduce runs in one process: --dry-run prints the commands for several")
    importlib.import_module("matplotlib")  # or it would be missed when all is trained
    keep_freed_memory()
    try:
        with LiveProgress(Console(stderr=True)) as live:
            reproduce(study, scale, places, live.say, live.show)
    except KeyboardInterrupt as stop:  # in a step, where training saves first, or between two cells
        said = f"stopped, nothing that was saved is lost; go on with: {shlex.join(command)}"
        raise Interrupted(said, getattr(stop, "terminated", False)) from None
    for path in write_report(places.results, study, scale.name):
        print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceit reproduce",
        description="Run a study: every cell once, to the end whatever stops it in between; a second run does nothing.",
    )
    parser.add_argument("study", metavar="STUDY", nargs="?", help=f"{', '.join(study_names())}, or a YAML file")
    parser.add_argument("--scale", metavar="NAME", help=f"{', '.join(scales())} (default: cifar10 if it runs there)")
    parser.add_argument("--seeds", type=int, metavar="N", help="run N seeds (default: as many as the study has)")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and the hours they need, run nothing")
    parser.add_argument("--list", action="store_true", help="print the studies and what they ask")
    parser.add_argument("--results", type=Path, default=Places.results, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Places.runs, metavar="DIR", help="default: %(default)s")
    return parser


def print_studies(console: Console) -> None:
    """Every study of the package, its scales and its question."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("study", "scales", "question"):
        table.add_column(column, no_wrap=column == "study")
    for name in study_names():
        study = load_study(name)
        table.add_row(name, ", ".join(study.scales), Text(study.question))
    console.print(table)


def print_plan(study: Study, scale: Scale, places: Places, command: str) -> None:
    """The cells with the hours they need: measured where the data are small, by formula for a cluster's sets.

    Raises: ValueError for a cluster's study on data without a name.
    """
    rates = chosen_rates(scale, places)
    assumed = rates or dict.fromkeys(FAMILIES, scale.learning_rates[len(scale.learning_rates) // 2])
    cells = study.cells(scale, assumed)
    if any(cell.data in PUBLISHED for cell in cells):
        if unnamed := [cell.data for cell in cells if cell.data not in (*PUBLISHED, *SETS)]:
            raise ValueError(f"the hours of {unnamed[0]} cannot be told by formula: only those of sets known by name")
        print(plan_text(study, cells, places, rates is not None, command))
        return
    before = study.tuned and rates is None
    if before:
        cells = [*load_study(TUNING).cells(scale, {}), *cells]
    print_cells(cells, places, Console(), guessed=before)
    if before:
        print(f"the study {TUNING} comes first: it chooses the learning rates")
    if any(cell.config().distillation.teacher for cell in cells):
        print("what a teacher computes is not counted")


def print_cells(cells: list[Cell], places: Places, console: Console, *, guessed: bool) -> None:
    """A row for every cell; the times of those that are not finished are estimated from measured steps.

    ``guessed``: learning rates are, so those of finished cells need not agree.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("cell", no_wrap=True)
    for column in ("epochs", "peak lr", "minutes", ""):
        table.add_column(column, justify="right" if column else "left")
    left, seconds_of_arm = 0.0, dict[tuple[str, str], float]()
    for cell in cells:
        path = path_of(places.results, cell)
        record = read_cell(places.results, cell) if not guessed else read_record(path) if path.is_file() else None
        key = cell.study, cell.arm
        if record is not None:
            seconds_of_arm[key] = record["train_seconds"]
        elif key not in seconds_of_arm:
            seconds_of_arm[key] = seconds_needed(cell)
        left += 0 if record else seconds_of_arm[key]
        config = cell.config()
        state = Text("finished", "green") if record else Text("to run", "dim")
        table.add_row(
            Text(f"{cell.study}/{cell.name}"),
            str(config.epochs),
            f"{config.peak_lr:g}",
            f"{seconds_of_arm[key] / 60:.1f}",
            state,
        )
    console.print(table)
    console.print(f"{len(cells)} cells, {left / 3600:.1f} hours left on this machine", highlight=False)
