"""A run on a folder goes on as it began: its images normalised as they were, its start's file gone or not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import ceit_cli
from ceit.data import survey
from ceit.train.run import train
from tests.train.conftest import SMALL, train_until

CONFIG = replace(SMALL, geometry=SMALL.geometry | {"drop_path_rate": 0.0}, global_batch_size=16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of other colours in train and test; the images of a class are darker and darker."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for number, name in enumerate("abc"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256 - 4 * index, (16, 16, 3), dtype=np.uint8)
                pixels[..., number] //= 2
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{index:02}.png")
    return tmp_path / "photos"


def stopped_at(step: int, data: Path, output: Path, **options: Any) -> None:
    train_until(step, replace(CONFIG, **options), output, str(data))


def mean_of(run: Path) -> list[float]:
    return json.loads((run / "model.json").read_text(encoding="utf-8"))["preprocessing"]["mean"]


@pytest.mark.parametrize("options", [{}, {"train_percent": 40}], ids=str)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
    photos: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The statistics are of all images in memory; the record names those alone that train."""
    train(replace(CONFIG, **options), str(photos), tmp_path / "whole")
    stopped_at(3, photos, tmp_path / "parts", **options)
    train(replace(CONFIG, **options), str(photos), tmp_path / "parts", resume="auto")
    (whole, parts) = (max((tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "parts"))
    assert whole.name == parts.name
    first, second = load_file(whole), load_file(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert mean_of(tmp_path / "whole") == mean_of(tmp_path / "parts")


def test_a_resumed_run_is_normalised_as_before_on_a_machine_with_less_memory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, str(photos), tmp_path / "whole")
    stopped_at(3, photos, tmp_path / "parts")
    monkeypatch.setattr(survey, "memory_bytes", lambda: 1000)
    train(CONFIG, str(photos), tmp_path / "parts", resume="auto")
    assert mean_of(tmp_path / "whole") == mean_of(tmp_path / "parts")


def test_a_finished_run_that_is_asked_to_go_on_says_the_same(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(CONFIG, train_percent=40), str(photos), run)
    files = [run / "test.json", run / "model.json"]

    def told() -> list[Any]:
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return [{key: value for key, value in one.items() if key != "finished"} for one in found]

    before = told()
    train(replace(CONFIG, train_percent=40), str(photos), run, resume="auto")
    assert told() == before


def test_a_run_of_an_earlier_version_is_normalised_as_its_model(photos: Path, tmp_path: Path) -> None:
    """Its ``config.yaml`` does not tell."""
    stopped_at(9, photos, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert saved.pop("mean") == mean_of(tmp_path / "run")
    del saved["std"]
    config.write_text(yaml.safe_dump(saved, sort_keys=False), encoding="utf-8")
    before = mean_of(tmp_path / "run")
    train(CONFIG, str(photos), tmp_path / "run", resume="auto")
    assert mean_of(tmp_path / "run") == before


def test_a_fine_tuning_run_goes_on_when_the_weights_that_it_began_with_are_gone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(CONFIG, epochs=1), str(photos), tmp_path / "start")
    config = replace(CONFIG, initial_checkpoint=str(tmp_path / "start"))
    train(config, str(photos), tmp_path / "whole")
    for step, has_model in ((2, False), (9, True)):
        run = tmp_path / f"parts{step}"
        stopped_at(step, photos, run, initial_checkpoint=str(tmp_path / "start"))
        assert (run / "model.safetensors").is_file() is has_model
    shutil.move(tmp_path / "start", tmp_path / "elsewhere")
    assert ceit_cli.main(["train", "--output", str(tmp_path / "parts9"), "--resume", "auto"]) == 0
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts9"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert ceit_cli.main(["train", "--output", str(tmp_path / "parts2"), "--resume", "auto"]) == 1
    assert "start, which are gone: put them back" in " ".join(capsys.readouterr().err.split())


def test_a_head_for_the_same_classes_in_another_order_is_kept(photos: Path, tmp_path: Path) -> None:
    train(replace(CONFIG, epochs=1), str(photos), tmp_path / "start")
    begun = replace(CONFIG, initial_checkpoint=str(tmp_path / "start"), classes=["c", "a", "b"], peak_lr=1e-12)
    said: list[str] = []
    train(replace(begun, epochs=1, ema=CONFIG.ema), str(photos), tmp_path / "run", say=said.append)
    before, after = (load_file(tmp_path / run / "model.safetensors")["head.weight"] for run in ("start", "run"))
    assert torch.allclose(after, before[[2, 0, 1]], atol=1e-6)
    for split in ("train", "test"):
        (photos / split / "c").rename(photos / split / "d")
    train(replace(begun, epochs=1, classes=None), str(photos), tmp_path / "others", say=said.append)
    assert "its classes are not those of the data: the head for 3 classes begins anew" in said


def test_a_resumed_run_does_not_look_at_the_weights_that_it_began_with(photos: Path, tmp_path: Path) -> None:
    """Others may lie there by now, of images that were normalised in another way."""
    train(replace(CONFIG, epochs=1), str(photos), tmp_path / "start")
    tuned = {"initial_checkpoint": str(tmp_path / "start")}
    train(replace(CONFIG, **tuned), str(photos), tmp_path / "whole")
    stopped_at(9, photos, tmp_path / "parts", **tuned)
    shutil.rmtree(tmp_path / "start")
    train(replace(CONFIG, epochs=1, seed=5, train_percent=40), str(photos), tmp_path / "start")
    train(replace(CONFIG, **tuned), str(photos), tmp_path / "parts", resume="auto")
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert mean_of(tmp_path / "whole") == mean_of(tmp_path / "parts")


@pytest.mark.parametrize("change", [{"mean": 5}, {"mean": None}, {"std": 4}, {"mean": ["a", "b", "c"]}], ids=str)
def test_a_damaged_normalisation_is_named(photos: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    stopped_at(2, photos, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(config.read_text(encoding="utf-8")) | change
    config.write_text(yaml.safe_dump(saved, sort_keys=False), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml is not as ceit has written it .*: put back what it wrote"):
        train(CONFIG, str(photos), tmp_path / "run", resume="auto")
