"""The benchmark of GPUs, run on the CPU: every arm has its turns, and rates follow from seconds."""

import json
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks import gpu
from ceit.bench import arms
from ceit.bench.arms import ModelSpec
from tools import speed_tables as speed

PICO = "ceit_pico_patch4_32"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    gpu.main()


def test_rates_are_those_of_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    small = ["--batch-size", "2", "--product", "16", "--rounds", "2", "--seconds", "0.01", "--device", "cpu"]
    run(monkeypatch, "--output", str(output), "--models", PICO, *small)
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [(row["model"], row["kind"]) for row in result["arms"]] == [(PICO, "train"), (PICO, "inference")]
    model = arms.build(ModelSpec(PICO))
    macs = {"train": arms.training_macs(model, (3, 32, 32)), "inference": arms.inference_macs(model, (3, 32, 32))}
    peak = 2 * 16**3 / median(result["peak"]["seconds"])
    for row in result["arms"]:
        assert len(row["seconds"]) == 2
        rate = 2 / median(row["seconds"])
        assert row["images_per_second"] == pytest.approx(rate, rel=1e-2)
        assert row["percent_of_peak"] == pytest.approx(100 * 2 * macs[row["kind"]] * rate / peak, rel=1e-2)
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    assert f"| `{PICO}` | inference |" in speed.gpu_table("gpu")


def test_nothing_is_measured_of_an_unknown_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown model 'ceit_huge'"):
        run(monkeypatch, "--output", str(tmp_path / "gpu.json"), "--models", "ceit_huge")
    for name in ("--rounds", "--seconds"):
        with pytest.raises(SystemExit):
            run(monkeypatch, "--output", str(tmp_path / "gpu.json"), name, "0")
    assert not list(tmp_path.iterdir())
