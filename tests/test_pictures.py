"""Pictures of a run: whole files, the same for the same data, with nothing chosen and nothing wrong hidden."""

import json
import re
import warnings
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from ceit import plots
from ceit.plots import (
    GREEN,
    ORANGE,
    RED,
    curve_style,
    draw_confusion,
    draw_curves,
    draw_prediction_sheet,
    draw_validation,
    new_figure,
)

NAMES = ("ant", "bee", "a cat of $20 or $30")


def pixels_of(path: Path, colour: str) -> int:
    """How many pixels of the picture have exactly this colour."""
    with Image.open(path) as image:
        return int((np.array(image.convert("RGB")) == ImageColor.getrgb(colour)).all(-1).sum())


def write_run(folder: Path, epochs: int = 3, ema: bool = True) -> Path:
    records: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * 40 + 20, epoch * 40 + 1, 20):
            records.append({"event": "step", "step": step, "epoch": epoch, "loss": 2 / step, "learning_rate": 1e-3})
        validation: dict[str, Any] = {"raw": {"top1_percent": 50.0 + epoch, "loss": 1.0}}
        validation["ema"] = {"top1_percent": 60.0 + epoch, "loss": 1.0} if ema else None
        records.append({"event": "epoch", "epoch": epoch, "step": 40 * epoch, "validation": validation})
    records.append({"event": "test", "step": 40 * epochs, "top1_percent": 55.0})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def confusion(classes: int) -> tuple[list[list[int]], tuple[str, ...]]:
    """A matrix of nine images for each class and one for each mistake, and names of the classes."""
    return (np.eye(classes, dtype=int) * 8 + 1).tolist(), (*NAMES, *(f"class {i}" for i in range(3, classes)))


def answers(right: int, wrong: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grey images of class 0, labels, and probabilities of which the last ``wrong`` are for class 1."""
    count = right + wrong
    probabilities = torch.tensor([[0.8, 0.1, 0.1]] * right + [[0.2, 0.7, 0.1]] * wrong)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    return images, torch.zeros(count, dtype=torch.int64), probabilities


@pytest.mark.parametrize(("epochs", "ema"), [(3, True), (1, False)])
def test_curves_show_the_average_where_there_is_one(tmp_path: Path, epochs: int, ema: bool) -> None:
    path = draw_curves(write_run(tmp_path, epochs, ema))
    assert path == tmp_path / "curves.png"
    assert (pixels_of(path, ORANGE) > 100) == ema
    with Image.open(path) as image:
        assert image.width == 1600


def test_curves_of_a_run_that_has_not_validated_yet(tmp_path: Path) -> None:
    record = {"event": "step", "step": 20, "epoch": 1, "loss": 2.0, "learning_rate": 1e-3}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record))
    assert draw_curves(tmp_path).is_file()


def test_curves_of_a_loss_that_was_not_finite(tmp_path: Path) -> None:
    records = [{"event": "step", "step": step, "loss": 2 / step, "learning_rate": 1e-3} for step in range(1, 60)]
    records[30]["loss"] = None
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert draw_curves(tmp_path).is_file()
    values = np.array([np.nan, 1.0, 3.0, np.nan, np.nan, np.nan, 5.0])
    np.testing.assert_array_equal(plots._running_mean(values, 3), [1.0, 2.0, 2.0, 3.0, np.nan, 5.0, 5.0])


def test_names_are_shortened_to_their_room() -> None:
    assert plots.plain("Labrador retriever", 18) == "Labrador retriever"
    assert plots.plain("Labrador retriever", 11) == "Labra…iever"
    assert plots.plain("明日の天気は晴れ", 16) == "明日の天気は晴れ"
    assert plots.plain("明日の天気は晴れ", 11) == "明日…晴れ"


def test_every_run_of_several_has_its_name_and_its_look(tmp_path: Path) -> None:
    names = ["_first", "n$_{$_x", *(f"run {number}" for number in range(8))]
    curve = [{"epoch": epoch, "validation_top1_percent": 10.0 * epoch} for epoch in (1, 2)]
    picture = draw_validation(dict.fromkeys(names, curve), tmp_path / "curves.svg")
    words = re.findall("<!-- (.*) -->", picture.read_text(encoding="utf-8"))  # each text in front of its outlines
    assert set(names) <= set(words)
    looks = [tuple(curve_style(number).values()) for number in range(25)]
    assert len(set(looks)) == 25


def test_many_curves_and_long_names_leave_the_axes_their_room(tmp_path: Path) -> None:
    curve = [{"epoch": epoch, "validation_top1_percent": 10.0 * epoch} for epoch in (1, 2)]
    names = [f"{'a folder with a long name/' * 6}{number}" for number in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few, many = (draw_validation(dict.fromkeys(names[:n], curve), tmp_path / f"{n}.png") for n in (1, 30))
    with Image.open(few) as one, Image.open(many) as thirty:
        assert thirty.height - one.height == 29 * 40
        assert thirty.width == one.width == 1600


def test_settings_of_the_user_do_not_change_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = {"run_1": [{"epoch": epoch, "validation_top1_percent": 10.0 * epoch} for epoch in (1, 2)]}
    plain = draw_validation(curve, tmp_path / "plain.png").read_bytes()
    for name, value in {"text.usetex": True, "axes.facecolor": "black", "savefig.bbox": "tight"}.items():
        monkeypatch.setitem(cast(Any, matplotlib.rcParams), name, value)
    assert draw_validation(curve, tmp_path / "mine.png").read_bytes() == plain


def test_letters_that_the_font_lacks_come_from_one_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two that come with matplotlib, and one that nobody has."""
    monkeypatch.setattr(plots, "_FONTS", ("cmr10", "a font of nobody", "DejaVu Sans"))
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figure.savefig(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with new_figure(tmp_path / "text.png", 1.0) as figure:
            figure.text(0.1, 0.1, "Ж")  # not in cmr10
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "metrics.jsonl has no steps to draw"),
        ('{"event": "test"}\n{"event": "st', "line 2 of .*metrics.jsonl is no JSON record"),
    ],
)
def test_curves_without_data_are_an_error(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("classes", [3, 30, 60])
def test_confusion_of_few_and_of_many_classes(tmp_path: Path, classes: int) -> None:
    path = draw_confusion(*confusion(classes), tmp_path / "confusion.png")
    with Image.open(path) as image:
        assert image.width == 1600


def test_class_without_images_is_an_empty_row(tmp_path: Path) -> None:
    assert draw_confusion([[0, 0], [1, 0]], NAMES[:2], tmp_path / "confusion.png").is_file()


def test_wrong_answers_are_framed_and_right_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_prediction_sheet(*answers(right=10, wrong=0), NAMES, path)
    assert pixels_of(path, RED) == 0
    assert pixels_of(path, GREEN) > 0
    draw_prediction_sheet(*answers(right=0, wrong=1), NAMES, path)
    one = pixels_of(path, RED)
    assert pixels_of(path, GREEN) == 0
    draw_prediction_sheet(*answers(right=8, wrong=2), NAMES, path)
    assert one > 1000
    assert pixels_of(path, RED) == pytest.approx(2 * one, rel=0.02)


def test_sheet_shows_the_first_32_and_is_the_same_each_time(tmp_path: Path) -> None:
    images, labels, probabilities = answers(right=30, wrong=10)
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    draw_prediction_sheet(images, labels, probabilities, NAMES, first)
    draw_prediction_sheet(images[:32], labels[:32], probabilities[:32], NAMES, again)
    assert first.read_bytes() == again.read_bytes()


def test_sheet_in_colour_takes_labels_that_look_like_formulas(tmp_path: Path) -> None:
    images, labels, probabilities = answers(right=2, wrong=2)
    colour = images.expand(-1, 3, -1, -1)
    assert draw_prediction_sheet(colour, labels + 2, probabilities, NAMES, tmp_path / "sheet.png").is_file()
