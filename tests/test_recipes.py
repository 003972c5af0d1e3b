"""Every shipped recipe through the real command line: two steps on stand-in data of its set's layout, and its mistakes.

The stand-ins have the layout of what the sets' owners offer, a few classes and images of noise.
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

import ceit_cli
from ceit.cli.train import parse
from ceit.data.sources.choose import load_dataset
from ceit.data.sources.known_sets import SETS
from ceit.messages import unknown
from ceit.train.config import known_keys
from ceit.train.recipe import read_recipe, recipe_config, recipe_names
from ceit.weights import create_model, save_checkpoint
from tools.recipe_tables import data_of, text_of

TRAIN, TEST = 64, 4  # of which 1 % is one image
NOT_THE_RECIPES = {  # given by the test, or found out from the data
    *("global_batch_size", "device_batch_size", "precision", "workers", "initial_checkpoint", "compile"),
    *("epochs", "limit_batches", "log_every_steps", "img_size", "in_chans", "tracker"),
}
IMAGENET = {
    "imagenet_tiny_300": ("ceit_tiny_patch16_224", 300),
    "imagenet_tiny_100": ("ceit_tiny_patch16_224", 100),
    "imagenet_small_300": ("ceit_small_patch16_224", 300),
    "imagenet_small_100": ("ceit_small_patch16_224", 100),
    "imagenet_base_100": ("ceit_base_patch16_224", 100),
}
RELEASED: dict[str, Any] = {
    # AdamW (eps 1e-8, betas 0.9/0.999), weight decay 0.05
    "optimizer": "adamw",
    "optimizer_args": {"eps": 1e-8, "betas": [0.9, 0.999]},
    "weight_decay": 0.05,
    # peak lr 5e-4 * global batch / 512, README: 4 x 256
    "peak_lr": 5e-4,
    "lr_base_size": 512,
    "global_batch_size": 1024,
    # cosine to 1e-5, warm-up 5 epochs from 1e-6
    "schedule": "cosine",
    "final_lr": 1e-5,
    "warmup_epochs": 5,
    "warmup_lr": 1e-6,
    "layer_decay": 1.0,
    # DropPath 0.1 linear over depth, no clipping, label smoothing 0.1
    "geometry": {"drop_path_rate": 0.1},
    "clip_norm": 0.0,
    "label_smoothing": 0.1,
    # RandAugment, random erasing 0.25, repeated augmentation x3, RandomResizedCrop (0.08, 1), flip, and nothing else
    "augmentation.rand_augment": "rand-m9-mstd0.5-inc1",
    "augmentation.random_erasing": 0.25,
    "augmentation.repeats": 3,
    "augmentation.crop_scale": [0.08, 1.0],
    "augmentation.flip": True,
    "augmentation.translate": 0,
    "augmentation.cutout": 0,
    # Mixup 0.8, CutMix 1.0 (prob 1, switch 0.5)
    "mixing.mixup_alpha": 0.8,
    "mixing.cutmix_alpha": 1.0,
    "mixing.probability": 1.0,
    "mixing.switch_probability": 0.5,
    # EMA 0.99996
    "ema.decay": 0.99996,
    "ema.batch_norm": "average",
    "distillation.teacher": None,
    "img_size": 224,
    "initial_checkpoint": None,
    # stated deviations: 1 % of train/ cut off to choose by, bf16 first
    "validation_percent": 1.0,
    "select": "best",
    "precision": "auto",
}


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(random.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(path)


def make_imagenet(root: Path) -> None:
    for part, count in (("train", TRAIN), ("val", TEST)):
        for number in range(count):
            noise(root / part / f"n0144{number % 2:04}" / f"{part}_{number}.JPEG")


def make_inat(root: Path, year: int) -> None:
    categories = [{"id": 0, "name": "Abies alba"}, {"id": 1, "name": "Bufo bufo"}]
    for part, count in (("train", TRAIN), ("val", TEST)):
        names = [f"train_val{year}/Group/{number % 2}/{part}{number}.jpg" for number in range(count)]
        for name in names:
            noise(root / name)
        document = {
            "categories": categories,
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [
                {"id": number, "image_id": number, "category_id": number % 2} for number in range(len(names))
            ],
        }
        (root / f"{part}{year}.json").write_text(json.dumps(document), encoding="utf-8")


def make_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    annotations = {
        "train": folder / "devkit" / "cars_train_annos.mat",
        "test": folder / "cars_test_annos_withlabels.mat",
    }
    for part, count in (("train", TRAIN), ("test", TEST)):
        rows = [(number % 2 + 1, f"{number + 1:05}.jpg") for number in range(count)]
        for _, name in rows:
            noise(folder / f"cars_{part}" / name)
        savemat(annotations[part], {"annotations": np.array(rows, dtype=[("class", object), ("fname", object)])})


def make_flowers102(root: Path) -> None:
    folder, numbers = root / "flowers-102", np.arange(1, TRAIN + 2 * TEST + 1)
    for number in numbers:
        noise(folder / "jpg" / f"image_{number:05}.jpg")
    train, validation, test = np.split(numbers, [TRAIN, TRAIN + TEST])
    savemat(folder / "setid.mat", {"trnid": train, "valid": validation, "tstid": test})
    savemat(folder / "imagelabels.mat", {"labels": numbers % 102 + 1})


def make_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, first, count in (("trainval", 1, TRAIN), ("test", TRAIN + 1, TEST)):
        rows = [
            (f"{('Abyssinian', 'american_bulldog')[number % 2]}_{number}", number % 2)
            for number in range(first, first + count)
        ]
        for name, _ in rows:
            noise(folder / "images" / f"{name}.jpg")
        lines = [f"{name} {label + 1} {2 - label} 1" for name, label in rows]
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_arrays(root: Path, name: str) -> None:
    root.mkdir(parents=True)
    random, named = np.random.default_rng(0), SETS[name]
    for part, count in (("train", 200), ("test", 10)):
        images = random.integers(0, 256, (count, *named.image_shape), dtype=np.uint8)
        np.save(root / f"{part}_images.npy", images)
        np.save(root / f"{part}_labels.npy", np.arange(count) % len(named.class_names))


MAKERS: dict[str, Callable[[Path], None]] = {
    "imagenet": make_imagenet,
    "inat2018": lambda root: make_inat(root, 2018),
    "inat2019": lambda root: make_inat(root, 2019),
    "cars": make_cars,
    "flowers102": make_flowers102,
    "pets": make_pets,
    **{name: lambda root, name=name: make_arrays(root, name) for name in ("cifar10", "cifar100", "fashion_mnist")},
}


def stand_in(data: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the set under ``folder`` and returns what ``--data`` takes."""
    MAKERS[data](folder / data)
    if data in SETS:
        monkeypatch.setenv("CEIT_DATA", str(folder))
        return data
    return f"{data}:{folder / data}"


@pytest.mark.parametrize("name", recipe_names())
def test_two_steps_through_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = stand_in(data_of(name), tmp_path / "data", monkeypatch), tmp_path / "run"
    words = ["--recipe", name, "--data", data, "--output", str(run), "--fast-dev-run", "--workers", "0"]
    words += ["--global_batch_size", "2", "--precision", "float32"]
    config = recipe_config(name)
    if config.initial_checkpoint is not None:
        start = tmp_path / "start.safetensors"
        pretrained = create_model(config.model.replace("384", "224"), num_classes=3)
        save_checkpoint(start, pretrained, class_names=["ant", "bee", "cat"])
        words += ["--initial_checkpoint", str(start)]
    assert ceit_cli.main(["train", *words]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2]
    assert "test" in {line["event"] for line in lines}
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for key, value in config.as_dict().items():
        if key not in NOT_THE_RECIPES and value != "auto":
            assert resolved[key] == value, key
    shutil.rmtree(run)  # gigabytes for the largest


@pytest.mark.parametrize("name", recipe_names())
def test_a_misspelt_key_stops_the_command_and_names_the_nearest(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_of(name)
    keys = list(re.finditer(r"^( *)(\w+):", text, re.MULTILINE))
    recipe = tmp_path / "mine.yaml"
    for key in keys:
        recipe.write_text(f"{text[: key.end() - 1]}{text[key.end() - 2]}{text[key.end() - 1 :]}", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"unknown recipe key '[\w.]*{key[2]}\w'; did you mean '[\w.]*{key[2]}'"):
            recipe_config(str(recipe))
    assert ceit_cli.main(["train", "--recipe", str(recipe), "--data", "digits", "--output", str(tmp_path / "run")]) == 1
    last = list(read_recipe(name))[-1]
    assert capsys.readouterr().err.startswith(f"error: {unknown('recipe key', last + last[-1], set(known_keys()))}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", IMAGENET)
def test_the_resolved_imagenet_recipe_is_the_released_one_line_by_line(name: str) -> None:
    config, _ = parse(["--recipe", name, "--data", "imagenet:DIR", "--output", "runs/x"])
    resolved = config.as_dict()
    for option, value in RELEASED.items():
        section, _, key = option.rpartition(".")
        assert (resolved[section] if section else resolved)[key] == value, option
    assert (config.model, config.epochs) == IMAGENET[name]
    assert config.scaled_lr == pytest.approx(1e-3, rel=1e-12)
    assert config.device_batch_size == 256


@pytest.mark.parametrize(
    ("words", "rate"), [(["--global_batch_size", "512"], 5e-4), (["--lr_base_size", "null"], 5e-4)]
)
def test_the_learning_rate_follows_the_global_batch(words: list[str], rate: float) -> None:
    config, _ = parse(["--recipe", "imagenet_tiny_300", "--data", "x", "--output", "y", *words])
    assert config.scaled_lr == pytest.approx(rate, rel=1e-12)


def test_the_released_evaluation_sees_imagenet_through(tmp_path: Path) -> None:
    """Resize to 256/224 of the input, which is a crop of 0.875, bicubic, ImageNet's mean and standard deviation."""
    make_imagenet(tmp_path / "imagenet")
    dataset = load_dataset(f"imagenet:{tmp_path / 'imagenet'}", img_size=(224, 224))
    seen = dataset.preprocessing
    assert (seen.crop, seen.interpolation) == (0.875, "bicubic")
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert dataset.validation is None  # val/ is the reported split: choices use images cut off train/


def test_fine_tuning_without_its_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stand_in("pets", tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert ceit_cli.main(["train", "--recipe", "transfer_pets", "--data", data, "--output", "run"]) == 1
    assert "runs/imagenet_tiny_300" in capsys.readouterr().err


def test_every_recipe_ships_with_the_package() -> None:
    shipped = {entry.name for entry in files("ceit").joinpath("recipes").iterdir()}
    assert shipped == {f"{name}.yaml" for name in recipe_names()}
    assert len(shipped) == 21
