"""Run the paper's experiments again.

A study trains several variants with several seeds, each pair once, and writes a table and a figure. Stopped or killed,
the same command goes on where it was; when all is done, it trains nothing. To tune a recipe on your own data, see
ceit sweep.

usage: ceit reproduce STUDY ... [options]

examples:
  ceit reproduce --list
  ceit reproduce modules --scale digits     # minutes: shows that the study runs
  ceit reproduce modules --scale cifar10 --dry-run     # what it would take
  ceit reproduce modules --scale cifar10
"""

import argparse
import importlib
import os
import shlex
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.inference.memory import keep_freed_memory
from ceit.messages import unknown
from ceit.paths import expanded
from ceit.study.cells import Cell, Places, path_of, read_cell, read_record, same_elsewhere
from ceit.study.cluster import plan_text
from ceit.study.plan import FAMILIES, TUNING, Scale, Study, load_study, scale_of, scales, study_names
from ceit.study.report import write_report
from ceit.study.reproduce import chosen_rates, reproduce
from ceit.study.run import seconds_needed
from ceit.train.interruption import Interrupted

ALL = "all"


def main(arguments: list[str]) -> None:
    """Run what is not finished of the studies, then write their tables and figures.

    Raises: ValueError for an unknown study or scale, a cell's file that was changed, or as training does.
    """
    options, asked = parse(arguments)
    if options.list:
        print_studies(Console())
        return
    places = Places(options.results, options.runs)
    if options.dry_run:
        counted: set[str] = set()
        left = [
            print_plan(study, scale, places, _command([name], scale.name, options), counted)
            for name, study, scale in asked
        ]
        if len(left) > 1 and any(left):
            print(f"{sum(left) / 3600:.1f} hours left for all studies")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("ceit reproduce runs in one process: --dry-run prints the commands for several")
    for needed in ("matplotlib", "scipy"):  # or they would be missed when all is trained
        importlib.import_module(needed)
    keep_freed_memory()
    try:
        for wait in (False, True):  # what other processes are running of one study need not delay the next
            for _, study, scale in asked:
                with LiveProgress(Console(stderr=True)) as live:
                    reproduce(study, scale, places, live.say, live.show, wait)
                if wait:
                    for path in write_report(places.results, study, scale.name):
                        print(path)
    except KeyboardInterrupt as stop:  # in a step, where training saves first, or between two cells
        said = (
            f"stopped, nothing that was saved is lost; go on with: {_command(options.studies, options.scale, options)}"
        )
        raise Interrupted(said, getattr(stop, "terminated", False)) from None


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[tuple[str, Study, Scale]]]:
    """The options, and the studies that they ask for, each as it was named and with its scale; none for ``--list``.

    Raises: ValueError for an unknown study or scale; SystemExit for wrong usage.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        return options, []
    if not options.studies:
        parser.error(f"name a study, or {ALL}; --list shows them")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    names = _of_scale(options.scale or "cifar10") if options.studies == [ALL] else options.studies
    return options, [(name, *_study_at(name, options.scale, options.seeds)) for name in names]


def _of_scale(scale: str) -> list[str]:
    """The studies that run at a scale. Raises: ValueError for an unknown one."""
    if scale not in scales():
        raise ValueError(unknown("scale", scale, scales()))
    return [name for name in study_names() if scale in load_study(name).scales]


def _study_at(name: str, scale_name: str | None, seeds: int | None) -> tuple[Study, Scale]:
    """A study with its scale, CIFAR-10 unless it does not run there, and as many seeds as asked."""
    study = load_study(name)
    scale = scale_of(study, scale_name or ("cifar10" if "cifar10" in study.scales else study.scales[0]))
    return (study if seeds is None else replace(study, seeds={scale.name: seeds})), scale


def _command(names: list[str], scale: str | None, options: argparse.Namespace) -> str:
    """What was called, for studies and a scale."""
    words = ["ceit", "reproduce", *names, *([] if scale is None else ["--scale", scale])]
    words += [] if options.seeds is None else ["--seeds", str(options.seeds)]
    for name, place, usual in (("results", options.results, Places.results), ("runs", options.runs, Places.runs)):
        words += [] if place == usual else [f"--{name}", str(place)]
    return shlex.join(words)


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = adding_to(parser)
    text = f"{', '.join(study_names())}; a YAML file of your own; {ALL} for every study of the scale"
    add("studies", text, metavar="STUDY", nargs="*")
    text = f"data and size of the networks: {', '.join(scales())} (default: cifar10 if the study runs there)"
    add("--scale", text, metavar="NAME")
    add("--seeds", "train N seeds (default: as many as the study has)", type=int, metavar="N")
    add("--dry-run", "print the runs and the hours they need, train nothing", action="store_true")
    add("--list", "print the studies and what they ask", action="store_true")
    add("--results", "tables, figures and the measured numbers", type=expanded, default=Places.results, metavar="DIR")
    add("--runs", "run directories", type=expanded, default=Places.runs, metavar="DIR")
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


def print_plan(study: Study, scale: Scale, places: Places, command: str, counted: set[str]) -> float:
    """The cells with the hours they need: measured where the data are small, by formula for a cluster's sets.

    ``counted``: digests of the cells of studies before it, which are not trained again; its own are added.
    Returns the measured seconds that are left, 0 for a cluster's sets.
    Raises: ValueError for a cluster's study on data without a name.
    """
    rates = chosen_rates(scale, places)
    assumed = rates or dict.fromkeys(FAMILIES, scale.learning_rates[len(scale.learning_rates) // 2])
    cells = study.cells(scale, assumed)
    if any(cell.data in PUBLISHED for cell in cells):
        if unnamed := [cell.data for cell in cells if cell.data not in (*PUBLISHED, *SETS)]:
            raise ValueError(f"the hours of {unnamed[0]} cannot be told by formula: only those of sets known by name")
        print(plan_text(study, cells, places, rates is not None, command))
        return 0
    before = study.tuned and rates is None
    if before:
        first = [cell for cell in load_study(TUNING).cells(scale, {}) if cell.digest not in counted]
        cells = [*first, *cells]
    left = print_cells(cells, places, Console(), counted, guessed=before)
    if before:
        print(f"the study {TUNING} comes first: it chooses the learning rates")
    if any(cell.config().distillation.teacher for cell in cells):
        print("what a teacher computes is not counted")
    return left


def print_cells(cells: list[Cell], places: Places, console: Console, counted: set[str], *, guessed: bool) -> float:
    """A row for every cell; the times of those that are not finished are estimated from measured steps.

    ``guessed``: learning rates are, so those of finished cells need not agree. Returns the seconds that are left.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("cell", overflow="fold")
    for column in ("epochs", "peak lr", "minutes", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    needed = {arm for cell in cells for arm in cell.needs}  # whose models are asked for: trained here in any case
    left, any_shared, seconds_of_arm = 0.0, False, dict[tuple[str, str], float]()
    for cell in cells:
        path = path_of(places.results, cell)
        record = read_cell(places.results, cell) if not guessed else read_record(path) if path.is_file() else None
        key = cell.study, cell.arm
        twin = cell.digest in counted or same_elsewhere(places.results, cell) is not None
        shared = twin and cell.arm not in needed
        counted.add(cell.digest)
        if record is not None:
            seconds_of_arm[key] = record["train_seconds"]
        elif not shared and key not in seconds_of_arm:
            seconds_of_arm[key] = seconds_needed(cell)
        to_run = record is None and not shared
        left += seconds_of_arm[key] if to_run else 0
        any_shared = any_shared or (record is None and shared)
        config = cell.config()
        table.add_row(
            Text(f"{cell.study}/{cell.name}"),
            str(config.epochs),
            f"{config.peak_lr:g}",
            f"{seconds_of_arm[key] / 60:.1f}" if to_run or record else "",
            Text("done", "green") if record else Text("to run" if to_run else "shared", "dim"),
        )
    console.print(table)
    console.print(f"{len(cells)} cells, {left / 3600:.1f} hours left on this machine", highlight=False)
    if any_shared:
        console.print("shared: the same run as a cell of another study, trained once")
    return left
