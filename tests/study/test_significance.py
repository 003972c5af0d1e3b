"""McNemar's test against values worked out otherwise, and what makes a claim."""

import math
from statistics import mean, stdev

import numpy as np
import pytest
from scipy.stats import t as student

from ceit.study.significance import compare, mcnemar, paired_t


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (1, 9), (30, 12), (410, 350), (0, 2000)])
def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_recognised(b: int, c: int) -> None:
    wanted = min(1.0, sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) * 2 / 2 ** (b + c))
    assert mcnemar(b, c) == pytest.approx(wanted, rel=1e-9, abs=1e-300)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_a_gain_in_every_seed_is_better_and_one_seed_against_it_is_not() -> None:
    good, bad = np.arange(1000) < 800, np.arange(1000) < 700
    found = compare([good, good], [bad, bad])
    assert found.gains == (10.0, 10.0)
    assert found.verdict == "better"
    assert compare([bad, bad], [good, good]).verdict == "worse"
    assert compare([good, bad], [bad, good]).verdict == "not significant"
    assert compare([good, good], [bad, good]).verdict == "not significant"
    assert compare([good], [good]).p_values == (1.0,)


def test_one_seed_tells_nothing_of_others() -> None:
    assert compare([np.arange(1000) < 800], [np.arange(1000) < 700]).verdict == "one seed"


def test_different_test_images_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the same test images"):
        compare([np.ones(3, bool)], [np.ones(4, bool)])
    with pytest.raises(ValueError, match="one or more seeds"):
        compare([], [])


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 6, 11])
def test_the_t_test_is_that_of_the_formula(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(0.5, 1.0, pairs).tolist()
    t = mean(differences) / (stdev(differences) / math.sqrt(pairs))
    assert paired_t(differences) == pytest.approx(2 * student.sf(abs(t), pairs - 1), rel=1e-9)
    assert paired_t([-gain for gain in differences]) == paired_t(differences)


def test_differences_without_spread_are_certain_and_one_alone_is_no_test() -> None:
    assert paired_t([1.0, 1.0, 1.0]) == 0.0
    assert paired_t([0.0, 0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="1 differences have no spread"):
        paired_t([1.0])


def test_the_seeds_are_tested_as_a_whole_from_three_on() -> None:
    good, bad = np.arange(1000) < 800, np.arange(1000) < 700
    assert compare([good, good], [bad, bad]).p_of_seeds is None
    one_more = np.arange(1000) < 701
    assert compare([one_more] * 3, [bad] * 3).p_of_seeds is None  # not certain: a test set counts whole images
    assert compare([bad] * 3, [bad] * 3).p_of_seeds == 1.0
    assert compare([good, good, bad], [bad, bad, good]).p_of_seeds == pytest.approx(paired_t([10.0, 10.0, -10.0]))
