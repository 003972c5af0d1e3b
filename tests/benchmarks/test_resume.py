"""The study of killed and resumed runs, made short."""

import signal

from benchmarks.resume import OPTIONS, Moment, study

SHORT = OPTIONS | {"epochs": "2", "limit_batches": "24", "global_batch_size": "16", "geometry.depth": "2"}


def test_a_killed_run_is_the_run_left_alone() -> None:
    moments: list[Moment] = ["before the first checkpoint", "in a step", "in a save"]
    result = study("digits", SHORT, moments, signal.SIGKILL)
    assert [stop["moment"] for stop in result["stops"]] == moments
    assert result["stops"][0]["newest_checkpoint"] is None
    assert result["stops"][1]["newest_checkpoint"] is not None
    assert result["lines_compared"] == 2 * 24 + 2 + 1  # a line a step, an epoch, and the test
    assert result["different"] == []
