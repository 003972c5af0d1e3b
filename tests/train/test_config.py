"""Recipes and options: what is written is what runs, and what is misspelt is refused with the nearest name."""

from pathlib import Path

import pytest
import yaml

from ceit.cli.train import parse
from ceit.train.config import Distillation, Mixing, TrainConfig, config_from
from ceit.train.recipe import read_recipe, recipe_config, recipe_names, seconds_of


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_says_how_it_is_run(name: str) -> None:
    config = recipe_config(name)
    assert isinstance(config, TrainConfig)
    text = (Path(__file__).parents[2] / "src" / "ceit" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "# Run:" in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("peek_lr: 0.1", "unknown recipe key 'peek_lr'; did you mean 'peak_lr'?"),
        ("augmentation:\n  flipp: true", "unknown recipe key 'augmentation.flipp'; did you mean 'augmentation.flip'?"),
        ("augmentation: true", "recipe key 'augmentation' is a section"),
        ("- a\n- b", "must hold 'key: value' lines, not list"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?").replace("[", r"\[")):
        read_recipe(str(recipe))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'demi'; did you mean 'demo'"):
        read_recipe("demi")


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("peak_lr: 0.5\nweight_decay: 0.25\naugmentation:\n  translate: 2\n", encoding="utf-8")
    words = ["--recipe", str(recipe), "--data", "digits", "--output", str(tmp_path / "run"), "--peak-lr", "0.125"]
    config, asked = parse([*words, "--augmentation.cutout=4", "--geometry.depth", "2"])
    assert (config.peak_lr, config.weight_decay, config.label_smoothing) == (0.125, 0.25, TrainConfig().label_smoothing)
    assert (config.augmentation.translate, config.augmentation.cutout) == (2, 4)
    assert config.geometry == {"depth": 2}
    assert (asked.data, asked.resume) == ("digits", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "digits"], "--output is missing"),
        (["--output", "x"], "--data is missing"),
        (["--data", "digits", "--output", "x", "--epochs", "abc"], "--epochs abc must be a whole number or null"),
        (["--data", "digits", "--output", "x", "--peek-lr=1"], "unknown option '--peek-lr'; did you mean '--peak-lr'?"),
        (["--data", "digits", "--output", "x", "stray"], "unrecognized arguments: stray"),
        (["--data", "digits", "--output", "x", "--seed"], "--seed expected one argument"),
        (["--data", "digits", "--output", "x", "--peak_lr=high"], "--peak-lr high must be a number"),
        (
            ["--data", "digits", "--output", "x", "--compile", "perhaps"],
            "--compile perhaps must be true or false or auto",
        ),
        (["--data", "digits", "--output", "x", "--ema", "0.9"], "--ema 0.9 must be a mapping"),
        (
            ["--data", "digits", "--output", "x", "--recipe", "transfer_pets", "--max-epochs", "9"],
            "--max-epochs has no effect beside epochs 200: leave it out, or set --epochs null",
        ),
        (
            ["--data", "digits", "--output", "x", "--epochs", "3", "--samples", "9"],
            "--samples has no effect beside epochs 3: leave it out, or set --epochs null",
        ),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse(words)
    assert ending.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}; see ceit train --help\n"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"batch_norm": "forzen"}, "unknown batch_norm 'forzen'; did you mean 'frozen'"),
        ({"precision": "bf61"}, "unknown precision 'bf61'; did you mean 'bf16'"),
        ({"distillation": {"kind": "sotf"}}, "unknown distillation.kind 'sotf'; did you mean 'soft'"),
        ({"mixing": {"mixup_alpha": "abc"}}, "mixing.mixup_alpha 'abc' must be a number"),
        ({"augmentation": {"crop_scale": [0.1]}}, "augmentation.crop_scale .* must be a list of 2 values or null"),
        ({"ema": 0.9}, "ema 0.9 is a section and must hold keys"),
        ({"epochs": "many"}, "epochs 'many' must be a whole number or null"),
        ({"skip_broken": "nope"}, "skip_broken 'nope' must be true or false"),
        ({"classes": "cat"}, "classes 'cat' must be a list of values or null"),
        ({"device_batch_size": "automatic"}, "unknown device_batch_size 'automatic'; did you mean 'auto'"),
        ({"peak_lr": "1e-3"}, "peak_lr '1e-3' must be a number"),
    ],
)
def test_recipe_values_of_another_type_are_refused(values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_from(values)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"peak_lr": -1.0}, "peak_lr -1.0 must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 must be in"),
        ({"validation_percent": 51.0}, "validation_percent 51.0 must be in"),
        ({"validation_percent": 0.0}, "validation_percent 0.0 leaves nothing to select the best by: set select last"),
        ({"train_percent": 0.0}, "train_percent 0.0 must be in"),
        ({"peak_lr": "1e-3"}, "peak_lr '1e-3' must be a number"),
        ({"geometry": {"num_classes": 3}}, "geometry.num_classes 3 follows from the data"),
        ({"mixing": Mixing(mixup_alpha=0.8), "global_batch_size": 15}, "global_batch_size 15 must be even to be mixed"),
        ({"geometry": {"deepth": 3}}, "unknown recipe key 'geometry.deepth'; did you mean 'geometry.depth'"),
        ({"freeze_epochs": 2.0}, "freeze_epochs 2.0 would keep random weights: set initial_checkpoint, or 0"),
        ({"freeze_epochs": float("inf"), "initial_checkpoint": "x"}, "freeze_epochs inf must be 0 or more, and finite"),
        ({"workers": -2}, "workers -2 must not be negative"),
        ({"seed": -1}, "seed -1 must be in"),
        ({"sampling": "balanced", "class_weights": "balanced"}, "sampling balanced would correct rare classes twice"),
        (
            {"distillation": Distillation(checkpoint="x.pth")},
            "distillation.checkpoint x.pth needs a distillation.teacher",
        ),
    ],
)
def test_values_out_of_range_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**options)


def test_sections_are_checked_however_they_are_given() -> None:
    for section in ({"mixup_alpha": -1.0}, Mixing(mixup_alpha=-1.0)):
        with pytest.raises(ValueError, match=r"mixing.mixup_alpha -1.0 must not be negative"):
            config_from({"mixing": section})


def test_numbers_with_an_exponent_need_no_point(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("peak_lr: 1e-3\nfinal_lr: 1.e-05\noptimizer_args: {eps: 1E-8}\n", encoding="utf-8")
    config = recipe_config(str(recipe))
    assert (config.peak_lr, config.final_lr, config.optimizer_args) == (0.001, 0.00001, {"eps": 1e-8})
    place = ["--data", "digits", "--output", str(tmp_path / "run")]
    assert parse([*place, "--optimizer-args.eps", "1e-6", "--warmup-lr=2e-7"])[0].warmup_lr == 2e-7


def test_part_of_a_section_or_of_the_geometry_leaves_the_rest_to_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("geometry: {depth: 2, num_heads: 4}\nema: {decay: 0.9}\n", encoding="utf-8")
    words = ["--recipe", str(recipe), "--data", "digits", "--output", "x"]
    config, _ = parse([*words, "--geometry.depth", "3", "--ema", "{warmup: false}"])
    assert config.geometry == {"depth": 3, "num_heads": 4}
    assert (config.ema.decay, config.ema.warmup) == (0.9, False)
    assert parse([*words, "--geometry", "{depth: 5}"])[0].geometry == {"depth": 5}
    recipe.write_text("geometry: null\n", encoding="utf-8")
    with pytest.raises(ValueError, match="geometry None must be a mapping"):
        parse([*words, "--geometry.depth", "3"])


def test_epochs_follow_from_the_images_to_show() -> None:
    config = TrainConfig(samples=1000, max_epochs=7)
    assert [config.epochs_for(n) for n in (500, 100, 3000)] == [2, 7, 1]
    assert TrainConfig(epochs=3).epochs_for(10) == 3


def test_images_to_show_replace_the_epochs_of_a_recipe() -> None:
    words = ["--data", "digits", "--output", "x", "--recipe", "transfer_pets", "--samples", "5000"]
    assert parse(words)[0].epochs_for(1000) == 5


def test_images_to_show_are_typed_again_to_go_on(tmp_path: Path) -> None:
    words = ["--data", "digits", "--output", str(tmp_path), "--recipe", "transfer_pets", "--samples", "5000"]
    begun, _ = parse(words)
    saved = begun.as_dict() | {"data": "digits", "epochs": 5}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert parse([*words, "--resume", "auto"])[0] == begun


def test_durations_need_a_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "0m", "m", "-5m", "1d"):
        with pytest.raises(ValueError, match="must be a positive number with its unit"):
            seconds_of(text)


def test_classes_that_yaml_reads_as_numbers_are_names() -> None:
    assert config_from({"classes": [3, 8]}).classes == ("3", "8")


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[yes, no]", ("yes", "no")),
        ("[007, yes]", ("007", "yes")),
        (
            "[1e3, null, ~, 0x1F, 1_000, 2020-01-01, 12:30]",
            ("1e3", "null", "~", "0x1F", "1_000", "2020-01-01", "12:30"),
        ),
        ('[\'a: b\', "c, d", "#e", 1.0]', ("a: b", "c, d", "#e", "1.0")),
        ("null", None),
    ],
)
def test_p15_names_of_classes_are_the_text_as_written(
    written: str, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"classes: {written}\n", encoding="utf-8")
    place = ["--data", "digits", "--output", str(tmp_path / "run")]
    for words in (["--classes", written], [f"--classes={written}"], ["--recipe", str(recipe)]):
        assert parse([*place, *words])[0].classes == names
    saved = config_from({"classes": names}).as_dict()
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "config.yaml").open("w", encoding="utf-8") as file:
        yaml.safe_dump({"data": "digits"} | saved, file)
    assert parse([*place, "--resume", "auto"])[0].classes == names


def test_p15_a_class_that_is_no_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--data", "digits", "--output", "x", "--classes", "[a: b, c]"])
    assert "--classes [a: b, c] must be a list of names" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("classes: [a: b, c]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes .* must be a list of values or null"):
        recipe_config(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("word", ["null", "007", "1e3", "yes"])
def test_p15_places_are_the_text_as_written(word: str) -> None:
    asked = parse(["--data", word, "--output", word])[1]
    assert (asked.data, asked.output) == (word, word)


def test_m12_whatever_is_true_or_false_is_a_switch() -> None:
    place = ["--data", "digits", "--output", "x"]
    names = ("compile", "grad-checkpointing", "deterministic", "skip_broken")
    for name in names:
        field = name.replace("-", "_")
        assert getattr(parse([*place, f"--{name}"])[0], field) is True
        assert getattr(parse([f"--{name}", *place])[0], field) is True
        assert getattr(parse([f"--{name}", "false", *place])[0], field) is False
    config, _ = parse(["--augmentation.flip", "false", "--ema.warmup", *place, "--augmentation.flip"])
    assert (config.augmentation.flip, config.ema.warmup) == (True, True)
    assert parse(["--augmentation.flip", "alternate", *place])[0].augmentation.flip == "alternate"
    for words in ("tensorboard,wandb", "tensorboard, wandb", "[tensorboard, wandb]"):
        assert parse(["--tracker", words, *place])[0].tracker == ("tensorboard", "wandb")
    assert parse(["--tracker", "mlflow", *place])[0].tracker == ("mlflow",)
    assert parse(["--tracker", "[]", *place])[0].tracker == ()
    assert parse(["--img-size", "32,64", *place])[0].img_size == [32, 64]
    with pytest.raises(ValueError, match=r"unknown augmentation.flip 'alternat'; did you mean 'alternate'"):
        config_from({"augmentation": {"flip": "alternat"}})
