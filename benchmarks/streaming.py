"""Does ``ceit predict`` keep the machine busy? ``python -m benchmarks.streaming --images 10000 --output FILE.json``.

On ``cores`` cores, where reading an image costs ``a`` core-seconds and the network ``b``, no order of work predicts
more than ``cores / (a + b)`` images a second. Measured are ``a`` and ``b``, each alone, on all cores, one thread on
each, with the very network and batch of ``ceit predict``; and the command itself, a process of its own, from its start
to its end. In turns, several times over, and the medians are reported. Core-seconds are the processor time that the
system accounts for. The command's memory is noted as it goes.

Letters: B batch, C channels, H height, W width.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import ceit
from benchmarks.loading import make_pictures
from ceit.atomic import replace_files
from ceit.data.image import read_image
from ceit.data.preprocessing import IMAGENET, to_array
from ceit.inference.device import machine
from ceit.inference.memory import keep_freed_memory
from ceit.inference.predictor import CPU_BATCH, Predictor
from ceit.machine import usable_cores

ALONE_IMAGES = 512  # that reading and computing are measured on, if there are as many
SAMPLE_SECONDS = 0.25
KIB = 1024


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Is ceit predict always busy?")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--images", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--distinct", type=int, default=500, help="of them, the others are links; default: %(default)s")
    parser.add_argument("--model", default="ceit_tiny_patch16_224", help="with random weights; default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, metavar="RUN|FILE", help="instead, also an exported file")
    parser.add_argument("--precision", default="auto", help="of ceit predict; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    asked = parser.parse_args()
    distinct = min(asked.distinct, asked.images)
    with tempfile.TemporaryDirectory(prefix="ceit-") as made:
        pictures, checkpoint = Path(made, "pictures"), asked.checkpoint or Path(made, "random.safetensors")
        pictures.mkdir()
        make_pictures(pictures, distinct)
        for number in range(distinct, asked.images):
            os.link(pictures / f"{number % distinct:05}.jpg", pictures / f"{number:05}.jpg")
        if not asked.checkpoint:
            torch.manual_seed(0)
            model = ceit.create_model(asked.model)
            names = [f"class {i}" for i in range(model.config.num_classes)]
            ceit.save_checkpoint(checkpoint, model, class_names=names, preprocessing=IMAGENET)
        result = measure(sorted(pictures.iterdir()), checkpoint, asked.precision, asked.batch_size, asked.repeats)
    setting = {
        "model": None if asked.checkpoint else asked.model,
        "checkpoint": asked.checkpoint.name if asked.checkpoint else "random",
    }
    result = {**setting, "images": asked.images, "distinct_images": distinct, **result}
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    Console(stderr=True).print(
        f"{result['images_per_second']} images/s of at most {result['bound_images_per_second']}, "
        f"{result['percent_of_bound']} %; memory {result['rss_early_mib']} MiB early, {result['rss_late_mib']} late",
        highlight=False,
        soft_wrap=True,
    )


def measure(
    pictures: Sequence[Path], checkpoint: Path, precision: str, batch_size: int, repeats: int
) -> dict[str, Any]:
    """The figures: medians, every repeat, the machine."""
    keep_freed_memory()  # as the command does
    cores = usable_cores()
    torch.set_num_threads(cores)
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        read, compute = alone(pictures[:ALONE_IMAGES], checkpoint, precision, batch_size)
        found = command(pictures[0].parent, len(pictures), checkpoint, precision, batch_size)
        bound = cores / (read + compute)
        runs.append(
            {
                "read_core_seconds": read,
                "compute_core_seconds": compute,
                "bound_images_per_second": bound,
                **found,
                "percent_of_bound": 100 * found["images_per_second"] / bound,
                "percent_of_bound_after_the_start": 100 * found["images_per_second_after_the_start"] / bound,
            }
        )
    return {
        "precision": precision,
        "batch_size": batch_size,
        "file_bytes_median": statistics.median(path.stat().st_size for path in pictures),
        **{key: round(statistics.median(run[key] for run in runs), 5) for key in runs[0]},
        "repeats": [{key: round(value, 5) for key, value in run.items()} for run in runs],
        "machine": {**machine(torch.device("cpu")), "cores": cores},
    }


def alone(pictures: Sequence[Path], checkpoint: Path, precision: Any, batch_size: int) -> tuple[float, float]:
    """Core-seconds an image of reading and of the network, on all cores, one thread on each."""
    predictor = Predictor.from_checkpoint(checkpoint, precision=precision)
    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    cores = torch.get_num_threads()
    ready = torch.randn(batch_size, predictor.in_chans, *predictor.image_hw)
    ready = ready.contiguous(memory_format=torch.channels_last)

    def read(paths: Sequence[Path]) -> None:
        images = [read_image(path, predictor.in_chans) for path in paths]
        fitted = [to_array(predictor.preprocessing.fit(image, predictor.image_hw)) for image in images]
        predictor.preprocessing.normalise(np.stack(fitted))

    def compute(paths: Sequence[Path]) -> None:
        with torch.inference_mode():
            predictor.network(ready[: len(paths)])

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def core_seconds(work: Callable[[Sequence[Path]], None]) -> float:
            list(pool.map(work, batches[:cores]))
            began = time.process_time()
            list(pool.map(work, batches))
            return (time.process_time() - began) / len(pictures)

        found = core_seconds(read), core_seconds(compute)
    torch.set_num_threads(cores)
    return found


def command(folder: Path, images: int, checkpoint: Path, precision: str, batch_size: int) -> dict[str, float]:
    """``ceit predict`` on the folder: its speed, with and without its start, and its memory as it goes."""
    options = {"checkpoint": checkpoint, "precision": precision, "batch-size": batch_size}
    with tempfile.TemporaryDirectory(prefix="ceit-") as made:
        answers = Path(made, "answers.jsonl")
        arguments = [f"--{name}={value}" for name, value in options.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        began, used_before = time.perf_counter(), os.times()
        samples: list[tuple[float, int, float]] = []  # when, bytes of answers, MiB of memory
        with subprocess.Popen(
            [sys.executable, "-m", "ceit", "predict", str(folder), f"--output={answers}", *arguments], env=environment
        ) as process:
            try:
                while process.poll() is None:
                    time.sleep(SAMPLE_SECONDS)
                    if answers.exists() and answers.stat().st_size and (mib := resident_mib(process.pid)):
                        samples.append((time.perf_counter(), answers.stat().st_size, mib))
            finally:
                process.terminate()
        seconds, used = time.perf_counter() - began, os.times()
        if process.returncode:
            raise SystemExit(f"error: ceit predict ended with exit code {process.returncode}")
        lines = answers.read_bytes().splitlines(keepends=True)
        assert len(lines) == images
    if not samples:
        raise SystemExit(f"error: {images} images are predicted before memory can be looked at: raise --images")
    started, bytes_then, _mib = samples[0]
    done_then = int((np.cumsum([len(line) for line in lines]) <= bytes_then).sum())
    core_seconds = sum(used[2:4]) - sum(used_before[2:4])  # of ended children, in user and in system mode
    fifth = max(1, len(samples) // 5)
    return {
        "seconds": seconds,
        "core_seconds_an_image": core_seconds / images,
        "images_per_second": images / seconds,
        "images_per_second_after_the_start": (images - done_then) / (began + seconds - started),
        "rss_early_mib": max(mib for *_, mib in samples[fifth : 2 * fifth] or samples),
        "rss_late_mib": max(mib for *_, mib in samples[-fifth:]),
    }


def resident_mib(process: int) -> float:
    """Memory that a process holds, 0 where the system does not tell it or the process has ended."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / KIB for line in lines if line.startswith("VmRSS:")), 0.0)


if __name__ == "__main__":
    main()
