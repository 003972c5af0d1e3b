"""What is said of a network's attention and patches is what it computes, and looking on changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ceit
from ceit.explain.capture import Attention, attention_weights, capture
from ceit.explain.maps import (
    contributions,
    grad_cam,
    last_attention,
    layer_weights,
    position_similarity,
    rollout,
    stem_filters,
)
from ceit.model import CeiT, CeiTConfig

Make = Callable[..., CeiT]
IMAGE_HW, GRID = (24, 16), (6, 4)


@pytest.fixture
def make() -> Make:
    """A small network for images that are not square, with weights large enough to matter."""

    def made(**changes: Any) -> CeiT:
        torch.manual_seed(5)
        options: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 4, "stem_channels": 8, "stem_stride": 1}
        options |= {"img_size": IMAGE_HW, "in_chans": 3, "num_classes": 5, "patch_size": 4, **changes}
        model = CeiT(CeiTConfig(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return made


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, *IMAGE_HW)


def seen(model: CeiT, images: Tensor) -> Attention:
    with torch.no_grad(), capture(model) as found:
        model(images)
    return found.attention()


VARIANTS = [{}, {"lca": False}, {"global_pool": "sum"}, {"global_pool": "avg", "lca": False}, {"feed_forward": "mlp"}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_looking_on_changes_no_bit_and_leaves_nothing_behind(
    changes: dict[str, Any], make: Make, images: Tensor
) -> None:
    model = make(**changes)
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        before = model(images)
        with capture(model) as found:
            during = model(images)
        after = model(images)
    found.attention()
    grad_cam(model, images, torch.tensor([0, 1, 2]))
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()] == hooks
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_go_when_the_network_fails(make: Make) -> None:
    model = make()
    with pytest.raises(ValueError, match="images are 8 x 8 px"), capture(model):
        model(torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_seen_is_an_error(make: Make) -> None:
    with capture(make()) as found, pytest.raises(ValueError, match="call it inside the context"):
        found.attention()


@pytest.mark.parametrize("changes", VARIANTS)
def test_rows_sum_to_one_and_have_the_shapes_that_are_promised(
    changes: dict[str, Any], make: Make, images: Tensor
) -> None:
    model = make(**changes)
    found = seen(model, images)
    assert found.class_rows_blkt.shape == (3, 3, 4, 1 + 24)
    assert found.grid == GRID
    assert torch.allclose(found.class_rows_blkt.sum(-1), torch.ones(3, 3, 4), atol=1e-6)
    assert (found.layer_weights_bkl is None) == (model.lca is None)
    if found.layer_weights_bkl is not None:
        assert found.layer_weights_bkl.shape == (3, 4, 3)
        assert torch.allclose(found.layer_weights_bkl.sum(-1), torch.ones(3, 4), atol=1e-6)
    if model.config.global_pool != "avg":
        assert torch.allclose(layer_weights(found).sum(-1), torch.ones(3), atol=1e-6)


def test_the_weights_are_those_that_the_network_mixes_values_with(make: Make, images: Tensor) -> None:
    """Weights times values through the projection is what each attention gives for the class token."""
    model = make()
    outputs: list[Any] = []
    for block in model.blocks:
        attention = cast("Any", block).attn
        attention.register_forward_hook(
            lambda module, inputs, output: outputs.append((module, inputs[0], output[:, :1]))
        )
    with torch.no_grad():
        model(images)
        for attention, tokens_btd, expected_b1d in outputs:
            weights_bk1t = attention_weights(attention, tokens_btd[:, :1], tokens_btd)
            values = F.linear(tokens_btd, attention.qkv.weight[64:], attention.qkv.bias[64:])
            values_bktd = values.unflatten(-1, (4, -1)).transpose(1, 2)
            mixed = (weights_bk1t @ values_bktd).transpose(1, 2).flatten(2)
            assert torch.allclose(attention.proj(mixed), expected_b1d, atol=1e-5)


def test_uniform_attention_gives_equal_weights(make: Make, images: Tensor) -> None:
    model = make()
    with torch.no_grad():
        for attention in [*(cast("Any", block).attn for block in model.blocks), cast("Any", model.lca).attn]:
            attention.qkv.weight[:64].zero_()
            attention.qkv.bias[:64].zero_()
    found = seen(model, images)
    assert torch.allclose(found.class_rows_blkt, torch.full_like(found.class_rows_blkt, 1 / 25))
    assert torch.allclose(layer_weights(found), torch.full((3, 3), 1 / 3))
    assert torch.allclose(rollout(found), torch.full((3, *GRID), 1 / 25))


def test_lca_weights_match_a_calculation_by_hand(make: Make) -> None:
    """One head of two numbers, q and k the tokens themselves: class tokens (2, 0), (0, 2) and, asking, (0, 1).

    The scale is 1 / sqrt(2), the scores 0, sqrt(2) and 1 / sqrt(2).
    """
    attention = make(embed_dim=32).blocks[0]
    single = type(cast("Any", attention).attn)(2, 1)
    with torch.no_grad():
        single.qkv.weight.copy_(torch.eye(2).repeat(3, 1))
        single.qkv.bias.zero_()
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]])
    scores = torch.tensor([0.0, 2**0.5, 0.5**0.5])
    expected = scores.exp() / scores.exp().sum()
    assert torch.allclose(attention_weights(single, tokens[:, -1:], tokens)[0, 0, 0], expected)


def test_without_lca_weights_lie_where_the_attention_does() -> None:
    attention = Attention(torch.rand(2, 3, 2, 17, device="meta"), None, (4, 4), "token")
    assert layer_weights(attention).is_meta
    assert rollout(attention).is_meta


def test_rollout_is_the_sum_over_layers_of_lca_s_weight_times_the_class_row(make: Make, images: Tensor) -> None:
    found = seen(make(), images)
    assert found.layer_weights_bkl is not None
    expected = torch.zeros(3, *GRID)
    for b in range(3):
        for layer in range(3):
            weights = [found.layer_weights_bkl[b, head, layer] for head in range(4)]
            rows = [found.class_rows_blkt[b, layer, head, 1:].reshape(GRID) for head in range(4)]
            expected[b] += (weights[0] + weights[1] + weights[2] + weights[3]) / 4 * torch.stack(rows).mean(0)
    assert torch.allclose(rollout(found), expected, atol=1e-6)
    without = seen(make(lca=False), images)
    assert torch.allclose(rollout(without), last_attention(without))


@pytest.mark.parametrize("changes", [{"global_pool": "avg", "lca": False}, {"global_pool": "sum"}])
def test_contributions_of_all_patches_are_the_logit(changes: dict[str, Any], make: Make, images: Tensor) -> None:
    """Exactly so for the patches' mean; beside it the class token has a part of its own."""
    model, classes = make(**changes), torch.tensor([4, 0, 2])
    head = cast("nn.Linear", model.head)
    with torch.no_grad():
        logits = model(images)[torch.arange(3), classes]
        rest = head.bias[classes]
        if changes["global_pool"] == "sum":
            rest = rest + (model.forward_features(images)[:, 0] * head.weight[classes]).sum(1)
    found = contributions(model, images, classes)
    assert found.shape == (3, *GRID)
    assert torch.allclose(found.sum((1, 2)) + rest, logits, atol=1e-5)


def test_a_class_token_alone_has_no_contributions_of_patches(make: Make, images: Tensor) -> None:
    with pytest.raises(ValueError, match="classifies its class token, so no patch adds to a logit"):
        contributions(make(), images, torch.zeros(3, dtype=torch.int64))


def test_where_no_class_token_is_classified_no_map_of_it_is_given(make: Make, images: Tensor) -> None:
    found = seen(make(global_pool="avg", lca=False), images)
    for of in (layer_weights, rollout, last_attention):
        with pytest.raises(ValueError, match="classifies its patches' mean, so no class token is classified"):
            of(found)


def test_the_snippet_of_the_page_runs_on_either_kind(
    make: Make, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/photos").mkdir(parents=True)
    page = (repository / "docs/explain.md").read_text(encoding="utf-8")
    snippet = page.split("```python\n")[1].split("```")[0]
    for changes in VARIANTS:
        ceit.save_checkpoint("runs/photos/model.safetensors", make(**changes))
        exec(snippet, {})


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_weighs_channels_by_the_logit_s_slope(
    changes: dict[str, Any], frozen: bool, make: Make, images: Tensor
) -> None:
    """The slope in each channel, by moving the whole channel of the map up and down a little."""
    model = make(**changes).double().requires_grad_(not frozen)
    block = cast("Any", model.blocks[1 if model.config.has_dead_rows else 2])
    images = images[:1].double()
    kept: list[Tensor] = []

    def logits(channel: int, step: float) -> Tensor:
        def moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept.append(output[:, 1:].clone())
            change = torch.zeros_like(output)
            change[:, 1:, channel] = step
            return output + change

        handle = block.mlp.register_forward_hook(moved)
        with torch.no_grad():
            found = model(images)[0]
        handle.remove()
        return found

    slopes = torch.stack([(logits(c, 1e-5) - logits(c, -1e-5)) / 2e-5 for c in range(32)])
    maps = (kept[0][0] @ (slopes / 24)).relu().T.reshape(5, *GRID)
    classes = maps.amax((1, 2)).argmax().reshape(1)  # not each class has a map that is more than zeros
    expected = maps[classes]
    assert expected.max() > 0
    assert torch.allclose(
        grad_cam(model, images, classes).double(), expected, rtol=1e-3, atol=1e-6 * expected.max().item()
    )


def test_grad_cam_is_the_same_inside_inference_mode(make: Make) -> None:
    model, classes = make(), torch.tensor([1])
    with torch.inference_mode():
        images = torch.randn(1, 3, *IMAGE_HW)
        inside = grad_cam(model, images, classes)
    assert inside.equal(grad_cam(model, images.clone(), classes))


def test_patches_that_cannot_reach_the_logits_are_refused(make: Make, images: Tensor) -> None:
    classes = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"patches of block 2 cannot reach .*, those of blocks 0 to 1 can"):
        grad_cam(make(), images, classes, block=2)
    with pytest.raises(ValueError, match=r"those of no block: it has only one can"):
        grad_cam(make(depth=1), images, classes)


@pytest.mark.parametrize("changes", VARIANTS)
def test_other_weights_give_other_maps(changes: dict[str, Any], make: Make, images: Tensor) -> None:
    """The sanity check of Adebayo et al. (arXiv 1810.03292): a map that stays tells nothing of the network."""
    model, classes = make(**changes), torch.tensor([1, 2, 3])

    def maps() -> list[Tensor]:
        found, pool = [grad_cam(model, images, classes)], model.config.global_pool
        found += [] if pool == "avg" else [rollout(seen(model, images))]
        return found if pool == "token" else [*found, contributions(model, images, classes)]

    before = maps()
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (parameter.std() if parameter.numel() > 1 else 1))
    for ours, other in zip(before, maps(), strict=True):
        pairs = torch.stack([ours.flatten(1), other.flatten(1)])
        correlations = torch.stack([torch.corrcoef(pairs[:, image])[0, 1] for image in range(3)])
        alike = correlations.nan_to_num().abs().tolist()  # Grad-CAM may be zero everywhere
        assert sum(alike) / 3 < 0.6


def test_positions_are_like_themselves_and_filters_fill_their_range(make: Make) -> None:
    model = make()
    similar = position_similarity(model)
    assert similar.shape == (*GRID, *GRID)
    assert torch.allclose(torch.diagonal(similar.flatten(2).flatten(0, 1)), torch.ones(24), atol=1e-5)
    filters = stem_filters(model)
    assert filters.shape == (8, 3, *filters.shape[2:])
    assert (filters - 0.5).abs().amax((1, 2, 3)) == pytest.approx(torch.full((8,), 0.5))
    with pytest.raises(ValueError, match="no filters of I2T"):
        stem_filters(make(stem="patch"))
