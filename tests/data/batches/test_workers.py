"""Processes that make batches: kept from epoch to epoch, ended with training; a failure in one is one sentence."""

import gc
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_sharer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from ceit.data.batches import workers
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.image import BrokenImageError, TooLargeError
from ceit.data.path_array import PathArray
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

    def name(self, index: int) -> str:
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


def test_no_file_stays_open_for_processes_that_have_ended() -> None:
    labels_of(loader_of(count=2), 0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        labels_of(loader_of(count=2), 0)
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


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
    subprocess.run(["sh", "-c", f"kill -TERM {own}; kill -INT {own}"], check=True)
    assert sum(len(labels) for _, labels in batches) == 20
    assert own in children()


@pytest.mark.parametrize("last", ["", "os.kill(own, signal.SIGSTOP)\n"], ids=["reading", "stopped"])
def test_a_command_that_ends_within_an_epoch_does_end(last: str) -> None:
    script = (
        "import os, signal\n"
        "import torch\n"
        "from test_workers import children, loader_of\n"
        "batches = loader_of(200).epoch(0)\n"
        "next(batches)\n"
        "(own,) = children()\n"
        f"{last}"
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
def test_a_file_that_broke_since_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("CEIT_MAX_MEGAPIXELS", "0.00002")
    large = tmp_path / "large"
    Image.new("L", (5, 5)).save(large, "PNG")
    allowed = "5 x 5 pixels, above the limit of 2e-05 megapixels; CEIT_MAX_MEGAPIXELS=1 in the environment allows them"
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for path in paths[:2]:
        Image.new("L", (4, 4)).save(path)
    for content, kind, message in (
        (b"no more", BrokenImageError, f"{paths[2]} cannot be read as an image (not an image)"),
        (large.read_bytes(), TooLargeError, f"{paths[2]} is too large ({allowed})"),
        (None, FileNotFoundError, f"[Errno 2] No such file or directory: '{paths[2]}'"),
    ):
        paths[2].unlink(missing_ok=True)
        if content is not None:
            paths[2].write_bytes(content)
        split = FileSplit(PathArray.of(paths), torch.arange(3))
        loader = make_loader(split, batch_size=2, img_size=(4, 4), preprocessing=GREY, workers=count)
        batches = loader.epoch(0)
        assert next(batches)[1].tolist() == [0, 1]
        with pytest.raises(kind) as caught:
            next(batches)
        assert str(caught.value) == message


def test_a_process_that_dies_is_told_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^a process that reads images died \(.*\); most often memory .* lower the"):
        labels_of(loader_of(deadly=7), 0)


@dataclass(frozen=True)
class Troubled(Slow):
    """The process that reads image 7 gets into trouble."""

    trouble: Callable[[], object] = object

    def read(self, index: int, in_chans: int, cover: tuple[int, int] | None = None) -> Image.Image:
        if index == 7:
            self.trouble()
        return super().read(index, in_chans, cover)


def troubled_loader(trouble: Callable[[], object]) -> Loader:
    split = Troubled(torch.arange(24), trouble=trouble)
    return make_loader(split, batch_size=4, img_size=(4, 4), preprocessing=GREY, workers=1)


@pytest.fixture
def no_endless_wait() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("a batch is waited for that never comes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def share_little() -> None:
    """From here on the file behind shared memory cannot grow, as where /dev/shm is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lack_memory() -> None:
    raise MemoryError


def ask_for_an_exabyte() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def fail_with_what_cannot_be_sent() -> None:
    raise OSError(threading.Lock())


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (
            share_little,
            r"^a batch of 0\.0 MB could not be put into /dev/shm, of whose \d+ MB \d+ are free \(.*File too large.*\): "
            "lower the batch size, set the workers to 0, or start a container with --shm-size=8g or --ipc=host$",
        ),
        (
            lack_memory,
            r"^no memory is left to read a batch of 4 images \(MemoryError\): lower the workers or the batch size$",
        ),
        (
            ask_for_an_exabyte,
            r"^no memory is left to read a batch of 4 images \(.* to allocate 11529.*\): lower the work.*$",
        ),
        (
            fail_with_what_cannot_be_sent,
            r"^a process that reads images died \(.*\); most often memory .* lower the .*$",
        ),
    ],
)
def test_a_process_that_cannot_send_a_batch_says_why(trouble: Callable[[], object], sentence: str) -> None:
    batches = troubled_loader(trouble).epoch(0)
    assert next(batches)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=sentence):
        next(batches)


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("batches_before", [0, 1])
def test_a_process_that_stops_before_it_hands_over_a_batch_is_not_waited_for(
    batches_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has come, so there is no waiting for one; but what it speaks of is still with its sender."""
    before, fetch, fetched = children(), resource_sharer.DupFd.detach, []

    def stopped_first(handle: resource_sharer.DupFd) -> int:
        if len(fetched) == 3 * batches_before:  # pixels, labels and noise
            for process in children() - before:
                os.kill(process, signal.SIGSTOP)
                os.waitid(os.P_PID, process, os.WSTOPPED)  # all threads of it are
        fetched.append(handle)
        return fetch(handle)

    loader = loader_of(count=2)
    batches = loader.epoch(0)
    monkeypatch.setattr(workers, "HANGING_SECONDS", 4)  # a busy machine may take a second for a batch
    monkeypatch.setattr(resource_sharer.DupFd, "detach", stopped_first)
    with pytest.raises(ValueError, match=r"no images have come for 4 s: .* or the processes that read were stopped"):
        list(batches)
    assert len(fetched) == 3 * batches_before + 1
    assert children() <= before


@pytest.mark.usefixtures("no_endless_wait")
def test_a_process_may_have_no_images_to_send() -> None:
    """Of the last batch, where training runs in several processes."""
    split = Slow(torch.arange(5))
    loader = make_loader(split, batch_size=4, img_size=(4, 4), preprocessing=GREY, workers=1, shard=(1, 2))
    assert [labels.tolist() for _, labels in loader.epoch(0)] == [[1, 3], []]


@pytest.mark.usefixtures("no_endless_wait")
@pytest.mark.parametrize("in_the_next_epoch", [False, True])
def test_an_interruption_acts_at_once_though_a_file_is_read_for_ever(in_the_next_epoch: bool) -> None:
    before = children()
    loader = troubled_loader(lambda: time.sleep(3600))
    batches = loader.epoch(0)
    next(batches)
    ctrl_c = threading.Timer(1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    ctrl_c.start()  # to the thread that waits: of a process with many threads any may get it
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(loader.epoch(1) if in_the_next_epoch else batches)
    while children() - before:
        time.sleep(0.02)
    assert time.monotonic() - began < 4
    ctrl_c.join()


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setattr(os.path, "isdir", lambda place: False)
    assert workers.usual_workers(10**9) == 12
    for processes, expected in ((2, 6), (4, 3), (24, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert workers.usual_workers(10**9) == expected
    monkeypatch.setattr(sys, "platform", "darwin")
    assert workers.usual_workers(1) == 0


def test_processes_are_as_many_as_shared_memory_holds_batches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(os.path, "isdir", lambda place: place == "/dev/shm")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=800))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert [workers.usual_workers(batch_bytes) for batch_bytes in (1, 10, 200, 900)] == [64, 20, 1, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [workers.usual_workers(batch_bytes) for batch_bytes in (1, 10)] == [32, 10]
