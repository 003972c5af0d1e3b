"""The set of made photos is the same each time and leaks nothing; its measurement goes on where it was stopped."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import make_photos, photo_recipes
from ceit.data.audit.check import check
from ceit.data.image import read_image
from ceit.data.sources.choose import glance

COUNTS = {"train": 12, "test": 12}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A stand-in whose training images are red and whose test images are green."""
    folder = tmp_path / "cache" / "cifar10"
    folder.mkdir(parents=True)
    found = {}
    for part, channel in (("train", 0), ("test", 1)):
        images = np.zeros((60, 32, 32, 3), np.uint8)
        images[..., channel] = np.random.default_rng(0).integers(60, 256, images.shape[:-1])
        found[part] = images
        np.save(folder / f"{part}_images.npy", images)
        np.save(folder / f"{part}_labels.npy", np.arange(60) % 10)
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    return found


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int] = COUNTS) -> Path:
    """In this process, as the pool's would have to find the stand-in."""

    class Here:
        def __init__(self, *_: object) -> None:
            make_photos._images.cache_clear()

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            make_photos._images.cache_clear()

        def map(self, of: Any, items: Any, chunksize: int) -> Any:
            return map(of, items)

    monkeypatch.setattr(make_photos, "ProcessPoolExecutor", Here)
    return make_photos.make_photos(folder, counts, seed=0)


@pytest.mark.usefixtures("cifar10")
def test_pictures_are_photos_of_either_part_and_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (made(tmp_path / name, monkeypatch) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.JPG"))
    assert len(files) == 24
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)
    for path in files:
        with Image.open(first / path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert min(image.size) >= 240
            turned = image.getexif()[0x0112] in (6, 8)
        upright = read_image(first / path, 3)
        assert (upright.size == image.size) == (not turned or image.width == image.height)
        assert upright.size in make_photos.SIZES
        red, green, _ = np.asarray(upright).reshape(-1, 3).mean(0)
        assert (red > green) == (path.parts[0] == "train")
    report = check(first)
    assert not report.errors
    assert not report.leaks
    assert glance(first)[:2] == (12, 6)


@pytest.mark.usefixtures("cifar10")
def test_the_measurement_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = made(tmp_path / "photos", monkeypatch, {"train": 24, "test": 6}), tmp_path / "found" / "out.json"
    small = {"geometry": {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}, "workers": 0}
    arms = {name: (recipe, options | small) for name, (recipe, options) in photo_recipes.ARMS.items()}
    monkeypatch.setattr(photo_recipes, "ARMS", arms)
    words = ["--photos", str(photos), "--output", str(output), "--runs", str(tmp_path / "runs"), "--epochs", "1"]

    def measure(*more: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["photo_recipes", *words, *more])
        photo_recipes.main()
        return json.loads(output.read_text(encoding="utf-8"))["cells"]

    first = measure("--arms", "photos_64", "--seeds", "0")
    assert [(cell["arm"], cell["seed"], cell["epochs"]) for cell in first] == [("photos_64", 0, 1)]
    both = measure("--arms", "photos_64", "photos_128_no_policy", "--seeds", "0")
    assert both[:1] == first
    assert [cell["arm"] for cell in both] == ["photos_64", "photos_128_no_policy"]
    assert {"top1_percent", "train_seconds", "seconds", "machine", "seed"} <= both[1].keys()
    capsys.readouterr()
    assert measure("--print") == both
    assert "photos_128_no_policy" in capsys.readouterr().out


def test_the_table_has_the_mean_and_the_worst_of_the_seeds() -> None:
    cells = [
        {"arm": "photos_64", "minutes": 10.0, "epochs": None, "seed": seed, "epochs_trained": 30 + seed}
        | {"top1_percent": 50.0 + 2 * seed, "train_seconds": 300.0 + 60 * seed}
        for seed in range(2)
    ]
    row = ["photos_64", "10 min", "0, 1", "30, 31", "51.00 %", "50.00 %", "6.0 min"]
    assert photo_recipes.rows_of(cells) == [row]
