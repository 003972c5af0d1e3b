"""Which size suits photos? ``python -m benchmarks.photo_recipes --photos FOLDER --output FILE.json [--minutes 20]``.

Trains the recipes for photos on a folder that ``benchmarks.make_photos`` has made, each with every seed: at the
recipe's own length, or all for the same time. Every finished training is written at once, and the same command goes on
where it was stopped. ``--print`` prints the table of a file and trains nothing.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.make_photos import DESCRIPTION
from ceit.atomic import write_text
from ceit.machine import usable_cores
from ceit.train.config import config_from
from ceit.train.recipe import nested, read_recipe
from ceit.train.run import train

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "photos_64": ("photos_64", {}),
    "photos_128": ("photos_128", {}),
    "photos_224": ("photos_224", {}),
    "photos_128_no_policy": ("photos_128", {"augmentation.trivial_augment": False}),
    "demo_64": ("demo", {"img_size": 64}),  # what photos were trained with before there were recipes for them
}
"""Name to the recipe and the options that differ from it."""

Record = dict[str, Any]


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photo_recipes", description="Which size suits photos?")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="made by benchmarks.make_photos")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/photo_recipes"), help="run folders; default: %(default)s"
    )
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS][:3], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="of each training; default: as long as the recipe says")
    parser.add_argument("--epochs", type=int, help="of each training, instead")
    parser.add_argument("--print", action="store_true", help="print the table and train nothing")
    asked = parser.parse_args()
    if asked.minutes is not None and asked.epochs is not None:
        parser.error("--minutes and --epochs both say how long: leave one out")
    if not asked.print and (asked.photos is None or not (asked.photos / DESCRIPTION).is_file()):
        parser.error(f"--photos {asked.photos} holds no {DESCRIPTION}: make the set with benchmarks.make_photos")
    if not asked.print:
        for seed in asked.seeds:  # so that a part of the time gives a part of every arm
            for arm in asked.arms:
                measure(arm, seed, asked.photos, asked.output, asked.runs, minutes=asked.minutes, epochs=asked.epochs)
    print_table(cells_in(asked.output), Console())


def measure(
    arm: str, seed: int, photos: Path, output: Path, runs: Path, *, minutes: float | None, epochs: int | None
) -> None:
    """Trains and tests one arm with one seed, unless the file has it, and adds what was found to the file."""
    made = json.loads((photos / DESCRIPTION).read_text(encoding="utf-8"))
    cell: Record = {"arm": arm, "seed": seed, "minutes": minutes, "epochs": epochs, "photos": made}
    done = cells_in(output)
    if any(cell.items() <= known.items() for known in done):
        return
    recipe, options = ARMS[arm]
    length = {} if epochs is None else {"epochs": epochs}
    config = config_from(nested(read_recipe(recipe) | options | {"seed": seed} | length))
    length_name = f"{minutes:g}min" if minutes is not None else f"{epochs}epochs" if epochs is not None else "own"
    folder = runs / f"{arm}_{length_name}_seed{seed}"
    console, began = Console(stderr=True), time.monotonic()
    console.print(f"{arm}, seed {seed}", highlight=False)
    result = train(
        config,
        str(photos),
        folder,
        resume="auto",
        time_budget_seconds=None if minutes is None else 60 * minutes,
        say=lambda message: console.print(message, markup=False, highlight=False),
    )
    report = json.loads((result.output / "test.json").read_text(encoding="utf-8"))
    found = {key: report[key] for key in ("model", "parameters", "images", "top1_percent", "train_seconds", "machine")}
    found |= {
        "epochs_trained": report["epochs"],
        "validation_top1_percent": result.best["validation_top1_percent"],
        "seconds": round(time.monotonic() - began, 1),  # reading and the test included; the last part, if it went on
        "cores": usable_cores(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps({"cells": [*done, cell | found]}, indent=1) + "\n")


def cells_in(output: Path) -> list[Record]:
    """What has been measured so far."""
    return json.loads(output.read_text(encoding="utf-8"))["cells"] if output.is_file() else []


def rows_of(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each arm and length: seeds, epochs, test accuracy (mean and worst), and the slowest training."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["arm"], cell["minutes"], cell["epochs"]), []).append(cell)
    rows = []
    for (arm, minutes, epochs), found in groups.items():
        length = f"{minutes:g} min" if minutes is not None else "its own" if epochs is None else f"{epochs} epochs"
        accuracies = [cell["top1_percent"] for cell in found]
        figures = [f"{statistics.mean(accuracies):.2f} %", f"{min(accuracies):.2f} %"]
        seeds = ", ".join(str(cell["seed"]) for cell in found)
        trained = ", ".join(str(count) for count in sorted({cell["epochs_trained"] for cell in found}))
        slowest = max(cell["train_seconds"] for cell in found)
        rows.append([arm, length, seeds, trained, *figures, f"{slowest / 60:.1f} min"])
    return rows


def print_table(cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows, and the machines."""
    table = Table()
    table.add_column("recipe", no_wrap=True)
    for name in ("length", "seeds", "epochs", "test top-1, mean", "worst", "training, slowest"):
        table.add_column(name)
    for row in rows_of(cells):
        table.add_row(*row)
    console.print(table)
    for machine in sorted({json.dumps(cell["machine"]) for cell in cells}):
        console.print(f"measured on: {machine}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
