"""Samples in tar files, read at random by offset. Letters: n samples."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from ceit.data.cache import file_state
from ceit.data.encoded import EncodedSplit
from ceit.data.image import BrokenImageError

_OPEN_SHARDS = 128  # at once in a process


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Where samples lie, as arrays ``(n,)``: number of the shard, offset and size in bytes there, class number.

    Key ``i`` is ``key_bytes[key_ends[i - 1] : key_ends[i]]``: arrays, and not a list of strings, so that a million keys
    are shared with the workers and never copied.
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    key_ends: np.ndarray
    key_bytes: np.ndarray
    digest: np.ndarray | None = None
    """``digest_of`` each image file, uint64; None in what an earlier version has written."""

    @classmethod
    def of(cls, places: list[tuple[int, int, int, int]], labels: list[int], keys: list[str]) -> "SampleTable":
        """The table of ``(shard, offset, size, digest)``, labels and keys."""
        shard, offset, size = np.array([place[:3] for place in places], np.int64).reshape(-1, 3).T.copy()
        encoded = [key.encode(errors="surrogateescape") for key in keys]  # the bytes of a name that is no UTF-8
        ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        key_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        digests = np.array([place[3] for place in places], np.uint64)
        return cls(shard.astype(np.int32), offset, size, np.array(labels, np.int64), ends, key_bytes, digests)

    @classmethod
    def from_bytes(cls, data: bytes) -> "SampleTable":
        """The inverse of ``to_bytes``. Raises: ValueError if they are damaged."""
        try:
            return cls(**load(data))
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(f"not a table of samples ({error})") from error

    def require_within(self, shard_bytes: Sequence[int], classes: int) -> None:
        """Raises: ValueError for arrays of other shapes, samples outside the shards, or classes that there are not."""
        rows, limits = len(self.label), np.array([*shard_bytes, 0], np.int64)
        for name in ("shard", "offset", "size", "label", "key_ends", "digest"):
            array = getattr(self, name)
            if array is not None and (array.shape != (rows,) or array.dtype.kind not in "iu"):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
        if self.key_bytes.dtype != np.uint8 or self.key_bytes.ndim != 1:
            raise ValueError(f"key_bytes is {self.key_bytes.dtype} of shape {self.key_bytes.shape}")
        for name, most in (("shard", len(shard_bytes)), ("label", classes)):
            array = getattr(self, name)
            if rows and not 0 <= array.min() <= array.max() < most:
                raise ValueError(f"{name} {array.min()} to {array.max()}, of {most}")
        ends = np.concatenate([[0], self.key_ends])
        room = limits[self.shard] - self.offset
        if (np.diff(ends) < 0).any() or ends[-1] > len(self.key_bytes):
            raise ValueError("key_ends lead outside the keys")
        if (self.offset < 0).any() or (self.size < 0).any() or (self.size > room).any():
            raise ValueError("a sample lies outside its shard")

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return save({name: array for name, array in arrays.items() if array is not None})

    def key(self, row: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.key_bytes[start : int(self.key_ends[row])].tobytes().decode(errors="surrogateescape")


@dataclass(frozen=True, eq=False)
class ShardSplit(EncodedSplit):
    """Samples in shards, read when they are needed. Sample ``i`` is row ``rows[i]`` of the table."""

    shards: tuple[Path, ...]
    table: SampleTable
    rows: np.ndarray
    labels: Tensor
    digests: np.ndarray | None = None

    @property
    def shard_of(self) -> np.ndarray:
        """The number of the shard that each sample lies in, int32 ``(n,)``: for an epoch that goes shard by shard."""
        return self.table.shard[self.rows]

    def key(self, index: int) -> str:
        return self.table.key(int(self.rows[index]))

    def name(self, index: int) -> str:
        return f"sample {self.key(index)} of {self._shard(index)}"

    def state(self, index: int) -> str:
        row = self.rows[index]
        return f"{file_state(self._shard(index))}\0{self.table.offset[row]}\0{self.table.size[row]}"

    def encoded(self, index: int) -> bytes:
        """Raises: BrokenImageError if the shard ends before the image does."""
        row = self.rows[index]
        size = int(self.table.size[row])
        data = _opened(self._shard(index)).read(size, int(self.table.offset[row]))
        if len(data) != size:
            reason = f"only {len(data)} of {size} bytes are there"
            raise BrokenImageError(f"{self.name(index)} cannot be read as an image ({reason})", reason)
        return data

    def subset(self, indices: Tensor) -> "ShardSplit":
        digests = None if self.digests is None else self.digests[indices.numpy()]
        return replace(self, rows=self.rows[indices.numpy()], labels=self.labels[indices], digests=digests)

    def _shard(self, index: int) -> Path:
        return self.shards[self.table.shard[self.rows[index]]]


class _OpenShard:
    """An open file that many threads, and processes forked later, read at any place."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.lock = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer only where the file ends."""
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, offset)
        with self.lock:  # Windows knows only one position of a file
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(_OPEN_SHARDS)
def _opened(path: Path) -> _OpenShard:
    return _OpenShard(path)


def forget_open_shards() -> None:
    """Closes the files that are kept open: a shard of that name may be another one now."""
    _opened.cache_clear()
