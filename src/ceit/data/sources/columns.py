"""A CSV or Parquet file as columns of text: what people's spreadsheets and scripts write, or one sentence."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceit.limits import ROWS, TABLE, read_file

SEPARATORS = ",;\t|"

_HEADER = 1 << 20  # letters in which it begins and ends
_NO_VALUES = frozenset({"nan", "<na>", "#n/a"})  # what pandas and Excel write where there is nothing


@dataclass(frozen=True)
class Columns:
    """The cells of each column as text, an empty one where there is nothing, and their names as they are written."""

    place: Path
    names: Sequence[str]
    cells: Sequence[Sequence[str]]
    rows: Sequence[int]
    """The number of each row in the file, which begins with 1 below the header; rows without any cell are left out."""

    def find(self, names: Sequence[str]) -> list[int]:
        """Which columns are called so, whatever their case, spaces, ``_`` and ``-``, in the order of ``names``."""
        plain = [_plain(name) for name in self.names]
        return [plain.index(name) for name in names if name in plain]

    def filled(self, number: int) -> Sequence[str]:
        """The cells of a column. Raises: ValueError if one is empty, or if there are no rows."""
        cells = self.cells[number]
        if empty := [row for row, cell in zip(self.rows, cells, strict=True) if not cell]:
            where = f"column {self.names[number]!r} of {self.place} is empty in row {empty[0]}"
            raise ValueError(f"{where}: fill it in or remove the row")
        if not cells:
            raise ValueError(f"{self.place} has no rows: it must have one for each image")
        return cells


def read_columns(path: Path, required: Sequence[Sequence[str]], known: Sequence[str] = ()) -> Columns:
    """The columns of a Parquet file, or of a CSV file in UTF-8 or UTF-16.

    Of each group in ``required`` one column must be there, so the separator of a CSV file, a comma, semicolon, tab or
    bar, is the one that makes its header so. Of a Parquet file columns of no text that are not ``known`` are empty.

    Raises: ValueError for a file that is none, two known columns of one name, rows with more cells than the header has,
    and columns that hold neither text nor numbers.
    """
    names = [name for group in (*required, known) for name in group]
    return _read_parquet(path, names) if path.suffix.lower() == ".parquet" else _read_csv(path, required, names)


def _read_csv(path: Path, required: Sequence[Sequence[str]], known: Sequence[str]) -> Columns:
    text = re.sub(r"\Asep=.\r?\n", "", _text(path))  # Excel's own first line
    try:
        headers = {separator: set(map(_plain, _header(text, separator))) for separator in SEPARATORS}
        fitting = (sep for sep in SEPARATORS if all(headers[sep] & set(group) for group in required))
        separator = next(fitting, SEPARATORS[0])
        rows = list(enumerate(_rows(text, separator, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}): look for a quote that is not closed") from error
    filled = [(number, [cell.strip() for cell in row]) for number, row in rows if _is_filled(row)]
    start, header = filled.pop(0) if filled else (0, [])
    _refuse_twins(path, header, known)
    for number, row in filled:
        row += [""] * (len(header) - len(row))  # Excel leaves out separators of empty cells at the end
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) != len(header):
            cells = f"row {number - start} of {path} has {len(row)} cells, its header {len(header)}"
            raise ValueError(f"{cells}: put cells that hold {separator!r} in quotes")
    cells = [[as_text(row[index]) for _, row in filled] for index in range(len(header))]
    return Columns(path, header, cells, [number - start for number, _ in filled])


def _rows(text: str, separator: str, strict: bool = False) -> Iterator[list[str]]:
    """The rows of a CSV file; a quote after a blank opens a cell in quotes, too."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)


def _header(text: str, separator: str) -> list[str]:
    """The first row that holds anything; the rest of a large table is not looked at."""
    return next(filter(_is_filled, _rows(text[:_HEADER], separator)), [])


def _read_parquet(path: Path, known: Sequence[str]) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        _refuse_twins(path, [name.strip() for name in schema.names], known)
        wanted = [field for field in schema if _plain(field.name) in known]
        if nested := [field.name for field in wanted if pyarrow.types.is_nested(field.type)]:
            advice = f"if the images themselves are in it, say hf:{path.parent}"
            raise ValueError(f"column {nested[0]!r} of {path} holds neither paths nor labels: {advice}")
        read = [field.name for field in schema if field in wanted or _is_text(field.type)]
        read = [name for name in read if schema.names.count(name) == 1]
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        ROWS.require(sum(group.num_rows for group in groups), path)
        TABLE.require(sum(group.total_byte_size for group in groups), path)
        table = pyarrow.parquet.read_table(path, columns=read)
        rows = table.num_rows
        cells = [[as_text(c) for c in table[n].to_pylist()] if n in read else [""] * rows for n in schema.names]
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:  # of pyarrow, or of text that is none
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is no Parquet file ({' '.join(str(error).split())})") from error
    return Columns(path, [name.strip() for name in schema.names], cells, range(1, rows + 1))


def _refuse_twins(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    for name in known:
        if len(same := [written for written in names if _plain(written) == name]) > 1:
            listed = " and ".join(map(repr, same))
            raise ValueError(f"{path} has {len(same)} columns called {name!r}, {listed}: keep one of them")


def _text(path: Path) -> str:
    data = read_file(path, TABLE)
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds zero bytes")
    except ValueError as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}): save it as CSV UTF-8") from error
    return text


def _is_filled(row: Sequence[str]) -> bool:
    return any(map(str.strip, row))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def as_text(value: Any) -> str:
    """A cell as text without spaces around it, empty where there is nothing."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "" if value is None or text.strip().lower() in _NO_VALUES else text.strip()


def _is_text(type_: Any) -> bool:
    import pyarrow

    inner = type_.value_type if pyarrow.types.is_dictionary(type_) else type_
    return pyarrow.types.is_string(inner) or pyarrow.types.is_large_string(inner)
