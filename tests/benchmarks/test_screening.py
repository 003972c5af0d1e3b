"""Screening: every run of a plan once, at equal compute, with validation alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import screening
from benchmarks.compute.plan import mean_macs_of
from ceit.model import config_of
from ceit.model.complexity import complexity

PFLOP = 4e-6
PLAN: dict[str, Any] = {
    "data": "digits",
    "options": {
        "model": "ceit_pico_patch4_32",
        "geometry": {"embed_dim": 16, "depth": 1, "stem_channels": 8, "lca": False, "global_pool": "avg"},
        "img_size": [16, 16],
        "global_batch_size": 64,
        "precision": "float32",
    },
    "budgets": {
        PFLOP: {
            "reference": {"options": {"label_smoothing": 0.2}},
            "wider": {"options": {"geometry": {"embed_dim": 32}}, "seeds": [0, 1]},
        }
    },
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False), encoding="utf-8")
    return tmp_path


def screen(study: Path, *arguments: str) -> list[dict[str, Any]]:
    assert screening.main(["--study", str(study), "--work", str(study / "work"), *arguments]) == 0
    results = study / "results.jsonl"
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.exists() else []


def test_every_run_once_for_its_share_of_compute(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert screen(study, "--plan") == []
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "reference",
        "wider",
        "wider",
    ]
    lines = screen(study)
    assert [(line["name"], line["change"], line["seed"]) for line in lines] == [
        ("reference", "none", 0),
        ("wider", "geometry.embed_dim 32", 0),
        ("wider", "geometry.embed_dim 32", 1),
    ]
    for line in lines:
        assert 6 * line["macs"] * line["steps"] * 64 / 1e15 == pytest.approx(PFLOP, rel=0.1)
        assert 0 < line["validation"] < 100
    assert lines[0]["steps"] > 2 * lines[1]["steps"]
    assert lines[1]["loss"] != lines[2]["loss"]
    assert not list(study.glob("work/*/test.json")), "the test split was looked at"
    assert screen(study) == lines


def test_what_all_runs_of_a_budget_have_comes_from_its_reference(study: Path) -> None:
    reference, wider, _ = screening.planned(study / "plan.yaml")
    assert reference.config.label_smoothing == wider.config.label_smoothing == 0.2
    assert wider.config.geometry == PLAN["options"]["geometry"] | {"embed_dim": 32}


def test_a_wrong_plan_is_refused(study: Path) -> None:
    (study / "plan.yaml").write_text(yaml.safe_dump(PLAN | {"budget": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="unknown key 'budget'; did you mean 'budgets'"):
        list(screening.planned(study / "plan.yaml"))


def test_smaller_images_at_first_cost_less() -> None:
    options = {"model": "ceit_nano_patch4_32", "small_images": {"scale": 0.75, "share": 0.4}}
    small, large = (complexity(config_of("ceit_nano_patch4_32", img_size=side)).macs for side in (24, 32))
    assert mean_macs_of({}, options, "cifar10") == pytest.approx(0.4 * small + 0.6 * large)
    assert mean_macs_of({}, {"model": options["model"]}, "cifar10") == large


@pytest.mark.parametrize("name", ["screening", "screening_fashion", "photo_recipes"])
def test_every_run_of_the_committed_plans_can_be_trained(repository: Path, name: str) -> None:
    runs = list(screening.planned(repository / "studies" / name / "plan.yaml"))
    assert len({run.key for run in runs}) == len(runs) > 1
    for run in runs:
        assert 6 * run.mean_macs * run.steps * run.config.batch_size / 1e15 == pytest.approx(run.pflop, rel=0.01)
