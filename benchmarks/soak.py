"""Does it stay as it is for weeks? Memory, open files and pace over many steps, predictions and requests of the page.

``python -m benchmarks.soak --output studies/trust/soak.json``: 10,000 training steps, 10,000 predictions and 10,000
requests, each in a process of its own that is looked at from outside. The page needs the extra ``web``.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

from ceit.atomic import write_text
from ceit.inference.device import machine

LOOKS = 200  # at a process, spread over what it does
WARM_SHARE = 0.2  # of what is done first, in which caches fill: it stays out of slopes
_NETWORK = {"embed-dim": 32, "depth": 2, "num-heads": 2, "stem-channels": 8}
_PICTURES = 200
_LOG_END = 4096  # bytes of the last lines of metrics.jsonl
_WITHOUT_A_LIMIT = """
from ceit.web import guard
guard.MOST_A_MINUTE = 10**9  # usually 120 requests
import ceit_cli
ceit_cli.main(["web"])
"""


class Look(NamedTuple):
    """At a process and those that it started: how much is done by then, memory, open files, when, and time computed."""

    done: int
    megabytes: float
    files: int
    seconds: float
    cpu_seconds: float


def look(process: psutil.Process, done: int) -> Look:
    """Raises: psutil.NoSuchProcess if it is over."""
    megabytes, files, cpu_seconds = 0.0, 0, 0.0
    for each in (process, *process.children(recursive=True)):
        megabytes += each.memory_info().rss / 2**20
        files += each.num_fds()
        cpu_seconds += sum(each.cpu_times()[:2])  # as a user, and in the system for it
    return Look(done, megabytes, files, time.monotonic(), cpu_seconds)


def summary(looks: Sequence[Look], unit: str) -> dict[str, Any]:
    """Slopes a thousand, with 95 % intervals, and what each tenth of what is warm took, in time and in time computed.

    Time computed tells of work that grows; the other is also lost to other programs. The intervals take the distances
    from the line for independent, which neighbouring looks are not: true ones are wider.

    Raises: ValueError for too few looks.
    """
    warm = [one for one in looks if one.done >= WARM_SHARE * looks[-1].done]
    if len(warm) < 20:
        raise ValueError(f"only {len(warm)} looks at what is warm: too few for a slope")
    half = warm[len(warm) // 2 :]
    ends = [warm[len(warm) * number // 10 - (number == 10)] for number in range(11)]
    tenths = [(b.done - a.done, b.seconds - a.seconds, b.cpu_seconds - a.cpu_seconds) for a, b in pairwise(ends)]
    paces = [done / seconds for done, seconds, _ in tenths]
    costs = [1000 * cpu_seconds / done for done, _, cpu_seconds in tenths]
    return {
        unit: looks[-1].done,
        "looks": len(looks),
        "megabytes_when_warm": round(warm[0].megabytes, 1),
        "megabytes_at_the_end": round(looks[-1].megabytes, 1),
        "megabytes_a_thousand": _slope(warm, [one.megabytes for one in warm]),
        "megabytes_a_thousand_in_the_last_half": _slope(half, [one.megabytes for one in half]),
        "open_files_when_warm": warm[0].files,
        "open_files_at_the_end": looks[-1].files,
        "open_files_a_thousand": _slope(warm, [float(one.files) for one in warm]),
        f"{unit}_a_second_by_tenths": [round(pace, 1) for pace in paces],
        "cpu_milliseconds_each_by_tenths": [round(cost, 3) for cost in costs],
        "last_pace_to_first": round(paces[-1] / paces[0], 3),
        "last_cost_to_first": round(costs[-1] / costs[0], 3),
    }


def _slope(looks: Sequence[Look], values: list[float]) -> list[float]:
    """Of a straight line through the values, a thousand; with the ends of its 95 % interval."""
    done = [one.done / 1000 for one in looks]
    slope, start = linear_regression(done, values)
    spread = sum((value - start - slope * x) ** 2 for x, value in zip(done, values, strict=True)) / (len(done) - 2)
    centre = sum(done) / len(done)
    error = math.sqrt(spread / sum((x - centre) ** 2 for x in done))
    return [round(value, 3) for value in (slope, slope - 1.96 * error, slope + 1.96 * error)]


def of_training(folder: Path, steps: int) -> Iterator[Look]:
    """A small network on the digits, with an average of the weights, checkpoints and validations."""
    output, batch = folder / "run", 32
    epochs = -(-steps // (1293 // batch))  # an epoch of the digits is 1,293 images
    options = {f"geometry.{name}": value for name, value in _NETWORK.items()} | {"epochs": epochs, "ema.decay": 0.99}
    options |= {"model": "ceit_pico_patch4_32", "global-batch-size": batch, "precision": "float32", "recipe": "none"}
    options |= {"data": "digits", "output": output, "log-every-steps": 10, "checkpoint-every-steps": 500}
    command = ["train", *(word for name, value in options.items() for word in (f"--{name}", f"{value}"))]
    log = output / "metrics.jsonl"

    def done() -> int:
        """From the file's end alone, which does not take longer as it grows."""
        if not log.is_file():
            return 0
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_END))
            return max((int(step) for step in re.findall(rb'"step": ?(\d+)', file.read())), default=0)

    yield from _looks(command, steps, done, folder)


def of_predictions(folder: Path, images: int) -> Iterator[Look]:
    """The model that ships, on pictures of many sizes, their names given again and again."""
    random, answers = np.random.default_rng(0), folder / "answers.csv"
    pictures = []
    for number in range(_PICTURES):
        height, width = random.integers(24, 400, 2)
        pictures.append(folder / f"{number}.jpg")
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(pictures[-1])
    names = [f"{name}" for _ in range(-(-images // _PICTURES)) for name in pictures][:images]
    command = ["predict", *names, "--output", f"{answers}", "--top-k", "1"]

    def done() -> int:
        return answers.read_bytes().count(b"\n") - 1 if answers.is_file() else 0

    yield from _looks(command, images, done, folder)


def _looks(command: list[str], wanted: int, done: Callable[[], int], folder: Path) -> Iterator[Look]:
    """Raises: RuntimeError if the command fails."""
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "ceit", *command], stdout=said, stderr=said)
        watched, before = psutil.Process(process.pid), 0
        while process.poll() is None:
            if (now := done()) >= before + wanted // LOOKS and now <= wanted:
                before = now
                yield look(watched, now)
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"ceit {command[0]} ended with {process.returncode}: {(folder / 'said').read_text()[-500:]}")


def of_the_page(folder: Path, requests: int) -> Iterator[Look]:
    """Pictures that are sent to the JSON API of ``ceit web``, one after the other, each on a connection of its own."""
    buffer = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(buffer)
    picture = buffer.read_bytes()
    command = [sys.executable, "-c", _WITHOUT_A_LIMIT]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            url = _address(folder / "said", process)
            for number in range(1, requests + 1):
                request = urllib.request.Request(f"{url}/api/predict", picture, {"Content-Type": "image/png"})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    json.load(answer)
                if number % max(1, requests // LOOKS) == 0:
                    yield look(psutil.Process(process.pid), number)
        finally:
            process.terminate()
            process.wait()


def _address(said: Path, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        if found := re.search(r"http://[\d.:]+", said.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"ceit web ended: {said.read_text()[-500:]}")


PARTS = {"steps": of_training, "predictions": of_predictions, "requests": of_the_page}


def main() -> None:
    """Asked for its options with --help."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=10_000, help="0 where the extra web is not installed")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for unit, looks_of in PARTS.items():
        if number := getattr(asked, unit):
            with TemporaryDirectory() as folder:
                report[unit] = summary(list(looks_of(Path(folder), number)), unit)
            print(json.dumps(report[unit], indent=1), flush=True)
    write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
