"""Ctrl-C and SIGTERM in a run: the step is finished, the state is saved, then the run stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by Ctrl-C or by SIGTERM, and its state is saved."""

    def __init__(self, message: str, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of acting on them, so that a step is never cut in two; a second one acts at
    once. One that the caller's process ignores, as what a script starts with ``&`` ignores SIGINT, stays ignored."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    # known before the first can arrive; None is a handler that Python cannot put back
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before: dict[int, Any] = {number: was for number, was in found.items() if was not in (signal.SIG_IGN, None)}
    with suppress(ValueError):  # not the main thread: the caller keeps its own handling
        for number in before:
            signal.signal(number, note)
    try:
        yield received
    finally:
        with suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)
