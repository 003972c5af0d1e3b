"""How long until training begins on photographs? ``python -m benchmarks.photos --output FILE.json [--against DIR]``.

JPEGs of 12 megapixels, of two classes, are made in a temporary folder. Measured in fresh processes, each with a cache
of its own, are the seconds from ``train`` being called to the first step, its images read: at the first run, when
nothing is known of the images, and at the second. ``--against`` measures another checkout of the package too, in turns.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import ceit
from ceit.atomic import replace_files
from ceit.inference.device import machine
from ceit.machine import usable_cores

WIDTH, HEIGHT = 4000, 3000
FILE_BYTES = 2_500_000  # about, of every photograph
CLASSES = ("dark", "light")
RUNS = ("first", "second")

MEASURE = """
import json, sys, time
from pathlib import Path
from ceit.cli.train import parse
from ceit.train import trainer
from ceit.train.run import train

class Begun(Exception):
    pass

def step(*_):
    raise Begun

data, output, recipe = sys.argv[1:]
config, _ = parse(["--data", data, "--output", output, "--recipe", recipe])
trainer.train_step = step
began = time.perf_counter()
try:
    train(config, data, Path(output))
except Begun:
    print(json.dumps(time.perf_counter() - began))
"""


def main() -> None:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description="How soon does training begin?")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--images", type=int, default=500, help="photographs to make; default: %(default)s")
    parser.add_argument("--recipe", default="demo", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="source folder of another checkout, with ceit in it"
    )
    asked = parser.parse_args()
    if asked.images < 2 * len(CLASSES):
        parser.error(f"--images {asked.images} must be at least {2 * len(CLASSES)}")
    sources = {"this": Path(ceit.__file__).parent.parent}
    if asked.against is not None:
        if not (asked.against / "ceit").is_dir():
            parser.error(f"--against {asked.against} holds no package ceit: name the folder src of a checkout")
        sources["against"] = asked.against.resolve()
    with tempfile.TemporaryDirectory(prefix="ceit-") as made:
        photos = make_photos(Path(made, "photos"), asked.images)
        result = measure(photos, sources, asked.recipe, asked.repeats)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    print_result(result, Console())


def measure(photos: Path, sources: dict[str, Path], recipe: str, repeats: int) -> dict[str, Any]:
    """Seconds of every run of every checkout, in turns, their medians, and what they were measured on."""
    seconds = {name: {run: [] for run in RUNS} for name in sources}
    for _ in range(repeats):
        for name, source in sources.items():
            with tempfile.TemporaryDirectory(prefix="ceit-") as folder:  # whose cache is empty
                for run in RUNS:
                    seconds[name][run].append(seconds_to_first_step(photos, source, recipe, Path(folder), run))
    files = [path.stat().st_size for path in photos.rglob("*.jpg")]
    return {
        "recipe": recipe,
        "images": len(files),
        "image_width_height": [WIDTH, HEIGHT],
        "file_bytes_median": statistics.median(files),
        "seconds_to_first_step": {
            name: {
                run: {"median": round(statistics.median(found), 3), "repeats": [round(s, 3) for s in found]}
                for run, found in runs.items()
            }
            for name, runs in seconds.items()
        },
        "machine": {**machine(torch.device("cpu")), "cores": usable_cores()},
    }


def seconds_to_first_step(photos: Path, source: Path, recipe: str, folder: Path, run: str) -> float:
    """A training that ends with its first step, in a process of its own. Raises: SystemExit if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(source), "CEIT_DATA": str(folder / "cache")}
    command = [sys.executable, "-c", MEASURE, str(photos), str(folder / run), recipe]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"error: training with {source} ended with exit code {ended.returncode}")
    return float(json.loads(ended.stdout.splitlines()[-1]))


def print_result(result: dict[str, Any], console: Console) -> None:
    """The medians as a table, and how they compare."""
    found = result["seconds_to_first_step"]
    console.print(
        f"seconds to the first step, {result['images']} photographs of 12 megapixels, recipe {result['recipe']}"
    )
    table = Table()
    table.add_column("run")
    for name in found:
        table.add_column(name, justify="right")
    if len(found) > 1:
        table.add_column("times faster", justify="right")
    for run in RUNS:
        medians = [runs[run]["median"] for runs in found.values()]
        faster = [f"{medians[1] / medians[0]:.1f}"] if len(medians) > 1 else []
        table.add_row(run, *(f"{seconds:.2f}" for seconds in medians), *faster)
    console.print(table)


def make_photos(folder: Path, count: int) -> Path:
    """So many JPEGs in class folders: gradients under noise, at the quality that gives about ``FILE_BYTES``."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    noise_hwc = _noise(np.random.default_rng(0))
    first = _photo(0, noise_hwc)
    quality = next((q for q in range(50, 100, 5) if len(_as_jpeg(first, q)) >= FILE_BYTES), 95)

    def write(number: int) -> None:
        name = CLASSES[number % len(CLASSES)]
        (folder / name / f"{number:05}.jpg").write_bytes(_as_jpeg(_photo(number, noise_hwc), quality))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(write, range(count)))
    return folder


def _noise(random: np.random.Generator) -> np.ndarray:
    """Soft texture and fine grain, int16 ``(HEIGHT, WIDTH, 3)`` around 0."""
    cells = Image.fromarray(random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
    texture_hwc = np.asarray(cells.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    return (texture_hwc - 128) // 3 + random.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)


def _photo(number: int, noise_hwc: np.ndarray) -> Image.Image:
    """The noise shifted by random distances, over a random gradient; how bright tells the class."""
    random = np.random.default_rng(number)
    shift = random.integers(0, HEIGHT), random.integers(0, WIDTH)
    (top, bottom), (left, right) = random.uniform(-40, 40, (2, 2)).tolist()
    down_h, across_w = np.linspace(top, bottom, HEIGHT), np.linspace(left, right, WIDTH)
    light_hw = down_h[:, None] + across_w + 80 + 90 * (number % len(CLASSES))
    pixels_hwc = np.roll(noise_hwc, shift, (0, 1)) + light_hw[:, :, None].astype(np.int16)
    return Image.fromarray(pixels_hwc.clip(0, 255).astype(np.uint8))


def _as_jpeg(photo: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    main()
