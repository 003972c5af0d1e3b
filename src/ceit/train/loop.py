"""The loop: epochs of steps, validation after each, the best model kept, the state saved."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn

from ceit.model import CeiT
from ceit.train.checkpoint import checkpoint_name, save_state, state_of
from ceit.train.distributed import from_main, total_of
from ceit.train.metrics import DivergedError, Evaluation, evaluate
from ceit.train.session import Session
from ceit.train.step import StepResult, train_step


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by Ctrl-C or by SIGTERM, and its state is saved."""

    def __init__(self, message: str, terminated: bool) -> None:
        super().__init__(message)
        self.terminated = terminated


def fit(session: Session) -> None:
    """Train from ``session.progress`` to the last epoch, or to where the accuracy has stopped rising.

    Raises: Interrupted after saving, on SIGINT or SIGTERM; ValueError if too many steps in a row have no finite loss,
    or no epoch's validation has one.
    """
    with _stop_signals() as received:
        if session.budget is not None:
            session.budget.begin(session.progress.steps)
        while session.progress.epoch < session.epochs and not _has_stopped_improving(session):
            _train_epoch(session, received)
            began = time.monotonic()
            if session.validation_loader is not None:
                save_now(session)  # validation may take long, and be cut short
            validation_seconds = _end_epoch(session)
            if session.budget is not None:
                session.budget.epoch_ended(time.monotonic() - began, validation_seconds)
            _stop_if_asked(session, received)
    if not session.progress.best:
        raise ValueError(
            "no epoch ended with weights whose validation loss is finite, so none are kept: lower peak_lr "
            f"{session.config.peak_lr} or set clip_norm in a new run"
        )


def _train_epoch(session: Session, received: list[int]) -> None:
    """The rest of the current epoch. The state that an interruption saves is that after the last whole step."""
    config, progress = session.config, session.progress
    session.start_training()
    began = time.perf_counter() - progress.elapsed_seconds
    window_began, window_waited, window_images = time.perf_counter(), 0.0, 0
    batches = _timed(_rest_of_epoch(session))
    while progress.step < progress.steps and (waited_batch := next(batches, None)) is not None:
        waited, (images, labels) = waited_batch
        result = train_step(session, images, labels, progress.step)
        progress.step += 1
        progress.batch += 1
        progress.elapsed_seconds = time.perf_counter() - began
        window_waited += waited
        window_images += result.images
        _count(session, result)
        if progress.step % config.log_every_steps == 0:
            window = time.perf_counter() - window_began
            session.record(
                {
                    "event": "step",
                    "step": progress.step,
                    "epoch": progress.epoch + 1,
                    "loss": result.loss if math.isfinite(result.loss) else None,
                    "learning_rate": learning_rate(session),
                    "images_per_second": round(window_images / window, 1),
                    "data_wait_percent": round(100 * window_waited / window, 3),
                    "elapsed_seconds": round(progress.elapsed_seconds, 2),
                }
                | ({"loss_scale": session.scaler.get_scale()} if session.scaler.is_enabled() else {})
            )
            window_began, window_waited, window_images = time.perf_counter(), 0.0, 0
        session.show(
            {
                "step": progress.step,
                "total_steps": session.total_steps,
                "epoch": progress.epoch + 1,
                "loss": progress.mean_loss,
                "top1_percent": None if config.mixing.on else progress.top1_percent,
            }
        )
        _stop_if_asked(session, received)
        _keep_within_the_budget(session)
        every = config.checkpoint_every_steps
        if (
            every
            and progress.step % every == 0
            and progress.batch < len(session.train_loader)
            and progress.step < progress.steps
        ):
            save_now(session)


def _rest_of_epoch(session: Session) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that are left of this epoch, no more than there are steps left; their number may grow meanwhile."""
    loader, progress = session.train_loader, session.progress
    while (left := min(len(loader) - progress.batch, progress.steps - progress.step)) > 0:
        yield from loader.epoch(progress.epoch, progress.batch, progress.batch + left)


def _keep_within_the_budget(session: Session) -> None:
    """Every so often, choose the steps anew if the run would not end when the time is up."""
    budget, progress = session.budget, session.progress
    if budget is None or progress.step < budget.next_look:
        return
    steps = from_main(budget.look(progress.step, progress.steps), session.accelerator)
    budget.look_again(progress.step, steps)
    if steps != progress.steps:
        session.say(
            f"a step takes {budget.step_seconds:.3g} s by now: {steps} steps in all fit into the time budget, "
            f"not {progress.steps}"
        )
        session.plan(steps)
        session.record({"event": "plan", "step": progress.step, "steps": steps})


def learning_rate(session: Session) -> float:
    """The rate of the layers that layer decay leaves alone."""
    group = session.optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def _count(session: Session, result: StepResult) -> None:
    """Add a step to the epoch's sums, or note that it was skipped, and stop if that goes on."""
    progress, limit = session.progress, session.config.max_skipped_steps
    if result.skipped is None:
        progress.skipped_in_row = 0
        progress.loss_sum += result.loss * result.images
        progress.right += result.right
        progress.images += result.images
        return
    session.record(
        {"event": "skipped", "step": progress.step, "epoch": progress.epoch + 1, "not_finite": result.skipped}
    )
    if not result.counts:
        return
    session.say(f"step {progress.step} was skipped: {result.skipped} is not finite")
    progress.skipped_in_row += 1
    if progress.skipped_in_row >= limit:
        raise ValueError(
            f"{limit} steps in a row up to step {progress.step} had no finite loss or gradient, in the last "
            f"{result.skipped}: lower peak_lr {session.config.peak_lr} or set clip_norm in a new run, which may start "
            "from this one's weights with initial_checkpoint; the last checkpoint is intact"
        )


def _end_epoch(session: Session) -> float:
    """Validation of raw and averaged weights, the best of them kept, the state saved; the seconds of the validation."""
    config, progress, began = session.config, session.progress, time.perf_counter()
    session.settle_statistics()
    candidates = session.candidates()
    validation_began = time.perf_counter()
    found = {} if session.validation_loader is None else _validated(session, candidates)
    validation_seconds = time.perf_counter() - validation_began
    # of equal accuracies the lower loss wins; without validation there is nothing to compare
    scores = {kind: (result.top1_percent, -result.loss) for kind, result in found.items()}
    if session.validation_loader is None:
        scores = {"raw": progress.best_score}
    progress.epoch += 1
    progress.batch = 0
    kind = max(scores, key=lambda kind: scores[kind], default=None)
    if kind is not None and scores[kind][0] > progress.best_score[0]:
        progress.last_rise = progress.epoch
    if kind is not None and (config.select == "last" or scores[kind] > progress.best_score):
        progress.best_score = scores[kind]
        progress.best = {
            "epoch": progress.epoch,
            "weights": kind,
            "validation_top1_percent": round(found[kind].top1_percent, 4) if found else None,
        }
        session.save_best(candidates[kind], progress.best)
    progress.elapsed_seconds += time.perf_counter() - began
    validation = {
        kind: {"top1_percent": round(result.top1_percent, 4), "loss": round(result.loss, 6)}
        for kind, result in found.items()
    }
    session.record(
        {
            "event": "epoch",
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": round(progress.mean_loss, 6) if progress.images else None,
            "train_top1_percent": None if config.mixing.on or not progress.images else round(progress.top1_percent, 4),
            "validation": {"raw": None, "ema": None} | validation,
            "elapsed_seconds": round(progress.elapsed_seconds, 2),
        }
    )
    progress.loss_sum, progress.right, progress.images = 0.0, 0, 0
    save_now(session)
    return validation_seconds


def _has_stopped_improving(session: Session) -> bool:
    patience, progress = session.config.early_stopping_epochs, session.progress
    if patience is None or not progress.best or progress.epoch - progress.last_rise < patience:
        return False
    session.say(f"stopped after epoch {progress.epoch}: {patience} epochs without a better validation accuracy")
    return True


def _validated(session: Session, candidates: dict[str, CeiT]) -> dict[str, Evaluation]:
    """The validation of each network, but of those that have diverged: these are worse than any other, and not kept."""
    found = {}
    for kind, network in candidates.items():
        try:
            found[kind] = validate(session, network)
        except DivergedError as error:  # which all processes get together
            session.say(f"epoch {session.progress.epoch + 1}: {kind} weights are not kept: {error}")
    return found


def validate(session: Session, model: nn.Module) -> Evaluation:
    """The model on the validation split."""
    assert session.validation_loader is not None
    return evaluate(
        model,
        session.validation_loader,
        class_names=session.class_names,
        device=session.accelerator.device,
        autocast_dtype=session.autocast_dtype,
        dtype=session.dtype,
        cores=session.cores,
    )


def save_now(session: Session) -> None:
    """The full state of the run, written by the main process."""
    session.settle_statistics()
    accelerator = session.accelerator
    if accelerator.is_main_process:
        keep = session.config.keep_checkpoints
        state = state_of(session.parts())
        save_state(session.checkpoints, session.progress, state, accelerator.num_processes, keep)
    accelerator.wait_for_everyone()


def _stop_if_asked(session: Session, received: list[int]) -> None:
    """Save and stop if any process got a signal."""
    counts = [float(received.count(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupted, terminated = total_of(counts, session.accelerator)
    if interrupted or terminated:
        save_now(session)
        name, step = "SIGTERM" if terminated else "SIGINT", session.progress.step
        raise Interrupted(f"{name}: saved {checkpoint_name(step)} after step {step}", terminated > 0)


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
