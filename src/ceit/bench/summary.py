"""From the seconds of every call to figures: medians with quartiles, images a second, percent of peak, ratios."""

import math
from statistics import median
from typing import Any

from ceit.bench.gemm import PEAK_OF, PRECISIONS

Rounds = list[list[float]]


def summarise(result: dict[str, Any]) -> None:
    """Writes into a result of ``ceit.bench.speed`` the figures that follow from its seconds.

    Peak: for each precision the fastest product, by the median of its calls. Percent of peak: multiply-accumulates
    that the arm executes a second over those of the peak in its precision. Times baseline: its seconds over the arm's,
    round by round.
    """
    for found in result["peak"]:
        found["gflops"] = _rounded(2e-9 * found["size"] ** 3 / median(_flat(found["seconds"])))
    result["best_peak_gflops"] = best = {
        precision: max((row["gflops"] for row in result["peak"] if row["precision"] == precision), default=None)
        for precision in PRECISIONS
    }
    rows = result["arms"]
    base = baseline(rows)
    result["baseline"] = None if base is None else f"{base['model']} {base['backend']} {base['precision']}"
    for row in rows:
        peak_gflops = best[PEAK_OF[row["precision"]]]
        for kind in ("inference", "train"):
            for batch, found in row[kind].items():
                if not found["seconds"]:
                    continue
                calls = sorted(_flat(found["seconds"]))
                rate = int(batch) / median(calls)
                found["milliseconds"] = {
                    name: _rounded(1e3 * quantile(calls, share))
                    for name, share in (("median", 0.5), ("p25", 0.25), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99))
                }
                found["images_per_second"] = _rounded(rate)
                macs = row[f"{kind}_macs"]
                found["percent_of_peak"] = _rounded(100 * 2e-9 * macs * rate / peak_gflops) if peak_gflops else None
                other = None if base is None else base[kind].get(batch)
                found["times_baseline"] = None if other is None else ratios(other["seconds"], found["seconds"])
        starts = row["deployment"].get("start_seconds")
        if starts:
            row["deployment"]["median_start_seconds"] = _rounded(median(starts))


def baseline(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What all others are compared with: float32 in plain torch, else prepared, of a module from a file if there is
    one, else of the first model; else the first row."""
    plain = [row for row in rows if (row["backend"], row["precision"]) == ("plain", "float32")]
    plain += [row for row in rows if (row["backend"], row["precision"]) == ("eager", "float32")]
    named = [row for row in plain if row["subject"]["kind"] == "factory"]
    return next(iter([*named, *plain, *rows]), None)


def ratios(slower: Rounds, faster: Rounds) -> dict[str, float] | None:
    """How many times as fast, of the rounds that both have: the median, and the least and the most of a round."""
    found = sorted(median(a) / median(b) for a, b in zip(slower, faster, strict=False))
    if not found:
        return None
    return {"median": _rounded(median(found)), "least": _rounded(found[0]), "most": _rounded(found[-1])}


def quantile(ordered: list[float], share: float) -> float:
    """Of values in ascending order, interpolated between neighbours."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def exponent(x: list[float], y: list[float]) -> dict[str, float]:
    """``y = factor * x ** exponent`` by least squares of the logarithms, with ``r2``."""
    logs_x, logs_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(logs_x) / len(x), sum(logs_y) / len(y)
    var_x = sum((a - mean_x) ** 2 for a in logs_x)
    var_y = sum((b - mean_y) ** 2 for b in logs_y)
    joint = sum((a - mean_x) * (b - mean_y) for a, b in zip(logs_x, logs_y, strict=True))
    slope = joint / var_x
    return {
        "exponent": _rounded(slope),
        "factor": _rounded(math.exp(mean_y - slope * mean_x)),
        "r2": _rounded(joint**2 / (var_x * var_y) if var_y else 1.0),
    }


def _flat(rounds: Rounds) -> list[float]:
    return [seconds for calls in rounds for seconds in calls]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
