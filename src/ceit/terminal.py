"""The console of messages and progress bars."""

import sys
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console

_BELOW = "rich_proxied_file"
"""What rich calls the stream below its own, which it puts into the place of stderr while a bar moves."""


def stderr_console(quiet: bool = False) -> Console:
    """A console on stderr that never stops the work: what cannot be written is lost.

    So it is where a terminal was closed, the reader of a pipe has ended, or the disk of a log is full. Bars move on
    terminals alone, and in no file, whatever ``FORCE_COLOR`` says.
    """
    if sys.stderr is None:
        return Console(stderr=True, quiet=quiet)
    stream = getattr(sys.stderr, _BELOW, sys.stderr)
    file = cast(IO[str], _Unfailing(stream))
    return Console(file=file, quiet=quiet, force_terminal=None if stream.isatty() else False)


class _Unfailing:
    """A stream whose writes may be lost."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if name == _BELOW:  # by which rich would go past this
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
