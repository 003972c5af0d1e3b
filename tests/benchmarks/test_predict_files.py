"""The measurement of whole commands: a row for every size and arm, and figures that fit together."""

import json
import shutil
import statistics
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import predict_files


def test_the_figures_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict_files, "SIDES", (40,))
    output = tmp_path / "studies/result.json"
    arguments = ["--files", "6", "--rounds", "1", "--arms", "eager float32", "default", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["predict_files", *arguments, "--model", "ceit_pico_patch4_32"])
    predict_files.main()
    result = json.loads(output.read_text())
    assert [(row["side"], row["arm"]) for row in result["rows"]] == [(40, "eager float32"), (40, "default")]
    for row in result["rows"]:
        pace = 6 / statistics.median(row["seconds"])
        assert row["files_per_second"] == pytest.approx(pace, rel=0.01, abs=0.005)  # rounded to hundredths
        assert row["first_seconds"] > 0
        assert row["told"] == []
    assert "eager float32" in capsys.readouterr().out


def test_pictures_are_the_same_every_time_and_a_failure_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (predict_files.make_pictures(tmp_path / name, 2, 32) for name in "ab")
    assert (one / "00001.jpg").read_bytes() == (other / "00001.jpg").read_bytes() != (one / "00000.jpg").read_bytes()
    with Image.open(one / "00000.jpg") as image:
        assert image.size == (32, 32)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SystemExit, match="ceit predict ended with exit code 1"):
        predict_files.command(one, tmp_path / "gone.safetensors", [], tmp_path / "cache")
