"""The full state of a run on disk: one safetensors file per checkpoint, everything that is not a tensor as JSON in its
header."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ceit.weights.atomic import replace_files

FORMAT_VERSION = 1
KEEP = 2  # newest checkpoints that stay


@dataclass
class Progress:
    """Where a run stands: ``step`` optimizer steps done, ``batch`` batches into ``epoch`` (from 0), and what it has
    found."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed_seconds: float = 0.0
    loss_sum: float = 0.0  # of this epoch so far, and the next two likewise
    right: int = 0
    images: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)  # validation top-1 in percent, then minus the validation loss
    best: dict[str, Any] = field(default_factory=dict)  # epoch and kind (raw or ema) of the best model


def save_state(folder: Path, progress: Progress, model: nn.Module, ema: nn.Module | None, optimizer: Optimizer) -> Path:
    """Write ``folder/step_N.safetensors`` whole or not at all, then drop all but the newest two."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{key}": value for key, value in ema.state_dict().items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    header = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "optimizer": {"groups": state["param_groups"], "numbers": numbers},
    }
    path = folder / f"step_{progress.step:08d}.safetensors"
    folder.mkdir(exist_ok=True)
    contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    replace_files({path: save(contiguous, metadata={"state": json.dumps(header)})})
    for old in checkpoints_in(folder)[:-KEEP]:
        old.unlink()
    return path


def load_state(path: Path, model: nn.Module, ema: nn.Module | None, optimizer: Optimizer) -> Progress:
    """Put a run back to where ``save_state`` left it, generators included. Raises ValueError for a damaged or foreign
    file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("state", "null"))
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be resumed from, it is damaged or no checkpoint: {error}") from error
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is no training checkpoint of format version {FORMAT_VERSION}")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    try:
        model.load_state_dict(part("model."))
        if ema is not None:
            ema.load_state_dict(part("ema."))
    except RuntimeError as error:
        raise ValueError(f"{path} holds a network of another geometry than the run's {type(model).__name__}") from error
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in header["optimizer"]["numbers"].items()}
    for key, value in part("optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": header["optimizer"]["groups"]})
    torch.set_rng_state(tensors["generator.cpu"])
    if torch.cuda.is_available() and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"])
    progress = Progress(**header["progress"])
    progress.best_score = (progress.best_score[0], progress.best_score[1])  # JSON has no tuples
    return progress


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*.safetensors"))
