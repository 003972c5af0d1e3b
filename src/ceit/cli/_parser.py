"""The parser of every verb: help that a newcomer can read, and the options that several verbs have."""

import argparse
from collections.abc import Sequence
from typing import Any

MODEL_FILES = "a run directory of ceit train, a file of weights, or an exported file (.onnx, .pt2, .xml)"


class Parser(argparse.ArgumentParser):
    """Its help says how the verb is called, what it does, what its options are, group by group, and gives examples."""

    def __init__(self, verb: str, words: str, description: str, *, examples: Sequence[str], notes: str = "") -> None:
        super().__init__(
            prog=f"ceit {verb}",
            usage=f"ceit {verb} {words}",
            description=description,
            epilog="\n  ".join(["examples:", *examples]) + notes,
            formatter_class=_HelpFormatter,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # who reads it knows it
        self._positionals.title = "arguments"


def add_precision(group: Any, choices: Sequence[str]) -> None:
    """What the network is computed in."""
    text = "number format; auto: bf16 where the machine computes it natively, else float32"
    group.add_argument("--precision", choices=choices, default="auto", help=text)


def add_json(group: Any) -> None:
    """The one way in which programs read what a verb found."""
    group.add_argument("--json", action="store_true", help="print one JSON document")


class _HelpFormatter(argparse.HelpFormatter):
    """Options with their defaults; a text's lines wrapped one by one, but for those that are indented."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(line if line.startswith(" ") else fill(line, width, indent) for line in text.splitlines())

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return f"{action.metavar} ..." if action.nargs == "+" else super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        if action.nargs == 0 or not action.option_strings or value in (None, []) or "default" in text:
            return text
        return f"{text} (default: {' '.join(map(str, value)) if isinstance(value, list) else value})"
