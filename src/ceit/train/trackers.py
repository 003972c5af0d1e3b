"""Experiment trackers by name, through accelerate's: a tracker's package is imported only where it is asked for."""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ceit.atomic import write_text
from ceit.machine import MachineError
from ceit.messages import Say, in_words

FILE = "trackers.json"
PROJECT = "ceit"
BY_ITSELF = ("tensorboard",)
"""What logs a run that names no tracker, if it is installed."""


LEFT_ALONE_SECONDS = 600.0
"""A tracker that has not taken what it was told is not told anything for so long: it may take minutes to give up."""


_STARTED = "run", "writer", "active_run"  # what accelerate's trackers have once they have started


class CannotBeginError(ValueError):
    """A tracker that a run asks for does not begin, which is no fault of the run."""


class TrackerError(Exception):
    """A tracker's package has failed; the words are its own."""


def chosen_trackers(names: tuple[str, ...] | None, say: Say) -> tuple[str, ...]:
    """The trackers asked for; for None TensorBoard, if it is installed. One that then does not work is done without.

    Raises: ValueError for one whose package is not installed, with the command that installs it.
    """
    if names is None:
        if not all(map(_is_installed, BY_ITSELF)):
            return ()
        try:
            _import_tensorboard()
        except TrackerError as error:
            say(f"TensorBoard is installed and does not work, so it gets no curves: {error}")
            return ()
        return BY_ITSELF
    for name in names:
        if not _is_installed(name):
            package = '"ceit-vision[tensorboard]"' if name == "tensorboard" else name
            fix = f"pip install {package}, or leave it out of --tracker"
            raise MachineError(f"the tracker {name} is not installed: {fix}")
    return names


def _is_installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of that name, as wandb leaves behind, has no origin."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _import_tensorboard() -> None:
    """Raises: TrackerError if that fails, as with packages that do not fit each other."""
    try:
        import_module("torch.utils.tensorboard")
    except Exception as error:
        raise TrackerError(_words(error)) from error


def start_trackers(
    accelerator: Accelerator, names: tuple[str, ...], output: Path, options: Mapping[str, Any], resumed_step: int | None
) -> None:
    """Begin a run with each tracker; after ``resumed_step`` go on with the run that ``trackers.json`` names.

    To be called in the main process alone, so that no other logs. The run is named as ``output``, in the project or
    experiment ``ceit`` unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` name another. It gets the options, with
    dots where they have sections. TensorBoard does not: its files lie beside ``config.yaml``. Raises: CannotBeginError
    if a tracker cannot, in its own words.
    """
    saved = output / FILE
    known = json.loads(saved.read_text(encoding="utf-8")) if resumed_step is not None and saved.is_file() else {}
    config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in flat(options, ".")}
    trackers: dict[str, Any] = {}
    for name in names:
        project, own = PROJECT, dict[str, Any]()
        if name == "tensorboard":
            _let_the_run_tell()
            project, own = "tensorboard", {"logging_dir": output}
            own |= {} if resumed_step is None else {"purge_step": resumed_step + 1}
        elif name == "mlflow":
            own = {"run_id": known.get(name), "run_name": output.name}
        elif name == "wandb":
            project, own = os.environ.get("WANDB_PROJECT", PROJECT), {"name": output.name, "dir": str(output)}
            own |= {"id": known.setdefault(name, uuid.uuid4().hex), "resume": "allow", "config": config}
        else:  # trackio knows a run by its name
            own = {"name": known.setdefault(name, f"{output.name}-{uuid.uuid4().hex[:8]}")}
            own |= {"resume": "allow", "config": config}
        trackers[name] = LOGGER_TYPE_TO_CLASS[name](project, **own)
    accelerator.log_with = [*trackers.values()]
    try:
        accelerator.init_trackers(PROJECT)
        if "mlflow" in trackers and "mlflow" not in known:
            trackers["mlflow"].store_init_configuration(config)
    except Exception as error:  # of a package's own, such as one that asks to log in
        accelerator.trackers = [one for one in accelerator.trackers if any(hasattr(one, name) for name in _STARTED)]
        fix = "see to that, or leave it out of --tracker"
        raise CannotBeginError(f"tracking with {', '.join(names)} cannot begin: {error}; {fix}") from error
    if "mlflow" in trackers:
        known["mlflow"] = trackers["mlflow"].tracker.info.run_id
    if known:
        write_text(saved, json.dumps(known) + "\n")


class Telling:
    """Tells the trackers of a run what it has found. One that fails is left alone for a while, and the run goes on."""

    def __init__(self, accelerator: Accelerator, say: Say) -> None:
        self.accelerator, self.say, self._again = accelerator, say, dict[str, float]()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.accelerator.trackers:
            is_last = any(name.startswith("test/") for name in values)
            if time.monotonic() < self._again.get(tracker.name, 0.0) and not is_last:
                continue
            try:
                _tell(tracker, values, step)
            except TrackerError as error:
                self._again[tracker.name] = time.monotonic() + LEFT_ALONE_SECONDS
                later = f"it is told no more for {in_words(LEFT_ALONE_SECONDS)}; metrics.jsonl has everything"
                self.say(f"{tracker.name} has not taken the figures of step {step} ({error}): {later}")

    def end(self, failure: BaseException | None) -> None:
        """End their runs, as failed ones where the training has, and the accelerator's own."""
        for tracker in self.accelerator.trackers:
            try:
                _end(tracker, failure)
            except TrackerError as error:
                self.say(f"the run in {tracker.name} has not been ended ({error})")
        self.accelerator.trackers = []
        self.accelerator.end_training()


def _tell(tracker: Any, values: Mapping[str, float], step: int) -> None:
    if tracker.name in BY_ITSELF:  # in files beside those of the run, which a full disk stops as well
        tracker.log(values, step=step)
        return
    try:
        tracker.log(values, step=step)
    except Exception as error:
        raise TrackerError(_words(error)) from error


def _end(tracker: Any, failure: BaseException | None) -> None:
    try:
        if failure is not None and tracker.name == "mlflow":
            import_module("mlflow").end_run("KILLED" if isinstance(failure, KeyboardInterrupt) else "FAILED")
        elif failure is not None and tracker.name == "wandb":
            tracker.tracker.finish(exit_code=1)
        else:
            tracker.finish()
    except Exception as error:
        raise TrackerError(_words(error)) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _let_the_run_tell() -> None:
    """TensorBoard's writer raises again in the run what went wrong in its thread, so no traceback is printed there."""
    before = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard"):
            before(failure)

    threading.excepthook = tell


def flat(values: Mapping[str, Any], between: str) -> Iterator[tuple[str, Any]]:
    """Names and values of a mapping, and of mappings in it, whose names are joined."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{between}{name}", inner) for name, inner in flat(value, between))
        else:
            yield key, value
