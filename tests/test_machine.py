"""Cores and memory of a container or a cluster job, from files as Linux has them."""

import os
from pathlib import Path

import pytest
import torch

import ceit_cli
from ceit import machine
from ceit.inference.cores import keep_to_the_share
from ceit.machine import memory_bytes, usable_cores

CORES = frozenset(range(64))


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says in which groups this process is; the groups lie beside it."""
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: CORES, raising=False)
    return tmp_path / "cgroup"


def write(group: Path, line: str, **limits: str) -> None:
    group.write_text(f"1:name=systemd:/\n{line}\n")
    for name, text in limits.items():
        file = group.parent / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


def test_the_memory_of_the_machine_is_known() -> None:
    assert 2**28 < memory_bytes() < 2**45


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/", "memory.max"),
        ("0::/slurm/job_7/step_0", "slurm/job_7/memory.max"),
        ("4:memory:/slurm/job_7/step_0", "memory/slurm/job_7/memory.limit_in_bytes"),
        ("4:memory:/docker/of_the_host", "memory/memory.limit_in_bytes"),
    ],
)
def test_m5_the_memory_of_a_container_or_a_job_is_known(group: Path, line: str, file: str) -> None:
    write(group, line, **{file: "1000000"})
    assert memory_bytes() == 1_000_000
    write(group, line, **{file: "max"})
    assert memory_bytes() > 2**28
    group.unlink()
    assert memory_bytes() > 2**28


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/pod/container", {"cpu.max": "max 100000", "pod/cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "9900000 100000"}, 64),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 64),
        ("4:memory:/", {"memory/cpu.max": "100000 100000"}, 64),
    ],
)
def test_a_share_of_cores_counts_as_whole_cores(group: Path, line: str, files: dict[str, str], cores: int) -> None:
    write(group, line, **files)
    assert usable_cores() == cores


def test_commands_compute_in_as_many_threads_as_they_have_cores(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    write(group, "0::/", **{"cpu.max": "250000 100000"})
    try:
        torch.set_num_threads(7)
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        keep_to_the_share()
        assert torch.get_num_threads() == 7
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert ceit_cli.main(["info", "ceit_pico_patch4_32"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
