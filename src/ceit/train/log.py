"""What a run reports while it trains: ``metrics.jsonl``, the trackers and the progress bar get the same lines."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ceit.evaluation.metrics import Evaluation
from ceit.model import CeiT
from ceit.train.checkpoint import Progress
from ceit.train.cost import macs
from ceit.train.learner import Learner
from ceit.train.run_directory import RunDirectory
from ceit.train.step import StepResult
from ceit.train.trackers import Telling, flat

Show = Callable[[dict[str, Any]], None]


class RunLog:
    """The lines of a run; ``show`` gets them too, and the state after every step."""

    def __init__(self, directory: RunDirectory, trackers: Telling, show: Show) -> None:
        self.directory, self.trackers, self.show = directory, trackers, show
        self.begin_window()

    def record(self, line: dict[str, Any]) -> None:
        """Write one line."""
        self.directory.log(line)
        self.trackers.log(_scalars(line), line["step"])
        self.show(line)

    def begin_window(self) -> None:
        """Rates are counted from here on."""
        self.began, self.waited_seconds, self.images = time.perf_counter(), 0.0, 0

    def step(self, progress: Progress, learner: Learner, result: StepResult, waited_seconds: float) -> None:
        """After a step that waited so long for its images: the bar, and every so many steps a line."""
        self.images += result.images
        self.waited_seconds += waited_seconds
        if progress.step % learner.config.log_every_steps == 0:
            seconds, scaler = time.perf_counter() - self.began, learner.scaler
            rate = self.images / seconds
            self.record(
                {
                    "event": "step",
                    "step": progress.step,
                    "epoch": progress.epoch + 1,
                    "loss": result.loss if math.isfinite(result.loss) else None,
                    "learning_rate": learner.learning_rate(),
                    "images_per_second": round(rate, 1),
                    "data_wait_percent": round(100 * self.waited_seconds / seconds, 3),
                    "elapsed_seconds": round(progress.elapsed_seconds, 2),
                }
                | of_each_device(learner, progress.step - 1, rate)
                | ({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {})
            )
            self.begin_window()
        self.show(
            {
                "step": progress.step,
                "total_steps": progress.steps,
                "share_done": learner.share_done(progress.step, progress.steps),
                "epoch": progress.epoch + 1,
                "loss": progress.mean_loss,
                "top1_percent": None if learner.config.mixing.on else progress.top1_percent,
            }
        )

    def epoch(self, progress: Progress, found: dict[str, Evaluation], is_mixed: bool) -> None:
        """After an epoch and its validation."""
        validation = {
            kind: {"top1_percent": round(result.top1_percent, 4), "loss": round(result.loss, 6)}
            for kind, result in found.items()
        }
        self.record(
            {
                "event": "epoch",
                "epoch": progress.epoch,
                "step": progress.step,
                "train_loss": round(progress.mean_loss, 6) if progress.images else None,
                "train_top1_percent": round(progress.top1_percent, 4) if progress.images and not is_mixed else None,
                "validation": {"raw": None, "ema": None} | validation,
                "elapsed_seconds": round(progress.elapsed_seconds, 2),
            }
        )


def of_each_device(learner: Learner, step: int, images_per_second: float) -> dict[str, float]:
    """Operations a second: two a multiply-accumulate, three passes, or one while only the head learns; of CUDA memory
    the most that was in use at once."""
    found: dict[str, float] = {}
    model, accelerator = learner.model, learner.accelerator
    if isinstance(model, CeiT):
        small_hw = learner.small_hw(step)
        geometry = model.config if small_hw is None else replace(model.config, img_size=small_hw)
        flops = 2 * macs(geometry) * (1 if learner.head_only else 3)
        found["tflops"] = float(f"{flops * images_per_second / accelerator.num_processes / 1e12:.4g}")
    if accelerator.device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(accelerator.device)
    return found


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line but its step. The test's have names of their own: a step and an epoch have a loss, too."""
    before = "test/" if line["event"] == "test" else ""
    numbers = {name: value for name, value in flat(line, "/") if isinstance(value, int | float) and name != "step"}
    return {before + name: value for name, value in numbers.items()}
