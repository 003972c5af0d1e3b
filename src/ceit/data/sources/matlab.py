"""The variables in a ``.mat`` file of MATLAB 5, in which some owners of data sets keep labels; nothing is executed.

Read here, as scipy's reader ends the process on some damaged files. A variable is an array of numbers, a text, a list
of the cells of a cell array, or for each field of a struct array the list of its values.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 26
"""Of an unpacked variable: those of the sets that are known are below a megabyte."""
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _LAST_NUMBER = 1, 2, 4, 15
_HEADER_BYTES = 128
_MOST_DEEP = 8


def read_matlab(path: Path) -> dict[str, Any]:
    """The variables by name. Raises: ValueError, naming the file, for one that is none or damaged."""
    data = path.read_bytes()
    try:
        if data[126:128] != b"IM":
            raise ValueError("it does not begin as one")
        return dict(_matrix(body, 0) for body in _matrices(data[_HEADER_BYTES:]))
    except (ValueError, LookupError, TypeError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no file of MATLAB 5 ({error}): unpack it anew") from error


def _matrices(data: bytes) -> Iterator[bytes]:
    for kind, body in _elements(data):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, MOST_BYTES)
            yield from _matrices(unpacked)
        elif kind == _MATRIX:
            yield body


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element; small ones have both in eight bytes."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start, end = at + 8, at + 8 + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError(f"{size} bytes are told, {len(data) - start} are there")
        yield kind, data[start : start + size]
        at = end


def _matrix(body: bytes, depth: int) -> tuple[str, Any]:
    """Name and content."""
    if not body:
        return "", np.zeros((0, 0))
    if depth > _MOST_DEEP:
        raise ValueError(f"cells in cells, more than {_MOST_DEEP} deep")
    (_, flags), (_, sides), (_, name), *parts = _elements(body)
    of, shape = flags[0], np.frombuffer(sides, "<i4").tolist()
    if of == _CELL:
        content: Any = [_matrix(part, depth + 1)[1] for _, part in parts]
    elif of == _STRUCT:
        (_, (length, *_)), (_, names), *values = parts
        fields = [names[at : at + length].split(b"\0")[0].decode() for at in range(0, len(names), length)]
        cells = [_matrix(part, depth + 1)[1] for _, part in values]
        content = {field: cells[number :: len(fields)] for number, field in enumerate(fields)}
    elif of == _CHAR:
        content = parts[0][1].decode(_TEXTS[parts[0][0]])
    elif of <= _LAST_NUMBER:
        content = np.frombuffer(parts[0][1], _NUMBERS[parts[0][0]]).reshape(shape, order="F")
    else:
        raise ValueError(f"a variable of class {of} is not read")
    return name.decode(), content
