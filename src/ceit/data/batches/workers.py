"""Processes that make batches ahead of training, kept from epoch to epoch."""

import atexit
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, Dataset

from ceit.data.batches.batch import Batches, Request, Varied
from ceit.machine import usable_cores
from ceit.messages import in_words, is_lack_of_memory

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Forked, they share images and lists of files with their parent and begin at once. Python's own choice on Linux, from
3.14 on forkserver, would give each a copy of all that and have it import torch; it works too, as does spawn."""
_AHEAD = 2  # batches that each process keeps ready
_FILES, _OWN_FILES = 24, 200  # open at most: for a process that reads (12 were seen, twice), and for all else
HANGING_SECONDS = 600  # without a batch, after which the run ends instead of waiting for ever
_END_SECONDS = 2  # for a killed process to be gone; one that waits for a drive may take longer, and is left
_PARENT_SECONDS = 5  # between two looks at whether the parent is still there, if nothing says so at once
_SHARED_MEMORY = "/dev/shm"  # where Linux keeps what processes share

_started: WeakKeyDictionary[BaseProcess, int] = WeakKeyDictionary()
"""Those that may still run, and the process that started each; kept by others, as each holds open files."""


class Workers:
    """``count`` processes that answer requests in order, and so many batches ``ahead`` of what is asked for.

    A failure to read an image is raised where the batch is asked for, as the reader raised it.
    """

    def __init__(self, batches: Batches, count: int, pin_memory: bool) -> None:
        self.count, self.ahead = count, _AHEAD * count
        self._requests: list[Request] = []
        self._begun = 0
        self._processes: set[BaseProcess] = set()
        self._hang, self._started_by = threading.Event(), os.getpid()
        # With its own generator, for the workers' seeds would otherwise be drawn from torch's global one.
        self._loader = DataLoader(
            _InWorker(batches),
            batch_size=None,
            sampler=self._requests,
            num_workers=count,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=_begin_work,
            multiprocessing_context=START_METHOD,
        )

    def answer(self, requests: list[Request]) -> Iterator[Varied]:
        """The batches asked for, to be finished here. What an earlier call has not been asked for yet is dropped."""
        self._requests[:] = requests
        self._begun += 1
        others = multiprocessing.active_children()
        with nullcontext() if self._processes else _signals_held(), self._waiting():
            answers = self._begin()
        if not self._processes:
            self._processes = set(multiprocessing.active_children()).difference(others)
            _started.update(dict.fromkeys(self._processes, self._started_by))
        return self._answers(answers, self._begun)

    def _begin(self) -> Iterator[Varied | Exception]:
        """Starts the processes, or has those that there are begin anew."""
        _keep_quiet_about_ends()
        try:
            return iter(self._loader)
        except OSError as error:
            reason = error.strerror
        raise ValueError(f"{self.count} processes to read images could not be started ({reason}): lower the workers")

    def _answers(self, answers: Iterator[Varied | Exception], number: int) -> Iterator[Varied]:
        while True:
            if number != self._begun:
                raise RuntimeError("another epoch of this loader has begun, so this one cannot go on")
            with self._waiting():
                answer = next(answers, None)
            if answer is None:
                return
            if isinstance(answer, Exception):
                try:
                    raise answer
                finally:
                    del answer  # whose traceback would keep it, and the processes, until garbage is collected
            yield answer

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Tells of a process that died meanwhile, or hangs; and ends all at once if this one is to end."""
        # DataLoader's own time limit counts the time for which this process is stopped (Ctrl-Z), and is for a message.
        # This says where the batch lies in shared memory, which its sender is then asked for. If that was stopped by
        # then, it never answers.
        done = threading.Event()
        try:
            if self._processes:  # else they are started in here, which is better done without other threads
                watched = done, self._processes, self._hang
                threading.Thread(target=_end_if_hanging, args=watched, daemon=True).start()
            yield
        except (RuntimeError, OSError, EOFError) as error:
            if str(error) == "can't start new thread":
                _kill(self._processes, self._started_by)
                fix = "lower the workers or the batch size, or end other programs"
                raise ValueError(f"no memory is left to wait for images ({error}): {fix}") from None
            if "Too many open files" in str(error):
                raise ValueError("too many open files: lower the workers, or raise the limit (ulimit -n)") from None
            if self._hang.is_set():
                _kill(self._processes, self._started_by)
                reason = "a disk or a network drive does not answer, or the processes that read were stopped"
                fix = "see to that, or lower the batch size, then go on (ceit train: --resume auto)"
                raise HangingError(f"no images have come for {in_words(HANGING_SECONDS)}: {reason}; {fix}") from None
            if not str(error).startswith("DataLoader worker"):
                raise
            raise ValueError(f"a process that reads images died ({str(error).strip(' .')}); {_advice()}") from None
        except (KeyboardInterrupt, SystemExit):
            if hasattr(signal, "sigwaitinfo"):  # elsewhere DataLoader would take their end for a failure
                for process in self._processes:  # it would wait five seconds for each that is stuck in a file
                    process.terminate()
            raise
        finally:
            done.set()


class HangingError(ValueError):
    """No images come, for a reason that lies in the machine."""


def _end_if_hanging(done: threading.Event, processes: set[BaseProcess], hang: threading.Event) -> None:
    """Ends all processes after so many seconds in which this one was not stopped."""
    for _ in range(HANGING_SECONDS):
        if done.wait(1):
            return
    _end_all(processes, hang)


def _kill(processes: set[BaseProcess], started_by: int) -> None:
    """Processes that hang do not end by themselves, and whoever started them would wait for them at its own end."""
    if started_by != os.getpid():  # in a copy of that one
        return
    with _deaths_untold():
        for process in processes:
            process.kill()
            process.join(_END_SECONDS)


@atexit.register
def _kill_those_left() -> None:
    """Before Python waits for them, which it does without a limit."""
    for process, started_by in list(_started.items()):
        _kill({process}, started_by)


def _end_all(processes: set[BaseProcess], told: threading.Event) -> None:
    """In a thread; whoever waits for one of them then learns that it has ended."""
    told.set()
    for process in processes:
        process.kill()


def _advice() -> str:
    """What most often kills a process; one that is spawned reads the script again, which must not start it anew."""
    full = "memory or /dev/shm" if os.path.isdir(_SHARED_MEMORY) else "memory"
    advice = f"most often {full} was full: lower the workers or the batch size"
    if START_METHOD == "spawn" and "ceit_cli" not in sys.modules:
        advice += '; or your script lacks if __name__ == "__main__": before what it does'
    return advice


@dataclass(frozen=True)
class _InWorker(Dataset[Varied | Exception]):
    """The batch in shared memory, or the failure itself, which DataLoader would wrap into the text of a traceback."""

    batches: Batches

    def __getitem__(self, request: Request) -> Varied | Exception:
        try:
            batch = self.batches.read(request)
        except (ValueError, OSError) as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            reason = str(error) or "MemoryError"
            fix = "lower the workers or the batch size"
            return ValueError(f"no memory is left to read a batch of {len(request[1])} images ({reason}): {fix}")
        return _shared(batch)


@contextmanager
def _deaths_untold() -> Iterator[None]:
    """DataLoader has a signal raise, at once and anywhere, when a process dies; but not in here."""
    number = getattr(signal, "SIGCHLD", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def _keep_quiet_about_ends() -> None:
    """A DataLoader that is dropped prints a traceback if it was not made whole, or a process of it has died: of that
    the caller has been told in a sentence by then."""
    before = sys.unraisablehook
    if getattr(before, "__module__", None) == __name__:  # so it is already
        return

    def tell(failure: "sys.UnraisableHookArgs") -> None:
        if getattr(failure.object, "__qualname__", None) != "_MultiProcessingDataLoaderIter.__del__":
            before(failure)

    sys.unraisablehook = tell


def _shared(batch: Varied) -> Varied | ValueError:
    """The batch in shared memory, or why not: where it is sent from, in another thread, nobody would hear of that."""
    tensors = batch.pixels_bhwc, batch.labels_b, batch.noise
    try:
        for tensor in filter(len, tensors):  # there is no sharing nothing
            tensor.share_memory_()
    except RuntimeError as error:
        place = "shared memory"
        if os.path.isdir(_SHARED_MEMORY):
            space = shutil.disk_usage(_SHARED_MEMORY)
            place = f"{_SHARED_MEMORY}, of whose {space.total / 1e6:.0f} MB {space.free / 1e6:.0f} are free"
        megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
        fix = "lower the batch size, set the workers to 0, or start a container with --shm-size=8g or --ipc=host"
        return ValueError(f"a batch of {megabytes:.1f} MB could not be put into {place} ({error}): {fix}")
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """What starts now does not get Ctrl-C, SIGTERM and SIGHUP; what was sent here arrives afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_work(worker: int) -> None:
    """Ctrl-C and preemption signals are for the main process, which still needs batches to finish its step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    queues: Any = Queue
    queues._on_queue_feeder_error = staticmethod(_end_for)  # Python's own goes on, while the batch is waited for
    parent = multiprocessing.parent_process()
    assert parent is not None
    listeners = [threading.Thread(target=_end_with, args=(parent.sentinel, os.getppid()), daemon=True)]
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent the signal; not so on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        listeners.append(threading.Thread(target=_end_when_the_parent_says, args=(parent.pid,), daemon=True))
    for listener in listeners:
        listener.start()
    gc.freeze()  # else the first collection copies the parent's memory, page by page


def _end_for(error: Exception, answer: object) -> None:
    """Ends this process, whose answer cannot be sent. Whoever waits for it is told that the process has ended."""
    print(f"a process that reads images cannot send them: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_with(parent: int, started_by: int) -> None:
    """Ends this process with its parent, of which ``parent`` tells; and with what started it, often the same.

    Processes that were forked later keep an older one from being told, until they have ended themselves.
    """
    while not wait([parent], _PARENT_SECONDS) and os.getppid() == started_by:
        continue
    os._exit(0)


def _end_when_the_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)


def usual_workers(batch_bytes: int) -> int:
    """One for each usable core, as far as the two batches that each keeps ready fit into half of the shared memory, and
    the files that this process may open suffice.

    The training processes of a machine share cores and memory. At least one; 0 on macOS and Windows.
    """
    if sys.platform in ("darwin", "win32"):
        return 0
    import resource  # of Unix alone

    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    cores = usable_cores() // processes
    if os.path.isdir(_SHARED_MEMORY):
        room = shutil.disk_usage(_SHARED_MEMORY).free // 2 // processes
        cores = min(cores, room // (_AHEAD * batch_bytes))
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files != resource.RLIM_INFINITY:
        cores = min(cores, (open_files - _OWN_FILES) // _FILES)
    return max(1, cores)
