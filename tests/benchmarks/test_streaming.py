"""The measurement of prediction as a stream: its figures fit together."""

import json
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import streaming

CORES = 1  # to measure on, whatever the machine


def test_the_figures_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streaming, "usable_cores", lambda: CORES)
    monkeypatch.setattr(streaming, "SAMPLE_SECONDS", 0.001)
    output = tmp_path / "result.json"
    options = {"images": 24, "distinct": 2, "model": "ceit_pico_patch4_32", "precision": "float32", "batch-size": 4}
    arguments = [f"--{name}={value}" for name, value in {**options, "repeats": 1, "output": output}.items()]
    monkeypatch.setattr(sys, "argv", ["streaming", *arguments])
    streaming.main()
    result = json.loads(output.read_text())
    assert (result["images"], result["distinct_images"], result["precision"]) == (24, 2, "float32")
    assert result["machine"]["cores"] == CORES == torch.get_num_threads()
    assert result["file_bytes_median"] >= 80_000
    (run,) = result["repeats"]
    for key, value in run.items():
        assert result[key] == statistics.median([value])
    bound = CORES / (run["read_core_seconds"] + run["compute_core_seconds"])
    assert run["bound_images_per_second"] == pytest.approx(bound, rel=0.02)
    assert run["images_per_second"] == pytest.approx(24 / run["seconds"], rel=0.02)
    assert run["images_per_second_after_the_start"] > run["images_per_second"]
    assert run["percent_of_bound"] == pytest.approx(100 * run["images_per_second"] / bound, rel=0.02)
    assert 10 < run["rss_early_mib"] < 10_000
    assert 10 < run["rss_late_mib"] < 10_000
    assert "images/s of at most" in capsys.readouterr().err


def test_a_command_that_fails_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SystemExit, match="ceit predict ended with exit code 1"):
        streaming.command(tmp_path, 1, tmp_path / "gone.safetensors", "float32", 1)
