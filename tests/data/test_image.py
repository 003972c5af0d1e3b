"""Every kind of file becomes the 8-bit image that a person sees; damaged ones are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ceit.data.image import BrokenImageError, read_header, read_image


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    pixels = np.asarray(read_image(save(image, tmp_path / "a.png"), 3))
    assert pixels.tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    path = save(image, tmp_path / "a.png", transparency=0)
    assert np.asarray(read_image(path, 3)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = save(Image.new("LA", (2, 2), (0, 128)), tmp_path / "a.png")
    assert np.asarray(read_image(path, 1)).tolist() == [[127, 127], [127, 127]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = save(Image.fromarray(values), tmp_path / "a.png")
    assert np.asarray(read_image(path, 1)).tolist() == [[0, 1, 128, 255]]
    assert read_image(path, 3).mode == "RGB"


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.jpg")
    red, green, blue = np.asarray(read_image(path, 3)).reshape(-1, 3).mean(0)
    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_modes_keep_white_white(mode: str, in_chans: int) -> None:
    image = read_image(Image.new("RGB", (3, 2), "white").convert(mode), in_chans)
    assert image.mode == {1: "L", 3: "RGB"}[in_chans]
    assert np.asarray(image).min() == 255


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = save(Image.new("RGB", (6, 2)), tmp_path / "a.jpg", exif=exif)
    assert read_image(path, 3).size == (2, 6)


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(path, 1)).max() == 10


def test_a_text_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("no image at all")
    with pytest.raises(BrokenImageError) as raised:
        read_image(path, 3)
    assert str(raised.value) == f"{path} cannot be read as an image (not an image)"
    with pytest.raises(BrokenImageError):
        read_header(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(BrokenImageError, match=rf"a\.{suffix} cannot be read as an image \((?i:.*truncated)"):
        read_image(path, 3)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(Image.new("F", (2, 2)), tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="floating-point pixels have no fixed range"):
        read_image(path, 3)


def test_a_missing_file_is_not_called_broken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.png", 3)


def test_only_grey_and_rgb() -> None:
    with pytest.raises(ValueError, match=r"with 4 channels: use 1 \(grey\) or 3 \(RGB\)"):
        read_image(Image.new("RGB", (2, 2)), 4)
