"""Pixels of every mode and depth to 8 bits of grey or RGB: docs/pixels.md has the table."""

from typing import Any

import numpy as np
from PIL import Image

from ceit.data import tiff

_BITS, _CHANNELS, _MAX_SAMPLE, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 277, 281, 284, 338, 339  # tags of TIFF
_RGB, _SIGNED, _ONE_AFTER_THE_OTHER = 2, 2, 2  # values of three of them
_DECLARED_RANGES = frozenset(2**bits for bits in range(9, 16))
_UNUSED_BITS = "unused_bits"
_MANY_UNUSED = 4  # no pixel is lighter than a sixteenth of white


def to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """The image as ``mode``, ``L`` or ``RGB``: greys scaled from their declared range, transparency put on white.

    Raises: ValueError for pixels without a fixed range: floating-point or signed ones.
    """
    key_colour, depth = _key_colour(image), _depth(image)
    _refuse_unknown_ranges(image)
    image.load()
    unused = 0
    if image.mode.startswith("I"):
        image, unused = _greys(image, key_colour)
    elif key_colour is not None:
        image = image.copy()
        image.info["transparency"] = key_colour
    result = _on_white(image).convert(mode)
    if result.mode != mode:  # of a TGA that has greys and a palette: Pillow calls it L, and what it copies is P
        result = result.convert(mode)
    if depth == 16 and not unused:
        unused = _unused(np.asarray(result).max(), 8)  # of colours Pillow keeps the upper 8 bits
    result.info = {_UNUSED_BITS: unused}
    return result


def looks_dark_for_its_depth(image: Image.Image) -> bool:
    """Whether an image of ``read_image`` uses 12 bits of 16 or fewer, undeclared: nearly black, but not all black."""
    return image.info.get(_UNUSED_BITS, 0) >= _MANY_UNUSED


def looks_cut(image: Image.Image) -> bool:
    """Whether an RGB image has a side of 128-grey alone, not all of it: so a JPEG decoder fills what is missing."""
    grey_hw = (np.asarray(image) == 128).all(axis=2)
    height, width = (max(8, side // 16) for side in grey_hw.shape)
    sides = grey_hw[-height:], grey_hw[:height], grey_hw[:, -width:], grey_hw[:, :width]  # it may have been turned
    return any(side.all() for side in sides) and not grey_hw.all()


def _unused(highest: int, bits: int) -> int:
    return bits - int(highest).bit_length() if highest else 0


def _raw_mode(image: Image.Image) -> str:
    """How pixels lie in a file that is not decoded yet, in Pillow's words; empty where that is not known."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _tag(image: Image.Image, number: int) -> Any:
    """The value of a TIFF's tag, the largest of several; None without it, and for other images."""
    value = getattr(image, "tag_v2", {}).get(number)
    return max(value) if isinstance(value, tuple) else value


def _depth(image: Image.Image) -> int:
    """Bits a channel."""
    return _tag(image, _BITS) or (16 if image.mode.startswith("I") or "16" in _raw_mode(image) else 8)


def _key_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The one transparent colour of a PNG, which Pillow leaves in the file's depth, in that of the decoded pixels."""
    colour, raw_mode = image.info.get("transparency"), _raw_mode(image)
    if isinstance(colour, int) and image.mode == "L":
        return colour * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    if isinstance(colour, tuple) and raw_mode.startswith("RGB;16"):
        return tuple(value >> 8 for value in colour)
    return colour if isinstance(colour, int) and image.mode.startswith("I") else None


def _refuse_unknown_ranges(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise ValueError("signed pixels have no fixed black; save the image with 8 or 16 bits, unsigned")
    if _tag(image, _PLANAR) == _ONE_AFTER_THE_OTHER:
        is_rgb = _tag(image, tiff.PHOTOMETRIC) == _RGB and (_tag(image, _CHANNELS) == 3 or _tag(image, _EXTRA))
        if not is_rgb or _depth(image) > 8:  # Pillow decodes them wrongly
            raise ValueError("channels that follow each other; save the image with interleaved ones")


def _greys(image: Image.Image, key_colour: int | tuple[int, ...] | None) -> tuple[Image.Image, int]:
    """A grey image of more than 8 bits with 8, and how many bits no pixel uses. Raises: ValueError for other ranges."""
    values, bits = np.asarray(image).astype(np.int64), _depth(image)
    if bits == 32:
        values &= 0xFFFFFFFF  # Pillow has no unsigned 32 bits
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= 2**bits:
        raise ValueError(f"greys from {lowest} to {highest}; save the image with 8 or 16 bits, unsigned")
    declared = _tag(image, _MAX_SAMPLE) or 0
    if declared + 1 in _DECLARED_RANGES and highest <= declared:  # other values tell what is in this one image
        bits = declared.bit_length()
    white, unused = 2**bits - 1, _unused(highest, bits)
    if _tag(image, tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO:
        values = white - values
    levels = (values * 255 + white // 2) // white
    if key_colour is not None:
        levels[values == key_colour] = 255
    return Image.fromarray(levels.astype(np.uint8)), unused


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency, in a mode that Pillow converts to ``L`` and to ``RGB``."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB") if image.mode == "LAB" else image
