"""The evaluation transform is the released code's, and survives the way into a file and back."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from ceit.data.preprocessing import IMAGENET, INTERPOLATIONS, Preprocessing, fit, to_array, to_image

sides = st.integers(1, 90)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(width=st.integers(8, 80), height=st.integers(8, 80), crop=st.sampled_from([0.875, 0.9, 1.0]))
def test_equals_the_released_transform(width: int, height: int, crop: float) -> None:
    image = noise(width, height)
    released = transforms.Compose(
        [
            transforms.Resize(int(24 / crop), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )
    ours = Preprocessing(IMAGENET.mean, IMAGENET.std, crop=crop)
    expected = released(image)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(ours.apply(image, (24, 24)), expected)


@given(width=sides, height=sides, out_height=st.integers(1, 40), out_width=st.integers(1, 40))
def test_any_image_gets_any_size(width: int, height: int, out_height: int, out_width: int) -> None:
    assert fit(noise(width, height), (out_height, out_width), crop=0.9).size == (out_width, out_height)


def covered_and_cropped(image: Image.Image, size: tuple[int, int], crop: float, method: int) -> Image.Image:
    """``fit`` as the released code does it: all of the covering image, then its centre."""
    height, width = size
    cover_height, cover_width = int(height / crop), int(width / crop)
    if image.width * cover_height <= image.height * cover_width:
        cover_height = max(cover_height, cover_width * image.height // image.width)
    else:
        cover_width = max(cover_width, cover_height * image.width // image.height)
    left, top = round((cover_width - width) / 2), round((cover_height - height) / 2)
    covering = image.resize((cover_width, cover_height), method)
    return covering.crop((left, top, left + width, top + height))


@given(
    width=sides,
    height=sides,
    out_height=st.integers(1, 40),
    out_width=st.integers(1, 40),
    crop=st.sampled_from([0.875, 0.9, 1.0]),
)
def test_p13_ordinary_images_are_exactly_the_released_transform(
    width: int, height: int, out_height: int, out_width: int, crop: float
) -> None:
    assume(max(width * out_height, height * out_width) <= 12 * min(width * out_height, height * out_width))
    image, size = noise(width, height), (out_height, out_width)
    released = covered_and_cropped(image, size, crop, Image.Resampling.BICUBIC)
    assert np.array_equal(to_array(fit(image, size, crop)), to_array(released))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@given(long=st.integers(200, 900), short=st.integers(1, 9), out=st.integers(8, 40), lies=st.booleans())
def test_p13_thin_images_are_the_released_transform_to_a_level(
    interpolation: str, long: int, short: int, out: int, lies: bool
) -> None:
    along, across = np.mgrid[0:long, 0:short]
    pixels = (128 + 80 * np.sin(along / 9) + 30 * np.cos(across / 3)).astype(np.uint8)
    image = Image.fromarray(pixels.T.copy() if lies else pixels)
    released = covered_and_cropped(image, (out, out), 0.875, INTERPOLATIONS[interpolation])
    off = to_array(fit(image, (out, out), 0.875, interpolation)).astype(int) - to_array(released)
    assert np.abs(off).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 16000), (16000, 1), (2, 3), (3, 4000)])
def test_p13_thin_images_need_no_more_than_they_show(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def counted(image: Image.Image, to: tuple[int, int], *options: Any) -> Image.Image:
        made.append(to[0] * to[1])
        return resize(image, to, *options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    assert fit(Image.new("RGB", size, (10, 20, 30)), (224, 224), crop=0.875).getpixel((100, 223)) == (10, 20, 30)
    assert max(made) <= 16 * 256 * 256


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(8, 12)
    assert np.array_equal(to_array(fit(image, (12, 8))), to_array(image))


def test_grey_images_keep_their_one_channel() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert np.array_equal(to_array(to_image(pixels)), pixels)
    tensor = Preprocessing((0.5,), (0.25,)).apply(to_image(pixels), (3, 4))
    assert torch.allclose(tensor[0], (torch.from_numpy(pixels[..., 0]) / 255 - 0.5) / 0.25)


def test_round_trip_through_json() -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(IMAGENET.as_dict()))) == IMAGENET


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "must have one value for each channel"),
        ({"mean": (0.5,), "std": (0.0,)}, "std \\(0.0,\\) must be positive"),
        ({"mean": (0.5,), "std": (0.5,), "crop": 1.5}, "crop 1.5 must be above 0 and at most 1"),
        ({"mean": (0.5,), "std": (0.5,), "interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"mean": (0.5,)}, "must hold mean, std, crop and interpolation"),
        ({"mean": (0.5,), "std": (0.5,), "size": 3}, "must hold mean, std, crop and interpolation"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(values)


def test_the_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="the image has 3 channels, the preprocessing 1"):
        Preprocessing((0.5,), (0.5,)).apply(noise(4, 4), (4, 4))


@pytest.mark.parametrize("shape", [(256, 1, 1), (16, 16, 1), (2, 4, 32, 1)])
def test_every_byte_is_normalised_by_exact_divisions(shape: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(shape), (*shape[:-1], 3)).copy()
    mean, std = (np.array(part, np.float32) for part in (IMAGENET.mean, IMAGENET.std))
    expected = torch.from_numpy((pixels.astype(np.float32) / np.float32(255) - mean) / std)
    assert torch.equal(IMAGENET.normalise(pixels), expected)
    assert torch.equal(IMAGENET.normalise(torch.from_numpy(pixels)), expected)
