"""Pictures of this repository's own studies."""

from pathlib import Path

import pytest

from ceit.plots import ORANGE
from tests.test_pictures import pixels_of, write_run
from tools.measured import draw_averages


def test_averages_of_several_runs_are_drawn_or_refused(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b", "without")]
    for run in runs:
        run.mkdir()
        write_run(run, ema=run.name != "without")
    assert pixels_of(draw_averages(runs[:2], tmp_path / "averages.png"), ORANGE) > 100
    with pytest.raises(ValueError, match="3 runs are given: it takes one or more, all with a moving average"):
        draw_averages(runs, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
