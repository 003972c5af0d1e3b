"""Options are fields of dataclasses: which values a field takes, as a check and in words. YAML gives what it likes."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ceit.messages import unknown

_HOLDS = {"minimum": ge, "exclusiveMinimum": gt, "maximum": le, "exclusiveMaximum": lt}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "a mapping",
}


class ConflictError(ValueError):
    """Options that do not go together, each of which may be right by itself."""


class Limit:
    """What a number must be: in words, and as JSON Schema says it."""

    def __init__(self, words: str, **bounds: float) -> None:
        self.words, self.bounds = words, bounds

    def allows(self, number: float) -> bool:
        """Whether a number is within the bounds; NaN never is."""
        return all(_HOLDS[keyword](number, bound) for keyword, bound in self.bounds.items())


Count = Annotated[int, Limit("must be at least 1", minimum=1)]
NaturalNumber = Annotated[int, Limit("must not be negative", minimum=0)]
NotNegative = Annotated[float, Limit("must not be negative", minimum=0)]
Positive = Annotated[float, Limit("must be positive", exclusiveMinimum=0)]
Share = Annotated[float, Limit("must be in [0, 1]", minimum=0, maximum=1)]
ShareBelowOne = Annotated[float, Limit("must be in [0, 1)", minimum=0, exclusiveMaximum=1)]


@cache
def option_types(of: type) -> dict[str, Any]:
    """The type of each field of a dataclass, limits included."""
    return get_type_hints(of, include_extras=True)


def is_section(hint: Any) -> bool:
    """Whether an option holds options of its own: its type is a dataclass."""
    return isinstance(hint, type) and is_dataclass(hint)


def dotted_options(of: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of all options, sections included."""
    for name, hint in option_types(of).items():
        yield prefix + name, hint
        if is_section(hint):
            yield from dotted_options(hint, f"{prefix}{name}.")


def require_types(of: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError for the first value that its field does not take, with what it takes."""
    for key, hint in option_types(of).items():
        if key not in values:
            continue
        name, value = prefix + key, values[key]
        if is_section(hint):
            if not isinstance(value, dict | hint):
                raise ValueError(f"{name} {value!r} is a section and must hold keys")
            require_types(hint, value if isinstance(value, dict) else vars(value), f"{name}.")
            continue
        parts = parts_of(hint)
        if not fits(value, hint):
            choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
            choices += ["true", "false"] if choices and bool in parts else []
            if choices and (isinstance(value, str) or len(parts) == 1):
                raise ValueError(unknown(name, str(value), choices))
            raise ValueError(f"{name} {value!r} must be {wanted(hint)}")
        for part in parts:
            for limit in getattr(part, "__metadata__", ()):
                if fits(value, part) and not limit.allows(value):
                    raise ValueError(f"{name} {value} {limit.words}")


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


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as a type checker would have it, whatever its limits; a tuple may be a list."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(items) == len(value) and all(map(fits, value, items))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def parts_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def wanted(hint: Any) -> str:
    """What a type takes, such as "a whole number or null"."""
    origin, arguments, parts = get_origin(hint), get_args(hint), parts_of(hint)
    if len(parts) > 1:
        return " or ".join(map(wanted, parts))
    if origin is Annotated:
        return wanted(arguments[0])
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        return "a list of values" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
    return _WORDS.get(origin or hint, str(hint))
