"""Many images read at once: in threads, as Pillow decodes outside Python's lock."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ceit.data.image import or_reason
from ceit.machine import usable_cores
from ceit.terminal import stderr_console

BLOCK_IMAGES = 1024  # read before they are asked for: what is held in memory at once

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_all(
    read: Callable[[_Item], _Result], items: Sequence[_Item], description: str
) -> Iterator[tuple[_Item, _Result | str]]:
    """``read(item)`` of every item in their order, or the reason why that image cannot be read; with a progress bar."""
    attempt = partial(or_reason, read)
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        closing(map_in_order(pool, attempt, items, BLOCK_IMAGES)) as results,  # else the pool finishes what is queued
    ):
        yield from with_progress_bar(zip(items, results, strict=True), description, len(items))


def map_in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Generator[_Result, None, None]:
    """``work(item)`` of every item in their order, at most ``ahead`` of them begun before they are asked for.

    What fails raises here; no result is an exception. Not by ``Future.result``: Ctrl-C may leave it holding the lock
    that a thread needs to say that it is done.
    """
    source, waiting, stop = iter(items), deque[SimpleQueue[_Result | BaseException]](), Event()

    def answer(item: _Item, to: "SimpleQueue[_Result | BaseException]") -> None:
        if stop.is_set():  # nobody waits for the answer
            return
        try:
            to.put(work(item))
        except BaseException as error:
            to.put(error)
            raise

    try:
        while True:
            for item in islice(source, ahead - len(waiting)):
                waiting.append(SimpleQueue())
                pool.submit(answer, item, waiting[-1])
            if not waiting:
                return
            if isinstance(result := waiting.popleft().get(), BaseException):
                raise result
            yield result
    finally:
        stop.set()


def with_progress_bar(items: Iterable[_Item], description: str, total: int) -> Iterator[_Item]:
    """The items themselves, with a progress bar on stderr where that is a terminal."""
    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total, description=description)
