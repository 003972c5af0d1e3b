"""The network in training, and all that makes a step of it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler

from ceit.data.preprocessing import Preprocessing
from ceit.data.splits import ImageDataset
from ceit.inference.cores import FreeCores
from ceit.messages import Say
from ceit.model import CeiT
from ceit.train.average import MovingAverage
from ceit.train.batch_norm import JoinedStatistics, average_over_processes, freeze_statistics, warn_of_small_batches
from ceit.train.checkpoint import Parts
from ceit.train.config import TrainConfig
from ceit.train.distributed import shared_gradients
from ceit.train.objective import Objective, balanced_weights, start_rare
from ceit.train.optimizer import Schedule, make_optimizer
from ceit.train.resolve import ResolvedRun
from ceit.train.teacher import make_teacher
from ceit.weights import create_model


class Learner:
    """What learns: a network with its objective, optimizer, schedule, loss scale and average of the weights.

    ``network`` is ``model`` as it is trained: its gradients averaged over the processes, compiled if asked for.
    ``average`` is that of the weights, None without one; ``statistics`` are BatchNorm's, which a skipped step puts
    back; ``suspected`` are the images of the last step that was skipped. ``checkpoints`` is where the run saves its
    state, for advice; ``cores`` are followed before each step, None where the number of threads stays.
    """

    def __init__(
        self,
        run: ResolvedRun,
        model: nn.Module,
        preprocessing: Preprocessing,
        accelerator: Accelerator,
        checkpoints: Path,
        cores: FreeCores | None,
        say: Say,
    ) -> None:
        config, device, class_names = run.config, accelerator.device, run.dataset.class_names
        self.run, self.accelerator, self.checkpoints, self.cores = run, accelerator, checkpoints, cores
        self.dtype, self.autocast_dtype = run.dtype, run.autocast_dtype
        self.model = model.to(device, run.dtype).train()
        if config.batch_norm == "sync" and accelerator.num_processes > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is one itself
        warn_of_small_batches(model, part_size(self.share, self.device_batch_size), config.batch_norm, say)
        self.statistics = JoinedStatistics(model)
        self.parameters = list(model.parameters())
        self.suspected = torch.empty(0)
        self.average = MovingAverage(model, config.ema) if config.ema.decay else None
        self.network = shared_gradients(model, accelerator)
        if config.compile:
            self.network = cast("nn.Module", torch.compile(self.network, dynamic=False))
        self.optimizer = make_optimizer(model, config)
        self.scaler = GradScaler(device.type, enabled=config.precision == "fp16")
        weights_k = None
        if config.class_weights != "none":
            weights_k = balanced_weights(run.train.labels, len(class_names)).to(device)
        teacher = make_teacher(config.distillation, class_names, preprocessing, device, run.dtype)
        self.objective = Objective(config, len(class_names), weights_k, teacher)
        self.behind_the_head: list[nn.Parameter] = []
        if config.freeze_epochs:
            head = set(cast("CeiT", model).get_classifier().parameters())
            self.behind_the_head = [p for p in model.parameters() if p.requires_grad and p not in head]
        self.head_only = False
        self.plan(run.steps)

    def stop_sharing(self) -> None:
        """Let go of what averages the gradients of several processes, as long as these are connected.

        If it went later than the connection, it would wait with Python's lock held for a thread of the connection, and
        that thread, now and then, for the lock: for ever.
        """
        self.network = self.model
        self.accelerator.free_memory()

    @property
    def config(self) -> TrainConfig:
        """The options, as resolved."""
        return self.run.config

    @property
    def device_batch_size(self) -> int | None:
        """Images that a process computes at once; None for its whole share, and while it is not yet found."""
        size = self.config.device_batch_size
        return size if isinstance(size, int) else None

    @property
    def share(self) -> int:
        """Images of a step that this process computes."""
        return self.config.batch_size // self.accelerator.num_processes

    def learning_rate(self) -> float:
        """The rate of the layers that layer decay leaves alone."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format of forward passes."""
        dtype = self.autocast_dtype
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)

    def parts(self) -> Parts:
        """What a checkpoint holds."""
        networks = {"model": self.model} | ({} if self.average is None else {"ema": self.average.module})
        return Parts(networks, self.optimizer, self.scaler)

    def candidates(self) -> dict[str, nn.Module]:
        """The networks that can be kept: raw weights, and their average."""
        return {"raw": self.model} | ({} if self.average is None else {"ema": self.average.module})

    def plan(self, steps: int) -> None:
        """Take so many steps in all: behind the last one the learning rate would be at its end."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self.schedule = Schedule(self.optimizer, self.config, self.run.steps_per_epoch, steps)
        for group, rate in zip(groups, rates, strict=True):  # that of the last step, until the next begins
            group["lr"] = rate
        self.head_only_steps = self.config.freeze_steps(self.run.steps_per_epoch)
        self.small_steps = self._small_of(steps)
        small_hw = self.run.small_hw or self.run.dataset.img_size
        self.saved_by_small = 1 - math.prod(small_hw) / math.prod(self.run.dataset.img_size)  # of a step's work
        self.first_steps = self.first_of(steps)

    def first_of(self, steps: int) -> int:
        """Of so many steps those at the start of the run that take less time than the others."""
        return max(self.config.freeze_steps(self.run.steps_per_epoch), self._small_of(steps))

    def _small_of(self, steps: int) -> int:
        return 0 if self.run.small_hw is None else round(self.config.small_images.share * steps)

    def share_done(self, step: int, steps: int) -> float:
        """What the first ``step`` of ``steps`` take of a run's work: an image counts by its pixels, and three times as
        much where all layers learn as where the head alone does."""
        return self.work(step) / self.work(steps)

    def work(self, step: int) -> float:
        """The first ``step`` steps, counted in whole ones."""
        small, head_only = min(step, self.small_steps), min(step, self.head_only_steps)
        both = min(small, head_only)
        return step - self.saved_by_small * small - 2 / 3 * (head_only - self.saved_by_small * both)

    def small_hw(self, step: int) -> tuple[int, int] | None:
        """The size to which this step's images are scaled down, None for as they are."""
        return self.run.small_hw if step < self.small_steps else None

    def begin_step(self, step: int) -> None:
        """What learns in this step, and at which rates.

        While only the head learns, all else has no gradient, so neither optimizer nor weight decay moves it, and it
        computes as in evaluation: its BatchNorm statistics stay.
        """
        self.schedule.step_update(step)
        if (head_only := step < self.head_only_steps) != self.head_only:
            self.head_only = head_only
            for parameter in self.behind_the_head:
                parameter.requires_grad_(not head_only)
            self.start_training()

    def suspect(self, images_bchw: Tensor, unless: Tensor) -> None:
        """Keep a step's images if it was skipped, as the device knows: what was not finite is looked for afterwards."""
        if self.suspected.shape != images_bchw.shape:
            self.suspected = torch.empty_like(images_bchw)
        torch.where(unless, self.suspected, images_bchw, out=self.suspected)

    def start_training(self) -> None:
        """Training mode, with BatchNorm as the options say; that of evaluation while only the head learns."""
        self.network.train(not self.head_only)
        if self.config.batch_norm == "frozen":
            freeze_statistics(self.network)

    def average_statistics(self) -> None:
        """One set of BatchNorm statistics over all processes, as evaluating and saving need it."""
        for network in self.candidates().values():
            average_over_processes(network, self.accelerator)


MakeModel = Callable[[ResolvedRun, Say], nn.Module]
"""Makes the network that a run begins with, in training mode: images ``(B, C, H, W)`` to logits ``(B, classes)``."""


def starting_model(run: ResolvedRun, say: Say) -> CeiT:
    """The network with its initial weights: new ones, or a checkpoint's with a new head where the classes differ.

    Raises: ValueError for a checkpoint that does not suit the model.
    """
    config, dataset = run.config, run.dataset
    height, width = dataset.img_size
    geometry = {"img_size": (height, width), "in_chans": dataset.in_chans, "num_classes": len(dataset.class_names)}
    model = create_model(config.model, checkpoint=config.initial_checkpoint, **geometry, **config.geometry)
    model.set_grad_checkpointing(config.grad_checkpointing)
    model.temperature = model.familiarity = None  # other weights need others
    if config.initial_checkpoint is not None:
        say(f"starting from the weights of {config.initial_checkpoint}, at {height} x {width} pixels")
        if model.class_names is not None and tuple(model.class_names) != dataset.class_names:
            _fit_head(model, model.class_names, dataset.class_names, say)
    if config.loss == "bce":
        start_rare(cast("nn.Linear", model.get_classifier()))
    return model


def part_size(images: int, most: int | None) -> int:
    """Images computed at once, in as few parts as can be: as even as can be, or BatchNorm would see a small rest."""
    return images if most is None else -(-images // -(-images // most))


def _fit_head(model: CeiT, before: Sequence[str], now: Sequence[str], say: Say) -> None:
    """A head for other classes: a new one, or for the same ones in another order its rows in theirs."""
    if sorted(before) != sorted(now):
        say(f"its classes are not those of the data: the head for {len(now):,} classes begins anew")
        model.reset_classifier(len(now))
        return
    head, rows = cast("nn.Linear", model.get_classifier()), [before.index(name) for name in now]
    with torch.no_grad():
        for values in head.parameters():
            values.copy_(values[rows].clone())


def normalised_as(model: nn.Module, dataset: ImageDataset) -> ImageDataset:
    """The data normalised as the model's images were, if it was trained before: what it has learnt expects that."""
    if not isinstance(model, CeiT) or model.preprocessing is None:
        return dataset
    known = Preprocessing.from_dict(model.preprocessing)
    return replace(dataset, mean=known.mean, std=known.std) if len(known.mean) == dataset.in_chans else dataset
