"""Experiment trackers by name, through accelerate's: a tracker's package is imported only where it is asked for."""

import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ceit.atomic import write_text

FILE = "trackers.json"
PROJECT = "ceit"
BY_ITSELF = ("tensorboard",)
"""What logs a run that names no tracker, if it is installed."""


def chosen_trackers(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The trackers asked for; for None TensorBoard, if it is installed.

    Raises: ValueError for one whose package is not installed, with the command that installs it.
    """
    if names is None:
        return BY_ITSELF if all(map(_is_installed, BY_ITSELF)) else ()
    for name in names:
        if not _is_installed(name):
            package = "'ceit-vision[tensorboard]'" if name == "tensorboard" else name
            fix = f"pip install {package}, or leave it out of --tracker"
            raise ValueError(f"the tracker {name} is not installed: {fix}")
    return names


def _is_installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of that name, as wandb leaves behind, has no origin."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def start_trackers(
    accelerator: Accelerator, names: tuple[str, ...], output: Path, options: Mapping[str, Any], resumed_step: int | None
) -> None:
    """Begin a run with each tracker; after ``resumed_step`` go on with the run that ``trackers.json`` names.

    To be called in the main process alone, so that no other logs. The run is named as ``output``, in the project or
    experiment ``ceit`` unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` name another. It gets the options, with
    dots where they have sections. TensorBoard does not: its files lie beside ``config.yaml``. Raises: ValueError if a
    tracker cannot begin, in its own words.
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
    except Exception as error:  # of a package's own, such as one that asks to log in
        raise ValueError(f"tracking with {', '.join(names)} cannot begin: {error}") from error
    if "mlflow" in trackers:
        if "mlflow" not in known:
            trackers["mlflow"].store_init_configuration(config)
        known["mlflow"] = trackers["mlflow"].tracker.info.run_id
    if known:
        write_text(saved, json.dumps(known) + "\n")


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
