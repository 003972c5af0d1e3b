"""A table of labels, a CSV or Parquet file, whose rows name image files and their classes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ceit.data.labelled import UNSPLIT, LabelledSet
from ceit.data.sources.listing import Listing, load_files
from ceit.data.sources.split_names import split_name

SUFFIXES = frozenset({".csv", ".parquet"})
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "target")
SPLIT_COLUMN = "split"

Columns = dict[str, list[str]]
"""The cells of each column as text, an empty one where there is nothing."""


def load_labels(path: Path, img_size: tuple[int, int] | None, in_chans: int | None, skip_broken: bool) -> LabelledSet:
    """The set whose images a table names, one a row, by paths relative to the table.

    Column ``path`` (or ``file``, ``filename``, ``image``) is the image, ``label`` (``class``, ``target``) its class,
    and ``split``, if there is such a column, ``train``, ``val`` or ``test``. Classes that are all whole numbers are in
    the order of their values. Everything else is as in ``listing.load_files``.

    Raises: as there, and ValueError for a file that is no table, a column that is missing, or an empty cell. A missing
    image counts as one that cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"labels file {path} does not exist")
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    files, labels = (_column(columns, names, path) for names in (PATH_COLUMNS, LABEL_COLUMNS))
    listing = Listing(path.parent, [path.parent / file for file in files], labels)
    order = _value if all(label.isascii() and label.isdigit() for label in labels) else str
    parts = _parts(listing, columns.get(SPLIT_COLUMN), path)
    return load_files(parts, path, img_size, in_chans, skip_broken, order)


def _value(label: str) -> tuple[int, str]:
    return int(label), label


def _parts(listing: Listing, splits: Sequence[str] | None, path: Path) -> dict[str, Listing]:
    if splits is None:
        return {UNSPLIT: listing}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(splits):
        rows.setdefault(split_name(name, f"row {row + 1} of {path}"), []).append(row)
    return {split: listing.take(chosen) for split, chosen in rows.items()}


def _column(columns: Columns, names: Sequence[str], path: Path) -> list[str]:
    name = next((name for name in names if name in columns), None)
    if name is None:
        found = ", ".join(repr(column) for column in columns) or "none"
        raise ValueError(f"{path} has no column {' or '.join(map(repr, names))}: its columns are {found}")
    if "" in columns[name]:
        row = columns[name].index("") + 1
        raise ValueError(f"column {name!r} of {path} is empty in row {row}: fill it in or remove the row")
    if not columns[name]:
        raise ValueError(f"{path} has no rows: it must have one for each image")
    return columns[name]


def _read_csv(path: Path) -> Columns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error})") from error
    header = rows.pop(0) if rows else []
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} of {path} has {len(row)} cells, its header {len(header)}: quote commas")
    cells = [[row[index].strip() for row in rows] for index in range(len(header))]
    return _named(dict(zip(header, cells, strict=True)))


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        known = {*PATH_COLUMNS, *LABEL_COLUMNS, SPLIT_COLUMN}
        wanted = [field for field in schema if field.name.strip().lower() in known]
        if nested := [field.name for field in wanted if pyarrow.types.is_nested(field.type)]:
            advice = f"if the images themselves are in it, say hf:{path.parent}"
            raise ValueError(f"column {nested[0]!r} of {path} holds neither paths nor labels: {advice}")
        table = pyarrow.parquet.read_table(path, columns=[field.name for field in wanted])
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file ({error})") from error
    texts = {
        name: ["" if cell is None else str(cell) for cell in table[name].to_pylist()] for name in table.column_names
    }
    return _named({name: texts.get(name, []) for name in schema.names})


def _named(columns: Mapping[str, list[str]]) -> Columns:
    return {name.strip().lower(): cells for name, cells in columns.items()}
