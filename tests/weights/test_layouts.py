"""Other layouts: the release's and timm's files compute the same here; foreign weights are refused by their keys."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import ceit
import ceit_cli
from ceit.model import MODELS, CeiT, CeiTConfig, config_of
from ceit.weights.geometry import config_from_shapes, name_of


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["trainer", "plain", "module"])
def test_a_released_file_computes_the_same(
    wrap: str,
    zipped: bool,
    tmp_path: Path,
    make: Callable[..., CeiT],
    logits: Callable[[CeiT], Tensor],
    released: Callable[[CeiT], dict[str, Tensor]],
) -> None:
    network = make(CeiTConfig(embed_dim=192, depth=2, num_heads=3, img_size=64, num_classes=4))
    state: Any = released(network)
    if wrap == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    if wrap == "trainer":
        arguments = argparse.Namespace(model="ceit_tiny_patch16_224", lr=5e-4, dist=argparse.Namespace(rank=0))
        optimizer = torch.optim.AdamW(network.parameters()).state_dict()
        state = {
            "model": state,
            "optimizer": optimizer,
            "epoch": 299,
            "model_ema": {},
            "scaler": {"scale": 1.0},
            "args": arguments,
        }
    torch.save(state, tmp_path / "released.pth", _use_new_zipfile_serialization=zipped)
    loaded = ceit.load_checkpoint(tmp_path / "released.pth")
    assert loaded.config == network.config
    assert torch.equal(logits(loaded), logits(network))
    assert loaded.preprocessing == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop": 0.875,
        "interpolation": "bicubic",
    }


def test_another_entry_of_a_trainers_file_on_request(
    tmp_path: Path,
    make: Callable[..., CeiT],
    logits: Callable[[CeiT], Tensor],
    released: Callable[[CeiT], dict[str, Tensor]],
) -> None:
    raw, averaged = make(config_of("ceit_pico_patch4_32")), make(config_of("ceit_pico_patch4_32"))
    torch.save({"model": released(raw), "model_ema": released(averaged), "epoch": 3}, tmp_path / "released.pth")
    assert torch.equal(logits(ceit.load_checkpoint(tmp_path / "released.pth", entry="model_ema")), logits(averaged))
    with pytest.raises(ValueError, match="has no entry 'ema'; it has 'model', 'model_ema'"):
        ceit.load_checkpoint(tmp_path / "released.pth", entry="ema")


@pytest.mark.parametrize("wrapper", ["lightning", "average", "compiled block", "number of numpy"])
def test_what_training_loops_add_to_the_names_is_taken_off(
    wrapper: str, tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
    network = make(config_of("ceit_pico_patch4_32"))
    content: dict[str, Any] = dict(network.state_dict())
    if wrapper == "lightning":
        content = {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in content.items()}}
    elif wrapper == "average":
        content = AveragedModel(network).state_dict()
    elif wrapper == "compiled block":
        content = {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in content.items()}
    else:
        content = {"net": content, "best_acc": np.float64(93.5), "epoch": np.int64(3)}
    torch.save(content, tmp_path / "trained.pth")
    assert torch.equal(logits(ceit.load_checkpoint(tmp_path / "trained.pth")), logits(network))


def test_of_several_entries_with_weights_the_one_that_is_taken_is_named(
    tmp_path: Path, make: Callable[..., CeiT], caplog: pytest.LogCaptureFixture
) -> None:
    raw, averaged = (dict(make(config_of("ceit_pico_patch4_32")).state_dict()) for _ in range(2))
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "both.pth")
    ceit.load_checkpoint(tmp_path / "both.pth")
    assert "took its entry 'model'; it also holds 'model_ema' (ceit convert PATH OUT.safetensors --entry" in caplog.text
    torch.save({"net": raw, "net_ema": averaged}, tmp_path / "both.pth")
    with pytest.raises(
        ValueError, match=r"entries 'net', 'net_ema': name one \(ceit convert .* --entry NAME, in Python"
    ):
        ceit.load_checkpoint(tmp_path / "both.pth")


def test_conversion_is_complete_idempotent_and_makes_nothing_up(
    make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
    network = make()
    state = released(network)
    converted = ceit.convert_released_state_dict(state)
    assert converted.keys() == network.state_dict().keys()
    assert all(torch.equal(converted[key], value) for key, value in network.state_dict().items())
    assert ceit.convert_released_state_dict(converted).keys() == converted.keys()
    del state["norm.bias"]
    assert "norm.bias" not in ceit.convert_released_state_dict(state)


@pytest.mark.parametrize("name", MODELS)
def test_geometry_of_every_registered_model_is_told_by_its_tensors(name: str) -> None:
    """So no two of them may share what identifies them: the stem, the width and the patch side."""
    with torch.device("meta"):
        network = CeiT(config_of(name))
    told = config_from_shapes(network.state_dict())
    assert (replace(told, img_size=told.image_hw), name_of(told)) == (
        replace(network.config, img_size=told.image_hw),
        name,
    )
    assert told.image_hw == network.config.image_hw


def test_a_plain_file_of_a_registered_model_needs_no_name(
    tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
    network = make(config_of("ceit_pico_patch4_32"))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    assert torch.equal(logits(ceit.load_checkpoint(tmp_path / "model.pth")), logits(network))


def test_timms_deit_file_gives_timms_logits(tmp_path: Path) -> None:
    deit = timm.create_model("deit_tiny_patch16_224", num_classes=5).eval()
    torch.save({"state_dict": deit.state_dict(), "epoch": 3}, tmp_path / "deit.pth.tar")
    loaded = ceit.load_checkpoint(tmp_path / "deit.pth.tar")
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(loaded(images), deit(images), rtol=0, atol=1e-5)
    assert loaded.preprocessing is None


def test_what_shapes_do_not_tell_is_asked_for(
    tmp_path: Path,
    make: Callable[..., CeiT],
    logits: Callable[[CeiT], Tensor],
    released: Callable[[CeiT], dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.pth"
    network = make()
    torch.save(released(network), path)
    with pytest.raises(
        ValueError, match=r"heads cannot be told from weights of width 24; name their model .* or pass num_heads"
    ):
        ceit.load_checkpoint(path)
    assert torch.equal(logits(ceit.load_checkpoint(path, num_heads=2)), logits(network))

    wide = make(img_size=(32, 48))
    torch.save(released(wide), path)
    with pytest.raises(ValueError, match=r"6 patches make no square grid: pass the height and width that they were"):
        ceit.load_checkpoint(path, num_heads=2)
    assert torch.equal(logits(ceit.load_checkpoint(path, num_heads=2, img_size=(32, 48))), logits(wide))
    with pytest.raises(ValueError, match="the weights have depth 2, not 3"):
        ceit.load_checkpoint(path, num_heads=2, depth=3, img_size=(32, 48))
    with pytest.raises(ValueError, match="img_size 64 does not give 6 patches, which make no square grid: pass the"):
        ceit.load_checkpoint(path, num_heads=2, img_size=64)
    geometry = ["--num-heads", "2", "--geometry", "img_size=(32, 48)"]
    assert ceit_cli.main(["convert", str(path), str(tmp_path / "out.safetensors"), *geometry]) == 1
    assert capsys.readouterr().err.endswith("img_size '(32, 48)' must be a side in pixels or two, [height, width]\n")
    geometry[-1] = "img_size=[32, 48]"
    assert ceit_cli.main(["convert", str(path), str(tmp_path / "out.safetensors"), *geometry]) == 0


def test_an_oblong_size_of_as_many_patches_is_that_of_plain_weights_and_a_change_of_released_ones(
    tmp_path: Path,
    make: Callable[..., CeiT],
    logits: Callable[[CeiT], Tensor],
    released: Callable[[CeiT], dict[str, Tensor]],
) -> None:
    path, oblong = tmp_path / "model.pth", make(img_size=(16, 64))
    torch.save(oblong.state_dict(), path)
    loaded = ceit.load_checkpoint(path, num_heads=2, img_size=(16, 64))
    assert torch.equal(loaded.pos_embed, oblong.pos_embed)
    assert torch.equal(logits(loaded), logits(oblong))

    square = make(img_size=32)
    torch.save(released(square), path)
    changed = ceit.load_checkpoint(path, num_heads=2, img_size=(16, 64))
    square.set_input_size((16, 64))
    assert torch.equal(changed.pos_embed, square.pos_embed)


def test_what_a_file_says_of_itself_is_not_contradicted(tmp_path: Path, make: Callable[..., CeiT]) -> None:
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, make())
    with pytest.raises(ValueError, match=r"the file says num_heads 2, not 3: leave num_heads out"):
        ceit.load_checkpoint(path, num_heads=3)
    assert ceit.load_checkpoint(path, num_heads=2, drop_path_rate=0.1).config.drop_path_rate == 0.1


def test_weights_of_another_model_are_refused_by_their_first_keys(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    message = r"these are not the weights of a CeiT: unexpected (bn1|conv1)\.\S+, \S+, \S+, \S+ and \d+ more$"
    with pytest.raises(ValueError, match=message):
        ceit.convert_released_state_dict(state)
    save_file(state, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=rf"resnet\.safetensors: {message}"):
        ceit.load_checkpoint(tmp_path / "resnet.safetensors")


def test_the_rishikksh20_port_is_refused_with_the_reason(tmp_path: Path) -> None:
    keys = {
        "pos_embedding": (1, 197, 192),
        "cls_token": (1, 1, 192),
        "conv.0.weight": (32, 3, 7, 7),
        "to_patch_embedding.1.weight": (192, 512),
        "transformer.layers.0.0.fn.norm.weight": (192,),
        "transformer.layers.0.0.fn.fn.to_qkv.weight": (576, 192),
        "transformer.layers.0.1.fn.fn.up_proj.0.weight": (768, 192),
        "transformer.layers.0.1.fn.fn.depth_conv.0.weight": (768, 1, 3, 3),
        "mlp_head.1.weight": (10, 192),
    }
    torch.save({f"module.{key}": torch.zeros(shape) for key, shape in keys.items()}, tmp_path / "port.pth")
    with pytest.raises(ValueError, match=r"rishikksh20/CeiT-pytorch, which computes another network") as refusal:
        ceit.load_checkpoint(tmp_path / "port.pth")
    for reason in ("class token bypasses LeFF", "LCA is incomplete", "32 channels"):
        assert reason in str(refusal.value)


def test_a_lucidrains_vit_is_not_taken_for_that_port() -> None:
    state = {"pos_embedding": torch.zeros(1, 5, 8), "transformer.layers.0.1.net.1.weight": torch.zeros(8, 8)}
    with pytest.raises(ValueError, match="not the weights of a CeiT: unexpected pos_embedding and transformer"):
        ceit.convert_released_state_dict(state)


def test_two_tensors_for_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two tensors are for patch_embed\.proj\.bias"):
        ceit.convert_released_state_dict({"i2t.proj.bias": torch.zeros(2), "patch_embed.proj.bias": torch.zeros(2)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"norm.bias": None}, r"the weights do not fit their network: missing: norm\.bias$"),
        ({"head.bias": torch.zeros(9)}, r"of another shape: head\.bias \(9,\) instead of \(10,\)$"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(9)}, r"unexpected: blocks\.0\.attn\.q_norm\.weight$"),
        ({"pos_embed": None}, r"not the whole weights of a CeiT: pos_embed is missing$"),
        ({"blocks.7.norm1.bias": torch.zeros(64)}, r"of 8 blocks only 6 are there$"),
        ({"pos_embed": torch.zeros(65, 64)}, r"pos_embed has shape \(65, 64\) where 3 dimensions were expected$"),
        ({"head.weight": torch.zeros(10, 64).to_sparse()}, r"'head.weight' is a tensor of another kind$"),
        ({"head.weight": torch.empty(10, 64, device="meta")}, r"'head.weight' is a tensor of another kind$"),
        ({"head.weight": [1.0, 2.0]}, r"'head.weight' is a list$"),
    ],
)
def test_incomplete_weights_are_refused_by_name(
    damage: dict[str, Any], message: str, tmp_path: Path, make: Callable[..., CeiT]
) -> None:
    state = {**make(config_of("ceit_pico_patch4_32")).state_dict(), **damage}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message) as refusal:
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(refusal.value)


def test_a_plain_file_without_lca_is_not_guessed_at(
    tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of the patches or the class token: the recipes from scratch have the one, the release has the other."""
    network = make(config_of("ceit_pico_patch4_32", lca=False, global_pool="avg"))
    path, output = tmp_path / "plain.pth", tmp_path / "whole.safetensors"
    torch.save(network.state_dict(), path)
    for asked in ({}, {"model_name": "ceit_pico_patch4_32", "lca": False}):
        with pytest.raises(
            ValueError, match=r"weights without LCA do not tell what is classified: .* pass global_pool"
        ):
            ceit.load_checkpoint(path, **asked)
    assert torch.equal(logits(ceit.load_checkpoint(path, global_pool="avg")), logits(network))
    assert ceit_cli.main(["convert", str(path), str(output)]) == 1
    assert "--geometry global_pool=avg" in capsys.readouterr().err
    assert ceit_cli.main(["convert", str(path), str(output), "--geometry", "global_pool=avg"]) == 0
    assert torch.equal(logits(ceit.load_checkpoint(output)), logits(network))


def test_what_a_plain_file_is_taken_for_is_said(
    tmp_path: Path, make: Callable[..., CeiT], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(make(config_of("ceit_pico_patch4_32")).state_dict(), tmp_path / "plain.pth")
    ceit.load_checkpoint(tmp_path / "plain.pth", leff_class_token="identity")
    assert "plain.pth: the tensors do not tell everything; assumed: num_heads 2, stem_stride 1, " in caplog.text
    assert "global_pool token" in caplog.text
    assert "leff_class_token" not in caplog.text
