"""Files that appear whole or not at all."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path


def replace_files(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write files so that a reader, a crash or a full disk never meets half of one; contents may come in pieces.

    Everything is first written and flushed to the disk under temporary names beside the targets; only then are the
    targets replaced, one by one in the order given. Each changes at once, several do not: make the first stand alone.

    Raises: OSError with the target's name when the disk is full or cannot be written; what stood there is untouched.
    """
    temporary = {target: target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in contents}
    try:
        for target, path in temporary.items():
            content = contents[target]
            try:
                with path.open("wb") as file:
                    file.writelines([content] if isinstance(content, bytes) else content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                reason = f"cannot save, what stood there before is untouched: {error.strerror}"
                raise OSError(error.errno, reason, str(target)) from error
        for target, path in temporary.items():
            path.replace(target)
        for folder in {target.parent for target in temporary}:
            _flush_folder(folder)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)  # in the good case it has become its target


def write_text(file: Path, text: str) -> None:
    """The whole file in UTF-8 or nothing of it. Raises: OSError as ``replace_files``."""
    replace_files({file: text.encode()})


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
