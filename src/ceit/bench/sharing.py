"""What computing costs beside other programs: ``python -m ceit.bench.sharing --output FILE.json``.

The threads of one operation wait for each other. OpenMP's run-time lets the waiting ones spin, which is quick while
every thread has a core of its own, and costs the others their time where a program beside takes one. Each setting of
the run-time does the same work, in a process of its own, beside each kind of company; the settings take turns, and the
medians of several rounds are reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ceit.weights.atomic import replace_files

SETTINGS: dict[str, dict[str, str]] = {
    "default": {"OMP_WAIT_POLICY": ""},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": ""},
}
"""What is in the environment of each; an empty policy keeps the command's own choice away and is the run-time's own."""

COMPANY = {"quiet": (), "half a core": (0.5,), "one core": (1.0,), "both cores": (1.0, 1.0)}
"""The shares of a core that the programs beside take."""

WORK = ("digits", "train_32", "train_224", "predict_224", "evaluate_32")
_PERIOD_SECONDS = 0.02


def main() -> None:
    """Measure and write the result, or do one piece of work and print its seconds."""
    parser = argparse.ArgumentParser(prog="python -m ceit.bench.sharing", description="What company costs.")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--company", nargs="+", choices=COMPANY, default=list(COMPANY), metavar="KIND")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), metavar="WORK")
    parser.add_argument("--do", choices=WORK, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(_measured(asked.do)))
        return
    if asked.output is None:
        parser.error("--output FILE.json is missing")
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {}
    about: dict[str, Any] = {}
    turns: list[tuple[str, str, str]] = [*product(asked.work, asked.company, asked.settings)]
    for work, company, setting in turns * asked.rounds:
        with beside(COMPANY[company]):
            answer = _in_a_process(work, SETTINGS[setting])
        about = answer["machine"]
        seconds.setdefault(work, {}).setdefault(company, {}).setdefault(setting, []).append(answer["seconds"])
    replace_files({asked.output: json.dumps({"machine": about, "seconds": seconds}, indent=1).encode()})
    print_table(seconds)


def print_table(seconds: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """A row for each work and company: the median seconds of every setting."""
    settings = list(next(iter(next(iter(seconds.values())).values())))
    table = Table("work", "beside", *settings)
    for work, by_company in seconds.items():
        for company, by_setting in by_company.items():
            table.add_row(work, company, *(f"{statistics.median(by_setting[setting]):.2f}" for setting in settings))
        table.add_section()
    Console().print(table)


@contextmanager
def beside(shares: tuple[float, ...]) -> Iterator[None]:
    """Programs that take these shares of a core each, while the block runs."""
    code = (
        "import sys, time\nshare, period = map(float, sys.argv[1:])\n"
        "while True:\n began = time.perf_counter()\n"
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
    """The seconds of one piece of work, done once before for warming up, and the machine."""
    import torch

    from ceit.inference.device import machine

    do = {"digits": _digits, "train_32": _train_32, "train_224": _train_224}.get(work)
    if do is None:
        do = {"predict_224": _predict_224, "evaluate_32": _evaluate_32}[work]
    return {"seconds": do(), "machine": machine(torch.device("cpu"))}


def _timed(do: Callable[[], object]) -> float:
    do()
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _digits() -> float:
    """The demo's recipe on the digits, which takes the smallest kernels: four epochs, validation included."""
    import ceit_cli

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with redirect_stdout(sys.stderr):
            code = ceit_cli.main(["train", "--recipe=demo", "--data=digits", "--epochs=4", f"--output={run}"])
        assert code == ceit_cli.DONE
        return json.loads((run / "test.json").read_text(encoding="utf-8"))["train_seconds"]


def _train_32() -> float:
    return _steps("ceit_nano_patch4_32", 32, 256, 4)


def _train_224() -> float:
    return _steps("ceit_tiny_patch16_224", 224, 16, 4)


def _steps(name: str, side: int, batch: int, count: int) -> float:
    import torch

    from ceit.bench.training import training_step
    from ceit.inference.memory import keep_freed_memory
    from ceit.weights import create_model

    keep_freed_memory()
    torch.manual_seed(0)
    step = training_step(create_model(name, num_classes=10), bf16=True, fused=True)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    return _timed(lambda: [step(images, labels) for _ in range(count)])


def _predict_224() -> float:
    import numpy as np

    from ceit.inference.memory import keep_freed_memory
    from ceit.inference.predictor import Predictor
    from ceit.weights import create_model

    keep_freed_memory()
    predictor = Predictor.from_model(create_model("ceit_tiny_patch16_224", num_classes=10), precision="bf16")
    images = list(np.random.default_rng(0).integers(0, 256, (96, 224, 224, 3), dtype=np.uint8))
    return _timed(lambda: predictor.predict(images))


def _evaluate_32() -> float:
    """Batches as ``ceit evaluate`` computes them: by the network that predicts, one batch after the other."""
    import torch

    from ceit.inference.backend import prepare
    from ceit.inference.memory import keep_freed_memory
    from ceit.weights import create_model

    keep_freed_memory()
    model = create_model("ceit_nano_patch4_32", num_classes=10)
    network = prepare(model, "eager", "bf16", image_shape=(3, 32, 32))
    images = torch.randn(250, 3, 32, 32)
    return _timed(lambda: [network(images) for _ in range(6)])


if __name__ == "__main__":
    main()
