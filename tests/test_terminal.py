"""The console of messages: it never stops the work, and shows bars on terminals alone."""

import io
import os
import sys

import pytest

from ceit.terminal import stderr_console


class Gone(io.StringIO):
    """A terminal that was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_what_cannot_be_written_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    console = stderr_console()
    assert console.is_terminal
    console.print("nobody reads this")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        stderr_console().print("nor this")
        with pytest.raises(BrokenPipeError):
            pipe.close()


def test_forced_colours_make_no_terminal_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = stderr_console()
    assert not console.is_terminal
    console.print("[red]words[/red]")
    assert file.getvalue() == "words\n"


def test_without_stderr_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as in a program without a terminal on Windows
    stderr_console().print("words")
