"""A lock that one process holds at a time."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class InUseError(ValueError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, say: Callable[[str], object] = lambda message: None) -> Iterator[None]:
    """A lock file that one process holds at a time; gone afterwards, and free again if the process dies.

    Where the file system has no locks nothing is held, which ``say`` gets to know; nor is it on Windows. Raises:
    InUseError if another process holds it.
    """
    with path.open("w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    raise InUseError(f"{path} was given up a moment ago: start again")
        except (BlockingIOError, FileNotFoundError) as error:  # held, or just given up
            raise InUseError(f"{path.parent} is in use by another process") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            consequence = "nothing keeps other runs out, so start no second one there"
            say(f"the file system of {path.parent} has no locks ({error.strerror}): {consequence}")
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps a file that is open
                path.unlink(missing_ok=True)
