"""A network of small non-square geometry in which nothing is at its neutral value, so that a mistake shows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ceit.model import CeiT, CeiTConfig

GEOMETRY: dict[str, Any] = {
    "img_size": (32, 48),
    "patch_size": 16,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
    "mlp_ratio": 2.0,
    "stem_channels": 8,
}


@pytest.fixture
def tiny() -> Callable[..., CeiT]:
    """Builds a network of 2 x 3 patch tokens in eval mode; keywords are fields of ``CeiTConfig`` to change."""

    def build(**changes: Any) -> CeiT:
        model = CeiT(CeiTConfig(**{**GEOMETRY, **changes}))
        leave_neutral_values(model)
        return model.eval()

    return build


def leave_neutral_values(module: nn.Module) -> None:
    """Move every parameter and every running statistic away from the zeros and ones it starts at."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
