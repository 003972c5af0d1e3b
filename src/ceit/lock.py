"""A lock that one process holds at a time."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, 524)
"""The last is the kernel's own ENOTSUPP, which some network file systems let through."""
_TURN_SECONDS = 0.5  # between two looks at whether another process is done


class InUseError(ValueError):
    """Another process holds the lock."""


def take(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file until it is closed, unless another process has; whether it is locked now.

    With ``wait``, as soon as the other lets go. On Windows and where the file system has no locks nothing is. Raises:
    OSError if the lock fails for any other reason.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def locked(path: Path, say: Callable[[str], object] = lambda message: None) -> Iterator[None]:
    """A lock file that one process holds at a time; gone afterwards, and free again if the process dies.

    Where the file system has no locks nothing is held, which ``say`` gets to know. Raises: InUseError if another
    process holds it.
    """
    if fcntl is None:
        with _locked_on_windows(path):
            yield
        return
    with path.open("w") as lock, _of_this_process(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                raise InUseError(f"{path} was given up a moment ago: start again")
        except (BlockingIOError, FileNotFoundError) as error:  # held, or just given up
            raise InUseError(_in_use(path)) from error
        except OSError as error:
            if error.errno == errno.ESTALE:  # as above, on a network drive
                raise InUseError(_in_use(path)) from error
            if error.errno not in _NO_LOCKS:
                raise
            consequence = "nothing keeps other runs out, so start no second one there"
            say(f"the file system of {path.parent} has no locks ({error.strerror}): {consequence}")
        try:
            yield
        finally:
            with suppress(PermissionError):  # of a folder that takes no more changes
                path.unlink(missing_ok=True)


@contextmanager
def _locked_on_windows(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InUseError(_in_use(path)) from error
    try:
        yield
    finally:
        lock.release()


def _in_use(path: Path) -> str:
    return f"{path.parent} is in use by another process"


_held: set[IO[Any]] = set()


@contextmanager
def _of_this_process(lock: IO[Any]) -> Iterator[None]:
    """A forked process has this file open too, and would keep the lock when the one that took it has been killed."""
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)


def _let_go() -> None:
    while _held:
        _held.pop().close()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked_in_turn(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """As ``locked``, once no other process holds it; ``say`` is told if there is one to wait for."""
    with ExitStack() as stack:
        is_told = False
        while True:
            try:
                stack.enter_context(locked(path, say))
                break
            except InUseError:
                if not is_told:
                    say(f"another process holds {path}: waiting for it")
                is_told = True
                time.sleep(_TURN_SECONDS)
        yield
