"""Predictions as lines of text, in CSV or in JSON, and files of them that a later run goes on with."""

import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ceit.inference.predictor import Prediction

CSV_HEAD = "path,rank,label,probability,error\n"

NAME_ERRORS = sys.getfilesystemencodeerrors()
"""How names of files that are not text come into a string, and out of it as the bytes that they were."""

Lines = Callable[[Prediction], str]
_Found = tuple[str, str | None]
"""The path of an image in a file, and why it could not be read."""


def csv_lines(prediction: Prediction) -> str:
    """A line for every rank, or one with the error."""
    path = prediction.path or ""
    if prediction.error is not None:
        return _csv_line(path, "", "", "", prediction.error)
    return "".join(
        _csv_line(path, rank, score.label, f"{score.probability:.6f}", "")
        for rank, score in enumerate(prediction.predictions, 1)
    )


def _csv_line(*values: object) -> str:
    file = io.StringIO()
    csv.writer(file).writerow(values)  # which ends its line in CR LF, and therefore quotes a name that holds either
    return file.getvalue().removesuffix("\r\n") + "\n"


def json_line(prediction: Prediction) -> str:
    """One JSON object in one line."""
    return json.dumps(prediction.as_dict()) + "\n"


def printable(path: str) -> str:
    """The path for a table or a sentence: with a mark for every character that cannot be shown there."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)


FORMS: dict[str, tuple[str, Lines]] = {".csv": (CSV_HEAD, csv_lines), ".jsonl": ("", json_line)}
"""What the endings of a file's name stand for: its first line, and the lines of an image."""


def images_in(file: Path, ranks: int, class_names: Collection[str]) -> list[_Found]:
    """The images whose answers, of ``ranks`` classes each, a file holds. What stands after the last whole one is cut.

    Raises: ValueError for anything but answers of these classes and ranks, and leaves the file as it was.
    """
    found: list[_Found] = []
    read = end = 0
    is_at_end = False

    def whole_lines(content: Iterable[bytes]) -> Iterator[str]:
        nonlocal read, is_at_end
        for line in content:
            if not line.endswith(b"\n"):
                break
            read += len(line)
            yield line.decode(errors=NAME_ERRORS)
        is_at_end = True

    with file.open("r+b") as content:
        images = _CONTENTS[file.suffix](whole_lines(content), ranks, frozenset(class_names))
        try:
            for image in images:
                found += [image] if image else []
                end = read
            if not end and content.tell():
                raise ValueError("not one whole line")
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            if not (is_at_end and isinstance(error, csv.Error)):  # else it was cut within a name of several lines
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
