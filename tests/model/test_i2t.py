"""I2T against its formula, and the order of its tokens."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ceit.model import CeiTConfig
from ceit.model.i2t import ImageToTokens, PatchEmbedding

SIZE = {"img_size": (32, 48), "embed_dim": 12, "num_heads": 1}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_i2t_is_max_pool_of_norm_of_convolution_and_no_activation(
    kernel: int, norm: Any, pool: bool, stride: int
) -> None:
    stem = {"stem_channels": 5, "stem_kernel_size": kernel, "stem_norm": norm, "stem_pool": pool, "stem_stride": stride}
    i2t = ImageToTokens(CeiTConfig(**SIZE, **stem)).double()
    for parameter in i2t.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    x = F.conv2d(images, i2t.conv.weight, None, stride, kernel // 2)
    if isinstance(i2t.norm, nn.BatchNorm2d):
        x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (x.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * i2t.norm.weight[:, None, None] + i2t.norm.bias[:, None, None]
    if pool:
        x = F.max_pool2d(x, 3, 2, 1)
    side = 16 // stride // (2 if pool else 1)
    patches = F.unfold(x, side, stride=side)  # (B, C * side * side, N), row by row
    wanted = F.linear(patches.transpose(1, 2), i2t.proj.weight.flatten(1), i2t.proj.bias)
    torch.testing.assert_close(i2t(images), wanted)


def test_tokens_stand_row_by_row() -> None:
    embedding = PatchEmbedding(CeiTConfig(**SIZE, stem="patch"))
    for row in range(2):
        for column in range(3):
            images = torch.zeros(1, 3, 32, 48)
            before = embedding(images)
            images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1.0
            moved = (embedding(images) - before).abs().sum(dim=2).nonzero()[:, 1]
            assert moved.tolist() == [3 * row + column]


def test_a_patch_of_i2t_sees_its_own_place_most() -> None:
    i2t = ImageToTokens(CeiTConfig(**SIZE)).eval()
    for row in range(2):
        for column in range(3):
            images = torch.zeros(1, 3, 32, 48, requires_grad=True)
            (seen,) = torch.autograd.grad(i2t(images + 0.1 * torch.rand(1))[0, 3 * row + column].sum(), images)
            by_patch = F.avg_pool2d(seen.abs().sum(dim=1), 16)[0]
            assert divmod(int(by_patch.argmax()), 3) == (row, column)
