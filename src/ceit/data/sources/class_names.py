"""What people call classes: one name for what looks the same to them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from ceit.messages import listed


def class_name(text: str) -> str:
    """The name as it is kept: an accent is one letter with its sign (NFC), however the file system writes it."""
    return unicodedata.normalize("NFC", text)


def folded(name: str) -> str:
    """Without case, spaces and signs of no width: the same for names that are easily taken for each other."""
    shown = (letter for letter in class_name(name).casefold() if unicodedata.category(letter) != "Cf")
    return " ".join("".join(shown).split())


def remarks_of_look_alikes(names: Iterable[str], where: str = "") -> tuple[str, ...]:
    """The remark that names those that differ from another of them in case, spaces or signs of no width alone."""
    counts = Counter(map(folded, names := list(names)))
    similar = sorted(name for name in names if counts[folded(name)] > 1)
    what = "classes that differ in case, spaces or invisible signs alone"
    return (f"{what}{where}: {listed(map(repr, similar))}",) if similar else ()
