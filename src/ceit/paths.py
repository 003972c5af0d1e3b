"""Paths as people write them."""

import glob
import os
from argparse import ArgumentTypeError
from pathlib import Path, PurePath, PureWindowsPath


class PathError(ArgumentTypeError, ValueError):
    """A path that names nothing: none, or one in a home directory that is not known. A command line's parser shows its
    words, too."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` or ``~user`` at its beginning as the home directory that it stands for.

    A shell does this only at the beginning of a word: not in ``--output=~/run``, and nobody does it in a recipe. A file
    that is there and called ``~name`` after no user, as some editors call their copies, is that file, and ``./~name``
    is always the file of this name. What comes out stays the same when it is expanded again.

    Raises: PathError, a ValueError, for a home directory that is not known, and for no path at all, as a variable that
    is not set leaves it.
    """
    if not os.fspath(path):
        raise PathError("a path is empty: name one, or . for the folder that this is called in")
    plain = Path(path)
    if not plain.parts or not plain.parts[0].startswith("~"):
        return plain
    if os.fspath(path).startswith("~"):
        if os.name == "nt" and plain.parts[0] != "~" and os.path.lexists(plain):
            return plain.absolute()  # Windows knows a home directory for every name
        try:
            return plain.expanduser()
        except RuntimeError as error:
            user = plain.parts[0][1:]
            if not user:
                fix = "set HOME, or write the whole path"
                raise PathError(f"{plain}: the home directory is not known; {fix}") from error
            if not os.path.lexists(plain):
                raise PathError(f"{plain}: there is no user {user!r}; a file of this name is ./{plain}") from error
    return plain.absolute()


def matching(path: str) -> list[str]:
    """What a path with ``*`` or ``?`` stands for, which the shells of Windows leave to the command; else the path."""
    is_pattern = os.name == "nt" and bool({*path} & {*"*?"})
    pattern = os.path.expanduser(path).replace("[", "[[]")  # of a name there, not of a pattern
    return (sorted(glob.glob(pattern)) if is_pattern else []) or [path]


def last_part(path: str) -> str:
    """The name at the end of a path, which a run on another system may have written down."""
    of_windows = PureWindowsPath(path)
    return (of_windows.name if of_windows.is_absolute() else PurePath(path).name) or path


def require_utf8(path: Path) -> None:
    """For a file of libraries that take no other names. Raises: ValueError naming what to rename."""
    for part in (*reversed(path.parents), path):
        if any("\ud800" <= letter <= "\udfff" for letter in part.name):
            raise ValueError(f"the name {os.fsencode(part.name)!r} in {path.parent} is not UTF-8: rename it")
