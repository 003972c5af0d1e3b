"""What computing costs beside other programs: ``python -m ceit.bench.sharing --output FILE.json``.

The threads of one operation wait for each other. OpenMP's run-time lets the waiting ones spin, which is quick while
every thread has a core of its own, and costs the others their time where a program beside takes one. Each setting of
the run-time does the same work for a few seconds, in a process of its own, beside each kind of company; the settings
take turns, and the medians of several rounds are reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ceit.weights.atomic import replace_files

SETTINGS: dict[str, dict[str, str]] = {
    "default": {"OMP_WAIT_POLICY": ""},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": ""},
}
"""What is in the environment of each; an empty policy keeps the command's own choice away and is the run-time's own."""

COMPANY = {"quiet": (), "half a core": (0.5,), "one core": (1.0,), "both cores": (1.0, 1.0)}
"""The shares of a core that the programs beside take."""

Seconds = dict[str, dict[str, dict[str, list[float]]]]
"""By work, company and setting: seconds a step, of every round."""

WORK = ("digits", "train_32", "train_224", "predict_224", "evaluate_32")
_SMALL_KERNELS = ("digits", "train_32")  # all settings are tried on these, the main ones on the others
_MAIN_SETTINGS = ("default", "spin 1,000", "passive")
_PERIOD_SECONDS = 0.02
_WORK_SECONDS = 3.0


def main() -> None:
    """Measure and write the result, or do one piece of work and print its seconds."""
    parser = argparse.ArgumentParser(prog="python -m ceit.bench.sharing", description="What company costs.")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), metavar="WORK")
    parser.add_argument("--do", choices=WORK, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(_measured(asked.do)))
        return
    if asked.output is None:
        parser.error("--output FILE.json is missing")
    seconds: Seconds = {}
    for work, company, setting in turns(asked.work) * asked.rounds:
        with beside(COMPANY[company]):
            answer = _in_a_process(work, SETTINGS[setting])
        seconds.setdefault(work, {}).setdefault(company, {}).setdefault(setting, []).append(answer["seconds"])
        document = {"machine": answer["machine"], "seconds_a_step": seconds}
        replace_files({asked.output: json.dumps(document, indent=1).encode()})
    print_table(seconds)


def turns(works: list[str]) -> list[tuple[str, str, str]]:
    """Work, company and setting, in the order in which they are measured."""
    settings = {work: list(SETTINGS) if work in _SMALL_KERNELS else list(_MAIN_SETTINGS) for work in works}
    return [(work, company, setting) for work in works for company in COMPANY for setting in settings[work]]


def print_table(seconds: Seconds) -> None:
    """A row for each work and company: the median seconds that a step takes with every setting."""
    table = Table("seconds a step", "beside", *SETTINGS)
    for work, by_company in seconds.items():
        for company, found in by_company.items():
            cells = (f"{statistics.median(found[setting]):.3f}" if setting in found else "" for setting in SETTINGS)
            table.add_row(work, company, *cells)
        table.add_section()
    Console().print(table)


@contextmanager
def beside(shares: tuple[float, ...]) -> Iterator[None]:
    """Programs that take these shares of a core each, while the block runs."""
    code = (
        "import os, sys, time\nshare, period = map(float, sys.argv[1:])\nparent = os.getppid()\n"
        "while os.getppid() == parent:\n began = time.perf_counter()\n"
        " while time.perf_counter() - began < share * period: pass\n"
        " if share < 1: time.sleep((1 - share) * period)"
    )
    command = [sys.executable, "-c", code]
    programs = [subprocess.Popen([*command, f"{share}", f"{_PERIOD_SECONDS}"]) for share in shares]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _in_a_process(work: str, setting: dict[str, str]) -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-m", "ceit.bench.sharing", "--do", work]
    done = subprocess.run(command, env=clean | setting, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measured(work: str) -> dict[str, Any]:
    """The seconds that a step of the work takes, and the machine."""
    import torch

    from ceit.inference.device import machine
    from ceit.inference.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    step = _STEPS[work]()
    step()
    steps, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < _WORK_SECONDS:
        step()
        steps += 1
    return {"seconds": seconds / steps, "machine": machine(torch.device("cpu"))}


def _training(name: str, side: int, channels: int, batch: int) -> Callable[[], object]:
    import torch

    from ceit.bench.training import training_step
    from ceit.weights import create_model

    model = create_model(name, num_classes=10, img_size=(side, side), in_chans=channels)
    step = training_step(model, bf16=True, fused=True)
    images = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    return lambda: step(images, labels)


def _predicting() -> Callable[[], object]:
    import numpy as np

    from ceit.inference.predictor import Predictor
    from ceit.weights import create_model

    predictor = Predictor.from_model(create_model("ceit_tiny_patch16_224", num_classes=10), precision="bf16")
    images = list(np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8))
    return lambda: predictor.predict(images)


def _evaluating() -> Callable[[], object]:
    """Batches as ``ceit evaluate`` computes them: by the network that predicts, one batch after the other."""
    import torch

    from ceit.inference.backend import prepare
    from ceit.weights import create_model

    network = prepare(create_model("ceit_nano_patch4_32", num_classes=10), "eager", "bf16", image_shape=(3, 32, 32))
    images = torch.randn(250, 3, 32, 32)
    return lambda: network(images)


_STEPS: dict[str, Callable[[], Callable[[], object]]] = {
    "digits": lambda: _training("ceit_nano_patch4_32", 16, 1, 256),
    "train_32": lambda: _training("ceit_nano_patch4_32", 32, 3, 256),
    "train_224": lambda: _training("ceit_tiny_patch16_224", 224, 3, 16),
    "predict_224": _predicting,
    "evaluate_32": _evaluating,
}


if __name__ == "__main__":
    main()
