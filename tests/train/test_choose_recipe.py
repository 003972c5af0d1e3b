"""The recipe that is chosen, and the sentences that say why: a function of a few facts."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceit.train.choose_recipe import FEW_A_CLASS, FINE_TUNING, PHOTOS, SMALL_IMAGES, Facts, choose_recipe
from ceit.train.recipe import recipe_config, recipe_names

PHOTOS_OF_A_PHONE = Facts(images=3_000, classes=8, side=3_000, cores=2)


@pytest.mark.parametrize(
    ("changes", "recipe", "because"),
    [
        ({}, "photos_224", "large and many enough for 224 pixels, and there is time"),
        ({"cores": 1}, "photos_128", "photos_224 sees more detail, but takes about 1.1 h here; --recipe photos_224 "),
        ({"cores": 16}, "photos_224", "large and many enough for 224 pixels, and there is time"),
        ({"has_gpu": True}, "photos_224", "the machine has a GPU"),
        ({"has_gpu": True, "images": 1_200}, "photos_128", "wants 2,000 images or more"),
        ({"budget_seconds": 180.0}, "photos_64", "the machine has 2 CPU cores, the run 3 min"),
        (
            {"budget_seconds": 60.0},
            "photos_64",
            "is the quickest, but to learn much even it needs at least 5.5 min here",
        ),
        ({"budget_seconds": 600.0}, "photos_128", "photos_224 sees more detail, but needs at least 16 min here"),
        ({"budget_seconds": 7_200.0}, "photos_224", "the run 2 h"),
        ({"images": 205, "budget_seconds": 180.0}, "photos_128", "25 images a class are few to learn from nothing"),
        ({"side": 32}, "demo", r"made for small images\.$"),
        ({"side": 32, "images": 48_000, "budget_seconds": 600.0}, "demo", r"made for small images\.$"),
        ({"side": 32, "images": 48_000, "budget_seconds": 1_800.0}, "small_30min", "time for more than demo does"),
        ({"side": 32, "images": 48_000, "budget_seconds": 5_400.0}, "small_90min", "time for more than demo does"),
        ({"side": 32, "images": 48_000, "has_gpu": True}, "small_90min", "time for more than demo does"),
        ({"side": 32, "images": 1_300}, "demo", r"made for small images\.$"),
        ({"side": 48}, "photos_64", "the images show no more detail than 64 pixels hold"),
        ({"side": 120}, "photos_128", "no more detail than 128"),
        ({"side": 190, "has_gpu": True}, "photos_224", "large and many enough"),
        ({"asked_side": 96}, "photos_128", "nearest to the 96 pixels that were asked for"),
        ({"asked_side": 512}, "photos_224", "512 pixels"),
        ({"asked_side": 32}, "demo", "32 pixels were asked for"),
        ({"starts_trained": True, "asked_side": 96, "images": 20}, "photos_finetune", "have learnt before"),
    ],
)
def test_the_choice_follows_the_facts(changes: dict[str, float], recipe: str, because: str) -> None:
    choice = choose_recipe(replace(PHOTOS_OF_A_PHONE, **changes))
    assert choice.recipe == recipe
    assert f"The recipe is {recipe}: " in choice.reason
    assert re.search(because, choice.reason)


@given(
    images=st.integers(1, 10**7),
    classes=st.integers(2, 2_000),
    side=st.integers(1, 20_000),
    cores=st.integers(1, 256),
    has_gpu=st.booleans(),
    budget=st.none() | st.floats(1, 1e6),
    asked=st.none() | st.integers(1, 4_000),
    trained=st.booleans(),
)
def test_whatever_lies_there_a_recipe_is_named_in_two_or_three_sentences(
    images: int, classes: int, side: int, cores: int, has_gpu: bool, budget: float | None, asked: int, trained: bool
) -> None:
    facts = Facts(images, classes, side, cores, has_gpu, budget, asked, trained)
    recipe, reason = choose_recipe(facts)
    assert recipe in recipe_names()
    assert reason.startswith(f"Found about {images:,} images of {classes:,} classes to train on, ")
    sentences = re.split(r"(?<=\.) (?=[A-Z\d])", reason)
    assert len(sentences) == 2 + (not trained and images < FEW_A_CLASS * classes)


def test_a_longer_time_never_leads_to_smaller_images() -> None:
    sizes = {recipe: size for size, recipe in PHOTOS.items()}
    for images in (100, 1_000, 5_000, 100_000):
        chosen = [
            sizes[choose_recipe(replace(PHOTOS_OF_A_PHONE, images=images, budget_seconds=60.0 * 2**n)).recipe]
            for n in range(12)
        ]
        assert chosen == sorted(chosen)


@pytest.mark.parametrize("name", [*SMALL_IMAGES, FINE_TUNING, *PHOTOS.values()])
def test_a_recipe_that_may_be_chosen_leaves_the_batch_to_the_set(name: str) -> None:
    config = recipe_config(name)
    assert config.global_batch_size is None
    assert config.epochs is None


@pytest.mark.parametrize("size", PHOTOS)
def test_the_recipes_for_photos_have_their_size_and_their_model(size: int) -> None:
    config = recipe_config(PHOTOS[size])
    assert config.img_size == size
    assert config.model.endswith(f"_{size}")
