"""``ceit predict --unknown-below``: images of something else are called unknown, in every form of answer."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ceit
import ceit_cli
from ceit.inference.familiarity import KeptFeatures, fit_familiarity, with_features
from ceit.inference.predictor import Predictor

CLASSES = ("day", "dusk")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows dark pictures, 20 of these, two bright ones, and a file that is none."""
    folder = tmp_path_factory.mktemp("judged")
    dark = np.random.default_rng(0).integers(0, 60, (80, 16, 16, 3), dtype=np.uint8)
    torch.manual_seed(2)
    geometry: dict[str, Any] = {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "stem_channels": 8,
        "stem_stride": 1,
        "patch_size": 4,
    }
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=3, num_classes=2, **geometry)).eval()
    kept = KeptFeatures(with_features(model), 2)
    preprocessing = Predictor(model, class_names=CLASSES).preprocessing
    with torch.no_grad():
        kept(preprocessing.normalise(dark).permute(0, 3, 1, 2))
    ceit.save_checkpoint(folder / "old.safetensors", model, class_names=CLASSES, preprocessing=preprocessing)
    found = fit_familiarity(kept.joined(16), torch.arange(80) % 2, 2)
    assert found is not None
    model.familiarity = found.as_dict()
    ceit.save_checkpoint(folder / "model.safetensors", model, class_names=CLASSES, preprocessing=preprocessing)
    photos = folder / "photos"
    photos.mkdir()
    for number, pixels in enumerate([*dark[:20], 255 - dark[0], 255 - dark[1]]):
        Image.fromarray(pixels).save(photos / f"{number:02}.png")
    (photos / "99.png").write_text("none")
    return folder


def predict(folder: Path, *arguments: str) -> int:
    command = ["predict", "--checkpoint", str(folder / "model.safetensors"), "--skip-broken", "--precision", "float32"]
    return ceit_cli.main([*command, *arguments, str(folder / "photos")])


def test_json_says_which_are_unknown_and_how_familiar_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, "--json", "--unknown-below", "auto") == 0
    *answers, broken = json.loads(capsys.readouterr().out)
    assert broken.keys() == {"path", "error"}
    assert all(answer["unknown"] is (answer["familiarity"] < 0.05) for answer in answers)
    assert [answer["unknown"] for answer in answers[20:]] == [True, True]
    assert sum(answer["unknown"] for answer in answers[:20]) <= 3
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    assert predict(folder, "--json") == 0
    assert all(set(answer) <= {"path", "predictions", "error"} for answer in json.loads(capsys.readouterr().out))


def test_csv_has_two_more_columns_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(folder, "--csv", "--top-k", "1", "--unknown-below", "0.05") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["path", "rank", "label", "probability", "familiarity", "unknown", "error"]
    assert [row["unknown"] for row in rows[20:]] == ["yes", "yes", ""]
    assert (rows[-1]["error"], rows[-1]["familiarity"]) == ("not an image", "")
    assert {row["unknown"] for row in rows[:20]} >= {"no"}
    assert predict(folder, "--csv") == 0
    assert capsys.readouterr().out.startswith("path,rank,label,probability,error\n")


def test_the_table_says_unknown_and_what_it_looks_most_like(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(folder, "--unknown-below", "auto") == 0
    lines = capsys.readouterr().out.splitlines()
    (strange,) = (line for line in lines if "20.png" in line)
    assert "unknown" in strange
    assert any(name in strange.partition("unknown")[2] for name in CLASSES)
    assert sum("unknown" in line for line in lines) <= 5


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_is_gone_on_with_by_the_same_question_alone(
    form: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part = tmp_path / f"whole.{form}", tmp_path / f"part.{form}"
    assert predict(folder, "--output", str(whole), "--unknown-below", "auto") == 0
    assert predict(folder, "--output", str(part), "--unknown-below", "auto") == 0
    part.write_bytes(whole.read_bytes()[:400])
    for other in ([], ["--unknown-below", "0.2"]):
        assert predict(folder, "--output", str(part), "--resume", *other) == 1
        sentence = f"error: {part} holds answers with --unknown-below 0.05: go on so, or name another --output\n"
        assert capsys.readouterr().err.endswith(sentence)
        assert part.read_bytes() == whole.read_bytes()[:400]
    assert predict(folder, "--output", str(part), "--resume", "--unknown-below", "auto") == 0
    assert part.read_bytes() == whole.read_bytes()
    (tmp_path / f"part.{form}.model.json").unlink()  # as where the answers alone were copied
    assert predict(folder, "--output", str(part), "--resume") == 1
    assert "holds other things than answers of this model" in capsys.readouterr().err
    plain = tmp_path / f"plain.{form}"
    assert predict(folder, "--output", str(plain)) == 0
    assert predict(folder, "--output", str(plain), "--resume", "--unknown-below", "auto") == 1
    assert "holds answers without --unknown-below" in capsys.readouterr().err


def test_what_cannot_tell_says_so_before_any_image_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(folder / "photos")
    old = ["predict", "--checkpoint", str(folder / "old.safetensors"), "--unknown-below", "auto", photos]
    assert ceit_cli.main(old) == 1
    assert capsys.readouterr().err.startswith("error: this model cannot tell unknown images: that takes validation")
    command = ["export", "--checkpoint", str(folder / "model.safetensors"), "--format", "torch", "--output"]
    assert ceit_cli.main([*command, str(folder / "model.pt2")]) == 0
    capsys.readouterr()
    assert ceit_cli.main(["predict", "--checkpoint", str(folder / "model.pt2"), "--unknown-below", "0.1", photos]) == 1
    assert capsys.readouterr().err.startswith("error: an exported file does not give its features")
    assert predict(folder, "--unknown-below", "0.001") == 1
    assert "must be more than 0.01235 and less than 1: the model knows the distances of 80 validation images" in (
        capsys.readouterr().err
    )
    for share in ("0", "1", "-0.1", "nan", "5%", ""):
        assert predict(folder, f"--unknown-below={share}") == 2
        assert "must be auto or a number between 0 and 1" in capsys.readouterr().err


def test_other_images_and_other_classes_need_another_familiarity(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert ceit.load_checkpoint(path).familiarity is not None
    assert ceit.load_checkpoint(path, num_classes=3).familiarity is None
    assert ceit.load_checkpoint(path, in_chans=1).familiarity is None
    assert ceit.load_checkpoint(path, img_size=32).familiarity is None
