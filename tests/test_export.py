"""``ceit export``: what it writes, what it says, and what it refuses before any work is done."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ceit
import ceit_cli
from ceit.cli import export as verb
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.inference.example_images import ExampleImages
from ceit.inference.export import Report
from ceit.inference.exported import load_exported

DIGITS = tuple("0123456789")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An untrained network for digits, as a run directory."""
    return save(tmp_path / "run", {"data": "digits", "seed": 0})


def save(folder: Path, training: dict[str, Any] | None) -> Path:
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=1, num_classes=10, patch_size=4, **geometry))
    folder.mkdir()
    ceit.save_checkpoint(
        folder / "model.safetensors",
        model,
        class_names=DIGITS,
        preprocessing=Preprocessing((0.3,), (0.4,)),
        training=training,
    )
    return folder


def usage(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    assert ceit_cli.main(["export", *arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_program_checked_on_the_data_of_the_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "digits.pt2"
    arguments = ["export", "--checkpoint", str(run), "--format", "torch", "--output", str(output)]
    assert ceit_cli.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == {str(output): output.stat().st_size}
    assert (document["images"], document["images_from"]) == (143, "digits, training images")
    assert document["real_images"]
    assert document["top1_percent"] == document["float32_top1_percent"]
    network = load_exported(output)
    assert network.class_names == list(DIGITS)
    assert network.preprocessing == {"mean": [0.3], "std": [0.4], "crop": 1.0, "interpolation": "bicubic"}
    training = network.description.network.training
    assert training is not None
    assert training["data"] == "digits"

    assert ceit_cli.main(arguments) == 1
    assert "digits.pt2 exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert ceit_cli.main([*arguments, "--overwrite"]) == 0
    assert "143 images: digits, training images" in capsys.readouterr().out


@pytest.mark.parametrize("validation_percent", [None, 10.0, 0.0])
def test_m12_no_image_of_a_test_split_is_looked_at_and_none_calibrates_and_checks(
    validation_percent: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_dataset("digits", img_size=(16, 16))
    nothing, taken = digits.test.subset(torch.tensor([], dtype=torch.int64)), list[ExampleImages]()
    monkeypatch.setattr(verb, "as_dataset", lambda found, seed: replace(digits, test=nothing))

    def noted(*arguments: Any, check: ExampleImages, calibration: Tensor, **options: Any) -> Report:
        taken.extend([check, ExampleImages(calibration, "")])
        raise ValueError("enough")

    monkeypatch.setattr(verb, "export", noted)
    known = {} if validation_percent is None else {"validation_percent": validation_percent}
    run = save(tmp_path / "run", {"data": "digits", "seed": 3, **known})
    command = ["export", "--checkpoint", str(run), "--format", "onnx", "--precision", "int8"]
    assert ceit_cli.main([*command, "--output", str(tmp_path / "a.onnx")]) == 1
    check, calibration = taken
    assert check.origin == ("digits, validation split" if validation_percent else "digits, training images")
    assert (len(check), len(calibration)) == (144 if validation_percent else 143, 300)
    shown = [{image.numpy().tobytes() for image in images.images} for images in (check, calibration)]
    assert not shown[0] & shown[1]


def test_pictures_and_synthetic_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    run = save(tmp_path / "other", {"data": "cifar10", "seed": 0})  # which is not at hand
    arguments = ["export", "--checkpoint", str(run), "--format", "torch"]
    for name, options, wanted in (
        ("a.pt2", ["--images", str(tmp_path / "pictures")], (3, "pictures given", True)),
        ("b.pt2", [], (32, "synthetic images, for want of real ones", False)),
    ):
        assert ceit_cli.main([*arguments, *options, "--json", "--output", str(tmp_path / name)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["images"], document["images_from"], document["real_images"]) == wanted
        assert document["top1_percent"] is None
    arguments = ["export", "--checkpoint", str(run), "--format", "onnx", "--precision", "int8"]
    arguments += ["--output", str(tmp_path / "c.onnx")]
    for options, sentence in (
        ([], "name another with --data, or give --images PATH..."),
        (["--images", str(tmp_path / "pictures")], "3 pictures are too few for int8: give at least 20, of which half"),
        (["--data", "cifar10"], "cifar10 is not in "),
    ):
        assert ceit_cli.main([*arguments, *options]) == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--format", "torch", "--precision", "int8", "--output", "a.pt2"],
            "int8 goes with the formats onnx and openv",
        ),
        (["--format", "torch", "--dynamic-size", "--output", "a.pt2"], "a dynamic size goes with the formats onnx and"),
        (["--format", "onnx", "--dynamic-size", "--precision", "int8", "--output", "a.onnx"], "goes with float32"),
        (["--format", "onnx", "--output", "a.pt2"], "--output a.pt2 must end in .onnx for --format onnx"),
        (["--format", "openvino", "--output", "a"], "--output a must end in .xml for --format openvino"),
        (["--format", "tflite", "--output", "a"], "invalid choice: 'tflite'"),
        (["--format", "onnx", "--output", "a.onnx", "--data", "digits", "--images", "b"], "not allowed with argument"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    options: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in usage(capsys, ["--checkpoint", str(run), *options])
