"""LeFF against a second implementation in the release's layout, and the direction in which it mixes neighbours."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.model import CeiTConfig
from ceit.model.leff import LocallyEnhancedFeedForward

BATCH, DIM = 3, 6


def make_leff(**changes: Any) -> LocallyEnhancedFeedForward:
    leff = LocallyEnhancedFeedForward(CeiTConfig(embed_dim=DIM, num_heads=1, mlp_ratio=2.0, **changes)).double()
    for name, tensor in leff.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor))
    return leff


class ReleasedLayout(nn.Module):
    """LeFF from scratch: three convolutions on a contiguous map, batch normalisation and GELU written out."""

    def __init__(self, leff: LocallyEnhancedFeedForward, last_activation: bool, class_token: str) -> None:
        super().__init__()
        self.leff, self.last_activation, self.class_token = leff, last_activation, class_token
        self.after = {name: buffer.clone() for name, buffer in leff.named_buffers()}

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        leff = self.leff
        image = torch.stack([sample[1:].T.reshape(DIM, *grid) for sample in tokens]).contiguous()
        image = F.conv2d(image, leff.expand.weight[:, :, None, None], leff.expand.bias)
        image = gelu(self.normalise("expand_norm", image))
        kernel = leff.depthwise.weight.shape[-1]
        padded = F.pad(image, [kernel // 2] * 4)
        image = F.conv2d(padded, leff.depthwise.weight, leff.depthwise.bias, groups=image.shape[1])
        image = gelu(self.normalise("depthwise_norm", image))
        image = F.conv2d(image, leff.project.weight[:, :, None, None], leff.project.bias)
        image = self.normalise("project_norm", image)
        if self.last_activation:
            image = gelu(image)
        rows = [image[:, :, row, column] for row in range(grid[0]) for column in range(grid[1])]
        first = tokens[:, 0] if self.class_token == "normalized" else torch.zeros_like(tokens[:, 0])
        return torch.stack([first, *rows], dim=1)

    def normalise(self, name: str, image: Tensor) -> Tensor:
        norm = self.leff.get_submodule(name)
        if not isinstance(norm, nn.BatchNorm2d):
            return image
        mean, variance = self.after[f"{name}.running_mean"], self.after[f"{name}.running_var"]
        if norm.training:
            batch = image.transpose(0, 1).flatten(1)
            self.after[f"{name}.running_mean"] = 0.9 * mean + 0.1 * batch.mean(dim=1).detach()
            self.after[f"{name}.running_var"] = 0.9 * variance + 0.1 * batch.var(dim=1, correction=1).detach()
            mean, variance = batch.mean(dim=1), batch.var(dim=1, correction=0)
        standardised = (image - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        return standardised * norm.weight[:, None, None] + norm.bias[:, None, None]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("last_activation", "class_token"), [(False, "normalized"), (True, "identity")])
@pytest.mark.parametrize(("kernel", "grid"), [(1, (3, 2)), (3, (2, 5)), (3, (1, 1)), (5, (5, 2)), (7, (1, 6))])
def test_leff_equals_convolutions_in_the_released_layout(
    kernel: int, grid: tuple[int, int], last_activation: bool, class_token: str, norm: str, training: bool
) -> None:
    leff = make_leff(
        leff_kernel_size=kernel, leff_norm=norm, leff_last_activation=last_activation, leff_class_token=class_token
    ).train(training)
    reference = ReleasedLayout(leff, last_activation, class_token)
    tokens = torch.randn(BATCH, 1 + grid[0] * grid[1], DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(tokens)
    wanted = reference(tokens, grid)
    got = leff(tokens, grid)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    sources = [tokens, *leff.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((got * weights).sum(), sources),
        torch.autograd.grad((wanted * weights).sum(), sources),
        rtol=1e-7,
        atol=1e-7,
    )
    for name, buffer in leff.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(buffer, reference.after[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("down", [-1, 0, 1])
@pytest.mark.parametrize("right", [-1, 0, 1])
def test_an_impulse_moves_as_the_kernel_says(down: int, right: int) -> None:
    height, width = 3, 5
    leff = LocallyEnhancedFeedForward(CeiTConfig(embed_dim=1, num_heads=1, mlp_ratio=1.0, leff_norm="none"))
    with torch.no_grad():
        for layer in (leff.expand, leff.project):
            layer.weight.fill_(1.0)
        for layer in (leff.expand, leff.depthwise, leff.project):
            assert layer.bias is not None
            layer.bias.zero_()
        leff.depthwise.weight.zero_()
        leff.depthwise.weight[0, 0, 1 + down, 1 + right] = 1.0  # each cell reads the one so far down and right of it
    for row in range(height):
        for column in range(width):
            tokens = torch.zeros(1, 1 + height * width, 1)
            tokens[0, 1 + row * width + column] = 2.0
            answer = leff(tokens, (height, width))[0, 1:, 0].reshape(height, width)
            lit = [tuple(cell) for cell in answer.nonzero().tolist()]
            target = (row - down, column - right)
            inside = 0 <= target[0] < height and 0 <= target[1] < width
            assert lit == ([target] if inside else [])


def test_patches_do_not_read_the_class_token_and_the_class_token_reads_no_patch() -> None:
    leff = make_leff().train()
    tokens = torch.randn(BATCH, 1 + 6, DIM, dtype=torch.float64, requires_grad=True)
    out = leff(tokens, (2, 3))
    (from_patches,) = torch.autograd.grad(out[:, 1:].square().sum(), tokens, retain_graph=True)
    assert from_patches[:, 0].count_nonzero() == 0
    (from_class,) = torch.autograd.grad(out[:, 0].square().sum(), tokens)
    assert from_class[:, 1:].count_nonzero() == 0


def test_a_token_count_that_is_not_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^7 tokens must be 1 \+ 2 \* 4, the class token and the grid$"):
        make_leff()(torch.randn(1, 7, DIM, dtype=torch.float64), (2, 4))
