"""How many files ``ceit predict`` answers a second: ``python -m benchmarks.predict_files --output FILE.json``.

The whole command is timed, a process of its own from its start to its end, on JPEG files of 512 px and of 32 px. Its
arms are ways to compute. The first run of each arm is noted apart: it makes what later ones find in the cache, and
``--backend auto`` measures. The others follow in rounds, in which every arm has a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import ceit
from ceit.atomic import replace_files
from ceit.data.preprocessing import IMAGENET
from ceit.inference.device import machine
from ceit.machine import usable_cores

ARMS = {
    "eager float32": ["--backend", "eager", "--precision", "float32"],
    "eager, as it was by default": ["--backend", "eager"],
    "default": [],
    "auto": ["--backend", "auto"],
}
SIDES = (512, 32)


def main() -> None:
    """Measure, write the result and print it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict_files", description="Files a second")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--files", type=int, default=2_000, help="default: %(default)s")
    parser.add_argument("--model", default="ceit_nano_patch4_32", help="with random weights; default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, metavar="RUN|FILE", help="instead of it")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ceit-") as made:
        checkpoint = asked.checkpoint or random_checkpoint(Path(made, "random.safetensors"), asked.model)
        folders = {side: make_pictures(Path(made, f"{side}px"), asked.files, side) for side in SIDES}
        result = measure(folders, checkpoint, asked.arms, asked.rounds, Path(made, "cache"))
    setting = {"model": str(asked.checkpoint.name) if asked.checkpoint else f"{asked.model}, random weights"}
    result = {**setting, "files": asked.files, **result}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    Console().print(table(result))


def measure(folders: dict[int, Path], checkpoint: Path, arms: list[str], rounds: int, cache: Path) -> dict[str, Any]:
    """A row for each side and arm: seconds of the first run and of every round, files a second by their median."""
    rows = [{"side": side, "arm": arm, "seconds": list[float]()} for side in folders for arm in arms]
    for number in range(rounds + 1):
        for row in rows:
            folder = folders[row["side"]]
            seconds, told = command(folder, checkpoint, ARMS[row["arm"]], cache / str(row["side"]) / row["arm"])
            row["told"] = told
            if number == 0:
                row["first_seconds"] = seconds
            else:
                row["seconds"].append(seconds)
    for row in rows:
        files = sum(1 for _ in folders[row["side"]].iterdir())
        row["files_per_second"] = round(files / statistics.median(row["seconds"]), 2)
    return {"rounds": rounds, "rows": rows, "machine": {**machine(torch.device("cpu")), "cores": usable_cores()}}


def command(folder: Path, checkpoint: Path, options: list[str], cache: Path) -> tuple[float, list[str]]:
    """Seconds of ``ceit predict`` over a folder, and what it says beside its answers."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ceit-") as place:
        arguments = [str(folder), f"--checkpoint={checkpoint}", f"--output={place}/answers.csv", *options]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "ceit", "predict", *arguments],
            env={**os.environ, "CEIT_DATA": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        seconds = round(time.perf_counter() - began, 3)
    if done.returncode:
        raise SystemExit(f"error: ceit predict ended with exit code {done.returncode}: {done.stderr}")
    return seconds, done.stderr.splitlines()


def table(result: dict[str, Any]) -> Table:
    """Files a second, and how many times as many as the first arm."""
    shown = Table("files", "arm", "files/s", "times", "seconds", "first run, s")
    for row in result["rows"]:
        base = next(other for other in result["rows"] if other["side"] == row["side"])
        times = row["files_per_second"] / base["files_per_second"]
        seconds = statistics.median(row["seconds"])
        figures = f"{row['files_per_second']:.1f}", f"{times:.2f}x", f"{seconds:.1f}", f"{row['first_seconds']:.1f}"
        shown.add_row(f"{result['files']:,} of {row['side']} px", row["arm"], *figures)
    return shown


def random_checkpoint(file: Path, name: str) -> Path:
    """A model with random weights, and a head whose answers differ."""
    torch.manual_seed(0)
    model = ceit.create_model(name, num_classes=10)
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight)
    ceit.save_checkpoint(file, model, class_names=[f"class {i}" for i in range(10)], preprocessing=IMAGENET)
    return file


def make_pictures(folder: Path, count: int, side: int) -> Path:
    """Square JPEGs with large and fine structure, the same every time."""
    folder.mkdir()
    random = np.random.default_rng(side)
    for number in range(count):
        layers = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (5, min(128, side))]
        coarse, fine = (Image.fromarray(layer).resize((side, side), Image.Resampling.BICUBIC) for layer in layers)
        Image.blend(coarse, fine, 0.2).save(folder / f"{number:05}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
