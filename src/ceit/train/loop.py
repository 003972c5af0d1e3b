"""The loop: batches to gradients to weights, validation after every epoch, the best model kept.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from ceit.data.loader import Loader
from ceit.model.ceit import CeiT
from ceit.train.checkpoint import Progress, save_state
from ceit.train.config import TrainConfig
from ceit.train.metrics import Evaluation, evaluate


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by Ctrl-C or by SIGTERM, and its state is saved."""

    def __init__(self, message: str, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


@dataclass
class Session:
    """What one run consists of, put together by ``run.train`` and taken through its epochs by ``fit``."""

    config: TrainConfig
    epochs: int
    class_names: tuple[str, ...]
    accelerator: Accelerator
    autocast_dtype: torch.dtype | None
    model: CeiT
    trained: nn.Module  # the model as accelerate wraps it
    optimizer: Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    train_loader: Loader
    validation_loader: Loader
    checkpoints: Path
    save_best: Callable[[CeiT, dict[str, Any]], None]
    record: Callable[[dict[str, Any]], None]  # one line of metrics.jsonl
    show: Callable[[dict[str, Any]], None]  # the progress bar
    progress: Progress = field(default_factory=Progress)

    @property
    def total_steps(self) -> int:
        return self.epochs * len(self.train_loader)


def fit(session: Session) -> None:
    """Train from ``session.progress`` to the last epoch.

    Raises: Interrupted after saving, on SIGINT or SIGTERM; ValueError if the loss is not finite.
    """
    with _stop_signals() as received:
        while session.progress.epoch < session.epochs:
            _train_epoch(session, received)
            _end_epoch(session)
            if received:
                _stop(session, received[0])


def train_step(session: Session, images_bchw: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the loss and how many images of the batch were recognised (0 where labels are
    mixed)."""
    config = session.config
    device = session.accelerator.device
    images_bchw, labels_b = images_bchw.to(device, non_blocking=True), labels_b.to(device, non_blocking=True)
    mixed = _mix(config, len(session.class_names), images_bchw, labels_b, step)
    session.schedule.step_update(step)
    with torch.autocast(device.type, dtype=session.autocast_dtype, enabled=session.autocast_dtype is not None):
        logits = session.trained(images_bchw if mixed is None else mixed[0])
    logits = logits.float()
    if mixed is None:
        loss = F.cross_entropy(logits, labels_b, label_smoothing=config.label_smoothing)
        right = (logits.detach().argmax(1) == labels_b).sum()
    else:
        loss, right = F.cross_entropy(logits, mixed[1]), torch.zeros((), dtype=torch.int64, device=device)
    session.accelerator.backward(loss)
    if config.clip_norm > 0:
        session.accelerator.clip_grad_norm_(session.trained.parameters(), config.clip_norm)
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    if session.ema is not None:
        session.ema.update(session.model, step=step + 1)
    return loss.detach(), right


def _train_epoch(session: Session, received: list[int]) -> None:
    """The rest of the current epoch. The state that an interruption saves is that after the last whole step."""
    config, progress = session.config, session.progress
    session.trained.train()
    began = time.perf_counter() - progress.elapsed_seconds
    window_began, window_waited, window_images = time.perf_counter(), 0.0, 0
    batches = session.train_loader.epoch(progress.epoch, start_batch=progress.batch)
    for waited, (images, labels) in _timed(batches):
        loss, right = train_step(session, images, labels, progress.step)
        progress.step += 1
        progress.batch += 1
        progress.elapsed_seconds = time.perf_counter() - began
        progress.loss_sum += loss.item() * len(labels)
        progress.right += int(right)
        progress.images += len(labels)
        window_waited += waited
        window_images += len(labels) * session.accelerator.num_processes
        if not np.isfinite(progress.loss_sum):
            raise ValueError(
                f"the loss of step {progress.step} is {loss.item()}; lower peak_lr {config.peak_lr} or set clip_norm"
            )
        if progress.step % config.log_every_steps == 0:
            window = time.perf_counter() - window_began
            line = {
                "event": "step",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "loss": round(loss.item(), 6),
                "learning_rate": session.optimizer.param_groups[0]["lr"],
                "images_per_second": round(window_images / window, 1),
                "data_wait_percent": round(100 * window_waited / window, 3),
                "elapsed_seconds": round(progress.elapsed_seconds, 2),
            }
            session.record(line)
            window_began, window_waited, window_images = time.perf_counter(), 0.0, 0
        session.show(
            {
                "step": progress.step,
                "total_steps": session.total_steps,
                "epoch": progress.epoch + 1,
                "loss": progress.loss_sum / progress.images,
                "top1_percent": None if _mixes(config) else 100 * progress.right / progress.images,
            }
        )
        if received:
            _stop(session, received[0])


def _stop(session: Session, number: int) -> NoReturn:
    path = save_now(session)
    name = signal.Signals(number).name
    raise Interrupted(f"{name}: saved {path.name} after step {session.progress.step}", number == signal.SIGTERM)


def _end_epoch(session: Session) -> None:
    """Validation of raw and averaged weights, the best of them kept, the state saved."""
    progress, began = session.progress, time.perf_counter()
    candidates: dict[str, CeiT] = {"raw": session.model}
    if session.ema is not None:
        candidates["ema"] = session.ema.module
    found = {kind: validate(session, model) for kind, model in candidates.items()}
    # of equal accuracies the lower loss wins
    scores = {kind: (result.top1_percent, -result.loss) for kind, result in found.items()}
    kind = max(scores, key=lambda kind: scores[kind])
    progress.epoch += 1
    progress.batch = 0
    if scores[kind] > progress.best_score:
        progress.best_score = scores[kind]
        progress.best = {
            "epoch": progress.epoch,
            "weights": kind,
            "validation_top1_percent": round(found[kind].top1_percent, 4),
        }
        session.save_best(candidates[kind], progress.best)
    progress.elapsed_seconds += time.perf_counter() - began
    session.record(
        {
            "event": "epoch",
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": round(progress.loss_sum / progress.images, 6),
            "train_top1_percent": None if _mixes(session.config) else round(100 * progress.right / progress.images, 4),
            "validation": {
                kind: {"top1_percent": round(found[kind].top1_percent, 4), "loss": round(found[kind].loss, 6)}
                for kind in found
            }
            | ({} if "ema" in found else {"ema": None}),
            "elapsed_seconds": round(progress.elapsed_seconds, 2),
        }
    )
    progress.loss_sum, progress.right, progress.images = 0.0, 0, 0
    save_now(session)


def validate(session: Session, model: nn.Module) -> Evaluation:
    """The model on the validation split."""
    return evaluate(
        model,
        session.validation_loader,
        class_names=session.class_names,
        device=session.accelerator.device,
        autocast_dtype=session.autocast_dtype,
    )


def save_now(session: Session) -> Path:
    """The full state of the run, written by the main process."""
    ema = session.ema.module if session.ema is not None else None
    if session.accelerator.is_main_process:
        return save_state(session.checkpoints, session.progress, session.model, ema, session.optimizer)
    return session.checkpoints


def _mixes(config: TrainConfig) -> bool:
    return config.mixing.mixup_alpha > 0 or config.mixing.cutmix_alpha > 0


def _mix(
    config: TrainConfig, classes: int, images_bchw: Tensor, labels_b: Tensor, step: int
) -> tuple[Tensor, Tensor] | None:
    """Mixup or CutMix by timm, whose draws from numpy's global generator are made a function of (seed, step)."""
    if not _mixes(config):
        return None
    mixing = config.mixing
    mixup = Mixup(
        mixup_alpha=mixing.mixup_alpha,
        cutmix_alpha=mixing.cutmix_alpha,
        prob=mixing.probability,
        switch_prob=mixing.switch_probability,
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )
    generator = np.random.get_state()
    np.random.seed(np.random.SeedSequence([config.seed, step]).generate_state(1)[0])
    try:
        return mixup(images_bchw, labels_b)
    finally:
        np.random.set_state(generator)


def _timed(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
    """Each batch with the seconds that training waited for it."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield time.perf_counter() - began, batch


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of acting on them, so that a step is never cut in two; a second one acts at
    once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: the caller keeps its own handling
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
