"""What of the machine this process may use: cores and memory, as far as its container or cluster job lets it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil


class MachineError(ValueError):
    """What lies with a machine, a launcher or the moment, not with the options of a run: elsewhere it would begin."""


_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use; of a share, as ``docker run --cpus=2.5`` gives, the whole ones, at least one.

    A container with a share sees all cores of its machine. As many threads would mostly wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _shares_of_cores())]))


def memory_bytes() -> int:
    """The machine's memory, or what its container or cluster job may have."""
    files = (group / name for group in _groups("memory") for name in ("memory.max", "memory.limit_in_bytes"))
    return min([psutil.virtual_memory().total, *(limit for file in files for limit in _numbers(file))])


def _shares_of_cores() -> Iterator[float]:
    """Microseconds of cores in each period, in cores."""
    for group in _groups("cpu"):
        limit = _numbers(group / "cpu.max")
        limit = limit or [*_numbers(group / "cpu.cfs_quota_us"), *_numbers(group / "cpu.cfs_period_us")]
        if len(limit) == 2 and min(limit) > 0:  # a quota of -1 is none
            yield limit[0] / limit[1]


def _groups(controller: str) -> Iterator[Path]:
    """The folders of Linux's control groups in which this process is, and of the groups above them.

    A line is ``0::/job/step`` of version 2, or ``4:memory:/job/step`` of version 1.
    """
    text = _OWN_GROUPS.read_text(encoding="utf-8", errors="surrogateescape") if _OWN_GROUPS.exists() else ""
    for _, controllers, group in (line.split(":", 2) for line in text.splitlines()):
        if not controllers or controller in controllers.split(","):
            own = PurePosixPath(group.lstrip("/"))
            yield from (_GROUPS / controllers / above for above in (own, *own.parents))


def _numbers(file: Path) -> list[int]:
    """What stands in it: nothing where there is no limit, or a container does not show it."""
    with suppress(OSError, ValueError):
        return [int(word) for word in file.read_text(encoding="ascii").split()]
    return []
