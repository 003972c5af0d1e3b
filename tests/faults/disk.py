"""A disk that fails at a chosen moment, for the process that asks for it.

Whatever Python code writes under a folder is counted: files made, pieces written, flushes, renames, removals. At the
chosen one, and where that is how disks behave at all later ones, it goes wrong.
"""

import builtins
import errno
import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Trouble = Literal["killed", "disk full", "disk read-only", "disk broken"]
ERRNO = {"disk full": errno.ENOSPC, "disk read-only": errno.EROFS, "disk broken": errno.EIO}
_WATCHED = {"mkdir": "mkdir", "fsync": "flush", "replace": "rename", "rename": "rename"}
_WATCHED |= dict.fromkeys(("unlink", "remove", "rmdir"), "remove")
NEEDS_SPACE = ("write", "flush", "mkdir")  # what a full disk refuses: names of empty files still find room


@dataclass
class Disk:
    """``moments`` counts what was done under ``folder`` so far. The ``at``-th, from 0, meets the trouble."""

    folder: Path
    trouble: Trouble | None = None
    at: int = 0
    record: Path | None = None
    """A file, elsewhere, that gets a line for every moment."""
    moments: int = 0

    def install(self) -> None:
        """For the rest of this process."""
        builtins.open = io.open = self._open
        for name, what in _WATCHED.items():
            self._watch(name, what)

    def happens(self, what: str) -> bool:
        """Count a moment; whether it is to go wrong."""
        if self.record:
            with _REAL_OPEN(self.record, "a", encoding="ascii") as file:
                file.write(f"{what}\n")
        self.moments += 1
        if self.trouble is None or self.moments <= self.at:
            return False
        return self.trouble != "disk full" or what in NEEDS_SPACE

    @property
    def is_at_it(self) -> bool:
        """Whether the last moment was the first that went wrong."""
        return self.moments == self.at + 1

    def go_wrong(self, path: str) -> None:
        """Ends the process, or raises what the system would."""
        assert self.trouble is not None
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        number = ERRNO[self.trouble]
        raise OSError(number, os.strerror(number), path)

    def holds(self, path: object) -> bool:
        """Whether it lies in the folder."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return isinstance(path, str | os.PathLike) and Path(os.path.abspath(path)).is_relative_to(self.folder)

    def _watch(self, name: str, what: str) -> None:
        real = getattr(os, name)

        def watched(*paths: Any, **options: Any) -> Any:
            place = paths[1 if what == "rename" else 0]
            if self.holds(place) and self.happens(what):
                self.go_wrong(str(place))
            return real(*paths, **options)

        setattr(os, name, watched)

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or not self.holds(file):
            return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int) and self.happens("create"):
            self.go_wrong(str(file))
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if "b" in mode and buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


class _Raw(io.FileIO):
    """Half of the piece that meets the trouble is written, which the system tells by a smaller number of bytes."""

    def __init__(self, disk: Disk, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        super().__init__(file, mode, closefd, opener)
        self._disk = disk

    def write(self, data: Any) -> int:
        if not self._disk.happens("write"):
            return super().write(data)
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        written = super().write(half) if half and self._disk.is_at_it else 0
        if not written or self._disk.trouble == "killed":
            self._disk.go_wrong(str(self.name))
        return written


_REAL_OPEN = io.open
