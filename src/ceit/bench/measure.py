"""Speed of models side by side, in one interleaved run: what ``ceit benchmark`` measures.

Every arm lives in a process of its own. At each batch size there are several rounds, and a round gives every arm one
turn, one after the other, A B A B, while all others sleep; the matrix products whose rate is the peak have their turns
in every round too. So whatever else the machine does falls on all of them alike. Reported are medians over all calls.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ceit.bench.arms import Arm
from ceit.bench.backends import PLAIN, TRAINABLE
from ceit.bench.gemm import LIBRARIES, PRECISIONS, SIZES
from ceit.bench.processes import THREAD_VARIABLES, ArmError, Memory, Process
from ceit.bench.summary import summarise
from ceit.inference.device import machine

MEASURES = ("inference", "train", "deployment")
PACKAGES = ("timm", "numpy", "onnx", "onnxruntime", "openvino", "nncf")
VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "THP_", "MALLOC_")
STARTS = 3  # of a fresh process, to measure how long it takes
SETTLE_SECONDS = 0.2  # between turns, for the threads of the one before to fall asleep

Say = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How to measure; ``turn_seconds`` is the least that an arm computes in one turn, ``least_calls`` how often."""

    threads: int
    measures: tuple[str, ...] = ("inference",)
    batch_sizes: tuple[int, ...] = (1, 8, 16, 64)
    train_batch_size: int | None = None  # by default 16, of small images 128
    rounds: int = 5
    turn_seconds: float = 1.0
    least_calls: int = 3
    gemm_sizes: tuple[int, ...] = SIZES
    freed_memory: Memory | None = None  # by default each arm's own way

    def memory(self, backend: str | None = None) -> Memory:
        """What a process does with memory that is freed: the package's own arms keep it, as its commands do;
        ``plain`` ones leave it to the allocator as a process has it that sets nothing."""
        return self.freed_memory or ("default" if backend == PLAIN else "kept")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; every batch size has a network prepared for it, and of the products each tells its own size."""
        return {key: value for key, value in asdict(self).items() if key != "gemm_sizes"} | {"static_batch": True}


@dataclass
class _Turn:
    """What one process is asked in every round; ``found`` gets the seconds, ``row`` what goes wrong."""

    name: str
    process: Process
    request: dict[str, Any]
    found: dict[str, Any]
    row: dict[str, Any]
    failed: bool = False

    def take(self, seconds: float, least: int, *, counts: bool = True) -> None:
        """One round's calls; one that does not count warms up."""
        if self.failed:
            return
        time.sleep(SETTLE_SECONDS)
        try:
            answer = self.process.ask(**self.request, seconds=seconds, least=least)
        except ArmError as error:
            self.failed = True
            self.row["errors"].append(f"{self.name}: {error}")
            return
        if counts:
            self.found["seconds"].append(answer["seconds"])


def measure(arms: list[Arm], settings: Settings, say: Say, save: Save) -> dict[str, Any]:
    """Every figure of every arm, and the machine. ``say`` hears what is being done; ``save`` gets the result as far as
    it goes, after every round and at the end, and also if the run is interrupted after the first.

    What goes wrong with an arm stands in its ``errors`` and stops no other.
    """
    run = _Run(arms, settings, say, save)
    try:
        if "inference" in settings.measures:
            for batch in settings.batch_sizes:
                run.measure_rounds("inference", batch)
        if "train" in settings.measures:
            run.measure_rounds("train", None)
        if "deployment" in settings.measures:
            run.measure_deployment()
        run.result["complete"] = True
    finally:
        if run.is_kept or (arms and run.result["complete"]):
            run.keep()
        else:
            summarise(run.result)
    return run.result


class _Run:
    """One run of the command: its arms, and the result as it grows."""

    def __init__(self, arms: list[Arm], settings: Settings, say: Say, save: Save) -> None:
        self.arms, self.settings, self.say, self.save = arms, settings, say, save
        self.is_kept = False  # nothing stands in the place of an older result yet
        self.rows: list[dict[str, Any]] = [
            {"model": arm.model.label, **arm.as_dict(), "freed_memory": settings.memory(arm.backend)}
            | {"inference": {}, "train": {}, "deployment": {}, "errors": []}
            for arm in arms
        ]
        self.result: dict[str, Any] = {
            "complete": False,
            "machine": _machine(settings.threads),
            "settings": settings.as_dict(),
            "peak": [],
            "arms": self.rows,
        }

    def keep(self) -> None:
        """Save what has been measured so far."""
        self.is_kept = True
        summarise(self.result)
        self.save(self.result)

    def measure_rounds(self, kind: str, batch: int | None) -> None:
        """All rounds at one batch size; None is every model's usual one in training."""
        settings, heading = self.settings, f"{kind}{f', batch {batch}' if batch else ''}"
        with ExitStack() as processes:
            turns: list[_Turn] = []
            for arm, row in zip(self.arms, self.rows, strict=True):
                if kind == "train" and arm.precision not in TRAINABLE.get(arm.backend, ()):
                    continue
                self.say(f"{heading}: preparing {arm.label}")
                with _errors_into(row):
                    process = processes.enter_context(Process(settings.threads, memory=row["freed_memory"]))
                    row |= process.ask("build", arm=arm.as_dict())
                    row[f"{kind}_macs"] = self._macs(process, kind, arm.label)
                    size = batch or settings.train_batch_size or (128 if max(row["image_shape"][1:]) <= 64 else 16)
                    found = row[kind][str(size)] = {"seconds": []}
                    turns.append(_Turn(f"{kind}, batch {size}", process, {"do": kind, "batch": size}, found, row))
                    turns[-1].take(0.0, 1, counts=False)  # before the next process asks how much memory is free
            products = list(self._product_turns(processes))
            for turn in products:
                turn.take(0.0, 1, counts=False)
            for number in range(settings.rounds):
                self.say(f"{heading}: round {number + 1} of {settings.rounds}")
                for turn in products:
                    turn.take(0.0, 2)
                for turn in turns:
                    turn.take(settings.turn_seconds, settings.least_calls)
                self.keep()
            if kind == "train":
                for turn in turns:
                    if not turn.failed:
                        with _errors_into(turn.row):
                            turn.found |= turn.process.ask("memory")

    def _macs(self, process: Process, kind: str, label: str) -> int | None:
        """Of one image; None where a module of somebody's own cannot be counted, which needs no device for that."""
        try:
            return process.ask("macs", kind=kind)["macs"]
        except ArmError as error:
            self.say(f"{label}: its operations cannot be counted, so its share of the peak is not known: {error}")
            return None

    def measure_deployment(self) -> None:
        """Size of the files, time from the start of a process to the first logits, memory at its highest.

        Every figure is that of a fresh process which begins with the files; starts are interleaved as rounds are.
        """
        threads = self.settings.threads
        with ExitStack() as folders:
            requests: list[tuple[Arm, dict[str, Any], dict[str, Any]]] = []
            for arm, row in zip(self.arms, self.rows, strict=True):
                self.say(f"files: {arm.label}")
                folder = folders.enter_context(TemporaryDirectory())
                with _errors_into(row), Process(threads, memory=row["freed_memory"]) as process:
                    row |= process.ask("build", arm=arm.as_dict())
                    saved = process.ask("save", folder=folder)
                    request = {"arm": arm.as_dict(), "file": saved["file"], "image_shape": row["image_shape"]}
                    requests.append((arm, row, request))
                    row["deployment"] = {"bytes": saved["bytes"], "start_seconds": [], "memory": {}}
            for batch in [1] * STARTS + [size for size in self.settings.batch_sizes if size != 1]:
                for arm, row, request in requests:
                    self.say(f"fresh process: {arm.label}, batch {batch}")
                    with _errors_into(row), Process(threads, memory=row["freed_memory"]) as process:
                        answer = process.ask("first", **request, batch=batch)
                        row["deployment"]["memory"][str(batch)] = {k: answer[k] for k in ("peak_bytes", "batch_bytes")}
                        if batch == 1:
                            row["deployment"]["start_seconds"].append(round(answer["arrived"] - process.started, 4))
                self.keep()

    def _product_turns(self, processes: ExitStack) -> Iterator[_Turn]:
        """The peak of matrix products, library by library: threads of one must not spin under another."""
        for library in LIBRARIES:
            try:
                process = processes.enter_context(Process(self.settings.threads, memory=self.settings.memory()))
                asked = {one: process.ask("products", library=library, precision=one) for one in PRECISIONS}
            except ArmError as error:
                self.say(f"no matrix products of {library}: {error}")
                continue
            for precision, answer in asked.items():
                for name in answer["names"]:
                    for size in self.settings.gemm_sizes:
                        key = {"product": name, "precision": precision, "size": size}
                        found = next((row for row in self.result["peak"] if key.items() <= row.items()), None)
                        if found is None:
                            found = {**key, "seconds": [], "errors": []}
                            self.result["peak"].append(found)
                        request = {"do": "multiply", "library": library, **key}
                        yield _Turn(name, process, request, found, found)


@contextmanager
def _errors_into(row: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except ArmError as error:
        if str(error) not in row["errors"]:
            row["errors"].append(str(error))


def _machine(threads: int) -> dict[str, Any]:
    packages: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        **machine(torch.device("cpu")),
        "threads": threads,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)}
        | dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "load_average_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
