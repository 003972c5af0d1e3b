"""Try out options of a recipe on your data: train every trial, rank them, and write the best as a recipe.

Trials are ranked by validation accuracy. Stopped or killed, the same command goes on where it was.

usage: ceit sweep FILE.yaml [options]
"""

from ceit.cli._cells import print_cells, print_table, training
from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress
from ceit.study.cells import Cell, Record, read_cell
from ceit.study.sweep import Sweep, has_failed, run_sweep
from ceit.study.sweep_report import notes, ranked, table_rows, write_sweep_report
from ceit.terminal import stderr_console

EXAMPLE = """example, a file my_sweep.yaml:
  recipe: photos_128     # the one that ceit train named for your data
  data: photos/
  output: runs/sweep
  search: random         # or grid
  trials: 12
  seeds: [0, 1]
  budget: {epochs: 5}    # of each run; or {samples: 50000}, {time_budget: 10m}
  total_time: 2h         # of all runs together
  options:
    peak_lr: {log_uniform: [3e-3, 5e-2]}
    label_smoothing: [0.0, 0.1, 0.2]

  ceit sweep my_sweep.yaml --dry-run
  ceit sweep my_sweep.yaml
  ceit train --recipe runs/sweep/best.yaml --data photos/ --output runs/best"""


def main(arguments: list[str]) -> None:
    """Run what is not finished of the sweep, then rank the trials.

    Raises: ValueError for a file that is no sweep, naming what is wrong, or if no run can begin.
    """
    options = parser().parse_args(arguments)
    sweep = Sweep.read(
        options.file, data=options.data, output=options.output, trials=options.trials, total_time=options.total_time
    )
    if options.dry_run:
        print_plan(sweep)
        return
    if not options.report:
        command, several = ["ceit", "sweep", *arguments], "start the same command again to share the runs out"
        with training(command, several=several, needs=["matplotlib"]), LiveProgress(stderr_console()) as live:
            run_sweep(sweep, live.say, live.show)
    print_report(sweep)


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


def print_plan(sweep: Sweep) -> None:
    """A row for every run, then the time that is left."""
    places, rows = sweep.places, list[tuple[Cell, list[str], Record | None, str]]()
    for trial in sweep.all_trials:
        instead = "left out" if has_failed(trial, places) else ""
        for cell in trial.cells:
            words = [cell.name, *map(str, trial.options.values())]
            rows.append((cell, words, read_cell(places.results, cell), instead))
    left = print_cells(["run", *sweep.choices], rows, stderr_console())
    earlier = f"; total_time {sweep.total_time} may end it earlier" if sweep.total_time else ""
    minutes = f"about {left / 60:.0f} minutes to go on this machine"
    print(f"{len(sweep.all_trials)} trials, {len(rows)} runs, {minutes}{earlier}")
    for line in sweep.remarks:
        print(line)


def print_report(sweep: Sweep) -> None:
    """Write table, figure and best recipe; print the table and the files."""
    found = ranked(sweep)
    if not found:
        raise ValueError("no run of the sweep is finished yet: ceit sweep FILE.yaml without --report trains them")
    print_table(*table_rows(sweep, found))
    print("\n".join([*notes(sweep, found), *map(str, write_sweep_report(sweep, found))]))
    if found[0].failure is not None:
        raise ValueError(f"no trial was trained to its end with every seed; the first failed: {found[0].failure}")
