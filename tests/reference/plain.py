"""The frozen opponent of the speed claims: CeiT in plain PyTorch, computed as the released code computes it.

Attention is written out as ``softmax(q k^T) v``; LeFF splits the class token off, computes 1x1 convolutions on an NCHW
map and joins the two again with ``cat``; the last block computes all tokens. Nothing is fused, folded or left out, and
nothing is slower than that needs: no copy that the release does not make either.

It is not changed when the package becomes faster. ``ceit benchmark --against tests/reference/plain.py:FACTORY``
measures it; ``plain(model)`` has the weights of a CeiT of the package: tests ask both for equal logits and gradients.

Letters: B batch, T tokens, N patches, D embed dim, L encoder blocks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention on tokens ``(B, T, D)``."""

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class LeFF(nn.Module):
    """LeFF as a stack of convolutions with batch norms, on a square grid."""

    def __init__(self, dim: int, expanded: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, expanded, 1)
        self.bn1 = nn.BatchNorm2d(expanded)
        self.conv2 = nn.Conv2d(expanded, expanded, kernel, padding=kernel // 2, groups=expanded)
        self.bn2 = nn.BatchNorm2d(expanded)
        self.conv3 = nn.Conv2d(expanded, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        class_token, patches = x.split([1, tokens - 1], dim=1)
        side = int(math.sqrt(tokens - 1))
        image = patches.transpose(1, 2).reshape(batch, dim, side, side)
        image = F.gelu(self.bn1(self.conv1(image)))
        image = F.gelu(self.bn2(self.conv2(image)))
        image = self.bn3(self.conv3(image))
        return torch.cat([class_token, image.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """Pre-norm encoder block on tokens ``(B, T, D)``."""

    def __init__(self, dim: int, heads: int, expanded: int, kernel: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.leff = LeFF(dim, expanded, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.leff(self.norm2(x))


class LCA(nn.Module):
    """A transformer layer over the blocks' class tokens ``(B, L, D)``; the last one, ``(B, 1, D)``, is kept."""

    def __init__(self, dim: int, heads: int, expanded: int, depth: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, depth, dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, expanded)
        self.fc2 = nn.Linear(expanded, dim)

    def forward(self, class_tokens: Tensor) -> Tensor:
        x = class_tokens + self.pos_embed
        x = x[:, -1:] + self.attn(self.norm1(x))[:, -1:]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainCeiT(nn.Module):
    """Images ``(B, 3, side, side)`` to logits ``(B, classes)``."""

    def __init__(
        self,
        *,
        side: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        classes: int,
        channels: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        expanded: int | None = None,
        kernel: int = 3,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = (in_chans, side, side)
        self.num_classes = classes
        expanded = expanded or 4 * dim
        cut = patch // (2 * stem_stride)
        self.conv = nn.Conv2d(in_chans, channels, stem_kernel, stem_stride, padding=stem_kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.proj = nn.Conv2d(channels, dim, cut, stride=cut)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, expanded, kernel) for _ in range(depth))
        self.lca = LCA(dim, heads, expanded, depth)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.proj(self.pool(self.bn(self.conv(images)))).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        class_tokens = []
        for block in self.blocks:
            x = block(x)
            class_tokens.append(x[:, 0])
        return self.head(self.norm(self.lca(torch.stack(class_tokens, dim=1)))[:, 0])


def plain(model: Any) -> PlainCeiT:
    """The opponent of a ``CeiT`` of the package, with a copy of its weights and in its mode.

    Raises: ValueError for a geometry that the release has none of: a grid that is not square, another stem.
    """
    config = model.config
    height, width = config.image_hw
    released = config.stem == "i2t" and config.stem_pool and config.feed_forward == "leff" and config.lca
    if height != width or not released or config.leff_norm != "batch":
        raise ValueError(f"{config} is not the released network's geometry: take a square grid, I2T, LeFF and LCA")
    made = PlainCeiT(
        side=height,
        patch=config.patch_size,
        dim=config.embed_dim,
        depth=config.depth,
        heads=config.num_heads,
        classes=config.num_classes,
        channels=config.stem_channels,
        stem_kernel=config.stem_kernel_size,
        stem_stride=config.stem_stride,
        expanded=config.expanded_dim,
        kernel=config.leff_kernel_size,
        in_chans=config.in_chans,
    )
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    weights = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    made.load_state_dict({name: tensor.detach().clone().view(shapes[name]) for name, tensor in weights.items()})
    return made.train(model.training)


def plain_name(name: str) -> str:
    """The opponent's name of a parameter or buffer of the package's network."""
    layers = {"expand_norm": "bn1", "depthwise_norm": "bn2", "project_norm": "bn3"}
    layers |= {"expand": "conv1", "depthwise": "conv2", "project": "conv3"}
    match name.split("."):
        case ["patch_embed", layer, rest]:
            return f"{'bn' if layer == 'norm' else layer}.{rest}"
        case ["blocks", block, "mlp", layer, rest]:
            return f"blocks.{block}.leff.{layers[layer]}.{rest}"
        case ["lca", "mlp", layer, rest]:
            return f"lca.{layer}.{rest}"
        case _:
            return name


def ceit_tiny_patch16_224(img_size: int = 224) -> PlainCeiT:
    """CeiT-T."""
    return PlainCeiT(side=img_size, patch=16, dim=192, depth=12, heads=3, classes=1000)


def ceit_small_patch16_224(img_size: int = 224) -> PlainCeiT:
    """CeiT-S."""
    return PlainCeiT(side=img_size, patch=16, dim=384, depth=12, heads=6, classes=1000)


def ceit_nano_patch4_32(img_size: int = 32) -> PlainCeiT:
    """The package's nano for 32 px."""
    return PlainCeiT(
        side=img_size, patch=4, dim=160, depth=4, heads=4, classes=10, channels=32, stem_kernel=3, stem_stride=1
    )
