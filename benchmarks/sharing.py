"""What computing costs beside other programs: ``python -m benchmarks.sharing --output FILE.json``.

The threads of one operation wait for each other, and all of them for one whose core another program holds. Each
setting (what waiting threads do, how many there are, or a number that follows the free cores) does the same work for a
few seconds, in a process of its own, beside each kind of company; the settings take turns, and the medians of several
rounds are reported. The work ``command`` is a whole ``ceit train``, measured by its own ``train_seconds``.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ceit.atomic import replace_files

CORES = os.cpu_count() or 1
SETTINGS: dict[str, dict[str, str]] = {
    "fixed": {"OMP_NUM_THREADS": f"{CORES}"},
    "follows": {},
    "spin 1,000": {"OMP_NUM_THREADS": f"{CORES}", "GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_NUM_THREADS": f"{CORES}", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""What is in the environment of each. A number of threads that is set there stays; without, it follows."""

COMPANY: dict[str, tuple[float, ...]] = {
    "quiet": (),
    "half a core": (0.5,),
    "one core": (1.0,),
    "all cores": (1.0,) * CORES,
}
"""The shares of a core that the programs beside take."""
SECOND_RUN = "a second run"  # the company of the command: the same command, started with it

Seconds = dict[str, dict[str, dict[str, list[float]]]]
"""By work, company and setting: seconds a step, or of the command, of every round."""

COMMAND = "command"
WORK = (COMMAND, "digits", "train_32", "train_224", "predict_224", "evaluate_32")
_NEVER_FOLLOWS = "predict_224"  # each of its threads computes images of its own
TRAINING = (sys.executable, "-m", "ceit", "train", "--recipe", "demo", "--data", "digits", "--epochs", "10")
_PERIOD_SECONDS = 0.02


def main() -> None:
    """Measure and write the result, or do one piece of work and print its seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description="What company costs.")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), metavar="WORK")
    parser.add_argument("--company", nargs="+", choices=[*COMPANY, SECOND_RUN], default=None, metavar="COMPANY")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn of steps; default: %(default)s")
    parser.add_argument("--do", choices=WORK, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(_measured(asked.do, asked.seconds)))
        return
    if asked.output is None:
        parser.error("--output FILE.json is missing")
    seconds: Seconds = {}
    for work, company, setting in turns(asked.work, asked.company, asked.setting) * asked.rounds:
        if work == COMMAND:
            found, machine = _of_command(company, SETTINGS[setting])
        else:
            found, machine = _of_steps(work, company, SETTINGS[setting], asked.seconds)
        seconds.setdefault(work, {}).setdefault(company, {}).setdefault(setting, []).extend(found)
        document = {"machine": machine, "seconds_a_turn_of_steps": asked.seconds, "seconds": seconds}
        replace_files({asked.output: json.dumps(document, indent=1).encode()})
    print_table(seconds)


def turns(works: list[str], companies: list[str] | None, settings: list[str]) -> list[tuple[str, str, str]]:
    """Work, company and setting, in the order in which they are measured."""
    return [
        (work, company, setting)
        for work in works
        for company in companies or [*COMPANY, SECOND_RUN]
        for setting in settings
        if (company != SECOND_RUN or work == COMMAND) and (work != _NEVER_FOLLOWS or setting != "follows")
    ]


def print_table(seconds: Seconds) -> None:
    """A row for each work and company: the median seconds of a step, or of the command, with every setting."""
    table = Table("seconds", "beside", *SETTINGS)
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


def _of_steps(work: str, company: str, setting: dict[str, str], seconds: float) -> tuple[list[float], dict[str, Any]]:
    """Seconds of a step, and the machine."""
    command = [sys.executable, "-m", "benchmarks.sharing", "--do", work, "--seconds", f"{seconds}"]
    with beside(COMPANY[company]):
        done = subprocess.run(command, env=_environment(setting), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return [answer["seconds"]], answer["machine"]


def _of_command(company: str, setting: dict[str, str]) -> tuple[list[float], dict[str, Any]]:
    """Training seconds of a command, or of two that are started together, and the machine."""
    shares, runs = ((), 2) if company == SECOND_RUN else (COMPANY[company], 1)
    with tempfile.TemporaryDirectory() as folder, beside(shares):
        outputs = [Path(folder, f"{run}") for run in range(runs)]
        started = [
            subprocess.Popen(
                [*TRAINING, "--output", output],
                env=_environment(setting),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for output in outputs
        ]
        if any([process.wait() for process in started]):
            raise RuntimeError(f"{' '.join(TRAINING)} failed beside {company}")
        reports = [json.loads((output / "test.json").read_text(encoding="utf-8")) for output in outputs]
    return [report["train_seconds"] for report in reports], reports[0]["machine"]


def _environment(setting: dict[str, str]) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name: value for name, value in os.environ.items() if name not in names} | setting


def _measured(work: str, least_seconds: float) -> dict[str, Any]:
    """The seconds that a step of the work takes, and the machine."""
    import torch

    from ceit.inference.cores import sharing_cores
    from ceit.inference.device import machine
    from ceit.inference.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    with sharing_cores(True) as cores:
        step = _STEPS[work]()
        step()
        steps, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < least_seconds:
            if cores is not None:
                cores.follow()
            step()
            steps += 1
    return {"seconds": seconds / steps, "machine": machine(torch.device("cpu"))}


def _training(name: str, side: int, channels: int, batch: int) -> Callable[[], object]:
    import torch

    from ceit.bench.backends import training_step
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
