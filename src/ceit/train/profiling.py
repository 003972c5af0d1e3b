"""Where the time of a training step goes: a few steps of a run under torch's profiler."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from ceit.atomic import replace_files
from ceit.messages import Say

FOLDER, TRACE, OPERATORS = "profile", "trace.json.gz", "operators.txt"
WARM_UP_STEPS, STEPS = 10, 5
_ROWS, _NAME_COLUMNS = 40, 60
_ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}


class StepProfile:
    """Some steps after a warm-up, or half of the steps that a short run has left.

    ``profile/trace.json.gz`` in ``directory`` is for chrome://tracing or Perfetto, ``profile/operators.txt`` names what
    takes most time itself. ``steps_left`` is at least 1.
    """

    def __init__(self, directory: Path, device: torch.device, steps_left: int, say: Say) -> None:
        self.folder, self.device, self.say = directory / FOLDER, device, say
        self.first = min(WARM_UP_STEPS, -(-steps_left // 2))
        self.steps = min(STEPS, steps_left - self.first)
        self.taken, self.began, self.waited_seconds = 0, 0.0, 0.0
        activities = {ProfilerActivity.CPU, _ACTIVITIES.get(device.type, ProfilerActivity.CPU)}
        self.profiler = profile(activities=activities)
        self.is_on = self.is_written = False

    def step_ended(self, waited_seconds: float) -> None:
        """After each step, which waited so long for its images: begin, go on, or write the files."""
        self.taken += 1
        self.waited_seconds += waited_seconds
        if self.taken == self.first and self.steps:
            self._wait()
            self.profiler.start()
            self.is_on, self.began, self.waited_seconds = True, time.perf_counter(), 0.0
        elif self.taken == self.first + self.steps and self.is_on:
            self._wait()
            seconds = time.perf_counter() - self.began
            self._stop()
            self._write(seconds)

    def close(self) -> None:
        """The run is over, perhaps too early: then that is said."""
        self._stop()
        if not self.is_written:
            least = self.first + max(1, self.steps)
            self.say(f"nothing is profiled: the run has ended after {self.taken} of the {least} steps that this takes")

    def _stop(self) -> None:
        if self.is_on:
            self.profiler.stop()
            self.is_on = False

    def _write(self, seconds: float) -> None:
        averages = self.profiler.key_averages()
        columns = ["self_cpu_time_total", *(["self_device_time_total"] if self.device.type in _ACTIVITIES else [])]
        rate, waited = self.steps / seconds, 100 * self.waited_seconds / seconds
        first, last = self.first + 1, self.first + self.steps
        title = f"Steps {first} to {last} of this start on {self.device}: {rate:.3g} steps/s under the profiler, "
        tables = [averages.table(sort_by, row_limit=_ROWS, max_name_column_width=_NAME_COLUMNS) for sort_by in columns]
        waiting = f"{waited:.1f} % of the time waiting for images. The end of an epoch counts, if it lies among them."
        text = "\n\n".join([title + waiting, *tables]) + "\n"
        self.folder.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix="ceit-") as made:
            trace = Path(made, TRACE)
            self.profiler.export_chrome_trace(str(trace))
            contents: dict[Path, bytes] = {self.folder / TRACE: trace.read_bytes()}
        replace_files(contents | {self.folder / OPERATORS: text.encode()})
        self.is_written = True
        self.say(f"where the time of steps {first} to {last} went: {self.folder / OPERATORS}, and {TRACE} beside it")

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
