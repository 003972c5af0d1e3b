"""``ceit export``: what it writes, what it says, and what it refuses before any work is done."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image
from torch import Tensor

import ceit
import ceit_cli
from ceit import paths
from ceit.browser import runtime
from ceit.cli import export as verb
from ceit.data import held_out
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.download import SourceError
from ceit.inference.example_images import ExampleImages, of_files
from ceit.inference.exported import load_exported
from ceit.inference.exporter import Report
from ceit.inference.predictor import Predictor, preprocessing_of

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
    monkeypatch.setattr(held_out, "as_dataset", lambda found, seed: replace(digits, test=nothing))

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


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[ExampleImages]:
    """What the last export was to be checked with and, in int8, calibrated with; no file is written."""
    images: list[ExampleImages] = []

    def noted(*arguments: Any, check: ExampleImages, calibration: Tensor | None, **options: Any) -> Report:
        images[:] = [check] if calibration is None else [check, ExampleImages(calibration, "")]
        raise ValueError("enough")

    monkeypatch.setattr(verb, "export", noted)
    return images


def onnx_of(run: Path, *options: str) -> list[str]:
    return ["export", "--checkpoint", str(run), "--format", "onnx", "--output", str(run.parent / "a.onnx"), *options]


def test_p7_a_set_is_taken_by_its_name_only_where_the_training_was_on_it(
    tmp_path: Path, taken: list[ExampleImages], capsys: pytest.CaptureFixture[str]
) -> None:
    known, folder = {"data": "digits", "seed": 0, "images": "a fixed set"}, {"data": "digits", "images": "images.csv"}
    assert ceit_cli.main(onnx_of(save(tmp_path / "known", known))) == 1
    assert taken[0].origin == "digits, training images"
    assert ceit_cli.main(onnx_of(save(tmp_path / "folder", folder))) == 1
    assert not taken[0].real
    assert "trained on digits, and only the directory of its run tells where that lies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seed", "origin"), [(7, "copy, validation split"), (8, "synthetic images, for want of real ones")]
)
def test_p7_a_run_of_an_earlier_version_is_known_by_its_name_and_seed(
    seed: int, origin: str, tmp_path: Path, taken: list[ExampleImages]
) -> None:
    """No record tells it from another run whose model may lie beside the configuration."""
    digits = load_dataset("digits", img_size=(16, 16))
    for index in range(len(digits.test)):
        path = tmp_path / "copy" / str(int(digits.test.labels[index])) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.test.read(index, 1).save(path)
    run = save(tmp_path / "run", {"data": "copy", "seed": 7, "validation_percent": 0.0})
    config = {"data": str(tmp_path / "copy"), "seed": seed, "epochs": 1, "precision": "float32"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert ceit_cli.main(onnx_of(run)) == 1
    assert taken[0].origin == origin


def test_p7_a_set_of_that_name_with_other_classes_is_not_the_one(
    run: Path, taken: list[ExampleImages], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of an earlier version does not tell whether it was on the set known as ``digits``, or a folder."""
    description = json.loads((run / "model.json").read_text())
    description["class_names"][0] = "ten"
    (run / "model.json").write_text(json.dumps(description))
    assert ceit_cli.main(onnx_of(run)) == 1
    assert not taken[0].real
    assert "digits has other classes than the checkpoint" in capsys.readouterr().err


def pictures(folder: Path, counts: dict[str, int]) -> Path:
    """Noise, class by class; the first pixels of a picture are those of its class."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            pixels[0] = 255 * number
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def test_pictures_are_drawn_from_all_classes_and_no_more_than_needed(
    run: Path, tmp_path: Path, taken: list[ExampleImages]
) -> None:
    folder = str(pictures(tmp_path / "pictures", {"dark": 620, "light": 80}))
    assert ceit_cli.main(onnx_of(run, "--images", folder, "--precision", "int8")) == 1
    check, calibration = taken
    assert (len(check), len(calibration), check.origin) == (400, 300, "pictures given")
    light = [int((images.images[:, 0, 0, 0] > 0).sum()) for images in taken]
    assert sum(light) == 80
    assert 20 <= light[1] <= 50  # of 300 drawn from 620 and 80, on average 34
    shown = [{image.numpy().tobytes() for image in images.images} for images in taken]
    assert not shown[0] & shown[1]
    assert ceit_cli.main(onnx_of(run, "--images", folder, folder)) == 1
    assert (len(taken[0]), taken[0].origin) == (256, "drawn from the 700 pictures given")
    assert 15 <= int((taken[0].images[:, 0, 0, 0] > 0).sum()) <= 45


def test_wildcards_are_those_of_the_command_on_windows(
    run: Path, tmp_path: Path, taken: list[ExampleImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "pictures", {"dark": 20})
    monkeypatch.setattr(paths, "os", SimpleNamespace(name="nt", path=os.path, fspath=os.fspath))
    assert ceit_cli.main(onnx_of(run, "--images", str(folder / "dark/00*.png"), str(folder / "dark/015.png"))) == 1
    assert (len(taken[0]), taken[0].origin) == (11, "pictures given")


def test_pictures_that_cannot_be_read_are_left_out_and_named(
    run: Path, tmp_path: Path, taken: list[ExampleImages], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", {"dark": 20})
    (folder / "dark/000.png").write_text("no image")
    assert ceit_cli.main(onnx_of(run, "--images", str(folder))) == 1
    assert len(taken[0]) == 19
    said = f"skipped {folder}/dark/000.png (not an image)\n1 of 20 pictures cannot be read and are left out\n"
    assert said in capsys.readouterr().err
    assert ceit_cli.main(onnx_of(run, "--images", str(folder), "--precision", "int8")) == 1
    assert "error: 19 pictures are too few for int8: give at least 20" in capsys.readouterr().err
    assert ceit_cli.main(onnx_of(run, "--images", str(folder / "dark/000.png"))) == 1
    assert "error: none of the pictures can be read: give others with --images" in capsys.readouterr().err


def test_pictures_are_read_as_prediction_reads_them(tmp_path: Path) -> None:
    """A photograph that is much larger than the network's images is reduced before it is fitted."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=2)
    seen: list[Tensor] = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3)
    Predictor(model, preprocessing=preprocessing, device="cpu", network=network).predict(tmp_path / "photo.jpg")
    read = of_files([tmp_path / "photo.jpg"], 1, image_hw=model.config.image_hw, preprocessing=preprocessing)
    assert torch.equal(read.images, seen[0])


def photo(path: Path, size: tuple[int, int]) -> None:
    """Coarse and fine detail, half-transparent, and to be turned."""
    random, (width, height) = np.random.default_rng(2), size
    coarse = Image.fromarray(random.integers(0, 256, (6, 9, 4), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels += random.integers(-40, 41, (height, width, 1))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "PNG", exif=turned)


def test_the_snippet_of_the_page_prepares_pixels_as_predict_does(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (repository / "docs/export.md").read_text(encoding="utf-8").split("## Pixels in your own program")[1]
    snippet = page.split("```python\n")[1].split("```")[0]
    model = ceit.load_checkpoint("ceit_pico_patch4_32.cifar10")
    model.preprocessing = {**preprocessing_of(model).as_dict(), "crop": 0.875}
    ceit.save_checkpoint("cropping.safetensors", model)
    photo(tmp_path / "photo.jpg", (90, 60))
    images = ["--images", "photo.jpg", "--output", "cifar10.onnx"]
    assert ceit_cli.main(["export", "--checkpoint", "cropping.safetensors", "--format", "onnx", *images]) == 0
    for size, most in (((90, 60), 1e-5), ((640, 480), 0.05)):  # the larger one predict first makes smaller
        photo(tmp_path / "photo.jpg", size)
        capsys.readouterr()
        options = ["--checkpoint", "cifar10.onnx", "--top-k", "10", "--json"]
        assert ceit_cli.main(["predict", "photo.jpg", *options]) == 0
        wanted = {
            score["label"]: score["probability"] for score in json.loads(capsys.readouterr().out)[0]["predictions"]
        }
        found: dict[str, Any] = {}
        exec(snippet, found)
        assert capsys.readouterr().out.startswith(max(wanted, key=wanted.__getitem__))
        for label, probability in zip(found["about"]["class_names"], found["probabilities"], strict=True):
            assert abs(probability - wanted[label]) <= most, label


def test_what_is_left_out_of_the_data_is_said(
    run: Path, tmp_path: Path, taken: list[ExampleImages], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "data", {"cat": 20, "dog": 20})
    (folder / "cat/000.png").write_text("no image")
    Image.new("L", (16, 16)).save(folder / "loose.png")
    assert ceit_cli.main(onnx_of(run, "--data", str(folder))) == 1
    said = capsys.readouterr().err
    assert "skipped cat/000.png (not an image)\nleft out: 1 image in no class folder\n" in said


def test_a_set_too_small_to_be_cut_is_refused_and_its_pictures_are_taken(
    run: Path, tmp_path: Path, taken: list[ExampleImages], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(pictures(tmp_path / "data", {"cat": 1, "dog": 1}))
    assert ceit_cli.main(onnx_of(run, "--data", folder)) == 1
    assert "needs 3 of each; name another set with --data, or give --images PATH...\n" in capsys.readouterr().err
    assert ceit_cli.main(onnx_of(run, "--images", folder)) == 1
    assert len(taken[0]) == 2


def test_a_place_that_takes_no_file_is_told_before_any_work(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(checkpoint: str) -> None:
        pytest.fail(f"{checkpoint} was loaded")

    monkeypatch.setattr(verb, "load_checkpoint", work)
    command = ["export", "--checkpoint", str(run), "--format", "onnx", "--output", str(run / "nowhere/a.onnx")]
    assert ceit_cli.main(command) == 1
    assert f"a.onnx cannot be written: there is no folder {run / 'nowhere'}" in capsys.readouterr().err


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
        ([], "name another set with --data, or give --images PATH..."),
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
        (["--format", "web", "--dynamic-size", "--output", "a"], "--dynamic-size is not for --format web"),
        (["--format", "web", "--overwrite", "--output", "a"], "--overwrite is not for --format web"),
        (["--format", "tflite", "--output", "a"], "invalid choice: 'tflite'"),
        (["--format", "onnx", "--output", "a.onnx", "--data", "digits", "--images", "b"], "not allowed with argument"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    options: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in usage(capsys, ["--checkpoint", str(run), *options])


def test_a_page_for_a_browser(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "fetch_runtime", lambda: runtime.Runtime(b"export const ok = 1;", b"\0asm"))
    page = tmp_path / "page"
    arguments = ["export", "--checkpoint", str(run), "--format", "web", "--output", str(page)]
    assert ceit_cli.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = ("LICENCES.txt", "index.html", "model.js", "runtime.js")
    assert document["files"] == {str(page / name): (page / name).stat().st_size for name in names}
    assert (document["format"], document["agreement_percent"]) == ("onnx", 100.0)
    assert ceit_cli.main(arguments) == 1
    assert capsys.readouterr().err == f"error: {page} exists: name another folder, or remove it\n"


def test_a_page_without_its_runtime_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(files: dict[str, Path]) -> None:
        raise SourceError(*next((address, OSError("no network")) for address in files))

    monkeypatch.setattr(runtime, "get_files", get)
    arguments = ["export", "--checkpoint", str(run), "--format", "web", "--output", str(tmp_path / "page")]
    assert ceit_cli.main(arguments) == 1
    assert "onnxruntime-web@1.30.0, an npm package, could not be fetched" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
