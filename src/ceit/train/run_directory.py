"""The directory of a run: everything that a run writes, and what a resumed run takes up.

``config.yaml`` (every option as resolved), ``images.csv`` (what each image was for), ``metrics.jsonl``,
``model.safetensors`` and ``model.json`` (the best model, with class names and preprocessing), ``test.json`` (the final
report), ``README.md`` (the model card) and ``checkpoints/`` (full state, for resuming). Trackers may keep files of
theirs, as ``tensorboard/``; by which names they know the run is in ``trackers.json``.
"""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from ceit.atomic import append, remove, replace_files, write_text
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.record import ImageRecord
from ceit.data.sources.walk import is_of_the_system
from ceit.data.splits import ImageDataset
from ceit.json_file import as_written, read_json
from ceit.lock import InUseError, locked
from ceit.machine import MachineError
from ceit.messages import Say
from ceit.model import CeiT
from ceit.paths import expanded, last_part, require_utf8
from ceit.train.checkpoint import Parts, Progress, checkpoint_name, checkpoints_in, save_state
from ceit.train.config import SECTIONS, TrainConfig
from ceit.train.recipe import without_retired
from ceit.version import refuse_newer
from ceit.weights import save_checkpoint
from ceit.weights.checkpoint import save_confidence
from ceit.yaml_file import NOT_YAML, require_modest, text_of

FORMAT_VERSION = 1
"""Of the directory as a whole, in ``config.yaml``; one that does not tell it is of the first."""
LOCK = ".lock"
RANGE_TEST = "lr_range_test.json"
"""What a learning rate range test leaves; the run itself may follow in the same directory."""
MAY_CHANGE = (
    *("data", "device_batch_size", "device", "workers", "keep_checkpoints", "checkpoint_every_steps"),
    *("log_every_steps", "tracker", "compile"),
)
"""Options of the machine and of the log, and where the data lie; the images of each step are the same all the same."""
_PLACES = ("data", "initial_checkpoint", "distillation")
"""Options that tell where something lies, which may lie elsewhere by now; weights are known by their name."""
_CONSEQUENCE = {
    "device_batch_size": ": unless it is frozen, BatchNorm takes its statistics from other images from here on, and "
    "the weights will be others than without the change"
}
_LENGTH_AND_IMAGES = ("epochs", "steps", "found", "images", "mean", "std")  # of config.yaml, beside the other options
_CHOSEN = ("img_size", "in_chans", "global_batch_size", "lr_base_size", "lr_scaling", "precision")
"""Options that the run itself chooses where they are left open."""
_HALF_WRITTEN = ".*.tmp"
_LONGEST_PATH = 80  # letters of a file in the directory: a checkpoint that is half written, or a file of TensorBoard
_PUT_BACK = "put back what it wrote, or name another --output for a new run"


@dataclass(frozen=True)
class SavedRun:
    """A run that was begun in a directory: its ``config.yaml``, and the checkpoints to try in turn, newest first."""

    path: Path
    config: dict[str, Any]
    checkpoints: list[Path]

    @property
    def model(self) -> Path:
        """The file of its best model, which is there after the first epoch."""
        return self.path / "model.safetensors"

    def preprocessing(self) -> Preprocessing | None:
        """What its images are normalised by. An earlier version told it beside its model alone, and not of every one.

        Raises: ValueError for a damaged file.
        """
        file, told = self.path / "config.yaml", {key: self.config[key] for key in ("mean", "std") if key in self.config}
        if not told:
            file = self.model.with_suffix(".json")
        with as_written(file, _PUT_BACK):
            if not told and file.is_file():
                told = read_json(file).get("preprocessing")
            return Preprocessing.from_dict(told) if told else None


@dataclass(frozen=True)
class RunDirectory:
    """Where a run writes. With ``writes`` False, as in all processes but the main one, writing does nothing."""

    path: Path
    writes: bool = True

    @contextmanager
    def reserved(self, resuming: bool, say: Say) -> Iterator[None]:
        """For this run alone; one that fails before it has written anything leaves nothing behind.

        A run that was stopped when it had written no more than the record of its images may be begun anew.

        Raises: ValueError if the directory holds something that is not to be resumed, or another run is writing it.
        """
        if not self.writes:
            yield
            return
        output, is_new = self.path, not self.path.is_dir()
        require_utf8(output.absolute())
        if is_new and output.exists():
            raise ValueError(f"output {output} is a file; name a directory")
        self._require_room(resuming)
        output.mkdir(parents=True, exist_ok=True)
        try:
            with locked(output / LOCK, say):
                for left_over in (*output.glob(_HALF_WRITTEN), *output.glob(f"checkpoints/{_HALF_WRITTEN}")):
                    left_over.unlink(missing_ok=True)  # of a run that was killed while it was writing
                if not resuming:
                    self._require_short_path()
                yield
        except InUseError as error:
            raise InUseError(f"output directory {output} is in use by another run; name another") from error
        finally:
            if is_new:
                with suppress(OSError):  # it is not empty
                    output.rmdir()

    def _require_short_path(self) -> None:
        """Raises: ValueError if a run's longest path would be too long here, as one of 260 letters is on Windows."""
        longest = self.path / f".{'x' * (_LONGEST_PATH - len('..tmp'))}.tmp"
        try:
            longest.touch()
            remove(longest)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL):
                return  # another matter, which is told when a file that counts cannot be written
            what = f"{self.path.absolute()} has {len(str(self.path.absolute()))} letters, and a run's files"
            more = f"{what} need up to {_LONGEST_PATH} more, which are too many for a path here"
            raise MachineError(f"{more}: name a shorter --output") from error

    def _require_room(self, resuming: bool) -> None:
        """Raises ValueError if files lie here that no run of ours may be added to; a file manager's own are none."""
        output, kept = self.path, (LOCK, RANGE_TEST)
        held = {path.name for path in output.glob("*") if path.name not in kept and not is_of_the_system(path.name)}
        if held and not resuming:
            raise ValueError(f"output directory {output} is not empty; name another, or go on with --resume auto")
        held -= {path.name for path in output.glob(_HALF_WRITTEN)}
        if held == {IMAGES_FILE}:
            ImageRecord.read(output)  # a list of somebody's images of that name is not written over
        elif (
            held
            and not self._checkpoints()
            and ("config.yaml" not in held or held & {"model.safetensors", "test.json"})
        ):
            raise ValueError(f"output directory {output} holds files but no run that can be resumed; name another")

    def saved(self, resume: str | None) -> SavedRun | None:
        """The run that ``resume`` asks to go on with: ``auto``, or a checkpoint's path. None for a fresh start.

        Raises: ValueError for a path that is no checkpoint of this run, or a run whose files are missing or damaged.
        """
        if resume is None:
            return None
        checkpoints = self._checkpoints()[::-1]
        if resume != "auto":
            asked = expanded(resume)
            if asked.resolve() not in [path.resolve() for path in checkpoints]:
                fix = "--resume auto takes the newest there is"
                raise ValueError(f"{resume} is no checkpoint of the run in {self.path}; {fix}")
            checkpoints = [asked]
        if not checkpoints and not (self.path / "config.yaml").is_file():
            return None
        config, record = saved_config(self.path), self.path / IMAGES_FILE
        if checkpoints and config.get("images") == IMAGES_FILE and not record.is_file():
            raise ValueError(f"{record} is missing, without it the run cannot be resumed: put it back")
        return SavedRun(self.path, config, checkpoints)

    def begin(self, description: Mapping[str, Any], record: ImageRecord | None) -> None:
        """The files of a run that starts."""
        if self.writes:
            if record is not None:
                record.write(self.path)
            self._write_config(description)
            write_text(self.path / "metrics.jsonl", "")

    def go_on(self, saved: SavedRun, description: Mapping[str, Any]) -> list[str]:
        """The files of a run that goes on; sentences for the options that it may change, and does.

        Raises: ValueError naming the first other option in which it would differ from the run that was started.
        """
        changes = []
        with as_written(self.path / "config.yaml", _PUT_BACK):
            before = _as_of_now(saved.config)
        moved: dict[str, Any] = {}
        for key, value in before.items():
            now = description.get(key)
            if now != value and key not in MAY_CHANGE and _without_places(key, now) != _without_places(key, value):
                fix = "a resumed run keeps its options; name another --output for a new run"
                if key in ("epochs", "steps"):
                    fix += f", which begins with the weights of this one with --initial-checkpoint {self.path}"
                raise ValueError(f"this run was started with {key} {value}, not {now}: {fix}")
            if now != value:
                changes.append(f"{key} was {value}, now {now}{_CONSEQUENCE.get(key, '')}")
                moved |= {key: now} if key in _PLACES else {}
        if self.writes and moved:  # the next time they are found
            self._write_config({**saved.config, **moved})
        return changes

    def cut_back(self, progress: Progress, say: Say) -> None:
        """Drop what a run that goes on from ``progress`` writes again: later checkpoints, and lines of the log."""
        if not self.writes:
            return
        later = [path for path in self._checkpoints() if path.name > checkpoint_name(progress.step)]
        if later:
            names = ", ".join(path.name for path in later)
            say(f"later checkpoints are dropped, the run writes them again: {len(later)} ({names})")
        for path in later:
            remove(path)
        self._cut_log(progress)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of ``metrics.jsonl``."""
        if self.writes:
            append(self.path / "metrics.jsonl", json.dumps(line) + "\n")

    def save_model(self, model: nn.Module, dataset: ImageDataset, training: dict[str, Any]) -> None:
        """The best model so far; of a network that is no CeiT the bare tensors, which no ``load_checkpoint`` reads.

        What a finished run, which goes on from an earlier checkpoint, has said of the model before goes with that.
        """
        if not self.writes:
            return
        for name in ("test.json", "README.md"):
            remove(self.path / name)
        path = self.path / "model.safetensors"
        if isinstance(model, CeiT):
            names, preprocessing = dataset.class_names, dataset.preprocessing
            save_checkpoint(path, model, class_names=names, preprocessing=preprocessing, training=training)
        else:
            side = json.dumps({"training": training}, indent=1) + "\n"
            state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            replace_files({path: save(state), path.with_suffix(".json"): side.encode()})

    def save_confidence(self, temperature: float | None, familiarity: dict[str, Any] | None) -> None:
        """What the answers of the best model are to be judged by, beside its weights, which stay as they are."""
        if self.writes:
            save_confidence(self.path / "model.safetensors", temperature, familiarity)

    def keeps_model_of(self, best: Mapping[str, Any], is_over: bool) -> bool:
        """Whether the model that lies here is the best one that a run knows of.

        It is not if the run was stopped between keeping a model and saving its state. Raises: ValueError if the model
        is gone, or if the run ``is_over``, so that no other would be kept.
        """
        side = self.path / "model.json"
        missing = [name for name in ("model.safetensors", side.name) if not (self.path / name).is_file()]
        if best and missing:
            raise ValueError(
                f"{self.path} lacks {' and '.join(missing)} of epoch {best['epoch']}, the best so far: put back what "
                "was moved, or name another --output for a new run"
            )
        with as_written(side, _PUT_BACK):
            kept = read_json(side)["training"] if side.is_file() else {}
            is_same = all(kept.get(key) == best.get(key) for key in ("epoch", "weights"))
        if best and not is_same and is_over:
            raise ValueError(
                f"{side} is not of the model that the finished run has kept, of epoch {best['epoch']}: put that one "
                "back, or name another --output for a new run"
            )
        return is_same

    def save_state(self, progress: Progress, parts: Parts, processes: int, keep: int) -> None:
        """A checkpoint; of the older ones the newest ``keep`` stay, this one among them."""
        if self.writes:
            save_state(self.path / "checkpoints", progress, parts, processes, keep)

    def save_report(self, report: Mapping[str, Any], progress: Progress) -> None:
        """``test.json``; what an earlier report left in the log goes."""
        if self.writes:
            write_text(self.path / "test.json", json.dumps(report, indent=1) + "\n")
            self._cut_log(progress, drop="test")

    def _cut_log(self, progress: Progress, drop: str | None = None) -> None:
        """Without the lines behind ``progress``, those of the event ``drop``, and one that a crash has cut in two."""
        kept, log = [], self.path / "metrics.jsonl"
        for text in lines_of(log):
            with suppress(ValueError, RecursionError, TypeError, KeyError):  # nothing that a run has written
                line = json.loads(text)
                is_behind = line["event"] == "epoch" and line["epoch"] > progress.epoch
                if line["step"] <= progress.step and not is_behind and line["event"] != drop:
                    kept.append(json.dumps(line) + "\n")
        write_text(log, "".join(kept))

    def _write_config(self, description: Mapping[str, Any]) -> None:
        said = {"format_version": FORMAT_VERSION, **description}
        write_text(self.path / "config.yaml", yaml.safe_dump(said, sort_keys=False))

    def _checkpoints(self) -> list[Path]:
        return checkpoints_in(self.path / "checkpoints")


def saved_config(output: Path) -> dict[str, Any]:
    """The resolved configuration that a run was started with.

    Raises: ValueError if it is missing, damaged or of a newer format.
    """
    path = output / "config.yaml"
    try:
        require_modest(str(path), text := text_of("run", str(path)))
        values = yaml.safe_load(text)  # as it was written: 1e3 may name a class
    except (OSError, *NOT_YAML) as error:
        raise ValueError(f"{path} cannot be read, without it the run cannot be resumed") from error
    if not isinstance(values, dict) or not {"data", "epochs", "precision"} <= values.keys():
        raise ValueError(f"{path} is not the configuration of a run, without it the run cannot be resumed")
    refuse_newer(path, values.pop("format_version", 1), FORMAT_VERSION)
    return values


def planned_epochs(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> int:
    """Epochs that a run means to take: those that it began with, unless a line of its log says that its time budget
    chose others since."""
    plans = [line["epochs"] for line in lines if line["event"] == "plan" and "epochs" in line]
    return plans[-1] if plans else config["epochs"]


def _without_places(key: str, value: Any) -> Any:
    """An option's value; of files that it names the last part alone."""
    if isinstance(value, dict) and key in _PLACES:
        return {name: _without_places(key, one) for name, one in value.items()}
    return last_part(value) if isinstance(value, str) and key in _PLACES else value


def has_options_of(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a run has the options of the one that was started, but for its length, images and what may change."""
    free = (*MAY_CHANGE, *_LENGTH_AND_IMAGES)
    return all(asked.get(key) == value for key, value in _as_of_now(saved).items() if key not in free)


def _as_of_now(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options, with those that came after it: it did as their defaults do."""
    defaults = TrainConfig().as_dict()
    options = {key: value for key, value in defaults.items() if key not in (*MAY_CHANGE, *_CHOSEN, *_LENGTH_AND_IMAGES)}
    options |= without_retired(saved)
    return {key: defaults[key] | value if key in SECTIONS else value for key, value in options.items()}


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, none if it does not exist. Raises: ValueError if it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): put back the one that was written") from error
