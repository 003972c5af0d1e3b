"""YAML that people write: in files, and on the command line."""

import codecs
import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from ceit.limits import YAML, YAML_ALIASES, YAML_DEPTH, TooMuchError, read_file
from ceit.paths import expanded

NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What its constructors raise, for a date of month 99, a key that is a list, and lists a thousand deep, say."""


class _EachKeyOnce(yaml.constructor.BaseConstructor):
    """Refuses a key that stands twice in one place, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _AsWritten(_EachKeyOnce, yaml.BaseLoader):
    """Every value is a text."""


class _Loader(_EachKeyOnce, yaml.SafeLoader):
    """Takes numbers as YAML 1.2 does: ``1e-3`` is one, ``010`` is ten, and ``1:30`` is text."""

    def number(self, node: yaml.ScalarNode) -> int | float | str:
        if ":" in node.value:
            return node.value
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            return int(node.value)
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?0[0-9]+$"), list("-+0"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def text_of(kind: str, file: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as Windows PowerShell writes it.

    ``kind`` names it in errors. Raises: ValueError if it is not there, or is no such text.
    """
    path = expanded(file)
    if not path.is_file():
        raise ValueError(f"{kind} file {path} does not exist")
    try:
        data = read_file(path, YAML)
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{kind} file {path} is not text in UTF-8: {error}") from error


def read_yaml(kind: str, file: str) -> Any:
    """The values in a file. Raises: ValueError as ``text_of`` and ``parse_yaml``."""
    return parse_yaml(str(expanded(file)), text_of(kind, file))


@cache
def packaged_yaml(folder: str) -> dict[str, str]:
    """The text of every YAML file that comes with the package in a folder, by its name without the ending."""
    found = sorted(files("ceit").joinpath(folder).iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in found
        if entry.name.endswith(".yaml")
    }


def parse_yaml(name: str, text: str, *, as_written: bool = False) -> Any:
    """The values that a text stands for, or all of them ``as_written``: ``yes``, ``007``, ``null`` may name classes.

    ``name`` names the text in errors. Raises: ValueError if it is not YAML.
    """
    try:
        require_modest(name, text)
        return yaml.load(text, Loader=_AsWritten if as_written else _Loader)
    except TooMuchError:
        raise
    except NOT_YAML as error:
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def require_modest(name: str, text: str) -> None:
    """Raises: ValueError for a text that is too large, too deep, or has aliases for much or for itself."""
    YAML.require(len(text), name)
    around: list[str | None] = []  # the anchors of what is open
    aliases, words = 0, set[str | None]()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            around.append(event.anchor)
            YAML_DEPTH.require(len(around), name)
        elif isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        elif isinstance(event, yaml.ScalarEvent):
            words.add(event.anchor)
        elif isinstance(event, yaml.AliasEvent) and event.anchor not in words:  # for a word costs nothing
            aliases += 1
            YAML_ALIASES.require(aliases, name)
            if event.anchor in around:
                raise ValueError(f"{name} has {event.anchor!r} inside of itself: write it out")
