"""BatchNorm's running statistics: kept, frozen, put back, and made one over all processes."""

from itertools import chain

import torch
from accelerate import Accelerator
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
FEW_IMAGES = 16  # per process; below, BatchNorm's statistics are noise (Wu and He, Group Normalization, ECCV 2018)


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Every BatchNorm layer of a network."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def freeze_statistics(model: nn.Module) -> None:
    """Normalise by the running statistics and leave them as they are; ``model.train()`` undoes it."""
    for norm in batch_norms(model):
        norm.eval()


def average_over_processes(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the mean of all processes' running statistics; nothing in a single one."""
    if accelerator.num_processes == 1:
        return
    for statistic in _statistics(model):
        total = statistic.clone()
        torch.distributed.all_reduce(total)
        statistic.copy_(total / accelerator.num_processes)


def small_batch_warning(model: nn.Module, images: int, mode: str) -> str | None:
    """A sentence if so few images a process make BatchNorm's statistics noise, else None."""
    if images >= FEW_IMAGES or mode != "local" or not batch_norms(model):
        return None
    return (
        f"BatchNorm sees {images} images a process and step, fewer than {FEW_IMAGES}: its statistics are noisy; "
        "raise the batch per process, or set batch_norm to sync (on GPUs) or frozen (in fine-tuning)"
    )


class StatisticsBackup:
    """A copy of the running statistics from before a step, for a step that has to be undone."""

    def __init__(self, model: nn.Module) -> None:
        self.current = list(chain.from_iterable(norm.buffers() for norm in batch_norms(model)))
        self.copies = [statistic.clone() for statistic in self.current]

    def take(self) -> None:
        """Copy the statistics as they are now."""
        for copy, statistic in zip(self.copies, self.current, strict=True):
            copy.copy_(statistic)

    def restore(self) -> None:
        """Put the statistics back to the copy."""
        for copy, statistic in zip(self.copies, self.current, strict=True):
            statistic.copy_(copy)


def _statistics(model: nn.Module) -> list[Tensor]:
    found = [(norm.running_mean, norm.running_var) for norm in batch_norms(model)]
    return [statistic for statistic in chain.from_iterable(found) if statistic is not None]
