"""BatchNorm folded into the layers before it: the same function in fewer passes over memory."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ceit.model.ceit import CeiT
from ceit.model.i2t import ImageToTokens
from ceit.model.leff import LocallyEnhancedFeedForward


def fuse(model: CeiT) -> CeiT:
    """A copy of the network for inference, in eval mode, without BatchNorm: exact up to rounding.

        BN(Wx + b) = (g W) x + g (b - mean) + beta,  g = gamma / sqrt(variance + eps)
    In LeFF each BN goes into the projection or the convolution before it. In I2T the scale goes into the stem's
    convolution, and the shift past the max-pool, which commutes with it, into the bias of the patch projection.
    The weights are computed in float64, on the CPU since Apple's GPUs have none, and keep their dtype and device. A
    network without BN is only copied.
    """
    device = model.cls_token.device
    fused = copy.deepcopy(model).cpu().eval()
    for module in fused.modules():
        if isinstance(module, LocallyEnhancedFeedForward):
            module.expand_norm = _fold(module.expand, module.expand_norm)
            module.depthwise_norm = _fold(module.depthwise, module.depthwise_norm)
            module.project_norm = _fold(module.project, module.project_norm)
        elif isinstance(module, ImageToTokens):
            module.norm = _fold_stem(module)
    fused.config = replace(fused.config, leff_norm="none", stem_norm="none")
    return fused.to(device)


@torch.no_grad()
def _fold(layer: nn.Linear | nn.Conv2d, norm: nn.BatchNorm2d | nn.Identity) -> nn.Identity:
    """Put the norm into the layer's weight and bias; what is left in the norm's place."""
    if isinstance(norm, nn.Identity):
        return norm
    assert layer.bias is not None
    scale, shift = _scale_and_shift(norm)
    layer.bias.copy_(layer.bias.double() * scale + shift)
    _scale_outputs(layer.weight, scale)
    return nn.Identity()


@torch.no_grad()
def _fold_stem(stem: ImageToTokens) -> nn.Identity:
    if isinstance(stem.norm, nn.Identity):
        return stem.norm
    assert stem.proj.bias is not None
    scale, shift = _scale_and_shift(stem.norm)
    _scale_outputs(stem.conv.weight, scale)
    stem.proj.bias.add_(torch.einsum("dchw,c->d", stem.proj.weight.double(), shift).to(stem.proj.bias.dtype))
    return nn.Identity()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The norm in eval mode as ``scale * x + shift``, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _scale_outputs(weight: Tensor, scale: Tensor) -> None:
    weight.copy_(weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1)))
