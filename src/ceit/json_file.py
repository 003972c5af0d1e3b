"""JSON in files that anybody may have written or damaged: what it says, or one sentence that names the file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ceit.limits import JSON, JSON_DEPTH, TooMuchError, read_file


def read_json(path: Path) -> Any:
    """The document in a file. Raises: ValueError as ``parse_json``, OSError if it cannot be read."""
    return parse_json(str(path), read_file(path, JSON))


def parse_json(name: str, text: str | bytes) -> Any:
    """The document that a text is; ``name`` names it in errors. Raises: ValueError if it is none, too large or deep."""
    JSON.require(len(text), name)
    try:
        letters = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        JSON_DEPTH.require(_depth(letters), name)
        return json.loads(letters)
    except TooMuchError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged or no JSON ({error})") from error


def json_text(document: Any, **form: Any) -> str:
    """JSON as people read it, letters of all scripts as they are; the bytes of a name that is no UTF-8 as escapes."""
    return json.dumps(document, ensure_ascii=False, **form).encode(errors="backslashreplace").decode()


_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL)  # a string may hold brackets


def _depth(letters: str) -> int:
    """Of lists and objects in each other; what is surely in no depth is not looked through."""
    if letters.count("[") + letters.count("{") <= JSON_DEPTH.value:
        return 0
    depth = deepest = 0
    for found in _BRACKETS.finditer(letters):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        deepest = max(depth, deepest)
    return deepest


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def as_written(place: object, fix: str) -> Iterator[None]:
    """For a block that takes apart what a program of ours has written to a file, which ``place`` names.

    Raises: ValueError where its content is not of that form any more, with what to do about it.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, ValueError) as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        raise ValueError(f"{place} is not as ceit has written it ({type(error).__name__}: {error}): {fix}") from error
