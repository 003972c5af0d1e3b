"""The table of what was tried: every line stays, gains are those over the seeds that both have."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import screening


def line(**changes: Any) -> str:
    run = {"name": "demo", "change": "none", "pflop": 0.0601, "seed": 0, "validation": 85.0, "loss": 0.7, "steps": 585}
    return json.dumps({**run, "macs": 70_510_656, **changes}) + "\n"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "screening" / "results.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr(screening, "STUDIES", tmp_path)
    return path


def test_the_reference_comes_first_then_gains_and_losses(results: Path) -> None:
    worse = line(name="no-warmup", change="warmup_epochs: 0", validation=84.25)
    better = line(name="pooled", change="geometry.pool: mean", validation=86.5, loss=0.66) + line(
        name="pooled", change="geometry.pool: mean", seed=1, validation=87.5, loss=0.64
    )
    results.write_text(worse + better + line(), encoding="utf-8")
    assert screening.screening_table().splitlines()[2:] == [
        "| 0.06 | demo | none | 0 | 85.00 % |  | 0.700 | 585 | 70.5M |",
        "| 0.06 | pooled | geometry.pool: mean | 0, 1 | 87.00 % | +1.50 | 0.650 | 585 | 70.5M |",
        "| 0.06 | no-warmup | warmup_epochs: 0 | 0 | 84.25 % | -0.75 | 0.700 | 585 | 70.5M |",
    ]


def test_without_a_reference_at_its_budget_a_change_has_no_gain(results: Path) -> None:
    results.write_text(line() + line(name="long", change="epochs: 12", pflop=0.24), encoding="utf-8")
    assert screening.screening_table().splitlines()[3] == (
        "| 0.24 | long | epochs: 12 | 0 | 85.00 % |  | 0.700 | 585 | 70.5M |"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (line() + '{"name": "de', r"line 2 of .*results\.jsonl is no JSON"),
        (line(top1=3), "line 1 of .* must have the keys change, loss, macs, name, pflop, seed, steps, validation"),
        (line() + line(), "line 2 of .* is the second run of demo with seed 0"),
        (line() + line(name="other"), r"two references of 0\.06 PFLOP: give one of them its change"),
    ],
)
def test_lines_that_cannot_be_told_apart_are_refused(results: Path, text: str, sentence: str) -> None:
    results.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        screening.screening_table()
