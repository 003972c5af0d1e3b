"""One image file, whatever its mode, to one RGB or grey 8-bit image; and which files are images."""

import io
import math
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ceit.data import pillow, tiff
from ceit.data.image_kind import SNIFFED_BYTES, kind_of
from ceit.data.image_metadata import LYING, TURNS, orientation, without_metadata
from ceit.data.pixels import to_eight_bits
from ceit.limits import IMAGE, TooMuchError

_MODE_OF_CHANNELS = {1: "L", 3: "RGB"}
_EXTRAS = {"AVIF": "Pillow 11.3 or newer", "HEIF": 'the package pillow-heif: pip install "ceit-vision[heif]"'}
_HEADER_BYTES = 1 << 16  # enough of most files to know an image's size

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class UnreadableImageError(ValueError):
    """An image that cannot be read; ``reason`` says why, without the image's name."""

    def __init__(self, message: str, reason: str = "") -> None:  # a process that sends one names none, and adds it
        super().__init__(message)
        self.reason = reason


class BrokenImageError(UnreadableImageError):
    """Bytes that hold no image, or a damaged one: a verdict about bytes, which may be kept while they do not change."""


class RefusedImageError(UnreadableImageError):
    """An image that could be read with another setting or package, or more memory: no verdict, so it is not kept."""


class TooLargeError(RefusedImageError):
    """An image of more megapixels than are allowed: ``CEIT_MAX_MEGAPIXELS`` in the environment says how many are."""


class MissingDecoderError(RefusedImageError):
    """An image of a format for which nothing is installed."""


def read_image(
    source: str | Path | bytes | Image.Image,
    in_chans: int,
    cover: tuple[int, int] | None = None,
    name: str | None = None,
) -> Image.Image:
    """Reads an image file, given by its path or as its bytes, as ``RGB`` (three channels) or ``L`` (one).

    Transparency is composited on white, greys of more bits are scaled to 8, palette and CMYK are converted, the EXIF
    orientation is applied, and of several frames the first is taken: docs/pixels.md has all of it. Damaged metadata do
    not matter. Pillow's warnings are silenced. ``name`` is what errors call the image, by default its path.

    With ``cover``, ``(H, W)`` of the upright image, a larger image is made smaller, in proportion, until it just covers
    that; a JPEG may be decoded at a half, a quarter or an eighth of its size on the way. So ask for twice of what is
    needed. What comes depends on the bytes, ``in_chans`` and ``cover`` alone.

    Raises: BrokenImageError, a ValueError, naming an image whose bytes are none or damaged; RefusedImageError, another,
    for one that is read only with other settings, packages or more memory; a plain ValueError, before anything is read,
    for a CEIT_MAX_MEGAPIXELS that is no number; the machine's OSError, and MemoryError.
    """
    mode = image_mode(in_chans)
    if isinstance(source, Image.Image):
        with pillow.reading():
            return _reduced(_as_mode(source, mode), cover)

    def decode(image: Image.Image) -> Image.Image:
        if cover is not None and image.format in {"JPEG", "MPO"}:
            height, width = cover[::-1] if orientation(image) in LYING else cover
            image.draft(None, (width, height))
        return _as_mode(image, mode)

    limit = pillow.limit_megapixels()
    data = source if isinstance(source, bytes) else image_bytes(source)
    return _reduced(_read(data, decode, limit, name or _name(source)), cover)


def image_bytes(path: str | Path) -> bytes:
    """The content of an image file. Raises: RefusedImageError for a pipe, a device, or too many bytes; OSError."""
    require_bytes(_size_of_regular(path), str(path))
    return Path(path).read_bytes()


def _size_of_regular(path: str | Path) -> int:
    """Its bytes. Raises: RefusedImageError for a pipe or a device, at which a reader would wait for ever."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):  # a folder is the machine's own OSError
        reason = "no regular file: save it to one first"
        raise RefusedImageError(f"{path} cannot be read ({reason})", reason)
    return state.st_size


def require_bytes(size: int, name: str) -> None:
    """Raises: RefusedImageError for an image file of more bytes than ``limits.IMAGE`` allows."""
    try:
        IMAGE.require(size, name)
    except TooMuchError as error:
        raise RefusedImageError(str(error), str(error).removeprefix(f"{name} ")) from error


def or_reason(read: Callable[[_Item], _Result], item: _Item) -> _Result | str:
    """``read(item)``, or the reason why that image cannot be read."""
    try:
        return read(item)
    except UnreadableImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or str(error)
    except MemoryError:
        return "too little memory to decode it"


def read_header(source: str | Path | bytes, name: str | None = None) -> tuple[tuple[int, int], str]:
    """Width and height, and Pillow's mode, without decoding. Raises: as ``read_image``."""
    limit = pillow.limit_megapixels()

    def header(data: bytes) -> tuple[tuple[int, int], str]:
        return _read(data, lambda image: (image.size, image.mode), limit, name or _name(source))

    if isinstance(source, bytes):
        return header(source)
    size = _size_of_regular(source)
    with open(source, "rb") as file:
        start = file.read(_HEADER_BYTES)
        with suppress(BrokenImageError):  # what follows may be needed
            return header(start)
        require_bytes(size, str(source))
        return header(start + file.read())


def image_mode(in_chans: int) -> str:
    """Pillow's mode for a number of channels. Raises: ValueError unless that is 1 or 3."""
    if in_chans not in _MODE_OF_CHANNELS:
        raise ValueError(f"images cannot be read with {in_chans} channels: use 1 (grey) or 3 (RGB)")
    return _MODE_OF_CHANNELS[in_chans]


def is_image_name(name: str) -> bool:
    """Whether a file of that name is an image by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in pillow.suffixes()


def image_suffixes() -> list[str]:
    """The suffixes that ``is_image_name`` knows, sorted, for messages."""
    return sorted(pillow.suffixes())


def sniff(path: str | Path) -> bool:
    """Whether a file whose suffix is not an image's is one all the same, by its first bytes.

    For photos that a phone or a browser named ``IMG_1`` or ``photo.jpg!d``. Raises: OSError if it cannot be read.
    """
    with open(path, "rb") as file:
        kind = kind_of(file.read(SNIFFED_BYTES))
    if kind == "TIFF":  # so are the raw files of cameras, of which only a small preview would be read
        suffix = os.path.splitext(path)[1].lower()
        return not suffix or suffix.startswith(".tif")
    return bool(kind) and kind not in _missing()


def _reduced(image: Image.Image, cover: tuple[int, int] | None) -> Image.Image:
    """The image made smaller, in proportion, until it just covers ``(H, W)``; smaller images stay as they are."""
    if cover is None or image.width <= cover[1] or image.height <= cover[0]:
        return image
    height, width = cover
    if image.width * height <= image.height * width:
        height = max(height, width * image.height // image.width)
    else:
        width = max(width, height * image.width // image.height)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _name(source: str | Path | bytes) -> str:
    return f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    pixels = to_eight_bits(image, mode)  # a TIFF is upright from here on
    turned = orientation(image)
    return pixels.transpose(TURNS[turned]) if turned in TURNS else pixels


def _read(data: bytes, use: Callable[[Image.Image], _Result], limit_megapixels: float, name: str) -> _Result:
    """``use`` of the image that the bytes are: whatever fails is their fault, as no file is open any more."""
    with pillow.reading():
        try:
            return _use(data, use, limit_megapixels, name)
        except BrokenImageError:
            bare = without_metadata(data)
            if bare != data:
                with suppress(BrokenImageError):  # the pixels are damaged as well
                    return _use(bare, use, limit_megapixels, name)
            raise


def _use(data: bytes, use: Callable[[Image.Image], _Result], limit_megapixels: float, name: str) -> _Result:
    try:
        with _opened(data) as image:
            megapixels = math.prod(image.size) / 1e6
            if megapixels > limit_megapixels:
                fix = f"{pillow.LIMIT_VARIABLE}={math.ceil(megapixels)} in the environment allows them"
                reason = f"{image.width} x {image.height} pixels, above the limit of {limit_megapixels:.4g} megapixels"
                raise TooLargeError(f"{name} is too large ({reason}; {fix})", f"{reason}; {fix}")
            with pillow.limit_lifted() if pillow.above_limit(image.size) else nullcontext():
                return use(image)
    except (RefusedImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # of an image inside the image
        raise TooLargeError(f"{name} is too large ({error})", str(error)) from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        reason = _reason(error, data, name)
        if reason.startswith("out of memory"):  # said by Pillow's decoders, as an OSError
            raise RefusedImageError(f"{name} cannot be read ({reason})", reason) from error
        raise BrokenImageError(f"{name} cannot be read as an image ({reason})", reason) from error


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=pillow.formats())
    except Image.DecompressionBombError:
        with pillow.limit_lifted():
            return Image.open(io.BytesIO(data), formats=pillow.formats())
    except UnidentifiedImageError:
        if (image := _white_is_zero(data)) is None:
            raise
        return image


def _white_is_zero(data: bytes) -> Image.Image | None:
    """A TIFF of 16 bits that Pillow knows with black as zero only, opened as such, for us to invert; or None."""
    changed = tiff.black_is_zero(data)
    image = Image.open(io.BytesIO(changed), formats=["TIFF"]) if changed != data else None
    if not isinstance(image, TiffImageFile) or not image.mode.startswith("I"):
        return None
    image.tag_v2[tiff.PHOTOMETRIC] = tiff.WHITE_IS_ZERO
    return image


def _missing() -> dict[str, str]:
    """The kinds of images that are not decoded here, and what would decode them."""
    return {kind: needed for kind, needed in _EXTRAS.items() if kind not in pillow.formats()}


def _reason(error: Exception, data: bytes, name: str) -> str:
    """Why these bytes are no image. Raises: MissingDecoderError if they may be one."""
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    kind = kind_of(data[:SNIFFED_BYTES])
    if kind in _missing():
        reason = f"{kind} needs {_missing()[kind]}"
        raise MissingDecoderError(f"{name} cannot be read ({reason})", reason) from error
    return f"{kind}, but damaged or of a kind that Pillow does not decode" if kind else "not an image"
