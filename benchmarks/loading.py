"""Does reading images hold training up? ``python -m benchmarks.loading --output FILE.json [--folder DIR]``.

On ``cores`` cores, where decoding and varying an image costs ``a`` core-seconds and its share of a training step ``b``,
no order of work trains on more than ``cores / (a + b)`` images a second. Measured are ``a`` (one core, nothing else
runs), ``b`` (a step on images in memory, all cores times its duration) and what training reaches when worker processes
read while it computes; in turns, several times over, and the medians are reported.

``--stages`` measures instead what an image costs, in core-milliseconds, and trains nothing: to read, to decode, whole
batches by way of augmentation, and these made in another process. Another source tree is measured by PYTHONPATH.

Letters: B batch, C channels, H height, W width.
"""

import argparse
import io
import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import ceit
from ceit.atomic import replace_files
from ceit.bench.backends import Step, training_step
from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.preprocessing import IMAGENET
from ceit.data.reduced import training_cover
from ceit.data.sources.listing import Listing
from ceit.data.sources.walk import open_folder
from ceit.data.splits import FileSplit
from ceit.inference.device import machine
from ceit.machine import usable_cores
from ceit.model.variants import config_of

PICTURE_WIDTH, PICTURE_HEIGHT, PICTURE_BYTES = 500, 375, 80_000  # of the pictures made here; the last is the least
AUGMENTATIONS = {
    "crop_and_flip": Augmentation(crop_scale=(0.08, 1.0)),
    "full_recipe": Augmentation(crop_scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description="Does reading hold training up?")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="images to read; without one, pictures are made")
    parser.add_argument("--model", default="ceit_tiny_patch16_224", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=192, help="an epoch; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="processes that read; by default one per core")
    parser.add_argument("--stages", action="store_true", help="what each stage costs, of small and of large pictures")
    asked = parser.parse_args()
    if asked.stages:
        found = stages(asked.images, asked.batch_size, asked.repeats)
        replace_files({asked.output: (json.dumps(found, indent=1) + "\n").encode()})
        for size, costs in found["core_ms_an_image"].items():
            told = ", ".join(f"{name} {cost['median']}" for name, cost in costs.items())
            Console(stderr=True).print(f"{size}, core-ms an image: {told}", highlight=False, soft_wrap=True)
        return
    if asked.images < 2 * asked.batch_size:
        parser.error(f"--images {asked.images} must be at least two batches of {asked.batch_size}")
    with tempfile.TemporaryDirectory() as made:
        split = _images_in(asked.folder or make_pictures(Path(made), asked.images), asked.images)
        result = measure(split, asked.model, asked.batch_size, asked.repeats, asked.workers)
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    for name, found in result["augmentations"].items():
        Console(stderr=True).print(
            f"{name}: {found['images_per_second']} images/s of at most {found['bound_images_per_second']}, "
            f"{found['percent_of_bound']} %; waited for data {found['data_wait_percent']} % of the time",
            highlight=False,
            soft_wrap=True,
        )


def stages(images: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Core-milliseconds an image of every stage at 224 px, of pictures made here and of a few of 12 megapixels."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as enlarged:
        make_pictures(Path(made), images)
        enlarge(Path(made), Path(enlarged), images // 16)
        for folder, count in ((made, images), (enlarged, images // 16)):
            split = _images_in(Path(folder), count)
            with Image.open(split.paths[0]) as first:
                name = "{} x {}".format(*first.size)
            costs: dict[str, list[float]] = {}
            for repeat in range(repeats + 1):
                for stage, cost in _costs(split, min(batch_size, count), repeat).items():
                    costs.setdefault(stage, []).append(1000 * cost)
            found[name] = {  # the first turn warms up
                stage: {"median": round(statistics.median(of[1:]), 3), "repeats": [round(ms, 3) for ms in of[1:]]}
                for stage, of in costs.items()
            }
    environment = {**machine(torch.device("cpu")), **{name: version(name) for name in ("timm", "pillow", "numpy")}}
    return {"images": images, "batch_size": batch_size, "core_ms_an_image": found, "machine": environment}


def _costs(split: FileSplit, batch_size: int, epoch: int) -> dict[str, float]:
    """Core-seconds an image of every stage, once."""
    size, full = (224, 224), AUGMENTATIONS["full_recipe"]
    cover = training_cover(size, IMAGENET.crop, full.crop_scale)
    costs = {"read": _core_seconds(lambda: [split.encoded(index) for index in range(len(split))]) / len(split)}
    decode = _core_seconds(lambda: [split.read(index, 3, cover).size for index in range(len(split))]) / len(split)
    costs["decode"] = decode - costs["read"]
    for name, augmentation in {**AUGMENTATIONS, "three_views": replace(full, repeats=3)}.items():
        costs[name] = seconds_to_read(_loader(split, size, augmentation, batch_size, 0), epoch)

    def through_a_process() -> None:  # which ends with its loader, so that its time counts
        loader = _loader(split, size, full, batch_size, 1)
        for _ in loader.epoch(epoch):
            continue

    costs["in_a_process"] = _core_seconds(through_a_process) / (len(split) // batch_size * batch_size)
    return costs


def _core_seconds(use: Callable[[], object]) -> float:
    """Core-seconds of this process and of those that ended meanwhile."""

    def spent() -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime

    began = spent()
    use()
    return spent() - began


def measure(split: FileSplit, model: str, batch_size: int, repeats: int, workers: int | None) -> dict[str, Any]:
    """The figures for each way of augmentation at the model's own image size: medians, every repeat, the machine."""
    cores, load = usable_cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    torch.set_num_threads(cores)
    size = config_of(model).image_hw
    step = training_step(ceit.create_model(model, num_classes=1000), bf16=True)

    def loaders_with(workers: int | None) -> dict[str, Loader]:
        return {name: _loader(split, size, how, batch_size, workers) for name, how in AUGMENTATIONS.items()}

    loaders, readers = loaders_with(workers), loaders_with(0)
    ready = next(readers["crop_and_flip"].epoch(0))
    for _ in range(2):
        step(*ready)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in AUGMENTATIONS}
    for repeat in range(repeats):
        for name in AUGMENTATIONS:
            read = seconds_to_read(readers[name], repeat)
            compute = cores * seconds_to_step(step, ready, len(loaders[name]))
            reached, waited = train_epoch(step, loaders[name], repeat)
            runs[name].append(
                {
                    "read_core_seconds": read,
                    "step_core_seconds": compute,
                    "bound_images_per_second": cores / (read + compute),
                    "images_per_second": reached,
                    "percent_of_bound": 100 * reached * (read + compute) / cores,
                    "data_wait_percent": waited,
                }
            )
    sizes = [path.stat().st_size for path in split.paths]
    with Image.open(split.paths[0]) as first:
        shape = first.size
    return {
        "model": model,
        "img_size": size,
        "batch_size": batch_size,
        "images": len(split),
        "image_width_height": shape,
        "file_bytes": {"least": min(sizes), "median": statistics.median(sizes), "most": max(sizes)},
        "workers": 0 if (processes := loaders["full_recipe"].workers) is None else processes.count,
        "augmentations": {
            name: {
                **{key: round(statistics.median(run[key] for run in found), 5) for key in found[0]},
                "repeats": [{key: round(value, 5) for key, value in run.items()} for run in found],
            }
            for name, found in runs.items()
        },
        "machine": {
            **{
                **machine(torch.device("cpu")),
                **{name: version(name) for name in ("timm", "pillow", "numpy")},
                "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "GOMP_"))},
            },
            "cores": cores,
            "load_average_before": None if math.isnan(load) else round(load, 2),
        },
    }


def seconds_to_read(loader: Loader, epoch: int) -> float:
    """Core-seconds an image, reading in this process on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    for _ in loader.epoch(epoch):
        continue
    seconds = time.process_time() - began
    torch.set_num_threads(threads)
    return seconds / loader.images


def seconds_to_step(step: Step, batch: tuple[Tensor, Tensor], steps: int) -> float:
    """Seconds an image of a step on images at hand."""
    began = time.perf_counter()
    for _ in range(steps):
        step(*batch)
    return (time.perf_counter() - began) / steps / len(batch[1])


def train_epoch(step: Step, loader: Loader, epoch: int) -> tuple[float, float]:
    """Images per second over a whole epoch, from asking for its first batch on, and percent of it spent waiting."""
    began, waited = time.perf_counter(), 0.0
    batches = loader.epoch(epoch)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step(*batch)
    seconds = time.perf_counter() - began
    return loader.images / seconds, 100 * waited / seconds


def make_pictures(folder: Path, count: int) -> Path:
    """JPEGs of random structure at every scale, as photographs have, of at least ``PICTURE_BYTES`` each."""
    for number in range(count):
        picture = _picture(np.random.default_rng(number))
        qualities = iter(range(80, 101, 2))
        content = b""
        while len(content) < PICTURE_BYTES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=next(qualities))
            content = file.getvalue()
        (folder / f"{number:05}.jpg").write_bytes(content)
    return folder


def enlarge(folder: Path, into: Path, count: int) -> None:
    """The first pictures of a folder at 12 megapixels, with the noise of a camera."""
    for number, path in enumerate(sorted(folder.iterdir())[:count]):
        with Image.open(path) as picture:
            pixels_hwc = np.asarray(picture.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
        noise_hw1 = np.random.default_rng(number).integers(-12, 13, (3000, 4000, 1), np.int16)
        Image.fromarray((pixels_hwc + noise_hw1).clip(0, 255).astype(np.uint8)).save(into / path.name, quality=90)


def _images_in(folder: Path, count: int) -> FileSplit:
    paths = list(open_folder(folder).walk())
    if len(paths) < count:
        raise SystemExit(f"error: {folder} holds {len(paths)} images, not {count}: lower --images")
    classes = [str(number % 1000) for number in range(count)]
    return Listing(folder, paths[:count], classes).split(sorted(set(classes), key=int))


def _loader(
    split: FileSplit, size: tuple[int, int], augmentation: Augmentation, batch_size: int, workers: int | None
) -> Loader:
    return make_loader(
        split,
        batch_size=batch_size,
        img_size=size,
        preprocessing=IMAGENET,
        augmentation=augmentation,
        shuffle=True,
        drop_last=True,
        workers=workers,
    )


def _picture(random: np.random.Generator) -> Image.Image:
    """Noise of every wavelength from the whole picture down to a pixel, the shorter the weaker."""
    size = PICTURE_WIDTH, PICTURE_HEIGHT
    field_hwc = np.zeros((PICTURE_HEIGHT, PICTURE_WIDTH, 3), np.float32)
    for octave in range(8):
        cells = 4 * 2**octave
        noise_hwc = random.normal(size=(cells * PICTURE_HEIGHT // PICTURE_WIDTH, cells, 3)).astype(np.float32)
        grown = [
            np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
            for plane in noise_hwc.transpose(2, 0, 1)
        ]
        field_hwc += 0.8**octave * np.stack(grown, axis=2)
    field_hwc = (field_hwc - field_hwc.mean()) / field_hwc.std()
    return Image.fromarray((128 + 50 * field_hwc).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
