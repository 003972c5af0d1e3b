"""One optimizer step: images to a loss, gradients, and new weights, or to a step that is skipped.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ceit.model.ceit import CeiT
from ceit.train.checkpoint import checkpoints_in
from ceit.train.distributed import from_all, total_of
from ceit.train.finite import source_in_backward, source_in_forward
from ceit.train.learner import Learner
from ceit.train.objective import seed_of


class StepResult(NamedTuple):
    """What a step gave, over all processes: the mean loss, images recognised (0 if mixed) and seen.

    ``skipped`` names what was not finite, None if the weights have moved; ``counts`` says whether that is a fault of
    the run: an overflow that a smaller loss scale cures is not.
    """

    loss: float
    right: int
    images: int
    skipped: str | None
    counts: bool


def train_step(
    learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int, learning_rate: float | None = None
) -> StepResult:
    """One optimizer step on this process's share of a batch, at the schedule's rate unless another is given.

    Every random number in it (drop path, mixing) is a function of (seed, step, process). If the loss or the gradient is
    not finite, nothing moves: no weight, average, optimizer state or BatchNorm statistic.

    Raises: ValueError, which names the option, if the device's memory does not hold it.
    """
    small_hw = learner.small_hw(step)
    try:
        with nullcontext() if small_hw is None else cast("CeiT", learner.model).at_size(small_hw):
            return _step(learner, images_bchw, labels_b, step, learning_rate)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: {_out_of_memory(learner)}") from error


def _out_of_memory(learner: Learner) -> str:
    """What to do about it: a run that goes on keeps what ``auto`` found at its start, so that takes a number."""
    size = learner.device_batch_size or learner.share
    if size == 1:
        return "not even one image at once fits, take a smaller model or img_size"
    saved = checkpoints_in(learner.checkpoints)
    begin = f"go on from {saved[-1].name}" if saved else "start again"
    resume = "--resume auto " if (learner.checkpoints.parent / "config.yaml").is_file() else ""
    fitting = f"{size // 2}" if saved or learner.device_batch_size else "auto, which finds what fits"
    return f"{size} images at once do not fit; {begin} with {resume}--device-batch-size {fitting}"


def _step(
    learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int, learning_rate: float | None
) -> StepResult:
    torch.manual_seed(seed_of(learner.config.seed, step, learner.accelerator.process_index))
    if learner.cores is not None:
        learner.cores.follow()
    learner.begin_step(step)
    if learning_rate is not None:
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    statistics = [statistic.clone() for statistic in learner.statistics]
    images_bchw, labels = _on_device(learner, images_bchw, labels_b, step)
    if (small_hw := learner.small_hw(step)) is not None:
        images_bchw = F.interpolate(images_bchw, small_hw, mode="bilinear", antialias=True)
    local_loss, right = _gradients(learner, learner.network, images_bchw, labels, learner.device_batch_size)
    norm = _gradient_norm(learner)
    share = len(labels_b)
    loss_sum, all_right, images = total_of([local_loss * share, right, share], learner.accelerator)
    skipped, scale, finite = None, learner.scaler.get_scale(), math.isfinite(loss_sum)
    if finite and math.isfinite(norm):
        learner.scaler.step(learner.optimizer)
        if learner.ema is not None:
            learner.ema.update(learner.model, step=step + 1)
    else:
        skipped = _source(learner, images_bchw, math.isfinite(local_loss))
        for statistic, before in zip(learner.statistics, statistics, strict=True):
            statistic.copy_(before)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    counts = skipped is not None and (not finite or scale <= 1)
    return StepResult(loss_sum / images, int(all_right), int(images), skipped, counts)


def step_alone(learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int, device_batch_size: int) -> None:
    """All that a step computes, to see whether it can: without the other processes, and whatever comes out of it."""
    images_bchw, labels = _on_device(learner, images_bchw, labels_b, step)
    _gradients(learner, learner.model, images_bchw, labels, device_batch_size)
    _gradient_norm(learner)
    learner.optimizer.step()
    if learner.ema is not None:
        learner.ema.update(learner.model, step=step + 1)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)


def _on_device(learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """This process's share of the batch on its device, as the network sees it."""
    accelerator = learner.accelerator
    images_bchw = images_bchw.to(accelerator.device, learner.dtype, non_blocking=True)
    labels_b = labels_b.to(accelerator.device, non_blocking=True)
    return learner.objective.mixed(images_bchw, labels_b, step, accelerator.process_index)


def _gradients(
    learner: Learner, network: nn.Module, images_bchw: Tensor, labels: Tensor, device_batch_size: int | None
) -> tuple[float, int]:
    """Gradients of the mean loss over the batch, part by part if it does not fit; the loss, and images recognised."""
    share = len(images_bchw)
    size = device_batch_size or share
    loss_sum, right = 0.0, 0
    for start in range(0, share, size):
        part = slice(start, start + size)
        is_last = start + size >= share
        with nullcontext() if is_last else learner.accelerator.no_sync(network):
            with learner.autocast():
                targets = learner.objective.targets(images_bchw[part], labels[part])
                logits = network(images_bchw[part])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = learner.objective.loss(logits, targets)
            images = len(logits)
            learner.scaler.scale(loss * (images / share) if images < share else loss).backward()
        loss_sum += loss.item() * images
        if labels.dim() == 1:
            right += int((logits.detach().argmax(1) == labels[part]).sum())
    return loss_sum / share, right


def _gradient_norm(learner: Learner) -> float:
    """The norm of the whole gradient, of before it is clipped."""
    learner.scaler.unscale_(learner.optimizer)
    if learner.config.clip_norm > 0:
        return float(clip_grad_norm_(learner.network.parameters(), learner.config.clip_norm))
    gradients = (parameter.grad for parameter in learner.network.parameters())
    return float(get_total_norm([gradient for gradient in gradients if gradient is not None]))


def _source(learner: Learner, images_bchw: Tensor, loss_is_finite: bool) -> str:
    """What was not finite, found by the first process that met it."""
    if learner.config.batch_norm == "sync" and learner.accelerator.num_processes > 1:
        return "the loss or the gradient"  # looking closer would need all processes at once
    process = learner.accelerator.process_index
    if loss_is_finite:
        found = source_in_backward(learner.model)
    else:
        parts = images_bchw.split(learner.device_batch_size or len(images_bchw))
        sources = (source_in_forward(learner.model, part, learner.autocast()) for part in parts)
        found = next((source for source in sources if source is not None), "the loss")
    own = (loss_is_finite, process, found)  # a loss comes before the gradients that it spoils everywhere
    return min(from_all(own))[2]
