"""A finished run leaves a card that says what its files say, and a command that gives the same options."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ceit.cli.train import parse
from ceit.evaluation.scores import Calibration
from ceit.train.config import Augmentation, Distillation, TrainConfig
from ceit.train.model_card import FinishedRun, model_card, training_command
from ceit.train.recipe import recipe_config
from ceit.train.run import Result, train
from ceit.train.run_directory import saved_config
from tests.train.conftest import SMALL


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(SMALL, "digits", tmp_path_factory.mktemp("runs") / "whole")


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_card_says_what_the_run_found(finished: Result) -> None:
    card = (finished.output / "README.md").read_text(encoding="utf-8")
    report = json.loads((finished.output / "test.json").read_text(encoding="utf-8"))
    assert card.startswith("# ceit_pico_patch4_32 trained on digits\n")
    assert "It tells 10 classes apart: `0`, `1`," in card
    good, how = section(card, "How good it is"), section(card, "How it was trained")
    assert f"| test | 360 | **{report['top1_percent']:.2f} %** | {report['top5_percent']:.2f} % |" in good
    assert f"| validation | | {report['best']['validation_top1_percent']:.2f} % |" in good
    assert f"Validation chose epoch {report['best']['epoch']} of 2." in good
    assert "few test images: each one is 0.3 points" in good
    of_chance = Calibration.from_json(report["calibration"]).of_chance()
    assert ("chance alone makes about" in good) == bool(of_chance)
    assert of_chance in good
    assert f"{report['parameters']:,} parameters, for 16 x 16 grey pixels." in how
    assert f"- Length: 2 epochs, {report['steps']:,} steps of 32 images." in how
    assert "- Start: random weights." in how
    assert "None" not in card
    assert not [line for line in card.split("\n\n") if line.startswith("## ") and "\n" in line], "no empty section"
    assert str(finished.output) not in card, "nobody's folders"


def test_the_command_on_the_card_gives_the_options_of_the_run(finished: Result) -> None:
    saved = saved_config(finished.output)
    words = shlex.split(training_command(saved).replace("\\\n", " "))
    assert words[:2] == ["ceit", "train"]
    config, asked = parse(words[2:])
    assert (asked.data, asked.output) == ("digits", "NEW_FOLDER")
    known = {key: value for key, value in saved.items() if key in config.as_dict()}
    assert (config.lr_base_size, config.lr_scaling) == ("auto", "auto")  # which come to this for a batch that is told
    again = config.as_dict() | {"img_size": [config.img_size] * 2, "lr_base_size": None, "lr_scaling": "linear"}
    machine = ("workers", "keep_checkpoints", "checkpoint_every_steps", "log_every_steps", "tracker", "compile")
    assert {key: again[key] for key in known if key not in machine} == {
        key: value for key, value in known.items() if key not in machine
    }


@pytest.mark.parametrize(
    ("config", "data", "words"),
    [
        (recipe_config("demo", seed=3), "cifar10", "--recipe demo --data cifar10 --seed 3"),
        (TrainConfig(), "/home/me/My photos", "--data 'My photos'"),
        (TrainConfig(img_size=(64, 96)), "imagenet:/mnt/x", "--data imagenet:DIR --img-size '[64, 96]'"),
        (TrainConfig(initial_checkpoint="/a/runs/old"), "hf:me/set", "--data hf:me/set --initial-checkpoint old"),
        (TrainConfig(), "hf:/home/me/set", "--data hf:set"),
        (
            TrainConfig(distillation=Distillation("ceit_pico_patch4_32", "/home/me/runs/teacher")),
            "mnist",
            "--data mnist --distillation.teacher ceit_pico_patch4_32 --distillation.checkpoint teacher",
        ),
        (TrainConfig(classes=("a b", "c")), "mnist", """--data mnist --classes '["a b", "c"]'"""),
        (TrainConfig(classes=("é", "🐶")), "mnist", """--data mnist --classes '["é", "🐶"]'"""),
        (
            recipe_config("demo", augmentation=Augmentation(translate=3, crop_scale=(1.0, 1.0))),
            "mnist",
            "--recipe demo --data mnist --augmentation.crop-scale '[1.0, 1.0]'",
        ),
        (
            recipe_config("demo", optimizer="sgd"),
            "mnist",
            "--recipe demo --data mnist --optimizer sgd --optimizer-args.momentum 0.85 --optimizer-args.nesterov true",
        ),
        (TrainConfig(compile=False, tracker=("tensorboard",)), "mnist", "--data mnist"),
        (TrainConfig(samples=9, max_epochs=8, epochs=2), "mnist", "--data mnist --epochs 2"),
    ],
    ids=[
        *("recipe", "path", "size", "start", "hub's folder", "teacher", "classes", "letters", "a pair"),
        *("another optimizer with the same arguments", "machine", "length"),
    ],
)
def test_the_command_names_the_nearest_recipe_and_what_differs(config: TrainConfig, data: str, words: str) -> None:
    command = training_command({"data": data, **config.as_dict(), "found": "", "steps": 1})
    assert " ".join(command.replace("\\\n", " ").split()) == f"ceit train {words} --output NEW_FOLDER"


def test_the_command_of_photos_with_typed_options_is_one_that_is_taken(tmp_path: Path) -> None:
    words = ["--recipe", "demo", "--data", "photos", "--output", "run", "--optimizer", "adamw", "--samples", "120"]
    begun, _ = parse([*words, "--classes", "[🐶dog, café]", "--augmentation.crop-scale", "[1, 1]"])
    resolved = {**begun.as_dict(), "epochs": 2, "img_size": [40, 40], "in_chans": 3, "global_batch_size": 16}
    again, _ = parse(
        shlex.split(training_command({"data": "photos", "unsplit": True, **resolved}).replace("\\\n", ""))[2:]
    )
    assert (again.classes, again.epochs, again.optimizer, again.optimizer_args) == (("🐶dog", "café"), 2, "adamw", {})
    assert again.augmentation == begun.augmentation


def test_the_command_of_an_unsplit_set_has_no_share_that_it_would_refuse() -> None:
    options = {"data": "x", **TrainConfig(validation_percent=4.0).as_dict(), "found": "", "steps": 1}
    assert "--validation-percent 4.0" in training_command(options)
    assert "--validation-percent" not in training_command(options | {"unsplit": True})


def test_the_card_tells_what_a_time_budget_came_to(finished: Result) -> None:
    found = FinishedRun.read(finished.output, saved_config(finished.output) | {"epochs": 7})
    assert "--epochs 2" in training_command(found.options)
    cut = found._replace(report=found.report | {"epochs": 1, "steps": found.report["steps_per_epoch"] - 1})
    how = section(model_card(cut), "How it was trained")
    assert f"- Length: 1 epoch, the last one cut short, {cut.report['steps']} steps of 32 images." in how
    assert "This command trains such a model again, in whole epochs;" in how


def test_a_card_of_a_run_with_little_to_say_has_no_empty_words(finished: Result) -> None:
    found = FinishedRun.read(finished.output)
    names = [f"class `{number}`" for number in range(30)]
    same = [{"label": name, "images": 30, "top1_percent": 50.0} for name in names] + [
        {"label": "none", "images": 0, "top1_percent": None}
    ]
    best = found.report["best"] | {"validation_top1_percent": None}
    report: dict[str, Any] = found.report | {"per_class": same, "images": 900, "top5_percent": None, "best": best}
    card = model_card(found._replace(report=report, description=found.description | {"class_names": names}))
    assert "`class '0'`" in card
    assert "and 10 more, which `model.json` lists." in card
    assert "validation |" not in card
    assert "Recognised best" not in card
    assert "few test images" not in card


def test_a_run_of_an_earlier_version_has_a_card_too_and_one_that_has_not_ended_has_none(
    finished: Result, tmp_path: Path
) -> None:
    found = FinishedRun.read(finished.output)
    fewer = {key: value for key, value in found.options.items() if key != "early_stopping_epochs"}
    earlier = {key: value for key, value in found.report.items() if key != "steps"}
    assert model_card(found._replace(options=fewer, report=earlier)) == model_card(found)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(found.options), encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no finished run: it has no test\.json"):
        FinishedRun.read(tmp_path)


def test_a_run_on_weights_says_whose(finished: Result, tmp_path: Path) -> None:
    start = replace(SMALL, epochs=1, initial_checkpoint=str(finished.output), limit_batches=2)
    train(start, "digits", tmp_path / "next")
    card = (tmp_path / "next" / "README.md").read_text(encoding="utf-8")
    assert "- Start: the weights of whole." in card


def test_the_card_of_a_run_that_kept_its_last_epoch_says_so(tmp_path: Path) -> None:
    train(replace(SMALL, select="last"), "digits", tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "The last epoch was kept, epoch 2 of 2. The test images" in card
    assert "Validation chose" not in card


def test_the_length_of_a_run_that_stopped_early_is_what_it_took(tmp_path: Path) -> None:
    train(replace(SMALL, epochs=60, peak_lr=1e-9, early_stopping_epochs=1), "digits", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "test.json").read_text(encoding="utf-8"))
    assert report["epochs"] < 60
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"- Length: {report['epochs']} epochs, {report['steps']:,} steps" in card
