"""What ``studies/compute/plan.yaml`` asks for: arms, budgets of compute, seeds; and the cells that follow from it.

A cell is one training: one arm with one setting and seed, on one data set, with one budget.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torch import nn

from benchmarks.compute.networks import NETWORKS, Shape
from ceit.bench.arms import inference_macs
from ceit.data.sources.known_sets import SETS
from ceit.messages import unknown
from ceit.model import config_of
from ceit.model.complexity import complexity
from ceit.study.cells import Cell, Options, joined, read_cell, recipe_options
from ceit.study.cluster import geometry_on
from ceit.train.config import config_from
from ceit.train.cost import mean_macs
from ceit.yaml_file import read_yaml

STUDY = "compute"
RECIPE = "recipe"  # the setting of an arm whose options are a recipe's
FLOP_PER_MAC = 6  # forward and backward pass: 2 and 4


@dataclass(frozen=True)
class Arm:
    """A network by name: a ``recipe`` or a ``model`` of the package, or a ``network`` of a ``size``.

    Each of the three, and the size, is one value for all budgets, or a value by budget.
    """

    label: str
    kind: Literal["attention", "cnn"]
    recipe: Any = None
    model: Any = None
    network: Any = None
    size: Any = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.recipe, self.model, self.network)) != 1:
            raise ValueError(f"arm {self.label!r} must have one of recipe, model and network")

    @property
    def is_ours(self) -> bool:
        """Whether it is a recipe of this package."""
        return self.recipe is not None

    def at(self, budget: float) -> dict[str, Any] | None:
        """What is trained at a budget: a recipe, a model, or a network with its size. None for nothing."""
        found = {}
        for key in ("recipe", "model", "network", "size"):
            value = getattr(self, key)
            if isinstance(value, Mapping) and all(isinstance(name, float) for name in value):
                if budget not in value:
                    return None
                value = value[budget]
            if value is not None:
                found[key] = value
        return found


@dataclass(frozen=True)
class Plan:
    """The whole file, as its comments say."""

    budgets: Mapping[str, list[float]]
    seeds: list[int]
    choice: Mapping[str, Any]
    settings: Mapping[str, Options]
    options: Options
    augmentation_from_epochs: Mapping[int, Options]
    arms: Mapping[str, Arm]
    published: list[Mapping[str, Any]]

    @classmethod
    def read(cls, file: Path) -> "Plan":
        """Raises: ValueError for a file that is no plan, with the first key that is unknown or missing."""
        values, known = read_yaml("plan", str(file)), [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(unknown("key", key, known))
        if missing := [key for key in known if key not in values]:
            raise ValueError(f"{file} lacks {missing[0]}")
        return cls(**{**values, "arms": {name: Arm(**arm) for name, arm in values["arms"].items()}})

    def deciding(self, name: str) -> list[Cell]:
        """The cells that choose the setting of an arm; none for one that has no choice."""
        if self.arms[name].is_ours:
            return []
        where = self.choice["data"], self.choice["budget"]
        cells = [self._cell(name, setting, *where, self.choice["seed"]) for setting in self.settings]
        return [cell for cell in cells if cell is not None]

    def setting_of(self, name: str, results: Path) -> str | None:
        """The setting of an arm: the best of those that were tried, on validation. None while one is still to be tried,
        and if the training failed with all of them.

        Raises: ValueError as ``read_cell``.
        """
        if self.arms[name].is_ours:
            return RECIPE
        records = {setting_in(cell): read_cell(results, cell) for cell in self.deciding(name)}
        finished = {setting: record for setting, record in records.items() if record is not None}
        measured = {key: record["validation"]["plain"] for key, record in finished.items() if "failed" not in record}
        if not measured or len(finished) < len(records):
            return None
        return max(measured, key=lambda setting: (measured[setting]["top1_percent"], -measured[setting]["loss"]))

    def settings_of(self, results: Path) -> dict[str, str | None]:
        """The setting of every arm."""
        return {name: self.setting_of(name, results) for name in self.arms}

    def cells(self, results: Path) -> list[Cell]:
        """All cells that can be named by now, in the order in which they are to run: what decides comes first."""
        deciding = [cell for name in self.arms for cell in self.deciding(name)]
        compared = self.compared(self.settings_of(results))
        return list({cell.digest: cell for cell in [*deciding, *compared]}.values())

    def compared(self, settings: Mapping[str, str | None]) -> Iterator[Cell]:
        """The cells that the tables compare, of arms that have a setting: one seed after the other."""
        for data, budgets in self.budgets.items():
            for seed in self.seeds:
                for budget in budgets:
                    for name, setting in settings.items():
                        cell = None if setting is None else self._cell(name, setting, data, budget, seed)
                        if cell is not None:
                            yield cell

    def _cell(self, name: str, setting: str, data: str, budget: float, seed: int) -> Cell | None:
        """A cell with all that it is trained with; None if the arm has nothing at this budget."""
        arm = self.arms[name]
        trained = arm.at(budget)
        if trained is None:
            return None
        if arm.is_ours:
            training = recipe_options(trained["recipe"])
        else:
            training = joined(self.options, dict(arm.options or {}), self.settings[setting])
        if "model" in trained:
            training = joined(training, {"model": trained["model"], "geometry": {"skip_dead": True}})
        macs, config = macs_of(trained, training, data), config_from(training)
        batch = config.batch_size
        mean = mean_macs_of(trained, training, data)
        steps = steps_for(budget, mean, batch)
        if not arm.is_ours:
            images = SETS[data].train_images * (1 - config.validation_percent / 100)
            from_epochs = [epochs for epochs in self.augmentation_from_epochs if steps * batch / images >= epochs]
            more = self.augmentation_from_epochs[max(from_epochs)] if from_epochs else {}
            training = joined(training, {"augmentation": more})
        options = {"name": name, "setting": setting, "budget_pflop": budget, **trained, "macs": macs, "steps": steps}
        if mean != macs:
            options["mean_macs"] = mean
        return Cell(
            study=STUDY,
            scale=f"{data}-{budget:g}",
            arm=f"{name} {setting}",
            seed=seed,
            data=data,
            options={**options, "training": joined(training, {"seed": seed})},
        )


def setting_in(cell: Cell) -> str:
    """The setting of a cell."""
    return cell.options["setting"]


def pflop_of(options: Mapping[str, Any]) -> float:
    """What the steps of a cell take; within half a step of its budget."""
    images = options["steps"] * config_from(options["training"]).batch_size
    return FLOP_PER_MAC * options.get("mean_macs", options["macs"]) * images / 1e15


def steps_for(pflop: float, mean_macs: float, batch: int) -> int:
    """Steps that take so much compute, to the nearest one."""
    return max(1, round(pflop * 1e15 / (FLOP_PER_MAC * mean_macs * batch)))


def network_of(options: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """A network that is not of the package, with new weights. Raises: ValueError for an unknown one."""
    name = options["network"]
    if name not in NETWORKS:
        raise ValueError(unknown("network", name, NETWORKS))
    return NETWORKS[name](shape, classes, **options["size"])


def macs_of(trained: Mapping[str, Any], training: Options, data: str) -> int:
    """MACs of one image's forward pass: live ones of the package's networks, counted ones of others.

    Raises: ValueError for a set that is not known by name.
    """
    if data not in SETS:
        raise ValueError(unknown("data set", data, SETS))
    height, width, channels = SETS[data].image_shape
    height, width = training.get("img_size") or (height, width)
    classes = len(SETS[data].class_names)
    if "network" in trained:
        return _counted_macs(
            json.dumps({key: trained[key] for key in ("network", "size")}), (channels, height, width), classes
        )
    geometry = {"img_size": (height, width), "in_chans": channels, "num_classes": classes}
    return complexity(config_of(training["model"], **geometry, **training.get("geometry", {}))).live_macs


def mean_macs_of(trained: Mapping[str, Any], training: Options, data: str) -> float:
    """MACs of one image's forward pass, the mean over a run's steps: the first of them may take smaller images.

    Raises: ValueError as ``macs_of``.
    """
    if "network" in trained:
        return macs_of(trained, training, data)
    config = config_from(training)
    return mean_macs(config, geometry_on(config, data))


@cache
def _counted_macs(options: str, shape: Shape, classes: int) -> int:
    return inference_macs(network_of(json.loads(options), shape, classes), shape)
