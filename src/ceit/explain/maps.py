"""One number for each patch: where an answer comes from. Each map says what it leaves out.

Shapes: ``B`` batch, ``H W`` patch grid, ``L`` encoder blocks, ``K`` heads, ``D`` embed dim, ``C`` stem channels.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.explain.capture import Attention
from ceit.model import CeiT
from ceit.model.leff import to_map


def layer_weights(attention: Attention) -> Tensor:
    """How much LCA takes from each encoder block, ``(B, L)``: its heads' mean, which sums to 1.

    Without LCA the last block's class token is all that is classified: it has 1, the others 0.
    Raises: ValueError for a network that classifies the patches' mean: then no class token is classified.
    """
    _require_class_token(attention)
    if attention.layer_weights_bkl is not None:
        return attention.layer_weights_bkl.mean(dim=1)
    batch, layers = attention.class_rows_blkt.shape[:2]
    return F.one_hot(torch.full((batch,), layers - 1, device=attention.class_rows_blkt.device), layers).float()


def rollout(attention: Attention) -> Tensor:
    """Attention of the class token over the patches, summed over the blocks as LCA weighs them, ``(B, H, W)``.

        R = sum over blocks l of  w_l a_l
        w = layer_weights,  a_l = mean over heads of the class token's weights over the patches in block l

    It ignores what LeFF and the patches' own attention mixed before, the values and all residuals, and so tells where
    the class token looked, not what decided. What it gave to itself is left out: a map sums to at most 1.
    Raises: as ``layer_weights``.
    """
    rows_blt = attention.class_rows_blkt.mean(dim=2)[..., 1:]
    return (layer_weights(attention)[..., None] * rows_blt).sum(dim=1).unflatten(1, attention.grid)


def last_attention(attention: Attention) -> Tensor:
    """Attention of the class token in the last block alone, mean over heads, over the patches, ``(B, H, W)``.

    Raises: as ``layer_weights``.
    """
    _require_class_token(attention)
    return attention.class_rows_blkt[:, -1].mean(dim=1)[:, 1:].unflatten(1, attention.grid)


def _require_class_token(attention: Attention) -> None:
    if attention.global_pool == "avg":
        raise ValueError(
            "the network classifies its patches' mean, so no class token is classified: take contributions or Grad-CAM"
        )


@torch.no_grad()
def contributions(model: CeiT, images: Tensor, classes_b: Tensor) -> Tensor:
    """What each patch adds to the logit of a class, ``(B, H, W)``: exact where the patches' mean is classified.

        logit = bias + sum over patches n of  c_n        (``global_pool="avg"``)
        c_n   = head[class] . token_n / (H W)

    Positive patches speak for the class, negative ones against it. With ``global_pool="sum"`` the class token adds its
    own part, which is left out. What a patch knows of its neighbours, by attention and LeFF, counts as its own.
    Raises: ValueError for a network that classifies its class token alone: then no patch adds anything directly.
    """
    if model.config.global_pool == "token":
        raise ValueError(
            "the network classifies its class token, so no patch adds to a logit: take rollout or Grad-CAM"
        )
    patches_bnd = model.forward_features(images)[:, 1:]
    weight_bd = cast("nn.Linear", model.head).weight[classes_b]
    return (patches_bnd @ weight_bd[:, :, None])[..., 0].unflatten(1, model.config.grid) / patches_bnd.shape[1]


def grad_cam(model: CeiT, images: Tensor, classes_b: Tensor, block: int | None = None) -> Tensor:
    """Grad-CAM on the output map of a feed-forward layer, ``(B, H, W)``, not negative.

        alpha_d = mean over patches of  d logit / d A_d,    map = ReLU(sum over channels d of  alpha_d A_d)

    ``A`` is what LeFF gives for the patches in one block: by default the last one whose patches reach the logits, which
    is the one before the last where only a class token is classified. It takes the network as linear between there and
    the logit. Source: Selvaraju et al., Grad-CAM (arXiv 1610.02391).
    Raises: ValueError for a block whose patches cannot reach the logits.
    """
    dead, depth = model.config.has_dead_rows, len(model.blocks)
    last = depth - 1 - dead
    number = last if block is None else block
    if not 0 <= number <= last:
        blocks = f"blocks 0 to {last}" if last >= 0 else "no block: it has only one"
        raise ValueError(f"patches of block {number} cannot reach the logits of this network, those of {blocks} can")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1]

    handle = cast("Any", model.blocks[number]).mlp.register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(images.clone() if images.is_inference() else images)
            (gradient,) = torch.autograd.grad(logits.gather(1, classes_b[:, None]).sum(), kept[-1])
    finally:
        handle.remove()
    maps_bdhw, gradients_bdhw = (
        to_map(found.detach()[:, 1:].float(), model.config.grid) for found in (kept[-1], gradient)
    )
    return (gradients_bdhw.mean(dim=(2, 3), keepdim=True) * maps_bdhw).sum(dim=1).relu()


def position_similarity(model: CeiT) -> Tensor:
    """Cosine of every patch's position embedding with every other's, ``(H, W, H, W)``: what is near, as it learnt."""
    height, width = model.pos_grid
    embedding_nd = F.normalize(model.pos_embed.detach()[0, 1:].float(), dim=-1)
    return (embedding_nd @ embedding_nd.T).unflatten(1, (height, width)).unflatten(0, (height, width))


def stem_filters(model: CeiT) -> Tensor:
    """The filters of I2T's convolution, ``(C, in_chans, k, k)``, each spread to 0..1 with zero at one half.

    Raises: ValueError for a network without I2T.
    """
    if model.config.stem != "i2t":
        raise ValueError("a network with the stem 'patch' has no filters of I2T")
    weight = cast("Any", model.patch_embed).conv.weight.detach().float()
    return 0.5 + weight / (2 * weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12))
