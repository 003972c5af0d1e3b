"""The parser of every verb: help that a newcomer can read, and the options that several verbs have."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ceit.atomic import require_place

WEIGHTS = (
    "a run directory of ceit train, a file of weights, or the name of weights that come with ceit (ceit list weights)"
)
MODEL = f"the model: {WEIGHTS}, or an exported file (.onnx, .pt2, .xml)"
JSON = "print one JSON document"
RAW = "probabilities as the network gives them, without the temperature that brings them close to the accuracy"


class Parser(argparse.ArgumentParser):
    """The parser of a verb, whose module says in its docstring what the verb does, how it is called, and examples.

    These are the help, with the options between them, group by group, and ``notes`` at the end.
    """

    def __init__(self, docstring: str | None, notes: str = "") -> None:
        description, _, rest = (docstring or "").partition("\n\nusage: ")
        usage, _, examples = rest.partition("\n\n")
        super().__init__(
            prog=" ".join(usage.split()[:2]),
            usage=usage,
            description=description,
            epilog=f"{examples.strip()}\n\n{notes}",
            formatter_class=partial(_HelpFormatter, max_help_position=26),
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # who reads it knows it
        self._positionals.title = "arguments"


def adding_to(group: Any) -> Callable[..., None]:
    """Adds options to a parser or to a group of it: ``add("--name", "what it is for", **settings of argparse)``."""

    def add(name: str, text: str, **settings: Any) -> None:
        group.add_argument(name, help=text, **settings)

    return add


def require_output(
    parser: argparse.ArgumentParser, option: str, file: Path, endings: Sequence[str], *, new: bool = True
) -> None:
    """Asked before any work that ends in ``file``; another ending is wrong usage.

    Raises: ValueError for a place that takes no file and, where it must be ``new``, for a file that is there.
    """
    if file.suffix not in endings:
        parser.error(f"{option} {file} must end in {' or '.join(endings)}")
    if new and os.path.lexists(file):
        raise ValueError(f"{file} exists: name another file for {option}, or remove it")
    require_place(file)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def natural(text: str) -> int:
    """A whole number of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} must be at least 0")
    return number


class _HelpFormatter(argparse.HelpFormatter):
    """Options with their defaults; paragraphs are wrapped, but for those with indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(part if "\n  " in part else fill(part, width, indent) for part in text.split("\n\n"))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        several = f"{action.metavar or default_metavar} ..."
        return several if action.nargs == "+" else super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        if action.nargs == 0 or not action.option_strings or value in (None, []) or "default" in text:
            return text
        return f"{text} (default: {' '.join(map(str, value)) if isinstance(value, list) else value})"
