"""Parity: with I2T, LeFF and LCA switched off the network is timm's DeiT, so the ablation baseline is DeiT itself."""

import pytest
import timm
import torch
from torch import nn

from ceit import CeiT, CeiTConfig


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    """timm's DeiT-T with every parameter away from its initial zero or one, so that none can be wrong unnoticed."""
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.1 + is_scale)
    return model


def test_timms_weights_give_timms_logits(deit: nn.Module) -> None:
    network = CeiT(CeiTConfig(stem="patch", feed_forward="mlp", lca=False)).eval()
    network.load_state_dict(deit.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = deit(images)
        got = network(images)
        got_from_all_tokens = network.forward_head(network.forward_features(images))
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    print(f"largest relative error: {error:.1e}")
    assert error <= 1e-5
    torch.testing.assert_close(got_from_all_tokens, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    assert wanted.std() > 0.1


def test_our_weights_load_into_timms_model(deit: nn.Module) -> None:
    network = CeiT(CeiTConfig(stem="patch", feed_forward="mlp", lca=False))
    assert list(network.state_dict()) == list(deit.state_dict())
    deit.load_state_dict(network.state_dict(), strict=True)
