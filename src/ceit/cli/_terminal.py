"""What several verbs print: tables, bars, how good a model is, and remarks beside them."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.evaluation.metrics import Evaluation
from ceit.evaluation.scores import most_confused
from ceit.messages import plain

_FEW_IMAGES = 100  # below, one image is more than a point of the accuracy, which is said


def figures(words: Sequence[str], numbers: Sequence[str], title: str | None = None) -> Table:
    """A table with columns of words, then of numbers; narrow enough for 80 columns, which six of them may take."""
    table = Table(
        title=title and f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for word in words:
        table.add_column(word, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def print_whole(console: Console, shown: Table | Text) -> None:
    """Print without cutting anything off a table, however narrow the terminal: its numbers must stay what they are."""
    if isinstance(shown, Table):
        shown.width = console.measure(shown, options=console.options.update(width=1000)).maximum
    console.print(shown, crop=False)


def facts(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """A name and a value in each row."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")  # a long path keeps every letter
    for name, value in rows:
        table.add_row(Text(name, "dim"), Text(value) if isinstance(value, str) else value)
    return table


def bar(share: float, cells: int) -> Text:
    """So many cells, a share in 0..1 of them filled."""
    filled = round(cells * share)
    return Text.assemble(("█" * filled, "green"), ("░" * (cells - filled), "dim"))


def print_evaluation(
    heading: Mapping[str, str],
    result: Evaluation,
    all_in: str = "--json",
    auroc: float | None = None,
    tta: tuple[str, Evaluation] | None = None,
) -> None:
    """Print the figures of the whole split, then those of its classes; of very many, the least recognised.

    ``auroc`` is the mean over classes; ``tta`` are the views of a test-time augmentation and what came out with them:
    their top-1 gets a row of its own.
    """
    console = Console(highlight=False)
    few = f", {100 / result.images:.1f} points of top-1 each" if result.images < _FEW_IMAGES else ""
    low, high = result.top1_interval_percent
    interval = Text(f"(95% interval {low:.1f} to {high:.1f}%)", "dim")
    top1 = Text.assemble((f"{result.top1_percent:.2f}%", "bold"), "  ", interval)
    rows: list[tuple[str, str | Text]] = [*heading.items(), ("images", f"{result.images:,}{few}"), ("top-1", top1)]
    if tta is not None:
        rows.append((f"top-1, {tta[0]}", f"{tta[1].top1_percent:.2f}%"))
    if result.top5_percent is not None:
        rows.append(("top-5", f"{result.top5_percent:.2f}%"))
    means = f"precision {result.macro.precision:.3f}  recall {result.macro.recall:.3f}  F1 {result.macro.f1:.3f}"
    rows.append(("mean of classes", means if auroc is None else f"{means}  AUROC {auroc:.3f}"))
    calibration = result.calibration
    rows.append(("loss", f"{result.loss:.4f}  Brier {calibration.brier:.4f}"))
    off = f"off by {100 * calibration.ece:.1f} points (ECE)"
    if of_chance := calibration.of_chance():
        off += f"; {of_chance}"
    if result.uncalibrated is not None:
        off += f"; {100 * result.uncalibrated.ece:.1f} without the temperature of {calibration.temperature:.2f}"
    rows.append(("confidence", off))
    console.print(facts(rows))

    listed, classes = result.listed(), len(result.per_class)
    table = figures(["class"], ["images", "precision", "recall", "F1"])
    table.columns[0].max_width, table.columns[0].no_wrap, table.columns[0].overflow = 32, False, "fold"
    table.add_column("", no_wrap=True)
    for entry in listed:
        scores = ["-" if score is None else f"{score:.3f}" for score in (entry.precision, entry.recall, entry.f1)]
        shown = Text("no images", "dim") if entry.recall is None else bar(entry.recall, 16)
        table.add_row(Text(entry.label), f"{entry.images:,}", *scores, shown)
    console.print()
    print_whole(console, table)
    if len(listed) < classes:
        measured = sum(entry.images > 0 for entry in result.per_class)
        kind = "least recognised" if len(listed) < measured else "classes that have images"
        console.print(f"the {len(listed)} {kind} of {classes} classes; {all_in} has all", style="dim")
    if result.confusion is not None:
        names = [entry.label for entry in result.per_class]
        pairs = [f"{names[true]} as {names[said]} {images:,}" for true, said, images in most_confused(result.confusion)]
        if pairs:
            console.print(Text(f"\nmost confused: {', '.join(pairs)}"))


def tell(*lines: str) -> None:
    """Print remarks on stderr, where they are no part of the result; they stop nothing if nobody reads them."""
    with suppress(OSError):
        for line in lines:
            print(plain(line), file=sys.stderr, flush=True)
