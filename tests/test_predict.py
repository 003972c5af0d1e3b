"""Prediction sees what evaluation sees, whatever an image comes as; and ``ceit predict`` keeps its promises."""

import csv
import errno
import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ceit
import ceit_cli
from ceit.data.preprocessing import Preprocessing
from ceit.inference import computing, example_images, fastest, prediction_file
from ceit.inference.exporter import Format, export
from ceit.inference.predictor import Prediction, Predictor

NAMES = ("ant", "bee", "[b]cow[/b]", "dog", "elk", "fox")
SIZE = (16, 20)
PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def network(in_chans: int = 3) -> ceit.CeiT:
    torch.manual_seed(1)
    config = ceit.CeiTConfig(
        img_size=SIZE,
        in_chans=in_chans,
        num_classes=len(NAMES),
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        stem_channels=8,
        stem_kernel_size=3,
        stem_stride=1,
    )
    model = ceit.CeiT(config).eval()
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.mul_(100)  # answers that differ from image to image
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    ceit.save_checkpoint(folder / "model.safetensors", network(), class_names=NAMES, preprocessing=PREPROCESSING)
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return ceit.Predictor.from_checkpoint(run, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in two folders, with a text file, a hidden one and a hidden folder beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for place in ("zoo", "farm/stable", ".thumbnails"):
        (folder / place).mkdir(parents=True)
    for i, name in enumerate(("zoo/b.png", "zoo/a.PNG", "farm/stable/c.png", "d.png", "e.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    for name in ("notes.txt", ".hidden.png", ".thumbnails/d.png"):
        (folder / name).write_text("no image")
    return folder


@pytest.fixture
def broken(tmp_path: Path, photos: Path) -> list[str]:
    """A good image between two broken ones."""
    whole = (photos / "d.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    return [str(tmp_path / "cut.png"), str(photos / "d.png"), str(tmp_path / "text.jpg")]


def test_p5_a_folder_is_walked_as_training_walks_it_and_what_is_passed_over_is_said(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zoo").symlink_to(photos / "zoo")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "back").symlink_to(tmp_path)
    (tmp_path / "clip.mp4").write_text("no image")
    assert ceit_cli.main(["predict", "--checkpoint", str(run), str(tmp_path), "--json", "--skip-broken"]) == 0
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert [Path(answer["path"]).name for answer in answers] == ["gone.png", "a.PNG", "b.png"]
    assert [answer.get("error") for answer in answers] == ["No such file or directory", None, None]
    assert f"{tmp_path}: passed over: 1 .mp4, 1 linked to a folder above\n" in captured.err


def answer_of(pixels_hwc: np.ndarray) -> list[tuple[str, float]]:
    """All classes and their probabilities, most probable first, straight from the network."""
    with torch.inference_mode():
        images = PREPROCESSING.normalise(pixels_hwc).permute(2, 0, 1)[None]
        probabilities = network()(images).softmax(1)[0]
    return [(NAMES[i], probabilities[i].item()) for i in probabilities.argsort(descending=True).tolist()]


def test_all_kinds_of_input_get_the_network_s_own_answer(predictor: Predictor, photos: Path) -> None:
    path = photos / "d.png"
    pixels = np.array(Image.open(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    kinds = [path, str(path), Image.open(path), pixels, pixels / 255, tensor, tensor / 255, (tensor / 255).half()]
    predictions = predictor.predict(kinds, top_k=6)

    assert [prediction.path for prediction in predictions] == [str(path)] * 2 + [None] * 6
    for prediction in predictions[:-1]:
        assert [label for label, _ in prediction.predictions] == [label for label, _ in answer_of(pixels)]
        expected = [probability for _, probability in answer_of(pixels)]
        assert [score.probability for score in prediction.predictions] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 3, 16, 20, dtype=torch.uint8), np.zeros((3, 16, 20, 3), np.uint8), [np.zeros((9, 9))] * 3]
)
def test_batch_is_one_image_after_the_other(predictor: Predictor, batch: Tensor | np.ndarray) -> None:
    assert len(predictor.predict(batch)) == 3


def test_single_image_gives_a_list_of_one(predictor: Predictor, photos: Path) -> None:
    path = photos / "d.png"
    for image in (path, str(path), Image.open(path), np.zeros((9, 9), np.uint8), torch.zeros(1, 9, 9)):
        assert len(predictor.predict(image)) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_answers_keep_the_order_and_do_not_depend_on_the_batch(
    predictor: Predictor, photos: Path, broken: list[str], batch_size: int
) -> None:
    paths = [*broken, str(photos / "e.png")]
    predictions = predictor.predict(paths, batch_size=batch_size)
    assert [prediction.path for prediction in predictions] == paths
    assert [prediction.error for prediction in predictions] == ["image file is truncated", None, "not an image", None]
    for path, prediction in zip(paths, predictions, strict=True):
        if prediction.error is None:
            expected = [probability for _, probability in answer_of(np.array(Image.open(path)))][:5]
            assert [score.probability for score in prediction.predictions] == pytest.approx(expected, rel=1e-4)


def test_stream_is_read_two_batches_ahead_at_most(predictor: Predictor) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((*SIZE, 3), np.uint8)

    stream = predictor.predict_stream(endless(), batch_size=4)
    for i in range(20):
        next(stream)
        assert taken <= i + 1 + 2 * 4


def test_streams_at_once_leave_torch_its_threads(predictor: Predictor, photos: Path) -> None:
    def in_a_thread(work: Callable[[], object]) -> None:
        thread = Thread(target=work)
        thread.start()
        thread.join()

    torch.set_num_threads(3)
    try:
        streams = [predictor.predict_stream([photos / "d.png"] * 9, batch_size=1) for _ in range(2)]
        next(streams[0])  # whose workers have one thread each
        in_a_thread(lambda: next(streams[1]))
        del streams[0]
        in_a_thread(streams.clear)
        later: list[int] = []
        in_a_thread(lambda: later.append(torch.get_num_threads()))
        assert later == [3]
    finally:
        torch.set_num_threads(1)


def test_every_core_has_a_batch_of_its_own_and_torch_keeps_its_threads(predictor: Predictor, photos: Path) -> None:
    paths = [photos / name for name in ("d.png", "e.png", "zoo/b.png")] * 7
    expected = predictor.predict(paths, batch_size=2)
    seen: set[tuple[int, int]] = set()

    def noted(images_bchw: Tensor) -> Tensor:
        seen.add((len(images_bchw), torch.get_num_threads()))
        time.sleep(0.001 * len(images_bchw) % 3)  # answers become known out of order
        return predictor.network(images_bchw)

    several = Predictor(predictor.model, class_names=NAMES, preprocessing=PREPROCESSING, device="cpu", network=noted)
    torch.set_num_threads(4)
    try:
        for images, calls in ((paths, {(2, 1), (1, 1)}), (paths[:2], {(1, 2)}), (paths[:1], {(1, 4)})):
            seen.clear()
            found = several.predict(images, batch_size=2)
            assert [prediction.path for prediction in found] == [str(path) for path in images]
            for one, other in zip(found, expected, strict=False):
                assert [score.label for score in one.predictions] == [score.label for score in other.predictions]
            assert seen <= calls
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def test_what_was_not_asked_for_to_the_end_is_not_read_to_the_end(predictor: Predictor) -> None:
    stream = predictor.predict_stream((np.zeros((*SIZE, 3), np.uint8) for _ in range(10**9)), batch_size=2)
    assert isinstance(stream, Iterator)
    next(stream)
    del stream  # else this test would never end


def test_bf16_answers_are_close(predictor: Predictor, photos: Path) -> None:
    half = Predictor(predictor.model, class_names=NAMES, preprocessing=PREPROCESSING, device="cpu", precision="bf16")
    (prediction,) = half.predict(photos / "d.png", top_k=6)
    expected = dict(answer_of(np.array(Image.open(photos / "d.png"))))
    found = dict(prediction.predictions)
    assert found == pytest.approx(expected, abs=0.1)
    assert found != pytest.approx(expected, rel=1e-5)


def test_files_open_for_reading_are_images(predictor: Predictor, photos: Path) -> None:
    expected = predictor.predict(photos / "d.png")[0].predictions
    with (photos / "d.png").open("rb") as file, (photos / "d.png").open("rb") as again:
        (alone,), listed = predictor.predict(file), predictor.predict([again, io.BytesIO(b"no image")])
    assert (alone.path, alone.predictions) == (None, expected)
    assert [listed[0].predictions, listed[1].error] == [expected, "not an image"]


def test_a_path_that_names_nothing_leaves_the_others_their_answers(predictor: Predictor, photos: Path) -> None:
    good = str(photos / "d.png")
    found = predictor.predict([good, "", "nul\0.png", "~nobody-of-this-name/a.png", good])
    assert found[0] == found[-1]
    assert [one.path for one in found] == [good, "", "nul\0.png", "~nobody-of-this-name/a.png", good]
    told = ("a path is empty: ", "there is a NUL in the path", "~nobody-of-this-name/a.png: there is no user")
    assert all(one.error and one.error.startswith(why) for one, why in zip(found[1:-1], told, strict=True))


def test_floats_that_round_to_the_range_are_in_it(predictor: Predictor) -> None:
    image = np.random.default_rng(0).random((*SIZE, 3))
    image[0, 0], image[0, 1] = 0, 1
    moved = image.copy()
    moved[0, 0], moved[0, 1] = -1e-6, 1.000001
    assert predictor.predict(moved) == predictor.predict(image)
    with pytest.raises(ValueError, match=r"pixels of 0 to 1\.01 are out of range"):
        predictor.predict(np.where(image == 1, 1.01, image))


def test_a_predictor_is_not_sent_to_other_processes(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"a Predictor stays in its process: make one there, as by Predictor\.from_ch"):
        pickle.dumps(predictor)


def test_grey_network_takes_colour_and_transparency(tmp_path: Path) -> None:
    model = network(in_chans=1)
    predictor = Predictor(model, class_names=NAMES, preprocessing=Preprocessing((0.5,), (0.5,)), device="cpu")
    grey = np.full((*SIZE, 1), 200, np.uint8)
    transparent = np.dstack([np.repeat(grey, 3, 2), np.full((*SIZE, 1), 255, np.uint8)])
    first, second, third = predictor.predict([grey, np.repeat(grey, 3, 2), transparent])
    assert first == second == third


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (
            np.zeros((8, 8, 5), np.uint8),
            r"shape \(8, 8, 5\) is no image: an array must be \(H, W\) or \(H, W, C\) with 1",
        ),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\) is no image: a tensor must be \(C, H, W\) with 1 to 4 channels"),
        (torch.zeros(8, 8), r"shape \(8, 8\) is no image"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\) is no image"),
        (np.full((8, 8, 3), 255.0), "pixels of 255 to 255 are out of range: floats must be in 0 to 1"),
        (torch.full((3, 8, 8), torch.nan), "pixels of nan to nan are out of range"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "pixels of int64 must be uint8, or floats in 0 to 1"),
    ],
)
def test_array_that_is_no_image_is_an_error(predictor: Predictor, image: np.ndarray | Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        predictor.predict([image])


@pytest.mark.parametrize(("options", "sentence"), [({"top_k": 0}, "top_k 0"), ({"batch_size": 0}, "batch size 0")])
def test_bad_options_are_an_error_before_the_first_image(
    predictor: Predictor, options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"{sentence} must be at least 1"):
        predictor.predict_stream(iter([]), **options)


def test_missing_class_names_and_preprocessing_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    predictor = Predictor(network(), device="cpu")
    assert caplog.messages == [
        "the checkpoint names no classes: they are called class 0 to class 5",
        "the checkpoint has no preprocessing: ImageNet's is used",
    ]
    assert predictor.class_names[5] == "class 5"
    assert predictor.preprocessing == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=1.0)


def test_what_does_not_fit_the_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 class names do not fit a model of 6 classes"):
        Predictor(network(), class_names=NAMES[:2], preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="mean and std of 3 channels do not fit a model of 1"):
        Predictor(network(in_chans=1), class_names=NAMES, preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="no preprocessing, and ImageNet's does not fit its 1 channels"):
        Predictor(network(in_chans=1), class_names=NAMES)


def test_diverged_weights_are_an_error() -> None:
    model = network()
    assert isinstance(model.head, nn.Linear)
    nn.init.constant_(model.head.bias, torch.nan)
    predictor = Predictor(model, class_names=NAMES, preprocessing=PREPROCESSING, device="cpu")
    with pytest.raises(ValueError, match="the network's answer is not a number"):
        predictor.predict(np.zeros((9, 9), np.uint8))


def test_prediction_as_json() -> None:
    assert Prediction("a.png", error="not an image").as_dict() == {"path": "a.png", "error": "not an image"}


def test_json_is_one_document_in_the_order_asked(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "--checkpoint", str(run), str(photos / "e.png"), str(photos), "--json", "--top-k", "2"]
    arguments += ["--precision", "float32"]
    assert ceit_cli.main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [entry["path"].removeprefix(f"{photos}{os.sep}") for entry in document] == [
        "e.png",
        "d.png",
        "e.png",
        "farm/stable/c.png",
        "zoo/a.PNG",
        "zoo/b.png",
    ]
    assert document[0] == document[2]
    label, probability = answer_of(np.array(Image.open(photos / "e.png")))[0]
    assert document[0]["predictions"][0] == {"label": label, "probability": pytest.approx(probability, rel=1e-4)}
    assert [len(entry["predictions"]) for entry in document] == [2] * 6
    assert captured.err == f"{photos}: passed over: 1 .thumbnails/, 1 .txt, 1 hidden\n"


def test_csv_has_a_line_for_every_image_and_rank(
    run: Path, broken: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "--checkpoint", str(run), *broken, "--csv", "--top-k", "2", "--skip-broken"]
    arguments += ["--precision", "float32"]
    assert ceit_cli.main(arguments) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["path"], row["rank"], row["error"]) for row in rows] == [
        (broken[0], "", "image file is truncated"),
        (broken[1], "1", ""),
        (broken[1], "2", ""),
        (broken[2], "", "not an image"),
    ]
    label, probability = answer_of(np.array(Image.open(broken[1])))[0]
    assert (rows[1]["label"], float(rows[1]["probability"])) == (label, pytest.approx(probability, abs=1e-5))


@pytest.mark.parametrize("form", [["--json"], ["--csv"], []])
def test_broken_file_is_named_in_place_and_fails_at_the_end(
    run: Path, broken: list[str], form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    form = [*form, "--precision", "float32"]
    assert ceit_cli.main(["predict", "--checkpoint", str(run), *broken, *form]) == 1
    captured = capsys.readouterr()
    sentence = f"2 of 3 images cannot be read: {broken[0]} and {broken[2]}"
    assert captured.err == f"error: {sentence}; --skip-broken accepts that\n"
    assert captured.out.count("image file is truncated") == 1

    assert ceit_cli.main(["predict", "--checkpoint", str(run), "--skip-broken", *broken, *form]) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (captured.out, f"{sentence}\n")


def test_table_fits_80_columns_and_shows_names_as_they_are(
    run: Path, broken: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"a very long name that tells nothing [red]\xff\n.png")
    odd.write_bytes(Path(broken[1]).read_bytes())
    arguments = ["predict", "--checkpoint", str(run), str(odd), *broken, "--skip-broken", "--precision", "float32"]
    assert ceit_cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["image", "label", "probability", "runners-up"]
    label, probability = answer_of(np.array(Image.open(broken[1])))[0]
    assert "tells nothing [red]\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.png" in lines[2]
    assert f"  {label} " in lines[2]
    assert f"{100 * probability:.1f}%" in lines[2]
    assert "cannot be read: image file is truncated" in lines[3]


def test_labels_that_begin_alike_stay_apart_in_the_table(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"Cherry_(including_sour)___{rest}" for rest in ("healthy", "Powdery_mildew", "a", "b", "c", "d")]
    ceit.save_checkpoint(tmp_path / "m.safetensors", network(), class_names=names, preprocessing=PREPROCESSING)
    monkeypatch.setenv("COLUMNS", "120")
    words = [
        "predict",
        "--checkpoint",
        str(tmp_path / "m.safetensors"),
        str(photos / "d.png"),
        "--precision",
        "float32",
    ]
    assert ceit_cli.main(words) == 0
    label = answer_of(np.array(Image.open(photos / "d.png")))[0][0]
    assert names[NAMES.index(label)][:27] in capsys.readouterr().out


@pytest.mark.parametrize("between", ["\n", "\r\n", "\0"])
def test_paths_may_come_from_a_file(
    between: str,
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [str(photos / "d.png"), str(tmp_path / "süß 1.png")]
    shutil.copy(names[0], names[1])
    listed = "".join(name + between for name in names).encode()
    (tmp_path / "list.txt").write_bytes(listed)
    words = ["predict", "--checkpoint", str(run), "--json", "--files-from"]
    for source in (str(tmp_path / "list.txt"), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        assert ceit_cli.main([*words, source, names[0]]) == 0
        assert [answer["path"] for answer in json.loads(capsys.readouterr().out)] == [names[0], *names]
    (tmp_path / "list.txt").write_bytes(listed.decode().encode("utf-16"))  # as a PowerShell does
    assert ceit_cli.main([*words, str(tmp_path / "list.txt")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert ceit_cli.main([*words, "-", "-"]) == 2
    assert "standard input cannot be an image and a list" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert ceit_cli.main([*words, "-"]) == 1
    assert capsys.readouterr().err == "error: standard input is closed: name a file in place of -\n"
    (tmp_path / "list.txt").write_bytes(b"\n")
    assert ceit_cli.main([*words, str(tmp_path / "list.txt")]) == 1
    assert capsys.readouterr().err == f"error: --files-from {tmp_path / 'list.txt'} lists no paths\n"


def test_dash_is_standard_input(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, expected in (((photos / "d.png").read_bytes(), "predictions"), (b"", "error")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        arguments = [
            "predict",
            "--checkpoint",
            str(run),
            "-",
            str(photos / "d.png"),
            "--json",
            "--precision",
            "float32",
        ]
        assert ceit_cli.main(arguments) == (expected == "error")
        first, second = json.loads(capsys.readouterr().out)
        assert first["path"] == "-"
        assert expected in first
        assert (first.get("predictions") == second["predictions"]) == (expected == "predictions")
    two = 2 * (photos / "d.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(two)))  # as `ffmpeg -f image2pipe` writes them
    assert ceit_cli.main(["predict", "--checkpoint", str(run), "-"]) == 0
    assert "standard input holds several images, and only the first is taken" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)  # as `<&-` leaves it
    assert ceit_cli.main(["predict", "--checkpoint", str(run), "-"]) == 1
    assert capsys.readouterr().err == "error: standard input is closed: name a file in place of -\n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["gone.png"], 1, "error: gone.png does not exist"),
        (["{empty}"], 1, "error: folder {empty} holds no images"),
        (
            ["gone.png", "{empty}"],
            1,
            "error: 2 paths, and nothing to predict: gone.png does not exist or cannot be reached and folder {empty}",
        ),
        ([], 2, "name an image, a folder of images, or a list of them with --files-from"),
        (["{photos}", "--json", "--csv"], 2, "argument --csv: not allowed with argument --json"),
        (["{photos}", "--resume"], 2, "--resume goes on with a file: name it with --output FILE.csv or FILE.jsonl"),
        (["{photos}", "--output", "a.txt"], 2, "--output a.txt must end in .csv or .jsonl"),
        (["{photos}", "--output", "a.csv", "--csv"], 2, "argument --csv: not allowed with argument --output"),
        (["{photos}", "--precision", "int4"], 2, "invalid choice: 'int4' (choose from"),
        (["{photos}", "--top-k", "0"], 1, "error: top_k 0 must be at least 1"),
        (["{photos}", "--batch-size", "-3"], 1, "error: batch size -3 must be at least 1"),
    ],
)
def test_bad_command_lines(
    arguments: list[str],
    code: int,
    sentence: str,
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"photos": photos, "empty": tmp_path}
    arguments = [argument.format(**places) for argument in arguments]
    assert ceit_cli.main(["predict", "--checkpoint", str(run), *arguments]) == code
    captured = capsys.readouterr()
    assert sentence.format(**places) in captured.err
    assert captured.out == ""


@pytest.fixture
def many(photos: Path, tmp_path: Path) -> list[str]:
    """Twelve paths with a broken one among them, and one twice."""
    paths = [str(photos / name) for name in ("d.png", "e.png", "zoo/b.png", "zoo/a.PNG")] * 3
    (tmp_path / "broken.png").write_text("no image")
    return [*paths[:5], str(tmp_path / "broken.png"), *paths[5:11]]


@pytest.fixture(params=["csv", "jsonl"])
def written(run: Path, many: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> tuple[list[str], Path]:
    """A command that writes a file, and what it writes undisturbed."""
    command = ["predict", "--checkpoint", str(run), *many, "--skip-broken", "--top-k", "3"]
    command += ["--batch-size", "1", "--precision", "float32"]  # whose answers are the same to the last bit
    whole = tmp_path / f"whole.{request.param}"
    assert ceit_cli.main([*command, "--output", str(whole)]) == 0
    return command, whole


def test_file_holds_what_is_printed(
    written: tuple[list[str], Path], many: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = written
    assert capsys.readouterr().out == ""
    if whole.suffix == ".csv":
        assert ceit_cli.main([*command, "--csv"]) == 0
        assert whole.read_text() == capsys.readouterr().out
    else:
        assert ceit_cli.main([*command, "--json"]) == 0
        assert list(map(json.loads, whole.read_text().splitlines())) == json.loads(capsys.readouterr().out)
    assert whole.read_text().count("not an image") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_file_holds_whole_answers_and_is_gone_on_with(
    written: tuple[list[str], Path],
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, whole = written
    output = tmp_path / f"part{whole.suffix}"
    command = [*command, "--output", str(output)]
    lines = prediction_file.FORMS[whole.suffix]
    written_images = 0

    def interrupted_at_the_seventh(prediction: Prediction, judged: bool) -> str:
        nonlocal written_images
        written_images += 1
        if written_images == 7:
            signal.raise_signal(number)
        return lines(prediction, judged)

    with monkeypatch.context() as patch:
        patch.setitem(prediction_file.FORMS, whole.suffix, interrupted_at_the_seventh)
        assert ceit_cli.main(command) == code
    assert written_images == 7
    assert capsys.readouterr().err.startswith("7 of 12 images are predicted; --resume goes on\n")
    part = output.read_bytes()
    assert whole.read_bytes().startswith(part)
    assert part.endswith(b"\n")

    assert ceit_cli.main(command) == 1
    sentence = f"error: {output} exists: --resume goes on with it, or name another --output\n"
    assert capsys.readouterr().err == sentence

    content = whole.read_bytes()
    whole_lines = content.splitlines(keepends=True)
    cut = b"".join(whole_lines[: len(part.splitlines()) - 1]) + whole_lines[len(part.splitlines())][:20]
    (error,) = (line for line in whole_lines if b"not an image" in line)
    six = content[: content.index(error) + len(error)]
    for left, kept in ((part, part), (cut, six), (content, content)):
        output.write_bytes(left)
        assert ceit_cli.main([*command, "--resume"]) == 0
        assert output.read_bytes() == kept.replace(error, b"") + error + content.removeprefix(kept)
        assert capsys.readouterr().err.startswith("1 of 12 images cannot be read")


def test_resume_without_a_file_begins_one(written: tuple[list[str], Path], tmp_path: Path) -> None:
    command, whole = written
    output = tmp_path / f"new{whole.suffix}"
    assert ceit_cli.main([*command, "--output", str(output), "--resume"]) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_resume_leaves_a_foreign_file_as_it_is(
    written: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = written
    content = whole.read_bytes()
    label = next(name.encode() for name in NAMES if name.encode() in content)
    foreign = [b"hello", b"hello\n", b"[1, 2]\n", b"a,b\n1,2\n", content.replace(label, b"gnu"), b"\xff\xfe\n"]
    cases = [*((text, "3") for text in foreign), (content, "2"), (content, "4")]
    for text, top_k in cases:
        whole.write_bytes(text)
        assert ceit_cli.main([*command, "--output", str(whole), "--resume", "--top-k", top_k]) == 1
        sentence = f"{whole} holds other things than answers of this model with --top-k {top_k}: name another --output"
        assert capsys.readouterr().err == f"error: {sentence}\n"
        assert whole.read_bytes() == text


def answers_in(file: Path) -> list[tuple[str, str]]:
    """The paths in a file, and their errors."""
    if file.suffix == ".jsonl":
        return [(image["path"], image.get("error", "")) for image in map(json.loads, file.read_text().splitlines())]
    rows = csv.DictReader(io.StringIO(file.read_text()))
    return [(row["path"], row["error"]) for row in rows if row["rank"] in ("", "1")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_p14_what_could_not_be_read_is_done_again_by_resuming(
    suffix: str, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    names = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i in (0, 2, 4):
        shutil.copy(photos / "d.png", names[i])
    Path(names[3]).write_text("no image")
    output = tmp_path / f"x{suffix}"
    command = ["predict", "--checkpoint", str(run), *names, "--output", str(output), "--resume"]
    assert ceit_cli.main(command) == 1
    missing, broken = "No such file or directory", "not an image"
    assert answers_in(output) == list(zip(names, ("", missing, "", broken, ""), strict=True))

    content = output.read_bytes()
    with monkeypatch.context() as patch:  # errors go whole or not at all
        patch.setattr(os, "fsync", full)
        assert ceit_cli.main(command) == 1
    assert output.read_bytes() == content
    assert not list(tmp_path.glob(".*"))

    for mended, code, errors in ((None, 1, (missing, broken)), (1, 1, ("", broken)), (3, 0, ("", ""))):
        if mended:
            shutil.copy(photos / "e.png", names[mended])
        assert ceit_cli.main(command) == code
        answered = [(names[i], "") for i in (0, 2, 4)]
        assert answers_in(output) == [*answered, (names[1], errors[0]), (names[3], errors[1])]


def test_one_process_at_a_time_writes_a_file(
    written: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    command, whole = written
    output, link = tmp_path / f"new{whole.suffix}", tmp_path / f"link{whole.suffix}"
    link.symlink_to(output)
    with (tmp_path / f".{output.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in (output, link):
            for resume in ([], ["--resume"]):
                assert ceit_cli.main([*command, "--output", str(name), *resume]) == 1
                sentence = f"{name} is being written by another ceit predict: wait for it, or name another --output"
                assert capsys.readouterr().err == f"error: {sentence}\n"
                assert not output.exists()
    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert ceit_cli.main([*command, "--output", str(output)]) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_resume_takes_no_answers_of_another_model(
    written: tuple[list[str], Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = written
    other, same = tmp_path / "other.safetensors", tmp_path / "same.safetensors"
    model = network()
    ceit.save_checkpoint(same, model, class_names=NAMES, preprocessing=PREPROCESSING)
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.bias[0] += 1e-6  # no answer tells
    ceit.save_checkpoint(other, model, class_names=NAMES, preprocessing=PREPROCESSING)
    content, side_file = whole.read_bytes(), whole.with_name(f"{whole.name}.model.json")
    resumed = [*command, "--output", str(whole), "--resume"]
    capsys.readouterr()

    assert ceit_cli.main([*resumed, "--checkpoint", str(other)]) == 1
    told = f"{whole} holds answers of another model, {run} as it was then: go on with that, or name another --output"
    assert capsys.readouterr().err == f"error: {told}\n"
    assert whole.read_bytes() == content

    assert ceit_cli.main([*resumed, "--checkpoint", str(same)]) == 0
    assert json.loads(side_file.read_text())["checkpoint"] == str(same)

    side_file.write_text("[]")
    assert ceit_cli.main(resumed) == 1
    told = f"error: {side_file} is damaged: remove it if the answers in {whole} are of this model\n"
    assert capsys.readouterr().err.endswith(told)
    side_file.unlink()
    assert ceit_cli.main(resumed) == 0
    told = f"{whole} does not say whose answers it holds: they are taken to be this model's\n"
    assert capsys.readouterr().err.startswith(told)


def test_resume_says_that_it_knows_images_by_their_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["predict", "--help"]) == 0
    assert "same model, paths written as before" in " ".join(capsys.readouterr().out.split())


def test_what_is_not_there_is_an_image_that_cannot_be_read(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, link, empty = (tmp_path / name for name in ("gone.png", "link.png", "empty"))
    link.symlink_to("nowhere.png")
    empty.mkdir()
    command = ["predict", "--checkpoint", str(run), str(gone), str(photos / "d.png"), str(link), str(empty), "--json"]
    assert ceit_cli.main(command) == 1
    captured = capsys.readouterr()
    missing = "No such file or directory"
    assert [answer.get("error") for answer in json.loads(captured.out)] == [missing, None, missing]
    sentence = f"2 of 3 images cannot be read: {gone} and {link}"
    assert captured.err == f"folder {empty} holds no images\nerror: {sentence}; --skip-broken accepts that\n"
    assert ceit_cli.main([*command, "--skip-broken"]) == 0


def test_a_folder_that_cannot_be_listed_keeps_no_other_image_from_being_predicted(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "farm":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    command = ["predict", "--checkpoint", str(run), "--json"]
    assert ceit_cli.main([*command, str(photos)]) == 1
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert [Path(answer["path"]).name for answer in answers] == ["d.png", "e.png", "farm", "a.PNG", "b.png"]
    assert [Path(answer["path"]).name for answer in answers if "error" in answer] == ["farm"]
    assert captured.err.endswith(f"1 of 5 images cannot be read: {photos / 'farm'}; --skip-broken accepts that\n")

    assert ceit_cli.main([*command, str(photos / "farm")]) == 1
    told = f"folder {photos / 'farm'} cannot be listed (Permission denied): make it readable or remove it"
    assert capsys.readouterr() == ("", f"error: {told}\n")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_interrupted_output_is_whole(run: Path, photos: Path, form: str) -> None:
    count = 600  # answers of more bytes than a pipe takes, so that it cannot end before it is interrupted
    paths = [str(photos / "d.png"), str(photos / "e.png")] * (count // 2)
    arguments = ["predict", "--checkpoint", str(run), *paths, form, "--batch-size", "4"]
    with subprocess.Popen(
        [sys.executable, "-m", "ceit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        begun = "".join(process.stdout.readline() for _ in range(12))
        process.send_signal(signal.SIGINT)
        text, told = begun + process.stdout.read(), process.stderr.read()
    assert process.returncode == 130, told
    if form == "--json":
        found = [entry["path"] for entry in json.loads(text)]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["rank"] for row in rows] == list("12345") * (len(rows) // 5)
        found = [row["path"] for row in rows[::5]]
    assert 0 < len(found) < count
    assert found == paths[: len(found)]
    assert told == f"{len(found)} of {count} images are predicted\ninterrupted\n"


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2"), ("openvino", ".xml")])
def test_exported_file_answers_as_its_checkpoint(
    form: Format, suffix: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = (tmp_path / "network").with_suffix(suffix)
    images = example_images.synthetic(4, image_hw=SIZE, preprocessing=PREPROCESSING)
    export(ceit.load_checkpoint(run), file, format=form, check=images)
    documents = []
    torch.set_num_threads(2)
    try:
        for checkpoint in (run, file):
            arguments = ["predict", "--checkpoint", str(checkpoint), str(photos), "--json", "--batch-size", "2"]
            assert ceit_cli.main([*arguments, "--precision", "float32", "--top-k", "6"]) == 0
            documents.append(json.loads(capsys.readouterr().out))
    finally:
        torch.set_num_threads(1)
    assert len(documents[0]) == 5
    for one, other in zip(*documents, strict=True):
        assert one["path"] == other["path"]
        expected = [(score["label"], pytest.approx(score["probability"], rel=1e-3)) for score in one["predictions"]]
        assert [(score["label"], score["probability"]) for score in other["predictions"]] == expected

    assert ceit_cli.main(["predict", "--checkpoint", str(file), str(photos), "--json"]) == 0
    capsys.readouterr()
    assert ceit_cli.main(["predict", "--checkpoint", str(file), str(photos / "d.png"), "--precision", "bf16"]) == (
        form != "openvino"
    )
    if form != "openvino":
        told = f"error: {file} cannot be run in bf16: only OpenVINO's .xml can, others run in float32\n"
        assert capsys.readouterr() == ("", told)

    output = ["--output", str(tmp_path / "answers.csv")]
    assert ceit_cli.main(["predict", "--checkpoint", str(file), str(photos), *output]) == 0
    assert ceit_cli.main(["predict", "--checkpoint", str(run), str(photos), *output, "--resume"]) == 1
    told = f"error: {output[1]} holds answers of another model, {file} as it was then: go on with that, or name"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["text.onnx", "text.pt2", "text.xml"])
def test_foreign_exported_file_is_one_sentence(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    for content in (None, b"no network"):
        if content:
            file.write_bytes(content)
            file.with_suffix(".bin").write_bytes(b"")
        assert ceit_cli.main(["predict", "--checkpoint", str(file), str(photos / "d.png")]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert str(file.with_suffix("")) in captured.err  # OpenVINO has two files
        assert captured.err.count("\n") == 1
        assert "unexpected" not in captured.err
        assert captured.out == ""


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred JPEGs of several sizes, one of which is cut off and one empty."""
    folder = tmp_path_factory.mktemp("snapshots")
    random = np.random.default_rng(0)
    for i in range(300):
        image = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        image.resize((60 + i % 9, 50), Image.Resampling.BICUBIC).save(folder / f"IMG_{i:03} (1).jpg")
    cut = folder / "IMG_123 (1).jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "IMG_299 (1).jpg").write_bytes(b"")
    return folder


def answers(run: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[list[dict], str]:
    command = ["predict", "--checkpoint", str(run), str(folder), "--json", "--skip-broken", "--top-k", "6", *options]
    assert ceit_cli.main(command) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "openvino"],
        ["--backend", "onnxruntime", "--workers", "3"],
        ["--device", "cpu,cpu", "--workers", "2", "--batch-size", "7"],
        pytest.param(["--backend", "compile"], marks=pytest.mark.slow),
    ],
    ids=lambda options: options[1],
)
def test_each_backend_answers_as_eager_also_with_a_broken_image_among_300(
    options: list[str], run: Path, snapshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path))
    expected, told = answers(run, snapshots, capsys, "--backend", "eager", "--precision", "float32")
    found, also_told = answers(run, snapshots, capsys, *options, "--precision", "float32")
    names = f"{snapshots}/IMG_123 (1).jpg and {snapshots}/IMG_299 (1).jpg"
    assert told == f"2 of 300 images cannot be read: {names}\n"
    assert also_told.endswith(told)  # while torch compiles it may have remarks
    assert len(found) == 300
    for ours, eagers in zip(found, expected, strict=True):
        assert (ours["path"], ours.get("error")) == (eagers["path"], eagers.get("error"))
        if "error" not in ours:
            ours, eagers = ({one["label"]: one["probability"] for one in it["predictions"]} for it in (ours, eagers))
            assert ours == pytest.approx(eagers, abs=1e-4)


def test_where_it_pays_openvino_computes_by_default_and_a_resumed_file_stays_with_it(
    run: Path, snapshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(computing, "_X86", (computing.platform.machine(),))
    for least in ("_MACS_TO_MAKE", "_MACS_TO_READ"):
        monkeypatch.setattr(computing, least, 1.0)
    output, pictures = tmp_path / "x.csv", sorted(map(str, snapshots.iterdir()))[:40]
    command = ["predict", "--checkpoint", str(run), *pictures[:20], "--precision", "float32", "--output", str(output)]
    assert ceit_cli.main(command) == 0
    assert "OpenVINO computes in float32, checked on 16 of the images" in capsys.readouterr().err
    side_file = tmp_path / "x.csv.model.json"
    assert json.loads(side_file.read_text())["computed_by"] == "openvino float32"

    monkeypatch.undo()  # what is left would be computed by eager
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    command = ["predict", "--checkpoint", str(run), *pictures, "--output", str(output), "--resume"]
    content = output.read_bytes()
    assert ceit_cli.main([*command, "--backend", "eager", "--precision", "float32"]) == 1
    told = f"{output} holds answers computed by openvino float32, not by eager float32: leave out --backend and"
    assert capsys.readouterr().err == f"error: {told} --precision to go on so, or name another --output\n"
    assert output.read_bytes() == content
    assert ceit_cli.main(command) == 0
    assert json.loads(side_file.read_text())["computed_by"] == "openvino float32"
    assert len(answers_in(output)) == 40
    assert ceit_cli.main([*command, "--backend", "eager"]) == 0  # nothing is left to compute
    side_file.write_text(side_file.read_text().replace("openvino float32", "openvino int8"))
    assert ceit_cli.main(command) == 0  # nor calibrated

    origin = json.loads(side_file.read_text())
    del origin["computed_by"]  # as an earlier version wrote it
    side_file.write_text(json.dumps(origin))
    capsys.readouterr()
    assert ceit_cli.main([*command[:3], str(snapshots / "IMG_200 (1).jpg"), *command[3:]]) == 0
    assert capsys.readouterr().err.startswith(f"{output} does not say in which precision its answers were computed")


def test_auto_judges_by_the_pictures_where_the_training_s_are_not_at_hand(
    run: Path, snapshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path))
    monkeypatch.setattr(fastest, "BACKENDS", ("eager", "onnxruntime"))
    options = ["--backend", "auto", "--precision", "float32"]
    found, told = answers(run, snapshots, capsys, *options)
    assert len(found) == 300
    assert "first answers as eager float32's on 100.0 % of 149 images (pictures given), at least 98.5 %" in told
    again, told = answers(run, snapshots, capsys, *options)
    assert again == found
    assert "can take minutes" not in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "cuda:99"], "there is no device cuda:99 here, torch sees cpu"),
        (["--device", "tpu9"], "unknown device 'tpu9': name cpu, cuda, cuda:1 or mps"),
        (["--precision", "int8"], "int8 is computed by onnxruntime or openvino: name one with --backend, or auto"),
        (
            ["--backend", "onnxruntime", "--precision", "bf16"],
            "onnxruntime has no precision 'bf16': choose float32, int8",
        ),
        (["--backend", "openvino", "--precision", "int8"], "int8 needs at least 16 images to be calibrated with and"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_what_does_not_go_together_is_one_sentence(
    verb: str, options: list[str], sentence: str, run: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    labelled = tmp_path / "labelled"
    for name in ("ant", "bee"):
        (labelled / name).mkdir(parents=True)
        shutil.copy(photos / "d.png", labelled / name)
    place = ["--data", str(labelled), "--split", "all"] if verb == "evaluate" else [str(photos / "d.png")]
    assert ceit_cli.main([verb, "--checkpoint", str(run), *place, *options]) == 1
    captured = capsys.readouterr()
    *told, error = captured.err.splitlines()
    assert error.startswith(f"error: {sentence}")
    assert captured.out == ""
    if "int8 needs" in error:
        of_data = (
            "no training images to choose by: class 'ant' has 1 images: a set that is not split yet needs 3 of each"
        )
        assert told == [
            "no training images to choose by: this checkpoint does not tell what it was trained on",
            of_data if verb == "evaluate" else "pictures to choose by: 1, at least 16 are needed",
        ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--backend", "eager"],
            "backend eager is for checkpoints: what runs an exported file was chosen by its format",
        ),
        (["--device", "cuda"], "an exported file is computed on the CPU, not on cuda: name the checkpoint instead"),
        (["--precision", "int8"], "network.onnx was given its int8 by ceit export, or has none: --precision int8 is"),
    ],
)
def test_what_an_exported_file_does_not_leave_open_is_refused(
    options: list[str], sentence: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "network.onnx").write_bytes(b"is not read")
    for place in (["predict", str(photos)], ["evaluate", "--data", str(photos)]):
        assert ceit_cli.main([*place, "--checkpoint", str(tmp_path / "network.onnx"), *options]) == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("bytes_left", [1, 15])
def test_resume_goes_on_with_a_file_that_was_cut_in_its_first_line(
    written: tuple[list[str], Path], tmp_path: Path, bytes_left: int
) -> None:
    command, whole = written
    output = tmp_path / f"cut{whole.suffix}"
    output.write_bytes(whole.read_bytes()[:bytes_left])
    assert ceit_cli.main([*command, "--output", str(output), "--resume"]) == 0
    assert output.read_bytes() == whole.read_bytes()
