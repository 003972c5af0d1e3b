"""The optimizer and the learning rate of every step, both timm's."""

from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ceit.messages import unknown
from ceit.train.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """``config.optimizer`` over the model's parameters; what ``no_weight_decay`` names, 1-D tensors and biases are not
    decayed.

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
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"optimizer {name} needs second derivatives, which are not computed: take another")
    return optimizer


def make_schedule(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, steps: int) -> Scheduler:
    """Linear warm-up from ``warmup_lr`` to ``scaled_lr``, then a fall to ``final_lr``; a function of the
    step alone.

    Differs: the release steps once an epoch and one epoch late, see docs/decisions.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps - 1)
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
