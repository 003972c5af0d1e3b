"""Ctrl-C, SIGTERM and a closed terminal: the step is finished, the state is saved, then the run stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_NAMES = "SIGINT", "SIGTERM", "SIGHUP"  # the last when a terminal is closed; Windows has none
STOPS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""What asks a run to stop: Ctrl-C first, then what ends it from outside."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by one of ``STOPS``, and its state is saved; ``terminated`` unless by Ctrl-C."""

    def __init__(self, message: str, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects ``STOPS`` instead of acting on them, so that a step is never cut in two; a second one acts at once, but
    for SIGHUP, which both the shell and the system send. One that the caller's process ignores, as what a script starts
    with ``&`` ignores SIGINT, and ``nohup`` SIGHUP, stays ignored."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number in STOPS[:2]:
            signal.signal(number, before[number])

    # known before the first can arrive; None is a handler that Python cannot put back
    found = {number: signal.getsignal(number) for number in STOPS}
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
