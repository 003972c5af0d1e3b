"""Commands run in forked processes, so that each may be killed, and what must hold of what they leave."""

import hashlib
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

import ceit_cli

Command = list[str]
TIMES = {"elapsed_seconds", "images_per_second", "data_wait_percent", "tflops", "peak_memory_bytes"}
TIMES |= {"train_seconds", "finished", "seal"}  # the seal of a state is of its times too
HALF_WRITTEN = (".tmp", ".partial", ".part")
LINE_BY_LINE = ("metrics.jsonl", "answers.csv")  # cut back to whole lines by what goes on with them
_IS_COMPLETE = ("exists", "not empty")  # what the first command left is whole: asked again, it is not written over
REFUSED = "it is refused"
SECONDS = 120  # that a command may take, with a fault or without


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, minus the number of the signal that ended it; and what it said."""

    code: int
    said: str
    seconds: float

    @property
    def is_one_sentence(self) -> bool:
        """A failure that is told in the last line, which is all that is said of it."""
        lines = self.said.strip().splitlines()
        return self.code == 1 and bool(lines) and lines[-1].startswith("error: ") and "Traceback" not in self.said


def start(command: Command, log: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """``ceit`` with these arguments in a process of its own, which leads a group; returns its number.

    The process is a copy of this one, which has everything imported; so it must not have computed anything in threads.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    code = 99
    try:
        os.setsid()
        with log.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        prepare()
        code = ceit_cli.main(command)
        sys.stdout.flush()
    finally:
        if sys.exception():  # of which Python would tell at a true end
            traceback.print_exc()
        os._exit(code)


def end_of(process: int, log: Path, begun: float, seconds: float = SECONDS) -> Ending:
    """Waits for it. A command that hangs is killed, with all that it started, and ends with the code of that."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            break
        if time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            return Ending(-signal.SIGALRM, f"{log.read_text(errors='replace')}\nkilled after {seconds} s", seconds)
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # workers that it left
    return Ending(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic() - begun)


def run(command: Command, log: Path, prepare: Callable[[], object] = lambda: None) -> Ending:
    """A command, to its end."""
    begun = time.monotonic()
    return end_of(start(command, log, prepare), log, begun)


class Verdict(NamedTuple):
    """How a command ended that met a fault, and what is wrong with that or with what it left, if anything is."""

    ended: str
    wrong: str | None = None


def judge(
    again: Command,
    out: Path,
    log: Path,
    first: Ending,
    expected: Mapping[str, str],
    *,
    always_again: bool = False,
    runs: Callable[[Command, Path], Ending] = run,
) -> Verdict:
    """``again`` goes on without the fault; ``out`` must then hold what it holds where nothing happened."""
    ended = how(first)
    if ended == "badly":
        return Verdict(ended, f"no sentence, exit code {first.code}: {first.said[-5000:]}")
    if torn := broken(out):
        return Verdict(ended, f"half-written: {', '.join(torn)}")
    if first.code != 0 or always_again:
        second = runs(again, log)
        is_refused = second.is_one_sentence and any(words in second.said for words in _IS_COMPLETE)
        if second.is_one_sentence and not is_refused:
            return Verdict(ended, f"{REFUSED}: {second.said[-300:]}")
        if second.code and not is_refused:
            return Verdict(ended, f"it cannot go on, exit code {second.code}: {second.said[-300:]}")
    found = content_of(out)
    if different := sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)):
        return Verdict(ended, f"not the same: {', '.join(different)}")
    if left := half_written(out):
        return Verdict(ended, f"left behind: {', '.join(left)}")
    return Verdict(ended)


def how(ending: Ending) -> str:
    """The word for how a command ended; ``badly`` is what must not be."""
    if ending.code in (-signal.SIGKILL, -signal.SIGTERM):  # the second before it could take note of it
        return "killed"
    if ending.code in (ceit_cli.INTERRUPTED, ceit_cli.TERMINATED) and "Traceback" not in ending.said:
        return "stopped"
    return "unharmed" if ending.code == 0 else "one sentence" if ending.is_one_sentence else "badly"


def half_written(folder: Path) -> list[str]:
    """Names that only files have which are being written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if _is_being_written(path, folder))


def broken(folder: Path) -> list[str]:
    """Files that have their name but not all of their content."""
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_being_written(path, folder))
    return sorted(str(path.relative_to(folder)) for path in files if not _is_whole(path))


def _is_being_written(path: Path, folder: Path) -> bool:
    return any(name.endswith(HALF_WRITTEN) for name in path.relative_to(folder).parts)


def _is_whole(path: Path) -> bool:
    if path.name in LINE_BY_LINE or path.name.endswith(".lock"):
        return True
    try:
        match path.suffix:
            case ".safetensors":
                with safe_open(path, framework="pt") as file:
                    return bool(file.keys())
            case ".json":
                return isinstance(json.loads(path.read_bytes()), dict | list)
            case ".npy":
                return bool(np.load(path, mmap_mode="r").size)
            case ".tar":
                with tarfile.open(path) as archive:
                    return bool(archive.getmembers()) and path.read_bytes()[-1024:] == bytes(1024)
            case ".sqlite" | ".sqlite-journal":  # whose own business it is
                return True
    except (SafetensorError, ValueError, OSError, tarfile.TarError):
        return False
    return path.stat().st_size > 0


def content_of(folder: Path) -> dict[str, str]:
    """A digest of every file by its name, without what tells of time. Caches and logs of trackers stay out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_timeless(path)).hexdigest()[:16]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("images-", "events.out")) and not path.name.endswith(".lock")
    }


def _timeless(path: Path) -> bytes:
    """The content without what tells how long something took; of a page of prose only that it is there."""
    match path.suffix:
        case ".json":
            content = _without_times(json.loads(path.read_bytes()))
        case ".jsonl":
            content = [_without_times(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        case ".safetensors":
            return _tensors_and_header(path)
        case ".md" | ".png" | ".svg":
            return b"there"
        case _:
            return path.read_bytes()
    return json.dumps(content).encode()


def _tensors_and_header(path: Path) -> bytes:
    with safe_open(path, framework="np") as file:
        header = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
        tensors = [(name, file.get_tensor(name)) for name in sorted(file.keys())]
    digest = hashlib.sha256(json.dumps(_without_times(header), sort_keys=True).encode())
    for name, values in tensors:
        digest.update(name.encode() + values.tobytes())
    return digest.digest()


def _parsed(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return text


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        drop = TIMES | {"sha256"} if "train_seconds" in value else TIMES  # the seal of a cell is of its times too
        return {key: _without_times(inner) for key, inner in value.items() if key not in drop}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value
