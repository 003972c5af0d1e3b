"""BatchNorm's running statistics: frozen, put back, and made one over all processes."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ceit.messages import Say

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
FEW_IMAGES = 16  # per process; below, BatchNorm's statistics are noise (Wu and He, Group Normalization, ECCV 2018)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Means, variances and counts of batches: what a forward pass in training moves."""
    return [statistic for norm in model.modules() if isinstance(norm, BatchNorm) for statistic in norm.buffers()]


def freeze_statistics(model: nn.Module) -> None:
    """Normalise by the running statistics and leave them as they are; ``model.train()`` undoes it."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()


def average_over_processes(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the mean of all processes' running means and variances; nothing in a single one."""
    if accelerator.num_processes == 1:
        return
    for statistic in running_statistics(model):
        if statistic.is_floating_point():  # the counts of batches are the same already
            torch.distributed.all_reduce(statistic)
            statistic.div_(accelerator.num_processes)


def warn_of_small_batches(model: nn.Module, images: int, mode: str, say: Say) -> None:
    """Say if so few images at once make BatchNorm's statistics noise."""
    if images < FEW_IMAGES and mode == "local" and running_statistics(model):
        say(
            f"BatchNorm sees {images} images a process and step, fewer than {FEW_IMAGES}: its statistics are noisy; "
            "raise the batch per process, or set batch_norm to sync (on GPUs) or frozen (in fine-tuning)"
        )
