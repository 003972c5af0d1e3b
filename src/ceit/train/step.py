"""One optimizer step: images to a loss, gradients, and new weights, or to a step that is skipped.

Letters: ``B`` batch, ``C`` channels, ``H W`` pixels.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from ceit.messages import is_lack_of_memory
from ceit.model.ceit import CeiT
from ceit.train.checkpoint import checkpoints_in
from ceit.train.distributed import from_all, summed_, widest_dtype
from ceit.train.finite import source_in_forward
from ceit.train.learner import Learner, part_size
from ceit.train.objective import seed_of


class StepResult:
    """What a step gave, over all processes. It stays on the device until it is asked for: to ask waits for the step.

    ``loss`` is the mean, ``right`` the images recognised (0 if mixed), of ``images``. ``skipped`` names what was not
    finite, None if the weights have moved; ``counts`` says whether that is a fault of the run: an overflow that a
    smaller loss scale cures is not.
    """

    def __init__(self, learner: Learner, step: int, images: int, numbers: Tensor, gradient_norms_p: Tensor) -> None:
        self.step, self.images, self.small_hw = step, images, learner.small_hw(step)
        self.numbers, self.gradient_norms_p = numbers, gradient_norms_p
        self.is_last_skipped = True  # of those that are read together: its images are kept
        self._learner, self._read, self._source = learner, list[float](), None

    @property
    def loss(self) -> float:
        """The mean loss over all processes."""
        return self.read()[0] / self.images

    @property
    def right(self) -> int:
        """Images whose label has the largest logit."""
        return int(self.read()[1])

    @property
    def skipped(self) -> str | None:
        """The place that was not finite, looked for when it is first asked for, in all processes at once."""
        if self.read()[2]:
            return None
        if self._source is None:
            self._source = _source(self._learner, self)
        return self._source

    @property
    def local_loss_is_finite(self) -> bool:
        """Whether the loss of this process is."""
        return self.read()[3] > 0

    @property
    def counts(self) -> bool:
        """Whether the step was skipped for more than a loss scale that was too large."""
        loss_sum, _, moved, _, scale = self.read()
        return not moved and (not math.isfinite(loss_sum) or scale <= 1)

    def read(self) -> list[float]:
        """The numbers on the host, brought there once."""
        if not self._read:
            bring_to_host([self])
        return self._read


def bring_to_host(results: list[StepResult]) -> None:
    """Read the numbers of several steps in one copy."""
    if results:
        rows = torch.stack([result.numbers for result in results]).tolist()
        for result, row in zip(results, rows, strict=True):
            result._read = row
        skipped = [result for result, (_, _, moved, _, _) in zip(results, rows, strict=True) if not moved]
        for result in skipped[:-1]:
            result.is_last_skipped = False


def train_step(
    learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int, learning_rate: float | None = None
) -> StepResult:
    """One optimizer step on this process's share of a batch, at the schedule's rate unless another is given.

    Every random number in it (drop path, mixing) is a function of (seed, step, process). If the loss or the gradient is
    not finite, nothing moves: no weight, average, optimizer state or BatchNorm statistic. The device decides that, so
    the host does not wait for it; optimizers that cannot be told by the device wait for this one flag.

    Raises: ValueError, which names the option, if memory does not hold it.
    """
    try:
        with _at_size(learner, learner.small_hw(step)):
            return _step(learner, images_bchw, labels_b, step, learning_rate)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise ValueError(f"out of memory: {_out_of_memory(learner)}") from error


def _at_size(learner: Learner, small_hw: tuple[int, int] | None) -> AbstractContextManager[Any]:
    """The network takes images of this size, None for its own."""
    return nullcontext() if small_hw is None else cast("CeiT", learner.model).at_size(small_hw)


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
    _seed(learner, step)
    if learner.cores is not None:
        learner.cores.follow()
    learner.begin_step(step)
    if learning_rate is not None:
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    statistics = learner.statistics.copy()
    images_bchw, labels = _on_device(learner, images_bchw, labels_b, step)
    if (small_hw := learner.small_hw(step)) is not None:
        images_bchw = F.interpolate(images_bchw, small_hw, mode="bilinear", antialias=True)
    local = _gradients(learner, learner.network, images_bchw, labels, learner.device_batch_size)
    norms_p, norm = _gradient_norms(learner)
    totals = summed_(local.clone(), learner.accelerator)
    moved = totals[0].isfinite() & norm.isfinite()
    scale = learner.scaler.scale(torch.ones_like(totals[0]))
    _move(learner, moved)
    _settle(learner, statistics, images_bchw, step, moved)
    numbers = torch.stack([*totals, moved.to(totals), local[0].isfinite().to(totals), scale.to(totals)])
    return StepResult(learner, step, len(labels_b) * learner.accelerator.num_processes, numbers, norms_p)


def step_alone(learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int, device_batch_size: int) -> None:
    """All that a step computes, to see whether it can: without the other processes, and whatever comes out of it."""
    statistics = learner.statistics.copy()
    images_bchw, labels = _on_device(learner, images_bchw, labels_b, step)
    _gradients(learner, learner.model, images_bchw, labels, device_batch_size)
    _, norm = _gradient_norms(learner)
    learner.optimizer.step()
    _settle(learner, statistics, images_bchw, step, norm.isfinite())


def _settle(learner: Learner, statistics: list[Tensor], images_bchw: Tensor, step: int, moved: Tensor) -> None:
    """What follows when the weights have moved, or have not: the rest of the state keeps up with them."""
    learner.statistics.put_back(statistics, keep=moved)
    if learner.average is not None:
        learner.average.follow(step + 1, moved)
    learner.suspect(images_bchw, unless=moved)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)


def _seed(learner: Learner, step: int) -> None:
    torch.manual_seed(seed_of(learner.config.seed, step, learner.accelerator.process_index))


def _on_device(learner: Learner, images_bchw: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """This process's share of the batch on its device, as the network sees it."""
    accelerator = learner.accelerator
    device, is_cuda = accelerator.device, accelerator.device.type == "cuda"  # see ``Varied.to``
    images_bchw = images_bchw.to(device, learner.dtype, non_blocking=is_cuda)
    labels_b = labels_b.to(device, non_blocking=is_cuda)
    return learner.objective.mixed(images_bchw, labels_b, step, accelerator.process_index)


def _gradients(
    learner: Learner, network: nn.Module, images_bchw: Tensor, labels: Tensor, device_batch_size: int | None
) -> Tensor:
    """Gradients of the mean loss over the batch, part by part if it does not fit; the loss of all images and how many
    were recognised, ``(2,)``."""
    share = len(images_bchw)
    size = part_size(share, device_batch_size)
    sums = torch.zeros(2, dtype=widest_dtype(images_bchw.device), device=images_bchw.device)
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
        sums[0] += loss.detach().to(sums) * images
        if labels.dim() == 1:
            sums[1] += (logits.detach().argmax(1) == labels[part]).sum()
    return sums


def _gradient_norms(learner: Learner) -> tuple[Tensor, Tensor]:
    """The norm of each parameter's gradient ``(P,)``, 0 where there is none, and of all of it, before it is clipped."""
    learner.scaler.unscale_(learner.optimizer)
    parameters = learner.parameters
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = iter(torch._foreach_norm(gradients))
    nothing = torch.zeros((), dtype=learner.dtype, device=learner.accelerator.device)
    norms_p = torch.stack([nothing if parameter.grad is None else next(norms) for parameter in parameters])
    norm = torch.linalg.vector_norm(norms_p)
    if learner.config.clip_norm > 0:
        clip_grads_with_norm_(parameters, learner.config.clip_norm, norm)
    return norms_p, norm


def _move(learner: Learner, moved: Tensor) -> None:
    """The optimizer's step, or none."""
    optimizer = learner.optimizer
    is_told = getattr(optimizer, "_step_supports_amp_scaling", False) and moved.device.type != "mps"  # deaf to it there
    if is_told:  # fused: torch's way to leave it to the device
        flags = {"grad_scale": None, "found_inf": 1 - moved.float()}
        for name, value in flags.items():
            setattr(optimizer, name, value)
        optimizer.step()
        for name in flags:
            delattr(optimizer, name)
    elif moved:
        optimizer.step()


def _source(learner: Learner, result: StepResult) -> str:
    """What was not finite in a skipped step, found by the first process that met it.

    A gradient is known from the step itself. For a loss the network computes the images of the last skipped step again,
    with the weights of now: they are those of the step if its result is read before the next one. The images of
    skipped steps before the last one are gone.
    """
    if learner.config.batch_norm == "sync" and learner.accelerator.num_processes > 1:
        return "the loss or the gradient"  # looking closer would need all processes at once
    process = learner.accelerator.process_index
    found = "the loss"
    if result.local_loss_is_finite:
        found = _source_in_backward(learner, result.gradient_norms_p)
    elif result.is_last_skipped:
        statistics = learner.statistics.copy()
        _seed(learner, result.step)
        parts = learner.suspected.split(part_size(len(learner.suspected), learner.device_batch_size))
        with _at_size(learner, result.small_hw):
            sources = (source_in_forward(learner.model, part, learner.autocast()) for part in parts)
            found = next((source for source in sources if source is not None), found)
        learner.statistics.put_back(statistics, keep=torch.tensor(False))
    own = (result.local_loss_is_finite, process, found)  # a loss comes before the gradients that it spoils everywhere
    return min(from_all(own))[2]


def _source_in_backward(learner: Learner, gradient_norms_p: Tensor) -> str:
    """The parameter whose gradient the backward pass, from the logits down, first spoilt."""
    names = [name for name, _ in learner.model.named_parameters()]
    for name, is_finite in zip(reversed(names), reversed(gradient_norms_p.isfinite().tolist()), strict=True):
        if not is_finite:
            return f"gradient of {name}"
    return "the norm of the gradient"
