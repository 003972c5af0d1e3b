"""FAULTS M1: the number of threads follows the cores that other programs leave free."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import ceit_cli
from ceit.inference import cores
from ceit.inference.cores import LOOK_SECONDS, FreeCores, Usage, sharing_cores, taken_by_others, usage
from ceit.train.run import train
from tests.train.conftest import SMALL

MAIN, ENDED, WORKER = 0, -1, 71
Script = Callable[..., None]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """A machine of so many cores on which other programs take, second by second, so many of them; at last none."""

    def play(taken: Sequence[float], machine_cores: int = 2) -> None:
        clock = [0.0]
        left = iter(taken)
        busy = [0.0]

        def look() -> Usage:
            now = Usage(clock[0], busy[0], {MAIN: 0.0}, machine_cores)
            busy[0] += LOOK_SECONDS * next(left, 0.0)
            return now

        def seconds() -> float:
            clock[0] += LOOK_SECONDS
            return clock[0]

        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(cores, "usage", look)
        monkeypatch.setattr(cores, "time", SimpleNamespace(monotonic=seconds))
        torch.set_num_threads(machine_cores)

    return play


def followed(looks: int, said: list[str] | None = None) -> list[int]:
    """The number of threads after each look."""
    free = FreeCores([].append if said is None else said.append)
    found = []
    for _ in range(looks):
        free.follow()
        found.append(torch.get_num_threads())
    return found


@pytest.mark.parametrize(
    ("taken", "machine_cores", "threads"),
    [
        ([0.0, 0.0, 0.0], 2, [2, 2, 2]),
        ([0.5, 0.5], 2, [2, 2]),  # shared with, rather than left a whole core
        ([0.67, 1.0, 1.0], 2, [1, 1, 1]),  # what a busy program gets beside two of our threads, and beside one
        ([1.0, 0.0, 1.0], 2, [1, 2, 1]),
        ([2.0, 1.0], 2, [1, 1]),
        ([1.0, 3.0, 15.9, 0.0], 16, [15, 13, 1, 16]),
    ],
)
def test_m1_threads_are_as_many_as_the_cores_left(
    script: Script, taken: list[float], machine_cores: int, threads: list[int]
) -> None:
    script(taken, machine_cores)
    assert followed(len(taken)) == threads


def test_m1_it_is_said_once(script: Script) -> None:
    said: list[str] = []
    script([1.0, 0.0, 1.0, 0.0])
    followed(4, said)
    assert len(said) == 1
    assert said[0].startswith("other programs take 1.0 of the 2 cores: computing in 1 of 2 threads")
    assert "OMP_NUM_THREADS" in said[0]


def test_m1_what_this_process_and_its_workers_use_is_not_taken_by_others() -> None:
    before = Usage(10.0, 100.0, {MAIN: 5.0, ENDED: 1.0, WORKER: 3.0}, 2)
    after = Usage(12.0, 104.0, {MAIN: 7.0, ENDED: 1.0, WORKER: 4.0}, 2)
    assert taken_by_others(before, after) == pytest.approx(0.5)
    ended = Usage(12.0, 104.0, {MAIN: 7.0, ENDED: 4.5, 72: 0.5}, 2)  # the worker after half a second of work
    assert taken_by_others(before, ended) == pytest.approx(0.5)
    assert taken_by_others(before, Usage(12.0, 101.0, {MAIN: 7.0, ENDED: 1.0, WORKER: 3.0}, 2)) == 0.0


def test_m1_a_worker_that_has_ended_was_not_another_program() -> None:
    before = usage()
    worker = multiprocessing.Process(target=_work_for_a_while)
    worker.start()
    seen = usage()
    while worker.pid in (after := usage()).own:
        assert sum(after.own.values()) >= sum(seen.own.values())
    assert worker.pid in seen.own
    assert worker.pid not in after.own
    assert sum(after.own.values()) - sum(before.own.values()) > 0.4


def _work_for_a_while() -> None:
    while time.process_time() < 0.5:
        pass


def test_m1_a_busy_program_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = usage()
        with pytest.raises(subprocess.TimeoutExpired):
            busy.wait(timeout=2)
        assert taken_by_others(before, usage()) > 0.3
    finally:
        busy.kill()
        busy.wait()


def test_m1_polite_programs_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times(percpu=True)
    beside = [core._replace(nice=core.nice + 1e6) for core in times]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: beside)
    polite = usage().machine
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times)
    assert polite == usage().machine


def test_m1_only_the_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    core = psutil.cpu_times(percpu=True)[0]
    cores_of_machine = [core._replace(user=float(number)) for number in (1000, 2000, 4000, 8000)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores_of_machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    whole = usage()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3})
    part = usage()
    assert (whole.cores, part.cores) == (4, 2)
    beside_user = whole.machine - 15_000  # the cores differ in nothing else
    assert whole.machine - part.machine == pytest.approx(5000 + beside_user / 2)


@pytest.mark.parametrize("failure", [PermissionError("/proc/stat"), psutil.AccessDenied()])
def test_m1_a_system_that_hides_its_use_changes_nothing(
    script: Script, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def refused() -> Usage:
        raise failure

    script([])
    monkeypatch.setattr(cores, "usage", refused)
    assert followed(3) == [2, 2, 2]


@pytest.mark.parametrize(("follows", "own"), [(False, None), (True, "2")])
def test_m1_the_number_stays_where_it_was_set(
    script: Script, monkeypatch: pytest.MonkeyPatch, follows: bool, own: str | None
) -> None:
    script([1.0, 1.0])
    if own is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    with sharing_cores(follows) as free:
        assert free is None
    assert torch.get_num_threads() == 2


def test_m1_threads_are_given_back(script: Script) -> None:
    script([1.0, 1.0])

    def stopped() -> None:
        with sharing_cores(True) as free:
            assert free is not None
            free.follow()
            assert torch.get_num_threads() == 1
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("options", "share_cores", "expected"),
    [({}, True, {1}), ({"deterministic": True}, True, {2}), ({}, False, {2})],
)
def test_m1_training_and_its_validation_follow(
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict[str, Any],
    share_cores: bool,
    expected: set[int],
) -> None:
    seen: set[int] = set()
    said: list[str] = []
    script([1.0] * 1000)
    train(
        replace(SMALL, epochs=1, **options),
        "digits",
        tmp_path / "run",
        say=said.append,
        show=lambda state: seen.add(torch.get_num_threads()),
        observe_test=lambda logits, labels: seen.add(torch.get_num_threads()),
        share_cores=share_cores,
    )
    assert seen == expected
    assert any("other programs take" in line for line in said) == (expected == {1})
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("exported", [False, True])
def test_m1_evaluating_follows_and_says_so_but_not_with_threads_of_another_run_time(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported: bool
) -> None:
    train(replace(SMALL, epochs=1), "digits", tmp_path / "run", share_cores=False)
    subject = tmp_path / "run"
    if exported:
        subject = tmp_path / "model.pt2"
        export = ["export", "--checkpoint", str(tmp_path / "run"), "--format", "torch", "--output", str(subject)]
        assert ceit_cli.main(export) == 0
    script([1.0] * 1000)
    assert ceit_cli.main(["evaluate", "--checkpoint", str(subject), "--data", "digits"]) == 0
    assert ("other programs take 1.0 of the 2 cores" in capsys.readouterr().err) == (not exported)
    assert torch.get_num_threads() == 2
