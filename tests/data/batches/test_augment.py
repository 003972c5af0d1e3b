"""Augmentation moves pixels and invents none, and each image's draws are its own."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ceit.data.batches.augment import Augmentation
from ceit.data.random_bits import random_bits, random_integers, shuffled

INDICES = np.arange(4096)


@given(
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    translate=st.integers(0, 2),
    flip=st.booleans(),
    epoch=st.integers(0, 1000),
)
def test_equals_reflected_padding_and_a_crop(height: int, width: int, translate: int, flip: bool, epoch: int) -> None:
    image = np.arange(height * width).reshape(height, width)
    augmentation = Augmentation(flip=flip, translate=translate)
    rows, columns = augmentation.source_rows_and_columns((height, width), 3, epoch, np.arange(8))
    variants = []
    for mirrored in (image, image[:, ::-1]) if flip else (image,):
        padded = np.pad(mirrored, translate, mode="reflect")
        offsets = [(top, left) for top in range(2 * translate + 1) for left in range(2 * translate + 1)]
        variants += [padded[top : top + height, left : left + width].tolist() for top, left in offsets]
    for row, column in zip(rows, columns, strict=True):
        assert image[row[:, None], column].tolist() in variants


def test_half_of_the_images_are_mirrored_and_every_shift_is_as_likely() -> None:
    rows, columns = Augmentation(flip=True, translate=2).source_rows_and_columns((9, 9), 0, 0, INDICES)
    assert abs((columns[:, 4] > columns[:, 5]).mean() - 0.5) < 0.03
    shifts = np.bincount(rows[:, 4], minlength=9)
    assert shifts[2:7].min() > 0.17 * len(INDICES)
    assert shifts[:2].sum() + shifts[7:].sum() == 0


def mirrored(seed: int, epoch: int, indices: np.ndarray = INDICES, **options: Any) -> np.ndarray:
    _, columns = Augmentation(**options).source_rows_and_columns((4, 4), seed, epoch, indices)
    return columns[:, 0] == 3


def test_with_alternating_flips_an_image_is_mirrored_in_every_other_epoch() -> None:
    first, second, third = (mirrored(5, epoch, flip="alternate") for epoch in range(3))
    assert np.array_equal(first, ~second)
    assert np.array_equal(first, third)
    assert abs(first.mean() - 0.5) < 0.03
    other = mirrored(6, 0, flip="alternate")
    assert abs((first == other).mean() - 0.5) < 0.03  # which half begins is the seed's choice
    some = np.array([7, 4000, 11])
    assert np.array_equal(mirrored(5, 1, some, flip="alternate"), second[some])  # whatever the batch


def test_without_alternating_every_epoch_draws_anew() -> None:
    drawn = [mirrored(5, epoch, flip=True) for epoch in range(3)]
    assert np.array_equal(drawn[1], random_bits(5, 1, INDICES, 1) >> np.uint64(63) == 1)
    for epoch in (1, 2):
        assert abs((drawn[0] == drawn[epoch]).mean() - 0.5) < 0.03
    assert not mirrored(5, 0, flip=False).any()


def test_brightness_scales_and_shifts_each_image_by_its_own_draws() -> None:
    images = torch.randn(2048, 2, 3, 3)
    found = Augmentation(brightness=0.25).brighten_(images.clone(), 0, 4, np.arange(2048))
    before, after = images.flatten(1), found.flatten(1)
    factors = (after[:, 0] - after[:, 1]) / (before[:, 0] - before[:, 1])
    torch.testing.assert_close(factors[:, None] * (before - before[:, :1]) + after[:, :1], after, rtol=0, atol=1e-3)
    for draws in ((factors - 1) / 0.25, (after - factors[:, None] * before)[:, 0] / 0.25):
        assert draws.abs().max() < 1.01
        assert draws.mean().item() == pytest.approx(0, abs=0.05)
        assert draws.var().item() == pytest.approx(1 / 3, abs=0.03)  # uniform from -1 to 1
    some = np.array([3, 2000])
    part = Augmentation(brightness=0.25).brighten_(images[some].clone(), 0, 4, some)
    assert torch.equal(part, found[some])
    assert not torch.equal(Augmentation(brightness=0.25).brighten_(images.clone(), 0, 5, np.arange(2048)), found)


def test_no_brightness_leaves_the_images() -> None:
    assert Augmentation().brighten_(torch.ones(4, 5, 5, 3), 0, 0, np.arange(4)).eq(1).all()


def test_the_cut_out_square_has_its_side_and_reaches_every_pixel() -> None:
    images = torch.ones(2048, 8, 8, 1)
    cut = Augmentation(cutout=3).cut_out_(images, 0, 0, np.arange(2048)) == 0
    assert cut.any(0).all()
    areas = cut.flatten(1).sum(1)
    assert areas.max() == 9
    assert areas.min() == 4  # at a corner
    for image in cut[:100, :, :, 0]:
        assert torch.equal(image, image.any(1)[:, None] & image.any(0)[None])  # a rectangle


def test_a_square_larger_than_the_image_takes_all_of_it() -> None:
    assert not Augmentation(cutout=99).cut_out_(torch.ones(4, 5, 5, 3), 0, 0, np.arange(4)).any()


def test_no_cut_out_leaves_the_images() -> None:
    assert Augmentation().cut_out_(torch.ones(4, 5, 5, 3), 0, 0, np.arange(4)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"translate": -1}, "translate -1 and cutout 0 must not be negative"),
        ({"cutout": -1}, "translate 0 and cutout -1 must not be negative"),
        ({"rand_augment": "rand-q9"}, "rand_augment 'rand-q9' must be of the form 'rand-m9-n2-mstd0.5-inc1', n at"),
        ({"rand_augment": "rand-weird"}, "must be of the form"),
        ({"rand_augment": "rand-m9-mstd.5"}, "must be of the form"),  # timm's reader takes the point for a letter
        ({"rand_augment": "rand-m9-n15-tweights"}, "n at most 14"),
        ({"rand_augment": "rand-m9", "trivial_augment": True}, "rand_augment rand-m9 and trivial_augment exclude"),
        ({"color_jitter": 1.5}, "color_jitter 1.5 must be between 0, which is off, and 1"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale .* must be two shares"),
        ({"random_erasing": 2.0}, "random_erasing 2.0 must be a probability"),
        ({"brightness": 1.0}, r"brightness 1.0 must be in \[0, 1\): at 1 an image may lose all contrast"),
        ({"repeats": 0}, "repeats 0 must be at least 1, which shows every image once an epoch"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**values)


def test_a_translation_beyond_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="translate 8 must be below the image's shorter side of 8 pixels"):
        Augmentation(translate=8).check_size((9, 8))


def test_the_mixing_is_splitmix64() -> None:
    """The first outputs of the published generator for seed 0, which adds the golden ratio before each."""
    from ceit.data import random_bits as module

    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(1, 4, dtype=np.uint64) * golden
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert module._mix(states).tolist() == expected


def test_bits_are_fair_and_streams_do_not_agree() -> None:
    draws = [random_bits(0, 0, INDICES, stream) for stream in range(3)]
    draws += [random_bits(1, 0, INDICES, 0), random_bits(0, 1, INDICES, 0), random_bits(-1, 0, INDICES, 0)]
    for number, draw in enumerate(draws):
        bits = np.unpackbits(draw.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 0.01
        for other in draws[number + 1 :]:
            agreement = 1 - np.unpackbits((draw ^ other).view(np.uint8)).mean()
            assert abs(agreement - 0.5) < 0.01


@given(low=st.integers(-50, 50), span=st.integers(1, 100), seed=st.integers(0, 2**63))
def test_integers_stay_in_range(low: int, span: int, seed: int) -> None:
    draws = random_integers(seed, 0, INDICES, 1, low, low + span)
    assert draws.min() >= low
    assert draws.max() < low + span
    assert len(set(draws.tolist())) == span


@given(count=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 500))
def test_an_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(count, seed, epoch).tolist()) == list(range(count))


def test_every_epoch_has_its_order_and_a_resumed_run_the_same() -> None:
    assert shuffled(5, 0, 0).tolist() == shuffled(5, 0, 0).tolist()
    orders = {tuple(shuffled(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
