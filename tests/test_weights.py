"""Weights on disk: round trips, every layout that is understood, and that no file can do harm, however it was made."""

import argparse
import errno
import json
import logging
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import Tensor

import ceit
from ceit.cli.convert import main as convert
from ceit.model import MODELS, CeiT, CeiTConfig, config_of, resize_pos_embed
from ceit.weights import read_description
from ceit.weights.checkpoint import adapt_input_channels
from ceit.weights.geometry import config_from_shapes, name_of

TINY: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
    "stem_channels": 8,
}
NANO = "ceit_nano_patch4_32"
NAMES = ["ant", "bee", "cat", "dog", "eel"]
PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop": 0.9, "interpolation": "bilinear"}


def make(config: CeiTConfig | None = None) -> CeiT:
    """A network in which no tensor is at its neutral value, in eval mode."""
    network = CeiT(config or CeiTConfig(**TINY))
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return network.eval()


def logits(network: CeiT) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return network(torch.randn(2, network.config.in_chans, *network.config.image_hw, generator=generator))


def released(network: CeiT) -> dict[str, Tensor]:
    """The network's state dict as the release would have written it."""
    leff = {"expand": 1, "depthwise": 2, "project": 3}
    state = {}
    for key, value in network.state_dict().items():
        for ours, number in leff.items():
            if f".mlp.{ours}" in key and key.startswith("blocks"):
                if key.endswith((".expand.weight", ".project.weight")):
                    value = value[:, :, None, None]
                key = key.replace(f".mlp.{ours}_norm", f".leff.bn{number}").replace(
                    f".mlp.{ours}", f".leff.conv{number}"
                )
        key = key.replace("patch_embed.proj", "i2t.proj").replace("patch_embed.norm", "i2t.backbone.bn")
        key = key.replace("patch_embed.conv", "i2t.backbone.conv").replace("lca.mlp", "lca.feedforward")
        state["pos_layer_embed" if key == "lca.pos_embed" else key] = value
    return state


@pytest.fixture
def saved(tmp_path: Path) -> tuple[CeiT, Path]:
    """A network and the checkpoint of it."""
    network, path = make(), tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, network, class_names=NAMES, preprocessing=PREPROCESSING, training={"top1_percent": 81.5})
    return network, path


# What is saved comes back


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"img_size": (32, 64), "in_chans": 1, "mlp_ratio": 1.7, "drop_path_rate": 0.1},
        {"stem": "patch", "feed_forward": "mlp", "lca": False},
        {"leff_norm": "none", "stem_norm": "none", "qkv_bias": False, "lca_pos_embed": False, "num_classes": 0},
        {"leff_class_token": "identity", "leff_last_activation": True, "leff_kernel_size": 5, "skip_dead": True},
    ],
)
def test_round_trip_is_exact(geometry: dict[str, Any], tmp_path: Path) -> None:
    network = make(CeiTConfig(**{**TINY, **geometry}))
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    loaded = ceit.load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == network.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded), logits(network))
    assert [key for key, _ in loaded.named_parameters()] == [key for key, _ in network.named_parameters()]


def test_a_run_directory_is_its_model(saved: tuple[CeiT, Path]) -> None:
    network, path = saved
    assert torch.equal(logits(ceit.load_checkpoint(path.parent)), logits(network))


def test_class_names_and_preprocessing_come_back_and_go_along(saved: tuple[CeiT, Path], tmp_path: Path) -> None:
    loaded = ceit.load_checkpoint(saved[1])
    assert (loaded.class_names, loaded.preprocessing) == (NAMES, PREPROCESSING)
    again = tmp_path / "again.safetensors"
    ceit.save_checkpoint(again, loaded)
    description = read_description(again)
    assert description is not None
    assert (description.class_names, description.preprocessing) == (NAMES, PREPROCESSING)


def test_side_file_says_what_the_format_promises(saved: tuple[CeiT, Path]) -> None:
    body = json.loads(saved[1].with_suffix(".json").read_text())
    assert body["format"] == "ceit"
    assert body["format_version"] == 1
    assert body["model"] is None
    assert CeiTConfig(**body["config"]) == saved[0].config
    assert body["class_names"] == NAMES
    assert body["preprocessing"] == PREPROCESSING
    assert body["training"] == {"top1_percent": 81.5}


def test_same_network_same_bytes(saved: tuple[CeiT, Path], tmp_path: Path) -> None:
    ceit.save_checkpoint(tmp_path / "b.safetensors", ceit.load_checkpoint(saved[1]), training={"top1_percent": 81.5})
    assert (tmp_path / "b.safetensors").read_bytes() == saved[1].read_bytes()


def test_tensors_alone_are_enough(saved: tuple[CeiT, Path]) -> None:
    saved[1].with_suffix(".json").unlink()
    loaded = ceit.load_checkpoint(saved[1])
    assert loaded.class_names == NAMES
    assert torch.equal(logits(loaded), logits(saved[0]))


def test_a_side_file_without_its_copy_in_the_tensors_is_enough(saved: tuple[CeiT, Path]) -> None:
    save_file(load_file(saved[1]), saved[1])
    assert ceit.load_checkpoint(saved[1]).class_names == NAMES


def test_an_edited_side_file_is_believed(saved: tuple[CeiT, Path]) -> None:
    side = saved[1].with_suffix(".json")
    side.write_text(side.read_text().replace('"cat"', '"猫"'), "utf-8")
    assert ceit.load_checkpoint(saved[1]).class_names == ["ant", "bee", "猫", "dog", "eel"]


def test_a_side_file_of_other_tensors_is_not_believed(saved: tuple[CeiT, Path]) -> None:
    """The state between the two replacements of a save, which a reader or a crash may hit."""
    side = saved[1].with_suffix(".json")
    before = side.read_bytes()
    ceit.save_checkpoint(saved[1], make(CeiTConfig(**{**TINY, "num_classes": 2})), class_names=["yes", "no"])
    side.write_bytes(before)
    assert ceit.load_checkpoint(saved[1]).class_names == ["yes", "no"]


def test_a_strangers_json_beside_a_strangers_tensors_is_ignored(tmp_path: Path) -> None:
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"architecture": "deit_tiny_patch16_224"}')
    assert ceit.load_checkpoint(tmp_path / "model.safetensors").config.num_heads == 3


def test_a_loaded_network_does_not_depend_on_its_file(saved: tuple[CeiT, Path]) -> None:
    loaded = ceit.load_checkpoint(saved[1])
    saved[1].write_bytes(b"\0" * saved[1].stat().st_size)
    assert torch.equal(logits(loaded), logits(saved[0]))


def test_loading_leaves_the_random_state_alone(saved: tuple[CeiT, Path]) -> None:
    before = torch.get_rng_state()
    ceit.load_checkpoint(saved[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_and_strange_strides_come_back_as_plain_float32(saved: tuple[CeiT, Path]) -> None:
    network = make().bfloat16().to(memory_format=torch.channels_last)
    ceit.save_checkpoint(saved[1], network)
    loaded = ceit.load_checkpoint(saved[1])
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded.head.get_parameter("weight"), network.head.get_parameter("weight").float())


def test_timm_loads_our_file(tmp_path: Path) -> None:
    network = make(config_of("ceit_pico_patch4_32"))
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    loaded = timm.create_model("ceit_pico_patch4_32", checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    assert isinstance(loaded, CeiT)
    assert torch.equal(logits(loaded), logits(network))


# Saving fails whole or not at all


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse files beyond a size, as it does when the disk is full."""
    import resource  # not on every system, as little as the limit is

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_cuts_short_leaves_the_old_files(
    saved: tuple[CeiT, Path], file_size_limit: Callable[[int], None]
) -> None:
    before = {path.name: path.read_bytes() for path in saved[1].parent.iterdir()}
    file_size_limit(10_000)
    with pytest.raises(
        OSError, match=r"cannot save, what stood there before is untouched: File too large: .*model.safetensors"
    ):
        ceit.save_checkpoint(saved[1], make())
    assert {path.name: path.read_bytes() for path in saved[1].parent.iterdir()} == before


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_while_saving_leaves_the_old_files(
    failing_call: int, saved: tuple[CeiT, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fsync(_descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in saved[1].parent.iterdir()}
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        OSError, match="cannot save, what stood there before is untouched: No space left on device"
    ) as caught:
        ceit.save_checkpoint(saved[1], make())
    assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in saved[1].parent.iterdir()} == before


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pth must end in .safetensors"):
        ceit.save_checkpoint(tmp_path / "model.pth", make())
    with pytest.raises(ValueError, match="2 class names do not match a head of 5 classes"):
        ceit.save_checkpoint(tmp_path / "model.safetensors", make(), class_names=["yes", "no"])
    pruned = make()
    pruned.blocks = pruned.blocks[:1]
    with pytest.raises(ValueError, match=r"the weights do not fit their network: missing: blocks\.1"):
        ceit.save_checkpoint(tmp_path / "model.safetensors", pruned)
    assert not list(tmp_path.iterdir())


# Nothing changes unless asked, and then it is said


def test_nothing_is_said_when_nothing_changes(saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture) -> None:
    loaded = ceit.load_checkpoint(saved[1], num_classes=5, in_chans=3, img_size=32)
    assert torch.equal(logits(loaded), logits(saved[0]))
    assert loaded.class_names == NAMES
    assert not caplog.records


def test_another_head_on_request(saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], num_classes=3)
    assert "a fresh head of 3 classes replaces the one of 5; train it before use" in caplog.text
    assert logits(loaded).shape == (2, 3)
    assert loaded.config.num_classes == 3
    assert loaded.class_names is None
    head = {"head.weight", "head.bias"}
    assert all(
        torch.equal(loaded.state_dict()[key], value) for key, value in saved[0].state_dict().items() if key not in head
    )


@pytest.mark.parametrize("img_size", [64, (48, 80)])
def test_another_image_size_on_request(
    img_size: int | tuple[int, int], saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], img_size=img_size)
    grid = CeiTConfig(**{**TINY, "img_size": img_size}).grid
    assert f"position embedding interpolated from 2 x 2 to {grid[0]} x {grid[1]} patches" in caplog.text
    assert torch.equal(loaded.pos_embed, resize_pos_embed(saved[0].pos_embed, (2, 2), grid))
    assert logits(loaded).shape == (2, 5)


@pytest.mark.parametrize("in_chans", [1, 2, 6, 7])
def test_other_channels_on_request_see_a_grey_image_as_before(
    in_chans: int, saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], in_chans=in_chans)
    assert f"first convolution adapted from 3 to {in_chans} channels" in caplog.text
    assert loaded.config.in_chans == in_chans
    assert loaded.preprocessing is None
    if in_chans in (1, 6):
        grey = torch.randn(1, 1, 32, 32)
        torch.testing.assert_close(loaded(grey.expand(-1, in_chans, -1, -1)), saved[0](grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("in_chans", [1, 2, 4, 5])
def test_channels_are_adapted_as_timm_does_it(in_chans: int) -> None:
    weight = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(adapt_input_channels(weight, in_chans), adapt_input_conv(in_chans, weight))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num_classes": -1}, r"num_classes -1 must be at least 0"),
        ({"in_chans": -1}, r"in_chans -1 must be at least 1"),
        ({"img_size": 225}, r"image size \(225, 225\) must be a multiple of 16 \(remainder 1, 1\)"),
        ({"num_head": 2}, r"unknown model field 'num_head'; did you mean 'num_heads'"),
    ],
)
def test_requests_out_of_range_are_refused(request_: dict[str, Any], message: str, saved: tuple[CeiT, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(saved[1], **request_)


# The release's files


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["trainer", "plain", "module"])
def test_a_released_file_computes_the_same(wrap: str, zipped: bool, tmp_path: Path) -> None:
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


def test_another_entry_of_a_trainers_file_on_request(tmp_path: Path) -> None:
    raw, averaged = make(config_of("ceit_pico_patch4_32")), make(config_of("ceit_pico_patch4_32"))
    torch.save({"model": released(raw), "model_ema": released(averaged), "epoch": 3}, tmp_path / "released.pth")
    assert torch.equal(logits(ceit.load_checkpoint(tmp_path / "released.pth", entry="model_ema")), logits(averaged))
    with pytest.raises(ValueError, match="has no entry 'ema'; it has 'model', 'model_ema'"):
        ceit.load_checkpoint(tmp_path / "released.pth", entry="ema")


def test_conversion_is_complete_idempotent_and_makes_nothing_up() -> None:
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


def test_a_plain_file_of_a_registered_model_needs_no_name(tmp_path: Path) -> None:
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


def test_what_shapes_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    network = make()
    torch.save(released(network), path)
    with pytest.raises(
        ValueError, match="heads cannot be told from weights of width 24; name their model, or pass num_heads"
    ):
        ceit.load_checkpoint(path)
    assert torch.equal(logits(ceit.load_checkpoint(path, num_heads=2)), logits(network))

    wide = make(CeiTConfig(**{**TINY, "img_size": (32, 48)}))
    torch.save(released(wide), path)
    with pytest.raises(ValueError, match=r"6 patches make no square grid; pass their image size as img_size"):
        ceit.load_checkpoint(path, num_heads=2)
    assert torch.equal(logits(ceit.load_checkpoint(path, num_heads=2, img_size=(32, 48))), logits(wide))
    with pytest.raises(ValueError, match="the weights have depth 2, not 3"):
        ceit.load_checkpoint(path, num_heads=2, depth=3, img_size=(32, 48))


# Foreign weights


def test_weights_of_another_model_are_refused_by_their_first_keys(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    message = r"these are not the weights of a CeiT: unexpected (bn1|conv1)\.\S+, \S+, \S+ and \d+ more$"
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
    with pytest.raises(ValueError, match="not the weights of a CeiT: unexpected pos_embedding, transformer"):
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
def test_incomplete_weights_are_refused_by_name(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {**make(config_of("ceit_pico_patch4_32")).state_dict(), **damage}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message) as refusal:
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(refusal.value)


# Damaged files


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file_is_one_sentence(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        ceit.save_checkpoint(path, make())
    else:
        torch.save({"model": released(make())}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is damaged or no.* .*; copy or download it again") as refusal:
        ceit.load_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\x80", b"PK\x03\x04" * 9, b"{}"]
)
def test_what_is_no_checkpoint_is_one_sentence(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = (tmp_path / "model").with_suffix(suffix)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged or no.* .*; copy or download it again"):
        ceit.load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 2},
            r"model.json: format version 2 is newer than 1, the newest that this ceit reads; upgrade it",
        ),
        ({"format_version": "1"}, r"model.json: format version '1' must be a whole number"),
        ({"config": {"embed_dim": 25}}, r"model.json: num_heads 3 must divide embed_dim 25"),
        ({"config": {"embed_dims": 24}}, r"model.json: the description of the network is damaged .*embed_dims"),
        (
            {"config": {"num_classes": 5}},
            r"model.safetensors: the weights do not fit their network: missing: blocks\.2",
        ),
        ({"class_names": ["ant"]}, r"model.json: 1 class names do not match a head of 5 classes"),
    ],
)
def test_a_side_file_that_makes_no_sense_is_refused(
    change: dict[str, Any], message: str, saved: tuple[CeiT, Path]
) -> None:
    side = saved[1].with_suffix(".json")
    side.write_text(json.dumps(json.loads(side.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(saved[1])


def test_a_truncated_side_file_is_one_sentence(saved: tuple[CeiT, Path]) -> None:
    side = saved[1].with_suffix(".json")
    side.write_text(side.read_text()[:100])
    with pytest.raises(ValueError, match=r"model\.json is damaged \(.*\); copy it again, or remove it"):
        ceit.load_checkpoint(saved[1])


def test_a_directory_without_a_model_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model\.safetensors: name a run directory"):
        ceit.load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        ceit.load_checkpoint(tmp_path / "nowhere.pth")


# Nothing in a file is executed


class Touch:
    """Unpickled without restriction it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


class Arguments(argparse.Namespace):
    """Not the class that is tolerated."""


def test_the_harmful_pickle_of_these_tests_does_harm(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "args", "in the namespace", "as a key", "as the state dict"])
def test_code_in_a_torch_file_is_refused_by_name_and_not_run(where: str, zipped: bool, tmp_path: Path) -> None:
    harm = Touch(tmp_path / "touched")
    content: Any = {
        "alone": harm,
        "args": {"model": released(make()), "args": harm},
        "in the namespace": {"model": released(make()), "args": argparse.Namespace(hook=harm)},
        "as a key": {"model": {harm: 1}},
        "as the state dict": {"model": harm},
    }[where]
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"is refused because loading it would call (posix|nt)\.system, and nothing"
    ) as refusal:
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_code_in_a_bare_pickle_is_refused_and_not_run(name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Touch(tmp_path / "touched"), protocol))
    message = r"would call (posix|nt)\.system" if name.endswith(".pth") else "damaged or no safetensors file"
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("os", "system"),
        ("argparse", "_os.system"),
        ("argparse", "Namespace.__init__"),
        ("argparse", "ArgumentParser"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.serialization", "add_safe_globals"),
        ("ceit.weights.reading", "_Namespace"),
        ("pathlib", "PosixPath"),
    ],
)
def test_every_other_global_is_refused(module: str, name: str, tmp_path: Path) -> None:
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"U\x04trueq\x01\x85R."
    (tmp_path / "model.pth").write_bytes(data)
    with pytest.raises(ValueError, match=rf"would call \S*{name}, and nothing in a file is executed"):
        ceit.load_checkpoint(tmp_path / "model.pth")


def test_a_subclass_of_namespace_is_refused(tmp_path: Path) -> None:
    torch.save({"model": released(make()), "args": Arguments(lr=1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"would call \S*Arguments"):
        ceit.load_checkpoint(tmp_path / "model.pth")


def test_a_namespace_cannot_be_given_methods_or_another_class(tmp_path: Path) -> None:
    """BUILD sets attributes, a class among them, and a second one would call a ``__setstate__`` that the first has set.

    On a stand-in that keeps nothing, neither happens.
    """
    namespace = b"cargparse\nNamespace\n)\x81"
    method = b"}U\x0c__setstate__ctorch._utils\n_rebuild_parameter\nsb"
    new_class = b"N}U\x09__class__ccollections\nCounter\ns\x86b"
    for state in (method + b"}b", new_class, method + new_class):
        pickled = b"\x80\x02" + namespace + state + b"."
        (tmp_path / "model.pth").write_bytes(pickled)
        with pytest.raises(ValueError, match=r"damaged or not what torch\.save writes"):
            ceit.load_checkpoint(tmp_path / "model.pth")
        in_zip = tmp_path / "zip.pth"
        _save_with_pickle(in_zip, b"\x80\x02}U\x04args" + namespace + state + b"s.")
        with pytest.raises(ValueError, match=r"holds no plain state dict: 'args' is a Namespace"):
            ceit.load_checkpoint(in_zip)
    assert argparse.Namespace(a=1) == argparse.Namespace(a=1)
    assert not hasattr(argparse.Namespace, "__setstate__")


def test_attributes_cannot_hide_the_methods_of_a_dictionary_or_tensor(tmp_path: Path) -> None:
    """Such as a torch state dict's ``_metadata``, but ``items``: a call of it would be a call of what the file says."""

    class Disguised:
        def __reduce__(self) -> tuple[Any, ...]:
            return OrderedDict, (), {"items": torch.Size}, None, iter(state.items())

    state: dict[str, Any] = make(config_of("ceit_pico_patch4_32")).state_dict()
    state["cls_token"].detach = torch.Size
    torch.save({"model": Disguised()}, tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert content.items is content["cls_token"].detach is torch.Size
    assert torch.equal(ceit.load_checkpoint(tmp_path / "model.pth").cls_token, state["cls_token"])


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_code_behind_a_protocol_that_is_too_new_is_named(protocol: int, tmp_path: Path) -> None:
    content = {"model": released(make()), "args": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "model.pth", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"would call (posix|nt)\.system"):
        ceit.load_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "touched").exists()


def test_namespace_is_not_tolerated_by_others_afterwards(tmp_path: Path) -> None:
    torch.save({"model": released(make()), "args": argparse.Namespace(lr=1)}, tmp_path / "model.pth")
    ceit.load_checkpoint(tmp_path / "model.pth", num_heads=2)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "model.pth", weights_only=True)


def _save_with_pickle(path: Path, data: bytes) -> None:
    """A zip file of ``torch.save``'s form whose pickle is ``data``."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_end_of_file()


def test_a_huge_header_does_not_take_memory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        ceit.load_checkpoint(tmp_path / "model.safetensors")


# Networks by name


@pytest.mark.parametrize("name", ["ceit_pico_patch4_32", "deit_pico_patch4_32"])
def test_create_model_is_timms(name: str) -> None:
    torch.manual_seed(3)
    ours = ceit.create_model(name, num_classes=3, img_size=(32, 48), in_chans=1, drop_path_rate=0.1)
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=3, img_size=(32, 48), in_chans=1, drop_path_rate=0.1)
    assert isinstance(theirs, CeiT)
    assert ours.config == theirs.config
    assert ours.training
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_create_model_takes_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = make(config_of(NANO, num_classes=7))
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    loaded = ceit.create_model(NANO, checkpoint=tmp_path / "model.safetensors")
    assert torch.equal(logits(loaded), logits(network))
    assert not caplog.records
    wider = ceit.create_model(
        NANO, checkpoint=tmp_path / "model.safetensors", img_size=(32, 64), num_classes=2, drop_path_rate=0.2
    )
    assert (wider.config.image_hw, wider.config.num_classes, wider.config.drop_path_rate) == ((32, 64), 2, 0.2)


def test_a_checkpoint_at_224_serves_the_name_at_384(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ceit.save_checkpoint(tmp_path / "model.safetensors", CeiT(config_of("ceit_tiny_patch16_224")))
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.create_model("ceit_tiny_patch16_384", checkpoint=tmp_path / "model.safetensors")
    assert loaded.config.grid == (24, 24)
    assert "interpolated from 14 x 14 to 24 x 24 patches" in caplog.text


@pytest.mark.parametrize("described", [True, False], ids=["ours", "pth"])
def test_a_checkpoint_of_another_geometry_is_refused_naming_both(described: bool, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if described else "model.pth")
    network = CeiT(config_of("ceit_pico_patch4_32"))
    if described:
        ceit.save_checkpoint(path, network)
    else:
        torch.save(network.state_dict(), path)
    holder = "ceit_pico_patch4_32" if described else "a network"
    dims = [config_of(name).embed_dim for name in ("ceit_pico_patch4_32", NANO)]
    message = (
        rf"the weights are of {holder} with .*embed_dim {dims[0]}.*, but {NANO} has .*embed_dim {dims[1]}.*; name the"
    )
    with pytest.raises(ValueError, match=message) as refusal:
        ceit.create_model(NANO, checkpoint=path)
    assert "\n" not in str(refusal.value)


def test_unknown_names_and_fields_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="unknown model 'ceit_tinny_patch16_224'; did you mean 'ceit_tiny_patch16_224'"
    ):
        ceit.create_model("ceit_tinny_patch16_224")
    with pytest.raises(ValueError, match="unknown model 'resnet50'"):
        ceit.create_model("resnet50")
    with pytest.raises(ValueError, match="unknown model field 'leff_kernel'; did you mean 'leff_kernel_size'"):
        ceit.create_model(NANO, leff_kernel=5)
    with pytest.raises(
        ValueError, match="no weights of ceit_tiny_patch16_224 come with the package; convert the released file"
    ):
        ceit.create_model("ceit_tiny_patch16_224", pretrained=True)


# ceit convert


def test_convert_says_what_it_recognised_and_writes_what_prediction_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = make(config_of("ceit_tiny_patch16_224"))
    torch.save({"model": released(network), "args": argparse.Namespace(lr=1)}, tmp_path / "released.pth")
    output = tmp_path / "out.safetensors"
    convert([str(tmp_path / "released.pth"), str(output)])
    printed = capsys.readouterr().out
    for word in (
        "the authors' release",
        "ceit_tiny_patch16_224",
        "6,356,904",
        "224 x 224 px, 3 channels, 1000 classes",
        str(output),
    ):
        assert word in printed
    body = json.loads(output.with_suffix(".json").read_text())
    assert body["model"] == "ceit_tiny_patch16_224"
    assert body["class_names"] is None
    assert body["preprocessing"]["crop"] == 0.875
    assert torch.equal(logits(ceit.load_checkpoint(output)), logits(network))
    with safe_open(output, framework="pt") as file:
        assert list(file.metadata()) == ["ceit"]


def test_convert_overwrites_only_when_told(tmp_path: Path) -> None:
    torch.save(released(make()), tmp_path / "released.pth")
    output = tmp_path / "out.safetensors"
    arguments = [str(tmp_path / "released.pth"), str(output), "--num-heads", "2"]
    output.with_suffix(".json").write_text("mine")
    with pytest.raises(ValueError, match=r"out\.json exists; choose another name or overwrite it with --force"):
        convert(arguments)
    assert output.with_suffix(".json").read_text() == "mine"
    assert not output.exists()
    convert([*arguments, "--force"])
    assert ceit.load_checkpoint(output).config.num_heads == 2


def test_convert_refuses_a_harmful_file_and_writes_nothing(tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "touched"), tmp_path / "released.pth")
    with pytest.raises(ValueError, match="refused because loading it would call"):
        convert([str(tmp_path / "released.pth"), str(tmp_path / "out.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["released.pth"]
