"""``ceit embed``: features in files, the images most like one, near-duplicates, and what features are worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import ceit
import ceit_cli
from ceit.inference.predictor import Predictor

GEOMETRY: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    torch.manual_seed(0)
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=3, num_classes=2, patch_size=4, **GEOMETRY)).eval()
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop": 1.0, "interpolation": "bicubic"}
    ceit.save_checkpoint(folder / "model.safetensors", model, class_names=("a", "b"), preprocessing=preprocessing)
    photos = folder / "photos"
    photos.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(photos / f"{number:02}.png")
    Image.open(photos / "07.png").save(photos / "copy of 7.jpg", quality=95)
    return folder


def embed(folder: Path, *arguments: str) -> int:
    return ceit_cli.main(["embed", "--checkpoint", str(folder / "model.safetensors"), *arguments])


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_a_file_holds_what_the_head_gets_of_every_image(form: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / f"features.{form}"
    assert embed(folder, str(folder / "photos"), "--output", str(file)) == 0
    if form == "npz":
        with np.load(file) as found:
            paths, features = found["paths"].tolist(), found["features"]
    else:
        table = pyarrow.parquet.read_table(file)
        paths, features = table["path"].to_pylist(), np.array(table["features"].to_pylist(), dtype=np.float32)
    assert paths == sorted(map(str, (folder / "photos").iterdir()))
    assert features.shape == (41, 16)
    model = ceit.load_checkpoint(folder / "model.safetensors")
    predictor = Predictor.from_model(model)
    images = predictor.preprocessing.normalise(np.stack([predictor.pixels(path) for path in paths]))
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(images.permute(0, 3, 1, 2)), pre_logits=True).numpy()
    assert features == pytest.approx(wanted, abs=1e-4)


def test_the_nearest_images_are_the_image_and_its_copy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = folder / "photos"
    assert embed(folder, str(photos), "--near", str(photos / "07.png"), "--top-k", "2", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (Path(first["path"]).name, Path(second["path"]).name) == ("07.png", "copy of 7.jpg")
    assert first["cosine"] == pytest.approx(1, abs=1e-5)
    assert embed(folder, str(photos), "--near", str(photos / "07.png"), "--top-k", "2") == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == [first["path"], second["path"]]


def test_copies_are_listed_as_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(folder, str(folder / "photos"), "--duplicates", "0.995", "--json") == 0
    pairs = json.loads(capsys.readouterr().out)
    names = [{Path(pair["path"]).name, Path(pair["other"]).name} for pair in pairs]
    assert {"07.png", "copy of 7.jpg"} in names


def test_the_probe_measures_on_test_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(folder, "--probe", "digits", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["training_images"], found["test_images"], found["classes"]) == (1437, 360, 10)
    assert 50 < found["knn_top1_percent"] <= 100  # of random weights: chance is 10
    assert 50 < found["linear_probe_top1_percent"] <= 100
    assert embed(folder, "--probe", "digits") == 0
    assert f"{found['knn_top1_percent']:.2f}%" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(folder / "photos")
    for arguments in (
        [photos],
        ["--output", "x.npz"],
        [photos, "--output", "x.txt"],
        [photos, "--probe", "digits"],
        [photos, "--duplicates", "2"],
        [photos, "--duplicates", "0.9", "--top-k", "3"],
        [photos, "--near", "a", "--duplicates", "0.9", "--json"],
        [photos, "--output", str(tmp_path / "x.npz"), "--json"],
    ):
        assert embed(folder, *arguments) == 2, arguments
    assert embed(folder, photos, "--output", str(tmp_path / "x.npz"), "--device", "gpu") == 1
    assert "unknown device 'gpu': name cpu, cuda, cuda:1 or mps" in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_text("no image")
    output = str(tmp_path / "x.npz")
    assert embed(folder, str(broken), "--output", output) == 1
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert not Path(output).exists()
    (broken / "b.png").write_bytes((folder / "photos" / "07.png").read_bytes())
    assert embed(folder, str(broken), "--output", output) == 1
    assert "1 of 2 images cannot be read" in (told := capsys.readouterr().err)
    assert told.endswith("a.png; all else was done, and --skip-broken makes this no error\n")
    Path(output).unlink()
    assert embed(folder, str(broken), "--output", output, "--skip-broken") == 0
    assert "1 of 2 images cannot be read" in capsys.readouterr().err
    assert embed(folder, str(broken), "--output", output, "--skip-broken") == 1
    assert "exists" in capsys.readouterr().err
    with np.load(output) as found:
        assert found["features"].shape == (1, 16)
    assert embed(folder, photos, "--near", str(broken / "a.png")) == 1
    assert "a.png cannot be read" in capsys.readouterr().err
    assert embed(folder, str(broken), "--near", "typo.png") == 1  # told before the others are read
    assert "typo.png cannot be read: No such file" in capsys.readouterr().err


def test_a_predictor_without_features_says_so(folder: Path) -> None:
    predictor = Predictor.from_checkpoint(folder / "model.safetensors")
    with pytest.raises(ValueError, match="this predictor gives no features: make it with features=True"):
        predictor.embed_stream([])
