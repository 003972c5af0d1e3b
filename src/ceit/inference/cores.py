"""How many threads compute: as many as other programs leave cores free.

The threads of one operation wait for each other. Where another program holds one of their cores, all of them wait for
the one that does not get it, and a step takes several times as long as on the cores that are left. See
docs/decisions/threads.md.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import psutil
import torch

from ceit.machine import usable_cores

LOOK_SECONDS = 1.0  # the least time over which the use of the cores is averaged
TOLERATED = 0.6  # of a core; a program that takes less of it is better shared with than left the whole core
_BUSY = ("user", "system", "irq", "softirq", "steal")  # as the systems name them; without "nice"
_SELF, _ENDED = 0, -1  # no process has these numbers

Say = Callable[[str], object]


class Usage(NamedTuple):
    """Seconds since some moment: of the clock, of all ``cores`` together at work, and of them for this process."""

    clock: float
    machine: float
    own: dict[int, float]  # by process: itself, its workers, and those that have ended
    cores: int


def usage() -> Usage:
    """What the cores that this process may use have done so far, and this process.

    Raises: OSError or psutil.Error where the system hides it.
    """
    cores = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        cores = [cores[number] for number in os.sched_getaffinity(0) if number < len(cores)] or cores
    counted = _BUSY if psutil.Process().nice() <= 0 else (*_BUSY, "nice")  # what is polite gives way, unless we are too
    machine = sum(getattr(core, name, 0.0) for core in cores for name in counted)
    own: dict[int, float] = {}
    for pid in [child.pid for child in multiprocessing.active_children() if child.pid is not None]:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            own[pid] = sum(psutil.Process(pid).cpu_times()[:2])  # user and system
    ended = os.times()  # asked last: active_children has just waited for some
    own |= {_SELF: time.process_time(), _ENDED: ended.children_user + ended.children_system}
    return Usage(time.monotonic(), machine, own, len(cores))


def taken_by_others(before: Usage, after: Usage) -> float:
    """How many cores other programs have used between two looks."""
    own = sum(after.own.values()) - sum(before.own.values())  # what a worker had used goes over to those that ended
    return max(0.0, (after.machine - before.machine - own) / (after.clock - before.clock))


class FreeCores:
    """Sets torch's threads to the number of free cores, at most to what they were. Made by ``sharing_cores``."""

    def __init__(self, say: Say) -> None:
        self._most = torch.get_num_threads()
        self._say = say
        self._before: Usage | None = None
        self._announced = False
        self._next_look = 0.0
        self.follow()

    def follow(self) -> None:
        """Look, if the last look is a second ago. To be called between steps, by the thread that computes them."""
        if time.monotonic() < self._next_look or self._most == 1:
            return
        try:
            now = usage()
        except (OSError, psutil.Error):  # a system that does not tell
            self._next_look = math.inf
            self.restore()
            return
        if self._before is not None:
            self._settle(taken_by_others(self._before, now), now.cores)
        self._before, self._next_look = now, now.clock + LOOK_SECONDS

    def _settle(self, taken: float, cores: int) -> None:
        threads = max(1, min(self._most, int(cores - taken + TOLERATED)))
        if threads == torch.get_num_threads():
            return
        torch.set_num_threads(threads)
        if not self._announced:
            self._announced = True
            self._say(
                f"other programs take {taken:.1f} of the {cores} cores: computing in {threads} of {self._most} "
                f"threads while they do (OMP_NUM_THREADS={self._most} keeps them)"
            )

    def restore(self) -> None:
        """As many threads as before."""
        torch.set_num_threads(self._most)


def keep_to_the_share() -> None:
    """At most as many threads as cores, where a container has a share of a machine's. Process-wide: for commands.

    ``OMP_NUM_THREADS`` says otherwise.
    """
    if "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())


@contextmanager
def sharing_cores(follows: bool, say: Say = lambda message: None) -> Iterator[FreeCores | None]:
    """While the block runs, the number of threads follows what other programs leave free: at each ``follow``.

    None if it is to stay as it is: where nobody wants that, or the user has set ``OMP_NUM_THREADS``.
    """
    if not follows or "OMP_NUM_THREADS" in os.environ:
        yield None
        return
    cores = FreeCores(say)
    try:
        yield cores
    finally:
        cores.restore()
