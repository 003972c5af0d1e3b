"""A table of labels, a CSV or Parquet file, whose rows name image files and their classes."""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from ceit.data.labelled import UNSPLIT, LabelledSet
from ceit.data.sources.class_names import class_name, remarks_of_look_alikes
from ceit.data.sources.columns import Columns, read_columns
from ceit.data.sources.listing import Listing, load_files, shown_path
from ceit.data.sources.load_options import LoadOptions
from ceit.data.sources.split_names import split_name, split_of

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
PATH_COLUMNS = ("path", "file", "filename", "filepath", "image")
LABEL_COLUMNS = ("label", "class", "target")
SPLIT_COLUMN = "split"
VALID_COLUMN = "isvalid"  # of fastai: True or False

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # of files


def load_labels(path: Path, options: LoadOptions) -> LabelledSet:
    """The set whose images a table names, one a row, by paths relative to the table.

    Column ``path`` (or ``file``, ``filename``, ``filepath``, ``image``) is the image, ``label`` (``class``, ``target``)
    its class, and ``split``, or another one of names of parts, its part, called as folders of splits are; else
    ``is_valid`` sets True apart for validation. Classes that are all whole numbers are in the order of their values.
    Everything else is as in ``listing.load_files``.

    Raises: as there, and ValueError for a file that is no table, a column that is missing, an empty cell, a part of no
    usual name, paths that are none of this machine, and an image of two classes or parts. A missing image counts as one
    that cannot be read, unless one file's path differs in the case of letters alone, as for Windows it does not.
    """
    if not path.is_file():
        raise ValueError(f"labels file {path} does not exist")
    remarks: list[str] = []
    table = read_columns(path, (PATH_COLUMNS, LABEL_COLUMNS), (SPLIT_COLUMN, VALID_COLUMN))
    used = [_column(table, names, remarks) for names in (PATH_COLUMNS, LABEL_COLUMNS)]
    files, labels = (table.filled(number) for number in used)
    labels = _numbers(list(map(class_name, labels)))
    splits = _splits(table, used, remarks)
    written = [_place(table, row, file) for row, file in zip(table.rows, files, strict=True)]
    places = _as_they_lie(table, written, remarks)
    kept = _distinct(table, places, labels, splits, remarks)
    wanted = [places[i] for i in kept if options.classes is None or labels[i] in options.classes]
    if wanted and not any(map(os.path.exists, wanted)):
        none = f"none of the {len(wanted):,} images of {path} is there, {wanted[0]} for one"
        fix = "paths are relative to the folder of the table and end with the suffix of the file"
        raise ValueError(f"{none}: {fix}")
    remarks += remarks_of_look_alikes(set(labels))
    listing = Listing(path.parent, places, labels)
    parts = {split: listing.take(i for i in kept if splits[i] == split) for split in dict.fromkeys(splits)}
    are_numbers = all(re.fullmatch("-?[0-9]+", label) for label in labels)
    order = (lambda label: (int(label), label)) if are_numbers else str
    return load_files(parts, path, options, order, remarks)


def _column(table: Columns, names: Sequence[str], remarks: list[str]) -> int:
    found = table.find(names)
    if not found:
        wanted, columns = " or ".join(map(repr, names)), ", ".join(map(repr, table.names)) or "none"
        fix = f"its columns are {columns}; rename the one that is meant"
        raise ValueError(f"{table.place} has no column {wanted}: {fix}")
    if len(found) > 1:
        taken, *others = [repr(table.names[number]) for number in found]
        remarks.append(f"column {taken} of {table.place.name} is taken, not {' or '.join(others)}")
    return found[0]


def _splits(table: Columns, used: Sequence[int], remarks: list[str]) -> list[str]:
    """The part of each row, out of the column of that name, or out of another one that holds parts."""
    found = table.find([SPLIT_COLUMN]) or _split_column(table, used, remarks)
    if not found:
        return _valid_splits(table, remarks) or [UNSPLIT] * len(table.rows)
    cells = table.filled(found[0])
    return [split_name(cell, f"row {row} of {table.place}") for row, cell in zip(table.rows, cells, strict=True)]


def _valid_splits(table: Columns, remarks: list[str]) -> list[str]:
    """The part of each row as fastai's tables tell it; none where no column does."""
    if not (found := table.find([VALID_COLUMN])):
        return []
    name, part_of = table.names[found[0]], {"true": "validation", "1": "validation", "false": "train", "0": "train"}
    for row, cell in zip(table.rows, cells := table.filled(found[0]), strict=True):
        if cell.lower() not in part_of:
            fix = "write True for validation, False for train, or remove the column"
            raise ValueError(f"column {name!r} of {table.place} has {cell!r} in row {row}: {fix}")
    remarks.append(f"column {name!r} of {table.place.name} tells the parts: True is validation, False is train")
    return [part_of[cell.lower()] for cell in cells]


def _split_column(table: Columns, used: Sequence[int], remarks: list[str]) -> list[int]:
    """The column under another name that has the parts: more than half of its filled cells name them, not all alike.

    Raises: ValueError, with the row, if one of its cells does not.
    """
    candidates: dict[int, list[str | None]] = {}
    for number, cells in enumerate(table.cells):
        parts = list(map(split_of, cells)) if number not in used else []
        if len(set(parts)) > 1 and 2 * sum(part is not None for part in parts) > sum(map(bool, cells)):
            candidates[number] = parts
    if not candidates:
        return []
    number = min(candidates, key=lambda number: None in candidates[number])
    name, parts = table.names[number], candidates[number]
    if None in parts:
        strange, row = table.cells[number][parts.index(None)], table.rows[parts.index(None)]
        fix = "write train, validation or test, or remove the column if it tells no parts"
        raise ValueError(f"column {name!r} of {table.place} names parts, but has {strange!r} in row {row}: {fix}")
    remarks.append(f"column {name!r} of {table.place.name} tells the parts")
    return [number]


def _numbers(labels: list[str]) -> list[str]:
    """Labels that are all whole numbers without a point: pandas writes 1.0 for 1 where another number was missing."""
    if not all(re.fullmatch(r"-?[0-9]+(\.0+)?", label) for label in labels):
        return labels
    return [str(int(label.partition(".")[0])) if "." in label else label for label in labels]


def _place(table: Columns, row: int, file: str) -> Path:
    """Where the image of a row is: as it is written, else with other separators or another form of accents."""
    advice = f"row {row} of {table.place} names {file}"
    if re.match(r"\w+://", file):
        raise ValueError(f"{advice}, an address: download the images and name the files")
    if max(map(len, re.split(r"[\\/]", file))) > _LONGEST_NAME or len(file) > _LONGEST_PATH:
        what = f"row {row} of {table.place} has {file[: _LONGEST_NAME // 8]}... in its column of paths"
        raise ValueError(f"{what}, which is too long for a path: name files")
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", file):
        raise ValueError(f"{advice}, a path of another machine: write paths relative to the folder of the table")
    folder, file = table.place.parent, os.path.expanduser(file)
    if file.isascii() and "\\" not in file:
        return folder / file
    spellings = (file, file.replace("\\", "/"), *(unicodedata.normalize(form, file) for form in ("NFC", "NFD")))
    return next((path for spelling in spellings if os.path.exists(path := folder / spelling)), folder / spellings[1])


def _as_they_lie(table: Columns, places: Sequence[Path], remarks: list[str]) -> list[Path]:
    """The places, where nothing lies there as the one file whose path differs in the case of letters alone."""
    names_in = cache(_names_in)  # each folder is listed once
    found = [place if os.path.exists(place) else _in_other_case(place, names_in) or place for place in places]
    if others := [pair for pair in zip(places, found, strict=True) if pair[0] != pair[1]]:
        written, lying = (shown_path(place, table.place) for place in others[0])
        rows = f"{len(others):,} rows of {table.place.name}"
        remarks.append(f"{rows} name an image in another case of letters, {written} for {lying}: it is taken")
    return found


def _in_other_case(path: Path, names_in: Callable[[Path], dict[str, list[str]]]) -> Path | None:
    """What there is under another case of letters, in the folders' names too; None for nothing, or for several."""
    if path.parent == path:
        return None
    folder = path.parent if os.path.isdir(path.parent) else _in_other_case(path.parent, names_in)
    names = names_in(folder).get(class_name(path.name).casefold(), []) if folder else []
    return folder / names[0] if folder and len(names) == 1 else None


def _names_in(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by what they are without case; none of one that cannot be listed."""
    names: dict[str, list[str]] = {}
    with suppress(OSError):  # whoever reads the image says why it cannot be
        for name in os.listdir(folder):
            names.setdefault(class_name(name).casefold(), []).append(name)
    return names


def _distinct(
    table: Columns, places: Sequence[Path], labels: Sequence[str], splits: Sequence[str], remarks: list[str]
) -> list[int]:
    """The rows that name an image for the first time. Raises: ValueError for one of two classes or in two parts."""
    first: dict[str, int] = {}
    for number, place in enumerate(places):
        before = first.setdefault(os.path.normpath(place), number)
        for values in (labels, splits):
            if values[before] != values[number]:
                rows = f"rows {table.rows[before]} and {table.rows[number]} of {table.place}"
                as_both = f"as {values[before]!r} and as {values[number]!r}"
                raise ValueError(f"{rows} name the same image, {place.name}, {as_both}: remove one")
    if again := len(places) - len(first):
        remarks.append(f"{again:,} rows of {table.place.name} name an image again: it counts once")
    return list(first.values())
