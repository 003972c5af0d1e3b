"""Messages to whoever started the work: durations in words, and unknown names, answered with the nearest known one."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

Say = Callable[[str], object]
"""Takes one message for whoever started the work."""


def in_words(seconds: float) -> str:
    """A duration to two digits, in the unit that suits it: ``45 s``, ``12 min``, ``1.5 h``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{seconds:.0f} s"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that rejects ``name``: with the nearest known name, and all of them where they are few."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    sentence = f"unknown {kind} {name!r}"
    if near:
        sentence += f"; did you mean {near[0]!r}?"
    if len(names) <= 12:
        sentence += f" {'Known' if near else '; known'}: {', '.join(names)}".replace(" ;", ";")
    return sentence
