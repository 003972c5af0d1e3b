"""Sweeps: which options of a recipe suit one's own data best, by validation accuracy.

A sweep is a YAML file: the fields of ``Sweep``, explained with the ways to write an option's values in docs/sweep.md.

A trial is one choice of options. It is named after its options and its data, so a file that is changed keeps what was
trained before. A cell is one trial with one seed, one training run; words for users call it a run.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import mean
from typing import Any, Literal, Self, get_args

from torch import nn

from ceit.data.sources.choose import absolute
from ceit.inference.device import default_device
from ceit.messages import Say, unknown
from ceit.model.config import CeiTConfig
from ceit.model.variants import config_of
from ceit.options import ConflictError, as_fields, fits
from ceit.paths import expanded
from ceit.study.cells import (
    CHOOSE_IMAGES,
    OF_THE_MACHINE,
    Cell,
    Options,
    Places,
    Record,
    first_difference,
    joined,
    path_of,
    read_cell,
    read_record,
    recipe_options,
)
from ceit.study.run import RefusedError, finish, found_by, recorded, run_cells, train_cell, write_failure
from ceit.train.choose_recipe import FINE_TUNING, network_of
from ceit.train.config import FROM_THE_DATA, SECTIONS, TrainConfig, known_keys
from ceit.train.distributed import require_device_for
from ceit.train.log import Show
from ceit.train.optimizer import make_optimizer
from ceit.train.recipe import nested, seconds_of
from ceit.train.teacher import require_teacher
from ceit.train.trackers import flat
from ceit.weights.stored import A_CHECKPOINT, is_here
from ceit.yaml_file import parse_yaml, read_yaml, text_of

FOLDER = "trials"
MOST_TRIALS = 10_000
"""Of a sweep: each one is a training, and all are planned at once."""
_DRAWS = 1000  # for each trial, before the ranges are taken to have no more values, or none that go together
_DIGITS = 4  # that a number drawn from a range has: as many as the table shows
Kind = Literal["choice", "int", "uniform", "log_uniform"]
_LENGTH = ("epochs", "samples", "max_epochs")
_BUDGETS = ("epochs", "samples", "time_budget")


@dataclass(frozen=True)
class Choices:
    """The values that an option may take: listed, or of ``uniform`` and ``log_uniform`` all between two."""

    kind: Kind
    values: Sequence[Any]

    @classmethod
    def read(cls, option: str, given: Any) -> Self:
        """As the file has it; one value alone is a list of one. Raises: ValueError for a range that is none."""
        if isinstance(given, dict):
            kind, values = next(iter(given.items()))
        else:
            kind, values = "choice", given if isinstance(given, list) else [given]
        if not isinstance(values, list) or not values:
            raise ValueError(f"{option}: {kind} {values!r} must be a list of values, such as [1, 2]")
        if kind == "choice":
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"{option}: {values} has a value twice")
            return cls(kind, values)
        what, number = ("whole numbers", int) if kind == "int" else ("numbers", float)
        if len(values) != 2 or not all(fits(value, number) for value in values) or not values[0] < values[1]:
            raise ValueError(f"{option}: {kind} {values} must be two {what}, the lower one first")
        if kind == "int" and values[1] - values[0] >= 2**31:
            raise ValueError(f"{option}: int {values} must be less than 2**31 apart")
        if kind == "log_uniform" and values[0] <= 0:
            raise ValueError(f"{option}: log_uniform {values} must be above 0; uniform takes any numbers")
        return cls(kind, range(values[0], values[1] + 1) if kind == "int" else values)

    @property
    def number(self) -> float:
        """How many values there are, infinite between two."""
        return len(self.values) if self.kind in ("choice", "int") else math.inf

    def at(self, share: float) -> Any:
        """The value at a share of the way, ``0 <= share < 1``."""
        if self.number < math.inf:
            return self.values[int(share * len(self.values))]
        low, high = self.values
        drawn = low * (high / low) ** share if self.kind == "log_uniform" else low + (high - low) * share
        return min(max(low, float(f"{drawn:.{_DIGITS}g}")), high)


@dataclass(frozen=True)
class Trial:
    """One choice of options. ``options``: those that differ between trials, dotted. ``cells``: one for each seed."""

    options: Options
    cells: list[Cell]

    @property
    def name(self) -> str:
        """Of its files and run directories."""
        return self.cells[0].arm

    @property
    def words(self) -> str:
        """The options and their values, in one line."""
        return " ".join(", ".join(f"{name} {value}" for name, value in self.options.items()).splitlines())


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file holds; see the top of this file."""

    options: dict[str, Any]
    data: str
    output: str
    recipe: str | None = None
    search: Literal["random", "grid"] = "random"
    trials: int | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    budget: dict[str, Any] = field(default_factory=dict)
    total_time: str | None = None
    search_seed: int = 0

    @classmethod
    def read(cls, file: str, **instead: Any) -> Self:
        """A sweep from its file, with what the command line gives ``instead``, unless it is None.

        Raises: ValueError for anything that the file may not hold, naming it.
        """
        values, where = read_yaml("sweep", file), f"sweep {file}"
        if isinstance(values, dict):
            values |= {key: value for key, value in instead.items() if value is not None}
            options = values.get("options")
            if isinstance(options, dict) and isinstance(options.get("classes"), list):
                written = parse_yaml(where, text_of("sweep", file), as_written=True)["options"].get("classes", [])
                pairs = zip(options["classes"], written, strict=False)
                options["classes"] = [read if read is None else one for read, one in pairs] or options["classes"]
        as_fields(where, values, cls)
        for key, fix in (("data", "set it, or --data"), ("output", "set it, or --output"), ("options", "set some")):
            if not values.get(key):
                raise ValueError(f"{where} has no {key}: {fix}")
        sweep = cls(**values)
        try:
            sweep._check()
        except (ValueError, TypeError) as error:  # a date or a set is nothing that JSON can hold
            raise ValueError(f"{where}: {error}") from error
        return sweep

    @property
    def places(self) -> Places:
        """Of the cells' files and run directories: beside each other."""
        return Places(expanded(self.output), expanded(self.output))

    @cached_property
    def _all_choices(self) -> dict[str, Choices]:
        """What the file says of every option, by dotted name."""
        return {option: Choices.read(option, given) for option, given in _dotted(self.options)}

    @cached_property
    def choices(self) -> dict[str, Choices]:
        """The options that differ between trials."""
        return {option: choices for option, choices in self._all_choices.items() if choices.number > 1}

    @cached_property
    def _first(self) -> Options:
        """The first value of every option, by dotted name."""
        return {option: choices.at(0.0) for option, choices in self._all_choices.items()}

    @property
    def all_trials(self) -> list[Trial]:
        """Every trial, in the order in which they are run; more ``trials`` add to the end."""
        return self._planned[0]

    @cached_property
    def _planned(self) -> tuple[list[Trial], list[str]]:
        """The trials; and the combinations that no run takes, as their options do not go together, each with why."""
        trials, left_out, asked = list[Trial](), list[str](), self.trials if self.search == "random" else None
        for options in self._combinations():
            trial = self._trial(options)
            if (conflict := _conflict(trial)) is None:
                trials.append(trial)
            else:
                left_out.append(f"{trial.words}: {conflict}")
            if asked is not None and (len(trials) == asked or len(left_out) > _DRAWS * (1 + len(trials))):
                break
        if not trials:
            raise ValueError(f"no combination of the options goes together; the first has {left_out[0]}")
        if asked is not None and len(trials) < asked:
            without = f", {len(left_out):,} combinations left out, such as {left_out[0]}" if left_out else ""
            fix = f"widen the ranges, whose values have {_DIGITS} digits, or lower trials"
            raise ValueError(f"thousands of draws gave {len(trials)} different trials, not {asked}{without}: {fix}")
        return trials, left_out

    @property
    def remarks(self) -> list[str]:
        """What is to be known of the plan: combinations that are left out, and finished runs that are none of it."""
        lines, (trials, left_out) = list[str](), self._planned
        if left_out:
            number = f"{len(left_out)} of {len(trials) + len(left_out)} combinations left out"
            lines.append(f"{number}: {left_out[0]}{'; ...' if len(left_out) > 1 else ''}")
        folder, planned = self.places.results / FOLDER, {path_of(self.places.results, cell) for cell in self.cells}
        if others := [path for path in sorted(folder.glob("*.seed*.json")) if path not in planned]:
            runs, are = ("finished run", "is") if len(others) == 1 else ("finished runs", "are")
            what = f"{len(others)} {runs} in {folder} {are} of other options or data, and count for nothing"
            lines.append(f"{what}: {others[0].stem} {self._other(others[0])}")
        return lines

    def _other(self, path: Path) -> str:
        """In what a run differs from those of the plan: rather in something else than what these try out."""
        asked = self.cells[0].asked
        try:
            record = read_record(path)
        except ValueError:
            return "is damaged"

        def dotted(run: Record) -> Record:
            options = dict(flat(run["options"], ".")) | {"seed": asked["seed"]}  # a seed less is another matter
            return {"data": run["data"], "options": options | {"time_budget": run.get("time_budget")}}

        if difference := first_difference(dotted(record), dotted(asked), but=self.choices):
            option, found, wanted = difference
            return f"has {option} {found}, not {wanted}"
        if difference := first_difference(dotted(record), dotted(asked)):
            return f"has {difference[0]} {difference[1]}"
        return f"has seed {record['seed']}"

    @property
    def cells(self) -> list[Cell]:
        """Every seed of the first trial, then of the second, and so on."""
        return [cell for trial in self.all_trials for cell in trial.cells]

    def _combinations(self) -> Iterator[Options]:
        """The choices of options, each one once: all of a grid; else drawn at random, until they come to an end.

        Each value that is drawn is a function of search seed, number and option.
        """
        if self.search == "grid":
            listed = itertools.product(*(choices.values for choices in self.choices.values()))
            yield from (dict(zip(self.choices, values, strict=True)) for values in listed)
            return
        seen: set[str] = set()
        for number in itertools.count():
            if number > _DRAWS * (1 + len(seen)):
                return
            options: Options = {}
            for option, choices in self.choices.items():
                digest = hashlib.sha256(f"{self.search_seed} {number} {option}".encode()).digest()
                options[option] = choices.at(int.from_bytes(digest[:6]) / 2**48)
            if (text := json.dumps(options)) not in seen:
                seen.add(text)
                yield options

    def _trial(self, chosen: Options) -> Trial:
        length = self.budget | ({"epochs": None} if "samples" in self.budget else {})
        time_budget, data = length.pop("time_budget", None), absolute(self.data)
        recipe, own = recipe_options(self.recipe), nested(self._first | chosen)
        start = own.get("initial_checkpoint")
        if self.recipe == FINE_TUNING and start is not None and "model" not in own and is_here(start):
            recipe |= _network_of(start)  # as ``ceit train`` takes it
        options = joined(recipe, own, length)
        split_seed = options.pop("split_seed", None) or 0  # alike for all seeds: what tests one would train another
        named = options | {"seed": None} | ({"split_seed": split_seed} if split_seed else {})
        tried = {key: value for key, value in named.items() if key not in OF_THE_MACHINE or key in self.choices}
        options["split_seed"] = split_seed

        def cells(named: Options) -> list[Cell]:
            text = json.dumps([data, named, time_budget], sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:8]
            cell = Cell(FOLDER, "", name, 0, data, options, self.recipe, time_budget)
            return [replace(cell, seed=seed, options=options | {"seed": seed}) for seed in self.seeds]

        if tried != named:  # earlier versions named trials after options of the machine, too
            places, earlier = self.places, cells(named)
            if any(path_of(places.results, cell).exists() or places.run_of(cell).exists() for cell in earlier):
                return Trial(chosen, earlier)
        return Trial(chosen, cells(tried))

    def _check(self) -> None:
        """Raises: ValueError for the first thing that is wrong."""
        if not self.seeds or not all(fits(seed, int) for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must be whole numbers, each once, such as [0, 1]")
        if self.total_time is not None:
            seconds_of(self.total_time)
        for key, value in self.budget.items():
            if key not in _BUDGETS:
                raise ValueError(unknown("budget", str(key), _BUDGETS))
            if len(self.budget) > 1:
                raise ValueError(f"budget {self.budget} must be one of {', '.join(_BUDGETS)}")
            if key == "time_budget":
                seconds_of(str(value))
            elif not isinstance(value, int):
                raise ValueError(f"budget {self.budget} must be a whole number")
        geometry = {f"geometry.{f.name}" for f in fields(CeiTConfig) if f.name not in FROM_THE_DATA}
        known = geometry | {key for key in known_keys() if key not in SECTIONS}
        for option, _ in _dotted(self.options):
            if option not in known and not option.startswith("optimizer_args."):
                raise ValueError(unknown("option", option, known))
            if option == "seed":
                raise ValueError("the seed is no option of a sweep: set seeds, such as seeds: [0, 1]")
            if self.budget and option in _LENGTH:
                raise ValueError(f"the budget says how long each run is: leave out the option {option}, or the budget")
        for option in self.choices:
            if option in (*CHOOSE_IMAGES, "split_seed"):
                raise ValueError(f"{option} chooses the images of the validation: give it one value for all trials")
        self._check_number()
        can_begin: set[str] = set()
        for trial in self.all_trials:
            try:
                config = trial.cells[0].config()
                size = {} if config.img_size is None else {"img_size": config.img_size}
                network = config_of(config.model, **config.geometry, **size)
                if size:
                    config.augmentation.check_size(network.image_hw)
                if config.validation_percent == 0:
                    raise ValueError("validation_percent 0 may leave no images to rank the trials by: set it above 0")
                if (kind := repr((config.optimizer, config.optimizer_args, config.distillation))) not in can_begin:
                    _require_names(config)
                    can_begin.add(kind)
            except (ValueError, TypeError) as error:
                raise ValueError(f"the trial with {trial.words}: {error}") from error
        for cell in self.all_trials[0].cells:
            cell.config()

    def _check_number(self) -> None:
        """Of trials: what is asked for, and what there can be."""
        if not self.choices:
            raise ValueError("options hold nothing to choose from: list values, such as peak_lr: [1e-3, 3e-3]")
        endless = [option for option, choices in self.choices.items() if choices.number == math.inf]
        combinations = math.prod(choices.number for choices in self.choices.values())
        asked = (0 if endless else combinations) if self.search == "grid" else self.trials or 0
        if asked > MOST_TRIALS:
            fix = "list fewer values" if self.search == "grid" else "lower trials"
            raise ValueError(f"{asked:,} trials are more than {MOST_TRIALS:,}, the most of a sweep: {fix}")
        if self.search == "random":
            if self.trials is None or self.trials < 1:
                raise ValueError("a random search needs the number of trials, at least 1, such as trials: 12")
            if self.trials > combinations:
                number = f"{combinations} combinations, not {self.trials}"
                raise ValueError(f"there are {number}: search: grid tries them all")
        elif endless:
            raise ValueError(f"a grid needs values that can be listed: list those of {endless[0]}, or search: random")
        elif self.trials is not None:
            raise ValueError(f"a grid tries all {combinations} combinations: leave out trials, or search: random")


def run_sweep(sweep: Sweep, say: Say, show: Show) -> None:
    """Run every cell that is not finished, within the total time.

    A run that fails in training is finished: its reason is recorded, and the others go on, but for the other seeds of
    its trial. So is one that cannot begin, once any other has begun. Several processes share the cells as in
    ``run_cells``; the total time is of all of them together.

    Raises: ValueError if no run can begin, the images cannot be read, or a cell's file was changed; Interrupted after
    saving.
    """
    places, cells = sweep.places, sweep.cells
    for line in sweep.remarks:
        say(line)
    _require_possible(sweep.all_trials, places)
    trial_of = {cell.name: trial for trial in sweep.all_trials for cell in trial.cells}
    limit = math.inf if sweep.total_time is None else seconds_of(sweep.total_time)
    refused: dict[str, RefusedError] = {}

    def is_enough() -> bool:
        records = [record for cell in cells if (record := read_cell(places.results, cell))]
        whole = [record["train_seconds"] for record in records if "failed" not in record]
        usual = mean(whole) if whole else 0.0  # of a run: none begins that would end too late
        return sum(record["train_seconds"] for record in records) + usual > limit

    def is_moot(cell: Cell) -> bool:
        return has_failed(trial_of[cell.name], places)

    def run(cell: Cell, place: str) -> None:
        if cell.name not in refused:
            say(f"{place}: {trial_of[cell.name].words}")
            try:
                run_trial(cell, places, say, show)
                return
            except RefusedError as error:
                refused[cell.name] = error
            if not _any_has_begun(cells, places):  # the fault may lie with all of them
                say(f"{cell.name} cannot begin, so the others are tried first: {refused[cell.name]}")
                return
        if not _any_has_begun(cells, places):
            raise refused[cell.name]
        write_failure(cell, places, say, f"it cannot begin: {refused[cell.name]}")

    run_cells(cells, places, run, say, word="run", is_moot=is_moot, is_enough=is_enough)
    if left := sum(read_cell(places.results, cell) is None and not is_moot(cell) for cell in cells):
        say(f"total_time {sweep.total_time} is used up: {left} of {len(cells)} runs are left; a longer one goes on")


def has_failed(trial: Trial, places: Places) -> bool:
    """Whether a seed of a trial has failed, so that it cannot count. Raises: ValueError as ``read_cell``."""
    return any("failed" in (read_cell(places.results, cell) or {}) for cell in trial.cells)


def _any_has_begun(cells: Sequence[Cell], places: Places) -> bool:
    return any(
        (places.run_of(cell) / "config.yaml").is_file() or "best" in (read_cell(places.results, cell) or {})
        for cell in cells
    )


def run_trial(cell: Cell, places: Places, say: Say, show: Show) -> None:
    """Train one cell, or go on with it, and write its file: what it found on the validation split, or why it failed.

    Raises: ValueError as ``recorded``.
    """
    found = recorded(cell, places, say, show, lambda show: found_by(train_cell(cell, places, say, show)))
    if found is None:
        return
    finish(cell, places, found)
    say(f"{cell.name}: validation top-1 {found['best']['validation_top1_percent']:.2f} %")


_network_of = cache(network_of)


def _require_names(config: TrainConfig) -> None:
    """Raises: ValueError for an optimizer, its arguments or a teacher that no run could begin with."""
    alike = replace(config, layer_decay=1.0, head_lr_factor=1.0, batch_norm_bias_lr_factor=1.0)
    make_optimizer(nn.Linear(1, 1), alike)  # no optimizer asks which network it is
    if config.distillation.teacher is not None:
        require_teacher(config.distillation.teacher)


def _conflict(trial: Trial) -> str | None:
    """Why the options of a trial do not go together, None if they do; what else is wrong is told of each trial."""
    try:
        trial.cells[0].config()
    except ConflictError as error:
        return str(error)
    except (ValueError, TypeError):
        return None
    return None


def _require_possible(trials: Sequence[Trial], places: Places) -> None:
    """Raises: ValueError for weights that are not there, or what the device cannot do, and that a run which is still to
    begin asks for."""
    for trial in trials:
        if all(
            path_of(places.results, cell).is_file() or (places.run_of(cell) / "config.yaml").is_file()
            for cell in trial.cells
        ):
            continue
        config = trial.cells[0].config()
        asked = {"initial_checkpoint": config.initial_checkpoint}
        asked |= {"distillation.checkpoint": config.distillation.checkpoint}
        for option, weights in asked.items():
            if weights is not None and not is_here(weights):
                raise ValueError(f"{option} {weights} is not here: name {A_CHECKPOINT}")
        try:
            require_device_for(config, "cpu" if config.device == "cpu" else default_device().type)
        except ValueError as error:
            raise ValueError(f"the trial with {trial.words}: {error}") from error


def _dotted(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options in sections as dotted ones; ``{uniform: [0, 1]}`` is no section."""
    for key, value in options.items():
        if isinstance(value, dict) and not (len(value) == 1 and set(value) <= set(get_args(Kind))):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
