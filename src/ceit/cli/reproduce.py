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
from dataclasses import replace

from ceit.cli._cells import print_cells, print_table, training
from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.messages import as_typed, unknown
from ceit.paths import expanded
from ceit.study.cells import Cell, Places, Record, path_of, read_cell, read_record, same_elsewhere
from ceit.study.cluster import plan_text
from ceit.study.plan import FAMILIES, TUNING, Scale, Study, load_study, scale_of, scales, study_names
from ceit.study.report import failures_of, records_of, write_report
from ceit.study.reproduce import chosen_rates, reproduce
from ceit.terminal import stderr_console

ALL = "all"


def main(arguments: list[str]) -> None:
    """Run what is not finished of the studies, then write their tables and figures.

    Raises: ValueError for an unknown study or scale, a cell's file that was changed, at the end for cells that failed,
    or as training does.
    """
    options, asked = parse(arguments)
    if options.list:
        studies = [(name, load_study(name)) for name in study_names()]
        rows = [(name, ", ".join(study.scales), study.question) for name, study in studies]
        print_table(["study", "scales", "question"], rows)
        return
    places = Places(options.results, options.runs)
    if options.dry_run:
        counted: set[str] = set()
        left = [
            print_plan(study, scale, places, _command(name, scale.name, options), counted)
            for name, study, scale in asked
        ]
        if len(left) > 1 and any(left):
            print(f"{sum(left) / 3600:.1f} hours left for all studies")
        return
    command, several = ["ceit", "reproduce", *arguments], "--dry-run prints the commands for several"
    with training(command, several=several, needs=["matplotlib", "scipy"]):
        failures: list[str] = []
        for wait in (False, True):  # what other processes are running of one study need not delay the next
            for _, study, scale in asked:
                with LiveProgress(stderr_console()) as live:
                    reproduce(study, scale, places, live.say, live.show, wait)
                if wait:
                    failures += (failed := failures_of(places.results, study, scale.name))
                    if not failed or records_of(places.results, study, scale.name):
                        for path in write_report(places.results, study, scale.name):
                            print(path)
    if failures:
        raise ValueError(f"{len(failures)} of the cells were not trained to their end; the first: {failures[0]}")


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
    names = options.studies
    if names == [ALL]:
        wanted = options.scale or "cifar10"
        if wanted not in scales():
            raise ValueError(unknown("scale", wanted, scales()))
        names = [name for name in study_names() if wanted in load_study(name).scales]
    asked = []
    for name in names:
        study = load_study(name)
        scale = scale_of(study, options.scale or ("cifar10" if "cifar10" in study.scales else study.scales[0]))
        asked.append((name, replace(study, seeds={scale.name: options.seeds}) if options.seeds else study, scale))
    return options, asked


def _command(study: str, scale: str, options: argparse.Namespace) -> str:
    """What runs one of the studies alone."""
    words = ["ceit", "reproduce", study, "--scale", scale]
    for name, usual in (("seeds", None), ("results", Places.results), ("runs", Places.runs)):
        value = getattr(options, name)
        words += [] if value == usual else [f"--{name}", str(value)]
    return as_typed(words)


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
    needed = {arm for cell in cells for arm in cell.needs}  # whose models are asked for: trained here in any case
    rows = list[tuple[Cell, list[str], Record | None, str]]()
    for cell in cells:
        if before:  # the rates are guessed, so those of finished cells need not agree
            record = read_record(path) if (path := path_of(places.results, cell)).is_file() else None
        else:
            record = read_cell(places.results, cell)
        is_twin = cell.digest in counted or same_elsewhere(places.results, cell) is not None
        is_shared = record is None and is_twin and cell.arm not in needed
        counted.add(cell.digest)
        words = [f"{cell.study}/{cell.name}", str(cell.config().epochs), f"{cell.config().peak_lr:g}"]
        rows.append((cell, words, record, "shared" if is_shared else ""))
    left = print_cells(["cell", "epochs", "peak lr"], rows, stderr_console())
    print(f"{len(cells)} cells, {left / 3600:.1f} hours left on this machine")
    if any(instead for *_, instead in rows):
        print("shared: the same run as a cell of another study, trained once")
    if before:
        print(f"the study {TUNING} comes first: it chooses the learning rates")
    if any(cell.config().distillation.teacher for cell in cells):
        print("what a teacher computes is not counted")
    return left
