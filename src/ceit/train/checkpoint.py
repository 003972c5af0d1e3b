"""The full state of a run on disk: one safetensors file per checkpoint, everything that is not a tensor as JSON in its
header.

No generator is saved: what is random in an epoch is a function of (seed, epoch, image), what is random in a step one of
(seed, step, process).
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ceit.atomic import replace_files
from ceit.json_file import as_written
from ceit.version import refuse_newer

FORMAT_VERSION = 2
_PIECE_BYTES = 1 << 24


class DamagedError(ValueError):
    """What lies in a checkpoint is not what was saved."""


@dataclass
class Progress:
    """Where a run stands: ``step`` of ``steps`` done, ``batch`` batches into ``epoch`` (from 0), and what it has found.

    ``loss_sum``, ``right`` and ``images`` are this epoch's so far; ``best_score`` is the validation top-1 in percent,
    then minus the validation loss; ``best`` tells the epoch and the kind (raw or ema) of the model that is kept, its
    accuracy and, but for earlier versions, its loss; ``highest_percent`` is the highest validation top-1, also of a
    model that is no longer kept, and ``last_rise`` the epoch that reached it.
    """

    step: int = 0
    steps: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed_seconds: float = 0.0
    loss_sum: float = 0.0
    right: int = 0
    images: int = 0
    skipped_in_row: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)
    best: dict[str, Any] = field(default_factory=dict)
    highest_percent: float = -1.0
    last_rise: int = 0

    @property
    def mean_loss(self) -> float:
        """Of this epoch so far; 0 before the first image."""
        return self.loss_sum / max(1, self.images)

    @property
    def top1_percent(self) -> float:
        """Of this epoch so far; 0 before the first image."""
        return 100 * self.right / max(1, self.images)


class Parts(NamedTuple):
    """What has a state in a run; the networks are ``model`` and, if there is an average of the weights, ``ema``."""

    networks: Mapping[str, nn.Module]
    optimizer: Optimizer
    scaler: GradScaler


def save_state(folder: Path, progress: Progress, parts: Parts, processes: int, keep: int) -> None:
    """Write ``folder/step_N.safetensors`` whole or not at all, then drop all but the newest ``keep``."""
    tensors: dict[str, Tensor] = {}
    for name, network in parts.networks.items():
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    optimizer = parts.optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    header = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "processes": processes,
        "optimizer": {"groups": [_plain(group) for group in optimizer["param_groups"]], "numbers": numbers},
        "sha256": _digest(tensors),
        "scaler": parts.scaler.state_dict(),
    }
    header["seal"] = _seal(header, tensors)
    folder.mkdir(exist_ok=True)
    replace_files({folder / checkpoint_name(progress.step): save(tensors, metadata={"state": json.dumps(header)})})
    for old in checkpoints_in(folder)[:-keep]:
        with suppress(PermissionError):  # Windows: another program reads it; the next save tries again
            old.unlink()


def load_state(path: Path, parts: Parts) -> tuple[Progress, int]:
    """Put a run back to where ``save_state`` left it; returns its progress and the number of its processes.

    Raises: DamagedError for a damaged file, ValueError for a foreign one, OSError for one that cannot be read: it may
    be intact.
    """
    try:  # safetensors calls any failure to open a missing file, and one while it reads would end the process
        with path.open("rb") as file:
            while file.read(_PIECE_BYTES):
                pass
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}) and is left as it is: resume when it can") from error
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("state", "null"))
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}  # else the file stays mapped, and in use
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be resumed from, it is damaged or no checkpoint: {error}") from error
    version = header.get("format_version") if isinstance(header, dict) else None
    refuse_newer(path, version, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} is no training checkpoint of format version {FORMAT_VERSION}")
    if header.pop("seal", None) not in (None, _seal(header, tensors)):  # earlier ones have none
        raise DamagedError(f"{path} cannot be resumed from, it is damaged: its header is not the one that was saved")
    if header.get("sha256") != _digest(tensors):
        raise DamagedError(f"{path} cannot be resumed from, it is damaged: its tensors are not those that were saved")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    try:
        for name, network in parts.networks.items():
            network.load_state_dict(part(f"{name}."))
    except RuntimeError as error:
        raise ValueError(f"{path} holds a network of another geometry than the run's") from error
    with as_written(path, "resume from another"):
        return _put_back(header, part("optimizer."), parts), int(header["processes"])


def _put_back(header: dict[str, Any], tensors: Mapping[str, Tensor], parts: Parts) -> Progress:
    """The optimizer and the scaler as the header and the tensors of their states have it; gives the progress."""
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in header["optimizer"]["numbers"].items()}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    own = parts.optimizer.state_dict()["param_groups"]
    groups = [kept | _revived(saved) for kept, saved in zip(own, header["optimizer"]["groups"], strict=True)]
    parts.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if header["scaler"]:
        parts.scaler.load_state_dict(header["scaler"])
    saved = header["progress"]
    saved.setdefault("last_rise", saved["best"].get("epoch", 0))  # earlier versions did not save it
    saved["best_score"] = tuple(saved["best_score"])  # JSON has none
    saved.setdefault("highest_percent", saved["best_score"][0])
    for key, value in asdict(Progress()).items():  # a whole number is one, and anything else is a number
        if not isinstance(value, dict | tuple) and not (isinstance(saved[key], int) or type(saved[key]) is type(value)):
            raise TypeError(f"{key} {saved[key]!r}")
        if isinstance(value, int | float) and not -(2**63) < saved[key] < 2**63:
            raise ValueError(f"{key} {saved[key]!r}")
    return Progress(**saved)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a parameter group: a small tensor, such as a step, as numbers; a dtype stays out, as it is
    the optimizer's own constant."""
    return {
        key: {"tensor": value.tolist(), "dtype": str(value.dtype)} if isinstance(value, Tensor) else value
        for key, value in group.items()
        if not isinstance(value, torch.dtype)
    }


def _revived(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group as it was before ``_plain``, but for what stays out."""
    return {
        key: torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"].removeprefix("torch.")))
        if isinstance(value, dict) and "tensor" in value
        else value
        for key, value in group.items()
    }


def _seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of all that is told beside the numbers themselves, which ``_digest`` is of."""
    shapes = {key: [str(value.dtype), *value.shape] for key, value in tensors.items()}
    return hashlib.sha256(json.dumps([header, shapes], sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint after so many steps."""
    return f"step_{step:08d}.safetensors"


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*.safetensors"))
