"""All that a GPU can show, in one command: ``python -m benchmarks.gpu --output FILE.json``.

The parts are measured in order of worth until the time is up, and each is saved at once. What no time was left for, or
failed, is named; the same command goes on with it. See ``turns`` for how rates are measured.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.checks import facts, host_reads, parity
from benchmarks.gpu.feeding import loader
from benchmarks.gpu.learning import learning
from benchmarks.gpu.turns import INFERENCE, INFERENCE_COMPILED, TRAIN, TRAIN_COMPILED, Setting, measured
from ceit.atomic import replace_files
from ceit.bench.arms import ModelSpec, require_known
from ceit.inference.device import default_device, machine
from ceit.messages import Say

SIZES = ("small", "tiny", "base")
MODELS = tuple(f"{family}_{size}_patch16_224" for size in SIZES for family in ("ceit", "deit"))
LEARN = ("ceit_tiny_patch16_224", "deit_tiny_patch16_224")
FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError)
FAULTS += (OSError, RuntimeError, TypeError, ValueError)
"""What a driver, a compiler or a library that nobody has tried here may raise: the other parts go on."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the measurement: its name, about how many seconds it takes on a GPU, and how it is measured.

    ``measure`` gets the setting and the seconds that are left.
    """

    name: str
    seconds: float
    measure: Callable[[Setting, float], Found]
    needs_cuda: bool = False


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing in the file, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.json", help="new, or what is to be gone on with")
    add("--minutes", type=float, default=12.0, metavar="M", help="for all; default: %(default)s")
    add(
        "--models", nargs="+", default=MODELS, metavar="M", help="in pairs, the first ones decide; default: %(default)s"
    )
    add("--learn", nargs="+", default=LEARN, metavar="M", help="learn CIFAR-10, enlarged; default: %(default)s")
    add("--learn-minutes", type=float, default=5.0, metavar="M", help="at most, each; default: %(default)s")
    add("--batch-size", type=int, default=256, metavar="N", help="default: %(default)s")
    add("--batch-sizes", type=int, nargs="+", default=(64, 128, 512), metavar="N", help="others; default: %(default)s")
    add("--product", type=int, default=8192, metavar="N", help="side of the peak's matrices; default: %(default)s")
    add("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--seconds", type=float, default=0.4, metavar="S", help="least of a turn; default: %(default)s")
    add("--device", type=torch.device, default=default_device(), help="default: %(default)s")
    asked = parser.parse_args(arguments)
    for name in ("minutes", "learn_minutes", "batch_size", "product", "rounds", "seconds"):
        if getattr(asked, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(asked, name):g} must be positive")
    for model in [*asked.models, *asked.learn]:
        require_known(ModelSpec(model))
    setting = Setting(
        device=asked.device,
        models=tuple(asked.models),
        learn=tuple(asked.learn),
        batch_size=asked.batch_size,
        batch_sizes=tuple(asked.batch_sizes),
        product=asked.product,
        rounds=asked.rounds,
        turn_seconds=asked.seconds,
    )
    document = begun_or_new(asked.output, setting)

    def save() -> None:
        replace_files({asked.output: (json.dumps(document, indent=1) + "\n").encode()})

    measure(parts_of(setting, 60 * asked.learn_minutes), setting, document, 60 * asked.minutes, _say, save)
    print("\n".join(table(document)))


def parts_of(setting: Setting, learn_seconds: float) -> list[Part]:
    """What there is to measure, the most worth first: in the first five minutes what an H100 or H200 has to show."""
    models, batch = setting.models, setting.batch_size
    pairs = [models[start : start + 2] for start in range(0, len(models), 2)]

    def rates(kind: str, seconds: float, models: tuple[str, ...]) -> Part:
        arms = [(kind, model, batch) for model in models]
        return Part(f"{kind}: {', '.join(models)}", seconds, lambda setting, _: measured(setting, arms))

    def sizes(setting: Setting, _seconds: float) -> Found:
        asked = [(TRAIN_COMPILED, models[0], size) for size in setting.batch_sizes]
        return {"by_batch_size": [measured(setting, [arm])["arms"][0] | {"batch_size": arm[2]} for arm in asked]}

    return [
        Part("facts", 5, facts),
        rates(TRAIN_COMPILED, 150, pairs[0]),
        Part("loader", 130, loader),
        Part("host reads", 20, host_reads, needs_cuda=True),
        rates(TRAIN, 15, pairs[0]),
        Part("parity", 120, parity, needs_cuda=True),
        *(rates(TRAIN_COMPILED, 150, pair) for pair in pairs[1:]),
        *(rates(TRAIN, 15, pair) for pair in pairs[1:]),
        rates(INFERENCE, 30, models),
        rates(INFERENCE_COMPILED, 90, pairs[0]),
        Part("batch sizes", 60 * len(setting.batch_sizes), sizes),
        Part("learning", 180, partial(learning, most_seconds=learn_seconds)),
    ]


def begun_or_new(output: Path, setting: Setting) -> Found:
    """The result so far, or an empty one. Raises: ValueError for a result of something else."""
    here: Found = {"machine": machine(setting.device), "setting": setting.as_dict()}
    if not output.exists():
        named = {"batch_size": setting.batch_size, "rounds": setting.rounds, "turn_seconds": setting.turn_seconds}
        return {**here, **named, "arms": [], "parts": {}, "failed": {}, "left_out": {}}
    found = json.loads(output.read_text(encoding="utf-8"))
    for what, value in here.items():
        if found.get(what) != value:
            raise ValueError(f"{output} is of another {what}: name another --output")
    return found


def measure(
    parts: list[Part], setting: Setting, document: Found, seconds: float, say: Say, save: Callable[[], None]
) -> None:
    """Every part that is not in the document yet, while the time lasts; ``save`` is called after each."""
    ends = time.monotonic() + seconds
    document["left_out"], document["failed"] = {}, {}
    for part in parts:
        left = ends - time.monotonic()
        if part.name in document["parts"]:
            continue
        if part.needs_cuda and setting.device.type != "cuda":
            document["left_out"][part.name] = f"needs a CUDA device, not {setting.device.type}"
        elif left < part.seconds:
            document["left_out"][part.name] = f"takes about {part.seconds:.0f} s, and {max(0, left):.0f} s were left"
        else:
            say(f"{part.name}, {left:.0f} s are left")
            try:
                _add(document, part.name, _taken(part, setting, left))
            except FAULTS as error:
                document["failed"][part.name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if (fault := document["failed"].get(part.name) or document["left_out"].get(part.name)) is not None:
            say(f"{part.name}: {fault}")
        save()


def _taken(part: Part, setting: Setting, left: float) -> Found:
    """A part's figures and its seconds; what the one before has left on the device and compiled is gone."""
    torch._dynamo.reset()
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    began = time.perf_counter()
    found = part.measure(setting, left)
    return found | {"took_seconds": round(time.perf_counter() - began, 1)}


def _add(document: Found, name: str, found: Found) -> None:
    """Arms of all parts are in one list, and all rounds of the peak; percentages are of the peak of their own part."""
    document["arms"] += found.pop("arms", [])
    if (peak := found.pop("peak", None)) is not None:
        seconds = document.get("peak", {"seconds": []})["seconds"] + peak["seconds"]
        document["peak"] = {
            "size": peak["size"],
            "seconds": seconds,
            "tflops": round(2 * peak["size"] ** 3 / median(seconds) / 1e12, 3),
        }
    document["parts"][name] = found


def table(document: Found) -> Iterator[str]:
    """Rates as Markdown, then all else in a line each."""
    yield "| model | | batch | images/s | of peak | GB of a batch | compiled in, s | graphs |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in document["arms"] + document["parts"].get("batch sizes", {}).get("by_batch_size", []):
        memory = f"{row['batch_bytes'] / 1e9:.1f}" if "batch_bytes" in row else "-"
        yield (
            f"| `{row['model']}` | {row['kind']} | {row.get('batch_size', document['batch_size'])} "
            f"| {row['images_per_second']:,.0f} | {row['percent_of_peak']:.0f} % | {memory} "
            f"| {row.get('compile_seconds', '-')} | {row.get('graphs', '-')} |"
        )
    yield ""
    for name, found in document["parts"].items():
        yield f"{name}: {json.dumps({key: value for key, value in found.items() if key != 'by_batch_size'})}"
    for kind in ("failed", "left_out"):
        for name, reason in document[kind].items():
            yield f"{name} {kind.replace('_', ' ')}: {reason}"


def _say(message: object) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
