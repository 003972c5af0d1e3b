"""A lock that one process holds at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None


class InUseError(ValueError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A lock file that one process holds at a time; gone afterwards, and free again if the process dies.

    Raises: InUseError if another process holds it; OSError where the file system has no locks. On Windows nothing is
    held.
    """
    with path.open("w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    raise InUseError(f"{path} was given up a moment ago: start again")
        except (BlockingIOError, FileNotFoundError) as error:  # held, or just given up
            raise InUseError(f"{path.parent} is in use by another process") from error
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps a file that is open
                path.unlink(missing_ok=True)
