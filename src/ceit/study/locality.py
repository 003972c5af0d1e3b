"""Why convolution in a transformer helps: how far tokens look, and whether an answer survives a shift of the image.

Shapes: ``B`` batch, ``K`` heads, ``H W`` token grid, ``N = H * W`` patches, ``T = N + 1`` tokens, ``D`` embed dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ceit.model import CeiT
from ceit.model.attention import MultiHeadSelfAttention
from ceit.model.ceit import EncoderBlock

SHIFTS = (1, 2, 3, 4)


@torch.inference_mode()
def shift_consistency(model: CeiT, images: Tensor, shifts: tuple[int, ...] = SHIFTS) -> dict[int, float]:
    """Percent of answers that stay the same when the image moves by so many pixels, over the four directions.

    What moves in at the border is the image mirrored. ``images`` are normalised, ``(B, C, height, width)``.
    """
    height, width = images.shape[-2:]
    most = max(shifts)
    wide = F.pad(images, (most,) * 4, mode="reflect")
    unmoved = model(images).argmax(1)
    consistency = {}
    for pixels in shifts:
        corners = ((most + y * pixels, most + x * pixels) for y, x in ((1, 0), (-1, 0), (0, 1), (0, -1)))
        moved = [model(wide[..., top : top + height, left : left + width]).argmax(1) for top, left in corners]
        consistency[pixels] = 100 * (torch.stack(moved) == unmoved).float().mean().item()
    return consistency


@torch.inference_mode()
def attention_distances(model: CeiT, images: Tensor) -> list[float]:
    """How many tokens away, on average, the patches are that a patch attends to; of every block, over its heads.

    The last block is left out: where the class token is classified, its patches' attention reaches no logits.

    ``mean over images, heads and q of sum_k A[q, k] |q - k|`` with ``|q - k|`` the distance on the grid and ``A`` the
    attention among patches alone, its rows summing to one. Source: as in Dosovitskiy et al., ICLR 2021, appendix D.7.
    """
    distance_qk = token_distances(model.config.grid).to(images)
    found: list[float] = []

    def measure(attention: MultiHeadSelfAttention, inputs: tuple[Any, ...]) -> None:
        patches_bnd = inputs[0][:, 1:]
        q_bnd, k_bnd, _ = attention.qkv(patches_bnd).chunk(3, dim=-1)
        q_bknd, k_bknd = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float() for part in (q_bnd, k_bnd)
        )
        weights_bkqk = (q_bknd * attention.scale @ k_bknd.transpose(-2, -1)).softmax(-1)
        found.append((weights_bkqk * distance_qk).sum(-1).mean().item())

    attentions = [block.attn for block in model.blocks[:-1] if isinstance(block, EncoderBlock)]
    handles = [attention.register_forward_pre_hook(measure) for attention in attentions]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def token_distances(grid: tuple[int, int]) -> Tensor:
    """Distance of every patch to every other, in tokens: ``(H*W, H*W)``."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    return torch.cdist(places, places)
