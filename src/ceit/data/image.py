"""One image file, whatever its mode, to one RGB or grey 8-bit image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_MODE_OF_CHANNELS = {1: "L", 3: "RGB"}


class BrokenImageError(ValueError):
    """A file that holds no image, or a damaged one; ``reason`` says which."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def read_image(source: str | Path | Image.Image, in_chans: int) -> Image.Image:
    """Reads an image as ``RGB`` (three channels) or ``L`` (one).

    Transparency is composited on white, 16-bit greys are scaled to 8 bits, palette and CMYK are converted, the EXIF
    orientation is applied, and of several frames the first is taken.

    Raises: BrokenImageError, a ValueError, naming a file whose bytes are no image or a damaged one; OSError for a file
    that cannot be opened.
    """
    mode = image_mode(in_chans)
    if isinstance(source, Image.Image):
        return _as_mode(source, mode)
    with _opened(source) as image:
        return _as_mode(image, mode)


def read_header(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and Pillow's mode, without decoding. Raises: as ``read_image``."""
    with _opened(path) as image:
        return image.size, image.mode


def image_mode(in_chans: int) -> str:
    """Pillow's mode for a number of channels. Raises: ValueError unless that is 1 or 3."""
    if in_chans not in _MODE_OF_CHANNELS:
        raise ValueError(f"images cannot be read with {in_chans} channels: use 1 (grey) or 3 (RGB)")
    return _MODE_OF_CHANNELS[in_chans]


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                yield image
        except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
            unidentified = isinstance(error, UnidentifiedImageError)
            reason = "not an image" if unidentified else str(error) or type(error).__name__
            raise BrokenImageError(f"{path} cannot be read as an image ({reason})", reason) from error


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greys: Pillow's conversion would clip them at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)
