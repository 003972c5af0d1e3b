"""What earlier versions wrote is read with the same answers, gone on with, and continued; newer formats are refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ceit
import ceit_cli
from ceit.data.sources.choose import load_dataset
from ceit.inference.exported import SUFFIXES, load_exported
from ceit.study.cells import read_cell, read_record, unpack
from ceit.train.run import train
from tests.formats.make import CELL, CONFIG, PREDICT, unpacked

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "run").is_dir())
NEWER = r"format version 9 is newer than \d+, the newest that this ceit reads; upgrade it"


@pytest.fixture(params=VERSIONS)
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what one version wrote, which is the working directory."""
    folder = tmp_path / "written"
    shutil.copytree(HERE / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def test_this_version_has_its_files() -> None:
    assert ceit.__version__ in VERSIONS, "run python -m tests.formats.make and commit what it writes"
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 1.5e6 * len(VERSIONS)


def test_a_checkpoint_gives_the_same_logits(written: Path) -> None:
    stored = load_file("logits.safetensors")
    model = ceit.load_checkpoint(written / "checkpoint").eval()
    torch.testing.assert_close(model(stored["images"]), stored["logits"], rtol=1e-4, atol=1e-5)
    assert (list(model.class_names or ()), model.temperature) == (["dog", "Größe", "猫"], 1.5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exported_file_gives_the_same_logits(written: Path, suffix: str) -> None:
    stored = load_file("logits.safetensors")
    network = load_exported(written / f"exported/network{suffix}")
    torch.testing.assert_close(network(stored["images"]), stored["logits"], rtol=1e-3, atol=1e-4)
    assert network.class_names == ["dog", "Größe", "猫"]


def test_shards_hold_the_same_images(written: Path) -> None:
    splits = json.loads((written / "shards/index.json").read_text(encoding="utf-8"))["splits"]
    found = load_dataset("shards")
    assert len(found.test) == splits["test"]
    assert len(unpacked(written / "shards", written / "images")) == len(found.train) == splits["train"]


def test_an_interrupted_run_goes_on_to_the_same_result(written: Path) -> None:
    assert not (written / "run/test.json").exists()
    said: list[str] = []
    test = train(CONFIG, "shards", written / "run", resume="auto", say=said.append).test
    assert any(line.startswith("resumed after step 5") for line in said)
    expected = json.loads((written / "run.json").read_text(encoding="utf-8"))
    assert test.top1_percent == pytest.approx(expected["top1_percent"], abs=10)
    assert test.loss == pytest.approx(expected["loss"], rel=0.01)


def test_a_study_cell_is_read(written: Path) -> None:
    found = read_cell(written / "cells", CELL)
    assert found is not None
    assert unpack(found).tolist() == [True, False, True]


def test_a_file_of_predictions_is_continued(written: Path) -> None:
    paths = unpacked(written / "shards", written / "images")
    before = (written / "predictions/answers.csv").read_bytes()
    assert ceit_cli.main([*PREDICT, "predictions/answers.csv", "--resume", *paths]) == 0
    answers = written / "predictions/answers.csv"
    assert answers.read_bytes().startswith(before[: before.rindex(b"\n") + 1])

    def rows(file: Path) -> dict[tuple[str, str], float]:
        with file.open(encoding="utf-8", newline="") as lines:
            return {(row["path"], row["label"]): float(row["probability"]) for row in csv.DictReader(lines)}

    assert rows(answers) == pytest.approx(rows(written / "predictions/whole.csv"), abs=2e-6)


def test_a_checkpoint_of_a_newer_format_is_refused(written: Path) -> None:
    side = written / "checkpoint/model.json"
    edit(side, lambda said: said | {"format_version": 9})
    with pytest.raises(ValueError, match=NEWER):
        ceit.load_checkpoint(written / "checkpoint")


def test_a_run_of_a_newer_format_is_refused(written: Path) -> None:
    config = written / "run/config.yaml"
    said = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump(said | {"format_version": 9}), encoding="utf-8")
    with pytest.raises(ValueError, match=NEWER):
        train(CONFIG, "shards", written / "run", resume="auto")


def test_a_training_state_of_a_newer_format_is_refused(written: Path) -> None:
    (state,) = (written / "run/checkpoints").iterdir()
    with safe_open(state, framework="pt") as file:
        header = json.loads(file.metadata()["state"])
    save_file(load_file(state), state, metadata={"state": json.dumps(header | {"format_version": 9})})
    with pytest.raises(ValueError, match=NEWER):
        train(CONFIG, "shards", written / "run", resume="auto")


def test_shards_of_a_newer_format_are_refused(written: Path) -> None:
    edit(written / "shards/index.json", lambda said: said | {"format": "ceit shards 9"})
    with pytest.raises(ValueError, match=NEWER):
        load_dataset("shards")


def test_a_cell_of_a_newer_format_is_refused(written: Path) -> None:
    (cell,) = (written / "cells").rglob("*.json")
    edit(cell, lambda said: said | {"format": 9})
    with pytest.raises(ValueError, match=NEWER):
        read_record(cell)


def test_predictions_of_a_newer_format_are_refused(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(written / "predictions/answers.csv.model.json", lambda said: said | {"format_version": 9})
    before = (written / "predictions/answers.csv").read_bytes()
    paths = unpacked(written / "shards", written / "images")
    assert ceit_cli.main([*PREDICT, "predictions/answers.csv", "--resume", *paths]) == 1
    assert "answers.csv.model.json: format version 9 is newer than 1" in capsys.readouterr().err
    assert (written / "predictions/answers.csv").read_bytes() == before


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
