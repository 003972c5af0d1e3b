"""How every tensor starts, by name: SPEC's law for each, checked within sampling error."""

import re
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from ceit.model import CeiT, CeiTConfig, config_of

RELEASED = (
    (r"cls_token|pos_embed", "normal"),
    (r"lca\.pos_embed", "zeros"),
    (r"patch_embed\.(conv|proj)\.weight", "default"),
    (r"patch_embed\.proj\.bias", "default"),
    (r"blocks\.\d+\.mlp\.(expand|depthwise|project)\.(weight|bias)", "default"),
    (r"(blocks\.\d+\.|lca\.)attn\.(qkv|proj)\.weight|lca\.mlp\.fc[12]\.weight|head\.weight", "normal"),
    (r"(blocks\.\d+\.|lca\.)attn\.(qkv|proj)\.bias|lca\.mlp\.fc[12]\.bias|head\.bias", "zeros"),
    (r"(.*\.)?\w*norm\d?\.weight", "ones"),
    (r"(.*\.)?\w*norm\d?\.bias", "zeros"),
)
TWIN = (
    (r"cls_token|pos_embed", "normal"),
    (r"(.*\.)?(qkv|proj|fc1|fc2|head)\.weight", "normal"),
    (r"(.*\.)?(qkv|proj|fc1|fc2|head)\.bias", "zeros"),
    (r"(.*\.)?norm\d?\.weight", "ones"),
    (r"(.*\.)?norm\d?\.bias", "zeros"),
)
MIXED: dict[str, Any] = {"stem": "patch", "feed_forward": "leff", "lca": True, "embed_dim": 96, "depth": 2}


@pytest.mark.parametrize(
    ("config", "laws"),
    [
        (config_of("ceit_tiny_patch16_224", depth=2), RELEASED),
        (config_of("ceit_nano_patch4_32"), RELEASED),
        (config_of("ceit_pico_patch4_32", leff_norm="none", leff_kernel_size=5, stem_norm="none"), RELEASED),
        (config_of("deit_nano_patch4_32"), TWIN),
        (CeiTConfig(stem="patch", feed_forward="mlp", lca=False, depth=2), TWIN),
    ],
    ids=["tiny", "nano", "plain", "twin 32", "twin 224"],
)
def test_every_tensor_starts_by_its_law(config: CeiTConfig, laws: tuple[tuple[str, str], ...]) -> None:
    state = dict(CeiT(config).named_parameters())
    for name, tensor in state.items():
        found = [law for pattern, law in laws if re.fullmatch(pattern, name)]
        assert len(found) == 1, f"{name}: {found}"
        fan_in = prod(state[f"{name.rsplit('.', 1)[0]}.weight"].shape[1:]) if found == ["default"] else 0
        check(name, tensor.detach(), found[0], fan_in)


def test_a_linear_patch_embedding_starts_as_the_twins_whatever_follows_it() -> None:
    state = CeiT(CeiTConfig(num_heads=3, **MIXED)).state_dict()
    check("patch_embed.proj.weight", state["patch_embed.proj.weight"], "normal", 0)
    check("patch_embed.proj.bias", state["patch_embed.proj.bias"], "zeros", 0)
    check("blocks.0.mlp.expand.weight", state["blocks.0.mlp.expand.weight"], "default", MIXED["embed_dim"])


def test_a_new_head_starts_as_the_first() -> None:
    model = CeiT(config_of("ceit_nano_patch4_32"))
    model.reset_classifier(100)
    check("head.weight", model.state_dict()["head.weight"], "normal", 0)
    check("head.bias", model.state_dict()["head.bias"], "zeros", 0)


def check(name: str, tensor: Tensor, law: str, fan_in: int) -> None:
    """Mean and standard deviation within five standard errors, and the bounds of a uniform law reached."""
    if law in ("zeros", "ones"):
        assert torch.equal(tensor, torch.zeros_like(tensor) if law == "zeros" else torch.ones_like(tensor)), name
        return
    bound = fan_in**-0.5 if law == "default" else 2.0
    std = bound / 3**0.5 if law == "default" else 0.02
    count = tensor.numel()
    assert tensor.abs().max() <= bound, name
    assert abs(tensor.mean()) <= 5 * std / count**0.5, name
    assert abs(tensor.std() / std - 1) <= 5 / (2 * count) ** 0.5, name
    if law == "default":
        assert tensor.abs().max() >= bound * (1 - 10 / count), name  # fails by chance once in e^10
    elif count > 10_000:
        assert tensor.abs().max() >= 3 * std, name
