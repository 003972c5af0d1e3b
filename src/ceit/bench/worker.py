"""The process that one arm is measured in: it does what its parent asks for, one JSON line each, and sleeps between.

An own process for each arm, because threads of one library spin for a while after their work and would disturb another
library measured next in the same process.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ceit.bench import arms, backends, gemm
from ceit.inference.memory import keep_freed_memory

FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError)
FAILURES += (OSError, RuntimeError, TypeError, ValueError)
"""What models and runtimes raise: the sentence of a row. Anything else ends the process, and its last line is it."""

_CALIBRATION_IMAGES = 8  # speed does not depend on what int8 is calibrated with


class Worker:
    """Answers requests; each public method is one, its keywords the request's further fields."""

    def __init__(self, threads: int, keep_memory: bool) -> None:
        if keep_memory:
            keep_freed_memory()
        torch.set_num_threads(threads)
        self.threads = threads
        self.model: Any = None
        self.shape: tuple[int, int, int] = (3, 224, 224)
        self.arm: Any = None
        self.calls: dict[tuple[Any, ...], Callable[[], object]] = {}

    def build(self, arm: dict[str, Any]) -> dict[str, Any]:
        """Build the arm's module; what it is."""
        self.arm = arms.Arm.from_dict(arm)
        self.model = arms.build(self.arm.model)
        self.shape = arms.image_shape(self.arm.model, self.model)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"parameters": parameters, "image_shape": self.shape}

    def macs(self, kind: str) -> dict[str, int]:
        """MACs for one image: of a forward pass for ``inference``, of forward and backward for ``train``."""
        count = {"inference": arms.inference_macs, "train": arms.training_macs}[kind]
        return {"macs": count(self.model, self.shape)}

    def inference(self, batch: int, seconds: float, least: int) -> dict[str, Any]:
        """Seconds of each forward pass."""
        return self._timed(("inference", batch), lambda: self._inference(batch), seconds, least)

    def train(self, batch: int, seconds: float, least: int) -> dict[str, Any]:
        """Seconds of each training step."""
        return self._timed(("train", batch), lambda: self._training(batch), seconds, least)

    def products(self, library: str, precision: str) -> dict[str, Any]:
        """What the library multiplies matrices with in that precision, by name."""
        return {"names": list(gemm.products(library, precision, 32, self.threads))}

    def multiply(
        self, library: str, product: str, precision: str, size: int, seconds: float, least: int
    ) -> dict[str, Any]:
        """Seconds of each matrix product."""
        key = product, precision, size
        return self._timed(key, lambda: gemm.products(library, precision, size, self.threads)[product], seconds, least)

    def save(self, folder: str) -> dict[str, Any]:
        """Write what the arm needs at run time; the file to load, and the bytes of all that was written."""
        path = backends.save(
            self.model, self.arm.backend, self.arm.precision, self.shape, Path(folder), self._calibration()
        )
        return {"file": str(path), "bytes": sum(file.stat().st_size for file in Path(folder).iterdir())}

    def first(self, arm: dict[str, Any], file: str, image_shape: Any, batch: int) -> dict[str, Any]:
        """From a saved file to the first logits, and memory: the most that the process held up to the end of three
        batches, and what a batch takes for itself beyond what the process holds between batches."""
        network = backends.load(Path(file), arms.Arm.from_dict(arm), tuple(image_shape), batch, self.threads)
        images = torch.randn(batch, *image_shape)
        with torch.inference_mode():
            network(images)
        arrived = time.time()
        before, resting = _of_status("VmHWM"), _of_status("VmRSS")
        with contextlib.suppress(OSError):  # let the peak begin anew; where that fails it stays the whole process's
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        with torch.inference_mode():
            for _ in range(2):
                network(images)
        running = _of_status("VmHWM")
        if before is None or resting is None or running is None:
            return {"arrived": arrived, "peak_bytes": None, "batch_bytes": None}
        return {"arrived": arrived, "peak_bytes": max(before, running), "batch_bytes": running - resting}

    def memory(self) -> dict[str, Any]:
        """Resident memory now and at its highest since the process began."""
        return {"resident_bytes": _of_status("VmRSS"), "peak_bytes": _of_status("VmHWM")}

    def _timed(
        self, key: tuple[Any, ...], make: Callable[[], Callable[[], object]], seconds: float, least: int
    ) -> dict[str, Any]:
        if key not in self.calls:
            self.calls[key] = make()
            timed(self.calls[key], seconds / 2, 2)  # warm-up
        return {"seconds": timed(self.calls[key], seconds, least)}

    def _inference(self, batch: int) -> Callable[[], object]:
        options = {"image_shape": self.shape, "batch_size": batch, "threads": self.threads}
        calibration = self._calibration()
        network = backends.network_of(
            self.model, self.arm.backend, self.arm.precision, **options, calibration=calibration
        )
        images = torch.randn(batch, *self.shape)

        def call() -> object:
            with torch.inference_mode():
                return network(images)

        return call

    def _training(self, batch: int) -> Callable[[], object]:
        backend, bf16 = self.arm.backend, self.arm.precision == "bf16"
        images = torch.randn(batch, *self.shape)
        with torch.no_grad():
            classes = self.model.eval()(images[:1]).shape[1]  # any module's: it need not tell
        step = backends.training_step(self.model, bf16=bf16, compiled=backend == "compile", fused=backend != "plain")
        labels = torch.randint(0, classes, (batch,))
        return lambda: step(images, labels)

    def _calibration(self) -> Any:
        if "int8" not in self.arm.precision:
            return None
        return torch.randn(_CALIBRATION_IMAGES, *self.shape, generator=torch.Generator().manual_seed(0))


def timed(call: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Seconds of each call after one untimed, for at least that long in all and that often."""
    call()
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _of_status(field: str) -> int | None:
    """Bytes that this process holds (``VmRSS``) or held at most (``VmHWM``); None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
    return next((1024 * int(words[1]) for words in lines if words[0] == f"{field}:"), None)


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.partition('.')[0]} is not installed"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


def main() -> None:
    """Answer on what was stdout until stdin ends; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as answers:
        os.dup2(2, 1)
        worker: Worker | None = None
        for line in sys.stdin:
            request: dict[str, Any] = json.loads(line)
            try:
                do = request.pop("do")
                if do == "begin":
                    worker = Worker(**request)
                    answer: Any = {}
                else:
                    answer = getattr(worker, do)(**request)
            except FAILURES as error:
                answer = {"error": sentence(error)}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
