"""The processes that arms are measured in, as their parent sees them: started, asked, paused between, ended."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import psutil

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Memory = Literal["kept", "default", "returned"]
"""Memory that is freed: kept by the process, left to the allocator, or given back to the system at once."""
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc then gives every large tensor back when it is freed, so that resident memory is what is in use."""
REQUEST_SECONDS = 1200  # in which every request is answered: compiling and calibrating included
SPARE_BYTES = 1 << 30  # of memory, left free


class ArmError(ValueError):
    """An arm cannot be measured; its text is the sentence for the arm's row."""


class Process:
    """A worker process with its thread count set before anything is imported; use it in a ``with`` statement.

    Between requests it is blocked on a pipe and computes nothing. Raises: ArmError if too little memory is free.
    """

    def __init__(self, threads: int, *, memory: Memory) -> None:
        free = psutil.virtual_memory().available
        if free < SPARE_BYTES:
            raise ArmError(f"{free >> 20} MiB of memory are free, too few for one more process: measure fewer at once")
        self.folder = TemporaryDirectory(prefix="ceit-")
        self.messages = Path(self.folder.name, "messages.txt")
        self.started, returned = time.time(), memory == "returned"
        with self.messages.open("wb") as messages:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ceit.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | (RETURN_MEMORY if returned else {}),
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is the parent's to answer
            )
        self.answers: queue.Queue[str] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.ask("begin", threads=threads, keep_memory=memory == "kept")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request. Raises: ArmError with what went wrong in the process, or if it ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=REQUEST_SECONDS)
        except queue.Empty:
            self.close()
            raise ArmError(f"no answer in {REQUEST_SECONDS} seconds") from None
        except OSError:  # the pipe is broken
            line = ""
        if not line:
            raise ArmError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise ArmError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.listener.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not yet sent has nobody to read it
                pipe.close()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def _last_words(self) -> str:
        code = self.process.wait()
        lines = self.messages.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the process ended with code {code}" + (f": {lines[-1].strip()}" if lines else "")
