"""A folder of somebody's own, with every kind of file people have, through the real command line: train, evaluate,
predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ceit_cli

CLASSES = ("blue", "green", "red")
OPTIONS = ["--geometry.embed_dim=32", "--geometry.depth=2", "--geometry.num_heads=2", "--epochs=8", "--peak-lr=0.01"]
OPTIONS += ["--global-batch-size=16", "--precision=float32", "--augmentation.translate=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy colour, 20 images each, in seven encodings; two files that are no images."""
    root = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - number] += 150
            image = Image.fromarray(pixels)
            place = root / name / f"{i:02}"
            match i:
                case 0:
                    image.putalpha(200)
                    image.save(place.with_suffix(".png"))
                case 1:
                    image.convert("L").save(place.with_suffix(".png"))
                case 2:
                    image.convert("CMYK").save(place.with_suffix(".jpg"))
                case 3:
                    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(place.with_suffix(".png"))
                case 4:
                    image.quantize(32).save(place.with_suffix(".png"))
                case _:
                    image.save(place.with_suffix(".jpg"), quality=95)
    whole = (root / "red" / "10.jpg").read_bytes()
    (root / "red" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "blue" / "text.jpg").write_text("not an image", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    output = folder.parent / "run"
    words = ["train", "--recipe", "demo", "--data", str(folder), "--output", str(output), *OPTIONS]
    assert ceit_cli.main([*words, "--skip-broken"]) == 0
    return output


def test_broken_files_are_an_error_that_names_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--recipe", "demo", "--data", str(folder), "--output", str(tmp_path / "run"), *OPTIONS]
    assert ceit_cli.main(words) == 1
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("error: 2 of 62 files cannot be read: ")
    assert "text.jpg" in sentence
    assert "truncated.jpg" in sentence
    assert not (tmp_path / "run").exists()


def test_skipped_on_request_they_are_named_and_the_rest_is_learned(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--checkpoint", str(run), "--data", str(folder), "--skip-broken", "--json"]
    words += ["--precision", "float32"]
    assert ceit_cli.main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [row["label"] for row in result["per_class"]] == list(CLASSES)
    assert result["top5_percent"] is None
    assert result["top1_percent"] == json.loads((run / "test.json").read_text(encoding="utf-8"))["top1_percent"] > 60
    assert "text.jpg" in captured.err
    assert "truncated.jpg" in captured.err


def test_prediction_goes_on_behind_a_broken_file(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["predict", "--checkpoint", str(run), str(folder / "red"), "--json"]) == 1
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 21
    broken = [entry for entry in entries if "error" in entry]
    assert [Path(entry["path"]).name for entry in broken] == ["truncated.jpg"]
    labels = [entry["predictions"][0]["label"] for entry in entries if "predictions" in entry]
    assert labels.count("red") > len(labels) / 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "EMPTY"], "has no images: it must hold a folder of images for each class"),
        (["--data", "ONE"], "a classifier needs at least two"),
        (["--data", "nowhere/photos"], "data folder nowhere/photos does not exist"),
        (["--data", "cifar11"], "unknown data set 'cifar11'; did you mean 'cifar10'?"),
        (["--data", "digits", "--recipe", "demoo"], "unknown recipe 'demoo'; did you mean 'demo'?"),
        (["--data", "digits", "--model", "ceit_nan_patch4_32"], "did you mean 'ceit_nano_patch4_32'?"),
        (["--data", "digits", "--img-size", "225"], "image size (225, 225) must be a multiple of 16 (remainder 1, 1)"),
        (["--data", "digits", "--time-budget", "30"], "duration '30' must be a positive number with its unit"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ONE" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "ONE" / "cat" / "a.png")
    words = [str(tmp_path / word) if word in ("EMPTY", "ONE") else word for word in words]
    assert ceit_cli.main(["train", *words, "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ")
    assert sentence in error[-1]
    assert not any("Traceback" in line for line in error)
    assert not (tmp_path / "run").exists()
