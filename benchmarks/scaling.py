"""How time and memory grow with tokens and with the batch: ``python -m benchmarks.scaling --output FILE.json``.

Each model runs at several image sizes, and at one size with several batches; lines through the logarithms give the
exponents. Memory is what a batch takes for itself, in a fresh process that gives freed memory back: at its highest,
beyond what the process holds between batches.
"""

import argparse
import json
import math
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import correlation, linear_regression
from typing import Any

from rich.console import Console

from ceit.atomic import replace_files
from ceit.bench.arms import Arm, ModelSpec, require_known
from ceit.bench.backends import BACKENDS, PRECISIONS_OF
from ceit.bench.chart import STYLE
from ceit.bench.measure import Settings, measure
from ceit.bench.summary import rounded
from ceit.machine import usable_cores
from ceit.plots import new_figure

MODELS = ("ceit_tiny_patch16_224", "deit_tiny_patch16_224")
SIDES = (112, 160, 224, 288, 352, 416, 512)  # 49 to 1024 tokens of 16 px
BATCHES = (1, 2, 4, 8, 16, 32)
PATCH = 16
_COLOURS = ("#0072B2", "#E69F00", "#00795A", "#C44E00")
_MARKERS = ("o", "s", "^", "D")


def main() -> None:
    """Measure, fit, draw, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="M", help="default: %(default)s")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), metavar="PX", help="multiples of 16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCHES), metavar="N")
    parser.add_argument("--batch-of-sides", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--side-of-batches", type=int, default=224, metavar="PX", help="default: %(default)s")
    parser.add_argument("--backend", choices=BACKENDS, default="eager", help="default: %(default)s")
    parser.add_argument("--precision", default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="least of a turn")
    asked = parser.parse_args()
    if asked.precision not in PRECISIONS_OF[asked.backend]:
        parser.error(f"--precision {asked.precision}: {asked.backend} has {' '.join(PRECISIONS_OF[asked.backend])}")
    for side in [*asked.sides, asked.side_of_batches]:
        if side < PATCH or side % PATCH:
            parser.error(f"image side {side} must be a multiple of {PATCH}")
    if len(set(asked.sides)) < 2 or len(set(asked.batch_sizes)) < 2:
        parser.error("a line needs two points: give two --sides and two --batch-sizes at least")
    for model in asked.models:
        require_known(ModelSpec(model))
    messages = Console(stderr=True, highlight=False)
    result = study(asked, lambda text: messages.print(text, style="dim", soft_wrap=True))
    replace_files({asked.output: (json.dumps(result, indent=1) + "\n").encode()})
    if asked.plot is not None:
        draw(result, asked.plot)
    for variable, models in result["fits"].items():
        for model, fits in models.items():
            exponents = ", ".join(f"{name} ^{fit['exponent']:.2f}" for name, fit in fits.items())
            messages.print(f"{model}, over {variable}: {exponents}", soft_wrap=True)


def study(asked: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Both sweeps, each an interleaved run of its own: points, fits, and all that was measured."""
    sweeps = {
        "tokens": (sorted(set(asked.sides)), (asked.batch_of_sides,)),
        "batch": ([asked.side_of_batches], tuple(sorted(set(asked.batch_sizes)))),
    }
    points: dict[str, list[dict[str, Any]]] = {}
    runs: dict[str, Any] = {}
    for variable, (sides, batches) in sweeps.items():
        arms = [
            Arm(ModelSpec(m, img_size=side), asked.backend, asked.precision) for side in sides for m in asked.models
        ]
        time = Settings(
            threads=asked.threads,
            measures=("inference",),
            batch_sizes=batches,
            rounds=asked.rounds,
            turn_seconds=asked.seconds,
            gemm_sizes=(),
        )
        memory = replace(time, measures=("deployment",), freed_memory="returned")
        timed, held = (measure(arms, settings, say, lambda _: None) for settings in (time, memory))
        runs[variable] = {"time": timed, "memory": held}
        rows = zip(timed["arms"], held["arms"], strict=True)
        points[variable] = [point for both in rows for point in _points(*both)]
    fits = {
        variable: {model: _fits(variable, [p for p in found if p["model"] == model]) for model in asked.models}
        for variable, found in points.items()
    }
    return {"machine": runs["tokens"]["time"]["machine"], "points": points, "fits": fits, "runs": runs}


def _points(row: dict[str, Any], held: dict[str, Any]) -> list[dict[str, Any]]:
    errors = [*row["errors"], *held["errors"]]
    if errors:
        raise ValueError(f"{row['model']} at {row['subject']['img_size']} px: {errors[0]}")
    height, width = row["image_shape"][1:]
    found = []
    for batch, timing in row["inference"].items():
        found.append(
            {
                "model": row["model"],
                "image_hw": [height, width],
                "tokens": prod((height // PATCH, width // PATCH)),
                "batch": int(batch),
                "seconds": timing["milliseconds"]["median"] / 1000,
                "bytes": held["deployment"]["memory"][batch]["batch_bytes"],
            }
        )
    return found


def _fits(variable: str, points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    fits = {}
    for name in ("seconds", "bytes"):
        usable = [point for point in points if point[name]]
        if len({point[variable] for point in usable}) > 1:
            fits[name] = exponent([point[variable] for point in usable], [point[name] for point in usable])
    return fits


def exponent(x: list[float], y: list[float]) -> dict[str, float]:
    """``y = factor * x ** exponent`` by least squares of the logarithms, with ``r2``."""
    logs_x, logs_y = [math.log(value) for value in x], [math.log(value) for value in y]
    slope, intercept = linear_regression(logs_x, logs_y)
    r2 = correlation(logs_x, logs_y) ** 2 if len(set(y)) > 1 else 1.0
    return {"exponent": rounded(slope), "factor": rounded(math.exp(intercept)), "r2": rounded(r2)}


def draw(result: dict[str, Any], path: Path) -> Path:
    """Time and memory against tokens and batch, axes logarithmic, with the fitted lines. Needs the extra ``viz``."""
    from matplotlib.ticker import LogLocator

    units = {"seconds": ("milliseconds", 1e3), "bytes": ("MiB that a batch takes", 2.0**-20)}
    titles = {"tokens": "patch tokens of an image", "batch": "images in a batch"}
    with new_figure(path, 6.4, STYLE) as figure:
        axes = figure.subplots(2, 2)
        for column, (variable, points) in enumerate(result["points"].items()):
            for row, (name, (unit, factor)) in enumerate(units.items()):
                axis = axes[row][column]
                for number, (model, fits) in enumerate(result["fits"][variable].items()):
                    own = [point for point in points if point["model"] == model and point[name]]
                    if name not in fits:
                        continue
                    colour, marker = _COLOURS[number % 4], _MARKERS[number % 4]
                    x = sorted(point[variable] for point in own)
                    line = [factor * fits[name]["factor"] * value ** fits[name]["exponent"] for value in (x[0], x[-1])]
                    label = f"{model}: exponent {fits[name]['exponent']:.2f}"
                    axis.plot([x[0], x[-1]], line, color=colour, linewidth=1.2, alpha=0.7)
                    values = [factor * point[name] for point in own]
                    places = [point[variable] for point in own]
                    axis.plot(places, values, marker, color=colour, markersize=5, label=label)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
                ticks = sorted({point[variable] for point in points})
                axis.set_xticks(ticks, [str(tick) for tick in ticks])
                axis.minorticks_off()
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:,g}")
                axis.grid(True)
                axis.set_xlabel(titles[variable])
                axis.set_ylabel(unit)
                axis.legend(loc="upper left", fontsize=8)
    return path


if __name__ == "__main__":
    main()
