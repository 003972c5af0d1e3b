"""Files that appear whole or not at all."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files so that a reader, a crash or a full disk never meets half of one.

    Everything is first written and flushed to the disk under temporary names beside the targets; only then are the
    targets replaced, one by one in the order given. Each file changes at once, several do not: make the first one
    stand alone. Raises: OSError with the target's name when the disk is full or cannot be written; what stood there
    before is untouched.
    """
    temporary = {target: target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in contents}
    target = next(iter(temporary))
    try:
        for target, path in temporary.items():
            with path.open("wb") as file:
                file.write(contents[target])
                file.flush()
                os.fsync(file.fileno())
        for target, path in temporary.items():
            path.replace(target)
        for folder in {target.parent for target in temporary}:
            _flush_folder(folder)
    except OSError as error:
        reason = f"cannot save, what stood there before is untouched: {error.strerror}"
        raise OSError(error.errno, reason, str(target)) from error
    finally:
        for path in temporary.values():
            with suppress(FileNotFoundError):  # the good case: it has become its target
                path.unlink()


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows has nothing to flush there
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
