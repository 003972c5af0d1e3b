"""What is told of a process that was looked at for long, on looks that are made up."""

import pytest

from benchmarks.soak import Look, summary


def looks(growth: float = 0.0, work: float = 0.0) -> list[Look]:
    """Ten units between two looks; each takes 10 ms, 8 of them computed, and ``work`` s more for each done before."""
    found, seconds, computed = [], 0.0, 0.0
    for done in range(0, 2010, 10):
        found.append(Look(done, 100 + growth * done / 1000, 5, seconds, computed))
        seconds += 10 * (0.010 + work * done)
        computed += 10 * (0.008 + work * done)
    return found


def test_what_stays_as_it_is_has_no_slope_and_the_same_pace() -> None:
    told = summary(looks(), "steps")
    assert told["steps"] == 2000
    assert told["megabytes_a_thousand"] == [0, 0, 0]
    assert told["steps_a_second_by_tenths"] == [100.0] * 10
    assert told["cpu_milliseconds_each_by_tenths"] == [8.0] * 10
    assert (told["last_pace_to_first"], told["last_cost_to_first"]) == (1, 1)


def test_growth_is_told_a_thousand_and_work_that_grows_by_its_tenths() -> None:
    told = summary(looks(growth=3.0, work=2e-6), "steps")
    assert told["megabytes_a_thousand"] == pytest.approx([3, 3, 3], abs=1e-3)
    assert told["megabytes_a_thousand_in_the_last_half"] == pytest.approx([3, 3, 3], abs=1e-3)
    # From unit 400 on, in tenths of 160: their middles are 475 and 1915.
    assert told["last_cost_to_first"] == pytest.approx((0.008 + 2e-6 * 1915) / (0.008 + 2e-6 * 475), abs=2e-3)
    assert told["last_pace_to_first"] == pytest.approx((0.010 + 2e-6 * 475) / (0.010 + 2e-6 * 1915), abs=2e-3)


def test_too_few_looks_are_refused() -> None:
    with pytest.raises(ValueError, match="only 17 looks at what is warm: too few for a slope"):
        summary(looks()[:21], "steps")
