"""Sessions of a network small enough for a test, on the digits that ship with the package."""

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.train.config import TrainConfig, WeightAverage
from ceit.train.distributed import make_accelerator
from ceit.train.interruption import Interrupted
from ceit.train.resolve import resolve
from ceit.train.run import train
from ceit.train.run_directory import RunDirectory
from ceit.train.trainer import Trainer

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}

SMALL = TrainConfig(
    model="ceit_pico_patch4_32",
    geometry={"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8, "drop_path_rate": 0.1},
    epochs=2,
    global_batch_size=32,
    peak_lr=1e-2,
    precision="float32",
    augmentation=Augmentation(flip=False, translate=1),
    ema=WeightAverage(decay=0.9),
    clip_norm=1.0,
    log_every_steps=10,
)
"""A whole run in seconds, with what has a state of its own: drop path, an average of the weights."""

MakeTrainer = Callable[..., Trainer]


def train_until(step: int, config: TrainConfig, output: Path, data: str = "digits") -> None:
    """A run that begins or goes on, and is interrupted after a step."""

    def stop(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, data, output, show=stop, resume="auto")


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation whose accuracy stays where it is, while the loss falls each time."""
    calls = itertools.count(1)

    def evaluated(model: torch.nn.Module, loader: Loader, **options: Any) -> Evaluation:
        return replace(evaluate(model, loader, **options), top1_percent=50.0, loss=1 / next(calls))

    monkeypatch.setattr("ceit.train.trainer.evaluate", evaluated)


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A trainer that has not begun; ``said`` collects its messages."""

    def make(said: list[str] | None = None, geometry: dict[str, Any] | None = None, **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "model": "ceit_pico_patch4_32",
            "geometry": TINY | (geometry or {}),
            "epochs": 1,
            "global_batch_size": 32,
            "peak_lr": 1e-2,
            "warmup_epochs": 0.0,
            "precision": "float32",
            "augmentation": Augmentation(flip=False),
        }
        config = TrainConfig(**{**defaults, **options})
        messages = [] if said is None else said
        accelerator = make_accelerator(config)
        run = resolve(config, "digits", accelerator, say=messages.append)
        trainer = Trainer(run, RunDirectory(tmp_path), accelerator, say=messages.append)
        trainer.learner.start_training()
        return trainer

    return make
