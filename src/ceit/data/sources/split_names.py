"""What people call the parts of a data set, in folders, tables, shards and on the hub."""

import re

from ceit.messages import unknown

SPLITS = ("train", "validation", "test")

_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "validate", "validating", "dev", "development", "publictest"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "evaluate", "holdout", "privatetest"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
_PATTERN = re.compile(
    rf"(?:images?|imgs?|data)?({'|'.join(_SPLIT_OF)})(?:sets?|data|dataset|images?|imgs?|split|folder)?[0-9]*"
)


def split_of(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for any of the usual names; None for another.

    Case, spaces, ``_``, ``-`` and ``.`` do not count, nor does a year at the end or a word like ``set`` or ``images``:
    ``Training``, ``train_set``, ``val2017``, ``test-images``. What is called ``eval`` or ``holdout`` is the test part.
    Of contests (FER2013) ``PublicTest``, by which entries were chosen, is validation, and ``PrivateTest`` is the test.
    """
    found = _PATTERN.fullmatch(re.sub(r"[\s_.-]+", "", name).lower())
    return _SPLIT_OF[found[1]] if found else None


def split_name(name: str, place: object) -> str:
    """As ``split_of``. Raises: ValueError, with the nearest name, for none of the usual ones."""
    split = split_of(name)
    if split is None:
        raise ValueError(f"{place}: {unknown('split', name, SPLITS)}")
    return split
