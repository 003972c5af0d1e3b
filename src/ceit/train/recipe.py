"""Recipes: named sets of options, out of the package or out of a YAML file."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from ceit.messages import unknown
from ceit.paths import expanded
from ceit.train.config import TrainConfig, config_from, known_keys


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of earlier versions that say what holds anyway. Raises ValueError for one that does not."""
    if values.get("distributed", "ddp") != "ddp":
        raise ValueError(
            f"distributed {values['distributed']} is gone: several processes train with DDP, "
            "each with the whole model; leave the option out"
        )
    return {key: value for key, value in values.items() if key != "distributed"}


def flat_keys(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested recipe as dotted keys. Raises ValueError for a key that no option has, with the nearest one."""
    known = set(known_keys())
    flat: dict[str, Any] = {}
    for key, value in without_retired(values).items():
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
        path = expanded(name_or_file)
        if not path.is_file():
            raise ValueError(f"recipe file {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe file {path} is not text in UTF-8: {error}") from error
    elif name_or_file in recipe_names():
        text = files("ceit").joinpath("recipes", f"{name_or_file}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(unknown("recipe", name_or_file, recipe_names()))
    try:
        values = yaml.safe_load(text) or {}
        if isinstance(values, dict) and isinstance(values.get("classes"), list):
            values["classes"] = as_written(text)["classes"]
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {name_or_file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {name_or_file} must hold 'key: value' lines, not {type(values).__name__}")
    return flat_keys(values)


def as_written(text: str) -> Any:
    """YAML whose every value is the text that stands there: names of classes, ``yes``, ``007`` and ``null`` among them.

    Raises: YAMLError.
    """
    return yaml.load(text, Loader=yaml.BaseLoader)


def recipe_config(name_or_file: str, **overrides: Any) -> TrainConfig:
    """The configuration of a recipe, with top-level options replaced. Raises ValueError as ``read_recipe`` and for bad
    values."""
    return config_from(nested(read_recipe(name_or_file)) | overrides)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted options as sections."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values


def seconds_of(duration: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``1.5h``. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", duration.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"duration {duration!r} must be a positive number with its unit, such as 90s, 30m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
