"""What people call classes: one name for what looks the same to them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable


def class_name(text: str) -> str:
    """The name as it is kept: an accent is one letter with its sign (NFC), however the file system writes it."""
    return unicodedata.normalize("NFC", text)


def folded(name: str) -> str:
    """Without case and spaces: the same for names that are easily taken for each other."""
    return " ".join(class_name(name).casefold().split())


def alike(names: Iterable[str]) -> list[str]:
    """Those that differ from another of them in case or spaces alone, sorted."""
    counts = Counter(map(folded, names := list(names)))
    return sorted(name for name in names if counts[folded(name)] > 1)
