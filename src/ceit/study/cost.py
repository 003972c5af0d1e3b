"""What training a recipe costs, on paper: images, operations, and the machines that the estimates assume."""

from typing import Any

from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.model.complexity import complexity
from ceit.model.config import CeiTConfig
from ceit.model.variants import config_of
from ceit.train.config import TrainConfig

GPU_FLOPS = 50e12
"""Operations a second that one GPU is assumed to sustain: an assumption for the estimates, not a measurement."""
GPUS_OF_A_NODE = 8
BYTES_OF_A_JPEG = 110_000
"""An ImageNet training image on average, an assumption."""


def geometry_on(config: TrainConfig, data: str) -> CeiTConfig:
    """The network that a configuration trains on a set known by name."""
    if data in SETS:
        height, width, channels = SETS[data].image_shape
        own: dict[str, Any] = {"img_size": (height, width), "in_chans": channels}
        own["num_classes"] = len(SETS[data].class_names)
    else:
        own = {"num_classes": PUBLISHED[data].classes}
    if config.img_size is not None:
        own["img_size"] = config.img_size
    return config_of(config.model, **{**config.geometry, **own})


def images_shown_on(config: TrainConfig, data: str) -> int:
    """Images that a configuration trains on in all its epochs, repeats counted, those cut off for validation not."""
    images = SETS[data].train_images if data in SETS else PUBLISHED[data].train_images
    if data in SETS or not PUBLISHED[data].validation_images:
        images -= round(images * config.validation_percent / 100)
    images = round(images * config.train_percent / 100)
    return config.epochs_for(images) * images


def training_flops_on(config: TrainConfig, data: str) -> int:
    """``3 * 2 * MACs * images``: forward and twice as much backward, two operations a MAC. Evaluation is left out."""
    return 3 * 2 * macs(geometry_on(config, data)) * images_shown_on(config, data)


def macs(geometry: CeiTConfig) -> int:
    """MACs of one image forward, without the dead rows where the network skips them."""
    cost = complexity(geometry)
    return cost.live_macs if geometry.skip_dead else cost.macs
