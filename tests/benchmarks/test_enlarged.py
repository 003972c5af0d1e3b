"""Small images as they are, and in large files: the same pictures under the same names."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ceit
from benchmarks import enlarged
from ceit.data.preprocessing import IMAGENET

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture
def three_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(index: int, in_chans: int) -> Image.Image:
        assert in_chans == 3
        return Image.fromarray(IMAGES[index])

    test = SimpleNamespace(read=read, labels=np.array([1, 0, 1]))
    found = SimpleNamespace(parts={"test": test}, class_names=("cat", "sea_lion"))
    monkeypatch.setattr(enlarged, "load_images", lambda _: found)


@pytest.mark.usefixtures("three_images")
def test_an_enlarged_picture_shows_what_the_small_one_shows(tmp_path: Path) -> None:
    for way in enlarged.WAYS:
        files = sorted(enlarged.write(tmp_path / way, 3, way).iterdir())
        assert [file.stem for file in files] == ["0000_sea_lion", "0001_cat", "0002_sea_lion"]
        for file, image in zip(files, IMAGES, strict=True):
            with Image.open(file) as picture:
                assert picture.size == ((32, 32) if way == "as they are" else (512, 512))
                assert np.array(picture.convert("RGB")).mean() == pytest.approx(image.mean(), abs=2)
                if way == "as they are":
                    assert np.array_equal(np.array(picture), image)


@pytest.mark.usefixtures("three_images")
def test_what_is_named_rightly_is_counted(tmp_path: Path) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=2)
    assert isinstance(model.head, nn.Linear)
    model.head.weight.data.zero_()
    model.head.bias.data[:] = torch.tensor([0.0, 5.0])  # every picture shows a sea lion
    file = tmp_path / "model.safetensors"
    ceit.save_checkpoint(file, model, class_names=["cat", "sea_lion"], preprocessing=IMAGENET)
    assert enlarged.named_rightly(enlarged.write(tmp_path / "small", 3, "as they are"), str(file)) == 66.67
