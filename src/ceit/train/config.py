"""What a training run is told: typed options, recipes that override them, and how a recipe adapts to its data."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from ceit.data.augment import Augmentation
from ceit.model.config import CeiTConfig
from ceit.model.names import unknown

NUMBER = "must be a number (YAML reads 1e-3 as text, 1.0e-3 as a number)"


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix, as timm computes them; both off at 0.

    Attributes:
        mixup_alpha: of the Beta distribution that Mixup draws its share from.
        cutmix_alpha: of the Beta distribution that CutMix draws its area from.
        probability: that a batch is mixed at all.
        switch_probability: that a mixed batch takes CutMix where both are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5


@dataclass(frozen=True)
class WeightAverage:
    """Exponential moving average (EMA) of the weights, evaluated beside the raw ones. BatchNorm statistics are copied,
    not averaged.

    Attributes:
        decay: share of the average that a step keeps; 0 turns it off.
        warmup: start with a short average that grows with the steps.
    """

    decay: float = 0.0
    warmup: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run; a recipe and the command line override these defaults.

    Attributes:
        model: registered name, such as ceit_nano_patch4_32.
        geometry: fields of CeiTConfig that replace the model's, such as drop_path_rate.
        img_size: side or [height, width] in pixels; null takes the data's own, but at least 16 and at most twice the
            model's, rounded up to a multiple of its patch.
        in_chans: 1 (grey) or 3 (RGB); null takes the data's own.
        epochs: passes over the training images; null chooses them from samples.
        samples: training images to show in all where epochs is null.
        max_epochs: the most epochs that samples may choose.
        global_batch_size: images per optimizer step, over all processes.
        optimizer: any of timm's, by name.
        optimizer_args: further keywords of that optimizer.
        peak_lr: learning rate after the warm-up.
        schedule: how the learning rate falls after the warm-up.
        warmup_epochs: epochs of linear warm-up from warmup_lr; a fraction is allowed.
        warmup_lr: learning rate of the first step.
        final_lr: learning rate that the fall leads to, one step behind the last.
        weight_decay: spares biases, 1-D tensors, class token and position embedding.
        clip_norm: largest norm of the gradient; 0 turns clipping off.
        label_smoothing: share of the label's mass spread over all classes.
        augmentation: how images are varied.
        mixing: Mixup and CutMix.
        ema: moving average of the weights.
        validation_percent: share of the training images cut off to choose the best model, where the data has no
            validation split.
        precision: bf16 autocast or float32; auto takes bf16 where the machine computes it natively.
        workers: processes that read images; null chooses.
        skip_broken: leave unreadable files out instead of stopping.
        seed: of initialisation, split, order, augmentation and drop path.
        log_every_steps: steps between two lines of metrics.jsonl.
    """

    model: str = "ceit_nano_patch4_32"
    geometry: dict[str, Any] = field(default_factory=dict)
    img_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    epochs: int | None = None
    samples: int = 200_000
    max_epochs: int = 300
    global_batch_size: int = 256
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    peak_lr: float = 1e-3
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_epochs: float = 0.5
    warmup_lr: float = 1e-6
    final_lr: float = 1e-5
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    ema: WeightAverage = field(default_factory=WeightAverage)
    validation_percent: float = 5.0
    precision: Literal["auto", "bf16", "float32"] = "auto"
    workers: int | None = None
    skip_broken: bool = False
    seed: int = 0
    log_every_steps: int = 20

    def __post_init__(self) -> None:
        for key in (
            "peak_lr",
            "warmup_epochs",
            "warmup_lr",
            "final_lr",
            "weight_decay",
            "clip_norm",
            "label_smoothing",
            "validation_percent",
        ):
            _require(isinstance(getattr(self, key), int | float), key, repr(getattr(self, key)), NUMBER)
        for key, least in (("global_batch_size", 1), ("samples", 1), ("max_epochs", 1), ("log_every_steps", 1)):
            _require(getattr(self, key) >= least, key, getattr(self, key), f"must be at least {least}")
        _require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "must be at least 1")
        _require(0 < self.peak_lr < math.inf, "peak_lr", self.peak_lr, "must be positive")
        for key in ("warmup_epochs", "warmup_lr", "final_lr", "weight_decay", "clip_norm"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "must not be negative")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "must be in [0, 1)")
        _require(0 < self.validation_percent <= 50, "validation_percent", self.validation_percent, "must be in (0, 50]")
        _require(0 <= self.ema.decay < 1, "ema.decay", self.ema.decay, "must be in [0, 1)")
        mixing = self.mixing
        for key, value in (("mixing.mixup_alpha", mixing.mixup_alpha), ("mixing.cutmix_alpha", mixing.cutmix_alpha)):
            _require(value >= 0, key, value, "must not be negative")
        for key in ("probability", "switch_probability"):
            _require(0 <= getattr(mixing, key) <= 1, f"mixing.{key}", getattr(mixing, key), "must be in [0, 1]")
        if mixing.mixup_alpha or mixing.cutmix_alpha:
            _require(
                self.global_batch_size % 2 == 0, "global_batch_size", self.global_batch_size, "must be even to be mixed"
            )
        for key in ("img_size", "in_chans", "num_classes"):
            if key in self.geometry:
                raise ValueError(
                    f"geometry.{key} {self.geometry[key]} follows from the data; set img_size or in_chans instead"
                )
        geometry_fields = {f.name for f in fields(CeiTConfig)}
        for key in self.geometry:
            if key not in geometry_fields:
                raise ValueError(
                    unknown("recipe key", f"geometry.{key}", [f"geometry.{name}" for name in geometry_fields])
                )

    def epochs_for(self, train_images: int) -> int:
        """Epochs over ``train_images``: ``epochs``, else as many as show about ``samples``, 1 to ``max_epochs``."""
        return self.epochs or max(1, min(self.max_epochs, round(self.samples / train_images)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        return _plain(asdict(self))


def _require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise ValueError(f"{name} {value} {limit}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def known_keys(of: type = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all options, sections included."""
    for name, hint in get_type_hints(of).items():
        yield prefix + name
        if is_dataclass(hint) and isinstance(hint, type):
            yield from known_keys(hint, f"{prefix}{name}.")


def flat_keys(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested recipe as dotted keys. Raises ValueError for a key that no option has, with the nearest one."""
    known = set(known_keys())
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in known:
            raise ValueError(unknown("recipe key", name, known))
        if f"{name}." in {key[: len(name) + 1] for key in known}:
            if not isinstance(value, dict):
                raise ValueError(f"recipe key {name!r} is a section and must hold keys, not {value!r}")
            flat |= flat_keys(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("ceit").joinpath("recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """The overrides of a recipe, by name or from a YAML file, as dotted keys.

    Raises: ValueError for an unknown recipe, a file that is not YAML, or an unknown key (with the nearest known one).
    """
    if name_or_file.endswith((".yaml", ".yml")):
        path = Path(name_or_file)
        if not path.is_file():
            raise ValueError(f"recipe file {path} does not exist")
        text = path.read_text(encoding="utf-8")
    elif name_or_file in recipe_names():
        text = files("ceit").joinpath("recipes", f"{name_or_file}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(unknown("recipe", name_or_file, recipe_names()))
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {name_or_file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {name_or_file} must hold 'key: value' lines, not {type(values).__name__}")
    return flat_keys(values)


def recipe_config(name_or_file: str, **overrides: Any) -> TrainConfig:
    """The configuration of a recipe, with top-level options replaced. Raises ValueError as ``read_recipe`` and for bad
    values."""
    values: dict[str, Any] = {}
    for key, value in read_recipe(name_or_file).items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return config_from(values | overrides)


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, sections as dictionaries."""
    sections = {"augmentation": Augmentation, "mixing": Mixing, "ema": WeightAverage}
    return TrainConfig(**{key: sections[key](**value) if key in sections else value for key, value in values.items()})


def seconds_of(duration: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``1.5h``. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", duration.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"duration {duration!r} must be a positive number with its unit, such as 90s, 30m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
