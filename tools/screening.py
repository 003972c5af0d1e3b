"""The table of what was tried in a study, from its ``results.jsonl``: ``studies/screening`` is of small images.

A line is a run: ``{"name", "change", "pflop", "seed", "validation", "loss", "steps", "macs"}``. ``change`` is what the
run has that the reference of its budget has not; the reference itself has ``none``. ``validation`` is top-1 in percent.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

STUDIES = Path("studies")  # of the project's root, where the pages are made
REFERENCE = "none"
KEYS = {"name", "change", "pflop", "seed", "validation", "loss", "steps", "macs"}


class Tried(NamedTuple):
    """One change at one budget, which is its PFLOP to two decimals, under one name."""

    budget: str
    name: str
    change: str


def screening_table(study: str = "screening") -> str:
    """A line for each change, the budgets one after the other: first the reference, then the best; none is left out.

    The gain is the mean over the seeds that the reference has, too.
    Raises: ValueError as ``read_runs``.
    """
    runs = read_runs(STUDIES / study / "results.jsonl")
    references = {tried.budget: seeds for tried, seeds in runs.items() if tried.change == REFERENCE}

    def gains(tried: Tried) -> list[float]:
        reference = references.get(tried.budget, {})
        own = runs[tried]
        return [own[seed]["validation"] - reference[seed]["validation"] for seed in own if seed in reference]

    def rank(tried: Tried) -> tuple[float, bool, float]:
        found = gains(tried)
        top1 = mean(run["validation"] for run in runs[tried].values())
        return float(tried.budget), tried.change != REFERENCE, -(mean(found) if found else top1)

    lines = [
        "| PFLOP | name | change | seeds | validation top-1, mean | gain | loss | steps | MACs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tried in sorted(runs, key=rank):
        seeds = runs[tried]
        first, found = next(iter(seeds.values())), gains(tried)
        gain = "" if tried.change == REFERENCE or not found else f"{mean(found):+.2f}"
        top1, loss = (mean(run[key] for run in seeds.values()) for key in ("validation", "loss"))
        lines.append(
            f"| {tried.budget} | {tried.name} | {tried.change} | {', '.join(map(str, sorted(seeds)))} "
            f"| {top1:.2f} % | {gain} | {loss:.3f} | {first['steps']:,} | {first['macs'] / 1e6:.1f}M |"
        )
    return "\n".join(lines)


def read_runs(path: Path) -> dict[Tried, dict[int, dict[str, Any]]]:
    """The runs of every change by their seed.

    Raises: ValueError for a line that is no run, for two runs of one seed, and for two references of one budget.
    """
    runs: dict[Tried, dict[int, dict[str, Any]]] = defaultdict(dict)
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}") from error
        if not isinstance(run, dict) or run.keys() != KEYS:
            raise ValueError(f"line {number} of {path} must have the keys {', '.join(sorted(KEYS))} and no others")
        tried = Tried(f"{run['pflop']:.2f}", run["name"], run["change"])
        if run["seed"] in runs[tried]:
            raise ValueError(f"line {number} of {path} is the second run of {run['name']} with seed {run['seed']}")
        runs[tried][run["seed"]] = run
    references = [tried.budget for tried in runs if tried.change == REFERENCE]
    if twice := sorted({budget for budget in references if references.count(budget) > 1}):
        raise ValueError(f"{path} has two references of {twice[0]} PFLOP: give one of them its change")
    return dict(runs)
