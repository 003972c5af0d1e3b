"""BatchNorm folded away: the same logits, in every form that the network has."""

import pytest
import torch
from torch import nn

from ceit.inference.folding import fuse
from ceit.model import CeiT, config_of

GEOMETRY = {"img_size": (16, 24), "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}


def network(**fields: object) -> CeiT:
    """A network whose norms are not at rest."""
    model = CeiT(config_of("ceit_nano_patch4_32", **(GEOMETRY | fields)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"in_chans": 1},
        {"leff_last_activation": True},
        {"leff_class_token": "identity"},
        {"stem_norm": "none"},
        {"leff_norm": "none"},
        {"stem": "patch"},
        {"feed_forward": "mlp"},
        {"lca": False},
    ],
    ids=str,
)
def test_logits_stay_and_no_norm_is_left(fields: dict[str, object]) -> None:
    model = network(**fields)
    images = torch.randn(2, model.config.in_chans, 16, 24, dtype=torch.float64)
    fused = fuse(model)
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        wanted, got = model.double()(images), fused.double()(images)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_folding_loses_nothing_in_float64() -> None:
    model = network().double()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(fuse(model)(images), model(images), rtol=0, atol=1e-12)


def test_the_network_itself_is_left_as_it_is() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse(model)
    assert model.training
    assert not fused.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_fused_is_a_network_like_any_other() -> None:
    fused = fuse(network())
    assert fused.config.leff_norm == fused.config.stem_norm == "none"
    fused.set_input_size((32, 16))
    assert fused(torch.randn(1, 3, 32, 16)).shape == (1, 5)
