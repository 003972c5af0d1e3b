"""What images cost before a network sees them: core-milliseconds of every stage, and images a second of the whole."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ceit.bench.summary import rounded
from ceit.data.batches.augment import Augmentation
from ceit.data.batches.batch import Erased, ImageAugmentation
from ceit.data.batches.loader import make_loader
from ceit.data.image import read_image
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import IMAGENET
from ceit.data.reduced import Size, training_cover
from ceit.data.sources.walk import open_folder
from ceit.data.splits import FileSplit

AUGMENTATION = Augmentation(crop_scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)
"""That of the recipes for ImageNet."""
MOST_IMAGES = 512  # spread over the folder
_BATCH = 32


def images_in(folder: Path) -> list[Path]:
    """Images to read, not too many, from all over the folder. Raises: ValueError for a folder without images."""
    paths = list(open_folder(folder).walk())
    if not paths:
        raise ValueError(f"{folder} holds no images")
    return paths[:: -(-len(paths) // MOST_IMAGES)]


def measure_loader(paths: list[Path], size: Size, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds`` of an epoch over images, each stage on one core, nothing taken from a cache.

    ``whole`` is what the processes of a loader reach together. Raises: ValueError for an image that cannot be read.
    """
    split = FileSplit(PathArray.of(paths), torch.zeros(len(paths), dtype=torch.int64))
    loader = make_loader(
        split, batch_size=_BATCH, img_size=size, preprocessing=IMAGENET, augmentation=AUGMENTATION, shuffle=True
    )
    stages: dict[str, list[float]] = {}
    rates: list[float] = []
    threads = torch.get_num_threads()
    for number in range(rounds + 1):
        torch.set_num_threads(1)
        for stage, seconds in _stages(split, size).items():
            stages.setdefault(stage, []).append(1000 * seconds / len(split))
        torch.set_num_threads(threads)
        began = time.perf_counter()
        for _ in loader.epoch(number):
            continue
        rates.append(len(split) / (time.perf_counter() - began))
    workers = 0 if loader.workers is None else loader.workers.count
    return {
        "images": len(split),
        "img_size": size,
        "stages": {name: _figures(median(of[1:])) for name, of in stages.items()},  # the first round warms up
        "whole": {"images_per_second": rounded(median(rates[1:])), "workers": workers},
    }


def _figures(milliseconds: float) -> dict[str, float]:
    rate = 1000 / max(milliseconds, 1e-6)
    return {"core_milliseconds": rounded(milliseconds), "images_per_second_a_core": rounded(rate)}


def _stages(split: FileSplit, size: Size) -> dict[str, float]:
    """Core-seconds of each stage, for all images."""
    spent: dict[str, float] = {}
    cover = training_cover(size, IMAGENET.crop, AUGMENTATION.crop_scale)
    augment = ImageAugmentation(AUGMENTATION, IMAGENET, size)
    assert augment.rand_augment is not None
    assert augment.erase is not None
    rows, columns = np.arange(size[0]), np.arange(size[1])[::-1]
    mirrored = ImageAugmentation(Augmentation(), replace(IMAGENET, crop=1.0), size)

    def timed(stage: str, use: Callable[[Any], Any], item: Any) -> Any:
        began = time.process_time()
        result = use(item)
        spent[stage] = spent.get(stage, 0.0) + time.process_time() - began
        return result

    for index in range(len(split)):
        data = timed("read", split.encoded, index)
        picture = timed("decode", lambda data: read_image(data, 3, cover), data)
        picture = timed("crop", augment.crop, picture)
        picture = timed("RandAugment", augment.rand_augment, picture)
        pixels_hwc = timed("mirror", lambda picture: mirrored(picture, rows, columns), picture)
        timed("erase", augment.erase, Erased((3, *size)))
        timed("normalise", IMAGENET.normalise, pixels_hwc)
    return spent
