"""Networks by name: the same as timm's, and only checkpoints of the same geometry."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import ceit
from ceit.model import CeiT, config_of

NANO = "ceit_nano_patch4_32"


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


def test_create_model_takes_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
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
    held, wanted = (rf".*embed_dim {dim}.*" for dim in dims)
    message = rf"the weights are of {holder} with {held}, but {NANO} has {wanted}; give that geometry"
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


@pytest.mark.parametrize("create", [ceit.create_model, timm.create_model])
def test_weights_that_ship_answer_as_from_their_file(create: Callable[..., CeiT]) -> None:
    name = "ceit_pico_patch4_32.cifar10"
    of_file, made = ceit.load_checkpoint(name), create(name, pretrained=True)
    assert (made.temperature, made.familiarity) == (of_file.temperature, of_file.familiarity)
    assert made.temperature is not None
    assert made.familiarity is not None
    larger, other = create(name, pretrained=True, img_size=64), create(name, pretrained=True, num_classes=3)
    assert (larger.temperature, larger.familiarity) == (of_file.temperature, None)
    assert (other.temperature, other.familiarity) == (None, None)


def test_what_was_known_of_a_head_and_a_size_goes_with_them(tmp_path: Path) -> None:
    network = ceit.load_checkpoint("ceit_pico_patch4_32.cifar10")
    network.set_input_size(32)
    assert network.familiarity is not None
    network.set_input_size(64)
    assert (network.familiarity, network.temperature is None) == (None, False)
    network.reset_classifier(10)
    assert (network.class_names, network.temperature) == (None, None)
    network.reset_classifier(0)
    ceit.save_checkpoint(tmp_path / "features.safetensors", network)
    assert ceit.load_checkpoint(tmp_path / "features.safetensors").num_classes == 0


def test_timm_takes_a_file_of_ones_own(
    tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
    for name in ("ceit_pico_patch4_32", "ceit_micro_patch4_32"):  # with weights that ship, and without
        network = make(config_of(name))
        ceit.save_checkpoint(tmp_path / f"{name}.safetensors", network)
        overlay = {"file": str(tmp_path / f"{name}.safetensors")}
        loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert isinstance(loaded, CeiT)
        assert torch.equal(logits(loaded.eval()), logits(network))


@pytest.mark.parametrize("create", [ceit.create_model, timm.create_model])
def test_weights_that_ship_are_of_their_own_geometry(create: Callable[..., CeiT]) -> None:
    name = "ceit_pico_patch4_32.cifar10"
    told = ceit.load_checkpoint(name).config
    refused = rf"the weights {name} are of num_heads {told.num_heads}, not 4: leave num_heads out"
    with pytest.raises(ValueError, match=refused):
        create(name, pretrained=True, num_heads=4)
    with pytest.raises(ValueError, match="of global_pool avg, not 'token'"):
        create(name, pretrained=True, global_pool="token")
    assert create(name, pretrained=True, num_heads=told.num_heads, drop_path_rate=0.1).config.drop_path_rate == 0.1
    assert create(name, global_pool="token").config.global_pool == "token", "without weights it is free"


def test_a_file_that_is_not_here_is_no_name_of_weights_that_ship() -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint ceit_nano_patch4_32\.pth is not here"):
        ceit.load_checkpoint("ceit_nano_patch4_32.pth")
