"""What of Pillow is used, and how: its formats, its limit of size, its warnings. Nothing of it changes for others."""

import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

from PIL import Image, ImageFile

LIMIT_VARIABLE = "CEIT_MAX_MEGAPIXELS"

_NO_PICTURES = frozenset(
    {
        *("EPS", "WMF"),  # run other programs
        *("BUFR", "GRIB", "HDF5", "MPEG"),  # named, never decoded
        *("FITS", "IM", "SPIDER"),  # measurements, whose range no header declares
        *("FPX", "IMT", "IPTC", "MCIDAS", "MIC", "XVTHUMB"),  # containers and thumbnails of other programs
    }
)
_OF_OTHER_PROGRAMS = frozenset({".gbr", ".pcd", ".pfm"})  # circuit boards, point clouds, depth maps


def formats() -> tuple[str, ...]:
    """The formats that are read, as Pillow names them; HEIF is one where the package pillow-heif is installed."""
    Image.init()
    _register_heif()
    return tuple(name for name in Image.ID if name not in _NO_PICTURES)


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of ``formats()``, in small letters, with their dot, but those that mostly mean something else."""
    readable = {*formats(), "MPO"}  # which Pillow opens as a JPEG
    known = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)
    return known - _OF_OTHER_PROGRAMS


def versions() -> str:
    """The packages that read ``formats()``, with their versions: ``PIL 13.0.0 pillow_heif 1.8.1``."""
    packages = {Image.OPEN[name][0].__module__.partition(".")[0] for name in formats()}
    return " ".join(f"{name} {getattr(sys.modules[name], '__version__', '')}" for name in sorted(packages))


@cache
def _register_heif() -> None:
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()


def limit_megapixels() -> float:
    """The most megapixels that an image may have: ``CEIT_MAX_MEGAPIXELS``, or else where Pillow stops, 179.

    Raises: ValueError if the variable is no number above zero; an empty one counts as unset.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return _pillows_limit() / 1e6
    with suppress(ValueError):
        if (limit := float(text)) > 0:
            return limit
    raise ValueError(f"{LIMIT_VARIABLE} must be a number above 0, got {text!r}")


def above_limit(size: tuple[int, int]) -> bool:
    """Whether Pillow itself refuses to decode an image of that size."""
    return size[0] * size[1] > _pillows_limit()


def _pillows_limit() -> float:
    limit = Image.MAX_IMAGE_PIXELS
    if limit == _LIFTED:
        limit = _usual_limit[0]
    return float("inf") if limit is None else 2 * limit


_LIFTING = threading.RLock()
_LIFTED = 1 << 100  # a number, as Pillow may be comparing with it in another thread
_usual_limit = [Image.MAX_IMAGE_PIXELS]


@contextmanager
def limit_lifted() -> Iterator[None]:
    """Pillow's limit taken away inside, for one thread after the other: ours is checked in its place."""
    with _LIFTING:
        _usual_limit[0] = usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = _LIFTED
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


class _WhileReading(threading.local):
    """In place of a pattern in ``warnings.filters``: matches all that is said in a thread while that reads an image.

    ``warnings.catch_warnings`` would silence, and bring back, the warnings of all threads.
    """

    reading = False
    pattern = "(?!)"  # for others, who copy the filters into other processes: there it matches nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return re.compile, (self.pattern,)

    def match(self, _text: str) -> bool:
        return self.reading


_HERE = _WhileReading()
_SILENT = [("ignore", _HERE, category, None, 0) for category in (UserWarning, RuntimeWarning)]


class _ForOthers:
    """In place of ``ImageFile.LOAD_TRUNCATED_IMAGES`` where somebody set it: not true of a thread that reads here."""

    def __bool__(self) -> bool:
        return not _HERE.reading


@contextmanager
def reading() -> Iterator[None]:
    """Whole images alone, and no warnings, also where they are errors; other threads keep what they have set.

    The warnings name no file. They are about metadata, which change no pixel, and about sizes, for which
    ``limit_megapixels`` answers. An image cut short would be grey from there on.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        cast(Any, ImageFile).LOAD_TRUNCATED_IMAGES = _ForOthers()
    filters = cast(list[Any], warnings.filters)
    if filters[: len(_SILENT)] != _SILENT:
        filters[:] = [*_SILENT, *(entry for entry in filters if entry not in _SILENT)]
    before, _HERE.reading = _HERE.reading, True
    try:
        yield
    finally:
        _HERE.reading = before
