"""A JSON schema of recipes, for editors: made from the options' types, defaults and docstrings, so it cannot drift."""

import ast
import inspect
import itertools
import textwrap
from dataclasses import MISSING, fields
from math import isfinite
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from ceit.model.config import CeiTConfig
from ceit.model.variants import list_models
from ceit.options import is_section, option_types, parts_of
from ceit.train.config import FROM_THE_DATA, TrainConfig

Schema = dict[str, Any]

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", NoneType: "null"}


def recipe_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a recipe file: the fields of ``TrainConfig``, all optional, and no other key.

    It knows types, choices, limits and defaults. Which options do not go together is checked when a run starts.
    """
    schema = _object(TrainConfig)
    options = schema["properties"]
    options["model"] |= {"enum": list_models()}
    geometry = _object(CeiTConfig)["properties"]
    for name in FROM_THE_DATA:
        del geometry[name]
    for option in geometry.values():
        del option["default"]  # each model has its own
    options["geometry"] |= {"properties": geometry, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ceit training recipe", **schema}


def _object(of: type) -> Schema:
    """A dataclass as an object whose keys are its fields."""
    types, texts = option_types(of), descriptions(of)
    properties: Schema = {}
    for field in fields(of):
        option = _object(types[field.name]) if is_section(types[field.name]) else _type(types[field.name])
        if field.name in texts:
            option["description"] = texts[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if not is_section(type(default)):
            option["default"] = list(default) if isinstance(default, tuple) else default
        properties[field.name] = option
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _type(hint: Any) -> Schema:
    origin, arguments, parts = get_origin(hint), get_args(hint), parts_of(hint)
    if len(parts) > 1:
        return {"anyOf": [_type(part) for part in parts]}
    if origin is Annotated:
        bounds = {key: bound for limit in hint.__metadata__ for key, bound in limit.bounds.items() if isfinite(bound)}
        return _type(arguments[0]) | bounds
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is tuple:
        count = len(arguments)
        return {"type": "array", "prefixItems": [_type(a) for a in arguments], "minItems": count, "maxItems": count}
    return {"type": _SIMPLE[origin or hint]}


def descriptions(of: type) -> dict[str, str]:
    """What a dataclass says about its fields: the string below each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for pair in itertools.pairwise(body.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
