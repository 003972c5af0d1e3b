"""JSON in files that anybody may have written or damaged: what it says, or one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ceit.limits import JSON, parse_json, read_file


def read_json(path: Path) -> Any:
    """The document in a file. Raises: ValueError as ``json_of``, OSError if it cannot be read."""
    return json_of(str(path), read_file(path, JSON))


def json_of(name: str, text: str | bytes) -> Any:
    """The document that a text is; ``name`` names it in errors. Raises: ValueError if it is none, or too deep."""
    try:
        return parse_json(text, "it")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged or no JSON ({error})") from error


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
