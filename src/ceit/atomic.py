"""Files that appear whole or not at all."""

import errno
import glob
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from ceit.lock import take

if TYPE_CHECKING:
    import numpy as np

Result = TypeVar("Result")
logger = logging.getLogger("ceit")
_PATIENCE_SECONDS, _TOLD_SECONDS, _BETWEEN_SECONDS = 60.0, 3.0, 0.1
"""A program may look at a file for as long; after which it is told; between two tries."""


def replace_files(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write files so that a reader, a crash or a full disk never meets half of one; contents may come in pieces.

    Everything is first written and flushed to the disk under temporary names beside the targets; only then are the
    targets replaced, one by one in the order given. Each changes at once, several do not: make the first stand alone.
    What a process that was killed has left under such a name goes, where the file system has locks.

    Raises: OSError with the target's name when the disk is full or cannot be written; what stood there is untouched.
    """
    temporary: dict[Path, Path] = {}
    try:
        with ExitStack() as stack:  # a file that is open is locked, so that nobody takes it for a left-over
            for target, content in contents.items():
                try:
                    _remove_left_overs(target)
                    path = temporary[target] = target.with_name(f".{target.name}.{_mark()}.tmp")
                    file = _locked(path)
                    stack.callback(close_flushed, file)
                    file.writelines([content] if isinstance(content, bytes) else content)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise _not_saved(target, error) from error
                if os.name == "nt":
                    file.close()  # Windows gives no other name to a file that is open
            for target, path in temporary.items():
                try:
                    move(path, target)
                except OSError as error:
                    raise _not_saved(target, error) from error
        for folder in {target.parent for target in temporary}:
            _flush_folder(folder)
    finally:
        for path in temporary.values():
            with suppress(OSError):  # a disk that is read-only by now; the failure that led here is the one to tell
                path.unlink(missing_ok=True)  # in the good case it has become its target


def _not_saved(target: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot save, what stood there before is untouched: {error.strerror}", str(target))


def move(path: Path, target: Path) -> None:
    """Give a file or a folder another name on the same disk, where a file may stand. Raises: OSError."""
    patiently(lambda: os.replace(path, target))


def remove(file: Path) -> None:
    """Raises: OSError, but not for a file that is not there."""
    patiently(lambda: file.unlink(missing_ok=True))


def append(file: Path, text: str) -> None:
    """Write at the end of a file, in UTF-8. Raises: OSError with its name."""
    with naming(file), patiently(lambda: file.open("a", encoding="utf-8")) as stream:
        stream.write(text)


def patiently(act: Callable[[], Result]) -> Result:
    """On Windows a virus scanner, an indexer or the client of a cloud opens files for a moment, which then cannot be
    renamed, removed or written: it is tried again, for a minute. Raises: what the last try raised."""
    began, is_told = time.monotonic(), False
    while True:
        try:
            return act()
        except PermissionError as error:
            waited = time.monotonic() - began
            if waited >= (_PATIENCE_SECONDS if os.name == "nt" else 0):
                raise
            if waited > _TOLD_SECONDS and not is_told:
                logger.warning("another program holds %s: trying again for a minute", error.filename)
                is_told = True
        time.sleep(_BETWEEN_SECONDS)


def _mark() -> str:
    """Of this process and thread: no two write the same temporary file."""
    return f"{os.getpid()}-{threading.get_ident()}"


def _locked(path: Path) -> IO[bytes]:
    """A new file that no other process removes as a left-over: one may have done so just before it was locked."""
    while True:
        file = path.open("wb")
        if not take(file, wait=True) or _is_at(path, file):
            return file
        file.close()


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # gone, on a network drive
            raise
    return False


def _remove_left_overs(target: Path) -> None:
    """Temporary files of processes that were killed while they wrote this target: nobody holds them any more."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+(-\d+)?\.tmp")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if ours.fullmatch(path.name) and path.is_file():
            with suppress(OSError), path.open("r+b") as file:  # to be locked on NFS, it must be open for writing
                if take(file) and _is_at(path, file):  # else it has its own name by now, and another writes here
                    path.unlink()


def write_text(file: Path, text: str) -> None:
    """The whole file in UTF-8 or nothing of it, bytes of a name that is no UTF-8 as ``\\udce9``.

    Raises: OSError as ``replace_files``.
    """
    replace_files({file: text.encode(errors="backslashreplace")})


def write_array(file: Path, array: "np.ndarray") -> None:
    """A file as of ``np.save``, whose error does not say that the disk is full; flushed. Raises: OSError, named."""
    from numpy.lib import format as npy

    with naming(file), file.open("wb") as stream:
        ordered = array if array.flags.c_contiguous else array.copy()
        npy.write_array_header_1_0(stream, npy.header_data_from_array_1_0(ordered))
        stream.write(ordered.data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """For a block that writes to an open file: the system's errors name it no more. Raises: OSError with its name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def close_flushed(file: IO[Any]) -> None:
    """Close a file that was flushed. What a full disk refused then is tried again by closing, and told already."""
    with suppress(OSError):
        file.close()


def require_place(file: Path) -> None:
    """Asked before long work whose result goes to ``file``. Raises: ValueError if no such file could be written."""
    if not file.parent.is_dir():
        raise ValueError(f"{file} cannot be written: there is no folder {file.parent}")
    if file.is_dir():
        raise ValueError(f"{file} cannot be written: it is a folder; name a file in it")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"{file} cannot be written: folder {file.parent} takes no new files; name another")


def _flush_folder(folder: Path) -> None:
    """Make the new names last as the contents do, where the system can: not on Windows, nor on some network drives."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
