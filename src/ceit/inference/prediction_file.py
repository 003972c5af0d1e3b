"""Predictions as lines of text, in CSV or in JSON, and files of them that a later run goes on with."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ceit.inference.predictor import Prediction

CSV_HEAD = "path,rank,label,probability,error\n"

Lines = Callable[[Prediction], str]
_Found = tuple[str, str | None]
"""The path of an image in a file, and why it could not be read."""


def csv_lines(prediction: Prediction) -> str:
    """A line for every rank, or one with the error."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    path = printable(prediction.path or "")
    if prediction.error is not None:
        rows.writerow([path, "", "", "", prediction.error])
    for rank, score in enumerate(prediction.predictions, 1):
        rows.writerow([path, rank, score.label, f"{score.probability:.6f}", ""])
    return file.getvalue()


def json_line(prediction: Prediction) -> str:
    """One JSON object in one line."""
    return json.dumps(prediction.as_dict()) + "\n"


def printable(path: str) -> str:
    """The path with a mark for every character that cannot be shown: names of files may hold any bytes."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)


FORMS: dict[str, tuple[str, Lines, Callable[[str], str]]] = {
    ".csv": (CSV_HEAD, csv_lines, printable),
    ".jsonl": ("", json_line, str),
}
"""What the endings of a file's name stand for: its first line, the lines of an image, a path as it stands there."""


def images_in(file: Path, ranks: int, class_names: Collection[str]) -> list[_Found]:
    """The images whose answers, of ``ranks`` classes each, a file holds. What stands after the last whole one is cut.

    Raises: ValueError for anything but answers of these classes and ranks, and leaves the file as it was.
    """
    found: list[_Found] = []
    read = end = 0

    def whole_lines(content: Iterable[bytes]) -> Iterator[str]:
        nonlocal read
        for line in content:
            if not line.endswith(b"\n"):
                return
            read += len(line)
            yield line.decode()

    with file.open("r+b") as content:
        images = _CONTENTS[file.suffix](whole_lines(content), ranks, frozenset(class_names))
        try:
            for image in images:
                found += [image] if image else []
                end = read
            if not end and content.tell():
                raise ValueError("not one whole line")
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{file} holds other things than answers of this model with --top-k {ranks}: name another --output"
            ) from error
        content.truncate(end)
    return found


def _in_csv(lines: Iterator[str], ranks: int, class_names: frozenset[str]) -> Iterator[_Found | None]:
    if (head := next(lines, CSV_HEAD)) != CSV_HEAD:
        raise ValueError(head)
    yield None
    expected = 1
    for path, rank, label, _probability, error in csv.reader(lines, strict=True):
        if (rank, label in class_names) != (("", False) if error else (str(expected), True)):
            raise ValueError(rank)
        expected = 1 if error or expected == ranks else expected + 1
        if expected == 1:
            yield path, error or None


def _in_json_lines(lines: Iterator[str], ranks: int, class_names: frozenset[str]) -> Iterator[_Found]:
    for line in lines:
        image = json.loads(line)
        if "error" not in image:
            labels = [score["label"] for score in image["predictions"]]
            if len(labels) != ranks or not class_names.issuperset(labels):
                raise ValueError(line)
        yield image["path"], image.get("error")


_CONTENTS = {".csv": _in_csv, ".jsonl": _in_json_lines}
