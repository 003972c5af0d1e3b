"""The moving average of the weights."""

import copy

import torch
from torch import Tensor, nn

from ceit.train.config import WeightAverage


class MovingAverage:
    """``average = average + (1 - d) (weights - average)`` after each step, in ``module``, a network of its own.

    ``d`` is the decay; with a warm-up it is ``1 - s^(-2/3)`` after ``s`` steps where that is less, so the average
    begins short. All tensors move in a few calls, and a step that the device has skipped moves none of them: that flag
    is a factor, so nobody has to read it. Source: timm's ``ModelEmaV3``, which it equals.
    """

    def __init__(self, model: nn.Module, config: WeightAverage) -> None:
        self.config = config
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.module.parameters(), model.parameters(), strict=True))
        copied: list[tuple[Tensor, Tensor]] = []
        for pair in zip(self.module.buffers(), model.buffers(), strict=True):
            is_averaged = config.batch_norm == "average" and pair[0].is_floating_point()
            (pairs if is_averaged else copied).append(pair)
        self.averaged, self.copied = _columns(pairs), _columns(copied)

    @torch.no_grad()
    def follow(self, step: int, moved: Tensor) -> None:
        """After ``step`` steps; where ``moved``, a 0-dimensional flag on the device, is false nothing changes."""
        average, weights = self.averaged
        difference = torch._foreach_sub(weights, average)
        torch._foreach_mul_(difference, moved.to(average[0].dtype) * (1 - self.decay(step)))
        torch._foreach_add_(average, difference)
        if self.copied[0]:
            torch._foreach_copy_(*self.copied)  # those of a skipped step have been put back already

    def decay(self, step: int) -> float:
        """The share of the average that the last of ``step`` steps keeps; nothing of the first."""
        if step <= 1:
            return 0.0
        return min(self.config.decay, 1 - step ** (-2 / 3)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def begin_again(self) -> None:
        """Take the weights and the statistics as they are."""
        for own, model in (self.averaged, self.copied):
            if own:
                torch._foreach_copy_(own, model)


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [own for own, _ in pairs], [model for _, model in pairs]
