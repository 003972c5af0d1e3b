"""Many paths as two arrays: a million objects would take 400 MB, and reading processes would copy them page by page."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class PathArray:
    """Paths in order: their bytes after one another, uint8, and where each of the n ends, int64 ``(n,)``."""

    encoded: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, paths: Iterable[str | Path]) -> "PathArray":
        """These paths."""
        return cls._of_bytes(list(map(os.fsencode, paths)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def __iter__(self) -> Iterator[Path]:
        return map(self.__getitem__, range(len(self)))

    def text(self, index: int) -> str:
        """``str(self[index])``."""
        return os.fsdecode(self._bytes(index))

    def take(self, indices: Sequence[int]) -> "PathArray":
        """The paths at ``indices``, in that order."""
        return self._of_bytes(list(map(self._bytes, indices)))

    @classmethod
    def _of_bytes(cls, parts: list[bytes]) -> "PathArray":
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def _bytes(self, index: int) -> bytes:
        index = range(len(self))[index]  # counted from the end, or refused, as in a list
        return self.encoded[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()
