"""Try out options of a recipe on your data: train every trial, rank them, and write the best as a recipe.

Trials are ranked by validation accuracy. Stopped or killed, the same command goes on where it was.

usage: ceit sweep FILE.yaml [options]
"""

import importlib
import os
import shlex

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress
from ceit.inference.memory import keep_freed_memory
from ceit.study.cells import Cell, read_cell
from ceit.study.run import seconds_needed
from ceit.study.sweep import Sweep, run_sweep
from ceit.study.sweep_report import notes, ranked, table_rows, write_sweep_report
from ceit.train.interruption import Interrupted

EXAMPLE = """example, a file my_sweep.yaml:
  recipe: demo
  data: photos/
  output: runs/sweep
  search: random         # or grid
  trials: 12
  seeds: [0, 1]
  budget: {epochs: 5}    # of each run; or {samples: 50000}, {time_budget: 10m}
  total_time: 2h         # of all runs together
  options:
    peak_lr: {log_uniform: [1e-4, 1e-2]}
    augmentation.translate: [0, 2, 4]

  ceit sweep my_sweep.yaml --dry-run
  ceit sweep my_sweep.yaml
  ceit train --recipe runs/sweep/best.yaml --data photos/ --output runs/best"""

_FREE = {"peak_lr", "warmup_lr", "warmup_epochs", "final_lr", "weight_decay", "label_smoothing", "layer_decay", "seed"}
"""Options that cost no time: a run's estimate holds for all that differ in these alone."""


def main(arguments: list[str]) -> None:
    """Run what is not finished of the sweep, then rank the trials.

    Raises: ValueError for a file that is no sweep, naming what is wrong, or if no run can begin.
    """
    options = parser().parse_args(arguments)
    sweep = Sweep.read(
        options.file, data=options.data, output=options.output, trials=options.trials, total_time=options.total_time
    )
    if options.dry_run:
        print_cells(sweep, Console())
        return
    if options.report:
        print_report(sweep, Console())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("ceit sweep runs in one process: start the same command again to share the runs out")
    importlib.import_module("matplotlib")  # or it would be missed when all is trained
    keep_freed_memory()
    try:
        with LiveProgress(Console(stderr=True)) as live:
            run_sweep(sweep, live.say, live.show)
    except KeyboardInterrupt as stop:  # in a step, where training saves first, or between two cells
        said = f"stopped, nothing that was saved is lost; go on with: {shlex.join(['ceit', 'sweep', *arguments])}"
        raise Interrupted(said, getattr(stop, "terminated", False)) from None
    print_report(sweep, Console())


def parser() -> Parser:
    """The command line."""
    made = Parser(__doc__, notes=EXAMPLE)
    add = adding_to(made)
    add("file", "recipe, data and the options to try, as below", metavar="FILE.yaml")
    add("--dry-run", "print the runs and the time they need, train nothing", action="store_true")
    add("--report", "rank the trials that are finished, train nothing", action="store_true")
    add = adding_to(made.add_argument_group("instead of what the file says"))
    add("--data", "a set by name or a folder, as for ceit train", metavar="DATA")
    add("--output", "folder for the table, the figure, best.yaml and all runs", metavar="DIR")
    add("--trials", "how many to train; more go on from those tried", type=int, metavar="N")
    add("--total-time", "for all runs together, such as 2h", metavar="TIME")
    return made


def print_cells(sweep: Sweep, console: Console) -> None:
    """A row for every run; the time of those that are not finished is estimated from steps measured now."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("run", *map(_short, sweep.choices), "minutes", ""):
        table.add_column(head, justify="right" if head == "minutes" else "left", overflow="fold")
    left, seconds_of_run = 0.0, dict[str, float]()
    for trial in sweep.all_trials:
        for cell in trial.cells:
            record, cost = read_cell(sweep.places.results, cell), _cost(cell)
            if record is None and cost not in seconds_of_run:
                seconds_of_run[cost] = seconds_needed(cell)
            seconds = seconds_of_run[cost] if record is None else record["train_seconds"]
            left += seconds if record is None else 0
            values = [Text(str(value)) for value in trial.options.values()]
            status = (
                Text("to run", "dim") if record is None else Text("failed" if "failed" in record else "done", "green")
            )
            table.add_row(cell.name, *values, f"{seconds / 60:.1f}", status)
    console.print(table)
    console.print(
        f"{len(sweep.all_trials)} trials, {len(sweep.cells)} runs, {left / 3600:.1f} hours left on this machine"
        + (f"; total_time {sweep.total_time} may end it earlier" if sweep.total_time else ""),
        highlight=False,
    )


def _short(option: str) -> str:
    """Of a dotted option the last word: a terminal is narrow."""
    return option.rpartition(".")[2]


def _cost(cell: Cell) -> str:
    """The same for runs that take equally long."""
    return repr({key: value for key, value in sorted(cell.options.items()) if key not in _FREE})


def print_report(sweep: Sweep, console: Console) -> None:
    """Write table, figure and best recipe; print the table and the files."""
    found = ranked(sweep)
    if not found:
        raise ValueError("no run of the sweep is finished yet: ceit sweep FILE.yaml without --report trains them")
    heads, rows = table_rows(sweep, found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        table.add_column(_short(head), overflow="fold")
    for words in rows:
        table.add_row(*map(Text, words))
    console.print(table)
    for words in (*notes(sweep, found), *map(str, write_sweep_report(sweep, found))):
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    if found[0].failure is not None:
        raise ValueError(f"no trial was trained to its end with every seed; the first failed: {found[0].failure}")
