"""The whole network: geometry, ablation switches, what training and evaluation may leave out, drop path."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import Tensor, nn

from ceit.model import CeiT, CeiTConfig

BATCH = 2


@st.composite
def configurations(draw: st.DrawFn) -> CeiTConfig:
    """Any switch in any position, on a geometry of a few tokens."""
    stem_stride, stem_pool = draw(st.sampled_from([1, 2])), draw(st.booleans())
    patch_size = stem_stride * (2 if stem_pool else 1) * draw(st.integers(1, 2))
    num_heads = draw(st.integers(1, 3))
    pools = list[Literal["token", "avg", "sum"]](["token", "avg", "sum"])
    global_pool = draw(st.sampled_from(pools))
    return CeiTConfig(
        img_size=(patch_size * draw(st.integers(1, 4)), patch_size * draw(st.integers(1, 4))),
        in_chans=draw(st.sampled_from([1, 3, 4])),
        num_classes=draw(st.integers(2, 5)),
        patch_size=patch_size,
        embed_dim=num_heads * draw(st.sampled_from([4, 6])),
        depth=draw(st.integers(1, 3)),
        num_heads=num_heads,
        mlp_ratio=draw(st.sampled_from([1.0, 2.5])),
        qkv_bias=draw(st.booleans()),
        layer_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        drop_path_rate=draw(st.sampled_from([0.0, 0.5])),
        stem=draw(st.sampled_from(["i2t", "patch"])),
        stem_channels=draw(st.integers(1, 4)),
        stem_kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
        stem_stride=stem_stride,
        stem_pool=stem_pool,
        stem_norm=draw(st.sampled_from(["batch", "none"])),
        feed_forward=draw(st.sampled_from(["leff", "mlp"])),
        leff_kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
        leff_norm=draw(st.sampled_from(["batch", "none"])),
        leff_last_activation=draw(st.booleans()),
        leff_class_token=draw(st.sampled_from(["normalized", "identity"])),
        lca=global_pool != "avg" and draw(st.booleans()),
        lca_pos_embed=draw(st.booleans()),
        global_pool=global_pool,
        skip_dead=global_pool == "token" and draw(st.booleans()),
    )


def test_the_strategy_draws_every_field() -> None:
    drawn: dict[str, set[Any]] = {field.name: set() for field in fields(CeiTConfig)}

    @settings(max_examples=200)
    @given(configurations())
    def collect(config: CeiTConfig) -> None:
        for name, values in drawn.items():
            values.add(getattr(config, name))

    collect()
    assert not [name for name, values in drawn.items() if len(values) == 1]


@settings(max_examples=50)
@given(configurations())
def test_every_field_reaches_the_state_dict(config: CeiTConfig) -> None:
    model = CeiT(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected_shapes(config)
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {config.layer_norm_eps}


@settings(max_examples=50)
@given(configurations())
def test_one_step_of_training_reaches_all_that_lives_and_nothing_else(config: CeiTConfig) -> None:
    model = CeiT(config).train()
    images = torch.randn(BATCH, config.in_chans, *config.image_hw)
    logits = model(images)
    assert logits.shape == (BATCH, config.num_classes)
    loss = F.cross_entropy(logits, torch.arange(BATCH))
    loss.backward()
    dead = set(dead_names(config, model))
    for name, parameter in model.named_parameters():
        if name in dead and config.skip_dead:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert name not in dead or parameter.grad.count_nonzero() == 0, name
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = model.eval()(images)
    assert after.shape == (BATCH, config.num_classes)
    assert after.isfinite().all()


@settings(max_examples=50)
@given(configurations())
def test_evaluation_leaves_out_only_what_is_dead(config: CeiTConfig) -> None:
    model = CeiT(config).eval()
    images = torch.randn(BATCH, config.in_chans, *config.image_hw)
    features = model.forward_features(images)
    height, width = config.grid
    assert features.shape == (BATCH, 1 + height * width, config.embed_dim)
    torch.testing.assert_close(model(images), model.forward_head(features), rtol=1e-6, atol=1e-6)
    class_token, mean = features[:, 0], features[:, 1:].mean(1)
    pooled = {"token": class_token, "avg": mean, "sum": class_token + mean}[config.global_pool]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"leff_class_token": "identity"},
        {"lca": False},
        {"feed_forward": "mlp"},
        {"leff_norm": "none", "leff_last_activation": True},
        {"stem": "patch", "feed_forward": "mlp", "lca": False},
    ],
    ids=str,
)
def test_training_without_dead_rows_has_the_same_logits_and_gradients(
    tiny: Callable[..., CeiT], changes: dict[str, Any]
) -> None:
    full = tiny(drop_path_rate=0.5, **changes).double().train()
    lean = tiny(drop_path_rate=0.5, skip_dead=True, **changes).double().train()
    lean.load_state_dict(full.state_dict())
    images = torch.randn(4, 3, 32, 48, dtype=torch.float64)
    logits: list[Tensor] = []
    for model in (full, lean):
        torch.manual_seed(5)  # drop path draws the same number of masks in both
        logits.append(model(images))
        logits[-1].square().sum().backward()
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-10, atol=1e-10)
    dead = set(dead_names(full.config, full))
    for (name, parameter), twin in zip(full.named_parameters(), lean.parameters(), strict=True):
        if name in dead:
            assert twin.grad is None, name
        else:
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_pooling_the_patches_leaves_no_dead_rows_to_skip(tiny: Callable[..., CeiT]) -> None:
    with pytest.raises(
        ValueError, match=r"^skip_dead true needs global_pool token: the patch tokens of the last block"
    ):
        tiny(global_pool="sum", skip_dead=True)


def test_layer_wise_attention_needs_a_class_token_that_is_classified(tiny: Callable[..., CeiT]) -> None:
    with pytest.raises(ValueError, match=r"^lca true needs global_pool token or sum: .*; give lca false too$"):
        tiny(global_pool="avg")


@pytest.mark.parametrize(("training", "skip_dead", "runs"), [(False, False, 0), (True, False, 1), (True, True, 0)])
def test_the_last_leff_runs_only_in_full_training(
    tiny: Callable[..., CeiT], training: bool, skip_dead: bool, runs: int
) -> None:
    model, ran = tiny(skip_dead=skip_dead).train(training), list[nn.Module]()
    model.get_submodule("blocks.2.mlp.expand").register_forward_pre_hook(lambda module, inputs: ran.append(module))
    model(torch.randn(BATCH, 3, 32, 48))
    assert len(ran) == runs


def test_without_dead_rows_only_the_last_blocks_statistics_stand_still(tiny: Callable[..., CeiT]) -> None:
    model = tiny(skip_dead=True).train()
    model(torch.randn(BATCH, 3, 32, 48))
    moved = {name for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked") and buffer > 0}
    assert moved == {
        "patch_embed.norm.num_batches_tracked",
        *(
            f"blocks.{i}.mlp.{norm}_norm.num_batches_tracked"
            for i in (0, 1)
            for norm in ("expand", "depthwise", "project")
        ),
    }
    model.forward_features(torch.randn(BATCH, 3, 32, 48))
    assert model.state_dict()["blocks.2.mlp.project_norm.num_batches_tracked"] == 1, "features have no dead rows"


@pytest.mark.parametrize("image_hw", [(16, 16), (16, 80), (64, 32), (48, 48)])
@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_any_size_any_channels_any_odd_kernel(
    tiny: Callable[..., CeiT], image_hw: tuple[int, int], in_chans: int, kernel: int
) -> None:
    model = tiny(img_size=image_hw, in_chans=in_chans, leff_kernel_size=kernel)
    assert model(torch.randn(1, in_chans, *image_hw)).shape == (1, 5)


def test_height_and_width_are_not_exchanged(tiny: Callable[..., CeiT]) -> None:
    tall, wide = tiny(img_size=(48, 32)), tiny(img_size=(32, 48))
    wide.load_state_dict(tall.state_dict())
    images = torch.randn(1, 3, 48, 32)
    assert not torch.allclose(tall(images), wide(images.transpose(2, 3)), atol=1e-3)
    with pytest.raises(ValueError, match=r"images are 48 x 32 px but the network takes 32 x 48"):
        wide(images)


@pytest.mark.parametrize("stem", ["i2t", "patch"])
@pytest.mark.parametrize("size", [(48, 48), (32, 49), (16, 48)])
def test_images_of_another_size_are_refused(tiny: Callable[..., CeiT], stem: str, size: tuple[int, int]) -> None:
    sentence = (
        f"^images are {size[0]} x {size[1]} px but the network takes 32 x 48; resize them or call set_input_size$"
    )
    with pytest.raises(ValueError, match=sentence):
        tiny(stem=stem)(torch.randn(1, 3, *size))


@pytest.mark.parametrize("changes", [{"leff_last_activation": True}, {"leff_class_token": "identity"}], ids=str)
def test_a_switch_without_parameters_changes_the_logits(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model, switched = tiny(), tiny(**changes)
    switched.load_state_dict(model.state_dict())
    images = torch.randn(BATCH, 3, 32, 48)
    assert (model(images) - switched(images)).abs().max() > 1e-3


def test_drop_path_grows_linearly_from_zero_over_depth() -> None:
    model = CeiT(CeiTConfig(depth=5, drop_path_rate=0.2))
    rates = [block.get_submodule("drop_path") for block in model.blocks]
    assert [rate.drop_prob for rate in rates if isinstance(rate, DropPath)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [module for module in CeiT(CeiTConfig(depth=1, drop_path_rate=0.2)).modules() if is_dropping(module)] == []
    lca_or_stem = [name for name, module in model.named_modules() if is_dropping(module) and "blocks" not in name]
    assert lca_or_stem == []


def test_drop_path_drops_whole_residuals_of_a_sample(tiny: Callable[..., CeiT]) -> None:
    model = tiny(drop_path_rate=0.9, depth=2).train()
    tokens = torch.randn(64, 7, 24)
    change = (model.blocks[1](tokens, (2, 3)) - tokens).abs().amax(dim=2)
    untouched = change.amax(dim=1) == 0
    assert untouched.sum() > 32, "both residuals of a sample are dropped with probability 0.81"
    assert (change[~untouched].amin(dim=1) > 0).all(), "a residual that stays, stays for every token"
    assert ((model.blocks[0](tokens, (2, 3)) - tokens).abs().amax(dim=2) > 0).all(), "the first block drops nothing"


def is_dropping(module: nn.Module) -> bool:
    return isinstance(module, DropPath) and module.drop_prob > 0


def dead_names(config: CeiTConfig, model: CeiT) -> Iterator[str]:
    """Parameters that only patch rows of the last block use, if those are not pooled."""
    if config.feed_forward == "leff" and config.global_pool == "token":
        last = f"blocks.{config.depth - 1}"
        parts = ["mlp"] if config.leff_class_token == "normalized" else ["mlp", "norm2"]
        yield from (
            name for name, _ in model.named_parameters() if name.startswith(tuple(f"{last}.{p}." for p in parts))
        )


def expected_shapes(config: CeiTConfig) -> dict[str, tuple[int, ...]]:
    """The state dict of a geometry, written out from the description of the modules."""
    dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    rows, columns = (side // config.patch_size for side in config.image_hw)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + rows * columns, dim)}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def batch_norm(name: str, channels: int) -> None:
        layer(name, channels)
        shapes.update({f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)})
        shapes[f"{name}.num_batches_tracked"] = ()

    def transformer_layer(name: str) -> None:
        layer(f"{name}.norm1", dim)
        layer(f"{name}.attn.qkv", 3 * dim, dim, bias=config.qkv_bias)
        layer(f"{name}.attn.proj", dim, dim)
        layer(f"{name}.norm2", dim)

    def mlp(name: str) -> None:
        layer(f"{name}.fc1", hidden, dim)
        layer(f"{name}.fc2", dim, hidden)

    if config.stem == "i2t":
        kernel, side = (
            config.stem_kernel_size,
            config.patch_size // config.stem_stride // (2 if config.stem_pool else 1),
        )
        layer("patch_embed.conv", config.stem_channels, config.in_chans, kernel, kernel, bias=False)
        if config.stem_norm == "batch":
            batch_norm("patch_embed.norm", config.stem_channels)
        layer("patch_embed.proj", dim, config.stem_channels, side, side)
    else:
        layer("patch_embed.proj", dim, config.in_chans, config.patch_size, config.patch_size)
    for i in range(config.depth):
        transformer_layer(f"blocks.{i}")
        if config.feed_forward == "mlp":
            mlp(f"blocks.{i}.mlp")
            continue
        layer(f"blocks.{i}.mlp.expand", hidden, dim)
        layer(f"blocks.{i}.mlp.depthwise", hidden, 1, config.leff_kernel_size, config.leff_kernel_size)
        layer(f"blocks.{i}.mlp.project", dim, hidden)
        if config.leff_norm == "batch":
            for name, channels in (("expand", hidden), ("depthwise", hidden), ("project", dim)):
                batch_norm(f"blocks.{i}.mlp.{name}_norm", channels)
    if config.lca:
        transformer_layer("lca")
        mlp("lca.mlp")
        if config.lca_pos_embed:
            shapes["lca.pos_embed"] = (1, config.depth, dim)
    layer("norm", dim)
    layer("head", config.num_classes, dim)
    return shapes
