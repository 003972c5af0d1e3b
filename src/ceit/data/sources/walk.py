"""A folder as every verb sees it: the same images in the same order, and a count of what is passed over."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ceit.data.image import is_image_name, sniff

SYSTEM_FOLDERS = frozenset(
    # Of archives made on a Mac, thumbnails on a disk station, and what was deleted or found again.
    ("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information")
)
"""Folders that a system makes beside people's own, in lower case; others that it makes begin with a dot."""
SYSTEM_FILES = frozenset({".ds_store", ".directory", "desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"})
"""Files that a system leaves in people's folders, in lower case; a Mac's ``._NAME`` is another."""


def is_of_the_system(name: str) -> bool:
    """Whether a file of this name is one that a system leaves in people's folders."""
    return name.startswith("._") or name.lower() in SYSTEM_FILES


HOW_TO_READ: Mapping[str, str] = dict.fromkeys((".heic", ".heif", ".hif"), " (install pillow-heif to read them)")
_NOT_OF_SUFFIXES = frozenset("!?&=@:, ")
_SIZES_OF_SITES = tuple(f"{joint}{size}" for joint in "_-" for size in ("large", "medium", "small", "thumb"))
_NAMED_KINDS = 6  # of what was passed over, in one line


class EmptyFolderError(ValueError):
    """A folder without images."""


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of images and of folders, listed when it is first asked, and once; ``open_folder`` makes it.

    Images are files with the name of one, and files without a suffix that hold one. Links are followed, except back to
    a folder above. A link that leads nowhere is an image if its name says so: whoever reads it names it. Hidden files,
    hidden folders and ``SYSTEM_FOLDERS`` are passed over, as are files of other kinds, and counted, except
    ``SYSTEM_FILES``, which nobody misses.
    """

    path: Path
    passed_over: Counter[str]  # by kind, of everything that was listed so far in the folder that was opened
    above: frozenset[tuple[int, int]]  # this folder and all that hold it, as the file system numbers them

    @property
    def name(self) -> str:
        """As it stands in the folder above, also where it is a link."""
        return self.path.name

    @property
    def images(self) -> list[Path]:
        """The images that lie in it directly, in the order of their names. Raises: as ``walk``."""
        return [entry for entry in self._entries if isinstance(entry, Path)]

    @property
    def folders(self) -> list["Folder"]:
        """The folders that lie in it directly, in the order of their names. Raises: as ``walk``."""
        return [entry for entry in self._entries if isinstance(entry, Folder)]

    @property
    def filled(self) -> list["Folder"]:
        """The folders that lie in it directly and hold an image, somewhere. Raises: as ``walk``."""
        return [folder for folder in self.folders if any(folder.walk())]

    def walk(self, unlisted: list[str] | None = None) -> Iterator[Path]:
        """All images in it and below it, in the order of their names.

        With ``unlisted``, which takes a sentence on each, a folder that cannot be listed comes itself, in place of its
        images: whoever reads it names it. Raises: without, ValueError for such a folder.
        """
        try:
            entries = self._entries
        except ValueError as error:
            if unlisted is None:
                raise
            unlisted.append(str(error))
            yield self.path
            return
        for entry in entries:
            if isinstance(entry, Folder):
                yield from entry.walk(unlisted)
            else:
                yield entry

    @cached_property
    def _entries(self) -> list["Path | Folder"]:
        try:
            with os.scandir(self.path) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise _cannot_be_listed(self.path, error) from error
        return [kept for entry in entries if (kept := self._kept(entry)) is not None]

    def _kept(self, entry: os.DirEntry[str]) -> "Path | Folder | None":
        name, is_folder = entry.name, _is_folder(entry)
        if is_folder and not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS:
            return self._entered(entry)
        if not is_folder and not name.startswith(".") and _is_image(entry):
            return Path(entry.path)
        if is_folder or not is_of_the_system(name):
            self.passed_over[_kind(entry, is_folder)] += 1
        return None

    def _entered(self, entry: os.DirEntry[str]) -> "Folder | None":
        try:
            stat = os.stat(entry.path)
        except OSError as error:
            raise _cannot_be_listed(entry.path, error) from error
        if stat.st_ino and _number(stat) in self.above:  # it would go round in circles
            self.passed_over["linked to a folder above"] += 1
            return None
        return Folder(Path(entry.path), self.passed_over, self.above | {_number(stat)})


def open_folder(path: str | Path) -> Folder:
    """The folder at ``path``. Raises: ValueError if it is not there or cannot be entered."""
    try:
        place = Path(path).resolve(strict=True)
        above = frozenset(_number(os.stat(folder)) for folder in (place, *place.parents))
    except OSError as error:
        raise _cannot_be_listed(path, error) from error
    return Folder(Path(path), Counter(), above)


def image_files(path: str | Path, unlisted: list[str] | None = None) -> tuple[list[Path], str]:
    """All images of a folder whose classes nobody asks for, and what was passed over, a line or nothing.

    Raises: EmptyFolderError for a folder that has none; ValueError as ``open_folder`` and ``Folder.walk``.
    """
    folder = open_folder(path)
    files, line = list(folder.walk(unlisted)), passed_over_line(folder.passed_over)
    if not files:
        raise EmptyFolderError(f"folder {path} holds no images{f' ({line})' if line else ''}")
    return files, line


def passed_over_line(counts: Mapping[str, int]) -> str:
    """``passed over: 12 .txt, 3 hidden``, the most frequent kinds first; empty if there was nothing."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count:,} {kind}{HOW_TO_READ.get(kind, '')}" for kind, count in ordered[:_NAMED_KINDS]]
    if others := sum(count for _, count in ordered[_NAMED_KINDS:]):
        kinds.append(f"{others:,} of other kinds")
    return f"passed over: {', '.join(kinds)}" if kinds else ""


def printable(name: str) -> str:
    """A file's name as it can be written in any message: bytes that are no UTF-8 are shown as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _number(stat: os.stat_result) -> tuple[int, int]:
    """The same for every path to a folder."""
    return stat.st_dev, stat.st_ino


def _cannot_be_listed(path: str | Path, error: OSError) -> ValueError:
    fix = "make it readable or remove it"
    if error.errno in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN):  # of drives
        fix = "try again, or copy the folder to a local disk"
    return ValueError(f"folder {path} cannot be listed ({error.strerror or error}): {fix}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be entered
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    try:
        return _may_be_read(entry) and (is_image_name(name) or (not _suffix(name) and sniff(Path(entry.path))))
    except OSError:
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """False for pipes, sockets and devices, at which a reader would wait for ever."""
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:  # a link that leads nowhere
        return True


def _suffix(name: str) -> str:
    """In lower case; ``scan.2``, ``photo.jpg!d``, ``photo.jpg?width=300`` and ``photo.jpg_large`` have none."""
    suffix = os.path.splitext(name)[1].lower()
    is_one = any(map(str.isalpha, suffix)) and not set(suffix) & _NOT_OF_SUFFIXES
    return suffix if is_one and not suffix.endswith(_SIZES_OF_SITES) else ""


def _kind(entry: os.DirEntry[str], is_folder: bool) -> str:
    """What is passed over, as it is counted."""
    if is_folder:
        return f"{printable(entry.name)}/"
    if entry.name.startswith("."):
        return "hidden"
    if not os.path.exists(entry.path):
        return f"link to nowhere ({printable(entry.name)})"
    return (printable(_suffix(entry.name)) or "without suffix") if _may_be_read(entry) else "pipe or device"
