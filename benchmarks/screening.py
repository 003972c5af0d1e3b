"""What each change to a small-image recipe gives at equal compute. ``python -m benchmarks.screening --work DIR``.

Trains every run of ``studies/screening/plan.yaml`` that is not finished, and appends a line for each to
``studies/screening/results.jsonl``, of which ``make results`` makes a table. Validation images alone decide: the test
split is not looked at. Start it several times with the same ``--work``: the processes share the runs out among them.

Another study, as ``studies/photo_recipes``, may be of a folder of images, which ``--data`` names.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compute.plan import steps_for
from ceit.data.sources.known_sets import SETS
from ceit.lock import InUseError, locked
from ceit.messages import unknown
from ceit.model import CeiTConfig, config_of
from ceit.study.cells import joined, slug
from ceit.study.cluster import geometry_on
from ceit.train.config import TrainConfig, config_from
from ceit.train.cost import macs, mean_macs
from ceit.train.run import begun
from ceit.train.run_directory import lines_of
from ceit.yaml_file import read_yaml

STUDY = Path(__file__).parents[1] / "studies" / "screening"
REFERENCE = "reference"


@dataclass(frozen=True)
class Run:
    """One training: a name, its budget, what it has that the reference of this budget has not, and all its options."""

    name: str
    pflop: float
    change: dict[str, Any]
    options: dict[str, Any]
    data: str
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        """What no two runs share."""
        return self.name, self.pflop, self.seed

    @property
    def config(self) -> TrainConfig:
        """Raises: ValueError for options that no run takes."""
        return config_from({**self.options, "seed": self.seed})

    @property
    def geometry(self) -> CeiTConfig:
        """The network; for a folder of images, of which the plan must give the size, with the usual classes."""
        config = self.config
        if self.data in SETS:
            return geometry_on(config, self.data)
        return config_of(config.model, **{**config.geometry, "img_size": config.img_size})

    @property
    def mean_macs(self) -> float:
        """Of one image's forward pass, the mean over all steps."""
        return mean_macs(self.config, self.geometry)

    @property
    def steps(self) -> int:
        """That its budget pays for."""
        return steps_for(self.pflop, self.mean_macs, self.config.batch_size)


def planned(file: Path) -> Iterator[Run]:
    """All runs, in the order in which they are to be trained. Raises: ValueError for a plan with other keys."""
    plan = read_yaml("plan", str(file))
    known = ["data", "options", "budgets"]
    for key in plan:
        if key not in known:
            raise ValueError(unknown("key", key, known))
    for pflop, runs in plan["budgets"].items():
        reference = joined(plan["options"], runs[REFERENCE]["options"])
        for name, run in runs.items():
            change = {} if name == REFERENCE else run["options"]
            for seed in run.get("seeds", [0]):
                yield Run(name, pflop, change, joined(reference, change), plan["data"], seed)


def train_run(run: Run, data: str, folder: Path) -> dict[str, Any]:
    """Train it on a set by its name or folder, or go on with it; the line of what it has found."""
    with begun(run.config, data, folder, resume="auto", steps=run.steps, say=_say, share_cores=False) as trainer:
        trainer.fit()
    lines = map(json.loads, lines_of(folder / "metrics.jsonl"))
    *_, raw = (line["validation"]["raw"] for line in lines if line["event"] == "epoch")
    return {
        "name": run.name,
        "change": ", ".join(_words(run.change)) or "none",
        "pflop": run.pflop,
        "seed": run.seed,
        "validation": raw["top1_percent"],
        "loss": round(raw["loss"], 4),
        "steps": run.steps,
        "macs": macs(run.geometry),
    }


def finished(results: Path) -> set[tuple[str, float, int]]:
    """The keys of the runs that have a line."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {(line["name"], line["pflop"], line["seed"]) for line in map(json.loads, lines)}


def main(arguments: list[str] | None = None) -> int:
    """Train what is left, or list it; the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.screening", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/ceit-screening").expanduser(), help="run folders")
    parser.add_argument("--study", type=Path, default=STUDY, help="folder of plan.yaml and results.jsonl")
    parser.add_argument("--data", metavar="FOLDER", help="the images, where the plan is not of a set known by name")
    parser.add_argument("--budget", type=float, metavar="PFLOP", help="runs of this budget alone")
    parser.add_argument("--plan", action="store_true", help="list what is left, and train nothing")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = asked.study / "results.jsonl"
    asked.work.mkdir(parents=True, exist_ok=True)
    tried: set[tuple[str, float, int]] = set()
    runs = [run for run in planned(asked.study / "plan.yaml") if asked.budget in (None, run.pflop)]
    while left := [run for run in runs if run.key not in finished(results) | tried]:
        if asked.plan:
            print(*(f"{run.pflop:g} PFLOP, {run.steps} steps, seed {run.seed}: {run.name}" for run in left), sep="\n")
            return 0
        run = left[0]
        tried.add(run.key)
        folder = asked.work / f"{run.pflop:g}-{slug(run.name)}-seed{run.seed}"
        try:
            with locked(asked.work / f"{folder.name}.lock", _say):
                if run.key not in finished(results):
                    line = train_run(run, asked.data or run.data, folder)
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    _say(json.dumps(line))
        except InUseError:
            _say(f"another process trains {folder.name}")
    return 0


def _words(change: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Each option of a change by its dotted name, with its value."""
    for name, value in change.items():
        if isinstance(value, dict):
            yield from _words(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} {json.dumps(value)}"


def _say(message: object) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
