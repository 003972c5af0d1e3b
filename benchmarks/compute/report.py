"""What the cells have found: a table and sentences in ``table.md``, and a picture for each data set."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.compute.pace import Pace
from benchmarks.compute.plan import STUDY, Arm, Plan, setting_in
from ceit.atomic import write_text
from ceit.inference.views import VIEWS
from ceit.plots import curve_style, new_figure
from ceit.study.cells import Record, read_cell
from ceit.study.report import machine_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED_DATA = "cifar10"  # that the published figures are of


class Row(NamedTuple):
    """One arm at one budget on one data set, and the records of its finished seeds, by seed."""

    data: str
    budget: float
    name: str
    arm: Arm
    records: dict[int, Record]
    core_minutes: float | None

    @property
    def plain(self) -> list[float]:
        """Test top-1 of every seed, without views."""
        return self.test("plain")

    def test(self, way: str) -> list[float]:
        """Test top-1 of every seed that has it."""
        return [record["test"][way]["top1_percent"] for record in self.records.values() if way in record["test"]]


def write_report(plan: Plan, results: Path) -> list[Path]:
    """Write the table and the pictures from what is finished; their paths.

    Raises: ValueError if no cell is finished, or a cell's file was changed or is of another plan.
    """
    rows = rows_of(plan, results)
    if not rows:
        raise ValueError(f"no cell of {results / STUDY} is finished: there is nothing to report")
    folder = results / STUDY
    write_text(folder / "table.md", report(plan, rows, results) + "\n")
    pictures = [draw(plan, data, rows, folder / f"accuracy_{data}.png") for data in dict.fromkeys(r.data for r in rows)]
    return [folder / "table.md", *pictures]


def rows_of(plan: Plan, results: Path) -> list[Row]:
    """The rows that have a finished cell, in the plan's order of data, budgets and arms."""
    found: dict[tuple[str, float, str], dict[int, Record]] = {}
    pace, minutes = Pace.read(results), dict[tuple[str, float, str], float | None]()
    for cell in plan.compared(plan.settings_of(results)):
        if (record := read_cell(results, cell)) is not None and "failed" not in record:
            key = cell.data, cell.options["budget_pflop"], cell.options["name"]
            found.setdefault(key, {})[cell.seed] = record
            minutes[key] = pace.of(cell)
    return [
        Row(data, budget, name, arm, found[data, budget, name], minutes[data, budget, name])
        for data, budgets in plan.budgets.items()
        for budget in budgets
        for name, arm in plan.arms.items()
        if (data, budget, name) in found
    ]


def report(plan: Plan, rows: list[Row], results: Path) -> str:
    """The whole ``table.md``."""
    records = [record for row in rows for record in row.records.values()]
    machines = sorted({f"{machine_words(record['machine'])}, {record['precision']}" for record in records})
    commits = sorted({record["commit"] or "unknown" for record in records})
    return "\n\n".join(
        [
            "# Small images from scratch at equal compute",
            "Made by `python -m benchmarks.compute --report`; do not edit. PFLOP are 6 x MACs x images shown / 1e15. "
            "Top-1 is that of the test split, in percent, of the epoch that validation chose. Views are beside the "
            "plain figure, never instead of it. Core-minutes are those of the training alone, on one core: steps of "
            "all networks were timed in turn on a machine that did nothing else (`--pace`).",
            comparison_table(rows),
            "\n".join(f"- {sentence}" for sentence in [*sentences(rows), *failures(plan, results)]),
            "## Settings tried",
            "Validation top-1 of one seed, for each network that is not a recipe of this package. All its other runs "
            "have the setting with the best figure.",
            settings_table(plan, results),
            "## Published figures",
            "Of other authors, on CIFAR-10 without outside data; their trainings differ in more than the network. TTA: "
            "with views, which the marks of the picture that are filled are without. PFLOP are computed as above.",
            published_list(plan),
            f"Measured on: {'; '.join(machines)}. Commits: {', '.join(commits)}.",
        ]
    )


def comparison_table(rows: list[Row]) -> str:
    """A line for each row: what was trained, and how good it is."""
    lines = [
        "| data | PFLOP | network | setting | parameters | MACs | epochs | seeds | top-1, mean | worst "
        f"| {' | '.join(VIEWS)} | core-minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(iter(row.records.values()))
        views = [f"{mean(found):.2f}" if (found := row.test(way)) else "" for way in VIEWS]
        lines.append(
            f"| {row.data} | {row.budget:g} | {row.arm.label} | {first['options']['setting']} "
            f"| {first['parameters'] / 1e6:.2f}M | {first['options']['macs'] / 1e6:.1f}M | {first['epochs']:.1f} "
            f"| {', '.join(map(str, row.records))} | **{mean(row.plain):.2f}** | {min(row.plain):.2f} "
            f"| {' | '.join(views)} | {_minutes(row)} |"
        )
    return "\n".join(lines)


def sentences(rows: list[Row]) -> Iterator[str]:
    """Where convolutional networks are ahead of this package's, and where not: for each data set and budget."""
    for data, budget in dict.fromkeys((row.data, row.budget) for row in rows):
        here = [row for row in rows if (row.data, row.budget) == (data, budget)]
        where = f"{data}, {budget:g} PFLOP"
        ours, cnn, attention = (
            max(some, key=lambda row: mean(row.plain), default=None)
            for some in (
                [row for row in here if row.arm.is_ours],
                [row for row in here if row.arm.kind == "cnn"],
                [row for row in here if row.arm.kind == "attention" and not row.arm.is_ours],
            )
        )
        if ours is None:
            yield f"{where}: no recipe of this package is measured yet."
            continue
        for other, kind in ((cnn, "CNN"), (attention, "other network with attention")):
            if other is None:
                yield f"{where}: no {kind} is measured yet."
                continue
            ahead, behind = (other, ours) if mean(other.plain) > mean(ours.plain) else (ours, other)
            lead = mean(ahead.plain) - mean(behind.plain)
            note = " Their seeds overlap." if min(ahead.plain) <= max(behind.plain) else ""
            minutes = _minutes(ahead), _minutes(behind)
            cost = f", in {minutes[0]} core-minutes to {minutes[1]}" if all(minutes) else ""
            yield (
                f"{where}, against the best {kind}: {ahead.arm.label} is ahead of {behind.arm.label} by {lead:.2f} "
                f"points, {mean(ahead.plain):.2f} % to {mean(behind.plain):.2f} % "
                f"({len(ahead.plain)} and {len(behind.plain)} seeds){cost}.{note}"
            )


def _minutes(row: Row) -> str:
    return "" if row.core_minutes is None else f"{row.core_minutes:.1f}"


def failures(plan: Plan, results: Path) -> Iterator[str]:
    """The trainings that are in no mean because they failed."""
    for cell in plan.cells(results):
        record = read_cell(results, cell)
        if record is not None and "failed" in record:
            yield f"{cell.scale}, {cell.arm}, seed {cell.seed}, failed: {record['failed']}."


def settings_table(plan: Plan, results: Path) -> str:
    """Validation top-1 of every arm with every setting that has been tried; the chosen one is bold."""
    lines = [f"| network | {' | '.join(plan.settings)} |", f"|---|{'---|' * len(plan.settings)}"]
    for name, arm in plan.arms.items():
        cells = {setting_in(cell): cell for cell in plan.deciding(name)}
        if not cells:
            continue
        chosen, shown = plan.setting_of(name, results), []
        for setting, cell in cells.items():
            record = read_cell(results, cell)
            figure = "" if record is None else "failed"
            if record is not None and "failed" not in record:
                figure = f"{record['validation']['plain']['top1_percent']:.2f}"
            shown.append(f"**{figure}**" if setting == chosen else figure)
        lines.append(f"| {arm.label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(plan: Plan, data: str, rows: list[Row], path: Path) -> Path:
    """Test top-1 of every seed against PFLOP and against core-minutes, a line through the means of each arm.

    Published figures are hollow, beside PFLOP alone: nobody says how many core-minutes they took.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    with new_figure(path, 5.0) as figure:
        by_pflop, by_minutes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for number, (name, arm) in enumerate(plan.arms.items()):
            own = [row for row in rows if (row.data, row.name) == (data, name)]
            style = curve_style(number)
            for axes in (by_pflop, by_minutes):
                costs = [(row.budget if axes is by_pflop else row.core_minutes, row.plain) for row in own]
                points = [(cost, top1) for cost, plain in costs if cost is not None for top1 in plain]
                means = [(cost, mean(plain)) for cost, plain in costs if cost is not None]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), linestyle="", alpha=0.8, markersize=5, label=arm.label, **style
                    )
                    axes.plot(*zip(*means, strict=True), color=style["color"], linewidth=1.2, alpha=0.7)
        if data == PUBLISHED_DATA:
            _draw_published(by_pflop, plan)
        for axes, words, ticks in (
            (by_pflop, "PFLOP of the training, log scale", (1, 2, 6)),
            (by_minutes, "core-minutes, log scale", (1, 2, 5)),
        ):
            axes.set_xscale("log")
            left, right = axes.get_xlim()
            axes.set_xlim(left / 1.3, right * 1.3)
            axes.set_xlabel(words)
            axes.xaxis.set_major_locator(LogLocator(subs=ticks))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        by_pflop.set_title(f"{data}: test top-1 in %, every seed a mark")
        handles, labels = by_pflop.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.2)
    return path


def _draw_published(axes: "Axes", plan: Plan) -> None:
    """Hollow marks with numbers, and what the numbers stand for where long trainings leave room: below on the right."""
    for kind, words, marker in (("attention", "published, with attention", "o"), ("cnn", "published, CNN", "s")):
        found = [entry for entry in plan.published if entry["kind"] == kind]
        places = [(entry["pflop"], entry["top1_percent"]) for entry in found]
        style = {"marker": marker, "markerfacecolor": "none", "color": "black", "markersize": 6}
        axes.plot(*zip(*places, strict=True), linestyle="", markeredgewidth=0.8, label=words, **style)
    for number, entry in enumerate(plan.published, 1):
        place = entry["pflop"], entry["top1_percent"]
        axes.annotate(f"{number}", place, xytext=(0, 5), textcoords="offset points", fontsize=7, ha="center")
    key = "\n".join(_published_words(plan))
    axes.text(0.99, 0.02, key, transform=axes.transAxes, fontsize=7, ha="right", va="bottom", linespacing=1.4)


def _published_words(plan: Plan) -> list[str]:
    return [
        f"{number}: {entry['label']}{', TTA' if entry['tta'] else ''}" for number, entry in enumerate(plan.published, 1)
    ]


def published_list(plan: Plan) -> str:
    """The published figures, numbered as in the picture, with their sources."""
    lines = ["| in the picture | PFLOP | top-1 | source |", "|---|---|---|---|"]
    for words, entry in zip(_published_words(plan), plan.published, strict=True):
        lines.append(f"| {words} | {entry['pflop']:g} | {entry['top1_percent']:.2f} | {entry['source']} |")
    return "\n".join(lines)
