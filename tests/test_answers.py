"""What ``ceit evaluate`` writes of every image and of every class, and probabilities with and without a temperature."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ceit
import ceit_cli
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.inference.example_images import synthetic
from ceit.inference.exported import load_exported
from ceit.inference.exporter import export
from ceit.train.run import Result, train
from ceit.weights.checkpoint import save_confidence
from tests.train.conftest import SMALL

PREPROCESSING = Preprocessing((0.3,), (0.4,))
CLASSES = ("cat, or kitten", "dog", "Œuf")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of two of the three classes, some of them with names that are hard on a table."""
    names = ["a.png", "b, c.PNG", "d\u202fe.jpg", 'say "f".png', "g.png", "h\ni.png"]
    for label in CLASSES[:2]:
        folder = tmp_path / "my photos" / label
        folder.mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.random.default_rng([len(label), number]).integers(0, 256, (20, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
    return tmp_path / "my photos"


def save(folder: Path, temperature: float | None = None) -> Path:
    torch.manual_seed(3)
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=1, num_classes=3, patch_size=4, **geometry)).eval()
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.mul_(40)
    model.temperature = temperature
    path = folder / "model.safetensors"
    ceit.save_checkpoint(path, model, class_names=CLASSES, preprocessing=PREPROCESSING)
    return path


def answered(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert ceit_cli.main(["evaluate", "--json", "--precision", "float32", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as content:
        return list(csv.DictReader(content))


def test_a_file_has_every_image_with_its_path_and_probabilities_the_worst_mistake_first(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, file = save(tmp_path), tmp_path / "answers.csv"
    document = answered(capsys, "--checkpoint", checkpoint, "--data", photos, "--predictions", file)
    rows = rows_of(file)
    assert len(rows) == document["images"] == 12
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert np.mean(losses) == pytest.approx(document["loss"], abs=1e-5)
    assert {Path(row["path"]) for row in rows} == {path for path in photos.rglob("*") if path.is_file()}
    predictor = ceit.Predictor.from_checkpoint(checkpoint)
    for row in rows:
        (said,) = predictor.predict(row["path"])
        assert row["label"] == Path(row["path"]).parent.name
        assert row["answer"] == said.predictions[0].label
        assert sum(float(row[f"p({name})"]) for name in CLASSES) == pytest.approx(1, abs=3e-7)
        for score in said.predictions:
            assert float(row[f"p({score.label})"]) == pytest.approx(score.probability, abs=2e-6)
        assert float(row["probability"]) == pytest.approx(said.predictions[0].probability, abs=2e-6)
    right = sum(row["label"] == row["answer"] for row in rows)
    assert document["top1_percent"] == pytest.approx(100 * right / 12)


def test_images_of_a_set_without_files_are_numbered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", img_size=16, in_chans=1, num_classes=10)
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, model, class_names=list("0123456789"), preprocessing=PREPROCESSING)
    answered(capsys, "--checkpoint", path, "--data", "digits", "--predictions", tmp_path / "answers.csv")
    rows = rows_of(tmp_path / "answers.csv")
    labels = load_dataset("digits", img_size=(16, 16)).test.labels
    assert sorted(int(row["path"]) for row in rows) == list(range(360))
    assert all(row["label"] == str(int(labels[int(row["path"])])) for row in rows)


def test_of_many_classes_a_file_has_no_column_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "many"
    for number in range(101):
        (folder / f"{number:03}").mkdir(parents=True)
        Image.new("L", (16, 16), number).save(folder / f"{number:03}" / "x.png")
    names = [f"{number:03}" for number in range(101)]
    model = ceit.create_model("ceit_pico_patch4_32", img_size=16, in_chans=1, num_classes=101)
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, model, class_names=names, preprocessing=PREPROCESSING)
    answered(capsys, "--checkpoint", path, "--data", folder, "--predictions", tmp_path / "answers.csv")
    assert list(rows_of(tmp_path / "answers.csv")[0]) == ["path", "label", "answer", "probability", "loss"]


def test_figures_go_to_a_table_of_classes_or_to_a_document(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--checkpoint", save(tmp_path), "--data", photos, "--metrics"
    document = answered(capsys, *arguments, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == document
    assert document == answered(capsys, *arguments, tmp_path / "classes.csv")
    rows = rows_of(tmp_path / "classes.csv")
    assert [row["class"] for row in rows] == [*CLASSES, "(macro mean)", "(weighted mean)"]
    for row, entry in zip(rows, document["per_class"], strict=False):
        for name in ("precision", "recall", "f1", "auroc"):
            assert row[name] == ("" if entry[name] is None else f"{entry[name]:.6f}")
    assert (rows[2]["images"], rows[2]["recall"], rows[2]["auroc"]) == ("0", "", "")
    assert float(rows[3]["f1"]) == pytest.approx(document["macro"]["f1"], abs=1e-6)
    assert [row["images"] for row in rows[3:]] == ["12", "12"]


def test_the_table_on_a_terminal_names_the_classes_that_are_confused(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = answered(capsys, "--checkpoint", save(tmp_path), "--data", photos)
    arguments = ["--checkpoint", str(tmp_path), "--data", str(photos), "--precision", "float32"]
    assert ceit_cli.main(["evaluate", *arguments]) == 0
    shown = capsys.readouterr().out
    low, high = document["top1_interval_percent"]
    assert f"{low:.1f} to {high:.1f}%" in shown
    assert f"off by {100 * document['calibration']['ece']:.1f} points (ECE)" in shown
    true, answered_as = max(
        ((i, j) for i in range(3) for j in range(3) if i != j), key=lambda pair: document["confusion"][pair[0]][pair[1]]
    )
    count = document["confusion"][true][answered_as]
    assert f"most confused: {CLASSES[true]} as {CLASSES[answered_as]} {count}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "most confused" not in line)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--predictions", "answers.txt"], 2, "--predictions answers.txt must end in .csv"),
        (["--metrics", "figures.txt"], 2, "--metrics figures.txt must end in .json or .csv"),
        (["--metrics", "mine.csv"], 1, "mine.csv exists: name another file for --metrics, or remove it"),
        (["--predictions", "mine.csv"], 1, "mine.csv exists: name another file for --predictions, or remove it"),
        (["--predictions", "link.csv"], 1, "link.csv exists: name another file for --predictions, or remove it"),
        (["--predictions", "nowhere/a.csv"], 1, "nowhere/a.csv cannot be written: there is no folder nowhere"),
        (
            ["--predictions", "a.csv", "--metrics", "./a.csv"],
            2,
            "--predictions and --metrics name the same file, a.csv",
        ),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_computed(
    arguments: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("label,path\n", encoding="utf-8")
    Path("link.csv").symlink_to("nowhere.csv")
    assert ceit_cli.main(["evaluate", "--checkpoint", "model.safetensors", "--data", str(photos), *arguments]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""
    assert Path("mine.csv").read_text(encoding="utf-8") == "label,path\n"
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["link.csv", "mine.csv"]
    assert Path("link.csv").is_symlink()


def test_a_temperature_divides_the_logits_wherever_they_become_probabilities(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In ``predict``, ``evaluate`` and an exported file alike; ``--raw`` and ``calibrated=False`` leave it out."""
    (tmp_path / "warm").mkdir()
    plain, warm = save(tmp_path), save(tmp_path / "warm", temperature=4.0)
    picture = str(next(photos.rglob("a.png")))
    model = ceit.load_checkpoint(warm)
    assert (model.temperature, ceit.load_checkpoint(plain).temperature) == (4.0, None)
    export(
        model, tmp_path / "warm.onnx", format="onnx", check=synthetic(8, image_hw=(16, 16), preprocessing=PREPROCESSING)
    )
    assert load_exported(tmp_path / "warm.onnx").temperature == 4.0

    def sure(path: Path, **options: Any) -> np.ndarray:
        (said,) = ceit.Predictor.from_checkpoint(path, **options).predict(picture, top_k=3)
        found = dict(said.predictions)
        return np.array([found[name] for name in CLASSES])

    raw, wanted = sure(plain), sure(plain) ** 0.25
    wanted /= wanted.sum()
    assert raw.max() > wanted.max() + 0.05
    for path in (warm, tmp_path / "warm.onnx"):
        assert sure(path) == pytest.approx(wanted, rel=1e-4)
        assert sure(path, calibrated=False) == pytest.approx(raw, rel=1e-4)
        for options, expected in (((), wanted), (("--raw",), raw)):
            assert (
                ceit_cli.main(
                    ["predict", "--json", "--precision", "float32", "--checkpoint", str(path), *options, picture]
                )
                == 0
            )
            (document,) = json.loads(capsys.readouterr().out)
            found = {score["label"]: score["probability"] for score in document["predictions"]}
            assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), rel=1e-3)
        calibrated, uncalibrated = (
            answered(capsys, "--checkpoint", path, "--data", photos, *options) for options in ((), ("--raw",))
        )
        before = answered(capsys, "--checkpoint", plain, "--data", photos)
        assert calibrated["calibration"]["temperature"] == 4.0
        for figure in ("ece", "brier", "loss"):
            raw_figure = uncalibrated["calibration"][figure]
            assert calibrated["uncalibrated"][figure] == pytest.approx(raw_figure, rel=1e-3)
        assert uncalibrated["uncalibrated"] is None
        assert uncalibrated["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert calibrated["loss"] != pytest.approx(before["loss"], rel=0.05)
        assert calibrated["confusion"] == uncalibrated["confusion"] == before["confusion"]


def test_answers_with_and_without_a_temperature_do_not_go_into_one_file(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "--checkpoint", str(save(tmp_path, 2.0)), "--output", str(tmp_path / "a.csv"), str(photos)]
    assert ceit_cli.main([*arguments, "--raw"]) == 0
    assert ceit_cli.main([*arguments, "--resume"]) == 1
    assert "holds answers of another model" in capsys.readouterr().err
    assert ceit_cli.main([*arguments, "--resume", "--raw"]) == 0


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "2", True, [1]])
def test_a_temperature_that_is_none_is_refused(temperature: Any, tmp_path: Path) -> None:
    path = save(tmp_path)
    side = path.with_suffix(".json")
    side.write_text(json.dumps(json.loads(side.read_bytes()) | {"temperature": temperature}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"temperature .* must be a number greater than 0"):
        ceit.load_checkpoint(path)


def test_a_new_temperature_leaves_every_bit_of_the_weights_and_a_file_without_one_as_it_always_was(
    tmp_path: Path,
) -> None:
    path = save(tmp_path)
    before, side = path.read_bytes(), path.with_suffix(".json").read_bytes()
    assert b"temperature" not in side  # so that fingerprints of earlier versions still hold
    weights = {key: value.clone() for key, value in ceit.load_checkpoint(path).state_dict().items()}
    save_confidence(path, 0.75, None)
    found = ceit.load_checkpoint(path)
    assert found.temperature == 0.75
    assert all(torch.equal(weights[key], value) for key, value in found.state_dict().items())
    save_confidence(path, None, None)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == (before, side)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(SMALL, "digits", tmp_path_factory.mktemp("runs") / "calibrated")


def test_training_ends_with_a_temperature_that_validation_gives(
    run: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's report, and a measurement of it later on, tell the same; on validation no other one is better."""
    report = json.loads((run.output / "test.json").read_text(encoding="utf-8"))
    temperature = json.loads((run.output / "model.json").read_text(encoding="utf-8"))["temperature"]
    assert temperature == report["calibration"]["temperature"] == run.model.temperature
    again = answered(capsys, "--checkpoint", run.output, "--data", "digits")
    for key in ("calibration", "uncalibrated"):
        assert len(again[key]["reliability"]) == len(report[key]["reliability"])
        for figure in ("ece", "brier", "loss"):
            assert again[key][figure] == pytest.approx(report[key][figure], rel=1e-3)
    assert again["loss"] == pytest.approx(report["loss"], rel=1e-4)

    def loss(temperature: float) -> float:
        save_confidence(run.output / "model.safetensors", temperature, run.model.familiarity)
        return answered(capsys, "--checkpoint", run.output, "--data", "digits", "--split", "validation")["loss"]

    best = loss(temperature)
    assert all(loss(temperature * factor) > best for factor in (0.5, 2.0))
    assert loss(temperature) == best


def test_a_model_that_is_trained_on_has_no_old_temperature(run: Result, tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(SMALL, epochs=1, initial_checkpoint=str(run.output / "model.safetensors"))
    config = replace(config, validation_percent=0.0, select="last")
    found = train(config, "digits", tmp_path / "more")
    assert (found.model.temperature, found.model.familiarity) == (None, None)
    assert found.test.uncalibrated is None


def test_training_ends_with_what_validation_images_are_like(run: Result) -> None:
    """They are judged as if they were new: of new images about one in twenty is less familiar than 0.05."""
    side = json.loads((run.output / "model.json").read_text(encoding="utf-8"))
    assert ceit.load_checkpoint(run.output).familiarity == run.model.familiarity == side["familiarity"]
    assert side["familiarity"]["classes"] == 10
    predictor = ceit.Predictor.from_checkpoint(run.output, unknown_below=0.05)
    test = [run.dataset.test.read(index, 1) for index in range(len(run.dataset.test))]
    found = predictor.predict([*test, Image.new("L", (8, 8), 255)])
    assert 0.01 <= np.mean([one.unknown is True for one in found[:-1]]) <= 0.12
    assert found[-1].unknown is True


def test_files_are_written_though_nobody_reads_what_is_printed(tmp_path: Path, photos: Path) -> None:
    """stdout is closed, as ``>&-`` closes it."""
    save(tmp_path)
    words = ["evaluate", "--checkpoint", "model.safetensors", "--data", str(photos), "--metrics", "figures.json"]
    command = f"exec {shlex.quote(sys.executable)} -m ceit {shlex.join(words)} >&-"
    found = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, "Traceback" in found.stderr) == (0, False), found.stderr
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["images"] == 12
