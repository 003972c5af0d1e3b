"""Recipes as documents: written values are the resolved ones, every line tells its source, every cost is computed."""

import json
import re
from pathlib import Path

import pytest

from ceit.study.cluster import geometry_on
from ceit.train.recipe import read_recipe, recipe_config, recipe_names
from tools import recipe_tables as recipes

ROOT = Path(__file__).parents[2]
SOURCES = {"P", "R", "DeiT", "second-hand", "ours"}


@pytest.mark.parametrize("name", recipe_names())
def test_the_header_tells_all_there_is_to_know(name: str) -> None:
    head = recipes.header(name)
    assert set(head) == {"Source", "Run", "Hardware", "Time", "Expected", "Measured"}
    assert f"--recipe {name} " in head["Run"]
    assert head["Time"] == recipes.time_estimate(name)
    assert f", {head['Time'].partition(' on ')[0]} on " in recipes.section(name)


@pytest.mark.parametrize("name", recipe_names())
def test_every_line_tells_its_source_and_has_an_effect(name: str) -> None:
    lines = recipes.lines(name)
    assert [line.option for line in lines if not line.option.startswith("geometry.")] == [
        key for key in read_recipe(name) if key != "geometry"
    ]
    assert {line.source for line in lines} <= SOURCES
    for line in lines:
        assert recipes.written(line.value) == recipes.resolved(line.option, name), line.option


@pytest.mark.parametrize("name", recipe_names())
def test_every_documented_value_is_the_resolved_one(name: str) -> None:
    """Read back from the page itself, not from what made it."""
    page = (ROOT / "docs" / "recipes" / recipes.page_of(name)).read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    documented = {}
    for option, users, value in re.findall(r"^\| `([\w.]+)`(?: \(([\w, ]+)\))? \| `([^`]+)` \|", page, re.MULTILINE):
        if not users or name in users.split(", "):
            documented[option] = value
    assert set(documented) == {line.option for line in recipes.lines(name)}
    for option, value in documented.items():
        assert recipes.written(value) == recipes.resolved(option, name), option


def test_a_line_without_a_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "text_of", lambda name: "peak_lr: 1.0e-3  # as always\n")
    with pytest.raises(ValueError, match=r"recipe mine: the line 'peak_lr: 1\.0e-3  # as always' must be"):
        recipes.lines("mine")


def test_the_cost_of_the_released_run_is_what_the_formula_gives() -> None:
    images = 300 * (1_281_167 - 12_812)
    assert recipes.training_flops("imagenet_tiny_300") == 3 * 2 * 1_395_307_008 * images
    assert recipes.training_flops("imagenet_small_384") == 3 * 2 * 15_980_209_152 * images // 10


def test_a_network_for_few_classes_or_grey_images_costs_what_it_is() -> None:
    assert recipes.geometry_of("transfer_cifar100").num_classes == 100
    assert recipes.geometry_of("transfer_inat2018").num_classes == 8_142
    geometry = geometry_on(recipe_config("demo"), "fashion_mnist")
    assert (geometry.image_hw, geometry.in_chans) == ((28, 28), 1)


def test_a_set_with_its_own_validation_split_is_trained_on_whole() -> None:
    assert recipes.images_shown("transfer_flowers102") == 300 * 1_020


def test_the_processors_rate_is_that_of_the_committed_runs() -> None:
    runs = (ROOT / "studies" / "demo").glob("cifar10_seed*/test.json")
    seconds = [json.loads(run.read_text(encoding="utf-8"))["train_seconds"] for run in runs]
    slowest = recipes.training_flops("demo") / max(seconds)
    assert slowest == pytest.approx(recipes.CPU_FLOPS, rel=0.1)
