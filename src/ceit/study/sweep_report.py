"""What a sweep has found: its trials ranked by validation accuracy, as a table, a figure and a recipe of the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import yaml

from ceit.atomic import write_text
from ceit.json_file import read_json
from ceit.messages import as_typed
from ceit.plots import BLUE, ORANGE, new_figure
from ceit.study.cells import Record, read_cell, require_same_images
from ceit.study.report import FIGURES, TABLE, markdown, with_spread
from ceit.study.sweep import Sweep, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST = "best.yaml"
_PANELS_IN_A_ROW = 3
_ROUNDED = 2e-4  # percent by which two accuracies of four digits may be off
_EVEN = 0.8  # of the steps of the longest trial, below which a time budget was not the same to all


@dataclass(frozen=True)
class Ranked:
    """A trial with what its finished cells have found, and the seeds by which the trials are ranked."""

    trial: Trial
    records: list[Record]
    seeds: frozenset[int] = frozenset()

    @property
    def whole(self) -> list[Record]:
        """Of every seed that was trained to its end."""
        return [record for record in self.records if "failed" not in record]

    @property
    def counted(self) -> list[Record]:
        """Of the seeds by which the trials are ranked; of all that were trained to their end where these are none."""
        return [record for record in self.whole if record["seed"] in (self.seeds or (record["seed"],))]

    @property
    def accuracies(self) -> list[float]:
        """Validation top-1 in percent, of every seed that counts."""
        return [record["best"]["validation_top1_percent"] for record in self.counted]

    @property
    def steps(self) -> float | None:
        """That a run took, the mean over the seeds that count; None where no record tells."""
        known = [record["curve"][-1]["step"] for record in self.counted if record.get("curve")]
        return mean(known) if known else None

    @property
    def failure(self) -> str | None:
        """Why a seed of it failed, if one has."""
        return next((record["failed"] for record in self.records if "failed" in record), None)

    @property
    def has_rank(self) -> bool:
        """Whether it has every seed by which the trials are ranked."""
        trained = {record["seed"] for record in self.whole}
        return self.failure is None and bool(self.seeds) and self.seeds <= trained

    def by(self, seeds: frozenset[int]) -> float:
        """Its mean accuracy over these seeds."""
        return mean(replace(self, seeds=seeds).accuracies)

    @property
    def is_whole(self) -> bool:
        """Whether every seed was trained to its end."""
        return len(self.whole) == len(self.trial.cells)

    @property
    def order(self) -> tuple[bool, bool, float, float]:
        """By the mean of the accuracy, of equal ones by the loss; then those without a rank, then failed ones."""
        losses = [record["best"].get("validation_loss", math.inf) for record in self.counted]
        accuracy, loss = (mean(self.accuracies), mean(losses)) if losses else (0.0, math.inf)
        return self.failure is None, self.has_rank, accuracy, -loss


def ranked(sweep: Sweep) -> list[Ranked]:
    """The trials of which a cell is finished, the best first, by the validation split alone.

    Means over other seeds, or over more, are no measure of the options. So the trials that have every seed are ranked,
    and those without wait. But if one of these is better than the best by the seeds that it has, all are ranked by the
    seeds that they share. Raises: ValueError for a cell's file that was changed, or cells that saw other images than
    others.
    """
    found = []
    for trial in sweep.all_trials:
        records = [read_cell(sweep.places.results, cell) for cell in trial.cells]
        found.append(Ranked(trial, [record for record in records if record is not None]))
    require_same_images(record for entry in found for record in entry.records)
    begun = [entry for entry in found if entry.records]
    seeds = _counting([entry for entry in begun if entry.failure is None], frozenset(sweep.seeds))
    return sorted((replace(entry, seeds=seeds) for entry in begun), key=lambda entry: entry.order, reverse=True)


def _counting(found: Sequence[Ranked], every: frozenset[int]) -> frozenset[int]:
    """The seeds by which trials are ranked, none of which has failed; none if they share none."""
    if whole := [entry for entry in found if entry.is_whole]:
        best = max(whole, key=lambda entry: entry.by(every))
        others = [(entry, frozenset(record["seed"] for record in entry.records)) for entry in found]
        if all(entry.by(seeds) <= best.by(seeds) for entry, seeds in others if not entry.is_whole):
            return every
    shared = [{record["seed"] for record in entry.records} for entry in found]
    return every.intersection(*shared) if shared else frozenset()


def write_sweep_report(sweep: Sweep, found: Sequence[Ranked]) -> list[Path]:
    """Write ``table.md`` and, of the trials that have a rank, ``figure.png``, ``figure.svg`` and ``best.yaml``."""
    table, *figures, best = (sweep.places.results / name for name in (TABLE, *FIGURES, BEST))
    write_text(table, "\n".join([markdown(*table_rows(sweep, found)), "", *notes(sweep, found)]) + "\n")
    with_rank = [entry for entry in found if entry.has_rank]
    if not with_rank:
        return [table]
    write_text(best, best_recipe(sweep, with_rank[0]))
    draw_sweep(sweep, with_rank, figures)
    return [table, *figures, best]


def notes(sweep: Sweep, found: Sequence[Ranked]) -> list[str]:
    """What stands below the table. The test split is looked at when the choice is made, and at that of the best."""
    lines = ["Ranked by validation accuracy, the mean over the seeds; ±: their standard deviation. Minutes: of a run."]
    first, missing = found[0], len(sweep.cells) - sum(len(entry.records) for entry in found)
    untrained = sum(len(entry.trial.cells) - len(entry.records) for entry in found if entry.failure is not None)
    if untrained:
        lines.append(
            f"{untrained} of {len(sweep.cells)} runs are left untrained: another seed of their trial has failed."
        )
    if left := missing - untrained:
        lines.append(f"{left} of {len(sweep.cells)} runs are not finished.")
        if first.failure is None and not first.seeds:
            lines.append(f"No seed is finished for every trial here: there is no rank yet, and no new {BEST}.")
        elif first.failure is None and len(first.seeds) < len(sweep.seeds):
            seeds = ", ".join(str(seed) for seed in sweep.seeds if seed in first.seeds)
            word = "seed" if len(first.seeds) == 1 else "seeds"
            lines.append(f"Ranked by {word} {seeds} alone, which every trial here has.")
    elif first.is_whole:
        lines.append(_tested([sweep.places.run_of(cell) for cell in first.trial.cells]))
    with_rank = [entry for entry in found if entry.has_rank]
    return lines + _alike(with_rank) + (_uneven(with_rank) if "time_budget" in sweep.budget else []) + sweep.remarks


def _alike(found: Sequence[Ranked]) -> list[str]:
    """How many trials chance alone may have put behind the best."""
    images = {record.get("validation_images") for entry in found for record in entry.counted}
    number = images.pop() if len(images) == 1 else None
    if not number:
        return []
    best, *others = (mean(entry.accuracies) for entry in found)
    near = sum(best - accuracy <= 100 / number + _ROUNDED for accuracy in others)
    rest = f"within one validation image of the best: the validation has {number:,} images"
    return [f"{near} more {'trial is' if near == 1 else 'trials are'} {rest}."] if near else []


def _uneven(found: Sequence[Ranked]) -> list[str]:
    """Whether the trials had steps of very different number in the same time."""
    steps = [entry.steps for entry in found if entry.steps is not None]
    if not steps or min(steps) >= _EVEN * max(steps):
        return []
    return [f"Trials took from {min(steps):.0f} to {max(steps):.0f} steps: with more time their ranks may be others."]


def _tested(runs: Sequence[Path]) -> str:
    """What the runs of the best trial, one for each seed, found on the test split, and what that is worth."""
    if gone := [run for run in runs if not (run / "test.json").is_file()]:
        return f"Test top-1 of the best trial: not known, {gone[0] / 'test.json'} is gone."
    accuracy = with_spread([read_json(run / "test.json")["top1_percent"] for run in runs])
    return (
        f"Test top-1 of the best trial: {accuracy}. It was read after the choice, of this trial alone. The trial "
        "was chosen by its validation accuracy, so its validation accuracy is a little too high."
    )


def table_rows(sweep: Sweep, found: Sequence[Ranked]) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the table, the best trial first."""
    timed = ["steps"] if "time_budget" in sweep.budget else []
    heads = ["rank", "trial", *sweep.choices, "validation top-1", "seeds", *timed, "minutes", ""]
    rows = []
    for rank, entry in enumerate(found, start=1):
        options = [str(value) for value in entry.trial.options.values()]
        minutes = mean(record["train_seconds"] for record in entry.records) / 60
        accuracy = with_spread(entry.accuracies) if entry.accuracies else "-"
        seeds = f"{len(entry.whole)} of {len(entry.trial.cells)}"
        steps = ["-" if entry.steps is None else f"{entry.steps:.0f}"] if timed else []
        status = (
            f"failed: {entry.failure.partition(':')[0]}" if entry.failure else "" if entry.is_whole else "unfinished"
        )
        place = str(rank) if entry.has_rank else "-"
        rows.append([place, entry.trial.name, *options, accuracy, seeds, *steps, f"{minutes:.1f}", status])
    return heads, rows


def best_recipe(sweep: Sweep, best: Ranked) -> str:
    """The options of a trial as a recipe, its split too, with words on where they come from."""
    cell = best.trial.cells[0]
    options = {key: value for key, value in cell.options.items() if key != "seed" and value != {}}
    place, data = str(sweep.places.results / BEST), str(sweep.data)
    words = ["ceit", "train", "--recipe", place, "--data", data, "--output", "DIR"]
    words += ["--time-budget", cell.time_budget] if cell.time_budget else []
    longer = "another --time-budget" if cell.time_budget else "--epochs N"
    return (
        f"# The best of a sweep by validation accuracy: trial {best.trial.name}, {with_spread(best.accuracies)} over "
        f"seeds {', '.join(str(record['seed']) for record in best.counted)}\n"
        f"# Run:  {as_typed(words)}\n"
        f"# A run is as long as a trial was; {longer} trains longer.\n"
        f"# {best.trial.words}\n" + yaml.safe_dump(options, sort_keys=False)
    )


def draw_sweep(sweep: Sweep, found: Sequence[Ranked], paths: Sequence[Path]) -> None:
    """Validation accuracy over the values of each option: a ring for every trial, the best one filled."""
    columns = min(_PANELS_IN_A_ROW, len(sweep.choices))
    lines = -(-len(sweep.choices) // columns)
    with new_figure(paths, 0.8 + 2.6 * lines, width=1.2 + 3.2 * columns) as figure:
        for number, option in enumerate(sweep.choices, start=1):
            _draw_option(figure.add_subplot(lines, columns, number), sweep, option, found)
        figure.suptitle("Validation accuracy, top-1 in %: every trial, mean over its seeds")


def _draw_option(axes: "Axes", sweep: Sweep, option: str, found: Sequence[Ranked]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    choices = sweep.choices[option]
    values: list[Any] = [entry.trial.options[option] for entry in found]
    heights = [mean(entry.accuracies) for entry in found]
    if choices.kind == "choice":
        axes.set_xticks(range(len(choices.values)), [str(value) for value in choices.values])
        axes.set_xlim(-0.5, len(choices.values) - 0.5)
        values = [choices.values.index(value) for value in values]
    else:
        low, high = choices.values[0], choices.values[-1]
        axes.set_xscale("log" if choices.kind == "log_uniform" else "linear")
        room = 0.05 * (high - low)
        axes.set_xlim(*((low / 1.2, high * 1.2) if choices.kind == "log_uniform" else (low - room, high + room)))
        if choices.kind == "log_uniform" and high < 100 * low:  # else there may be no power of ten among them
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot(values, heights, "o", color=BLUE, markerfacecolor="none")
    axes.plot(values[:1], heights[:1], "o", color=ORANGE)
    axes.set_xlabel(option)
