"""What is measured of trained networks, on networks whose answer is known."""

import pytest
import torch

import ceit
from ceit.model import CeiT
from ceit.model.attention import MultiHeadSelfAttention
from ceit.study.locality import attention_distances, shift_consistency, token_distances


@pytest.fixture
def model() -> CeiT:
    return ceit.create_model("ceit_pico_patch4_32", depth=2).eval()


def test_images_that_a_shift_does_not_change_give_the_same_answer(model: CeiT) -> None:
    flat = torch.rand(5, 3, 1, 1).expand(5, 3, 32, 32)
    assert shift_consistency(model, flat) == {1: 100.0, 2: 100.0, 3: 100.0, 4: 100.0}


def test_an_answer_that_hangs_on_one_pixel_does_not_survive(model: CeiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "forward", lambda images: torch.stack([images[:, 0, 8, 8], images[:, 0, 8, 9]], dim=1))
    image = torch.zeros(1, 3, 32, 32)
    image[0, 0, 8, 9] = 1.0  # class 1; one pixel to the left it is class 0, elsewhere a tie, which is class 0 too
    assert shift_consistency(model, image, shifts=(1, 2)) == {1: 0.0, 2: 0.0}


def test_uniform_attention_looks_as_far_as_the_grid_is_wide_on_average(model: CeiT) -> None:
    for qkv in projections(model):
        torch.nn.init.zeros_(qkv.weight)
        torch.nn.init.zeros_(qkv.bias)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1)
    wanted = torch.cdist(places, places).mean().item()
    assert attention_distances(model, torch.randn(2, 3, 32, 32)) == pytest.approx([wanted], rel=1e-5)


def test_distances_of_patches_are_those_of_the_grid() -> None:
    assert token_distances((1, 3)).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    assert token_distances((2, 2)).mean().item() == pytest.approx((0 + 1 + 1 + 2**0.5) / 4)


def test_sharp_attention_to_oneself_looks_no_further(model: CeiT) -> None:
    """With a large position embedding and q = k = x, every token meets itself."""
    qkv = projections(model)[0]
    torch.nn.init.zeros_(qkv.bias)
    qkv.weight.data = torch.eye(model.config.embed_dim).repeat(3, 1) * 30
    model.pos_embed.data = torch.randn_like(model.pos_embed) * 10
    assert attention_distances(model, torch.randn(2, 3, 32, 32))[0] < 0.01


def projections(model: CeiT) -> list[torch.nn.Linear]:
    """What makes queries, keys and values, block by block."""
    found = [module for block in model.blocks for module in block.modules()]
    return [module.qkv for module in found if isinstance(module, MultiHeadSelfAttention)]
