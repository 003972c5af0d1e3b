"""Messages to whoever started the work: durations in words, unknown names with the nearest known one, names as text."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable
from difflib import get_close_matches

Say = Callable[[str], object]
"""Takes one message for whoever started the work."""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves, colours or renames a terminal, ends a line, or turns the direction of what follows."""

_NAMED = 4  # in one sentence
NO_MEMORY = "DefaultCPUAllocator", "out of memory", "Invalid buffer size"  # in torch's errors; the last on Apple's GPUs


def plain(text: str) -> str:
    """The text in one line, with its control characters as ``\\x1b``: a name may hold any."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def require_plain(kind: str, names: Iterable[str]) -> None:
    """Raises: ValueError for a name with control characters: it would reach terminals, tables and pages as it is."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{kind} {name!r} is no text: write its name")
        if _CONTROLS.search(name):
            raise ValueError(f"{kind} '{plain(name)}' has a control character or a line break in it: rename it")


def as_typed(words: Iterable[str]) -> str:
    """The words of a command as they are typed: for a POSIX shell; on Windows with double quotes round spaces."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full, the machine's or a device's: torch has its own words for it."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def in_words(seconds: float) -> str:
    """A duration to two digits, in the unit that suits it: ``45 s``, ``12 min``, ``1.5 h``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{seconds:.0f} s"


def listed(names: Iterable[str]) -> str:
    """The first names and how many more there are: ``cat, dog and 3 more``."""
    all_names = list(names)
    first, others = all_names[:_NAMED], all_names[_NAMED:]
    *some, last = [*first, f"{len(others):,} more"] if others else first
    return f"{', '.join(some)} and {last}" if some else last


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
