"""Tables and figures of a study, made from the files of its cells and from nothing else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ceit.atomic import write_text
from ceit.json_file import as_written
from ceit.plots import BLUE, ORANGE, curve_style, label_epochs, new_figure
from ceit.study.cells import Record, first_difference, read_record, require_same_images, slug, unpack
from ceit.study.plan import Study, scales
from ceit.study.significance import LEVEL, Comparison, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, FIGURES = "table.md", ("figure.png", "figure.svg")
TEST_IN_WORDS = (
    "*Better* means better on every one of several seeds (McNemar's exact test on the same test images, "
    f"p < {LEVEL:g}); *worse* alike. The largest p is that of the seeds, and compares networks. p over seeds is a "
    "paired t-test of three seeds or more, and compares recipes."
)
_MINUTES_IN_WORDS = "Minutes: of training beside other cells on the same machine, no measure of speed."


def write_report(root: Path, study: Study, scale: str) -> list[Path]:
    """Write ``table.md``, ``figure.png`` and ``figure.svg`` beside the cells, and return their paths.

    The same cells give the same bytes. Raises: ValueError if no cell is finished, a cell's file was changed, or cells
    saw other images than others.
    """
    records, failures = records_of(root, study, scale), failures_of(root, study, scale)
    require_same_images(record for cells in records.values() for record in cells)
    if not records and failures:
        raise ValueError(f"study {study.name} at {scale} has no cell that was trained to its end; {failures[0]}")
    if not records:
        raise ValueError(f"study {study.name} at {scale} has no finished cell: ceit reproduce {study.name} runs them")
    table, *figures = (root / study.name / scale / name for name in (TABLE, *FIGURES))
    parts = [f"# {study.title}", study.question, tables(study, scale, records)]
    parts += [f"Without a model: {'; '.join(failures)}."] if failures else []
    write_text(table, "\n\n".join(parts) + "\n")
    arms, curves = [arm.name for arm in study.arms_at(scales()[scale]) if arm.name in records], study.figure == "curves"
    with new_figure(figures, 3.6 if curves else 0.9 + 0.42 * len(arms)) as figure:
        (_draw_curves if curves else _draw_points)(figure.add_subplot(), arms, records)
    return [table, *figures]


def records_of(root: Path, study: Study, scale: str) -> dict[str, list[Record]]:
    """The cells that were trained to their end, by arm, seeds in order; arms without any are left out.

    Raises: ValueError as ``read_record``, or if one seed of an arm is of other data or options than the first.
    """
    found: dict[str, list[Record]] = {}
    for record in _finished(root, study, scale):
        if "failed" not in record:
            found.setdefault(record["arm"], []).append(record)
    return found


def failures_of(root: Path, study: Study, scale: str) -> list[str]:
    """The cells that failed, each with its reason. Raises: ValueError as ``records_of``."""
    records = [record for record in _finished(root, study, scale) if "failed" in record]
    return [f"{record['arm']}, seed {record['seed']}, failed: {record['failed']}" for record in records]


def _finished(root: Path, study: Study, scale: str) -> list[Record]:
    """Every finished cell of the arms that the study has, by its seed; all seeds of an arm are the same run."""
    found: list[tuple[Path, Record]] = []
    names = {arm.name for arm in study.arms_at(scales()[scale])}
    for path in sorted((root / study.name / scale).glob("*.seed*.json")):
        record = read_record(path)
        named = f"{slug(record['arm'])}.seed{record['seed']}.json"  # a copy under another name is no further seed
        if record["arm"] in names and path.name == named:
            found.append((path, record))
    found.sort(key=lambda entry: entry[1]["seed"])
    first: dict[str, tuple[Path, Record]] = {}
    for path, record in found:
        before, known = first.setdefault(record["arm"], (path, record))
        seed = {"seed": record["options"].get("seed")}
        if difference := first_difference(record, known | {"options": known["options"] | seed}):
            key, own, others = difference
            raise ValueError(
                f"{before} and {path} are of different plans, with {key} {others} and {own}: remove the one that the "
                "study does not ask for, with its run directory"
            )
    return [record for _, record in found]


def tables(study: Study, scale: str, records: dict[str, list[Record]]) -> str:
    """All tables of a study in Markdown: accuracy by arm, and what was tested against what."""
    with as_written(f"a cell of study {study.name}", "restore it, or remove it to measure it again"):
        return _tables(study, scale, records)


def _tables(study: Study, scale: str, records: dict[str, list[Record]]) -> str:
    parts = [accuracy_table(study, scale, records)]
    if study.compare:
        parts.append(comparison_table(study, records))
    if study.figure == "curves":
        parts.append(catching_up_table(study, records))
    cells = [record for seeds in records.values() for record in seeds]
    machines = sorted({machine_of(record) for record in cells})
    versions = {record["code"]["source"] for record in cells}
    of_code = f" {len(versions)} versions of the code." if len(versions) > 1 else ""
    number = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
    if study.tuned:
        rates = ", ".join(f"{rate:g}" for rate in scales()[scale].learning_rates)
        families = " and for ".join(sorted({arm.tuned_as for arm in study.arms if arm.tuned_as}))
        parts.append(f"Learning rates: of {rates} the best for {families}, by validation accuracy of one seed.")
    parts.append(f"{number} on {scale}: {scales()[scale].about}. Measured on {'; '.join(machines)}.{of_code}")
    return "\n\n".join(parts)


def accuracy_table(study: Study, scale: str, records: dict[str, list[Record]]) -> str:
    """A row for every arm: size, learning rate, validation and test accuracy over the seeds, minutes by device."""
    devices = sorted({device_of(record) for cells in records.values() for record in cells})
    minutes = ["minutes"] if len(devices) == 1 else [f"minutes, {device}" for device in devices]
    heads = ["", "parameters", "M MACs", "epochs", "peak lr", "seeds", "validation", "test top-1, mean", "spread"]
    rows = []
    for arm in study.arms_at(scales()[scale]):
        cells = records.get(arm.name)
        if cells is None:
            rows.append([arm.name, "", "", "", "", "0", "", "*not measured yet*", "", *("" for _ in minutes)])
            continue
        first, accuracies = cells[0], [cell["test"]["top1_percent"] for cell in cells]
        words = [
            arm.name,
            f"{first['parameters'] / 1e6:.3f}M",
            f"{first['macs'] / 1e6:.1f}",
            str(first["epochs"]),
            f"{first['options'].get('peak_lr', 1e-3):g}",
            str(len(cells)),
            _mean(cell["best"]["validation_top1_percent"] for cell in cells),
            f"**{mean(accuracies):.2f} %**",
            f"± {stdev(accuracies):.2f}" if len(accuracies) > 1 else "-",
        ]
        for device in devices:
            seconds = [cell["train_seconds"] for cell in cells if device_of(cell) == device]
            words.append(f"{mean(seconds) / 60:.1f}" if seconds else "-")
        rows.append(words)
    return f"{markdown([*heads, *minutes], rows)}\n\nSpread: standard deviation over the seeds. {_MINUTES_IN_WORDS}"


def comparison_table(study: Study, records: dict[str, list[Record]]) -> str:
    """A row for every pair: the gain of the first, seed by seed, and whether it is more than chance."""
    rows = []
    for one, other in study.compare:
        found = comparison_of(records, one, other)
        if found is None:
            rows.append([f"{one} against {other}", "", "", "", "", "*not measured yet*"])
            continue
        each = ", ".join(f"{gain:+.2f}" for gain in found.gains)
        tests = [p_value(max(found.p_values)), p_value(found.p_of_seeds), verdict_of(records, one, other, found)]
        rows.append([f"{one} against {other}", f"{mean(found.gains):+.2f}", each, *tests])
    heads = ["", "gain, points", "each seed", "largest p", "p over seeds", ""]
    return f"{markdown(heads, rows)}\n\n{TEST_IN_WORDS}"


def catching_up_table(study: Study, records: dict[str, list[Record]]) -> str:
    """After how many of its epochs the first of a pair has the validation accuracy that the second ends with."""
    heads = ["", "validation accuracy to reach, that of the last epoch", "reached after epochs, each seed", "of"]
    rows = []
    for one, other in study.compare:
        pairs = pairs_of(records, one, other)
        if not pairs:
            rows.append([one, "*not measured yet*", "", ""])
            continue
        goals = [last["curve"][-1]["validation_top1_percent"] or 0 for _, last in pairs]
        reached = ", ".join(_first_epoch(cell, goal) for (cell, _), goal in zip(pairs, goals, strict=True))
        total = f"{pairs[0][0]['epochs']}, against {pairs[0][1]['epochs']}"
        rows.append([one, f"{_mean(goals)}, {other}", reached, total])
    return markdown(heads, rows)


def comparison_of(records: dict[str, list[Record]], one: str, other: str) -> Comparison | None:
    """Two arms over the seeds that both have, None without any."""
    pairs = pairs_of(records, one, other)
    return compare([unpack(a) for a, _ in pairs], [unpack(b) for _, b in pairs]) if pairs else None


def with_spread(values: list[float], digits: int = 2, unit: str = " %") -> str:
    """The mean, and the standard deviation as far as there is one."""
    return f"{mean(values):.{digits}f}{unit}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def p_value(p: float | None) -> str:
    """As it is read: four digits at most, a dash where there is none."""
    if p is None:
        return "-"
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def verdict_of(records: dict[str, list[Record]], one: str, other: str, found: Comparison) -> str:
    """The verdict, and whether something else than the arm differs."""
    across = any(device_of(first) != device_of(second) for first, second in pairs_of(records, one, other))
    return f"{found.verdict}, on different devices" if across else found.verdict


def machine_of(record: Record) -> str:
    """The machine of a cell in words."""
    return f"{machine_words(record['machine'])}, {record['precision']}"


def device_of(record: Record) -> str:
    """What has trained a cell, as short as it can be named."""
    return record["machine"]["accelerator"] or record["machine"]["processor"]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; an empty word is an empty field, and no word ends its field or its row."""

    def field(word: str) -> str:
        return " ".join(["", *word.replace("|", r"\|").splitlines(), "|"])

    first, *others = ("|" + "".join(map(field, words)) for words in (heads, *rows))
    return "\n".join([first, "|" + "---|" * len(heads), *others])


def pairs_of(records: dict[str, list[Record]], one: str, other: str) -> list[tuple[Record, Record]]:
    """The cells of two arms by seed, those that both have."""
    second = {record["seed"]: record for record in records.get(other, [])}
    return [(record, second[record["seed"]]) for record in records.get(one, []) if record["seed"] in second]


def _first_epoch(cell: Record, goal: float) -> str:
    return next((str(line["epoch"]) for line in cell["curve"] if (line["validation_top1_percent"] or 0) >= goal), "not")


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.2f} %" if known else "-"


def _draw_points(axes: "Axes", arms: list[str], records: dict[str, list[Record]]) -> None:
    """Arms from top to bottom; every seed a ring, their mean a line with its number."""
    for row, arm in enumerate(arms):
        accuracies = [cell["test"]["top1_percent"] for cell in records[arm]]
        average = mean(accuracies)
        axes.plot(accuracies, [row] * len(accuracies), "o", color=BLUE, markerfacecolor="none", markersize=6)
        axes.plot([average, average], [row - 0.28, row + 0.28], color=ORANGE)
        last = max(accuracies), row
        axes.annotate(f"mean {average:.2f}", last, (8, 0), textcoords="offset points", va="center", color="#333333")
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_title("Test accuracy, top-1 in %: every seed, and the mean")


def _draw_curves(axes: "Axes", arms: list[str], records: dict[str, list[Record]]) -> None:
    for number, arm in enumerate(arms):
        style, cells = curve_style(number), records[arm]
        curves = [[line["validation_top1_percent"] for line in cell["curve"]] for cell in cells]
        curves = [curve for curve in curves if None not in curve]
        if not curves:
            continue  # trained without validation
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=style["color"], linewidth=1.0, alpha=0.35)
        means = [mean(values) for values in zip(*curves, strict=False)]  # while all of them ran
        axes.plot(range(1, len(means) + 1), means, markersize=4, label=f"{arm}: {means[-1]:.2f}", **style)
    label_epochs(axes, "Validation accuracy, top-1 in %: every seed, and the mean")
    axes.legend(loc="lower right", handlelength=1.6)


def machine_words(machine: dict[str, Any]) -> str:
    """What a figure was measured on, for below a table."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    device = machine["accelerator"] or f"{threads} of {machine['processor']}"
    return f"{device}, torch {machine['torch']}"
