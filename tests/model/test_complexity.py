"""The closed form against torch's counter of a forward pass, to the last MAC, and against the published numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ceit.model import MODELS, CeiT, CeiTConfig, config_of
from ceit.model.complexity import Complexity, analysis, complexity, deit_twin, letters, resnet50_stages, resnet50_stem

IMAGES = 2
DEIT = {"stem": "patch", "feed_forward": "mlp", "lca": False}
SWITCHES: list[dict[str, Any]] = [
    {"stem": "patch"},
    {"stem_channels": 32},
    {"stem_kernel_size": 5},
    {"stem_kernel_size": 1},
    {"stem_stride": 4},
    {"stem_stride": 4, "stem_pool": False},
    {"stem_pool": False},
    {"stem_norm": "none"},
    {"feed_forward": "mlp"},
    {"leff_kernel_size": 1},
    {"leff_kernel_size": 5},
    {"leff_norm": "none"},
    {"leff_last_activation": True},
    {"leff_class_token": "identity"},
    {"lca": False},
    {"lca_pos_embed": False},
    {"global_pool": "avg", "lca": False},
    {"global_pool": "sum"},
    {"global_pool": "sum", "feed_forward": "mlp", "lca": False},
    {"qkv_bias": False},
    {"mlp_ratio": 2.5},
    {"depth": 1},
    {"in_chans": 1, "num_classes": 7},
    {"num_classes": 0},
    DEIT,
]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().eval()


def counted(forward: Callable[[Tensor], Any], config: CeiTConfig) -> FlopCounterMode:
    """Torch's count of a forward pass of two images without data; BN in training would refuse a single value."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        forward(torch.empty(IMAGES, config.in_chans, *config.image_hw, device="meta"))
    return counter


def macs(flops: int) -> int:
    """Of one image: two floating-point operations are a MAC."""
    assert flops % (2 * IMAGES) == 0
    return flops // (2 * IMAGES)


def macs_by_module(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts()
    return {name.removeprefix("CeiT."): macs(sum(flops.values())) for name, flops in counts.items()}


def attention_product_macs(counter: FlopCounterMode) -> int:
    """Linears and convolutions are never batched matrix products here, QK^T and AV always are."""
    return macs(sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) == "aten.bmm"))


def check(config: CeiTConfig) -> None:
    """Closed form equals counted, in all and by module: parameters, and MACs under each convention."""
    closed, model = complexity(config), on_meta(lambda: CeiT(config))
    assert isinstance(model, CeiT)
    live = counted(model.eval(), config)
    full = counted(model.train(), config)
    assert closed.macs == macs(full.get_total_flops())
    assert closed.live_macs == macs(live.get_total_flops())
    assert closed.macs - closed.macs_without_attention_products == attention_product_macs(full)
    assert closed.live_macs - closed.live_macs_without_attention_products == attention_product_macs(live)
    for counts, field in ((macs_by_module(full), "macs"), (macs_by_module(live), "live_macs")):
        expected: dict[str, int] = {}
        for module in closed.modules:  # the counter sees an attention as one module
            name = module.name.partition(".attn.")[0] + ".attn" if ".attn." in module.name else module.name
            expected[name] = expected.get(name, 0) + getattr(module, field)
        assert {name: counts.get(name, 0) for name in expected} == expected

    parameters = dict.fromkeys((module.name for module in closed.modules), 0)
    for name, parameter in model.named_parameters():
        owner = name if name in parameters else name.rpartition(".")[0]
        parameters[owner] += parameter.numel()
    assert {module.name: module.parameters for module in closed.modules} == parameters
    assert closed.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_equals_counted_for_every_name_at_two_sizes(name: str) -> None:
    config = config_of(name)
    (height, width), patch = config.image_hw, config.patch_size
    for img_size in ((height, width), (height - 3 * patch, width + patch)):
        check(replace(config, img_size=img_size))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(f"{k}={v}" for k, v in switches.items()))
def test_closed_form_equals_counted_for_every_switch(switches: dict[str, Any]) -> None:
    config = CeiTConfig(**{"img_size": (32, 64), "embed_dim": 24, "depth": 3, "num_classes": 5, **switches})
    check(config)


@given(st.data())
def test_closed_form_equals_counted_for_any_mixture_of_switches(data: st.DataObject) -> None:
    stem_stride, stem_pool, heads = data.draw(st.integers(1, 3)), data.draw(st.booleans()), data.draw(st.integers(1, 3))
    patch_size = stem_stride * (2 if stem_pool else 1) * data.draw(st.integers(1, 3))
    config = CeiTConfig(
        img_size=(patch_size * data.draw(st.integers(1, 5)), patch_size * data.draw(st.integers(1, 5))),
        in_chans=data.draw(st.integers(1, 4)),
        num_classes=data.draw(st.integers(0, 5)),
        patch_size=patch_size,
        embed_dim=4 * heads,
        depth=data.draw(st.integers(1, 4)),
        num_heads=heads,
        mlp_ratio=data.draw(st.sampled_from([1.0, 2.7, 4.0])),
        qkv_bias=data.draw(st.booleans()),
        stem=data.draw(st.sampled_from(["i2t", "patch"])),
        stem_channels=data.draw(st.integers(1, 5)),
        stem_kernel_size=data.draw(st.sampled_from([1, 3, 5, 7])),
        stem_stride=stem_stride,
        stem_pool=stem_pool,
        stem_norm=data.draw(st.sampled_from(["batch", "none"])),
        feed_forward=data.draw(st.sampled_from(["leff", "mlp"])),
        leff_kernel_size=data.draw(st.sampled_from([1, 3, 5])),
        leff_norm=data.draw(st.sampled_from(["batch", "none"])),
        leff_class_token=data.draw(st.sampled_from(["normalized", "identity"])),
        lca=data.draw(st.booleans()),
        lca_pos_embed=data.draw(st.booleans()),
    )
    check(config)


@pytest.mark.parametrize("skip_dead", [False, True])
def test_training_computes_the_full_count_unless_it_skips_the_dead_rows(skip_dead: bool) -> None:
    """With real tensors and gradients on the CPU, where attention is written out."""
    config = config_of("ceit_pico_patch4_32", skip_dead=skip_dead)
    model, counter = CeiT(config).train(), FlopCounterMode(display=False)
    with counter:
        model(torch.randn(IMAGES, 3, 32, 32))
    closed = complexity(config)
    assert macs(counter.get_total_flops()) == (closed.live_macs if skip_dead else closed.macs)


@pytest.mark.parametrize("switches", [{}, {"lca": False, "stem_pool": False}, DEIT])
def test_shapes_are_those_that_the_modules_see(switches: dict[str, Any]) -> None:
    config = CeiTConfig(img_size=(32, 48), embed_dim=24, depth=3, num_classes=5, **switches)
    model = on_meta(lambda: CeiT(config))
    assert isinstance(model, CeiT)
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, module in model.named_modules():
        if name == "lca.attn.qkv":  # which with a hook computes what nobody asks for
            continue
        module.register_forward_hook(
            lambda _, images, out, name=name: seen.update({name: (tuple(images[0].shape[1:]), tuple(out.shape[1:]))})
        )
    model.forward_head(model.forward_features(torch.empty(1, 3, 32, 48, device="meta")))
    closed = {module.name: (module.shape_in, module.shape_out) for module in complexity(config).modules}
    closed["head"] = ((24,), (5,))  # one row without the axis of rows
    named = {name: shapes for name, shapes in closed.items() if name in seen}
    assert named == {name: seen[name] for name in named}
    unseen = ("_embed", "cls_token", ".products", "lca.attn.qkv")  # parameters, and what no module computes
    assert all(name.endswith(unseen) for name in closed.keys() - seen.keys())


@pytest.mark.parametrize(
    ("name", "parameters", "full", "without_attention_products"),
    [
        ("ceit_tiny_patch16_224", 6_356_904, 1_395_307_008, 1_216_470_528),
        ("ceit_small_patch16_224", 24_204_840, 4_759_544_832, 4_401_871_872),
        ("ceit_base_patch16_224", 94_405_416, 17_748_854_784, 17_033_508_864),
        ("ceit_tiny_patch16_384", 6_429_864, 5_102_842_368, 3_568_700_928),
        ("ceit_small_patch16_384", 24_350_760, 15_980_209_152, 12_911_926_272),
    ],
)
def test_released_sizes(name: str, parameters: int, full: int, without_attention_products: int) -> None:
    """Parameters of the released weights; MACs as counted on the released implementation."""
    closed = complexity(config_of(name))
    assert closed.parameters == parameters
    assert closed.macs == full
    assert closed.macs_without_attention_products == without_attention_products


@pytest.mark.parametrize(
    ("size", "parameters_millions", "gmacs", "gmacs_without_attention_products"),
    [("tiny", 5.717, 1.254, 1.075), ("small", 22.051, 4.599, 4.241), ("base", 86.568, 17.564, 16.849)],
)
def test_the_twin_is_the_deit_of_timm(
    size: str, parameters_millions: float, gmacs: float, gmacs_without_attention_products: float
) -> None:
    config = deit_twin(config_of(f"ceit_{size}_patch16_224"))
    closed, deit = complexity(config), on_meta(lambda: timm.create_model(f"deit_{size}_patch16_224"))
    assert closed.parameters == sum(parameter.numel() for parameter in deit.parameters())
    assert closed.macs == macs(counted(deit, config).get_total_flops())
    assert round(closed.parameters / 1e6, 3) == parameters_millions
    assert round(closed.macs / 1e9, 3) == gmacs
    assert round(closed.macs_without_attention_products / 1e9, 3) == gmacs_without_attention_products


@pytest.mark.parametrize(("size", "millions"), [("tiny", 6.254), ("small", 24.003), ("base", 94.007)])
def test_parameters_with_the_ports_stem_channels(size: str, millions: float) -> None:
    assert round(complexity(config_of(f"ceit_{size}_patch16_224", stem_channels=32)).parameters / 1e6, 3) == millions


def test_dead_share_of_the_last_block() -> None:
    closed = complexity(config_of("ceit_tiny_patch16_224"))
    assert closed.dead_macs == 88_435_200
    assert closed.dead_macs == closed.part("blocks.11.").dead_macs
    assert closed.part("blocks.", "lca.").macs + closed.part("patch_embed.", "head").macs == closed.macs


def test_stem_against_what_it_replaces() -> None:
    costs = {cost.name: cost for cost in analysis(config_of("ceit_tiny_patch16_224")) if cost.part == "stem"}
    assert costs["ViT patch embedding"].macs == 28_901_376
    assert costs["I2T"].macs == 156_549_120
    assert costs["I2T"].ratio == pytest.approx(156.549 / 28.901, rel=1e-4)
    assert costs["hybrid ResNet-50 stem"].macs > 20 * costs["I2T"].macs


@pytest.mark.parametrize(
    "config",
    [
        config_of("ceit_tiny_patch16_224"),
        config_of("ceit_tiny_patch16_224", in_chans=1, img_size=(64, 96)),
        config_of("ceit_nano_patch4_32"),
        config_of("ceit_nano_patch4_32", patch_size=24, img_size=(96, 48)),
        config_of("ceit_small_patch16_224", patch_size=32),
    ],
    ids=["224", "non-square", "patch 4", "patch 24", "patch 32"],
)
def test_hybrid_stem_equals_the_counted_resnet50_of_timm(config: CeiTConfig) -> None:
    stem, stages = resnet50_stem(config), resnet50_stages(config)
    assert stem is not None
    side = config.patch_size // 2 ** (stages + 1)
    resnet = on_meta(
        lambda: timm.create_model("resnet50", features_only=True, out_indices=(stages,), in_chans=config.in_chans)
    )
    projection = nn.Conv2d(128 * 2**stages, config.embed_dim, side, stride=side, device="meta")
    tokens: list[Tensor] = []
    counter = counted(lambda images: tokens.append(projection(resnet(images)[0])), config)
    assert tokens[0].shape[1:] == (config.embed_dim, *config.grid)
    assert stem.modules[-1].shape_out == (config.embed_dim, *config.grid)
    assert stem.macs == macs(counter.get_total_flops())
    assert stem.parameters == sum(p.numel() for module in (resnet, projection) for p in module.parameters())


def test_no_hybrid_stem_where_no_stride_fits() -> None:
    config = CeiTConfig(img_size=28, patch_size=14, stem_pool=False, embed_dim=24)
    assert resnet50_stem(config) is None
    assert [cost.name for cost in analysis(config) if cost.part == "stem"] == ["ViT patch embedding", "I2T"]


@pytest.mark.parametrize("name", ["ceit_tiny_patch16_224", "ceit_small_patch16_384", "ceit_nano_patch4_32"])
def test_printed_formulas_give_the_printed_macs(name: str) -> None:
    config = config_of(name, mlp_ratio=3.0, leff_kernel_size=5)
    for cost in analysis(config):
        if cost.formula:
            assert eval(cost.formula.replace("^", "**").replace("/", "//"), letters(config)) == cost.macs, cost


def test_analysis_agrees_with_the_modules() -> None:
    config = config_of("ceit_tiny_patch16_224")
    own, twin = complexity(config), complexity(deit_twin(config))
    costs = {(cost.part, cost.name): cost for cost in analysis(config)}

    def feed_forward(network: Complexity) -> int:
        return network.part(*(f"blocks.{i}.mlp." for i in range(config.depth))).macs

    assert costs["LeFF, all blocks", "LeFF"].macs == feed_forward(own)
    assert costs["LeFF, all blocks", "MLP in its place"].macs == feed_forward(twin)
    assert costs["LeFF, per patch and block", "depth-wise conv adds"].ratio == 3**2 / (2 * config.embed_dim)
    assert costs["LCA, the layer", "only the last asks"].macs == own.part("lca.").macs
    one_query = costs["LCA, attention products", "only the last asks, O(L)"]
    assert one_query.macs == 2 * config.depth * config.embed_dim
    assert one_query.ratio == 1 / config.depth


def test_analysis_leaves_out_what_is_switched_off() -> None:
    assert {cost.part for cost in analysis(deit_twin(config_of("ceit_tiny_patch16_224")))} == {"stem"}
