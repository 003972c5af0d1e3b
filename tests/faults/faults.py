"""What goes wrong on people's machines, each as something that is done to a command while it runs."""

import os
import random
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults.disk import Disk, Trouble
from tests.faults.journeys import Journey
from tests.faults.trials import (
    REFUSED,
    Command,
    Ending,
    Verdict,
    content_of,
    end_of,
    how,
    judge,
    run,
    start,
)

_LAUNCHER_SECONDS = 30  # from asking a process to end until it is made to; torchrun's


@dataclass(frozen=True)
class Quiet:
    """A journey without a fault: what it leaves, how long it takes, and the moments in which it writes."""

    content: dict[str, str]
    seconds: float
    moments: list[str]

    @property
    def inside_a_write(self) -> list[int]:
        """Moments at which a file is there in part: a piece of it comes, or all of it goes to the disk."""
        return [number for number, what in enumerate(self.moments) if what in ("write", "flush")]


@dataclass(frozen=True)
class Case:
    """A journey that is to meet a fault, a place for what it says, and the source of chance."""

    journey: Journey
    quiet: Quiet
    log: Path
    chance: random.Random

    def judged(self, prepare: Callable[[], object] = lambda: None) -> Verdict:
        """Of the command in an empty place, in a process that was prepared so."""
        clear(self.journey)
        ending = run(self.journey.command, self.log, prepare)
        return judge(self.journey.again, self.journey.out, self.log, ending, self.quiet.content)

    def disturbed(self, disturb: Callable[[int], object], always_again: bool = False) -> Verdict:
        """As ``judged``, where after a random time something is done to the process of this number, or around it."""
        clear(self.journey)
        begun, process = time.monotonic(), start(self.journey.command, self.log)
        time.sleep(self.chance.uniform(0, self.quiet.seconds))
        disturb(process)
        ending = end_of(process, self.log, begun)
        journey = self.journey
        return judge(journey.again, journey.out, self.log, ending, self.quiet.content, always_again=always_again)


def clear(journey: Journey) -> None:
    """An empty place to write to; the place itself stays, as it may be a disk of its own."""
    journey.out.mkdir(exist_ok=True)
    for path in journey.out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def undisturbed(journey: Journey, logs: Path) -> Quiet:
    """Raises: RuntimeError if the journey fails by itself."""
    clear(journey)
    ending = run(journey.command, logs / "log")
    if ending.code:
        raise RuntimeError(f"{journey.name} ended with {ending.code}: {ending.said}")
    content, moments = content_of(journey.out), logs / f"{journey.name}.moments"
    clear(journey)
    moments.unlink(missing_ok=True)
    run(journey.command, logs / "log", Disk(journey.out, record=moments).install)
    return Quiet(content, ending.seconds, moments.read_text(encoding="ascii").split())


def killed_inside_a_write(case: Case) -> Verdict:
    at = case.chance.choice(case.quiet.inside_a_write)
    return case.judged(Disk(case.journey.out, "killed", at).install)


def killed_at_any_moment(case: Case) -> Verdict:
    return case.disturbed(lambda process: os.kill(process, signal.SIGKILL))


def disk_fails(trouble: Trouble, case: Case) -> Verdict:
    """From a moment on that is drawn; its other processes do not notice."""
    at = case.chance.randrange(len(case.quiet.moments))
    return case.judged(Disk(case.journey.out, trouble, at).install)


def disk_is_full(case: Case) -> Verdict:
    """Truly: what lies in ``out`` fits, but not all that the command is to write. ``out`` must be a disk of its own."""
    clear(case.journey)
    run(case.journey.command, case.log)
    needed = sum(path.stat().st_size for path in case.journey.out.rglob("*") if path.is_file())
    clear(case.journey)
    filler, space = case.journey.out / ".filler.lock", shutil.disk_usage(case.journey.out).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space - case.chance.randrange(needed))
    ending = run(case.journey.command, case.log)
    filler.unlink()
    return judge(case.journey.again, case.journey.out, case.log, ending, case.quiet.content)


def terminated_twice(case: Case) -> Verdict:
    def disturb(process: int) -> None:
        os.kill(process, signal.SIGTERM)
        time.sleep(case.chance.uniform(0, 0.2))
        os.kill(process, signal.SIGTERM)

    return case.disturbed(disturb)


def output_vanishes(case: Case) -> Verdict:
    """What somebody else removed cannot be the same afterwards: called again, the command makes it anew or says why
    not, and in an empty place it is as new."""
    verdict = case.disturbed(lambda process: clear(case.journey), always_again=True)
    if verdict.wrong is None or not verdict.wrong.startswith(REFUSED):
        return verdict
    return Verdict(verdict.ended, case.judged().wrong)


def data_vanish(case: Case) -> Verdict:
    """For a while: they are back when the command is called again."""
    photos, away = case.journey.out.parent / "photos", case.journey.out.parent / "away"

    def disturb(process: int) -> None:
        photos.rename(away)
        time.sleep(case.quiet.seconds)
        away.rename(photos)

    return case.disturbed(disturb)


def clock_is_set_back(case: Case) -> Verdict:
    """By a day, once the command has looked at it some times."""
    looks, real = [case.chance.randrange(50)], time.time

    def now() -> float:
        looks[0] -= 1
        return real() - (86400 if looks[0] < 0 else 0)

    return case.judged(lambda: setattr(time, time.time.__name__, now))


def no_memory_in_a_step(case: Case) -> Verdict:
    """What torch raises where a CPU has no memory left, in one of the first backward passes."""
    left, real = [case.chance.randrange(6)], torch.Tensor.backward

    def backward(*given: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        real(*given, **options)

    return case.judged(lambda: setattr(torch.Tensor, backward.__name__, backward))


def little_memory(case: Case) -> Verdict:
    """Truly: the process may take up to 300 MB more than it has at its start."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + case.chance.randrange(300 << 20)
    return case.judged(lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))


def worker_is_killed(case: Case) -> Verdict:
    return case.disturbed(lambda process: _to_worker(process, signal.SIGKILL))


def worker_hangs(case: Case) -> Verdict:
    """Stopped, as one is that waits for a drive which does not answer."""
    return case.disturbed(lambda process: _to_worker(process, signal.SIGSTOP))


def _to_worker(process: int, number: signal.Signals) -> None:
    """A signal to a process that this one has started, as soon as there is one, if there is one in time."""
    children, until = Path(f"/proc/{process}/task/{process}/children"), time.monotonic() + 2
    with suppress(OSError):  # it is over, or the worker is
        while time.monotonic() < until:
            if found := children.read_text(encoding="ascii").split():
                return os.kill(int(found[0]), number)
            time.sleep(0.005)


def two_at_once(case: Case) -> Verdict:
    """The same command, twice at the same time: one may be refused."""
    clear(case.journey)
    begun, other_log = time.monotonic(), case.log.with_suffix(".other")
    processes = [start(case.journey.command, log) for log in (case.log, other_log)]
    endings = [end_of(process, log, begun) for process, log in zip(processes, (case.log, other_log), strict=True)]
    for ending in endings:
        if how(ending) not in ("unharmed", "one sentence"):
            return Verdict("badly", f"exit code {ending.code}: {ending.said[-300:]}")
    both = "unharmed" if all(ending.code == 0 for ending in endings) else "one sentence"
    first = min(endings, key=lambda ending: ending.code)
    return Verdict(both, judge(case.journey.again, case.journey.out, case.log, first, case.quiet.content).wrong)


def one_of_two_is_killed(case: Case) -> Verdict:
    """Of a training in two processes; as torchrun does, the other is asked to end, and made to after a while.

    One that still waits for the first at the start of both is inside torch, and does not hear that it is asked.
    """
    journey = case.journey
    clear(journey)
    expected, begun = _in_two_processes(journey.command, case.log), time.monotonic()
    if expected.code:
        return Verdict("badly", f"in two processes: exit code {expected.code}: {expected.said[-300:]}")
    content = content_of(journey.out)
    clear(journey)
    logs, (dies, other) = _logs_of(case.log), case.chance.sample((0, 1), 2)
    processes = _two_processes(journey.command, case.log)
    time.sleep(case.chance.uniform(0, expected.seconds))
    os.kill(processes[dies], signal.SIGKILL)
    time.sleep(case.chance.uniform(0, 0.5))
    os.kill(processes[other], signal.SIGTERM)
    end_of(processes[dies], logs[dies], begun)
    last = threading.Timer(_LAUNCHER_SECONDS, os.kill, (processes[other], signal.SIGKILL))
    last.start()
    ending = end_of(processes[other], logs[other], begun)
    last.cancel()
    return judge(journey.again, journey.out, case.log, ending, content, always_again=True, runs=_in_two_processes)


def _in_two_processes(command: Command, log: Path) -> Ending:
    """How the first of them ended that failed, or the first."""
    begun = time.monotonic()
    processes = _two_processes(command, log)
    endings = [end_of(process, own, begun) for process, own in zip(processes, _logs_of(log), strict=True)]
    return next((ending for ending in endings if ending.code), endings[0])


def _logs_of(log: Path) -> list[Path]:
    return [log.with_suffix(f".{number}") for number in range(2)]


def _two_processes(command: Command, log: Path) -> list[int]:
    """Of one training, as a launcher starts them."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = f"{place.getsockname()[1]}"
    own = [shared | {"RANK": f"{number}", "LOCAL_RANK": f"{number}"} for number in range(2)]
    return [
        start(command, path, partial(os.environ.update, names)) for path, names in zip(_logs_of(log), own, strict=True)
    ]


def file_is_damaged(case: Case) -> Verdict:
    """One of the files that the command left is cut short, or a bit of it is turned over, and then it is read.

    The answer is the one from the file as it was, or a sentence. Files of text have values that may be others, which
    nobody can tell from damage, so a bit is turned over in the others only.
    """
    journey, chance = case.journey, case.chance
    clear(journey)
    run(journey.command, case.log)
    right = run(journey.reads, case.log)
    files = sorted(path for path in journey.out.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(files)
    content = bytearray(path.read_bytes())
    if path.suffix in (".json", ".jsonl", ".yaml", ".csv", ".md", ".svg", ".png") or chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    else:
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    found = run(journey.reads, case.log)
    if how(found) not in ("unharmed", "one sentence"):
        return Verdict("badly", f"{path.name}, exit code {found.code}: {found.said[-300:]}")
    if found.code == 0 and found.said != right.said:
        return Verdict("unharmed", f"{path.name}: another answer, of which nothing is said: {found.said[-300:]}")
    return Verdict(how(found))


FAULTS: dict[str, Callable[[Case], Verdict]] = {
    "killed inside a write": killed_inside_a_write,
    "killed at any moment": killed_at_any_moment,
    "disk full": partial(disk_fails, "disk full"),
    "disk truly full": disk_is_full,
    "disk read-only from a moment on": partial(disk_fails, "disk read-only"),
    "disk gives errors from a moment on": partial(disk_fails, "disk broken"),
    "output emptied meanwhile": output_vanishes,
    "data gone meanwhile": data_vanish,
    "terminated twice": terminated_twice,
    "clock set back by a day": clock_is_set_back,
    "no memory in a step": no_memory_in_a_step,
    "at most 300 MB more": little_memory,
    "a worker killed": worker_is_killed,
    "a worker hangs": worker_hangs,
    "two at once": two_at_once,
    "one of two processes killed": one_of_two_is_killed,
    "a file cut or a bit turned over": file_is_damaged,
}
