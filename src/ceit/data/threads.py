"""Many images read at once: in threads, as Pillow decodes outside Python's lock."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ceit.data.image import BrokenImageError, RefusedImageError

BLOCK_IMAGES = 1024  # handed to the threads at a time: what is held in memory at once

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(
    read: Callable[[_Item], _Result], items: Sequence[_Item], description: str
) -> Iterator[tuple[_Item, _Result | str]]:
    """``read(item)`` of every item in their order, or the reason why that image cannot be read; with a progress bar."""

    def attempt(item: _Item) -> _Result | str:
        try:
            return read(item)
        except (BrokenImageError, RefusedImageError) as error:
            return error.reason
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (items[start : start + BLOCK_IMAGES] for start in range(0, len(items), BLOCK_IMAGES))
        results = (pair for block in blocks for pair in zip(block, pool.map(attempt, block), strict=True))
        yield from shown(results, description, len(items))


def shown(items: Iterable[_Item], description: str, total: int) -> Iterator[_Item]:
    """The items themselves, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total, description=description)
