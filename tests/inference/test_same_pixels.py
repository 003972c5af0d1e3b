"""Training, evaluation and prediction see the same pixels of a photograph, whatever is kept of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.sources.choose import load_dataset
from ceit.inference.predictor import Predictor
from ceit.model import CeiT


def photographs(root: Path) -> list[Path]:
    """Eight JPEGs of two classes, some of them upright only by their EXIF data."""
    paths = []
    for number in range(8):
        path = root / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (60, 100, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number > 5 else 1
        Image.fromarray(pixels).resize((1000, 600), Image.Resampling.BICUBIC).save(path, exif=exif)
        paths.append(path)
    return paths


@pytest.mark.parametrize("size", [(32, 32), (72, 96)])
def test_m5_predict_sees_what_training_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., CeiT], size: tuple[int, int]
) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    paths = photographs(tmp_path / "photos")
    seen: list[Tensor] = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    for _ in range(2):  # the second time out of the cache
        dataset = load_dataset(tmp_path / "photos", img_size=size)
        model = make(in_chans=3, img_size=size, num_classes=2)
        predictor = Predictor(model, class_names=("a", "b"), preprocessing=dataset.preprocessing, network=network)
        for split in (dataset.train, dataset.test):
            loader = make_loader(split, batch_size=8, img_size=size, preprocessing=dataset.preprocessing, workers=0)
            ((images, _),) = loader.epoch(0)
            of_split = [next(path for path in paths if path.stem == key.split("/")[1]) for key in loader.keys(0)]
            seen.clear()
            predictor.predict(of_split, batch_size=8)
            assert torch.equal(torch.cat(seen), images)
