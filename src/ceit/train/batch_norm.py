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


class JoinedStatistics:
    """The running statistics of a network in one tensor for each dtype, of which every norm has its part as a view.

    So a copy of all of them, and putting it back, are one call, however many norms there are. The network keeps its
    names and values; made once the network lies where it stays.
    """

    def __init__(self, model: nn.Module) -> None:
        found: dict[torch.dtype, list[tuple[nn.Module, str, Tensor]]] = {}
        for norm in model.modules():
            if isinstance(norm, BatchNorm):
                for name, statistic in norm.named_buffers(recurse=False):
                    found.setdefault(statistic.dtype, []).append((norm, name, statistic))
        self.joined: list[Tensor] = []
        for places in found.values():
            joined = torch.cat([statistic.flatten() for _, _, statistic in places])
            parts = joined.split([statistic.numel() for _, _, statistic in places])
            for (norm, name, statistic), part in zip(places, parts, strict=True):
                setattr(norm, name, part.view_as(statistic))
            self.joined.append(joined)

    def copy(self) -> list[Tensor]:
        """The statistics as they are now, for ``put_back``."""
        return [joined.clone() for joined in self.joined]

    def put_back(self, before: list[Tensor], keep: Tensor) -> None:
        """Make them what ``copy`` gave, unless the 0-dimensional ``keep`` on the device is true."""
        for joined, copied in zip(self.joined, before, strict=True):
            torch.where(keep, joined, copied, out=joined)


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
