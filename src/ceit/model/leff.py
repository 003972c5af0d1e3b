"""The feed-forward layer of an encoder block: LeFF, and the MLP that it replaces.

Shapes: ``B`` batch, ``H W`` token grid, ``N = H * W`` patches, ``T = N + 1`` tokens, ``D`` embed dim, ``E`` expanded
dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.model.config import CeiTConfig


class LocallyEnhancedFeedForward(nn.Module):
    """Feed-forward layer that mixes neighbouring patches with a depth-wise convolution (LeFF).

    Paper: arXiv 2103.11816, the LeFF section.
        map_behw = GELU(BN(expand(grid(patches_bnd))))
        map_behw = GELU(BN(depthwise(map_behw)))
        out_bnd  = ungrid(BN(project(map_behw)));  the class token skips all of it.
    Expand and project are linear layers on tokens: the same as the release's 1x1 convolutions, without a change of
    layout, since tokens ``(B, H*W, E)`` and a channels-last map ``(B, E, H, W)`` share their memory.

    Shape: tokens ``(B, 1 + H*W, D)`` to the same shape; the grid ``(H, W)`` need not be square.
    Raises: ValueError if the token count is not ``1 + H*W``.
    Differs: no GELU after the last BN and the normalised class token as its own output, both as in the released
    weights; ``leff_last_activation`` and ``leff_class_token`` give the paper's text, see docs/decisions.
    """

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        dim, expanded, kernel = config.embed_dim, config.expanded_dim, config.leff_kernel_size
        norm = nn.BatchNorm2d if config.leff_norm == "batch" else nn.Identity
        self.class_token_rule = config.leff_class_token
        self.last_activation = config.leff_last_activation
        self.expand = nn.Linear(dim, expanded)
        self.expand_norm = norm(expanded)
        self.depthwise = nn.Conv2d(expanded, expanded, kernel, padding=kernel // 2, groups=expanded)
        self.depthwise_norm = norm(expanded)
        self.project = nn.Linear(expanded, dim)
        self.project_norm = norm(dim)

    def forward(self, tokens_btd: Tensor, grid: tuple[int, int]) -> Tensor:
        if tokens_btd.shape[1] != 1 + grid[0] * grid[1]:
            raise ValueError(
                f"{tokens_btd.shape[1]} tokens must be 1 + {grid[0]} * {grid[1]}, the class token and the grid"
            )
        class_b1d, patches_bnd = tokens_btd.split([1, grid[0] * grid[1]], dim=1)
        map_behw = to_map(self.expand(patches_bnd), grid)
        map_behw = gelu(self.expand_norm(map_behw))
        map_behw = gelu(self.depthwise_norm(self.depthwise(map_behw)))
        map_bdhw = self.project_norm(to_map(self.project(to_tokens(map_behw)), grid))
        if self.last_activation:
            map_bdhw = gelu(map_bdhw)
        return torch.cat([self.of_class_token(class_b1d), to_tokens(map_bdhw)], dim=1)

    def of_class_token(self, class_b1d: Tensor) -> Tensor:
        """What the layer returns for the class token, for the residual to add: itself, or zeros."""
        return class_b1d if self.class_token_rule == "normalized" else torch.zeros_like(class_b1d)


class MultilayerPerceptron(nn.Module):
    """DeiT's feed-forward layer, which LeFF replaces: ``fc2(GELU(fc1(x)))`` on every token alone.

    Shape: tokens ``(B, T, D)`` to the same shape; the grid is ignored.
    """

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.expanded_dim)
        self.fc2 = nn.Linear(config.expanded_dim, config.embed_dim)

    def forward(self, tokens_btd: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.of_class_token(tokens_btd)

    def of_class_token(self, tokens_btd: Tensor) -> Tensor:
        """What the layer returns for any tokens, the class token ``(B, 1, D)`` among them."""
        return self.fc2(F.gelu(self.fc1(tokens_btd)))


def gelu(map_bchw: Tensor) -> Tensor:
    """GELU of a channels-last map."""
    if torch.compiler.is_compiling():  # where a change of axes would stay in the graph
        return F.gelu(map_bchw)
    return F.gelu(map_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # torch's fast kernel on CPUs wants memory in order


def to_map(tokens_bnc: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens ``(B, H*W, C)`` as a channels-last map ``(B, C, H, W)``: a view."""
    return tokens_bnc.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(map_bchw: Tensor) -> Tensor:
    """A map ``(B, C, H, W)`` as patch tokens ``(B, H*W, C)``, row by row: a view where the map is channels-last."""
    return map_bchw.permute(0, 2, 3, 1).flatten(1, 2)
