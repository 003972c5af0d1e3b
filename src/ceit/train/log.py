"""What a run reports while it trains: ``metrics.jsonl``, the trackers and the progress bar get the same lines."""

import math
import time
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from ceit.evaluation.metrics import Evaluation
from ceit.train.checkpoint import Progress
from ceit.train.learner import Learner
from ceit.train.run_directory import RunDirectory
from ceit.train.step import StepResult
from ceit.train.trackers import flat

Show = Callable[[dict[str, Any]], None]


class RunLog:
    """The lines of a run; ``show`` gets them too, and the state after every step."""

    def __init__(self, directory: RunDirectory, accelerator: Accelerator, show: Show) -> None:
        self.directory, self.accelerator, self.show = directory, accelerator, show
        self.begin_window()

    def record(self, line: dict[str, Any]) -> None:
        """Write one line."""
        self.directory.log(line)
        self.accelerator.log(_scalars(line), step=line["step"])
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
            self.record(
                {
                    "event": "step",
                    "step": progress.step,
                    "epoch": progress.epoch + 1,
                    "loss": result.loss if math.isfinite(result.loss) else None,
                    "learning_rate": learner.learning_rate(),
                    "images_per_second": round(self.images / seconds, 1),
                    "data_wait_percent": round(100 * self.waited_seconds / seconds, 3),
                    "elapsed_seconds": round(progress.elapsed_seconds, 2),
                }
                | ({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {})
            )
            self.begin_window()
        self.show(
            {
                "step": progress.step,
                "total_steps": progress.steps,
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


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line but its step. The test's have names of their own: a step and an epoch have a loss, too."""
    before = "test/" if line["event"] == "test" else ""
    numbers = {name: value for name, value in flat(line, "/") if isinstance(value, int | float) and name != "step"}
    return {before + name: value for name, value in numbers.items()}
