"""Labels that look wrong are found where they were planted, and nothing is held against a class that is merely hard."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ceit
import ceit_cli
from ceit.data.record import ImageRecord
from ceit.data.sources.choose import load_images
from ceit.evaluation.label_errors import STRANGE, likely_label_errors, second_look
from ceit.inference.familiarity import Familiarity
from ceit.inference.predictor import Predictor
from ceit.train.run import Result, train
from ceit.weights import read_description
from tests.train.conftest import SMALL

CONFIG = replace(SMALL, epochs=8)


def test_a_hand_worked_case() -> None:
    """Thresholds: class 0 has (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.7 + 0.5 + 0.3) / 3 = 0.5."""
    of_class_0 = np.array([0.9, 0.8, 0.1, 0.3, 0.5, 0.7])
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.stack([of_class_0, 1 - of_class_0], axis=1)
    # image 2 is 0.9 sure of class 1, image 5 is 0.7 sure of class 0; image 4 reaches its own class's threshold alone
    found = likely_label_errors(probabilities, labels)
    assert (found.images_m.tolist(), found.classes_m.tolist()) == ([2, 5], [1, 0])


def test_the_least_probable_label_comes_first() -> None:
    """Not what is surest to be another class: image 1 is, and image 0 has the less probable label."""
    probabilities = np.array([[0.05, 0.60, 0.35], [0.10, 0.90, 0.00], [0.80, 0.10, 0.10], [0.30, 0.55, 0.15]])
    assert likely_label_errors(probabilities, np.array([0, 0, 0, 1])).images_m.tolist() == [0, 1]


def test_a_class_that_the_network_hardly_knows_is_not_suspected_as_a_whole() -> None:
    """Its images are all answered as another class, but no surer than that class's own images are."""
    probabilities = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 20)
    labels = np.repeat([0, 1], 20)
    assert likely_label_errors(probabilities, labels).images_m.size == 0
    assert (probabilities.argmax(1) != labels).sum() == 20


def test_a_class_without_images_and_a_tie_are_no_error() -> None:
    probabilities = np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    assert likely_label_errors(probabilities, np.array([0, 1, 0])).images_m.tolist() == []
    assert likely_label_errors(np.empty((0, 3)), np.empty(0, np.int64)).images_m.tolist() == []


def test_no_image_looks_like_a_class_that_the_data_lack() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.01, 0.30, 0.69], [0.2, 0.2, 0.6]])
    found = likely_label_errors(probabilities, np.array([0, 1, 0, 1]))
    assert found.images_m.tolist() == []
    probabilities[2] = [0.01, 0.55, 0.44]
    found = likely_label_errors(probabilities, np.array([0, 1, 0, 1]))
    assert (found.images_m.tolist(), found.classes_m.tolist()) == ([2], [1])


def test_where_all_answers_are_equally_sure_errors_just_below_the_mean_are_found() -> None:
    of_class_1 = np.array([0.934] * 30 + [0.929, 0.931, 0.93] + [0.07] * 30)
    labels = np.array([1] * 30 + [0] * 33)
    found = likely_label_errors(np.stack([1 - of_class_1, of_class_1], axis=1), labels)
    assert sorted(found.images_m.tolist()) == [30, 31, 32]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a folder of class folders; 1 in 40 lies in the folder of the next class."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_images("digits").parts
    number = 0
    for split in digits.values():
        for index, label in enumerate(split.labels.tolist()):
            label = (label + 1) % 10 if number % 40 == 0 else label
            place = folder / str(label)
            place.mkdir(exist_ok=True)
            split.read(index, 1).save(place / f"{number:04}.png")
            number += 1
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(CONFIG, str(photos), tmp_path_factory.mktemp("runs") / "digits")


def test_planted_errors_come_first_though_the_model_was_taught_them(run: Result, photos: Path) -> None:
    description = read_description(run.output)
    assert description is not None
    assert description.training is not None
    found = load_images(photos, img_size=run.model.config.image_hw, in_chans=1)
    look = second_look(run.model, found, ImageRecord.of_run(str(run.output), description.training))
    total = sum(map(len, found.parts.values()))
    assert look.images == total == sum(one.images for one in look.classes)
    planted = [int(Path(one.path).stem) % 40 == 0 for one in look.suspects]
    assert np.mean(planted[:20]) >= 0.9
    assert sum(planted) >= 0.7 * total / 40
    assert len(planted) <= 2 * total / 40
    first = look.suspects[:20]
    assert all(one.answer_probability > one.label_probability for one in first)
    put_back = [(int(one.answer) + 1) % 10 == int(one.label) for one, was in zip(first, planted, strict=False) if was]
    assert put_back.count(False) <= 1
    record = ImageRecord.read(run.output)
    assert record is not None
    assert look.trained_on == sum(row.part == "train" for row in record.rows)
    assert {one.trained_on for one in look.suspects} == {True, False}
    assert [one.answered for one in look.classes] == sorted(one.answered for one in look.classes)
    assert sum(one.suspects for one in look.classes) == len(look.suspects)


def test_images_unlike_all_classes_are_those_that_prediction_finds_least_familiar(run: Result, photos: Path) -> None:
    model, found = copy.deepcopy(run.model), load_images(photos, img_size=(8, 8), in_chans=1)
    assert model.familiarity is not None
    known = Familiarity.from_dict(model.familiarity)
    model.familiarity = replace(known, distances_m=0.7 * known.distances_m).as_dict()  # so that some images are
    look = second_look(model, found)
    assert look.strangers is not None
    files = [split.name(index) for split in found.parts.values() for index in range(len(split))]
    predictor = Predictor.from_model(model, unknown_below=0.05, precision="auto")  # as the second look computes
    limit = max(STRANGE, known.least)
    told = {one.path: one.familiarity for one in predictor.predict(files) if one.familiarity is not None}
    expected = {path for path, familiarity in told.items() if familiarity <= limit}
    listed = {one.path for one in look.strangers}
    assert 10 < len(expected) < len(files) / 2
    assert len(listed ^ expected) <= 0.1 * len(expected)  # in other batches, so rounded in another way
    assert [one.familiarity for one in look.strangers] == sorted(one.familiarity for one in look.strangers)
    assert look.trained_on is None
    model.familiarity = None
    assert second_look(model, found).strangers is None


def test_the_command_lists_them_and_keeps_what_the_check_of_the_files_finds(
    run: Result, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    command = ["data", "check", str(tmp_path / "photos"), "--checkpoint", str(run.output)]
    assert ceit_cli.main(command) == 0
    printed = capsys.readouterr().out
    (heading,) = (line for line in printed.splitlines() if line.startswith("labels that look wrong: "))
    assert "it was trained on" in printed
    assert "looks like" in printed
    assert "class, the hardest first" in printed
    assert ceit_cli.main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    look = document["second_look"]
    assert document["images"] == look["images"]
    assert heading == f"labels that look wrong: {len(look['suspects'])}"
    assert look["suspects"][0].keys() >= {"path", "label", "answer", "trained_on"}

    assert ceit_cli.main(["data", "check", str(photos), "--json"]) == 0
    assert "second_look" not in json.loads(capsys.readouterr().out)


def test_a_model_of_other_classes_cannot_be_asked_and_the_files_are_checked_all_the_same(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.random.default_rng([number, len(name), ord(name[0])]).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    assert ceit_cli.main(["data", "check", str(tmp_path), "--checkpoint", str(run.output)]) == 1
    told = capsys.readouterr()
    assert "24 images that can be read, 2 classes" in told.out
    assert "error: the model could not be asked: the checkpoint does not know 'cat' and 'dog' of" in told.err
    nameless = copy.deepcopy(run.model)
    nameless.class_names = None
    ceit.save_checkpoint(tmp_path / "nameless.safetensors", nameless)
    command = ["data", "check", str(tmp_path), "--checkpoint", str(tmp_path / "nameless.safetensors")]
    assert ceit_cli.main(command) == 1
    told = capsys.readouterr()
    assert "24 images that can be read, 2 classes" in told.out
    assert "error: the model could not be asked: the model tells 10 classes apart, the data set has 2" in told.err
    missing = str(tmp_path / "no run")
    assert ceit_cli.main(["data", "check", str(tmp_path), "--checkpoint", missing]) == 1
    assert "no run is not here" in capsys.readouterr().err
