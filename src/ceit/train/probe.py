"""What is measured before a run: the batch that fits, the time of its parts, the learning rates that work."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.amp import GradScaler

from ceit.messages import is_lack_of_memory
from ceit.train.distributed import from_all, from_main
from ceit.train.step import step_alone, train_step
from ceit.train.time_budget import TimeBudget
from ceit.train.trainer import Trainer

TIMED_STEPS = 8
PROBED_SHARE = 0.02  # of a time budget, for steps and again for validation
RANGE_STEPS = 100
LOWEST_RATE, HIGHEST_RATE = 1e-7, 1.0
_FIRST_STEPS, _LAST_STEPS = 10, 3  # of a range test, in which the lowest loss shows no rate to train at
_LEAST_FALL = 0.02  # of the loss, that is no chance


@contextmanager
def put_back(trainer: Trainer) -> Iterator[None]:
    """Weights, average, optimizer and loss scale are afterwards as they were before."""
    learner = trainer.learner
    # the copy of the weights lies on the CPU, lest it take the room that is measured
    weights = {key: value.to("cpu", copy=True) for key, value in learner.model.state_dict().items()}
    optimizer, scaler = copy.deepcopy((learner.optimizer.state_dict(), learner.scaler.state_dict()))
    try:
        learner.start_training()
        yield
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
        learner.model.load_state_dict(weights)
        learner.optimizer.load_state_dict(optimizer)
        if scaler:  # a step that failed leaves more behind than its state tells
            learner.scaler = GradScaler(trainer.accelerator.device.type)
            learner.scaler.load_state_dict(scaler)
        if learner.average is not None:
            learner.average.begin_again()


def device_batch_that_fits(trainer: Trainer) -> int | None:
    """The most images of a process's share that fit into memory at once, found by halving; None for the whole share.

    Raises: ValueError if not even one fits.
    """
    share = trainer.learner.share
    images, labels = next(trainer.train_loader.epoch(0))
    size = share
    while not _fits(trainer, images, labels, size):
        if size == 1:
            raise ValueError("not even one image fits into memory: take a smaller model or img_size")
        size = (size + 1) // 2
    size = min(from_all(size))
    if size == share:
        return None
    trainer.say(f"{share} images a process do not fit into memory, {size} at once do: gradients are accumulated")
    return size


def _fits(trainer: Trainer, images: Tensor, labels: Tensor, size: int) -> bool:
    """Whether steps over these images run, ``size`` at once: with mixing, teacher, optimizer and average as in
    training, but without the other processes, which may have room for more."""
    try:
        with put_back(trainer):
            for step in range(2):  # the first one leaves the optimizer's state behind, which is there from then on
                step_alone(trainer.learner, images, labels, step, size)
    except (RuntimeError, MemoryError) as error:
        if not (is_lack_of_memory(error) or should_reduce_batch_size(error)):
            raise
        return False
    finally:
        if trainer.accelerator.device.type != "cpu":
            torch.get_device_module(trainer.accelerator.device).empty_cache()
    return True


def measured_budget(seconds: float, ends: float, trainer: Trainer) -> TimeBudget:
    """What the parts of a run take, measured in a few percent of its ``seconds``; it ``ends`` at a moment of
    ``time.monotonic``."""
    limit, loader = PROBED_SHARE * seconds, trainer.validation_loader
    reported = len(trainer.dataset.test) + (0 if loader is None else loader.images)  # these give the temperature
    learner, first_cost = trainer.learner, 1.0
    with put_back(trainer):
        first = from_main(_step_seconds(trainer, limit, first=True)) if learner.first_steps else []
        times = from_main(_step_seconds(trainer, limit))
        step_seconds = sum(times) / len(times)
        if first:
            first_cost = sum(first) / len(first) / step_seconds
        image_seconds = step_seconds / trainer.run.config.batch_size  # no less than validation takes for one
        validated = 0 if loader is None else loader.images * len(trainer.learner.candidates())
        validation_seconds = validated * image_seconds
        if validated and validation_seconds < limit:
            validation_seconds = from_main(_validation_seconds(trainer))
            image_seconds = validation_seconds / validated
    return TimeBudget(
        ends=ends,
        seconds=seconds,
        steps_per_epoch=len(trainer.train_loader),
        step_seconds=step_seconds,
        epoch_end_seconds=validation_seconds,
        report_seconds=reported * image_seconds,
        report_share=reported / validated if validated else 0.0,
        clock=time.monotonic,
        first_steps=learner.first_of,
        first_cost=first_cost,
    )


def seconds_of_an_epoch(trainer: Trainer) -> tuple[float, float]:
    """Measured seconds of one training step, reading included, and of one validation."""
    with put_back(trainer):
        times = _step_seconds(trainer, math.inf)
        return sum(times) / len(times), _validation_seconds(trainer)


def _step_seconds(trainer: Trainer, limit_seconds: float, *, first: bool = False) -> list[float]:
    """Seconds of a few steps, each with the wait for its images: behind those that lay ready, where slow reading shows.

    If the limit ends it before that, of all but the one that starts everything. With ``first`` of such steps as a run
    begins with, where these take less time than the others: of the last of them, if they are of two kinds.
    """
    times: list[float] = []
    learner, workers = trainer.learner, trainer.train_loader.workers
    ahead = 0 if workers is None else workers.ahead
    batches, is_over = _batches(trainer), False
    while len(times) < 2 or not is_over:
        began = time.perf_counter()
        step = learner.first_steps - 1 if first else learner.first_steps + len(times)
        train_step(learner, *next(batches), step).read()
        times.append(time.perf_counter() - began)
        is_over = len(times) == 1 + ahead + TIMED_STEPS or sum(times) > limit_seconds
        is_over = from_main(is_over)
    return times[1 + ahead :] or times[1:]


def _validation_seconds(trainer: Trainer) -> float:
    began = time.perf_counter()
    if trainer.validation_loader is not None:
        for network in trainer.learner.candidates().values():
            trainer.validate(network)
    return time.perf_counter() - began


def _batches(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches of one epoch after the other."""
    return chain.from_iterable(map(trainer.train_loader.epoch, count()))


class RangeTest(NamedTuple):
    """Losses at rising learning rates, smoothed, and the option ``peak_lr`` to begin with, None if they show none."""

    rates: list[float]
    losses: list[float]
    suggested: float | None

    @property
    def why_none(self) -> str | None:
        """Why the losses show no rate to begin with, None if they do."""
        lowest = self.losses.index(min(self.losses))
        if lowest < _FIRST_STEPS or self.losses[lowest] > (1 - _LEAST_FALL) * self.losses[0]:
            return "the loss does not fall at any of these rates"
        if lowest >= len(self.losses) - _LAST_STEPS:
            return f"the loss still falls at {self.rates[-1]:.1e}, behind which it breaks or the test ends"
        return None


def learning_rate_range_test(trainer: Trainer, steps: int = RANGE_STEPS) -> RangeTest:
    """Training steps at rates that rise from 1e-7 to 1 in equal ratios, until the loss is four times the lowest.

    The suggestion is the ``peak_lr`` that gives a tenth of the rate of the lowest smoothed loss, if the loss falls to
    it and rises again. Source: Smith, Cyclical Learning Rates for Training Neural Networks (WACV 2017).
    """
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    with put_back(trainer):
        for step, batch in zip(range(steps), _batches(trainer), strict=False):
            rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (step / max(1, steps - 1))
            result = train_step(trainer.learner, *batch, trainer.learner.first_steps + step, learning_rate=rate)
            if result.skipped and not result.counts:
                continue  # the loss scale was too large, and is lower now
            average = 0.9 * average + 0.1 * result.loss
            smoothed = average / (1 - 0.9 ** (len(losses) + 1))
            if result.skipped or not math.isfinite(smoothed) or (losses and smoothed > 4 * min(losses)):
                break
            rates.append(rate)
            losses.append(smoothed)
    if not losses:
        raise ValueError("the very first step of the learning rate range test had no finite loss: check the data")
    config, best = trainer.run.config, rates[losses.index(min(losses))]
    found = RangeTest(rates, losses, best / 10 * config.peak_lr / config.scaled_lr)
    return found if found.why_none is None else found._replace(suggested=None)
