"""What one run consists of."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ceit.data.batches.loader import Loader
from ceit.inference.cores import FreeCores
from ceit.model.ceit import CeiT
from ceit.train.batch_norm import StatisticsBackup, average_over_processes, freeze_statistics
from ceit.train.checkpoint import Parts, Progress
from ceit.train.config import TrainConfig
from ceit.train.objective import Objective
from ceit.train.optimizer import make_schedule
from ceit.train.time_budget import TimeBudget


@dataclass
class Session:
    """One run, put together by ``run.train`` and taken through its epochs by ``loop.fit``."""

    config: TrainConfig
    class_names: tuple[str, ...]
    accelerator: Accelerator
    autocast_dtype: torch.dtype | None
    model: CeiT
    trained: nn.Module  # the model as accelerate wraps it
    optimizer: Optimizer
    scaler: GradScaler
    ema: ModelEmaV3 | None
    objective: Objective
    backup: StatisticsBackup
    train_loader: Loader
    validation_loader: Loader | None
    checkpoints: Path
    save_best: Callable[[CeiT, dict[str, Any]], None]
    record: Callable[[dict[str, Any]], None]  # one line of metrics.jsonl
    say: Callable[[str], None]
    show: Callable[[dict[str, Any]], None]  # the progress bar
    progress: Progress = field(default_factory=Progress)
    budget: TimeBudget | None = None
    cores: FreeCores | None = None  # None: the number of threads stays
    schedule: Scheduler = field(init=False)

    def plan(self, steps: int) -> None:
        """Take so many steps in all: with the last one the learning rate reaches its end."""
        self.progress.steps = steps
        self.schedule = make_schedule(self.optimizer, self.config, len(self.train_loader), steps)

    @property
    def total_steps(self) -> int:
        return self.progress.steps

    @property
    def epochs(self) -> int:
        """Of these steps; the last one may be cut short."""
        return -(-self.progress.steps // len(self.train_loader))

    @property
    def device_batch_size(self) -> int | None:
        """Images that a process computes at once; None for its whole share, and while it is not yet found."""
        size = self.config.device_batch_size
        return size if isinstance(size, int) else None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format of forward passes."""
        dtype = self.autocast_dtype
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)

    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return Parts(self.model, None if self.ema is None else self.ema.module, self.optimizer, self.scaler)

    def candidates(self) -> dict[str, CeiT]:
        """The networks that can be kept: raw weights, and their average."""
        return {"raw": self.model} | ({} if self.ema is None else {"ema": self.ema.module})

    def start_training(self) -> None:
        """Training mode, with BatchNorm as the options say."""
        self.trained.train()
        if self.config.batch_norm == "frozen":
            freeze_statistics(self.trained)

    def settle_statistics(self) -> None:
        """One set of BatchNorm statistics over all processes, as evaluating and saving need it."""
        for network in (self.model, None if self.ema is None else self.ema.module):
            if network is not None:
                average_over_processes(network, self.accelerator)
