"""The directory of a TIFF file, its list of tags, changed without touching its pixels."""

import struct
from itertools import compress

PHOTOMETRIC = 262
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1

_CHANNELS, _MAX_SAMPLE, _PLANAR = 277, 281, 284
_SHORT = 3

_PIXEL_TAGS = frozenset(
    {
        *(256, 257, 258, 259, PHOTOMETRIC, 266, _CHANNELS, _PLANAR, 317, 338, 339),  # size, depth, layout
        *(273, 278, 279, 322, 323, 324, 325),  # where strips and tiles lie
        *(320, 347, 530, 532),  # palette, JPEG's tables, YCbCr
        *(274, _MAX_SAMPLE),  # orientation, declared range
    }
)
_ENTRY_BYTES = 12


def without_metadata(data: bytes) -> bytes:
    """The file with its first image alone, and of its tags those that pixels depend on."""
    order, start, entries = _directory(data)
    heads = [struct.unpack(order + "HHIHH", entry) for entry in entries]
    dropped = {(_MAX_SAMPLE, kind) for kind in range(13) if kind != _SHORT}  # on which libtiff gives up
    if not any(tag == _CHANNELS and (short or long) > 1 for tag, _, _, short, long in heads):
        dropped.add((_PLANAR, _SHORT))  # one channel has no order
    is_kept = (tag in _PIXEL_TAGS and (tag, kind) not in dropped for tag, kind, *_ in heads)
    kept = [*compress(entries, is_kept)]
    return _with_directory(data, start, struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4))


def black_is_zero(data: bytes) -> bytes:
    """The file that declares its values, of which zero was white, as ones of which zero is black; others unchanged."""
    order, start, entries = _directory(data)
    values = WHITE_IS_ZERO, BLACK_IS_ZERO
    white, black = (struct.pack(order + "HHIHH", PHOTOMETRIC, _SHORT, 1, value, 0) for value in values)
    changed = [black if entry == white else entry for entry in entries]
    return _with_directory(data, start, struct.pack(order + "H", len(changed)) + b"".join(changed))


def _directory(data: bytes) -> tuple[str, int, list[bytes]]:
    """Byte order, place and entries of the first directory; nothing of what is no TIFF, or a BigTIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4], "")
    if not order or len(data) < 8:
        return "<", len(data), []
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return "<", len(data), []
    (count,) = struct.unpack_from(order + "H", data, start)
    places = range(start + 2, min(start + 2 + count * _ENTRY_BYTES, len(data) - _ENTRY_BYTES + 1), _ENTRY_BYTES)
    return order, start, [data[at : at + _ENTRY_BYTES] for at in places]


def _with_directory(data: bytes, start: int, directory: bytes) -> bytes:
    return data[:start] + directory + data[start + len(directory) :] if start < len(data) else data
