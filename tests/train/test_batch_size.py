"""The batch follows the set and the time where nobody has chosen it, and the learning rate follows the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ceit.train.batch_norm import FEW_IMAGES
from ceit.train.batch_size import STEPS_OF_AN_EPOCH, batch_for_run, batch_for_set
from ceit.train.config import Mixing, TrainConfig
from ceit.train.distributed import make_accelerator, require_even_shares
from ceit.train.resolve import resolve
from ceit.train.run import Result, find_learning_rate, train
from tests.train.conftest import SMALL

OPEN = replace(SMALL, global_batch_size=None, peak_lr=3e-3, epochs=1)


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [(1, 2), (13, 12), (205, 16), (640, 32), (1_365, 64), (5_119, 128), (5_120, 256), (48_000, 256)],
)
def test_an_epoch_has_twenty_steps_unless_batch_norm_would_see_too_few_images(images: int, batch_size: int) -> None:
    assert batch_for_set(images, 1) == batch_size


@given(images=st.integers(1, 10**7), processes=st.integers(1, 64))
def test_every_process_gets_an_even_share_that_batch_norm_can_use(images: int, processes: int) -> None:
    for batch_size in (batch_for_set(images, processes), batch_for_run(images, processes)):
        assert batch_size % (2 * processes) == 0
        assert batch_size >= FEW_IMAGES * processes or images < FEW_IMAGES * processes
    batch_size = batch_for_set(images, processes)
    assert batch_size <= FEW_IMAGES * processes or images >= STEPS_OF_AN_EPOCH * batch_size


@pytest.mark.parametrize(("scaling", "rate"), [("linear", 1e-3 / 16), ("sqrt", 1e-3 / 4)])
def test_the_rate_scales_as_asked(scaling: Any, rate: float) -> None:
    config = TrainConfig(peak_lr=1e-3, lr_base_size=256, global_batch_size=16, lr_scaling=scaling)
    assert config.scaled_lr == pytest.approx(rate)


@pytest.mark.parametrize(
    ("options", "power"),
    [
        ({}, 0.5),
        ({"lr_scaling": "linear"}, 1.0),
        ({"lr_base_size": 256}, 1.0),
        ({"lr_base_size": 256, "lr_scaling": "sqrt"}, 0.5),
        ({"lr_base_size": None}, 0.0),
    ],
)
def test_a_chosen_batch_scales_the_rate_by_the_root_unless_the_options_say_otherwise(
    options: dict[str, Any], power: float
) -> None:
    config = replace(OPEN, **options)
    run = resolve(config, "digits", make_accelerator(config))
    share = run.config.batch_size / 256
    assert share < 1
    assert run.config.scaled_lr == pytest.approx(3e-3 * share**power)


def test_scaling_from_no_size_is_refused() -> None:
    config = replace(OPEN, lr_scaling="sqrt", global_batch_size=64)
    with pytest.raises(ValueError, match="lr_scaling sqrt has no effect without an lr_base_size: set lr_base_size"):
        resolve(config, "digits", make_accelerator(config))


def test_the_range_test_suggests_a_rate_for_the_run_as_its_options_are(tmp_path: Path) -> None:
    found = [
        find_learning_rate(config, "digits", tmp_path / str(number))
        for number, config in enumerate([OPEN, replace(OPEN, lr_base_size=None)])
    ]
    assert found[1].suggested is not None
    assert found[0].suggested == pytest.approx(found[1].suggested * (256 / batch_for_set(1437, 1)) ** 0.5)


def test_a_resumed_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size 256 must be a multiple of the 3 processes"):
        require_even_shares(replace(OPEN, global_batch_size=256), 3)
    with pytest.raises(ValueError, match="share of 85 images must be even to be mixed"):
        require_even_shares(replace(OPEN, global_batch_size=340, mixing=Mixing(mixup_alpha=0.2)), 4)
    require_even_shares(OPEN, 3)


def photos(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (20, 24, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(path)
    return folder


def run_on(data: Path, output: Path, said: list[str], config: TrainConfig = OPEN, **options: Any) -> Result:
    return train(config, str(data), output, say=said.append, **options)


def test_a_small_set_is_learnt_in_small_steps_and_going_on_keeps_them(tmp_path: Path) -> None:
    """256 images were one step of 256, and an epoch of one step teaches nothing."""
    said: list[str] = []
    data = photos(tmp_path / "photos", 256)
    result = run_on(data, tmp_path / "run", said, replace(OPEN, epochs=4))
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    assert saved["global_batch_size"] == 16
    assert saved["steps"] >= 4 * 12
    scaled = "learning rate after the warm-up: 0.003 * sqrt(16 / 256) = 0.00075"
    assert any("global_batch_size is 16, not 256; an epoch has 12 steps" in line and scaled in line for line in said)
    assert result.test.top1_percent == 100  # one class is dark, the other light
    run_on(data, tmp_path / "run", said, replace(OPEN, epochs=4), resume="auto")
    assert any("resumed after step" in line for line in said)


def test_a_size_that_was_asked_for_stays_and_so_does_its_rate(tmp_path: Path) -> None:
    said: list[str] = []
    run_on(photos(tmp_path / "photos", 256), tmp_path / "run", said, replace(OPEN, global_batch_size=64))
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    assert (saved["global_batch_size"], saved["lr_base_size"], saved["peak_lr"]) == (64, None, 3e-3)
    assert not any("global_batch_size is" in line for line in said)


def test_a_short_time_is_spent_on_more_steps(tmp_path: Path) -> None:
    """The digits allow 64 images a step; where the time allows a single step of these, 16 teach more."""
    for size, wanted in ((None, 16), (64, 64)):
        said: list[str] = []
        run = tmp_path / str(size)
        config = replace(OPEN, epochs=None, global_batch_size=size)
        train(config, "digits", run, time_budget_seconds=1e-3, say=said.append)
        saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        assert saved["global_batch_size"] == wanted
        few = "1 steps of 64 images are few to learn by: global_batch_size is 16, learning rate after the warm-up: "
        assert any(line.startswith(few) for line in said) == (size is None)
