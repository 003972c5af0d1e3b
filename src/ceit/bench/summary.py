"""From the seconds of every call to figures: medians with quartiles, images a second, percent of peak, ratios."""

from statistics import median
from typing import Any

import numpy as np

from ceit.bench.gemm import PEAK_OF, PRECISIONS

Rounds = list[list[float]]


def summarise(result: dict[str, Any]) -> None:
    """Writes into a result of ``measure`` the figures that follow from its seconds.

    Peak: for each precision the fastest product, by the median of its calls. Percent of peak: multiply-accumulates
    that the arm executes a second over those of the peak in its precision. Times baseline: its seconds over the arm's,
    round by round.
    """
    for found in result["peak"]:
        calls = _flat(found["seconds"])  # none of a product that failed, or was not reached yet
        found["gflops"] = rounded(2e-9 * found["size"] ** 3 / median(calls)) if calls else None
    result["best_peak_gflops"] = best = {
        precision: max(
            (row["gflops"] for row in result["peak"] if row["precision"] == precision and row["gflops"]), default=None
        )
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
                calls = _flat(found["seconds"])
                rate = int(batch) / median(calls)
                found["milliseconds"] = {
                    name: rounded(1e3 * float(np.percentile(calls, percent)))
                    for name, percent in (("median", 50), ("p25", 25), ("p75", 75), ("p90", 90), ("p99", 99))
                }
                found["images_per_second"] = rounded(rate)
                macs = row[f"{kind}_macs"]
                of_peak = None if peak_gflops is None or macs is None else 100 * 2e-9 * macs * rate / peak_gflops
                found["percent_of_peak"] = None if of_peak is None else rounded(of_peak)
                other = None if base is None else base[kind].get(batch)
                found["times_baseline"] = None if other is None else ratios(other["seconds"], found["seconds"])
        starts = row["deployment"].get("start_seconds")
        if starts:
            row["deployment"]["median_start_seconds"] = rounded(median(starts))


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
    return {"median": rounded(median(found)), "least": rounded(found[0]), "most": rounded(found[-1])}


def _flat(rounds: Rounds) -> list[float]:
    return [seconds for calls in rounds for seconds in calls]


def rounded(value: float) -> float:
    """To five significant digits, as every figure of a result."""
    return float(f"{value:.5g}")
