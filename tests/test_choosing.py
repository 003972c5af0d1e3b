"""``ceit train`` without a recipe: it chooses one by what lies there, says so, and typed options win over it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ceit
import ceit.cli.train
import ceit_cli
from ceit.data.sources.choose import Glance, glance

SMALL = ["--geometry", '{"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}']
QUICK = [*SMALL, "--limit-batches", "1", "--epochs", "1", "--precision", "float32", "--workers", "0"]

MakePhotos = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path) -> MakePhotos:
    """Makes a folder of JPEGs as people have them: upright and wide, in odd places, one of them broken if asked for."""

    def make(count: int = 24, side: int = 240, broken: bool = False) -> Path:
        root, random = tmp_path / "My photos (2024)", np.random.default_rng(0)
        for number in range(count):
            path = root / ("cat", "dög")[number % 2] / f"IMG {number}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (side, side + 80) if number % 3 else (side + 120, side)
            cells = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(cells).resize(size).save(path, "JPEG", quality=80)
        if broken:
            (root / "cat" / "IMG_0000.jpg").write_bytes(b"\xff\xd8\xff not a photo")
        return root

    return make


def config_of_run(run: Path) -> dict[str, object]:
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def test_a_folder_of_photos_is_trained_by_the_recipe_that_suits_it_and_goes_on_with_it(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", photos(64)
    words = ["--data", str(data), "--output", str(run), *QUICK]
    assert ceit_cli.main(["train", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert (
        "Found about 51 images of 2 classes to train on, with 240 pixels on the shorter side; the machine has " in said
    )
    assert "The recipe is photos_128: photos_224 sees more detail, but wants 2,000 images" in said
    assert "25 images a class are few to learn from nothing" in said
    saved = config_of_run(run)
    assert (saved["model"], saved["img_size"]) == ("ceit_mini_patch16_128", [128, 128])
    assert (saved["global_batch_size"], saved["lr_base_size"], saved["lr_scaling"]) == (16, 256, "sqrt")
    assert ceit_cli.main(["train", "--output", str(run), "--resume", "auto"]) == 0
    said = capsys.readouterr().err
    assert "The recipe is" not in said
    assert config_of_run(run) == saved


def test_typed_options_win_over_the_recipe(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(photos(broken=True)), "--img-size", "64", "--global-batch-size", "8", "--peak-lr", "0.002"]
    assert ceit_cli.main(["train", *words, "--augmentation.rand-augment", "rand-m6", "--print-config"]) == 1
    assert "exclude each other" in capsys.readouterr().err  # as the recipe has TrivialAugment
    words += ["--augmentation.trivial-augment", "false", "--augmentation.rand-augment", "rand-m6"]
    assert ceit_cli.main(["train", *words, "--print-config"]) == 0
    printed = capsys.readouterr()
    config = yaml.safe_load(printed.out)
    assert "The recipe is photos_64: its size is the nearest to the 64 pixels that were asked for." in printed.err
    assert (config["model"], config["global_batch_size"], config["peak_lr"]) == ("ceit_mini_patch8_64", 8, 0.002)
    assert (config["augmentation"]["trivial_augment"], config["augmentation"]["rand_augment"]) == (False, "rand-m6")
    assert "# learning rate after the warm-up: 0.002 * sqrt(8 / 256) = 0.000353553" in printed.out


def test_a_typed_model_tells_the_size(photos: MakePhotos, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(photos()), "--model", "ceit_tiny_patch16_224", "--print-config"]
    assert ceit_cli.main(["train", *words]) == 0
    printed = capsys.readouterr()
    config = yaml.safe_load(printed.out)
    assert "The recipe is photos_224" in printed.err
    assert (config["model"], config["img_size"]) == ("ceit_tiny_patch16_224", 224)


@pytest.mark.parametrize("data", ["digits", "cifar10", "fashion_mnist"])
def test_small_sets_by_name_get_the_recipe_for_small_images(
    data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being there: the choice asks what is known of them. A GPU would have the time for a longer recipe."""
    monkeypatch.setattr(ceit.cli.train, "default_device", lambda: torch.device("cpu"))
    assert ceit_cli.main(["train", "--data", data, "--print-config"]) == 0
    printed = capsys.readouterr()
    assert "The recipe is demo: it is made for small images." in printed.err
    assert ceit_cli.main(["train", "--recipe", "demo", "--print-config"]) == 0
    assert capsys.readouterr().out == printed.out


def test_no_recipe_at_all_is_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["train", "--recipe", "none", "--data", "digits", "--print-config"]) == 0
    printed = capsys.readouterr()
    assert "The recipe is" not in printed.err
    assert yaml.safe_load(printed.out)["optimizer"] == "adamw"


@pytest.mark.parametrize("recipe", [[], ["--recipe", "photos_finetune"]])
def test_trained_weights_are_tuned_in_their_own_network_at_their_own_size(
    recipe: list[str], photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.safetensors"
    network = ceit.create_model("ceit_mini_patch8_64", num_classes=3, img_size=96, depth=2, embed_dim=32, num_heads=2)
    ceit.save_checkpoint(start, network, class_names=["ant", "bee", "wasp"], preprocessing=network_preprocessing())
    run = tmp_path / "run"
    words = ["--data", str(photos()), "--initial-checkpoint", str(start), "--output", str(run), *recipe]
    words += ["--epochs", "1", "--limit-batches", "1", "--workers", "0", "--precision", "float32"]
    assert ceit_cli.main(["train", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert ("The recipe is photos_finetune: " in said) == (not recipe)
    assert "starting from the weights of" in said
    saved = config_of_run(run)
    assert (saved["model"], saved["img_size"], saved["layer_decay"]) == ("ceit_mini_patch8_64", [96, 96], 0.75)
    assert json.loads((run / "model.json").read_text(encoding="utf-8"))["config"]["depth"] == 2


@pytest.mark.parametrize("recipe", ["photos_finetune", "transfer_pets"])
def test_a_recipe_that_starts_from_a_run_that_is_not_here_says_what_to_give(
    recipe: str, photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert ceit_cli.main(["train", "--recipe", recipe, "--data", str(photos()), "--output", str(run)]) == 1
    said = capsys.readouterr().err
    start = "runs/imagenet_tiny_300, which is not here: give --initial-checkpoint a run directory, a file, or weights"
    assert f"recipe {recipe} starts from {start}" in said
    words = ["--data", str(photos()), "--output", str(run), "--initial-checkpoint", "nothere"]
    assert ceit_cli.main(["train", *words]) == 1
    assert capsys.readouterr().err.startswith("error: --initial-checkpoint nothere is not here: name a run directory")
    assert not run.exists()


def test_a_recipe_may_start_from_weights_that_ship(photos: MakePhotos, tmp_path: Path) -> None:
    recipe, run, shipped = tmp_path / "my.yaml", tmp_path / "run", "ceit_pico_patch4_32.cifar10"
    recipe.write_text(f"initial_checkpoint: {shipped}\nmodel: {shipped}\n", encoding="utf-8")
    words = ["--recipe", str(recipe), "--data", str(photos()), "--output", str(run), "--limit-batches", "1"]
    assert ceit_cli.main(["train", *words, "--epochs", "1", "--precision", "float32", "--workers", "0"]) == 0
    assert config_of_run(run)["initial_checkpoint"] == shipped


def network_preprocessing() -> dict[str, object]:
    return {"mean": [0.5] * 3, "std": [0.25] * 3, "crop": 0.875, "interpolation": "bicubic"}


def test_a_glance_reads_headers_alone(photos: MakePhotos, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(20, 90, broken=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("ceit.data.encoded.read_image", refuse)
    monkeypatch.setattr("ceit.data.reduced.read_image", refuse)
    assert glance(data) == Glance(17, 2, 90)
    paths = sorted(data.rglob("*.JPG"))
    parts = ["test"] * 5 + ["train"] * 15
    rows = [f"{path.relative_to(data)},{path.parent.name},{part}" for path, part in zip(paths, parts, strict=True)]
    table = data / "labels.csv"
    table.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    assert glance(table) == Glance(15, 2, 90)
    assert glance("imagenet:nowhere") == Glance(1_281_167, 1_000, 224)
    assert glance("cifar10", ["cat", "dog"]) == Glance(10_000, 2, 32)


def test_what_is_no_data_set_is_told_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for data, sentence in (
        (tmp_path / "empty", "has no images"),
        (tmp_path / "nothing", "does not exist"),
        ("cifar11", "did you mean 'cifar10'"),
    ):
        assert ceit_cli.main(["train", "--data", str(data), "--output", str(tmp_path / "run")]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_crops_of_large_photos_are_cut_from_more_pixels_than_the_network_sees(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 64 px images are else held in memory at just that size, and a crop of them would be enlarged."""
    seen: set[tuple[int, int]] = set()
    from ceit.data.batches import batch

    class Noting(batch.ImageAugmentation):
        def __call__(self, image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            seen.add(image.size)
            return super().__call__(image, rows, columns)

    monkeypatch.setattr(batch, "ImageAugmentation", Noting)
    data = photos()
    for options in ([], ["--augmentation.crop-scale", "null"]):
        seen.clear()
        run = tmp_path / "run"
        words = ["--recipe", "photos_64", "--data", str(data), "--output", str(run), *QUICK, *options]
        assert ceit_cli.main(["train", *words]) == 0
        assert (min(min(size) for size in seen) == 128) == (not options)
        shutil.rmtree(run)
