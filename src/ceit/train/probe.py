"""What is measured before a run: the batch that fits, the epochs that fit, the learning rates that work."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size

from ceit.train.distributed import from_all, from_main
from ceit.train.loop import validate
from ceit.train.session import Session
from ceit.train.step import train_step

TIMED_STEPS = 8
RANGE_STEPS = 100
LOWEST_RATE, HIGHEST_RATE = 1e-7, 1.0


@contextmanager
def put_back(session: Session) -> Iterator[None]:
    """Weights, average, optimizer and loss scale are afterwards as they were before."""
    parts = (session.model, session.optimizer, session.scaler)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    try:
        session.start_training()
        yield
    finally:
        session.optimizer.zero_grad(set_to_none=True)
        for part, state in zip(parts, before, strict=True):
            if state:
                part.load_state_dict(state)
        if session.ema is not None:
            session.ema.set(session.model)


def device_batch_that_fits(session: Session) -> int | None:
    """The most images of a process's share that fit into memory at once, found by halving; None for the whole share.

    Raises: ValueError if not even one fits.
    """
    share = session.config.global_batch_size // session.accelerator.num_processes
    with put_back(session):
        images, labels = next(session.train_loader.epoch(0))
        size = share
        while not _fits(session, images[:size], labels[:size]):
            if size == 1:
                raise ValueError("not even one image fits into memory: take a smaller model or img_size")
            size = (size + 1) // 2
    size = min(from_all(size, session.accelerator))
    if size == share:
        return None
    session.say(f"{share} images a process do not fit into memory, {size} at once do: gradients are accumulated")
    return size


def _fits(session: Session, images: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether a forward and backward pass over these images runs, without the other processes."""
    device = session.accelerator.device
    try:
        with session.autocast():
            logits = session.model(images.to(device, session.dtype))
            loss = torch.nn.functional.cross_entropy(logits.float(), labels.to(device))
        loss.backward()
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        return False
    finally:
        session.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def epochs_within(budget_seconds: float, session: Session) -> int:
    """Epochs that fit, by the measured time of a few steps and of one validation."""
    step_seconds, validation_seconds = seconds_of_an_epoch(session)
    epoch_seconds = step_seconds * len(session.train_loader) + validation_seconds
    epochs = from_main(max(1, int(0.95 * budget_seconds / epoch_seconds)), session.accelerator)
    session.say(
        f"a step takes {step_seconds:.2f} s, an epoch {epoch_seconds:.0f} s: {epochs} epochs in {budget_seconds:.0f} s"
    )
    if epoch_seconds > budget_seconds:
        session.say(f"one epoch takes longer than the time budget of {budget_seconds:.0f} s; it is run all the same")
    return epochs


def seconds_of_an_epoch(session: Session) -> tuple[float, float]:
    """Measured seconds of one training step, the median of a few, and of one validation."""
    times = []
    with put_back(session):
        batches = session.train_loader.epoch(0)
        for step in range(min(TIMED_STEPS, len(session.train_loader))):
            began = time.perf_counter()
            train_step(session, *next(batches), step)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        if session.validation_loader is not None:
            for network in session.candidates().values():
                validate(session, network)
        validation_seconds = time.perf_counter() - began
    return sorted(times)[len(times) // 2], validation_seconds


class RangeTest(NamedTuple):
    """Losses at rising learning rates, smoothed, and a peak rate to begin with."""

    rates: list[float]
    losses: list[float]
    suggested: float


def learning_rate_range_test(session: Session, steps: int = RANGE_STEPS) -> RangeTest:
    """Training steps at rates that rise from 1e-7 to 1 in equal ratios, until the loss is four times the lowest.

    The suggestion is a tenth of the rate of the lowest smoothed loss. Source: Smith, Cyclical Learning Rates for
    Training Neural Networks (WACV 2017).
    """
    rates: list[float] = []
    losses: list[float] = []
    average, epoch = 0.0, 0
    with put_back(session):
        batches = session.train_loader.epoch(epoch)
        for step in range(steps):
            if (batch := next(batches, None)) is None:
                epoch += 1
                batches = session.train_loader.epoch(epoch)
                batch = next(batches)
            rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (step / max(1, steps - 1))
            result = train_step(session, *batch, step, learning_rate=rate)
            average = 0.9 * average + 0.1 * result.loss
            smoothed = average / (1 - 0.9 ** (step + 1))
            if result.skipped or not math.isfinite(smoothed) or (losses and smoothed > 4 * min(losses)):
                break
            rates.append(rate)
            losses.append(smoothed)
    if not losses:
        raise ValueError("the very first step of the learning rate range test had no finite loss: check the data")
    return RangeTest(rates, losses, rates[losses.index(min(losses))] / 10)
