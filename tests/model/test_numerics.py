"""Other number formats and memory layouts give the same network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ceit.model import CeiT

TWINS: dict[str, Any] = {"stem": "patch", "feed_forward": "mlp", "lca": False}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changes", [{}, TWINS], ids=["ceit", "deit"])
def test_bfloat16_autocast_is_close_to_float32(
    tiny: Callable[..., CeiT], changes: dict[str, Any], training: bool
) -> None:
    model = tiny(**changes).train(training)
    images = torch.randn(8, 3, 32, 48)
    wanted = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(images)
    assert got.isfinite().all()
    assert F.cosine_similarity(got.float().flatten(), wanted.flatten(), dim=0) > 0.999
    assert (got.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_bfloat16_training_gives_float32_gradients_of_the_same_direction(tiny: Callable[..., CeiT]) -> None:
    model = tiny().train()
    images, labels = torch.randn(8, 3, 32, 48), torch.arange(8) % 5
    gradients: list[torch.Tensor] = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(images), labels)
        found = torch.autograd.grad(loss, list(model.parameters()))
        assert {gradient.dtype for gradient in found} == {torch.float32}
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


@pytest.mark.parametrize("changes", [{}, TWINS], ids=["ceit", "deit"])
def test_channels_last_equals_contiguous(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    images = torch.randn(4, 3, 32, 48)
    wanted = model(images)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), wanted, rtol=1e-5, atol=1e-5)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, TWINS], ids=["ceit", "deit"])
def test_float32_is_close_to_float64(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    images = torch.randn(4, 3, 32, 48)
    got = model(images)
    wanted = model.double()(images.double())
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("changes", [{}, TWINS], ids=["ceit", "deit"])
def test_gradients_of_logits_equal_finite_differences(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model = tiny(img_size=(32, 16), depth=2, **changes).double()
    images = torch.randn(1, 3, 32, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (images,), fast_mode=True)


@pytest.mark.parametrize("changes", [{}, TWINS], ids=["ceit", "deit"])
def test_a_sample_in_evaluation_does_not_depend_on_its_batch(
    tiny: Callable[..., CeiT], changes: dict[str, Any]
) -> None:
    model = tiny(**changes)
    images = torch.randn(5, 3, 32, 48)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), model(images), rtol=1e-5, atol=1e-5)


def test_softmax_and_norms_compute_in_float32_under_autocast() -> None:
    """Their results are those of float32, rounded to bfloat16: at most one unit in the last place away."""
    unit = 2.0**-8
    scores = 4 * torch.randn(8, 4, 65, 65, dtype=torch.bfloat16)
    tokens = 3 * torch.randn(8, 65, 192, dtype=torch.bfloat16)
    maps = torch.randn(8, 64, 8, 8, dtype=torch.bfloat16)
    layer_norm, batch_norm = torch.nn.LayerNorm(192), torch.nn.BatchNorm2d(64)
    for operation, inputs in ((torch.nn.Softmax(dim=-1), scores), (layer_norm, tokens), (batch_norm, maps)):
        wanted = operation(inputs.float())
        with torch.autocast("cpu", torch.bfloat16):
            got = operation(inputs).float()
        assert ((got - wanted).abs() <= unit * wanted.abs() + 1e-6).all()
    assert batch_norm.running_mean is not None
    assert batch_norm.running_mean.dtype == torch.float32
