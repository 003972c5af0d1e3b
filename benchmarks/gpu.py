"""Training and inference on a GPU: ``python -m benchmarks.gpu --output FILE.json``.

All arms live in one process and take turns, A B A B, in several rounds; a turn is as many calls as fill its time, and
the wait for them. The peak is that of a large matrix product in bf16, which has its turn in every round too. Weights
are random and images lie on the device: this is what the network costs, not the loader.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from ceit.atomic import replace_files
from ceit.bench import arms
from ceit.bench.arms import ModelSpec, require_known
from ceit.bench.backends import training_step
from ceit.inference.backend import prepare
from ceit.inference.device import default_device, machine

MODELS = tuple(f"{family}_{size}_patch16_224" for size in ("tiny", "small", "base") for family in ("ceit", "deit"))


@dataclass
class Turns:
    """One arm: what it is, how to compute a batch once, the operations of that, and the seconds of a call by round."""

    row: dict[str, Any]
    call: Callable[[], object]
    flops: int
    seconds: list[float] = field(default_factory=list)

    def warm_up(self, seconds: float, device: torch.device) -> None:
        """A turn that does not count, which also compiles; on a GPU the most memory that a batch takes is kept."""
        self.call()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.take(seconds, device)
        self.seconds.clear()
        if device.type == "cuda":
            self.row["batch_bytes"] = torch.cuda.max_memory_allocated(device) - before

    def take(self, seconds: float, device: torch.device) -> None:
        """One round's turn: calls that double in number until they have taken that long."""
        _wait(device)
        began, calls, took = time.perf_counter(), 0, 0.0
        while took < seconds:
            for _ in range(max(1, calls)):
                self.call()
            calls += max(1, calls)
            _wait(device)
            took = time.perf_counter() - began
        self.seconds.append(took / calls)


def _wait(device: torch.device) -> None:
    """Until the device has computed all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="M", help="default: %(default)s")
    parser.add_argument("--compiled", nargs="*", default=[], metavar="M", help="compiled training steps of these too")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--product", type=int, default=8192, metavar="N", help="side of the peak's matrices")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.4, metavar="S", help="least of a turn; default: %(default)s")
    parser.add_argument("--device", type=torch.device, default=default_device(), help="default: %(default)s")
    asked = parser.parse_args()
    for name in ("batch_size", "product", "rounds"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(asked, name)} must be at least 1")
    if asked.seconds <= 0:
        parser.error(f"--seconds {asked.seconds:g} must be positive")
    for model in [*asked.models, *asked.compiled]:
        require_known(ModelSpec(model))
    messages = Console(stderr=True, highlight=False)

    def save(result: dict[str, Any]) -> None:
        replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})

    measure(asked, lambda text: messages.print(text, style="dim"), save)


def measure(asked: argparse.Namespace, say: Callable[[str], None], save: Callable[[dict[str, Any]], None]) -> None:
    """Every arm's images a second, operations a second and memory; ``save`` gets them after every round."""
    device = asked.device
    turns = [_peak(asked.product, device)]
    for kind, model in _wanted(asked):
        say(f"{kind}: {model}")
        turns.append(_arm(kind, model, asked.batch_size, device))
        turns[-1].warm_up(asked.seconds, device)
    turns[0].warm_up(asked.seconds, device)
    for number in range(asked.rounds):
        say(f"round {number + 1} of {asked.rounds}")
        for turn in turns:
            turn.take(asked.seconds, device)
        save(_result(turns, asked))


def _result(turns: list[Turns], asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of the rounds so far; the first of ``turns`` is the peak."""
    product, *others = turns
    peak = product.flops / median(product.seconds)
    rows: list[dict[str, Any]] = []
    for turn in others:
        seconds = median(turn.seconds)
        found = {
            "seconds": turn.seconds,
            "images_per_second": round(asked.batch_size / seconds, 1),
            "tflops": round(turn.flops / seconds / 1e12, 3),
            "percent_of_peak": round(100 * turn.flops / seconds / peak, 2),
        }
        rows.append(turn.row | found)
    return {
        "machine": machine(asked.device),
        "batch_size": asked.batch_size,
        "turn_seconds": asked.seconds,
        "peak": {"size": asked.product, "seconds": product.seconds, "tflops": round(peak / 1e12, 3)},
        "arms": rows,
    }


def _wanted(asked: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for kind, models in (("train", asked.models), ("train, compiled", asked.compiled), ("inference", asked.models)):
        yield from ((kind, model) for model in models)


def _arm(kind: str, name: str, batch: int, device: torch.device) -> Turns:
    """A model in bf16: autocast in training, weights too in inference, as the package's commands compute."""
    spec = ModelSpec(name)
    model = arms.build(spec)
    shape = arms.image_shape(spec, model)
    images = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
    row = {"model": name, "kind": kind, "precision": "bf16"}
    if kind == "inference":
        flops = 2 * arms.inference_macs(model, shape) * batch
        network = prepare(model.to(device), "eager", "bf16", image_shape=shape, batch_size=batch)
        return Turns(row, lambda: network(images), flops)
    flops = 2 * arms.training_macs(model, shape) * batch
    labels = torch.randint(0, getattr(model, "num_classes", 1000), (batch,), device=device)
    step = training_step(model.to(device), bf16=True, compiled=kind == "train, compiled", fused=True)
    return Turns(row, lambda: step(images, labels), flops)


def _peak(size: int, device: torch.device) -> Turns:
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return Turns({}, lambda: left @ right, 2 * size**3)


if __name__ == "__main__":
    main()
