"""Labels that look wrong are found where they were planted, and nothing is held against a class that is merely hard."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ceit_cli
from ceit.data.record import ImageRecord
from ceit.data.sources.choose import load_images
from ceit.evaluation.label_errors import likely_label_errors, second_look
from ceit.train.config import Augmentation, TrainConfig
from ceit.train.run import Result, train
from ceit.weights import read_description

CONFIG = TrainConfig(
    model="ceit_pico_patch4_32",
    geometry={"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8, "drop_path_rate": 0.0},
    epochs=8,
    global_batch_size=32,
    peak_lr=1e-2,
    precision="float32",
    augmentation=Augmentation(flip=False),
    clip_norm=1.0,
)


def test_a_hand_worked_case() -> None:
    """Thresholds: class 0 has (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.7 + 0.5 + 0.3) / 3 = 0.5."""
    of_class_0 = np.array([0.9, 0.8, 0.1, 0.3, 0.5, 0.7])
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.stack([of_class_0, 1 - of_class_0], axis=1)
    # image 2 is 0.9 sure of class 1, image 5 is 0.7 sure of class 0; image 4 reaches its own class's threshold alone
    assert likely_label_errors(probabilities, labels).tolist() == [2, 5]


def test_a_class_that_the_network_hardly_knows_is_not_suspected_as_a_whole() -> None:
    """Its images are all answered as another class, but no surer than that class's own images are."""
    probabilities = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 20)
    labels = np.repeat([0, 1], 20)
    assert likely_label_errors(probabilities, labels).size == 0
    assert (probabilities.argmax(1) != labels).sum() == 20


def test_a_class_without_images_and_a_tie_are_no_error() -> None:
    probabilities = np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    assert likely_label_errors(probabilities, np.array([0, 1, 0])).tolist() == []
    assert likely_label_errors(np.empty((0, 3)), np.empty(0, np.int64)).tolist() == []


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
    for one in look.suspects[:20]:
        assert (int(one.answer) + 1) % 10 == int(one.label) or int(Path(one.path).stem) % 40
        assert one.answer_probability > one.label_probability
    record = ImageRecord.read(run.output)
    assert record is not None
    assert look.trained_on == sum(row.part == "train" for row in record.rows)
    assert {one.trained_on for one in look.suspects} == {True, False}
    assert [one.answered for one in look.classes] == sorted(one.answered for one in look.classes)
    assert sum(one.suspects for one in look.classes) == len(look.suspects)


def test_an_image_of_something_else_is_unlike_all_classes(run: Result, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for file in sorted((photos / str(label)).iterdir())[:12]:
            (folder / str(label) / file.name).write_bytes(file.read_bytes())
    generator = np.random.default_rng(0)
    for number in range(20):
        noise = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "3" / f"noise{number}.png")
    look = second_look(run.model, load_images(folder, img_size=(8, 8), in_chans=1))
    assert look.strangers is not None
    strange = ["noise" in one.path for one in look.strangers]
    assert sum(strange) >= 2  # of 20, by a very small network
    assert len(strange) - sum(strange) <= 1  # of 120
    assert look.trained_on is None

    model = copy.deepcopy(run.model)
    model.familiarity = None
    assert second_look(model, load_images(folder, img_size=(8, 8), in_chans=1)).strangers is None


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
    assert "error: the model could not be asked: class 'cat' and 1 more of" in told.err
    missing = str(tmp_path / "no run")
    assert ceit_cli.main(["data", "check", str(tmp_path), "--checkpoint", missing]) == 1
    assert "no run is not here" in capsys.readouterr().err
