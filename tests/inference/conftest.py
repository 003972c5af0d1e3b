"""A small network for grey oblong images in which nothing is at its neutral value, and images for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ceit.data.preprocessing import Preprocessing
from ceit.inference.example_images import ExampleImages, synthetic
from ceit.model import CeiT, CeiTConfig

NAMES = ["ant", "bee", "cat > dog", "été"]
GREY = Preprocessing((0.4,), (0.25,))


def build(**changes: Any) -> CeiT:
    """3 x 2 patches of 8 px in 2 blocks; every tensor is moved by chance, BatchNorm's statistics among them."""
    geometry = {"img_size": (24, 16), "in_chans": 1, "num_classes": len(NAMES), "patch_size": 8, "embed_dim": 16}
    sizes = {"depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "stem_channels": 8, "stem_kernel_size": 3}
    torch.manual_seed(1)
    model = CeiT(CeiTConfig(**{**geometry, **sizes, **changes})).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.add_(noise.abs() if name.endswith("running_var") else 0.2 * noise)
    model.class_names = NAMES[: model.config.num_classes]
    model.preprocessing = GREY.as_dict() if model.config.in_chans == 1 else None
    return model


@pytest.fixture(scope="session")
def make() -> Callable[..., CeiT]:
    """Builds the network in eval mode; keywords are fields of ``CeiTConfig`` to change."""
    return build


@pytest.fixture(scope="session")
def examples() -> ExampleImages:
    """Images for the network, with labels."""
    images = synthetic(24, image_hw=(24, 16), preprocessing=GREY)
    return ExampleImages(images.images, "test images", torch.arange(24) % len(NAMES))
