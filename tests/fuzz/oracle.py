"""What an input may do: be taken, or be refused in one sentence. Everything else is a fault, named here.

A process that is watched stays so: Python forgets no audit hook. Only one target is watched at a time.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import ceit_cli

MOST_SECONDS, MOST_SECONDS_ASLEEP = 10, 600
_TIMERS = signal.ITIMER_PROF, signal.ITIMER_REAL
_PACKAGE = str(Path(ceit_cli.__file__).parent / "ceit")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OWN = ("ceit", "torch", "numpy", "multiprocessing")  # what worker processes send to the one that started them
_CHANGES = {  # event of Python to the places among its arguments that are changed
    **dict.fromkeys(
        ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"), (0,)
    ),
    **dict.fromkeys(("os.rename", "shutil.move"), (0, 1)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
}
_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"),
    *("pickle.find_class", "socket.connect", "socket.bind", "socket.getaddrinfo"),
}


class HangError(BaseException):
    """An input took longer than it may; no ``except Exception`` catches this."""


class Verdict(NamedTuple):
    """``sentence`` is that of a refusal, empty where the input was taken; ``fault`` is empty where there is none."""

    sentence: str
    fault: str
    grown_bytes: int


class _Watch:
    """The audit hook, and where it allows what to change."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITING:
                self._require(event, path)
        elif event in _CHANGES:
            for number in _CHANGES[event]:
                self._require(event, args[number])
        elif event.startswith("socket.") and isinstance(args[-1], str):  # of workers: a place in the file system
            self._require(event, args[-1])
        elif (
            event in _NEVER
            and not sys.is_finalizing()
            and not (event == "pickle.find_class" and str(args[0]).startswith(_OWN))
        ):
            self.seen.append(f"{event} {args!r:.200}")

    def _require(self, event: str, path: Any) -> None:
        assert self.allowed is not None
        if isinstance(path, int):
            return
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(self.allowed):
            self.seen.append(f"{event} of {place}")


_watch: list[_Watch] = []


@contextmanager
def watching(allowed: tuple[Path, ...]) -> Iterator[list[str]]:
    """Lists what is changed outside ``allowed``, started, fetched or unpickled in the block."""
    if not _watch:
        _watch.append(_Watch())
    watch, watch.seen = _watch[0], list[str]()
    watch.allowed = (*map(str, allowed), os.devnull)
    try:
        yield watch.seen
    finally:
        watch.allowed = None


def judge(run: Callable[[], object], allowed: tuple[Path, ...], most_bytes: int, given: str) -> Verdict:
    """Runs one input and says what is wrong with how it went.

    A sentence must be the package's own, or name ``given``, the file. Resident memory may grow by ``most_bytes`` at
    its peak.
    """
    _forget_peak()
    before = _resident("VmRSS")
    old = [signal.signal(number, _too_long) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # of computing: the cores may be shared
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS_ASLEEP)
    ending = _Ending()
    with watching(allowed) as seen, ending:
        try:
            run()
        finally:
            for timer, number, handler in zip(_TIMERS, (signal.SIGPROF, signal.SIGALRM), old, strict=True):
                signal.setitimer(timer, 0)
                signal.signal(number, handler)
    grown = max(0, _resident("VmHWM") - before)
    sentence, fault = _told(ending.error, given)
    if not fault and seen:
        fault = f"it touches what it must not: {seen[0]}"
    if not fault and grown > most_bytes:
        fault = f"its memory grows by {grown >> 20} MiB"
    return Verdict(sentence, fault, grown)


class _Ending:
    """How a block ended: whatever was raised in it, but for an interruption, is kept and goes no further."""

    error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> bool:
        self.error = error
        return not isinstance(error, KeyboardInterrupt)


def _told(error: BaseException | None, given: str) -> tuple[str, str]:
    """The sentence, and what is wrong with it or with the error."""
    match error:
        case None:
            return "", ""
        case HangError():
            return "", f"it hangs, for more than {MOST_SECONDS} s{_place_of(error)}"
        case SystemExit():
            return "", "" if error.code in (0, 1, 2) else f"it ends with {error.code!r}"
        case ValueError() | OSError():
            sentence = ceit_cli._sentence(error)
            if not sentence.strip() or "\n" in sentence:
                return sentence, f"no sentence: {sentence!r:.300}{_place_of(error)}"
            if given not in sentence and not _frames_of(error)[-1].startswith(_PACKAGE):
                return sentence, f"it names neither file nor value: {sentence:.300}{_place_of(error)}"
            return sentence, ""
    return "", f"{type(error).__name__}: {error}"[:300] + _place_of(error)


def _frames_of(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]


def _place_of(error: BaseException) -> str:
    """Where in the package it was, the innermost place last."""
    places = [place.removeprefix(_PACKAGE) for place in _frames_of(error) if place.startswith(_PACKAGE)]
    return f" at {' > '.join(places[-4:])}"


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise HangError


def _forget_peak() -> None:
    """So that ``VmHWM`` is the peak from here on. On Linux alone.

    Freed memory goes back first: a command keeps it (``ceit.inference.memory``), and what takes it would not show.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident(kind: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{kind}:")[2].split(maxsplit=1)[0]) << 10
