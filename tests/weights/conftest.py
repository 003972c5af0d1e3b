"""Small networks in which nothing is at its neutral value, and their checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ceit
from ceit.model import CeiT, CeiTConfig

TINY: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
    "stem_channels": 8,
}


@pytest.fixture
def make() -> Callable[..., CeiT]:
    """Builds a network in eval mode: of a ``CeiTConfig``, or of 2 x 2 patches with keywords to change."""

    def build(config: CeiTConfig | None = None, **changes: Any) -> CeiT:
        network = CeiT(config or CeiTConfig(**{**TINY, **changes}))
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.1)
        return network.eval()

    return build


@pytest.fixture
def logits() -> Callable[[CeiT], Tensor]:
    """What a network makes of always the same two images of its size."""

    def compute(network: CeiT) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return network(torch.randn(2, network.config.in_chans, *network.config.image_hw, generator=generator))

    return compute


@pytest.fixture
def released() -> Callable[[CeiT], dict[str, Tensor]]:
    """The state dict of a network as the release would have written it."""

    def rename(network: CeiT) -> dict[str, Tensor]:
        state = {}
        for key, value in network.state_dict().items():
            for number, ours in enumerate(("expand", "depthwise", "project"), start=1):
                if key.startswith("blocks") and f".mlp.{ours}" in key:
                    if key.endswith((".expand.weight", ".project.weight")):
                        value = value[:, :, None, None]
                    key = key.replace(f"mlp.{ours}_norm", f"leff.bn{number}").replace(
                        f"mlp.{ours}", f"leff.conv{number}"
                    )
            key = key.replace("patch_embed.proj", "i2t.proj").replace("patch_embed.norm", "i2t.backbone.bn")
            key = key.replace("patch_embed.conv", "i2t.backbone.conv").replace("lca.mlp", "lca.feedforward")
            state["pos_layer_embed" if key == "lca.pos_embed" else key] = value
        return state

    return rename


@pytest.fixture
def saved(tmp_path: Path, make: Callable[..., CeiT]) -> tuple[CeiT, Path]:
    """A network and the checkpoint of it."""
    network, path = make(), tmp_path / "model.safetensors"
    ceit.save_checkpoint(
        path,
        network,
        class_names=["ant", "bee", "cat", "dog", "eel"],
        preprocessing={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop": 0.9, "interpolation": "bilinear"},
        training={"top1_percent": 81.5},
    )
    return network, path
