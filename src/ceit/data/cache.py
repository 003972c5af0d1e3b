"""What is kept between runs: where it lies, and what tells that a file has not changed since."""

import os
from contextlib import suppress
from pathlib import Path

from ceit.atomic import replace_files
from ceit.paths import PathError, expanded


class NoCacheError(OSError):
    """Nobody knows where to keep anything: what would only save time goes on without."""


def cache_dir() -> Path:
    """``$CEIT_DATA``, or ``~/.cache/ceit``. Raises: NoCacheError where that is in no known home directory."""
    asked = os.environ.get("CEIT_DATA")
    try:
        return expanded(asked or "~/.cache/ceit")
    except PathError as error:
        reason = f"CEIT_DATA is {asked}, and {error}" if asked else "the home directory is not known"
        raise NoCacheError(f"there is no place to keep data sets in: {reason}; set CEIT_DATA to a folder") from error


def recall(name: str) -> str | None:
    """The text that was kept under a name, such as ``checked/0123.json``; None if there is none to be had."""
    try:
        return (cache_dir() / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # it is found anew
        return None


def keep(name: str, text: str) -> None:
    """Keeps a text for later runs. A cache that cannot be written costs them the time to find it anew, no more."""
    with suppress(OSError):
        place = cache_dir() / name
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_files({place: text.encode()})


def file_state(path: str | Path) -> str:
    """A line that changes when the file does; of a missing one, its place.

    Place, size, and the times at which content and entry were last changed: the second also when the file is put in
    another's place. Not the inode, which many network drives and FAT drives number anew at each mount.
    """
    place = os.path.abspath(path)
    try:
        stat = os.stat(place)
    except OSError:
        return place
    return f"{place}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
