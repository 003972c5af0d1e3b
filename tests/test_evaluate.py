"""``ceit evaluate`` measures what it says it measures: the classes, the split and the images that training meant."""

import csv
import errno
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ceit
import ceit_cli
from ceit.cli import evaluate
from ceit.cli._terminal import print_evaluation
from ceit.data.batches.loader import make_loader
from ceit.data.labelled import as_dataset, cut_by_place
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset, load_images
from ceit.data.splits import ImageDataset, Split, cut_validation
from ceit.evaluation.metrics import Evaluation
from ceit.evaluation.scores import Calibration, ClassMeans, ClassScores
from ceit.inference import example_images, fastest
from ceit.inference.exported import ExportedDescription, ExportedNetwork
from ceit.inference.exporter import export
from ceit.weights import Description

DIGITS = tuple("0123456789")
PREPROCESSING = Preprocessing((0.3,), (0.4,))


def save(folder: Path, *, class_names: Sequence[str] | None = DIGITS, order: Sequence[int] = (), **changes: Any) -> str:
    """An untrained network for grey images of 16 px, the rows of its head in another order; returns its path."""
    torch.manual_seed(3)
    classes = len(class_names or DIGITS)
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=1, num_classes=classes, patch_size=4, **geometry))
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.copy_(20 * model.head.weight[list(order or range(classes))])
    options = {"preprocessing": PREPROCESSING, **changes}
    ceit.save_checkpoint(folder / "model.safetensors", model, class_names=class_names, **options)
    return str(folder)


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert ceit_cli.main(["evaluate", "--json", "--precision", "float32", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def rounded(document: Any) -> Any:
    """With three digits: sums in another order, or in another library, differ in the last ones."""
    if isinstance(document, dict):
        return {key: rounded(value) for key, value in document.items()}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return float(f"{document:.3g}") if isinstance(document, float) else document


def figures(run: str, split: Split) -> tuple[float, float]:
    """Top-1 in percent and loss, by definition."""
    model = ceit.load_checkpoint(run)
    loader = make_loader(split, batch_size=1000, img_size=(16, 16), preprocessing=PREPROCESSING)
    with torch.inference_mode():
        images, labels = next(loader.epoch(0))
        logits = model(images).double()
    loss = nn.functional.cross_entropy(logits, labels)
    return 100 * (logits.argmax(1) == labels).double().mean().item(), loss.item()


@pytest.fixture
def digits() -> ImageDataset:
    return load_dataset("digits", img_size=(16, 16))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes, to be cut by a seed."""
    for i in range(40):
        folder = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_json_has_the_figures_of_the_whole_test_split(
    tmp_path: Path, digits: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path)
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits")
    top1_percent, loss = figures(run, digits.test)
    assert document["images"] == 360
    assert document["top1_percent"] == pytest.approx(top1_percent, abs=1e-9)
    assert document["loss"] == pytest.approx(loss, rel=1e-5)
    assert document["top1_percent"] <= document["top5_percent"] <= 100
    assert [entry["label"] for entry in document["per_class"]] == list(DIGITS)
    assert sum(map(sum, document["confusion"])) == 360
    assert (document["split"], document["data"], document["precision"]) == ("test", "digits", "float32")


def test_table_shows_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save(tmp_path)
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits")
    arguments = ["evaluate", "--checkpoint", run, "--data", "digits", "--precision", "float32", "--batch-size", "77"]
    assert ceit_cli.main(arguments) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    for row in (
        ["images", "360"],
        ["top-1", f"{document['top1_percent']:.2f}%"],
        ["top-5", f"{document['top5_percent']:.2f}%"],
        ["loss", f"{document['loss']:.4f}"],
    ):
        assert row in [shown[:2] for shown in rows]
    for entry in document["per_class"]:
        scores = ["-" if entry[key] is None else f"{entry[key]:.3f}" for key in ("precision", "recall", "f1")]
        assert [entry["label"], str(entry["images"]), *scores] in [shown[:5] for shown in rows]
    assert captured.err == ""


def test_test_time_augmentation_stands_beside_the_plain_figures_and_changes_none(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, class_names=["cat", "dog"])
    arguments = ["--checkpoint", run, "--data", str(photos)]
    plain = evaluated(capsys, *arguments)
    assert plain.pop("tta") is None
    found = load_images(photos, img_size=(16, 16), in_chans=1).parts["all"]
    model = ceit.load_checkpoint(run)
    with torch.inference_mode():
        images, labels = next(
            make_loader(found, batch_size=40, img_size=(16, 16), preprocessing=PREPROCESSING).epoch(0)
        )
        logits = (model(images) + model(images.flip(3))) / 2
    document = evaluated(capsys, *arguments, "--tta", "mirror")
    tta = document.pop("tta")
    assert document == plain
    assert tta["views"] == "mirror"
    assert tta["top1_percent"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert tta["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)

    arguments = ["evaluate", *arguments, "--precision", "float32", "--tta", "mirror+shift"]
    assert ceit_cli.main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["top-1", f"{plain['top1_percent']:.2f}%"] in [row[:2] for row in rows]
    assert any(row[:2] == ["top-1,", "mirror+shift"] for row in rows)


def test_mirrored_digits_are_other_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", save(tmp_path), "--data", "digits", "--tta", "mirror"]
    assert ceit_cli.main(["evaluate", *arguments]) == 1
    sentence = "--tta mirror mirrors images, and mirrored images of digits are other classes or none: leave it out"
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_classes_in_another_order_give_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = evaluated(capsys, "--checkpoint", save(tmp_path), "--data", "digits")
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    run = save(tmp_path, class_names=[DIGITS[i] for i in order], order=order)
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits")
    assert document["top1_percent"] == expected["top1_percent"]
    assert document["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert rounded(document["per_class"]) == rounded([expected["per_class"][i] for i in order])


def test_checkpoint_without_class_names_takes_those_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluated(capsys, "--checkpoint", save(tmp_path), "--data", "digits")
    document = evaluated(capsys, "--checkpoint", save(tmp_path, class_names=None), "--data", "digits")
    assert document == expected


@pytest.mark.parametrize("split", ["validation", "train"])
def test_split_is_cut_as_training_has_cut_it(
    tmp_path: Path, digits: ImageDataset, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, training={"seed": 5, "validation_percent": 10.0})
    train, validation = cut_validation(digits.train, 10.0, seed=5)
    expected = validation if split == "validation" else train
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits", "--split", split)
    assert document["images"] == len(expected)
    if split == "validation":
        assert (document["top1_percent"], document["loss"]) == pytest.approx(figures(run, expected), rel=1e-5)


def test_the_part_that_a_run_trained_on_is_a_share_if_it_was(
    tmp_path: Path, digits: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"data": "digits", "images": "fixed", "seed": 5, "validation_percent": 10.0, "train_percent": 20.0}
    run = save(tmp_path, training=training)
    rest, _ = cut_validation(digits.train, 10.0, seed=5)
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits", "--split", "train")
    assert document["images"] == round(len(rest) * 0.2)
    assert ceit_cli.main(["data", "check", "digits", "--checkpoint", run]) == 0
    assert f"it was trained on {document['images']} of them" in capsys.readouterr().out


def test_a_crop_of_small_images_is_what_prediction_sees(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cropped = Preprocessing((0.3,), (0.4,), crop=0.5)
    (tmp_path / "run").mkdir()
    run = save(tmp_path / "run", class_names=["cat", "dog"], preprocessing=cropped)
    found = evaluated(capsys, "--checkpoint", run, "--data", str(photos), "--predictions", str(tmp_path / "said.csv"))
    assert found["images"] == 40
    with (tmp_path / "said.csv").open(newline="") as file:
        said = {row["path"]: (row["answer"], float(row["probability"])) for row in csv.DictReader(file)}
    predictor = ceit.Predictor.from_checkpoint(run, device="cpu", precision="float32")
    for path, (answer, probability) in said.items():
        best = predictor.predict([path])[0].predictions[0]
        assert (best.label, best.probability) == (answer, pytest.approx(probability, abs=2e-6))


def test_a_file_that_cannot_be_written_costs_no_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "write_predictions", full)
    run, metrics = save(tmp_path), tmp_path / "figures.json"
    files = ["--predictions", str(tmp_path / "said.csv"), "--metrics", str(metrics)]
    assert ceit_cli.main(["evaluate", "--checkpoint", run, "--data", "digits", "--json", *files]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == json.loads(metrics.read_text())["images"] == 360
    assert "no space left on the disk" in printed.err
    assert "has the figures" not in printed.err


def test_a_reader_that_is_gone_costs_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: object, **_options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, "print_evaluation", gone)
    files = {"--predictions": tmp_path / "said.csv", "--metrics": tmp_path / "figures.json"}
    options = [word for option, file in files.items() for word in (option, str(file))]
    with suppress(BrokenPipeError):
        ceit_cli.main(["evaluate", "--checkpoint", save(tmp_path), "--data", "digits", *options])
    assert all(file.is_file() for file in files.values())


def test_numbers_of_several_parts_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = tmp_path / "said.csv"
    evaluated(capsys, "--checkpoint", save(tmp_path), "--data", "digits", "--split", "all", "--predictions", str(said))
    with said.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(set(paths)) == len(paths) == 1797
    assert {path.partition("/")[0] for path in paths} == {"train", "test"}


def test_a_run_that_kept_none_of_the_classes_says_so(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    run = save(tmp_path / "run", class_names=["ant", "bee"], training={"classes": ["ant", "bee"], "seed": 0})
    for asked in ([], ["--split", "all"], ["--split", "new"]):
        assert ceit_cli.main(["evaluate", "--checkpoint", run, "--data", str(photos), *asked]) == 1
        assert "is of a class that the run kept (ant and bee); it has cat and dog" in capsys.readouterr().err


def test_a_narrow_terminal_cuts_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert ceit_cli.main(["evaluate", "--checkpoint", save(tmp_path), "--data", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "images precision recall F1" in " ".join(printed.split())
    assert "…" not in printed


def test_a_run_that_cut_no_validation_part_off_was_trained_on_the_whole_training_part(
    tmp_path: Path, digits: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, training={"seed": 5, "validation_percent": 0.0})
    document = evaluated(capsys, "--checkpoint", run, "--data", "digits", "--split", "train")
    assert document["images"] == len(digits.train)
    assert ceit_cli.main(["evaluate", "--checkpoint", run, "--data", "digits", "--split", "validation"]) == 1
    assert "digits has no validation split, and the checkpoint tells of none" in capsys.readouterr().err


def test_exported_file_has_the_figures_of_its_checkpoint(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"seed": 5, "validation_percent": 10.0}
    run, file = save(tmp_path, class_names=["cat", "dog"], training=training), tmp_path / "network.onnx"
    images = example_images.synthetic(4, image_hw=(16, 16), preprocessing=PREPROCESSING)
    export(ceit.load_checkpoint(run), file, format="onnx", check=images, training=training)
    for arguments in (["--split", "test"], ["--split", "validation", "--batch-size", "3"]):
        expected = evaluated(capsys, "--checkpoint", run, "--data", str(photos), *arguments)
        document = evaluated(capsys, "--checkpoint", str(file), "--data", str(photos), *arguments)
        assert document.pop("checkpoint") == str(file)
        assert expected.pop("checkpoint") == run
        assert (document.pop("backend"), expected.pop("backend")) == ("onnx", "eager")
        assert rounded(document) == rounded(expected)

    refused = ["evaluate", "--checkpoint", str(file), "--data"]
    for data, precision, sentence in (
        (
            "digits",
            "auto",
            "the checkpoint does not know '0', '1', '2', '3' and 6 more of digits: it has 2 classes, cat and dog",
        ),
        (str(photos), "bf16", f"{file} cannot be run in bf16: only OpenVINO's .xml can, others run in float32"),
    ):
        assert ceit_cli.main([*refused, data, "--precision", precision]) == 1
        assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(("written_in", "expected"), [("float32", "bf16"), ("int8", "int8+bf16")])
def test_precision_of_an_exported_file_is_what_was_computed(
    written_in: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ceit.load_checkpoint(save(tmp_path))
    network = Description(model.config, class_names=DIGITS, preprocessing=PREPROCESSING.as_dict())
    loaded = ExportedNetwork(ExportedDescription(network, "openvino", written_in, False, "0"), model)
    monkeypatch.setattr(evaluate, "load_exported", lambda path, precision: loaded)
    arguments = ["evaluate", "--checkpoint", "network.xml", "--data", "digits", "--json", "--precision"]
    for precision, name in (("bf16", expected), ("float32", written_in)):
        assert ceit_cli.main([*arguments, precision]) == 0
        assert json.loads(capsys.readouterr().out)["precision"] == name


@pytest.mark.parametrize(
    "options",
    [["--backend", "openvino"], ["--device", "cpu,cpu", "--batch-size", "77", "--workers", "0"], ["--workers", "1"]],
)
def test_other_backends_and_several_devices_give_the_same_figures(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    command = ["--checkpoint", save(tmp_path), "--data", "digits"]
    expected, document = evaluated(capsys, *command), evaluated(capsys, *command, *options)
    assert (expected.pop("backend"), document.pop("backend")) == (
        "eager",
        "openvino" if "openvino" in options else "eager",
    )
    assert rounded(document) == rounded(expected)


def test_auto_judges_by_images_that_do_not_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest, "BACKENDS", ("eager", "onnxruntime"))
    command = ["evaluate", "--checkpoint", save(tmp_path), "--data", "digits", "--precision", "float32"]
    assert ceit_cli.main([*command, "--backend", "auto", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "on 100.0 % of" in captured.err
    assert "(digits, " in captured.err
    assert "(digits, test" not in captured.err


def test_folder_is_cut_with_the_seed_of_training(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model whose run's record is not beside it: the cut can be made again, what has changed cannot be known."""
    run = save(tmp_path, class_names=["cat", "dog"], training={"seed": 7, "images": "images.csv"})
    assert (
        ceit_cli.main(["evaluate", "--json", "--precision", "float32", "--checkpoint", run, "--data", str(photos)]) == 0
    )
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "no record of its images: what has changed in the data since it was trained cannot be known" in captured.err
    losses = [figures(run, load_dataset(photos, seed=seed).test)[1] for seed in (7, 0)]
    assert document["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert document["loss"] != pytest.approx(losses[1], rel=1e-3)


def test_p1_a_run_of_an_earlier_version_is_measured_on_what_it_held_out(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, class_names=["cat", "dog"], training={"seed": 7, "validation_percent": 5.0, "data": "photos"})
    assert (
        ceit_cli.main(["evaluate", "--json", "--precision", "float32", "--checkpoint", run, "--data", str(photos)]) == 0
    )
    captured = capsys.readouterr()
    held_out = as_dataset(cut_by_place(load_images(photos, img_size=(16, 16), in_chans=1)), seed=7).test
    assert json.loads(captured.out)["images"] == len(held_out) == 4
    assert json.loads(captured.out)["loss"] == pytest.approx(figures(run, held_out)[1], rel=1e-5)
    assert "cannot be known" in captured.err


def test_p6_a_model_that_tells_nothing_of_its_training_is_measured_on_all_images(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, class_names=["cat", "dog"])
    assert (
        ceit_cli.main(["evaluate", "--json", "--precision", "float32", "--checkpoint", run, "--data", str(photos)]) == 0
    )
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 40
    assert "images that it was trained on, if any, are measured too" in captured.err


def test_broken_files_are_an_error_or_left_out_and_named(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat/broken.jpg").write_text("no image")
    run = save(tmp_path, class_names=["cat", "dog"])
    arguments = ["evaluate", "--checkpoint", run, "--data", str(photos)]

    assert ceit_cli.main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert "broken.jpg (not an image)" in captured.err
    assert captured.out == ""

    assert ceit_cli.main([*arguments, "--json", "--skip-broken"]) == 0
    captured = capsys.readouterr()
    assert "skipped cat/broken.jpg (not an image)\n" in captured.err
    assert json.loads(captured.out)["images"] == 40


def test_below_five_classes_there_is_no_top5(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save(tmp_path, class_names=["cat", "dog"])
    assert evaluated(capsys, "--checkpoint", run, "--data", str(photos))["top5_percent"] is None
    assert ceit_cli.main(["evaluate", "--checkpoint", run, "--data", str(photos)]) == 0
    assert "top-5" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("class_names", "sentence"),
    [
        (
            (*"012345678", "nine"),
            "the checkpoint does not know '9' of digits: it has 10 classes, 0, 1, 2, 3 and 6 more",
        ),
        (
            ("ten", *"123456789"),
            "the checkpoint does not know '0' of digits: it has 10 classes, ten, 1, 2, 3 and 6 more",
        ),
    ],
)
def test_other_classes_are_an_error_that_names_the_first(
    tmp_path: Path, class_names: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["evaluate", "--checkpoint", save(tmp_path, class_names=class_names), "--data", "digits"]) == 1
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_p15_names_whose_accents_are_stored_differently_are_one_class(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat").rename(photos / "caf\u00e9")
    run = save(tmp_path, class_names=["cafe\u0301", "dog"])
    document = evaluated(capsys, "--checkpoint", run, "--data", str(photos))
    assert [row["images"] for row in document["per_class"]] == [20, 20]


def test_p6_a_class_without_images_is_no_matter(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path, class_names=["cat", "dog", *"abcdefgh"])
    document = evaluated(capsys, "--checkpoint", run, "--data", str(photos))
    assert document["images"] == 40
    assert [row["images"] for row in document["per_class"]] == [20, 20] + [0] * 8


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--data", "digit"], 1, "error: unknown data set 'digit'; did you mean 'digits'?"),
        (
            ["--data", "digits", "--split", "validation"],
            1,
            "error: digits has no validation split, and the checkpoint tells of none; choose test or train",
        ),
        (["--data", "digits", "--batch-size", "0"], 1, "error: batch size 0 must be at least 1"),
        (["--data", "digits", "--split", "tset"], 2, "invalid choice: 'tset'"),
        ([], 2, "the following arguments are required: --data"),
    ],
)
def test_bad_command_lines(
    tmp_path: Path, arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["evaluate", "--checkpoint", save(tmp_path), *arguments]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_of_many_classes_the_table_lists_the_least_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    per_class = [ClassScores.of_counts(f"class {i}", 100, i, 50) for i in reversed(range(100))]
    per_class.append(ClassScores.of_counts("never seen", 0, 0, 0))
    means, sure = ClassMeans(0.5, 0.5, 0.5), Calibration(None, 0.1, 0.2, 1.0, ())
    figures: dict[str, Any] = {"macro": means, "weighted": means, "calibration": sure, "uncalibrated": None}
    figures |= {"balanced_accuracy": 0.5, "top1_interval_percent": (48.0, 51.0), "confusion": None}
    print_evaluation({}, Evaluation(10_000, 1.0, 49.5, top5_percent=90.0, per_class=tuple(per_class), **figures))
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("class ") and line.endswith(("█", "░"))]
    assert listed == [str(i) for i in range(40)]
    assert lines[-1] == "the 40 least recognised of 101 classes; --json has all"
