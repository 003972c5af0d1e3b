"""A step gives the device its work and does not wait for it."""

import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ceit.data.batches.augment import Augmentation
from ceit.train.config import Mixing, SmallImages, WeightAverage
from ceit.train.learner import Learner
from ceit.train.step import StepResult, bring_to_host, train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import MakeTrainer

STEPS = 20


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device: values of tensors, and copies from the device to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = func.namespace == "aten" and func._opname in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")
        copies = func._opname == "_to_copy" and args[0].device.type != "cpu" == str(kwargs.get("device"))
        if reads or copies:
            self.found[str(func)] += 1
        return func(*args, **kwargs)


def steps(trainer: Trainer, spoilt: int | None = None) -> list[StepResult]:
    """Twenty steps of which no result is read, one of them with images that are not finite."""
    images, labels = next(trainer.train_loader.epoch(0))
    found = []
    for step in range(STEPS):
        batch = torch.full_like(images, math.nan) if step == spoilt else images
        found.append(train_step(trainer.learner, batch, labels, step))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixing": Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), "loss": "bce"},
        {"device_batch_size": 8, "class_weights": "balanced"},
        {"precision": "bf16", "geometry": {"drop_path_rate": 0.1, "skip_dead": True}},
        {"precision": "fp16"},
        {"augmentation": Augmentation(flip=True, translate=2, cutout=4), "batch_norm": "frozen"},
    ],
)
def test_no_value_is_read_in_twenty_steps(make_trainer: MakeTrainer, options: dict[str, Any]) -> None:
    trainer = make_trainer(ema=WeightAverage(decay=0.9), clip_norm=1.0, **options)
    with HostReads() as reads:
        results = steps(trainer, spoilt=7)
    assert reads.found == {}
    with HostReads() as reads:
        bring_to_host(results)
    assert sum(reads.found.values()) <= 1
    assert [result.step for result in results if result.skipped is not None] == [7]


def test_a_value_that_is_read_would_be_counted() -> None:
    with HostReads() as reads:
        float(torch.ones(()) + 1)
    assert reads.found == {"aten._local_scalar_dense.default": 1}


def test_an_optimizer_that_the_device_cannot_tell_waits_for_one_flag_a_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(optimizer="sgd")
    with HostReads() as reads:
        results = steps(trainer, spoilt=3)
    assert reads.found == {"aten._local_scalar_dense.default": STEPS}
    assert [result.step for result in results if result.skipped is not None] == [3]


def test_what_was_not_finite_is_named_though_it_is_read_much_later(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    results = steps(trainer, spoilt=7)
    assert [result.skipped for result in results] == [None] * 7 + ["the images"] + [None] * 12
    assert all(math.isfinite(result.loss) == (result.step != 7) for result in results)


def test_a_gradient_is_named_by_the_step_itself(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    spoil = {"now": False}

    def hook(gradient: Tensor) -> Tensor:
        return gradient * math.nan if spoil["now"] else gradient

    trainer.learner.model.get_parameter("blocks.0.norm1.weight").register_hook(hook)
    images, labels = next(trainer.train_loader.epoch(0))
    results = []
    for step in range(4):
        spoil["now"] = step == 1
        results.append(train_step(trainer.learner, images, labels, step))
    assert [result.skipped for result in results] == [None, "gradient of blocks.0.norm1.weight", None, None]


def test_a_step_runs_on_a_device_that_has_no_values(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device meta whatever reads a value, or copies one to the CPU, is an error."""
    trainer = make_trainer(ema=WeightAverage(decay=0.9), clip_norm=1.0, mixing=Mixing(mixup_alpha=0.8))
    run, learner = trainer.run, trainer.learner
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    preprocessing = trainer.dataset.preprocessing
    there = Learner(run, learner.model, preprocessing, trainer.accelerator, Path("checkpoints"), None, print)
    monkeypatch.setattr(there, "autocast", nullcontext)
    # torch has no fused kernels for this device, which are what else a step consists of
    monkeypatch.setattr(there.optimizer, "step", lambda: None)
    result = train_step(there, *next(trainer.train_loader.epoch(0)), 0)
    assert result.numbers.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        result.read()


def test_of_skipped_steps_that_are_read_together_the_last_is_looked_into(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    images, labels = next(trainer.train_loader.epoch(0))
    nothing = torch.full_like(images, math.nan)
    results = [train_step(trainer.learner, nothing if step else images, labels, step) for step in range(3)]
    bring_to_host(results)
    assert [result.skipped for result in results] == [None, "the loss", "the images"]


def test_steps_are_read_before_the_images_change_their_size(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(small_images=SmallImages(scale=0.5, share=0.3), log_every_steps=1000)
    trainer.read_every = 1000
    last_small = trainer.learner.small_steps - 1
    assert 0 < last_small < trainer.progress.steps - 1
    step = train_step

    def spoiling(learner: Learner, images: Tensor, labels: Tensor, number: int) -> StepResult:
        spoilt = number in (last_small, last_small + 2)
        return step(learner, images * math.nan if spoilt else images, labels, number)

    monkeypatch.setattr("ceit.train.trainer.train_step", spoiling)
    told: list[Any] = []
    trainer.log.show = told.append
    trainer.fit()
    skipped = [(line["step"], line["not_finite"]) for line in told if line.get("event") == "skipped"]
    assert skipped == [(last_small + 1, "the images"), (last_small + 3, "the images")]
