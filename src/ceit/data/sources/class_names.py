"""What people call classes: one name for what looks the same to them."""

import unicodedata


def class_name(text: str) -> str:
    """The name as it is kept: an accent is one letter with its sign (NFC), however the file system writes it."""
    return unicodedata.normalize("NFC", text)


def look(name: str) -> str:
    """The same for names that differ in case or spaces alone, which are easily taken for each other."""
    return " ".join(class_name(name).casefold().split())
