"""Small images from scratch at equal compute. ``python -m benchmarks.compute --work DIR``.

Trains every cell of ``studies/compute/plan.yaml`` that is not finished, one after the other, and writes a file for
each under ``studies/compute``. Whatever stops it, the next start goes on: a cell that is half done continues from its
last epoch. Start it several times with the same ``--work``: the processes share the cells out among them.

    python -m benchmarks.compute --plan                 what is left, and about how long it takes
    python -m benchmarks.compute --work DIR --only cct --budget 0.2 --seed 0
    python -m benchmarks.compute --pace                 core-minutes of every network, on a machine that is idle
    python -m benchmarks.compute --report               the table and the pictures
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch

from benchmarks.compute.cell import run_cell
from benchmarks.compute.pace import ROUNDS, Pace, measure_pace
from benchmarks.compute.plan import STUDY, Plan, pflop_of
from benchmarks.compute.report import write_report
from ceit.lock import InUseError, locked
from ceit.messages import unknown
from ceit.study.cells import Cell, Places, read_cell, source_digest
from ceit.train.checkpoint import checkpoints_in
from ceit.train.interruption import Interrupted

LOOK_AGAIN_SECONDS = 30.0
CORE_MINUTES_PER_PFLOP = 170.0  # where nothing is measured yet: at 100 GFLOP/s
REPOSITORY = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Train what is left, list it, or report; the exit code."""
    asked = _parsed(arguments)
    try:
        plan = Plan.read(asked.results / STUDY / "plan.yaml")
        if asked.only not in (None, *plan.arms):
            raise ValueError(unknown("arm", asked.only, plan.arms))
        if asked.report:
            print(*write_report(plan, asked.results), sep="\n")
            return 0
        if asked.plan:
            print_plan(plan, asked)
            return 0
        torch.set_num_threads(asked.threads)
        if asked.pace:
            print(measure_pace(plan, asked.results, ROUNDS, _say))
            return 0
        asked.work.mkdir(parents=True, exist_ok=True)
        return work_through(plan, asked)
    except Interrupted as stop:
        _say(str(stop).partition(";")[0] + "; the next start goes on from there")
        return 143 if stop.terminated else 130
    except ValueError as error:
        _say(f"error: {error}")
        return 1


def work_through(plan: Plan, asked: argparse.Namespace) -> int:
    """Run the cells that are left, what decides first; 1 if one has failed, which the others do not wait for."""
    places, commit = Places(asked.results, asked.work), commit_of(REPOSITORY)
    source_digest()  # of the code as it is now, before anybody changes it
    failed: list[str] = []
    while left := [cell for cell in left_over(plan, asked) if cell.digest not in failed]:
        if not any(run_unless_taken(cell, places, commit, failed, asked.compile) for cell in left):
            _say(f"waiting: other processes are running the cells that are left, {len(left)}")
            time.sleep(LOOK_AGAIN_SECONDS)
    for name in _undecided(plan, asked):
        where = " ".join(f"--{key} {value}" for key, value in plan.choice.items())
        _say(f"{name} has no setting yet: run --only {name} {where}")
    return 1 if failed else 0


def run_unless_taken(cell: Cell, places: Places, commit: str | None, failed: list[str], compile: bool = False) -> bool:
    """Run a cell unless another process is running it, or has; whether there is something new."""
    try:
        with locked(places.lock_of(cell), _say):
            if read_cell(places.results, cell) is None:
                _say(f"{cell.scale}, {cell.name}: {pflop_of(cell.options):.3g} PFLOP, {cell.options['steps']} steps")
                run_cell(cell, places, commit, _say, compile)
    except InUseError:
        return False
    except ValueError as error:
        _say(f"{cell.scale}, {cell.name} failed and is left out: {error}")
        failed.append(cell.digest)
    return True


def left_over(plan: Plan, asked: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for, can be named by now and are not finished."""
    cells = [cell for cell in plan.cells(asked.results) if _is_asked(cell, asked)]
    return [cell for cell in cells if read_cell(asked.results, cell) is None]


def _is_asked(cell: Cell, asked: argparse.Namespace) -> bool:
    options = cell.options
    given = (asked.only, options["name"]), (asked.budget, options["budget_pflop"])
    given += (asked.data, cell.data), (asked.seed, cell.seed)
    return all(wanted in (None, own) for wanted, own in given)


def _undecided(plan: Plan, asked: argparse.Namespace) -> list[str]:
    """The arms that were asked for whose setting is still to be chosen; their other cells have no name yet."""
    settings = plan.settings_of(asked.results)
    return [name for name, setting in settings.items() if setting is None and asked.only in (None, name)]


def print_plan(plan: Plan, asked: argparse.Namespace) -> None:
    """A line for each cell that is left: its steps, those of them that are done, and core-minutes to go."""
    rates, places = core_minutes_per_pflop(plan, Pace.read(asked.results)), Places(asked.results, asked.work)

    def minutes_of(cell: Cell) -> float:
        rate = rates.get(cell.options["name"], mean(rates.values()) if rates else CORE_MINUTES_PER_PFLOP)
        return rate * pflop_of(cell.options) * (1 - _steps_done(places.run_of(cell)) / cell.options["steps"])

    left = left_over(plan, asked)
    for cell in left:
        done = f"{_steps_done(places.run_of(cell)):6} of {cell.options['steps']:6} steps"
        print(f"{cell.scale:20} {cell.name:32} {done} {minutes_of(cell):7.0f} core-minutes to go")
    total = sum(map(minutes_of, left))
    for name in _undecided(plan, asked):
        named = {cell.digest for cell in plan.deciding(name)}
        cells = [cell for cell in plan.compared({name: next(iter(plan.settings))}) if cell.digest not in named]
        cells = [cell for cell in cells if _is_asked(cell, asked)]
        minutes = sum(map(minutes_of, cells))
        total += minutes
        print(f"{name}: {len(cells)} more cells when its setting is chosen, about {minutes:.0f} core-minutes")
    print(f"in all {total / 60:.1f} core-hours")


def core_minutes_per_pflop(plan: Plan, pace: Pace) -> dict[str, float]:
    """What was timed, by arm: the mean over its budgets."""
    found: dict[str, list[float]] = {}
    for cell in plan.compared({name: next(iter(plan.settings)) for name in plan.arms}):
        if (minutes := pace.of(cell)) is not None:
            found.setdefault(cell.options["name"], []).append(minutes / pflop_of(cell.options))
    return {name: mean(rates) for name, rates in found.items()}


def commit_of(repository: Path) -> str | None:
    """The commit of the code, with a plus if files have changed since; None without git."""
    command = ["git", "-C", str(repository), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _steps_done(folder: Path) -> int:
    saved = checkpoints_in(folder / "checkpoints")
    return int(saved[-1].stem.removeprefix("step_")) if saved else 0


def _say(message: object) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    description, _, commands = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.compute", None, description, commands, formatter_class=raw)
    add = parser.add_argument
    add("--work", type=Path, default=Path("~/.cache/ceit-compute").expanduser(), help="run directories; %(default)s")
    add("--results", type=Path, default=REPOSITORY / "studies", help="folder of studies; default: this repository's")
    add("--plan", action="store_true", help="list what is left, and train nothing")
    add("--pace", action="store_true", help="time the steps of every network in turn, and train nothing")
    add("--report", action="store_true", help="write table.md and the pictures, and train nothing")
    add("--only", metavar="ARM", help="cells of this arm alone")
    add("--data", metavar="NAME", help="cells of this data set alone")
    add("--budget", type=float, metavar="PFLOP", help="cells of this budget alone")
    add("--seed", type=int, metavar="N", help="cells of this seed alone")
    add("--compile", action="store_true", help="train with torch.compile, as on a GPU, where small networks gain by it")
    add("--threads", type=int, default=1, metavar="N", help="of this process; default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
