"""Whether one network is better than another, or the test images or the seeds happened to fall so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same test images, for each of several seeds.

    Attributes:
        gains: percentage points by which the first is better, a number for each seed.
        p_values: of McNemar's exact test, a number for each seed.
    """

    gains: tuple[float, ...]
    p_values: tuple[float, ...]

    @property
    def significant(self) -> bool:
        """Every seed says the same, each at 5 %."""
        same = all(gain > 0 for gain in self.gains) or all(gain < 0 for gain in self.gains)
        return same and max(self.p_values) < LEVEL

    @property
    def p_of_seeds(self) -> float | None:
        """Of the gains as a whole: ``paired_t``, None for fewer than three seeds."""
        return paired_t(self.gains) if len(self.gains) > 2 else None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not significant``; of a single seed no such thing is said."""
        if len(self.gains) == 1:
            return "one seed"
        if not self.significant:
            return "not significant"
        return "better" if self.gains[0] > 0 else "worse"


def compare(first: list[np.ndarray], second: list[np.ndarray]) -> Comparison:
    """The networks that recognised these images, bool ``(images,)`` for each seed; pairs belong to one seed.

    Raises: ValueError without a pair, or for a pair of different lengths.
    """
    if not first or len(first) != len(second) or any(len(a) != len(b) for a, b in zip(first, second, strict=True)):
        raise ValueError("a comparison needs one or more seeds, and the same test images for both networks")
    gains, p_values = [], []
    for one, other in zip(first, second, strict=True):
        only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
        gains.append(100 * (only_one - only_other) / len(one))
        p_values.append(mcnemar(only_one, only_other))
    return Comparison(tuple(gains), tuple(p_values))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the images that one network alone recognised.

    ``p = min(1, 2 P(X <= min(b, c)))`` with ``X`` binomial of ``b + c`` fair throws. Source: McNemar, Psychometrika
    1947, in the exact form.
    """
    from scipy.stats import binomtest

    throws = only_first + only_second
    return float(binomtest(only_first, throws).pvalue) if throws else 1.0


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p-value of Student's t-test that the differences, one for each pair, have mean zero.

    ``t = mean / (standard deviation / sqrt(n))`` with ``n - 1`` degrees of freedom.
    Raises: ValueError for fewer than two differences.
    """
    from scipy.stats import t as student_t

    if len(differences) < 2:
        raise ValueError(f"{len(differences)} differences have no spread: a t-test needs two or more")
    if not stdev(differences):
        return 0.0 if mean(differences) else 1.0
    t = mean(differences) / stdev(differences) * math.sqrt(len(differences))
    return float(2 * student_t.sf(abs(t), len(differences) - 1))
