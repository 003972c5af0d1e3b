"""What people call classes: one name for what looks the same to them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable


def class_name(text: str) -> str:
    """The name as it is kept: an accent is one letter with its sign (NFC), however the file system writes it."""
    return unicodedata.normalize("NFC", text)


def folded(name: str) -> str:
    """The same for names that differ in case or spaces alone, which are easily taken for each other."""
    return " ".join(class_name(name).casefold().split())


def alike(names: Iterable[str]) -> list[str]:
    """Those that look like another of them, sorted."""
    names = sorted(names)
    looks = Counter(map(folded, names))
    return [name for name in names if looks[folded(name)] > 1]
