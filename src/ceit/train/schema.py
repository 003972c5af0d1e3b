"""A JSON schema of recipes, for editors: made from the options' types, defaults and docstrings, so it cannot drift."""

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ceit.model.config import CeiTConfig
from ceit.model.variants import list_models
from ceit.train.config import TrainConfig

Schema = dict[str, Any]

_FROM_THE_DATA = {"img_size", "in_chans", "num_classes"}  # fields of CeiTConfig that no recipe may set as geometry
_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def recipe_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a recipe file: the fields of ``TrainConfig``, all optional, and no other key.

    It knows types, choices and defaults. Limits of numbers are checked when the recipe is read, not here.
    """
    schema = _object(TrainConfig)
    options = schema["properties"]
    options["model"] |= {"enum": list_models()}
    geometry = _object(CeiTConfig, without=_FROM_THE_DATA)["properties"]
    for option in geometry.values():
        del option["default"]  # each model has its own
    options["geometry"] |= {"properties": geometry, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ceit training recipe", **schema}


def _object(of: type, without: Collection[str] = ()) -> Schema:
    """A dataclass as an object whose keys are its fields."""
    hints, texts = get_type_hints(of), descriptions(of)
    properties: Schema = {}
    for field in fields(of):
        if field.name in without:
            continue
        hint = hints[field.name]
        option = _object(hint) if is_dataclass(hint) and isinstance(hint, type) else _type(hint)
        if field.name in texts:
            option["description"] = texts[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if not is_dataclass(default):
            option["default"] = list(default) if isinstance(default, tuple) else default
        properties[field.name] = option
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _type(hint: Any) -> Schema:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin in (Union, UnionType):
        return {"anyOf": [_type(argument) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object"}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is tuple:
        count = len(arguments)
        return {"type": "array", "prefixItems": [_type(a) for a in arguments], "minItems": count, "maxItems": count}
    raise TypeError(f"an option of type {hint} has no place in the schema yet")


def descriptions(of: type) -> dict[str, str]:
    """What a dataclass says about its fields: the class docstring's ``Attributes:``, else the string below a field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for pair in itertools.pairwise(body.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _one_line(text)
    _, _, attributes = (inspect.getdoc(of) or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", attributes)[0]  # up to the next heading
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        found[name] = _one_line(text)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
