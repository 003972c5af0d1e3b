"""``ceit list``: what there is by name. It reads the package's files and imports nothing of it, so it answers at once.

``ceit/names.json`` holds what stands in code, made by ``tools.names``; the rest is read where it lies.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent / "ceit"

Entries = list[dict[str, Any]]


def main(arguments: Sequence[str]) -> None:
    """Print the names, with a heading for each kind, or as one JSON document."""
    parser = argparse.ArgumentParser(
        prog="ceit list",
        usage="ceit list [KIND ...] [--json]",
        description="Print what there is by name: models, weights that come with ceit, recipes,\ndata and studies.",
        epilog="examples:\n  ceit list\n  ceit list weights recipes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", help=f"{', '.join(KINDS)} (default: all)", nargs="*", metavar="KIND")
    parser.add_argument("--json", help="print one JSON document", action="store_true")
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        if kind not in KINDS:
            parser.error(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    found = {kind: read() for kind, (_, read) in KINDS.items() if kind in (options.kinds or KINDS)}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join("\n".join(_lines(KINDS[kind][0], entries)) for kind, entries in found.items()))


def weights() -> Entries:
    """What the files of ``ceit/pretrained`` say of themselves."""
    entries = []
    for path in sorted((PACKAGE / "pretrained").glob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        top1 = said["training"].get("test_top1_percent")
        accuracy = {} if top1 is None else {"test top-1": f"{top1:.2f} %"}
        size = path.with_suffix(".safetensors").stat().st_size
        facts = {"classes": len(said["class_names"]), "size": f"{size / 1e6:.2f} MB", **accuracy}
        entries.append({"name": path.stem, "data": said["training"]["data"], **facts})
    return entries


def recipes() -> Entries:
    """The first sentence of each recipe's heading."""
    return [
        {"name": path.stem, "about": re.split(r"\.\s|\.$", _heading(path.read_text(encoding="utf-8")), maxsplit=1)[0]}
        for path in sorted((PACKAGE / "recipes").glob("*.yaml"))
    ]


def studies() -> Entries:
    """The question of each study."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "studies").glob("*.yaml"))}
    asked = {name: re.search(r"^question: (.*)$", text, re.MULTILINE) for name, text in found.items()}
    return [{"name": name, "about": question[1]} for name, question in asked.items() if question]


def _of_code(kind: str) -> Callable[[], Entries]:
    return lambda: json.loads((PACKAGE / "names.json").read_text(encoding="utf-8"))[kind]


KINDS: dict[str, tuple[str, Callable[[], Entries]]] = {
    "models": ("models: ceit info NAME, ceit train --model NAME", _of_code("models")),
    "weights": ("weights that come with ceit: ceit predict --checkpoint NAME PHOTO", weights),
    "recipes": ("recipes: ceit train --recipe NAME", recipes),
    "data": ("data sets: ceit train --data NAME", _of_code("data")),
    "studies": ("studies: ceit reproduce NAME", studies),
}
"""What can be listed: its heading, which says what the names are for, and how it is read."""


def _heading(recipe: str) -> str:
    """The comment at the top of a recipe, up to its ``Source:``."""
    lines = [line.removeprefix("#").strip() for line in recipe.partition("# Source:")[0].splitlines()]
    return " ".join(line for line in lines if line)


def _lines(heading: str, entries: Entries) -> Iterator[str]:
    """A table with a heading; numbers stand to the right."""
    yield heading
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = [columns, *([_text(entry.get(column, "")) for column in columns] for entry in entries)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    to_the_right = [all(isinstance(entry.get(column), int) for entry in entries) for column in columns]
    for row in rows if entries else ():
        cells = zip(row, widths, to_the_right, strict=True)
        yield "  " + "  ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in cells).rstrip()
    if not entries:
        yield "  none"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
