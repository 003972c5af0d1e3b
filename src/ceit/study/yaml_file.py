"""YAML files that people write: read, and their keys and values checked."""

import re
from dataclasses import fields
from typing import Any

import yaml

from ceit.messages import unknown
from ceit.paths import expanded
from ceit.train.option_types import require_types


class _Loader(yaml.SafeLoader):
    """Takes ``1e-3`` for the number that it is in YAML 1.2, not for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(kind: str, name: str) -> Any:
    """What a file holds. ``kind`` names it in errors. Raises: ValueError if it is not there, or is no YAML."""
    path = expanded(name)
    if not path.is_file():
        raise ValueError(f"{kind} file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{kind} file {path} is not text in UTF-8: {error}") from error
    return parse_yaml(str(path), text)


def parse_yaml(name: str, text: str) -> Any:
    """What the text of a file holds. Raises: ValueError if it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def as_fields(where: str, values: Any, of: type, nested: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values as keywords of a dataclass, but its name; those of ``nested`` are checked elsewhere.

    Raises: ValueError for a key or a value that it does not take.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold 'key: value' lines, not {values!r}")
    known = {f.name for f in fields(of)} - {"name"}
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {unknown('key', str(key), known)}")
    require_types(of, {key: value for key, value in values.items() if key not in nested}, f"{where}: ")
    return values
