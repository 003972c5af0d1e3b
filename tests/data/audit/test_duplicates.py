"""The search for copies: nothing near is missed, and its work grows with the images, not with their pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ceit.data.audit import duplicates
from ceit.data.audit.duplicates import Prints, find_copies

Flips = st.lists(st.integers(0, 63), max_size=3)


def prints(count: int, seed: int = 0) -> tuple[Prints, np.ndarray]:
    """Prints of ``count`` unlike images, and their small pictures."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    bits = random.integers(0, 2**64, count, dtype=np.uint64)
    coarse = random.integers(0, 256, (count, 64), dtype=np.uint8)
    return Prints(random.integers(0, 256, (count, 16), dtype=np.uint8), bits, coarse, np.full(count, 50.0)), pictures


@given(st.integers(0, 2**64 - 1), Flips, st.integers(0, 99))
def test_what_differs_in_three_bits_meets(value: int, flips: list[int], place: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64)
    other = value
    for flip in flips:
        other ^= 1 << flip
    bits[place] = value
    bits = np.append(bits, np.uint64(other))
    pairs = {
        frozenset(pair)
        for i, j in duplicates._sharing_a_band(bits)
        for pair in zip(i.tolist(), j.tolist(), strict=True)
    }
    assert frozenset({place, 100}) in pairs


def test_the_work_is_linear_even_if_all_are_alike() -> None:
    for count in (1000, 4000):
        pairs = sum(len(i) for i, _ in duplicates._sharing_a_band(np.zeros(count, np.uint64)))
        assert pairs <= 4 * count * duplicates._REACH


def test_groups() -> None:
    found, pictures = prints(50)
    for copy, original in ((7, 3), (30, 3), (31, 20), (32, 31)):
        found.bits[copy], found.coarse[copy], pictures[copy] = found.bits[original], found.coarse[original], 0
        pictures[copy] = pictures[original]
    found.digest[7] = found.digest[3]
    found.digest[40] = found.digest[41]  # exact copies need not be looked at
    assert find_copies(found, lambda index: pictures[index]) == [[3, 7, 30], [20, 31, 32], [40, 41]]


def test_what_only_looks_alike_from_afar_is_refuted() -> None:
    found, pictures = prints(4)
    found.bits[1], found.coarse[1] = found.bits[0], found.coarse[0]
    assert find_copies(found, lambda index: pictures[index]) == []


def test_a_crowd_is_no_copy() -> None:
    """A pair is given up where many lie hardly farther away, and kept where the rest is far."""
    found, pictures = prints(40)
    crowd = np.arange(20)
    found.bits[crowd], pictures[crowd] = found.bits[0], pictures[0]
    random = np.random.default_rng(1)
    found.coarse[crowd] = 100 + random.normal(0, 3.2, (20, 64)).astype(np.int64)  # pairs at about 4.5, one at 2
    found.coarse[1] = found.coarse[0]
    found.coarse[1, ::2] += 3
    found.bits[31], pictures[31], found.coarse[31] = found.bits[30], pictures[30], found.coarse[30]
    found.coarse[31, ::2] ^= 3
    assert find_copies(found, lambda index: pictures[index]) == [[30, 31]]
