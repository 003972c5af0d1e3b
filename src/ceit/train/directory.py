"""The directory of a run: whose it is, what was saved in it, and what a resumed run takes up."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ceit.atomic import replace_files
from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.record import ImageRecord
from ceit.lock import InUseError, locked
from ceit.paths import expanded
from ceit.train.checkpoint import checkpoints_in
from ceit.train.recipe import without_retired

LOCK = ".lock"
MAY_CHANGE = ("data", "device_batch_size", "workers", "keep_checkpoints", "checkpoint_every_steps", "log_every_steps")
"""Options of the machine and of the log, and where the data lie; the images of each step are the same all the same."""
_CONSEQUENCE = {
    "device_batch_size": ": unless it is frozen, BatchNorm takes its statistics from other images from here on, and "
    "the weights will be others than without the change"
}
_LENGTH_AND_IMAGES = ("epochs", "steps", "found", "images")  # of config.yaml, beside the other options
_RESULTS = ("model.safetensors", "test.json")
_HALF_WRITTEN = ".*.tmp"


@contextmanager
def owned(output: Path, resuming: bool, say: Callable[[str], None]) -> Iterator[None]:
    """The output directory, for this run alone; a run that fails before it has written anything leaves nothing behind.

    One that was stopped when it had written no more than the record of its images may be begun anew.

    Raises: ValueError if the directory holds something that is not to be resumed, or another run is writing it.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; name a directory")
    lock_file = output / LOCK
    is_new = not output.is_dir()
    held = set() if is_new else {path.name for path in output.iterdir() if path != lock_file}
    if held and not resuming:
        raise ValueError(f"output directory {output} is not empty; name another, or go on with --resume auto")
    held -= {path.name for path in output.glob(_HALF_WRITTEN)}
    if held == {IMAGES_FILE}:
        ImageRecord.read(output)  # a list of somebody's images of that name is not written over
    elif held and not checkpoints_in(output / "checkpoints") and ("config.yaml" not in held or held & set(_RESULTS)):
        raise ValueError(f"output directory {output} holds files but no run that can be resumed; name another")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with locked(lock_file, say):
            for left_over in (*output.glob(_HALF_WRITTEN), *output.glob(f"checkpoints/{_HALF_WRITTEN}")):
                left_over.unlink()  # of a run that was killed while it was writing
            yield
    except InUseError as error:
        raise InUseError(f"output directory {output} is in use by another run; name another") from error
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                output.rmdir()


def checkpoints_to_resume(output: Path, resume: str | None) -> list[Path]:
    """What to try in turn, the newest first: none for a fresh start.

    Raises: ValueError for a path that is no checkpoint of this run.
    """
    found = checkpoints_in(output / "checkpoints")[::-1]
    if resume is None or resume == "auto":
        return found if resume else []
    asked = expanded(resume)
    if asked.resolve() not in [path.resolve() for path in found]:
        raise ValueError(f"{resume} is no checkpoint of the run in {output}; --resume auto takes the newest there is")
    return [asked]


def saved_config(output: Path) -> dict[str, Any]:
    """The resolved configuration that a run was started with. Raises ValueError if it is missing or damaged."""
    path = output / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read, without it the run cannot be resumed") from error
    if not isinstance(values, dict) or not {"data", "epochs", "precision"} <= values.keys():
        raise ValueError(f"{path} is not the configuration of a run, without it the run cannot be resumed")
    return values


def require_same(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Sentences for the options that a resumed run may change, and does.

    Raises: ValueError naming the first other option in which it would differ from the run that was started.
    """
    changes = []
    for key, value in without_retired(saved).items():
        if asked.get(key) == value:
            continue
        if key in MAY_CHANGE:
            changes.append(f"{key} was {value}, now {asked.get(key)}{_CONSEQUENCE.get(key, '')}")
        else:
            raise ValueError(
                f"this run was started with {key} {value}, not {asked.get(key)}: a resumed run keeps its options; "
                "name another --output for a new run"
            )
    return changes


def has_options_of(saved: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a run has the options of the one that was started, but for its length, images and what may change."""
    free = (*MAY_CHANGE, *_LENGTH_AND_IMAGES)
    return all(asked.get(key) == value for key, value in without_retired(saved).items() if key not in free)


def cut_back(metrics: Path, step: int, epoch: int, drop: str | None = None) -> None:
    """Drop the lines of ``metrics.jsonl`` behind ``step`` or of an epoch's end behind ``epoch``, which the resumed run
    writes again.

    A last line that a crash has cut in two is dropped too.
    """
    kept = []
    for text in lines_of(metrics):
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            behind = line["step"] > step or (line["event"] == "epoch" and line["epoch"] > epoch)
            if not behind and line["event"] != drop:
                kept.append(json.dumps(line) + "\n")
    write_text(metrics, "".join(kept))


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, none if it does not exist."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def write_text(path: Path, text: str) -> None:
    """The whole file or nothing of it."""
    replace_files({path: text.encode()})
