"""Training, then evaluating and going on, on a folder that changes meanwhile."""

import csv
import errno
import json
import shutil
from collections.abc import Callable
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
from ceit.data.held_out import to_calibrate_and_check, to_probe, with_labels_of
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import COPY, FILE, ImageRecord
from ceit.data.sources.choose import load_images
from ceit.data.splits import Split
from ceit.inference.example_images import ExampleImages, of_dataset
from ceit.train.images import load_run_images
from ceit.train.interruption import Interrupted
from ceit.train.run import train
from tests.train.conftest import SMALL

SMALL_OFTEN_SAVED = replace(SMALL, checkpoint_every_steps=1)
Evaluate = Callable[..., tuple[dict[str, Any], str]]


def add(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 60 images of noise, unsplit."""
    add(tmp_path / "photos/a", range(60))
    add(tmp_path / "photos/b", range(100, 160))
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path, photos: Path) -> Path:
    train(SMALL, str(photos), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """``ceit evaluate``: the document and what was said beside it."""

    def call(run: Path, data: Path, *options: str) -> tuple[dict[str, Any], str]:
        arguments = ["evaluate", "--checkpoint", str(run), "--data", str(data), "--json", *options]
        assert ceit_cli.main(arguments) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return call


def recorded(run: Path) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    with (run / FILE).open(newline="") as file:
        for row in csv.DictReader(file):
            parts.setdefault(row["part"], set()).add(row["name"])
    return parts


def test_p1_one_image_more_moves_no_other(run: Path, photos: Path, evaluate: Evaluate) -> None:
    parts = recorded(run)
    report = json.loads((run / "test.json").read_text())
    document, said = evaluate(run, photos)
    assert document["images"] == report["images"] == len(parts["test"])
    assert document["top1_percent"] == report["top1_percent"]
    assert said == ""
    add(photos / "a", range(60, 61))
    document, said = evaluate(run, photos)
    assert document["images"] == len(parts["test"]) + 1
    assert "1 came" in said
    assert "new images are measured too (1); --split test leaves them out" in said
    assert evaluate(run, photos, "--split", "test")[0]["images"] == len(parts["test"])
    for part in ("train", "validation"):
        assert evaluate(run, photos, "--split", part)[0]["images"] == len(parts[part])
    assert evaluate(run, photos, "--split", "new")[0]["images"] == 1
    document, said = evaluate(run, photos, "--split", "all")
    assert document["images"] == 121
    assert f"was trained on {len(parts['train'])} and chosen by {len(parts['validation'])}" in said


def test_p1_a_renamed_and_an_edited_image_stay_what_they_were(run: Path, photos: Path, evaluate: Evaluate) -> None:
    parts = recorded(run)
    first, second, *_ = sorted(parts["train"])
    (photos / f"{first}.png").rename(photos / "a/another name.png")
    Image.open(photos / f"{second}.png").rotate(180).save(photos / f"{second}.png")
    document, said = evaluate(run, photos)
    assert document["images"] == len(parts["test"])
    assert "1 changed" in said
    assert "1 got another name" in said


def test_other_pictures_under_the_names_of_training_images_are_counted(
    run: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    for name, shift in (("a", 500), ("b", 900)):
        add(tmp_path / "other" / name, range(shift, shift + 60))
        for number in range(60):
            new = (0 if name == "a" else 100) + number
            (tmp_path / "other" / name / f"{shift + number}.png").rename(tmp_path / "other" / name / f"{new}.png")
    parts = recorded(run)
    document, said = evaluate(run, tmp_path / "other")
    assert document["images"] == len(parts["test"])
    left_out = len(parts["train"] | parts["validation"])
    assert f"as they have been edited or are other pictures: {left_out}; --split all measures them too" in said


def test_p6_labelled_images_of_elsewhere_are_all_measured(
    run: Path, tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path / "new/a", range(1000, 1020))
    add(tmp_path / "new/b", range(1100, 1120))
    assert evaluate(run, tmp_path / "new")[0]["images"] == 40
    shutil.rmtree(tmp_path / "new/b")
    document, _ = evaluate(run, tmp_path / "new")
    assert [row["images"] for row in document["per_class"]] == [20, 0]
    add(tmp_path / "new/owl", range(1200, 1202))
    assert ceit_cli.main(["evaluate", "--checkpoint", str(run), "--data", str(tmp_path / "new")]) == 1
    assert "the checkpoint does not know 'owl' of new: it has 2 classes, a and b" in capsys.readouterr().err
    asked = ["evaluate", "--checkpoint", "ceit_nano_patch4_32.cifar10", "--data", str(tmp_path / "new"), "--split"]
    assert ceit_cli.main([*asked, "test"]) == 1
    assert "new has no test part, only all: choose --split all" in capsys.readouterr().err


def test_p6_a_test_part_alone_is_measured_whole(run: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    add(tmp_path / "later/test/a", range(1000, 1007))
    add(tmp_path / "later/test/b", range(1100, 1107))
    assert evaluate(run, tmp_path / "later")[0]["images"] == 14


def test_p1_a_run_goes_on_with_its_images_wherever_they_lie(photos: Path, tmp_path: Path) -> None:
    """Stopped, added to, renamed in, moved: the weights are those of a run that nobody disturbed."""
    whole = train(SMALL, str(photos), tmp_path / "whole")

    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", show=stop)
    add(photos / "a", range(60, 63))
    (photos / "b/101.png").rename(photos / "b/0 first now.png")
    moved = photos.rename(tmp_path / "elsewhere")
    said: list[str] = []
    train(SMALL_OFTEN_SAVED, str(moved), tmp_path / "cut", resume="auto", say=said.append)
    assert any("3 came" in line and "1 got another name" in line for line in said)
    assert any(line.startswith("resumed with another option: data was") for line in said)
    assert yaml.safe_load((tmp_path / "cut/config.yaml").read_text())["data"] == str(moved)
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "cut", whole.output)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_p1_a_run_whose_images_are_gone_does_not_go_on(photos: Path, tmp_path: Path) -> None:
    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise Interrupted("stopped", terminated=False)

    with pytest.raises(Interrupted):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", show=stop)
    (photos / f"{min(recorded(tmp_path / 'cut')['train'])}.png").unlink()
    add(photos / "a", range(60, 61))
    with pytest.raises(ValueError, match=r"1 of the 120 images that this run was started with are gone, changed or of"):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", resume="auto")


def test_p1_the_record_of_another_run_is_none(run: Path, photos: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    """A model copied into the directory of a run with another seed."""
    train(replace(SMALL, seed=5), str(photos), tmp_path / "other")
    for suffix in ("safetensors", "json"):
        shutil.copy(run / f"model.{suffix}", tmp_path / "other" / f"first.{suffix}")
    document, said = evaluate(tmp_path / "other/first.safetensors", photos)
    assert document["images"] == len(recorded(run)["test"])
    assert "no record of its images" in said


def test_p1_runs_of_one_split_seed_share_their_images(
    run: Path, photos: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """And a model that was copied away from such a run is measured on what the run tested."""
    train(replace(SMALL, seed=5, split_seed=SMALL.seed), str(photos), tmp_path / "other")
    assert recorded(tmp_path / "other") == recorded(run)
    (tmp_path / "moved").mkdir()
    for name in ("model.safetensors", "model.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "moved" / name)
    for split in ("test", "validation"):
        first, second = (evaluate(tmp_path / of, photos, "--split", split) for of in ("other", "moved"))
        assert (first[0]["images"], first[0]["loss"]) == (second[0]["images"], second[0]["loss"])
        assert "no record of its images" in second[1]


def test_runs_of_one_split_seed_choose_by_the_same_images_of_a_known_set() -> None:
    configs = SMALL, replace(SMALL, seed=5), replace(SMALL, seed=5, split_seed=SMALL.seed)
    chosen = [load_run_images(config, "digits", lambda message: None).dataset.validation for config in configs]
    first, by_seed, shared = (keys(split) for split in chosen if split is not None)
    assert first == shared != by_seed


def test_p1_a_run_without_its_record_does_not_go_on(photos: Path, tmp_path: Path) -> None:
    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise Interrupted("stopped", terminated=False)

    with pytest.raises(Interrupted):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", show=stop)
    (tmp_path / "cut" / FILE).unlink()
    with pytest.raises(ValueError, match=r"images\.csv is missing, without it the run cannot be resumed: put it back"):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", resume="auto")


def test_p1_a_run_of_an_earlier_version_that_goes_on_stays_one(
    photos: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """It was cut by place, has no record, and is never taken for a run on a set known by name."""

    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise Interrupted("stopped", terminated=False)

    with pytest.raises(Interrupted):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "old", show=stop)
    (tmp_path / "old" / FILE).unlink()
    saved = yaml.safe_load((tmp_path / "old/config.yaml").read_text())
    del saved["images"], saved["unsplit"]
    saved["found"] = "96 training, 12 validation and 12 test images of 2 classes (" + saved["found"].rpartition("(")[2]
    (tmp_path / "old/config.yaml").write_text(yaml.safe_dump(saved))
    train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "old", resume="auto")
    document, said = evaluate(tmp_path / "old", photos)
    assert document["images"] == 12
    assert "cannot be known" in said


def test_p1_a_new_class_does_not_stop_a_run_that_goes_on(photos: Path, tmp_path: Path) -> None:
    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise Interrupted("stopped", terminated=False)

    with pytest.raises(Interrupted):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", show=stop)
    add(photos / "aa", range(300, 305))
    said: list[str] = []
    result = train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", resume="auto", say=said.append)
    assert result.dataset.class_names == ("a", "b")
    sentence = "images since this run was started: 5 came, 5 of new classes (aa); the run goes on with the images"
    assert any(line.startswith(sentence) for line in said)


def test_p1_an_image_of_another_kind_does_not_stop_a_run_that_goes_on(photos: Path, tmp_path: Path) -> None:
    """A colour image came to grey ones. Size and channels stay those of the start, and so do the weights."""
    whole = train(SMALL, str(photos), tmp_path / "whole")

    def stop(state: dict[str, Any]) -> None:
        if state.get("step") == 2:
            raise Interrupted("stopped", terminated=False)

    with pytest.raises(Interrupted):
        train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", show=stop)
    for number in range(130):  # more than half of all: the usual size is theirs
        Image.new("RGB", (40, 40), (number, 0, 200)).save(photos / f"a/colour {number}.png")
    with pytest.raises(ValueError, match="this run was started with in_chans 1, not 3"):
        train(replace(SMALL_OFTEN_SAVED, in_chans=3), str(photos), tmp_path / "cut", resume="auto")
    said: list[str] = []
    train(SMALL_OFTEN_SAVED, str(photos), tmp_path / "cut", resume="auto", say=said.append)
    assert any("130 came; the run goes on with the images that it was started with" in line for line in said)
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "cut", whole.output)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_p1_a_copy_under_its_own_name_came_and_nothing_else(run: Path, photos: Path, evaluate: Evaluate) -> None:
    shutil.copy(photos / "a/0.png", photos / "a/0.jpg")
    said = evaluate(run, photos, "--split", "train")[1]
    assert "images since this run was started: 1 came\n" in said


def test_a_start_that_the_disk_had_no_room_for_is_begun_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run there is the record of its images, and the half of a file that a killed process leaves."""

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "cannot save", str(path))

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("ceit.train.run_directory.write_text", full)
        with pytest.raises(OSError, match="cannot save"):
            train(SMALL, str(photos), output)
    assert [path.name for path in output.iterdir()] == [FILE]
    (output / ".config.yaml.17.tmp").write_text("da")
    with pytest.raises(ValueError, match="is not empty; name another, or go on with --resume auto"):
        train(SMALL, str(photos), output)
    train(replace(SMALL, seed=1), str(photos), output, resume="auto")
    assert (output / "test.json").is_file()
    assert not list(output.glob(".*.tmp"))


def test_a_list_of_images_that_is_no_record_is_not_written_over(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_text("path,label\n0.png,a\n")
    with pytest.raises(ValueError, match=r"images\.csv is no record of a run's images \(its columns are path, label\)"):
        train(SMALL, str(photos), tmp_path / "run", resume="auto")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_p1_validation_percent_typed_for_an_unsplit_folder_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a recipe it is for other data; a run that goes on keeps its images anyway."""
    words = ["train", "--recipe", "demo", "--data", str(photos), "--output", str(tmp_path / "run"), "--fast-dev-run"]
    words += ["--geometry", '{"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}']
    shares = "photos comes unsplit: about 80 % of its images train, 10 % choose the best model, 10 % test it"
    for typed in (["--validation-percent", "25"], ["--validation-percent=0", "--select", "last"]):
        assert ceit_cli.main([*words, *typed]) == 1
        assert f"error: {shares}, so --validation-percent has no effect: leave it out" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert ceit_cli.main(words) == 0
    assert shares in capsys.readouterr().err
    assert ceit_cli.main([*words, "--resume", "auto", "--validation-percent", "4"]) == 0


def test_a_small_training_part_gives_one_image_to_choose_by(tmp_path: Path) -> None:
    add(tmp_path / "set/train/a", range(5))
    add(tmp_path / "set/train/b", range(10, 15))
    add(tmp_path / "set/test/a", range(20, 22))
    train(replace(SMALL, epochs=1), str(tmp_path / "set"), tmp_path / "run")
    parts = recorded(tmp_path / "run")
    assert len(parts["validation"]) >= 1
    assert len(parts["validation"]) + len(parts["train"]) == 10
    assert {name[0] for name in parts["train"]} == {"a", "b"}


def test_a_training_part_that_can_give_no_image_names_the_option(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        add(tmp_path / "set/train" / name, range(number, number + 1))
        add(tmp_path / "set/test" / name, range(10 + number, 11 + number))
    sentence = (
        "validation_percent 5: a validation part of 1 images cannot be cut off 2: every class keeps an image, so none "
        "is left for it; add images or a validation part, or set validation_percent 0 and select last"
    )
    with pytest.raises(ValueError, match=sentence):
        train(SMALL, str(tmp_path / "set"), tmp_path / "run")


def test_p1_every_class_keeps_an_image_to_train_on_in_a_share(tmp_path: Path) -> None:
    for name, numbers in (("a", range(60)), ("b", range(100, 160)), ("c", range(200, 204))):
        add(tmp_path / "set" / name, numbers)
    for seed in range(10):
        config = replace(SMALL, train_percent=10.0, seed=seed)
        images = load_run_images(config, str(tmp_path / "set"), lambda message: None)
        assert set(images.dataset.train.labels.tolist()) == {0, 1, 2}


def test_only_the_images_of_the_chosen_classes_are_read(photos: Path) -> None:
    (photos / "owl").mkdir()
    (photos / "owl/x.png").write_text("no image")
    images = load_run_images(replace(SMALL, classes=("b", "a")), str(photos), lambda message: None)
    assert images.dataset.class_names == ("b", "a")
    with pytest.raises(ValueError, match=r"unknown class 'c'; known: a, b, owl in photos"):
        load_run_images(replace(SMALL, classes=("c", "a")), str(photos), lambda message: None)


def test_images_that_came_into_a_test_part_are_told_from_those_of_the_run(tmp_path: Path, evaluate: Evaluate) -> None:
    for part, first in (("train", 0), ("test", 50)):
        add(tmp_path / "set" / part / "a", range(first, first + 20))
        add(tmp_path / "set" / part / "b", range(first + 100, first + 120))
    train(SMALL, str(tmp_path / "set"), tmp_path / "run")
    add(tmp_path / "set/test/a", range(80, 83))
    document, said = evaluate(tmp_path / "run", tmp_path / "set")
    assert document["images"] == 43
    assert "new images are measured too (3); --split test leaves them out" in said
    assert evaluate(tmp_path / "run", tmp_path / "set", "--split", "test")[0]["images"] == 40
    assert evaluate(tmp_path / "run", tmp_path / "set", "--split", "new")[0]["images"] == 3


def test_copies_in_the_test_part_are_left_out_and_nothing_came(tmp_path: Path, evaluate: Evaluate) -> None:
    for part, first in (("train", 0), ("test", 50)):
        for number, name in enumerate("ab"):
            add(tmp_path / f"set/{part}/{name}", range(first + 100 * number, first + 100 * number + 20))
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/test/a/again.png")
    train(SMALL, str(tmp_path / "set"), tmp_path / "run")
    document, said = evaluate(tmp_path / "run", tmp_path / "set")
    assert document["images"] == json.loads((tmp_path / "run/test.json").read_text())["images"] == 40
    assert "came" not in said
    assert "1 images of the test part were trained on or chosen by, or are copies: left out" in said


def test_a_probe_tests_on_no_image_that_the_run_was_trained_on(photos: Path, tmp_path: Path) -> None:
    train(replace(SMALL, seed=7), str(photos), tmp_path / "run")
    parts = recorded(tmp_path / "run")
    add(photos / "a", range(60, 64))
    found = load_images(str(photos), img_size=(16, 16), in_chans=1)
    training = json.loads((tmp_path / "run" / "model.json").read_text())["training"]
    record = ImageRecord.of_run(str(tmp_path / "run"), training)
    trained, tested = to_probe(found, record, training)
    assert (keys(trained), keys(tested)) == (parts["train"], parts["test"])
    _, by_seed = to_probe(found, None, training)  # of a model that was copied away
    assert not keys(by_seed) & parts["train"]


@pytest.mark.parametrize("share", [100.0, 50.0, 10.0])
def test_copies_of_images_that_stay_unused_are_no_test_images_either(share: float, tmp_path: Path) -> None:
    """So runs of all shares and seeds are measured on the same images, and their records are of one set."""
    for part, first in (("train", 0), ("test", 50)):
        for number, name in enumerate("ab"):
            add(tmp_path / f"set/{part}/{name}", range(first + 100 * number, first + 100 * number + 20))
    for number in range(4):
        shutil.copy(tmp_path / f"set/train/a/{number}.png", tmp_path / f"set/test/a/again{number}.png")
    of_the_sets = set()
    for seed in range(3):
        images = load_run_images(replace(SMALL, train_percent=share, seed=seed), str(tmp_path / "set"), str)
        assert len(images.dataset.test) == 40
        assert images.record is not None
        copies = [(row.source, row.name) for row in images.record.rows if row.part == COPY]
        assert copies == [("test", f"a/again{number}") for number in range(4)]
        of_the_sets.add(images.record.of_the_set)
    assert len(of_the_sets) == 1


def test_a_copy_in_the_test_part_that_is_edited_stays_one(tmp_path: Path, evaluate: Evaluate) -> None:
    for part, first in (("train", 0), ("test", 50)):
        for number, name in enumerate("ab"):
            add(tmp_path / f"set/{part}/{name}", range(first + 100 * number, first + 100 * number + 20))
    again = tmp_path / "set/test/a/again.png"
    shutil.copy(tmp_path / "set/train/a/0.png", again)
    train(SMALL, str(tmp_path / "set"), tmp_path / "run")
    Image.open(again).rotate(180).save(again)
    document, said = evaluate(tmp_path / "run", tmp_path / "set")
    assert document["images"] == 40
    assert "1 changed" in said


def test_p1_export_checks_and_calibrates_with_the_images_of_the_record(run: Path, photos: Path) -> None:
    parts = recorded(run)
    for name in parts["train"] | parts["validation"]:  # edited since, so that a cut by content would place them anew
        path = photos / f"{name}.png"
        pixels = 255 - np.asarray(Image.open(path))
        Image.fromarray(pixels).save(path)
    found = load_images(str(photos), img_size=(16, 16), in_chans=1)
    training = json.loads((run / "model.json").read_text())["training"]
    rest, kept, name = to_calibrate_and_check(found, ImageRecord.of_run(str(run), training), training)
    assert name == "validation split"
    assert keys(kept) == parts["validation"]
    assert keys(rest) == parts["train"]


def test_p1_export_cuts_other_data_by_the_seed(run: Path, tmp_path: Path) -> None:
    add(tmp_path / "others/a", range(200, 230))
    add(tmp_path / "others/b", range(300, 330))
    found = load_images(str(tmp_path / "others"), img_size=(16, 16), in_chans=1)
    training = json.loads((run / "model.json").read_text())["training"]
    rest, kept, _ = to_calibrate_and_check(found, ImageRecord.of_run(str(run), training), training)
    assert keys(kept)
    assert not keys(kept) & keys(rest)


def keys(split: Split) -> set[str]:
    return {split.key(index) for index in range(len(split))}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExampleImages]:
    """``ceit export`` until the file would be written: what it would be checked on."""
    checked: list[ExampleImages] = []

    def noted(*arguments: Any, check: ExampleImages, **options: Any) -> None:
        checked.append(check)
        raise ValueError("enough")

    monkeypatch.setattr("ceit.cli.export.export", noted)

    def call(checkpoint: Path, *options: str) -> ExampleImages:
        arguments = ["--checkpoint", str(checkpoint), "--format", "onnx", "--output", str(tmp_path / "out.onnx")]
        assert ceit_cli.main(["export", *arguments, *options]) == 1
        return checked.pop()

    return call


def test_p7_export_takes_the_images_of_the_run_from_any_folder(
    run: Path, photos: Path, tmp_path: Path, exported: Callable[..., ExampleImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "elsewhere/photos/a", range(200, 260))
    add(tmp_path / "elsewhere/photos/b", range(300, 360))
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted = exported(run, "--data", str(photos))
    assert wanted.origin == "photos, validation split"
    for checkpoint in (run, run / "model.safetensors"):
        assert torch.equal(exported(checkpoint).images, wanted.images)


def test_p7_export_takes_no_folder_for_its_name(
    run: Path,
    photos: Path,
    tmp_path: Path,
    exported: Callable[..., ExampleImages],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights alone do not tell where the images lie; and other images may lie where those of the run did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alone").mkdir()
    for suffix in ("safetensors", "json"):
        shutil.copy(run / f"model.{suffix}", tmp_path / "alone")
    unknown = "this checkpoint was trained on photos, and only the directory of its run tells where that lies"
    assert not exported(tmp_path / "alone").real
    assert f"no images are at hand to check with: {unknown}; --data or --images names some" in capsys.readouterr().err
    arguments = ["export", "--checkpoint", "alone", "--format", "onnx", "--precision", "int8", "--output", "a.onnx"]
    assert ceit_cli.main(arguments) == 1
    assert f"{unknown}; name another set with --data, or give --images PATH..." in capsys.readouterr().err
    shutil.rmtree(photos)
    add(photos / "a", range(200, 260))
    add(photos / "b", range(300, 360))
    assert not exported(run).real
    assert f"folder {photos} has none of the images that the run was trained on" in capsys.readouterr().err


def test_p7_export_takes_a_model_of_another_run_for_none_of_the_directory(
    run: Path, tmp_path: Path, exported: Callable[..., ExampleImages]
) -> None:
    """Of the same seed, and on a folder of the same name."""
    add(tmp_path / "others/photos/a", range(200, 260))
    add(tmp_path / "others/photos/b", range(300, 360))
    train(SMALL, str(tmp_path / "others/photos"), tmp_path / "other")
    for suffix in ("safetensors", "json"):
        shutil.copy(tmp_path / f"other/model.{suffix}", run / f"second.{suffix}")
    assert not exported(run / "second.safetensors").real


def test_a_name_that_two_classes_have_says_nothing_of_a_label(photos: Path) -> None:
    found = load_images(str(photos), in_chans=1)
    split = found.parts["all"]
    with pytest.raises(ValueError, match=r"^classes 0 and 2 of the checkpoint are both called 'b': which one .* means"):
        with_labels_of(["b", "a", "b"], found, split)
    assert with_labels_of(["b", "a"], found, split).labels.equal(1 - split.labels)
    repeated = replace(found, class_names=("b", "b"))
    assert with_labels_of(["b", "b"], repeated, split).labels.equal(split.labels)
    options: dict[str, Any] = {"image_hw": (16, 16), "preprocessing": Preprocessing((0.5,), (0.5,))}
    assert of_dataset(found, split, "all", 4, class_names=["b", "a", "b"], **options).labels is None
    assert of_dataset(found, split, "all", 4, class_names=["b", "a"], **options).labels is not None
