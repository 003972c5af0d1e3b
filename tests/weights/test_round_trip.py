"""Round trip: what is saved comes back exactly, and a checkpoint says what its format promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ceit
from ceit.model import CeiT, CeiTConfig, config_of
from ceit.weights import read_description

NAMES = ["ant", "bee", "cat", "dog", "eel"]
PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop": 0.9, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"img_size": (32, 64), "in_chans": 1, "mlp_ratio": 1.7, "drop_path_rate": 0.1},
        {"stem": "patch", "feed_forward": "mlp", "lca": False},
        {"leff_norm": "none", "stem_norm": "none", "qkv_bias": False, "lca_pos_embed": False, "num_classes": 0},
        {"global_pool": "sum", "lca": False},
        {"global_pool": "avg", "lca": False},
        {"leff_class_token": "identity", "leff_last_activation": True, "leff_kernel_size": 5, "skip_dead": True},
    ],
)
def test_round_trip_is_exact(
    geometry: dict[str, Any], tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
    network = make(**geometry)
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    loaded = ceit.load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == network.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded), logits(network))
    assert [key for key, _ in loaded.named_parameters()] == [key for key, _ in network.named_parameters()]


def test_a_run_directory_is_its_model(saved: tuple[CeiT, Path], logits: Callable[[CeiT], Tensor]) -> None:
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


def test_tensors_alone_are_enough(saved: tuple[CeiT, Path], logits: Callable[[CeiT], Tensor]) -> None:
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


def test_a_side_file_of_other_tensors_is_not_believed(saved: tuple[CeiT, Path], make: Callable[..., CeiT]) -> None:
    """The state between the two replacements of a save, which a reader or a crash may hit."""
    side = saved[1].with_suffix(".json")
    before = side.read_bytes()
    ceit.save_checkpoint(saved[1], make(num_classes=2), class_names=["yes", "no"])
    side.write_bytes(before)
    assert ceit.load_checkpoint(saved[1]).class_names == ["yes", "no"]


def test_a_strangers_json_beside_a_strangers_tensors_is_ignored(tmp_path: Path) -> None:
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"architecture": "deit_tiny_patch16_224"}')
    assert ceit.load_checkpoint(tmp_path / "model.safetensors").config.num_heads == 3


def test_a_loaded_network_does_not_depend_on_its_file(
    saved: tuple[CeiT, Path], logits: Callable[[CeiT], Tensor]
) -> None:
    loaded = ceit.load_checkpoint(saved[1])
    saved[1].write_bytes(b"\0" * saved[1].stat().st_size)
    assert torch.equal(logits(loaded), logits(saved[0]))


def test_loading_leaves_the_random_state_alone(saved: tuple[CeiT, Path]) -> None:
    before = torch.get_rng_state()
    ceit.load_checkpoint(saved[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_and_strange_strides_come_back_as_plain_float32(
    saved: tuple[CeiT, Path], make: Callable[..., CeiT]
) -> None:
    network = make().bfloat16().to(memory_format=torch.channels_last)
    ceit.save_checkpoint(saved[1], network)
    loaded = ceit.load_checkpoint(saved[1])
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded.head.get_parameter("weight"), network.head.get_parameter("weight").float())


def test_timm_loads_our_file(tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]) -> None:
    network = make(config_of("ceit_pico_patch4_32"))
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    loaded = timm.create_model("ceit_pico_patch4_32", checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    assert isinstance(loaded, CeiT)
    assert torch.equal(logits(loaded), logits(network))


@pytest.mark.parametrize("name", ["model.safetensors.bak", "MODEL.SAFETENSORS", "model.bin"])
def test_a_file_of_ours_is_known_by_its_content(
    name: str, saved: tuple[CeiT, Path], tmp_path: Path, logits: Callable[[CeiT], Tensor]
) -> None:
    network, path = saved
    renamed = path.rename(tmp_path / name)
    loaded = ceit.load_checkpoint(renamed)
    assert (loaded.class_names, loaded.preprocessing, loaded.config) == (NAMES, PREPROCESSING, network.config)
    assert torch.equal(logits(loaded), logits(network))


def test_tensors_that_share_their_memory_in_a_file_do_not_in_the_network(
    tmp_path: Path, make: Callable[..., CeiT]
) -> None:
    network = make(lca=False, global_pool="avg")
    state = dict(network.state_dict())
    state["blocks.0.norm1.weight"] = state["blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "tied.pth")
    geometry = {"num_heads": 2, "global_pool": "avg"}
    loaded = ceit.load_checkpoint(tmp_path / "tied.pth", img_size=32, **geometry)
    first, second = (dict(loaded.named_parameters())[f"blocks.{i}.norm1.weight"] for i in range(2))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    ceit.save_checkpoint(tmp_path / "whole.safetensors", loaded)


def test_what_a_plain_deit_of_ours_is_taken_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(ceit.create_model("deit_pico_patch4_32").state_dict(), tmp_path / "deit.pth")
    ceit.load_checkpoint(tmp_path / "deit.pth")
    assert "assumed: num_heads 2" in caplog.text
    assert "global_pool token" in caplog.text
