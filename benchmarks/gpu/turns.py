"""Arms in one process that take turns, A B A B, in several rounds; a turn is as many calls as fill its time.

The peak is that of a large matrix product in bf16, which has its turn in every round too. Weights are random and images
lie on the device: this is what the network costs, not the loader.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch._dynamo.utils import counters

from ceit.bench import arms
from ceit.bench.arms import ModelSpec
from ceit.bench.backends import training_step
from ceit.inference.backend import prepare

TRAIN, TRAIN_COMPILED, INFERENCE, INFERENCE_COMPILED = KINDS = (
    "train",
    "train, compiled",
    "inference",
    "inference, compiled",
)


@dataclass(frozen=True)
class Setting:
    """What is measured, and where: a result goes on only with the same setting."""

    device: torch.device
    models: tuple[str, ...]
    learn: tuple[str, ...]
    batch_size: int
    batch_sizes: tuple[int, ...]
    product: int
    rounds: int
    turn_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        listed = {name: list(getattr(self, name)) for name in ("models", "learn", "batch_sizes")}
        return {**vars(self), "device": self.device.type, **listed}


@dataclass
class Turns:
    """One arm: what it is, how to compute a batch once, the operations of that, and the seconds of a call by round."""

    row: dict[str, Any]
    call: Callable[[], object]
    flops: int
    batch: int
    seconds: list[float] = field(default_factory=list)

    def warm_up(self, seconds: float, device: torch.device) -> None:
        """A turn that does not count, which also compiles; on a GPU the most memory that a batch takes is kept."""
        counters.clear()
        began = time.perf_counter()
        self.call()
        wait_for(device)
        if "compiled" in self.row["kind"]:
            self.row["compile_seconds"] = round(time.perf_counter() - began, 1)
            self.row["graphs"] = graphs()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.take(seconds, device)
        self.seconds.clear()
        if device.type == "cuda":
            self.row["batch_bytes"] = torch.cuda.max_memory_allocated(device) - before

    def take(self, seconds: float, device: torch.device) -> None:
        """One round's turn: calls that double in number until they have taken that long."""
        wait_for(device)
        began, calls, took = time.perf_counter(), 0, 0.0
        while took < seconds:
            for _ in range(max(1, calls)):
                self.call()
            calls += max(1, calls)
            wait_for(device)
            took = time.perf_counter() - began
        self.seconds.append(took / calls)

    def as_dict(self, peak: float) -> dict[str, Any]:
        """The figures of the rounds, beside a peak in operations a second."""
        rate = self.flops / median(self.seconds)
        return self.row | {
            "seconds": self.seconds,
            "images_per_second": round(self.batch / median(self.seconds), 1),
            "tflops": round(rate / 1e12, 3),
            "percent_of_peak": round(100 * rate / peak, 2),
        }


def measured(setting: Setting, asked: list[tuple[str, str, int]]) -> dict[str, Any]:
    """``(kind, model, batch)`` each, in turns with the peak: rows for ``arms``, and the peak."""
    device, seconds = setting.device, setting.turn_seconds
    product = _peak(setting.product, device)
    turns = [product, *(_arm(*arm, device) for arm in asked)]
    for turn in turns:
        turn.warm_up(seconds, device)
    compiled = sum(turn.row.get("graphs", 0) for turn in turns)
    counters.clear()
    for _ in range(setting.rounds):
        for turn in turns:
            turn.take(seconds, device)
    peak = product.flops / median(product.seconds)
    found = {"peak": {"size": setting.product, "seconds": product.seconds, "tflops": round(peak / 1e12, 3)}}
    anew = {"graphs_compiled_anew": graphs()} if compiled else {}
    return found | {"arms": [turn.as_dict(peak) for turn in turns[1:]]} | anew


def graphs() -> int:
    """Graphs that were compiled since the counters were cleared."""
    return counters["stats"]["unique_graphs"]


def wait_for(device: torch.device) -> None:
    """Until the device has computed all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _arm(kind: str, name: str, batch: int, device: torch.device) -> Turns:
    """A model in bf16: autocast in training, weights too in inference, as the package's commands compute."""
    spec = ModelSpec(name)
    model = arms.build(spec)
    shape = arms.image_shape(spec, model)
    images = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
    row = {"model": name, "kind": kind, "precision": "bf16"}
    if kind in (INFERENCE, INFERENCE_COMPILED):
        flops = 2 * arms.inference_macs(model, shape) * batch
        backend = "compile" if kind == INFERENCE_COMPILED else "eager"
        network = prepare(model.to(device), backend, "bf16", image_shape=shape, batch_size=batch)
        return Turns(row, lambda: network(images), flops, batch)
    flops = 2 * arms.training_macs(model, shape) * batch
    labels = torch.randint(0, getattr(model, "num_classes", 1000), (batch,), device=device)
    step = training_step(model.to(device), bf16=True, compiled=kind == TRAIN_COMPILED, fused=True)
    return Turns(row, lambda: step(images, labels), flops, batch)


def _peak(size: int, device: torch.device) -> Turns:
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return Turns({"kind": "peak"}, lambda: left @ right, 2 * size**3, 1)
