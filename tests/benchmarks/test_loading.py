"""The measurement of reading: its pictures are what it says, and its figures fit together."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import loading

CORES = 1  # to measure on, whatever the machine


def test_pictures_are_of_the_stated_size_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        loading.make_pictures(tmp_path / name, 2)
    for number in range(2):
        first, second = (tmp_path / name / f"{number:05}.jpg" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size >= loading.PICTURE_BYTES
        with Image.open(first) as image:
            assert (image.size, image.mode, image.format) == ((500, 375), "RGB", "JPEG")


def test_the_figures_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: CORES)
    for number in range(4):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    output = tmp_path / "result.json"
    options = {"model": "ceit_pico_patch4_32", "batch-size": 2, "images": 4, "repeats": 3, "workers": 1}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["loading", "--folder", str(tmp_path), "--output", str(output), *arguments])
    loading.main()
    result = json.loads(output.read_text())
    assert (result["images"], result["img_size"], result["workers"]) == (4, [32, 32], 1)
    assert result["machine"]["cores"] == CORES == torch.get_num_threads()
    for found in result["augmentations"].values():
        runs = found["repeats"]
        assert len(runs) == 3
        for key in runs[0]:
            assert found[key] == pytest.approx(statistics.median(run[key] for run in runs), abs=1e-4)
        for run in runs:
            bound = CORES / (run["read_core_seconds"] + run["step_core_seconds"])
            assert run["bound_images_per_second"] == pytest.approx(bound, rel=0.02)
            assert run["percent_of_bound"] == pytest.approx(100 * run["images_per_second"] / bound, rel=0.02)
            assert 0 <= run["data_wait_percent"] <= 100
    told = capsys.readouterr().err
    assert "crop_and_flip" in told
    assert "full_recipe" in told


def test_every_stage_costs_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PICTURE_BYTES", 1)
    output = tmp_path / "stages.json"
    options = ["--images=16", "--batch-size=8", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["loading", "--stages", "--output", str(output), *options])
    loading.main()
    found = json.loads(output.read_text())["core_ms_an_image"]
    assert list(found) == ["500 x 375", "4000 x 3000"]
    for costs in found.values():
        stages = {stage: cost["median"] for stage, cost in costs.items()}
        assert min(stages.values()) > 0
        assert stages["read"] < min(stages["decode"], stages["full_recipe"])
    large = found["4000 x 3000"]
    assert large["decode"]["median"] > 4 * found["500 x 375"]["decode"]["median"]


def test_too_few_images_are_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["loading", "--folder", str(tmp_path), "--output", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit, match="holds 0 images, not 192: lower --images"):
        loading.main()
