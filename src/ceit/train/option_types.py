"""Whether the values of options are of the types that their dataclass asks for: YAML gives what it likes."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ceit.messages import unknown

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number (YAML reads 1e-3 as text, 1.0e-3 as a number)",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def require_types(of: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError for the first value that its field's type does not take, with what it takes."""
    hints = get_type_hints(of)
    for key, value in values.items():
        hint = hints.get(key)
        if hint is None or fits(value, hint):
            continue
        choices = [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
        if choices and isinstance(value, str):
            raise ValueError(unknown(f"{prefix}{key}", value, [str(choice) for choice in choices]))
        raise ValueError(f"{prefix}{key} {value!r} must be {' or '.join(_words(part) for part in _parts(hint))}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as a type checker would have it; any sequence does for a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        wanted = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return len(wanted) == len(value) and all(map(fits, value, wanted))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}values"
    return "a mapping" if origin is dict else _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
