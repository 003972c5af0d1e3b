"""What several verbs print: tables and bars, and remarks beside them."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


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
    for name, value in rows:
        table.add_row(Text(name, "dim"), Text(value) if isinstance(value, str) else value)
    return table


def bar(share: float, cells: int) -> Text:
    """So many cells, a share in 0..1 of them filled."""
    filled = round(cells * share)
    return Text.assemble(("█" * filled, "green"), ("░" * (cells - filled), "dim"))


def tell(*lines: str) -> None:
    """Print remarks on stderr, where they are no part of the result."""
    for line in lines:
        print(line, file=sys.stderr)
