"""Whether one network is better than another, or the test images or the seeds happened to fall so."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

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
    def p_of_seeds(self) -> float | None:
        """Of the gains as a whole: ``paired_t``.

        None for fewer than three seeds, and where all gain the same, which a test set of so many images may hide.
        """
        has_spread = len(set(self.gains)) > 1 or not any(self.gains)
        return paired_t(self.gains) if len(self.gains) > 2 and has_spread else None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where every seed says so, each at 5 %; ``one seed`` alone says nothing of others."""
        if len(self.gains) == 1:
            return "one seed"
        if max(self.p_values) < LEVEL and min(self.gains) > 0:
            return "better"
        return "worse" if max(self.p_values) < LEVEL and max(self.gains) < 0 else "not significant"


def compare(first: list[np.ndarray], second: list[np.ndarray]) -> Comparison:
    """The networks that recognised these images, bool ``(images,)`` for each seed; pairs belong to one seed.

    Raises: ValueError without a pair, or for a pair of different lengths.
    """
    if not first or list(map(len, first)) != list(map(len, second)):
        raise ValueError("a comparison needs one or more seeds, and the same test images for both networks")
    alone = [(int((one & ~other).sum()), int((~one & other).sum())) for one, other in zip(first, second, strict=True)]
    gains = (100 * (one - other) / len(images) for (one, other), images in zip(alone, first, strict=True))
    return Comparison(tuple(gains), tuple(mcnemar(*pair) for pair in alone))


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
    from scipy.stats import ttest_1samp

    if len(differences) < 2:
        raise ValueError(f"{len(differences)} differences have no spread: a t-test needs two or more")
    if len(set(differences)) == 1:
        return 0.0 if mean(differences) else 1.0
    _, p_value = np.asarray(ttest_1samp(differences, 0.0))
    return float(p_value)
