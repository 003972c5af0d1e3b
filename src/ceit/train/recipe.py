"""Recipes: named sets of options, out of the package or out of a YAML file."""

import re
from collections.abc import Mapping
from typing import Any

from ceit.messages import unknown
from ceit.train.config import SECTIONS, TrainConfig, config_from, known_keys
from ceit.yaml_file import packaged_yaml, parse_yaml, text_of


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of earlier versions that say what holds anyway. Raises ValueError for one that does not."""
    if (asked := values.get("distributed", "ddp")) != "ddp":
        what_holds = "several processes train with DDP, each with the whole model"
        raise ValueError(f"distributed {asked} is gone: {what_holds}; leave the option out")
    return {key: value for key, value in values.items() if key != "distributed"}


def flat_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested recipe as dotted keys. Raises ValueError for a key that no option has, with the nearest one."""
    flat: dict[str, Any] = {}
    for key, value in without_retired(values).items():
        if key not in SECTIONS:
            flat[str(key)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            raise ValueError(f"recipe key {key!r} is a section and must hold keys, not {value!r}")
    known = set(known_keys())
    for key in flat:
        if key not in known:
            raise ValueError(unknown("recipe key", key, known))
    return flat


NO_RECIPE = "none"
"""Stands for the defaults of all options, where a recipe is asked for."""


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return list(packaged_yaml("recipes"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """The overrides of a recipe, by name or from a YAML file, as dotted keys; of ``none`` there are none.

    Raises: ValueError for an unknown recipe, a file that is not YAML, or an unknown key (with the nearest known one).
    """
    if name_or_file == NO_RECIPE:
        return {}
    if name_or_file.endswith((".yaml", ".yml")):
        text = text_of("recipe", name_or_file)
    elif name_or_file in recipe_names():
        text = packaged_yaml("recipes")[name_or_file]
    else:
        raise ValueError(unknown("recipe", name_or_file, recipe_names()))
    values = parse_yaml(f"recipe {name_or_file}", text) or {}
    if not isinstance(values, dict):
        raise ValueError(f"recipe {name_or_file} must hold 'key: value' lines, not {type(values).__name__}")
    if isinstance(values.get("classes"), list):
        values["classes"] = parse_yaml(name_or_file, text, as_written=True)["classes"]
    return flat_keys(values)


def recipe_config(name_or_file: str, **overrides: Any) -> TrainConfig:
    """The configuration of a recipe, with top-level options replaced. Raises ValueError as ``read_recipe`` and for bad
    values."""
    return config_from(nested(read_recipe(name_or_file)) | overrides)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted options as sections."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        if section:
            values[section] = {**values.get(section, {}), name: value}
        else:
            values[key] = value
    return values


def seconds_of(duration: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``1.5h``. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", duration.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"duration {duration!r} must be a positive number with its unit, such as 90s, 30m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
