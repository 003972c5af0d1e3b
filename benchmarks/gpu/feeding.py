"""Does the loader keep up? The package's own training step on JPEG files, beside the same step on a batch in memory."""

import os
import time
from collections.abc import Iterator
from itertools import chain, count, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.turns import Setting, wait_for
from benchmarks.loading import make_pictures
from ceit.data.batches.augment import Augmentation
from ceit.data.batches.batch import Batch
from ceit.inference.device import default_device
from ceit.machine import usable_cores
from ceit.train.config import TrainConfig
from ceit.train.run import begun
from ceit.train.step import bring_to_host, train_step
from ceit.train.trainer import Trainer

STEPS = 30
DISTINCT = 128
BATCHES_AHEAD = 2  # that each worker may have ready when a turn begins: they do not count
CLASSES = ("a", "b")


def loader(setting: Setting, _seconds: float) -> dict[str, Any]:
    """Images a second of both in turns, and the share of its time that the step waits for the loader.

    Raises: ValueError where the package would train on another device.
    """
    if default_device().type != setting.device.type:
        raise ValueError(f"the package trains on {default_device()} here, not on {setting.device}")
    workers = usable_cores()
    config = TrainConfig(
        model=setting.models[0],
        global_batch_size=setting.batch_size,
        precision="bf16",
        compile=setting.device.type != "cpu",
        augmentation=Augmentation(crop_scale=(0.08, 1.0)),
        validation_percent=0,
        select="last",
        workers=workers,
    )
    with TemporaryDirectory(prefix="ceit-") as made:
        data = _folder(Path(made), max(4 * setting.batch_size, DISTINCT))
        with begun(config, str(data), Path(made, "run"), steps=1_000_000, share_cores=False) as trainer:
            found = _in_turns(trainer, setting, workers)
    memory, files = (median(found[kind]) for kind in ("in_memory", "from_files"))
    return {
        "model": config.model,
        "workers": workers,
        "augmentation": "random resized crop, flip",
        "images_per_second": {"in_memory": round(memory, 1), "from_files": round(files, 1)},
        "of_in_memory_percent": round(100 * files / memory, 1),
        "data_wait_percent": round(median(found["waited_percent"]), 2),
        "rounds": {kind: [round(value, 2) for value in values] for kind, values in found.items()},
    }


def _in_turns(trainer: Trainer, setting: Setting, workers: int) -> dict[str, list[float]]:
    trainer.learner.start_training()
    stream = chain.from_iterable(trainer.train_loader.epoch(epoch) for epoch in count())
    kept = next(stream)
    numbers = count()
    _rate(trainer, repeat(kept), 3, numbers)  # compiles
    found: dict[str, list[float]] = {"in_memory": [], "from_files": [], "waited_percent": []}
    for _ in range(setting.rounds):
        found["in_memory"].append(_rate(trainer, repeat(kept), STEPS, numbers)[0])
        _rate(trainer, stream, BATCHES_AHEAD * workers, numbers)
        rate, waited = _rate(trainer, stream, STEPS, numbers)
        found["from_files"].append(rate)
        found["waited_percent"].append(waited)
    return found


def _rate(trainer: Trainer, batches: Iterator[Batch], steps: int, numbers: Iterator[int]) -> tuple[float, float]:
    """Images a second of so many steps, and the percent of the time that they waited for their batches."""
    device = trainer.accelerator.device
    wait_for(device)
    began, waited, results = time.perf_counter(), 0.0, []
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        results.append(train_step(trainer.learner, *batch, next(numbers)))
    bring_to_host(results)
    wait_for(device)
    seconds = time.perf_counter() - began
    return sum(result.images for result in results) / seconds, 100 * waited / seconds


def _folder(root: Path, images: int) -> Path:
    """JPEGs of two classes: few pictures under many names to train on, others to test on."""
    drawn = root / "drawn"
    drawn.mkdir()
    paths = sorted(make_pictures(drawn, DISTINCT + len(CLASSES)).iterdir())
    train, test = paths[: -len(CLASSES)], paths[-len(CLASSES) :]
    for label in CLASSES:
        for split in ("train", "test"):
            Path(root, "data", split, label).mkdir(parents=True)
    for number in range(images):
        place = Path(root, "data", "train", CLASSES[number % len(CLASSES)], f"{number:06}.jpg")
        os.link(train[number // len(CLASSES) % len(train)], place)
    for label, path in zip(CLASSES, test, strict=True):
        os.link(path, Path(root, "data", "test", label, path.name))
    return root / "data"
