"""What an image costs in training, in multiply-accumulates."""

from dataclasses import replace

from ceit.model.complexity import complexity
from ceit.model.config import CeiTConfig
from ceit.train.config import TrainConfig


def mean_macs(config: TrainConfig, geometry: CeiTConfig) -> float:
    """MACs of one image forward, the mean over all steps of a run: the first of them may take smaller images."""
    small_hw = config.small_images.size(geometry.image_hw, geometry.patch_size)
    if small_hw is None:
        return macs(geometry)
    share = config.small_images.share
    return share * macs(replace(geometry, img_size=small_hw)) + (1 - share) * macs(geometry)


def macs(geometry: CeiTConfig) -> int:
    """MACs of one image forward, without the dead rows where the network skips them."""
    cost = complexity(geometry)
    return cost.live_macs if geometry.skip_dead else cost.macs
