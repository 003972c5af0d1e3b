"""Processes that make batches: kept from epoch to epoch, ended with training; a failure in one is one sentence."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ceit.data.batches import workers
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.image import BrokenImageError
from ceit.data.preprocessing import Preprocessing
from ceit.data.splits import FileSplit

GREY = Preprocessing((0.5,), (0.5,))


@dataclass(frozen=True)
class Slow:
    """Grey images whose value is their number; each takes a while to read."""

    labels: Tensor
    deadly: int = -1  # the image that ends the process which reads it
    digests: None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, in_chans: int, cover: tuple[int, int] | None = None) -> Image.Image:
        time.sleep(0.02)
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("L", (4, 4), index)

    def key(self, index: int) -> str:
        return str(index)

    def subset(self, indices: Tensor) -> "Slow":
        return Slow(self.labels[indices])


def loader_of(images: int = 24, count: int = 1, deadly: int = -1) -> Loader:
    split = Slow(torch.arange(images), deadly)
    return make_loader(split, batch_size=4, img_size=(4, 4), preprocessing=GREY, workers=count)


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def labels_of(loader: Loader, epoch: int) -> list[int]:
    return torch.cat([labels for _, labels in loader.epoch(epoch)]).tolist()


def pixels_of(loader: Loader, epoch: int) -> Tensor:
    return torch.cat([images for images, _ in loader.epoch(epoch)])


def test_processes_stay_for_the_next_epoch_and_end_with_the_loader() -> None:
    before = children()
    loader = loader_of(count=2)
    assert children() == before
    assert labels_of(loader, 0) == list(range(24))
    own = children() - before
    assert len(own) == 2
    assert labels_of(loader, 1) == list(range(24))
    assert children() - before == own
    del loader
    gc.collect()
    assert children() == before


def test_an_epoch_that_is_left_does_not_show_up_in_the_next() -> None:
    loader = loader_of()
    left = loader.epoch(0)
    next(left)
    assert labels_of(loader, 1) == list(range(24))
    with pytest.raises(RuntimeError, match="another epoch of this loader has begun"):
        next(left)


def test_signals_meant_for_training_do_not_end_the_processes() -> None:
    """A terminal's Ctrl-C and a cluster's SIGTERM reach all processes; training still needs batches to end its step."""
    before = children()
    loader = loader_of()
    batches = loader.epoch(0)
    next(batches)
    (own,) = children() - before
    subprocess.run(["kill", "-TERM", str(own)], check=True)
    subprocess.run(["kill", "-INT", str(own)], check=True)
    assert sum(len(labels) for _, labels in batches) == 20
    assert own in children()


def test_a_command_that_ends_within_an_epoch_does_end() -> None:
    script = (
        "import torch\n"
        "from test_workers import loader_of\n"
        "batches = loader_of(200).epoch(0)\n"
        "next(batches)\n"
        "print('ended')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert (ended.stdout, ended.stderr) == ("ended\n", "")


KILLED = """
import gc, os, signal, sys, time
import torch
from test_workers import children, labels_of, loader_of, pixels_of
from ceit.data.batches import workers
workers.START_METHOD = sys.argv[1]
loader, alone = loader_of(12), loader_of(12, count=0)
assert torch.equal(pixels_of(loader, 3), pixels_of(alone, 3))
(own,) = children()
for number in (signal.SIGINT, signal.SIGTERM):  # not from here, but as from a terminal or a scheduler
    if os.fork() == 0:
        os.kill(own, number)
        os._exit(0)
    os.wait()
assert labels_of(loader, 4) == list(range(12))
began = time.monotonic()
del loader
gc.collect()
assert not children() and time.monotonic() - began < 3, "it does not end when its parent says so"
loader = loader_of(200, count=int(sys.argv[2]))
next(loader.epoch(0))
print(*children(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("method", "count"), [("fork", 2), ("forkserver", 1), ("spawn", 1)])
def test_m6_processes_work_and_end_with_training_however_they_are_started(method: str, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", KILLED, method, f"{count}"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert "Traceback" not in killed.stderr  # Python may well tell of the semaphores that it puts away
    workers_of_it = [int(number) for number in killed.stdout.split()]
    assert len(workers_of_it) == count
    until = time.monotonic() + 4
    while any(map(is_running, workers_of_it)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_running, workers_of_it))


def is_running(process: int) -> bool:
    """Whether a process has not ended yet, be it that nobody has asked how it ended."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_m6_the_way_of_starting_is_stated() -> None:
    """Python's own choice changes from version to version, and what it was is not what it will be."""
    loader = loader_of()
    assert loader.workers is not None
    context = loader.workers._loader.multiprocessing_context
    assert context is not None
    assert context.get_start_method() == workers.START_METHOD == "fork"


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_broke_since_is_named_in_one_sentence(tmp_path: Path, count: int) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for path in paths[:2]:
        Image.new("L", (4, 4)).save(path)
    for content, kind, message in (
        (b"no more", BrokenImageError, f"{paths[2]} cannot be read as an image (not an image)"),
        (None, FileNotFoundError, f"[Errno 2] No such file or directory: '{paths[2]}'"),
    ):
        paths[2].unlink(missing_ok=True)
        if content is not None:
            paths[2].write_bytes(content)
        split = FileSplit(paths, torch.arange(3))
        loader = make_loader(split, batch_size=2, img_size=(4, 4), preprocessing=GREY, workers=count)
        batches = loader.epoch(0)
        assert next(batches)[1].tolist() == [0, 1]
        with pytest.raises(kind) as caught:
            next(batches)
        assert str(caught.value) == message


def test_a_process_that_dies_is_told_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^a process that reads images died \(.*\); most often memory .* lower the"):
        labels_of(loader_of(deadly=7), 0)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert workers.usual_workers() == 8
    for processes, expected in ((2, 6), (4, 3), (24, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert workers.usual_workers() == expected
    monkeypatch.setattr(sys, "platform", "darwin")
    assert workers.usual_workers() == 0
