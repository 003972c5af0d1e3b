"""The tables of results say what the committed runs say."""

import json
from pathlib import Path

import pytest

from tools.results import results_table, with_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "study"),
    [
        ("README.md", "demo"),
        ("README.zh-CN.md", "demo"),
        ("docs/decisions/small-images.md", "demo_translate_1"),
    ],
)
def test_the_pages_show_the_committed_results(page: str, study: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_table(text, results_table(ROOT / "studies" / study)) == text, "run: make results"


def test_every_committed_run_holds_its_log_and_agrees_with_its_report() -> None:
    reports = sorted((ROOT / "studies").glob("demo*/*/test.json"))
    assert reports
    for path in reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        log = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        final = next(line for line in log if line["event"] == "test")
        assert final["top1_percent"] == report["top1_percent"]
        right = sum(report["confusion"][i][i] for i in range(len(report["confusion"])))
        assert 100 * right / report["images"] == pytest.approx(report["top1_percent"])
        assert (path.parent / "config.yaml").is_file()


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    shared = {"data": "digits", "model": "m", "parameters": 1, "images": 360, "top1_percent": 1.0, "train_seconds": 1.0}
    for seed, epochs in enumerate((3, 4)):
        (tmp_path / str(seed)).mkdir()
        report = shared | {"seed": seed, "epochs": epochs}
        (tmp_path / str(seed) / "config.yaml").write_text(f"seed: {seed}", encoding="utf-8")
        (tmp_path / str(seed) / "test.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ValueError, match="differ in epochs"):
        results_table(tmp_path)


def test_a_text_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the marks"):
        with_table("no marks", "| table |")
