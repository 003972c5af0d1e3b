"""timm's contract: every registered name, every model method, timm's own tools for parameter groups and features."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.config import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

import ceit
from ceit.model import MODELS, CeiT, config_of, list_models, resize_pos_embed
from ceit.model.attention import MultiHeadSelfAttention
from ceit.shipped import DEFAULT

BATCH, DEPTH = 2, 3
IMAGES = (BATCH, 3, 32, 48)  # of the fixture ``tiny``


def small(name: str, **changes: Any) -> Any:
    """A registered model through timm, cut to three blocks and few tokens, one row of them more than columns."""
    side = config_of(name).patch_size
    return timm.create_model(name, **{"img_size": (3 * side, 2 * side), "depth": DEPTH, "num_classes": 7, **changes})


def images_for(model: CeiT) -> Tensor:
    return torch.randn(BATCH, model.config.in_chans, *model.config.image_hw)


def test_the_promised_names_are_registered() -> None:
    large = [f"ceit_{size}_patch16_{side}" for side in (224, 384) for size in ("tiny", "small", "base")]
    little = [f"{family}_{size}_patch4_32" for family in ("ceit", "deit") for size in ("pico", "mini", "nano", "micro")]
    photos = [
        f"{family}_mini_{of}" for family in ("ceit", "deit") for of in ("patch8_64", "patch16_128", "patch16_224")
    ]
    assert list_models() == large + little + photos
    assert set(timm.list_models()) >= set(list_models())
    assert DEFAULT in list_models(pretrained=True)
    assert set(list_models(pretrained=True)) == set(timm.list_models("?eit_*_patch4_32*", pretrained=True))


def test_registering_shadows_no_name_of_timms() -> None:
    program = """
import json, timm
before = {name: timm.models.model_entrypoint(name) for name in timm.list_models(include_tags=False)}
import ceit
after = {name: timm.models.model_entrypoint(name) for name in timm.list_models(include_tags=False)}
changed = [name for name in before if after.get(name) is not before[name]]
print(json.dumps([changed, sorted(set(after) - set(before))]))
"""
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    changed, added = json.loads(answer)
    assert changed == []
    assert added == sorted(MODELS)


@pytest.mark.parametrize("name", list_models())
def test_timm_and_ceit_build_the_same_network(name: str) -> None:
    with torch.device("meta"):
        through_timm = timm.create_model(name)
        through_ceit = ceit.create_model(name)
    assert isinstance(through_timm, CeiT)
    assert through_timm.config == through_ceit.config == config_of(name)
    shapes = {key: tensor.shape for key, tensor in through_timm.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in through_ceit.state_dict().items()}


@pytest.mark.parametrize("name", list_models())
def test_every_name_maps_its_own_images_to_logits(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    config = config_of(name)
    assert config.patch_size == int(name.split("patch")[1].split("_")[0])
    assert config.image_hw == (int(name.rsplit("_", 1)[1]),) * 2
    assert model(torch.empty(BATCH, 3, *config.image_hw, device="meta")).shape == (BATCH, config.num_classes)


@pytest.mark.parametrize("name", list_models())
def test_model_methods_agree_with_forward(name: str) -> None:
    model = small(name).eval()
    images = images_for(model)
    with torch.no_grad():
        logits, features = model(images), model.forward_features(images)
        assert logits.shape == (BATCH, 7)
        assert features.shape == (BATCH, 1 + 6, model.num_features)
        torch.testing.assert_close(model.forward_head(features), logits, rtol=1e-6, atol=1e-6)
        assert model.forward_head(features, pre_logits=True).shape == (BATCH, model.head_hidden_size)
        final, maps = model.forward_intermediates(images)
        assert torch.equal(final, features)
        assert [tuple(m.shape) for m in maps] == [(BATCH, model.embed_dim, 3, 2)] * DEPTH
    assert model.get_classifier() is model.head


@pytest.mark.parametrize("name", list_models())
def test_default_cfg_tells_how_to_feed_and_to_refit_the_model(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    assert model.default_cfg is model.pretrained_cfg
    data = resolve_model_data_config(model)
    side = int(name.rsplit("_", 1)[1])
    assert data["input_size"] == (3, side, side)
    assert data["interpolation"] == "bicubic"
    assert data["crop_pct"] == (1.0 if side <= 64 else 0.875)
    assert (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    assert cfg["num_classes"] == (10 if "mini" in name or side == 32 else 1000)
    assert cfg["fixed_input_size"]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_parameter(f"{cfg['first_conv']}.weight").shape[1] == 3


def test_pretrained_weights_are_refused_with_the_way_to_get_them() -> None:
    for create in (timm.create_model, ceit.create_model):
        with pytest.raises(ValueError, match=r"ceit_tiny_patch16_224.*'ceit convert RELEASED\.pth OUT\.safetensors'"):
            create("ceit_tiny_patch16_224", pretrained=True)


@pytest.mark.parametrize("create", [timm.create_model, ceit.create_model], ids=["timm", "ceit"])
def test_unknown_fields_are_refused_with_the_nearest(create: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^unknown model field 'leff_kernel'; did you mean 'leff_kernel_size'"):
        create("ceit_pico_patch4_32", leff_kernel=5)


def test_timms_keywords_reach_the_configuration() -> None:
    model = timm.create_model(
        "ceit_pico_patch4_32", num_classes=3, in_chans=1, img_size=(16, 24), drop_path_rate=0.2, global_pool="sum"
    )
    assert isinstance(model, CeiT)
    assert model.config == config_of(
        "ceit_pico_patch4_32", num_classes=3, in_chans=1, img_size=(16, 24), drop_path_rate=0.2, global_pool="sum"
    )
    with pytest.raises(ValueError, match=r"^unknown global_pool 'max'; known: avg, sum, token$"):
        timm.create_model("ceit_pico_patch4_32", global_pool="max")
    with pytest.raises(ValueError, match=r"^global_pool '' is none of token, avg, sum: forward_features gives tokens$"):
        timm.create_model("ceit_pico_patch4_32", num_classes=0, global_pool="")


# classes


@pytest.mark.parametrize("name", ["ceit_pico_patch4_32", "deit_mini_patch4_32"])
def test_what_timms_own_training_script_says_is_taken(name: str) -> None:
    model = timm.create_model(name, drop_rate=0.0, device="cpu", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match=r"^drop_rate 0\.1 must be 0: the network has no dropout; set drop_path_rate$"):
        timm.create_model(name, drop_rate=0.1)


class Adapter(nn.Module):
    """A low-rank adapter round a linear layer, as libraries for fine-tuning have it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base(tokens) + self.up(self.down(tokens))


def test_adapters_act_in_every_attention(tiny: Callable[..., CeiT]) -> None:
    model = tiny().eval()
    for module in [*model.modules()]:
        if isinstance(module, MultiHeadSelfAttention):
            module.add_module("qkv", Adapter(module.qkv))
    images = torch.randn(IMAGES)
    logits = model(images)
    torch.testing.assert_close(logits, model.forward_head(model.forward_features(images)))
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if ".up." in name)


def test_hooks_on_a_linear_layer_act_in_every_attention(tiny: Callable[..., CeiT]) -> None:
    model = tiny()
    for module in [*model.modules()]:
        if isinstance(module, nn.Linear):
            prune.random_unstructured(module, "weight", amount=0.3)
    for _ in range(2):
        model(torch.randn(IMAGES)).sum().backward()


def test_every_block_is_seen_by_its_hooks_and_may_be_wrapped(tiny: Callable[..., CeiT]) -> None:
    class Wrapped(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *given: Any) -> Tensor:
            return self.block(*given)

    model, images, seen = tiny().eval(), torch.randn(IMAGES), list[tuple[int, ...]]()
    expected = model(images)
    hooks = [block.register_forward_hook(lambda _, __, tokens: seen.append(tokens.shape)) for block in model.blocks]
    torch.testing.assert_close(model(images), expected)
    assert seen == [(BATCH, 7, 24)] * DEPTH
    for hook in hooks:
        hook.remove()
    model.blocks = nn.ModuleList(map(Wrapped, model.blocks))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("part", ["norm1", "attn", "norm2", "mlp", "mlp.project"])
def test_parts_of_the_last_block_are_seen_by_their_hooks_in_evaluation(tiny: Callable[..., CeiT], part: str) -> None:
    model, images, seen = tiny().eval(), torch.randn(IMAGES), list[Any]()
    expected = model(images)
    hook = model.blocks[-1].get_submodule(part).register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    torch.testing.assert_close(model(images), expected)
    rows = 6 if part == "mlp.project" else 7
    assert [tokens.shape[:2] for tokens in seen] == [(BATCH, rows)]
    hook.remove()
    model(images)
    assert len(seen) == 1


@pytest.mark.parametrize("part", ["blocks.2", "blocks.2.attn", "lca.attn.qkv"])
def test_gradients_are_seen_by_their_hooks_in_evaluation(tiny: Callable[..., CeiT], part: str) -> None:
    model, seen = tiny().eval(), list[Any]()
    model.get_submodule(part).register_full_backward_hook(lambda _, __, gradients: seen.append(gradients))
    model(torch.randn(IMAGES)).sum().backward()
    assert seen


def test_a_weight_that_is_no_plain_tensor_is_left_whole(tiny: Callable[..., CeiT]) -> None:
    """As torchao's quantised weights, which know ``linear`` and few other operations."""
    model, images = tiny().eval(), torch.randn(IMAGES)
    expected = model(images)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(TwoTensor(module.weight.detach(), module.weight.detach()))
    with Whole():
        torch.testing.assert_close(unwrapped(model(images)), expected)


class Whole(TorchFunctionMode):
    """Refuses to cut a weight that is no plain tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not Tensor.chunk or not isinstance(args[0], nn.Parameter)
        return func(*args, **(kwargs or {}))


def unwrapped(tensor: Tensor) -> Tensor:
    return cast("Any", tensor).a if isinstance(tensor, TwoTensor) else tensor


def test_the_size_that_it_has_leaves_the_parameters_to_their_optimizer(tiny: Callable[..., CeiT]) -> None:
    model = tiny()
    before = model.pos_embed
    model.set_input_size((32, 48))
    assert model.pos_embed is before


def test_reset_classifier(tiny: Callable[..., CeiT]) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    before = model.forward_features(images)
    model.reset_classifier(9)
    assert model(images).shape == (BATCH, 9)
    assert model.num_classes == model.config.num_classes == 9
    assert torch.equal(model.forward_features(images), before)
    model.double().reset_classifier(4, global_pool="token")
    assert model.head.weight.dtype is torch.float64
    with pytest.raises(ValueError, match=r"^unknown global_pool 'max'; known: avg, sum, token$"):
        model.reset_classifier(4, "max")
    with pytest.raises(ValueError, match=r"^num_classes -1 must be at least 0"):
        model.reset_classifier(-1)
    assert model(images.double()).shape == (BATCH, 4)
    model.reset_classifier(4, "sum")
    assert model.config.global_pool == "sum"


def test_no_classes_means_features(tiny: Callable[..., CeiT]) -> None:
    model, images = tiny(num_classes=0), torch.randn(IMAGES)
    assert not [name for name in model.state_dict() if name.startswith("head")]
    features = model.forward_features(images)
    torch.testing.assert_close(model(images), features[:, 0], rtol=1e-6, atol=1e-6)
    with_head = tiny()
    with_head.load_state_dict(model.state_dict(), strict=False)
    with_head.reset_classifier(0)
    assert torch.equal(with_head(images), model(images))
    with_head.reset_classifier(6)
    assert with_head(images).shape == (BATCH, 6)


# intermediate features


@pytest.mark.parametrize("return_prefix_tokens", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("indices", [None, 2, [0], [0, 2], [-1, -3]], ids=str)
def test_intermediates_are_the_outputs_of_the_blocks(
    tiny: Callable[..., CeiT], indices: Any, output_fmt: Any, norm: bool, return_prefix_tokens: bool
) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    outputs: list[Any] = []
    hooks = [block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in model.blocks]
    features = model.forward_features(images)
    for hook in hooks:
        hook.remove()
    options: dict[str, Any] = {"norm": norm, "output_fmt": output_fmt, "return_prefix_tokens": return_prefix_tokens}
    final, taken = model.forward_intermediates(images, indices, **options)
    assert torch.equal(final, features)
    wanted = {"None": [0, 1, 2], "2": [1, 2], "[0]": [0], "[0, 2]": [0, 2], "[-1, -3]": [0, 2]}[str(indices)]
    assert len(taken) == len(wanted)
    for i, one in zip(wanted, taken, strict=True):
        tokens = model.norm(outputs[i]) if norm else outputs[i]
        patches = tokens[:, 1:]
        if output_fmt == "NCHW":
            patches = patches.reshape(BATCH, 2, 3, -1).permute(0, 3, 1, 2)
        assert torch.equal(one[0] if return_prefix_tokens else one, patches)
        assert not return_prefix_tokens or torch.equal(one[1], tokens[:, :1])
    for stop_early in (True, False):
        only = model.forward_intermediates(images, indices, intermediates_only=True, stop_early=stop_early, **options)
        torch.testing.assert_close(only, taken, rtol=0, atol=0)


@pytest.mark.parametrize(("stop_early", "blocks_run"), [(True, 2), (False, 3)])
def test_stopping_early_runs_no_block_behind_the_last_asked_for(
    tiny: Callable[..., CeiT], stop_early: bool, blocks_run: int
) -> None:
    model, ran = tiny(), list[nn.Module]()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: ran.append(module))
    model.forward_intermediates(torch.randn(IMAGES), [1], stop_early=stop_early, intermediates_only=True)
    assert len(ran) == blocks_run


@pytest.mark.parametrize("indices", [[3], [-4], 4, 0, []], ids=str)
def test_blocks_that_do_not_exist_are_refused(tiny: Callable[..., CeiT], indices: Any) -> None:
    with pytest.raises(ValueError, match=r"must lie within the 3 blocks$"):
        tiny().forward_intermediates(torch.randn(IMAGES), indices)
    with pytest.raises(ValueError, match=r"must lie within the 3 blocks$"):
        tiny().prune_intermediate_layers(indices)


def test_an_unknown_output_format_is_refused(tiny: Callable[..., CeiT]) -> None:
    wrong: Any = "NHWC"
    with pytest.raises(ValueError, match=r"^output_fmt 'NHWC' must be 'NCHW' or 'NLC'$"):
        tiny().forward_intermediates(torch.randn(IMAGES), output_fmt=wrong)


@pytest.mark.parametrize("name", ["ceit_tiny_patch16_224", "ceit_nano_patch4_32", "deit_nano_patch4_32"])
@pytest.mark.parametrize(("out_indices", "taken"), [((0, 2), [0, 2]), ((-2,), [1]), (2, [1, 2]), (None, [0, 1, 2])])
def test_features_only(name: str, out_indices: Any, taken: list[int]) -> None:
    asked = {} if out_indices is None else {"out_indices": out_indices}  # three by default
    extractor = small(name, features_only=True, **asked).eval()
    model = extractor.model
    assert list(extractor.out_indices) == taken
    assert len(model.blocks) == max(taken) + 1
    assert extractor.feature_info.channels() == [model.embed_dim] * len(taken)
    assert extractor.feature_info.reduction() == [model.config.patch_size] * len(taken)
    assert extractor.feature_info.module_name() == [f"blocks.{i}" for i in taken]
    images = images_for(model)
    maps = extractor(images)
    assert [tuple(m.shape) for m in maps] == [(BATCH, model.embed_dim, 3, 2)] * len(taken)
    torch.testing.assert_close(maps, model.forward_intermediates(images, taken, intermediates_only=True))


@pytest.mark.parametrize("prune_norm", [True, False])
@pytest.mark.parametrize("prune_head", [True, False])
@pytest.mark.parametrize(("indices", "last"), [([0, -2], 1), (1, 2)])
def test_pruning_keeps_the_intermediates_asked_for(
    tiny: Callable[..., CeiT], indices: Any, last: int, prune_head: bool, prune_norm: bool
) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    wanted = model.forward_intermediates(images, indices, intermediates_only=True)
    logits = model(images)
    kept = model.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
    assert kept == ([0, 1] if last == 1 else [2])
    torch.testing.assert_close(model.forward_intermediates(images, kept, intermediates_only=True), wanted)
    assert len(model.blocks) == model.config.depth == last + 1
    assert (model.lca is not None) == model.config.lca == (last == 2 and not prune_head)
    assert isinstance(model.norm, nn.Identity) == prune_norm
    assert model(images).shape == (BATCH, 24 if prune_head else 5)
    if last == 2 and not prune_head and not prune_norm:
        assert torch.equal(model(images), logits)
    if not prune_norm:
        CeiT(model.config).load_state_dict(model.state_dict())


# image size


@pytest.mark.parametrize("new_size", [(64, 32), 48, (16, 96), (48, 32)], ids=str)
def test_another_image_size_interpolates_the_position_embedding(tiny: Callable[..., CeiT], new_size: Any) -> None:
    model = tiny()
    old = model.pos_embed.detach().clone()
    model.set_input_size(new_size)
    height, width = (new_size, new_size) if isinstance(new_size, int) else new_size
    grid = (height // 16, width // 16)
    assert model.config.image_hw == (height, width)
    assert model(torch.randn(BATCH, 3, height, width)).shape == (BATCH, 5)
    assert torch.equal(model.pos_embed[:, 0], old[:, 0]), "the class token's row stays"
    for channel in range(24):
        plane = F.interpolate(old[:, 1:, channel].reshape(1, 1, 2, 3), grid, mode="bicubic", align_corners=False)
        torch.testing.assert_close(model.pos_embed[0, 1:, channel], plane.flatten())
    with pytest.raises(ValueError, match=f"px but the network takes {height} x {width};"):
        model(torch.randn(BATCH, 3, 32, 48))


@pytest.mark.parametrize("size", [(16, 96), (48, 48)], ids=str)
def test_another_size_for_a_while_leaves_the_parameters(tiny: Callable[..., CeiT], size: tuple[int, int]) -> None:
    model, images, others = tiny(), torch.randn(IMAGES), torch.randn(BATCH, 3, *size)
    before, resized = model(images), copy.deepcopy(model)
    resized.set_input_size(size)
    with model.at_size(size):
        assert torch.equal(model(others), resized(others))
        model(others).sum().backward()
        with pytest.raises(ValueError, match="px but the network takes"):
            model(images)
    assert model.pos_embed.grad is not None
    assert model.pos_embed.grad.shape == model.pos_embed.shape
    assert torch.equal(model(images), before)
    with pytest.raises(ValueError, match=r"^image size \(20, 16\) must be a multiple of 16"), model.at_size((20, 16)):
        pass
    with pytest.raises(ZeroDivisionError), model.at_size(size):
        _ = 1 / 0
    assert torch.equal(model(images), before)


def test_an_image_size_that_does_not_fit_changes_nothing(tiny: Callable[..., CeiT]) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    before = model(images)
    with pytest.raises(
        ValueError, match=r"^image size \(225, 224\) must be a multiple of 16 \(remainder 1, 0\), such as \(224, 224\)$"
    ):
        model.set_input_size((225, 224))
    with pytest.raises(ValueError, match=r"^patch_size 8 must stay 16: the stem's weights are made for it$"):
        model.set_input_size(64, patch_size=8)
    model.set_input_size(patch_size=(16, 16))
    model.set_input_size((32, 48), patch_size=16)
    assert torch.equal(model(images), before)


def test_a_frozen_position_embedding_stays_frozen(tiny: Callable[..., CeiT]) -> None:
    model = tiny().requires_grad_(False)
    model.set_input_size(64)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_grids_of_as_many_tokens_are_still_different_grids() -> None:
    old = torch.randn(1, 1 + 16, 4)
    assert resize_pos_embed(old, (2, 8), (2, 8)) is old
    for grid in ((4, 4), (8, 2), (16, 1)):
        new = resize_pos_embed(old, (2, 8), grid)
        plane = F.interpolate(old[0, 1:].T.reshape(1, 4, 2, 8), grid, mode="bicubic", align_corners=False)
        torch.testing.assert_close(new[0, 1:], plane[0].flatten(1).T)
        assert not torch.equal(new, old)


def test_a_position_embedding_in_double_precision_is_resized_in_it() -> None:
    old = torch.randn(1, 1 + 4, 3, dtype=torch.float64)
    plane = F.interpolate(old[0, 1:].T.reshape(1, 3, 2, 2), (3, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resize_pos_embed(old, (2, 2), (3, 5))[0, 1:], plane[0].flatten(1).T, rtol=0, atol=1e-15)


def test_a_constant_position_embedding_stays_constant_in_its_own_precision() -> None:
    constant = torch.full((1, 1 + 6, 4), 0.5, dtype=torch.bfloat16)
    resized = resize_pos_embed(constant, (2, 3), (5, 4))
    assert resized.dtype is torch.bfloat16
    torch.testing.assert_close(resized, torch.full((1, 1 + 20, 4), 0.5, dtype=torch.bfloat16))


# training


@pytest.mark.parametrize("changes", [{}, {"skip_dead": True}, {"feed_forward": "mlp", "stem": "patch"}], ids=str)
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(
    tiny: Callable[..., CeiT], changes: dict[str, Any]
) -> None:
    plain = tiny(drop_path_rate=0.5, **changes).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    images, ran = torch.randn(4, 3, 32, 48), list[nn.Module]()
    saving.blocks[1].register_forward_pre_hook(lambda module, args: ran.append(module))
    for model in (plain, saving):
        torch.manual_seed(3)
        model(images).square().sum().backward()
    assert len(ran) == 2, "the block runs once more in the backward pass"
    for (name, parameter), twin in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad, rtol=0, atol=0, msg=name)
    for (name, buffer), twin in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(buffer, twin), name
    momenta = {module.momentum for module in saving.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta <= {0.1}
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("name", list_models())
def test_group_matcher_orders_every_parameter_once_by_depth(name: str, coarse: bool) -> None:
    model = small(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    assert sorted(name for names in groups.values() for name in names) == sorted(
        name for name, _ in model.named_parameters()
    )
    layer = {name: number for number, names in groups.items() for name in names}
    stem = {layer[name] for name in layer if name.startswith(("patch_embed", "cls_token", "pos_embed"))}
    assert stem == {0}
    for i in range(DEPTH):
        assert {layer[name] for name in layer if name.startswith(f"blocks.{i}.")} == {1 + i}
    assert layer["head.weight"] == 1 + DEPTH
    behind = {layer[name] for name in layer if name.startswith(("norm.", "lca."))}
    assert behind == {1 + DEPTH} if coarse else {DEPTH}


@pytest.mark.parametrize("name", list_models())
def test_weight_decay_spares_what_the_release_spares(name: str) -> None:
    model = small(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(names)
    for parameter_name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or parameter_name in ("cls_token", "pos_embed")
        assert decay[parameter_name] == (0.0 if spared else 0.05), parameter_name
    assert ("lca.pos_embed" in decay) == name.startswith("ceit")


def test_layer_decay_grows_towards_the_head(tiny: Callable[..., CeiT]) -> None:
    model = tiny()
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scale) == len(names)
    wanted = {"pos_embed": 1 / 16, "blocks.0.norm1.bias": 1 / 8, "blocks.2.norm1.bias": 1 / 2, "lca.pos_embed": 1 / 2}
    assert {name: scale[name] for name in wanted} == wanted
    assert scale["head.weight"] == 1.0


def test_timms_optimizer_takes_the_model_and_learns(tiny: Callable[..., CeiT]) -> None:
    model, images, labels = tiny().train(), torch.randn(8, 3, 32, 48), torch.arange(8) % 5
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    losses: list[float] = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
