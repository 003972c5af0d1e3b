"""The optimizer and the learning rate of every step, both timm's."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, cast

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ceit.messages import unknown
from ceit.model.ceit import CeiT
from ceit.train.batch_norm import BatchNorm
from ceit.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """``config.optimizer`` over the model's parameters; what ``no_weight_decay`` names, 1-D tensors and biases are not
    decayed. Each parameter group has an ``lr_scale``, which timm's schedules multiply its rate by, where rates differ.

    Raises: ValueError for a name timm does not have, or arguments that the optimizer does not take.
    """
    known, name = list_optimizers(), config.optimizer
    if name not in known:
        raise ValueError(unknown("optimizer", name, map(str, known)))
    fused = {"fused": True} if name == "adamw" else {}  # one kernel instead of dozens
    arguments: dict[str, Any] = fused | config.optimizer_args
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=name,
            lr=config.scaled_lr,
            weight_decay=config.weight_decay,
            layer_decay=None if config.layer_decay == 1 else config.layer_decay,
            **arguments,
        )
    except (TypeError, AssertionError, RuntimeError, ImportError) as error:
        reason = f"{error}" or "it needs another device or another package"
        raise ValueError(f"optimizer {name} cannot be made with {config.optimizer_args}: {reason}") from error
    if more := optimizer.state_dict().keys() - {"state", "param_groups"}:
        raise ValueError(f"optimizer {name} keeps {min(more)}, which no checkpoint of a run holds: take another")
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"optimizer {name} needs second derivatives, which are not computed: take another")
    if factors := _factors(model, config):
        _scale_rates(optimizer, factors)
    return optimizer


def _factors(model: nn.Module, config: TrainConfig) -> dict[nn.Parameter, float]:
    """What the learning rates of some parameters are multiplied by; none where the options leave them alone."""
    factors: dict[nn.Parameter, float] = {}
    if (factor := config.head_lr_factor) != 1:
        factors |= dict.fromkeys(cast("CeiT", model).get_classifier().parameters(), factor)
    if (factor := config.batch_norm_bias_lr_factor) != 1:
        norms = (module for module in model.modules() if isinstance(module, BatchNorm))
        factors |= {norm.bias: factor for norm in norms if norm.bias is not None}
    return factors


def _scale_rates(optimizer: Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Split each group by the factors of its parameters; what else timm says of the group holds for its parts."""

    def factor(parameter: nn.Parameter) -> float:
        return factors.get(parameter, 1.0)

    optimizer.param_groups[:] = [
        {**group, "params": list(part), "lr_scale": group.get("lr_scale", 1.0) * scale}
        for group in optimizer.param_groups
        for scale, part in groupby(sorted(group["params"], key=factor), key=factor)
    ]


class Schedule:
    """The learning rate of each step: linear warm-up from ``warmup_lr`` to ``scaled_lr``, then a fall to ``final_lr``;
    a function of the step alone.

    Where at first only the head learns, those steps go through all of it, and the others again: what only then begins
    to learn needs its warm-up, too. A run too short for its warm-up, or such a phase, has a quarter of its steps as
    one: the rate must fall, too. Differs: the release steps once an epoch and one epoch late, see docs/decisions.
    """

    def __init__(self, optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, steps: int) -> None:
        thaw = min(config.freeze_steps(steps_per_epoch), steps)
        phases = {0: thaw, thaw: steps - thaw}
        self.phases = {
            start: _phase(optimizer, config, steps_per_epoch, length) for start, length in phases.items() if length
        }

    def step_update(self, step: int) -> None:
        """Give each parameter group its rate in this step."""
        start = max(start for start in self.phases if start <= step)
        self.phases[start].step_update(step - start)


def _phase(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, steps: int) -> Scheduler:
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps // 4)
    options = {
        "t_initial": max(2, steps - warmup),  # of 1, timm warns that nothing falls
        "lr_min": min(config.final_lr, config.scaled_lr),
        "warmup_t": warmup,
        "warmup_lr_init": min(config.warmup_lr, config.scaled_lr),
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, **options)
    return PolyLRScheduler(optimizer, power=1.0, **options)
