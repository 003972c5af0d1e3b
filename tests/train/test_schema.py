"""The schema that editors check recipes with: it accepts what the reader accepts and refuses what it refuses."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ceit.data.batches.augment import Augmentation
from ceit.train.config import SECTIONS, TrainConfig, known_keys
from ceit.train.recipe import recipe_names
from ceit.train.schema import descriptions, recipe_schema

RECIPES = Path(__file__).parents[2] / "src" / "ceit" / "recipes"


def errors(recipe: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(recipe_schema()).iter_errors(recipe)]


def test_it_is_a_schema_of_its_draft() -> None:
    Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("name", recipe_names())
def test_it_accepts_every_shipped_recipe(name: str) -> None:
    assert errors(yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"peek_lr": 0.1},
        {"augmentation": {"flipp": True}},
        {"geometry": {"deepth": 3}},
        {"geometry": {"num_classes": 3}},
        {"peak_lr": "1e-3"},
        {"schedule": "cosin"},
        {"model": "ceit_tiny"},
        {"augmentation": {"crop_scale": [0.1]}},
        {"augmentation": True},
        {"device_batch_size": "all"},
        {"epochs": 1.5},
        {"epochs": 0},
        {"ema": {"decay": 1}},
        {"geometry": {"depth": 0}},
    ],
)
def test_it_refuses_misspelt_keys_and_values_of_another_kind(recipe: dict[str, Any]) -> None:
    assert len(errors(recipe)) == 1


def test_it_takes_every_form_of_a_value() -> None:
    whole = {"img_size": [224, 192], "device_batch_size": "auto", "classes": ["cat", "dog"], "epochs": None}
    assert errors(whole | {"geometry": {"depth": 3}, "augmentation": {"crop_scale": [0.1, 1]}}) == []


def test_the_defaults_are_those_of_a_run_and_valid_themselves() -> None:
    def defaults(schema: dict[str, Any]) -> dict[str, Any]:
        found = {name: option.get("default") for name, option in schema["properties"].items()}
        for name in SECTIONS:
            if name in found:
                found[name] = defaults(schema["properties"][name])
        return found

    assert defaults(recipe_schema()) == TrainConfig().as_dict()
    assert errors(TrainConfig().as_dict()) == []


def test_every_option_has_a_type_and_a_description() -> None:
    schema = recipe_schema()
    for key in known_keys():
        option = schema
        for name in key.split("."):
            option = option["properties"][name]
        assert option.get("description"), key
        assert {"type", "anyOf", "enum"} & set(option), key


def test_descriptions_are_the_strings_below_the_fields() -> None:
    assert descriptions(Augmentation)["cutout"].startswith("Side in pixels of a square set to the mean")
    assert descriptions(TrainConfig)["img_size"].endswith("rounded up to a multiple of its patch.")
    assert set(descriptions(TrainConfig)) == {field.name for field in fields(TrainConfig)}
