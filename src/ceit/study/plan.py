"""Studies as data: what is trained in which variants, with which seeds, and what is compared.

A study is a YAML file, the package's own under ``ceit/studies``:

    title, question, paper   words for the tables
    scales                   where it can run, of those in ``ceit/studies/scales.yaml``; all unless given
    seeds                    scale to number of seeds; the scale's own number unless given
    arms                     name to what differs from the scale's options:
      options                  of recipes, nested as there; geometry fields join the scale's
      at                       scale to further options
      times                    epochs and warm-up are multiplied by this
      tuned_as                 whose learning rate it takes: CeiT (unless given), DeiT, or null for its options' own
      each_learning_rate       one arm for each of the learning rates
      recipe, data             a recipe that takes the place of the scale's options, and other data
      expected                 a published figure, with its source
    compare                  pairs of arms: the first is tested against the second
    figure                   points (unless given): the test accuracy of every seed; curves: validation over epochs

Where an option asks for a file of weights, ``{arm: NAME}`` is the model of that arm with the same seed.
A cell is one arm with one seed: one training run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, Self

from ceit.json_file import as_written
from ceit.messages import unknown
from ceit.options import Count, as_fields
from ceit.paths import expanded
from ceit.study.cells import Cell, Options, arms_in, joined, recipe_options, slug, with_models
from ceit.train.config import config_from
from ceit.train.recipe import flat_keys
from ceit.yaml_file import packaged_yaml, parse_yaml, read_yaml

TUNING = "learning_rate"
"""The study that the others take their learning rates from."""
FAMILIES: tuple[str, ...] = ("CeiT", "DeiT")
MOST_SEEDS = 1_000
"""Of an arm: each is a training, and all are planned at once."""


@dataclass(frozen=True)
class Scale:
    """The data, the size and the length of runs."""

    name: str
    about: str
    data: str
    seeds: int
    learning_rates: list[float]
    options: Options
    recipe: str | None = None


@dataclass(frozen=True)
class Arm:
    """One variant of a study."""

    name: str
    options: Options = field(default_factory=dict)
    at: dict[str, Options] = field(default_factory=dict)
    times: Count = 1
    tuned_as: Literal["CeiT", "DeiT"] | None = "CeiT"
    each_learning_rate: bool = False
    recipe: str | None = None
    data: str | None = None
    expected: str | None = None

    @property
    def test_set(self) -> tuple[str | None, dict[str, Any]]:
        """What its test images depend on, beside the scale's data: its own data, and classes at some scale or all."""
        classes = {scale: given["classes"] for scale, given in self.at.items() if "classes" in given}
        return self.data, classes | ({"all": self.options["classes"]} if "classes" in self.options else {})

    @property
    def needs(self) -> list[str]:
        """The arms whose models it asks for, at any scale."""
        return [needed for options in (self.options, *self.at.values()) for needed in arms_in(options)]

    def check(self, before: Mapping[str, Self]) -> None:
        """Raises: ValueError for options that no recipe has, that the study sets itself, or an arm not ``before``."""
        for options in (self.options, *self.at.values()):
            if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
                raise ValueError(f"options must hold 'name: value' lines, not {options!r}")
            flat_keys(options)
            if "seed" in options:
                raise ValueError("the seed is the cell's own: leave it out of the options")
            if "peak_lr" in options and (self.tuned_as or self.each_learning_rate):
                raise ValueError(f"peak_lr is that of {self.tuned_as}: set tuned_as: null to choose it here")
        for needed in self.needs:
            if needed not in before:
                raise ValueError(f"it needs arm {needed!r}, which must stand before it")
            if before[needed].each_learning_rate:
                raise ValueError(f"it needs {needed!r}, which is one for each learning rate")


@dataclass(frozen=True)
class Study:
    """A grid of cells and what is asked of them."""

    name: str
    title: str
    question: str
    paper: str
    arms: list[Arm]
    compare: list[tuple[str, str]] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    figure: Literal["points", "curves"] = "points"

    def arms_at(self, scale: Scale) -> list[Arm]:
        """The arms, those for each learning rate written out."""
        found: list[Arm] = []
        for arm in self.arms:
            for rate in scale.learning_rates if arm.each_learning_rate else []:
                options = arm.options | {"peak_lr": rate}
                found.append(replace(arm, name=f"{arm.name}, {rate:g}", options=options, tuned_as=None))
            if not arm.each_learning_rate:
                found.append(arm)
        return found

    def cells(self, scale: Scale, rates: Mapping[str, float]) -> list[Cell]:
        """Every arm with the first seed, then with the second, and so on.

        ``rates``: the learning rate of each family in ``FAMILIES`` that an arm is ``tuned_as``.
        """
        number = self.seeds.get(scale.name, scale.seeds)
        return [self._cell(scale, arm, seed, rates) for seed in range(number) for arm in self.arms_at(scale)]

    def _cell(self, scale: Scale, arm: Arm, seed: int, rates: Mapping[str, float]) -> Cell:
        recipe = arm.recipe or scale.recipe
        of_scale = {} if arm.recipe else scale.options
        options = joined(recipe_options(recipe), of_scale, arm.options, arm.at.get(scale.name, {}))
        if arm.times != 1:
            usual = config_from(with_models(options, {}))
            if usual.epochs is None:
                raise ValueError(f"study {self.name}, arm {arm.name!r}: times {arm.times} needs epochs in the options")
            options |= {"epochs": usual.epochs * arm.times, "warmup_epochs": usual.warmup_epochs * arm.times}
        if arm.tuned_as is not None:
            options |= {"peak_lr": rates[arm.tuned_as]}
        return Cell(self.name, scale.name, arm.name, seed, arm.data or scale.data, options | {"seed": seed}, recipe)

    @property
    def tuned(self) -> bool:
        """Whether an arm takes a learning rate from the study of learning rates."""
        return any(arm.tuned_as is not None and not arm.each_learning_rate for arm in self.arms)

    @classmethod
    def from_dict(cls, name: str, values: Any) -> Self:
        """A study as its YAML file has it. Raises: ValueError for anything that the file may not hold."""
        where = f"study {name}"
        values = as_fields(where, values, cls, nested=("arms", "compare"))
        for key in ("title", "question", "paper"):
            if key not in values:
                raise ValueError(f"{where} has no {key}")
        arms = values.get("arms")
        if not isinstance(arms, dict) or not arms:
            raise ValueError(f"{where} must have arms, each a name with its options")
        made = [Arm(str(arm), **as_fields(f"{where}, arm {arm!r}", given or {}, Arm)) for arm, given in arms.items()]
        pairs = values.get("compare") or []
        if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
            raise ValueError(f"{where}: compare must hold pairs of arms, such as [CeiT, DeiT]")
        study = cls(name, **{**values, "arms": made, "compare": [(str(one), str(other)) for one, other in pairs]})
        with as_written(where, "its scales, arms and pairs must be names"):
            study._check()
        return replace(study, scales=study.scales or list(scales()))

    def _check(self) -> None:
        where, known = f"study {self.name}", scales()
        for scale in (*self.scales, *self.seeds, *(scale for arm in self.arms for scale in arm.at)):
            if scale not in known:
                raise ValueError(f"{where}: {unknown('scale', str(scale), known)}")
        for scale, number in self.seeds.items():
            if not isinstance(number, int) or not 1 <= number <= MOST_SEEDS:
                words = f"a whole number, at least 1, at most {MOST_SEEDS:,}"
                raise ValueError(f"{where}: seeds of {scale} {number!r} must be {words}")
        if len({slug(arm.name) for arm in self.arms}) < len(self.arms):
            raise ValueError(f"{where}: two arms differ in punctuation alone, but their files are named after them")
        by_name: dict[str, Arm] = {}
        for arm in self.arms:
            try:
                arm.check(by_name)
            except ValueError as error:
                raise ValueError(f"{where}, arm {arm.name!r}: {error}") from error
            by_name[arm.name] = arm
        for pair in self.compare:
            for name in pair:
                if name not in by_name:
                    raise ValueError(f"{where}: {unknown('arm', name, by_name)}")
                if by_name[name].each_learning_rate:
                    raise ValueError(f"{where}: arm {name!r} is one for each learning rate and cannot be compared")
            if by_name[pair[0]].test_set != by_name[pair[1]].test_set:
                raise ValueError(f"{where}: {pair[0]!r} and {pair[1]!r} are tested on different images")


def study_names() -> list[str]:
    """The studies that come with the package."""
    return [name for name in packaged_yaml("studies") if name != "scales"]


def load_study(name_or_file: str) -> Study:
    """A study by name, or from a YAML file. Raises: ValueError for an unknown name or a file that is no study."""
    if name_or_file.endswith((".yaml", ".yml")):
        return Study.from_dict(expanded(name_or_file).stem, read_yaml("study", name_or_file))
    if name_or_file not in study_names():
        raise ValueError(unknown("study", name_or_file, study_names()))
    return Study.from_dict(name_or_file, parse_yaml(name_or_file, packaged_yaml("studies")[name_or_file]))


@cache
def scales() -> dict[str, Scale]:
    """The scales, by name."""
    found = parse_yaml("scales", packaged_yaml("studies")["scales"])
    return {name: Scale(name, **as_fields(f"scale {name}", values, Scale)) for name, values in found.items()}


def scale_of(study: Study, name: str) -> Scale:
    """A scale that the study can run at. Raises: ValueError for another."""
    if name not in study.scales:
        raise ValueError(f"study {study.name}: {unknown('scale', name, study.scales)}")
    return scales()[name]
