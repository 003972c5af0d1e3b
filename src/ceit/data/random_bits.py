"""Random numbers as a function of (seed, epoch, index): no state, so every worker, batch size or resumed run agrees.

Source: the mixing function is SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014).
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)

ORDER_STREAM = 0  # the streams of one (seed, epoch, index) are independent; orders have the others below 0


def random_bits(seed: int, epoch: int, indices: np.ndarray, stream: int) -> np.ndarray:
    """64 random bits for every index, uint64 of the shape of ``indices``."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        key = _mix(key + np.uint64(part % 2**64) + _GOLDEN)
    return _mix(key + indices.astype(np.uint64) * _GOLDEN)


def random_integers(seed: int, epoch: int, indices: np.ndarray, stream: int, low: int, high: int) -> np.ndarray:
    """A uniform integer in ``low <= value < high`` for every index, int64; the range is below 2^32."""
    upper_half = random_bits(seed, epoch, indices, stream) >> np.uint64(32)
    return (upper_half * np.uint64(high - low) >> np.uint64(32)).astype(np.int64) + low


def shuffled(count: int, seed: int, epoch: int, stream: int = ORDER_STREAM) -> np.ndarray:
    """A permutation of ``range(count)``."""
    return np.argsort(random_bits(seed, epoch, np.arange(count), stream), kind="stable")


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
