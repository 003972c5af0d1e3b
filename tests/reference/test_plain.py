"""The opponent computes the network: the same logits and the same gradients, with the same weights."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ceit.model import CeiT, CeiTConfig, config_of

TINY = {"img_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The file, imported as ``--against`` does."""
    spec = importlib.util.spec_from_file_location("plain", Path(__file__).parent / "plain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny() -> CeiT:
    """A network with statistics and embeddings that are not at rest."""
    model = CeiT(config_of("ceit_nano_patch4_32", **TINY))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and ("running_mean" in name or tensor.abs().max() == 0):
                tensor.normal_(std=0.1)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_equal(plain: ModuleType, training: bool) -> None:
    model = tiny().train(training)
    opponent = plain.plain(model)
    images = torch.randn(3, 3, 16, 16)
    assert opponent.training == training
    with torch.no_grad():
        assert torch.allclose(opponent(images), model(images), atol=1e-5, rtol=0)


def test_gradients_are_equal(plain: ModuleType) -> None:
    model = tiny().train()
    opponent = plain.plain(model)
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 3, 4])
    ours, theirs = gradients(model, images, labels), gradients(opponent, images, labels)
    assert {plain.plain_name(name) for name in ours} == theirs.keys()
    for name, gradient in ours.items():
        other = theirs[plain.plain_name(name)]
        assert torch.allclose(other.reshape(gradient.shape), gradient, atol=1e-5, rtol=0), name


def gradients(model: torch.nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the cross-entropy, zeros where nothing depends on a parameter."""
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    parameters = model.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters}


@pytest.mark.parametrize("name", ["ceit_tiny_patch16_224", "ceit_small_patch16_224", "ceit_nano_patch4_32"])
def test_factories_have_the_parameters_of_the_models_they_are_named_after(plain: ModuleType, name: str) -> None:
    factory: Callable[[], torch.nn.Module] = getattr(plain, name)
    with torch.device("meta"):
        opponent, model = factory(), CeiT(config_of(name))
    ours = {plain.plain_name(key): tensor.numel() for key, tensor in model.state_dict().items()}
    assert {key: tensor.numel() for key, tensor in opponent.state_dict().items()} == ours


def test_a_geometry_without_counterpart_is_refused(plain: ModuleType) -> None:
    with pytest.raises(ValueError, match="take a square grid, I2T, LeFF and LCA"):
        plain.plain(CeiT(CeiTConfig(img_size=(32, 16), embed_dim=8, num_heads=1, depth=1)))
