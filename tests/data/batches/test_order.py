"""Orders by their properties: what an epoch shows, how often, how evenly, and that it is a function of the seed."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceit.data.batches.order import COPY, Order, balanced, windowed
from ceit.data.random_bits import shuffled

LABELS = st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=40)
SEEDS = st.integers(0, 2**63)


@given(images=st.integers(1, 60), cut=st.integers(0, 20), repeats=st.integers(1, 5), seed=st.none() | SEEDS)
def test_every_image_comes_so_many_times_in_a_row_but_for_the_cut(
    images: int, cut: int, repeats: int, seed: int | None
) -> None:
    length = max(1, images - cut)
    draws = Order(images, length, seed, repeats).draws(3)
    assert len(draws) == length
    assert len(set(draws.tolist())) == length
    assert draws.max() // COPY < repeats
    assert draws.max() % COPY < images
    assert (draws // COPY).tolist() == [number % repeats for number in range(length)]
    assert (draws % COPY).tolist() == [(draws % COPY)[number // repeats * repeats] for number in range(length)]
    assert len(set((draws % COPY).tolist())) == -(-length // repeats)


def test_repeated_images_are_other_ones_each_epoch_and_all_as_often() -> None:
    """Of 30 images an epoch shows 10: over 900 epochs each is shown 300 times, within five standard deviations."""
    order = Order(30, 30, seed=5, repeats=3)
    shown = [frozenset((order.draws(epoch) % COPY).tolist()) for epoch in range(900)]
    assert len(set(shown)) > 890
    counts = np.bincount([index for epoch in shown for index in epoch], minlength=30)
    assert abs(counts - 300).max() < 5 * np.sqrt(900 * 1 / 3 * 2 / 3)


@given(labels=LABELS, count=st.integers(1, 90), seed=SEEDS, epoch=st.integers(0, 500))
def test_balanced_draws_are_even_over_classes_and_within_each(
    labels: list[int], count: int, seed: int, epoch: int
) -> None:
    array = np.array(labels)
    draws = balanced(array, count, seed, epoch)
    assert len(draws) == len(set(draws.tolist())) == count  # what comes again is another copy
    classes = sorted(set(labels))
    drawn = array[draws % COPY]
    for end in range(count + 1):  # however the epoch is cut
        sizes = [np.count_nonzero(drawn[:end] == label) for label in classes]
        assert max(sizes) - min(sizes) <= 1
    shown = np.bincount(draws % COPY, minlength=len(array))
    for label in classes:
        assert np.ptp(shown[array == label]) <= 1


def test_balanced_draws_differ_by_seed_and_epoch_and_leave_nothing_out() -> None:
    labels = np.repeat([0, 1], [95, 5])
    epochs = [balanced(labels, 100, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(draws) for draws in epochs}) == 3
    assert len({tuple(labels[draws % COPY]) for draws in epochs}) == 3  # the classes are not in a fixed order either
    counts = np.bincount(np.concatenate([balanced(labels, 100, 0, epoch) % COPY for epoch in range(400)]))
    assert abs(counts[:95] - 400 * 50 / 95).max() < 5 * np.sqrt(400 * 50 / 95 * 45 / 95)
    assert (counts[95:] == 4000).all()


def test_balanced_images_are_repeated_as_copies_of_their_own() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1])
    draws = Order(6, 12, seed=1, repeats=2, labels=labels).draws(0)
    assert len(set(draws.tolist())) == 12
    assert sorted(draws[draws % COPY == 5] // COPY) == [0, 1, 2, 3, 4, 5]  # shown three times, two copies each


@given(shards=st.lists(st.integers(1, 6), min_size=1, max_size=8), window=st.integers(1, 9), seed=SEEDS, data=st.data())
def test_a_window_mixes_whole_shards(shards: list[int], window: int, seed: int, data: Any) -> None:
    shard_of = np.array(data.draw(st.permutations(np.repeat(np.arange(len(shards)) * 3, shards).tolist())))
    order = windowed(shard_of, window, seed, 4)
    assert sorted(order.tolist()) == list(range(len(shard_of)))
    if window >= len(shards):
        assert np.array_equal(order, shuffled(len(shard_of), seed, 4))
    opened, left = set(), dict(zip(range(0, 3 * len(shards), 3), shards, strict=True))
    for shard in shard_of[order].tolist():
        if shard not in opened:
            if len(opened) == window:
                assert not any(left[before] for before in opened)
                opened = set()
            opened.add(shard)
        left[shard] -= 1


def test_shards_come_in_another_order_each_epoch_and_are_mixed() -> None:
    shard_of = np.repeat(np.arange(12), 20)
    shards = [shard_of[windowed(shard_of, 3, 0, epoch)] for epoch in range(6)]
    assert len({tuple(dict.fromkeys(order[:60].tolist())) for order in shards}) == 6
    changes = np.count_nonzero(np.diff(shards[0][:60]))
    assert changes > 25  # of 59 neighbours about two thirds differ; unmixed shards would change twice


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repeats": 3},
        {"labels": np.arange(1_281_167) % 1000},
        {"shard_of": np.arange(1_281_167) // 1000, "shard_window": 16},
    ],
)
def test_a_million_images_are_ordered_while_one_waits(options: dict[str, Any]) -> None:
    """A second or less on one undisturbed core; the limit allows for a busy machine."""
    began = time.process_time()
    draws = Order(1_281_167, 1_281_024, seed=0, **options).draws(7)
    assert time.process_time() - began < 5
    assert len(draws) == 1_281_024


@given(length=st.integers(1, 50), repeats=st.integers(1, 3), seed=SEEDS)
def test_a_shorter_epoch_is_the_beginning_of_the_whole(length: int, repeats: int, seed: int) -> None:
    options: dict[str, Any] = {"images": 50, "seed": seed, "repeats": repeats}
    extras: list[dict[str, Any]] = [
        {},
        {"labels": np.arange(50) % 7},
        {"shard_of": np.arange(50) // 5, "shard_window": 2},
    ]
    for extra in extras:
        whole = Order(length=50, **options, **extra).draws(1)
        assert np.array_equal(Order(length=length, **options, **extra).draws(1), whole[:length])
