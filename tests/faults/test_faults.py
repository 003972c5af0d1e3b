"""Faults while a command writes: nothing is lost, nothing half-written. A small part of what ``make soak`` does."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ceit.atomic import write_text
from ceit.lock import take
from tests.faults.disk import Trouble
from tests.faults.trials import Ending, broken, half_written, how, judge

WRITE = "Path('file').write_bytes(b'0123456789')"


def in_a_process(folder: Path, trouble: Trouble, at: int, statements: str) -> subprocess.CompletedProcess[str]:
    lines = ["from pathlib import Path", "from tests.faults.disk import Disk"]
    lines += [f"Disk(Path.cwd(), {trouble!r}, {at}, Path({str(folder.parent / 'record')!r})).install()", statements]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    return place


def test_the_disk_kills_in_the_midst_of_a_write(folder: Path) -> None:
    ended = in_a_process(folder, "killed", 1, WRITE)
    assert ended.returncode == -signal.SIGKILL
    assert (folder / "file").read_bytes() == b"01234"
    assert (folder.parent / "record").read_text().split() == ["create", "write"]


@pytest.mark.parametrize("trouble", ["disk full", "disk read-only", "disk broken"])
def test_the_disk_fails_from_a_moment_on(folder: Path, trouble: Trouble) -> None:
    ended = in_a_process(folder, trouble, 1, f"try:\n {WRITE}\nexcept OSError as error: print(error.errno)\n{WRITE}")
    assert ended.returncode == 1
    assert ended.stdout.strip() in ("28", "30", "5")
    assert "OSError" in ended.stderr
    assert (folder / "file").read_bytes() in (b"01234", b"")


def test_what_lies_elsewhere_is_left_alone(folder: Path) -> None:
    ended = in_a_process(folder, "disk full", 0, "Path('../other').write_text('whole')")
    assert ended.returncode == 0
    assert (folder.parent / "other").read_text() == "whole"


def test_half_a_file_is_found(tmp_path: Path) -> None:
    save_file({"x": np.ones(9)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps({"x": 1}))
    np.save(tmp_path / "x.npy", np.ones(9))
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / ".y.json.1.tmp").write_text("{")
    assert (broken(tmp_path), half_written(tmp_path)) == ([], [".y.json.1.tmp"])
    names = ["x.csv", "x.json", "x.npy", "x.safetensors"]
    for name in names:
        os.truncate(tmp_path / name, 0 if name == "x.csv" else (tmp_path / name).stat().st_size - 1)
    assert broken(tmp_path) == names


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (0, "", "unharmed"),
        (1, "busy\nerror: no space left on the disk\n", "one sentence"),
        (1, "Traceback (most recent call last):\nOSError\nerror: what", "badly"),
        (1, "", "badly"),
        (-signal.SIGSEGV, "", "badly"),
        (-signal.SIGALRM, "killed after 120 s", "badly"),
        (-signal.SIGKILL, "", "killed"),
        (143, "stopped after step 3", "stopped"),
    ],
)
def test_endings_have_names(code: int, said: str, expected: str) -> None:
    assert how(Ending(code, said, 1.0)) == expected


def test_a_careless_writer_is_caught(tmp_path: Path) -> None:
    """One that leaves half a file where the whole one belongs, as no command of ours may."""
    (tmp_path / "found.json").write_text('{"half": ')
    killed = Ending(-signal.SIGKILL, "", 1.0)
    assert judge([], tmp_path, tmp_path / "log", killed, {}).wrong == "half-written: found.json"


def test_faults_lose_nothing() -> None:
    faults = ["killed inside a write", "killed at any moment", "disk full", "disk read-only from a moment on"]
    faults += ["terminated twice", "two at once", "a file cut or a bit turned over"]
    command = [
        sys.executable,
        "-m",
        "tests.faults",
        "--trials",
        "4",
        "--commands",
        "train",
        "predict",
        "fetch",
        "shard",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--faults", *faults]
    place = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("killed inside a write") == 4


def test_left_overs_of_dead_processes_go_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    names = [".out.json.17.tmp", ".out.json.17-140.tmp", ".out.json.my notes.tmp", ".out.json.old.18.tmp"]
    for name in names:
        (tmp_path / name).write_text("x")
    with (tmp_path / ".out.json.19.tmp").open("wb") as held:
        assert take(held)
        write_text(target, "{}")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".out.json.19.tmp", *names[2:], "out.json"])


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_text(tmp_path / "file", f"{number}" * 100), range(400)))
    assert len(set((tmp_path / "file").read_text())) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
