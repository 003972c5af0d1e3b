"""Saving succeeds whole or leaves everything as it was."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import ceit
from ceit.model import CeiT


def test_a_write_that_the_system_cuts_short_leaves_the_old_files(
    saved: tuple[CeiT, Path], file_size_limit: Callable[[int], None], make: Callable[..., CeiT]
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
    failing_call: int, saved: tuple[CeiT, Path], monkeypatch: pytest.MonkeyPatch, make: Callable[..., CeiT]
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


def test_layers_may_share_their_weights(tmp_path: Path, make: Callable[..., CeiT]) -> None:
    model = make(depth=2)
    model.blocks[1].attn = model.blocks[0].attn
    ceit.save_checkpoint(tmp_path / "model.safetensors", model)
    again, images = ceit.load_checkpoint(tmp_path / "model.safetensors"), torch.randn(1, 3, *model.config.image_hw)
    torch.testing.assert_close(again(images), model.eval()(images))


def test_the_file_beside_the_weights_is_not_them(saved: tuple[CeiT, Path]) -> None:
    with pytest.raises(ValueError, match=r"\.json describes weights and holds none: name the file of the weights"):
        ceit.load_checkpoint(saved[1].with_suffix(".json"))


def test_what_was_measured_on_other_classes_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ceit.create_model("ceit_pico_patch4_32.cifar10", pretrained=True)
    path, names = tmp_path / "model.safetensors", list("abcdefghij")
    assert model.temperature
    assert model.familiarity
    ceit.save_checkpoint(path, model)
    assert ceit.load_checkpoint(path).temperature == model.temperature
    ceit.save_checkpoint(path, model, class_names=names)
    again = ceit.load_checkpoint(path)
    assert (again.class_names, again.temperature, again.familiarity) == (names, None, None)
    assert "measured on other classes, and are left out" in caplog.text


def test_the_network_in_a_wrapper_is_saved(
    tmp_path: Path, make: Callable[..., CeiT], logits: Callable[[CeiT], Tensor]
) -> None:
    network = make()
    compiled = cast("nn.Module", torch.compile(network))
    for wrapper in (AveragedModel(network), compiled, AveragedModel(compiled)):
        ceit.save_checkpoint(tmp_path / "model.safetensors", wrapper)
        assert torch.equal(logits(ceit.load_checkpoint(tmp_path / "model.safetensors")), logits(network))
    with pytest.raises(ValueError, match="a Linear is no CeiT, and no wrapper of one"):
        ceit.save_checkpoint(tmp_path / "other.safetensors", nn.Linear(2, 2))


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, make: Callable[..., CeiT]) -> None:
    with pytest.raises(ValueError, match=r"model.pth must end in .safetensors"):
        ceit.save_checkpoint(tmp_path / "model.pth", make())
    with pytest.raises(ValueError, match="2 class names do not match a head of 5 classes"):
        ceit.save_checkpoint(tmp_path / "model.safetensors", make(), class_names=["yes", "no"])
    pruned = make()
    pruned.blocks = pruned.blocks[:1]
    with pytest.raises(ValueError, match=r"the weights do not fit their network: missing: blocks\.1"):
        ceit.save_checkpoint(tmp_path / "model.safetensors", pruned)
    assert not list(tmp_path.iterdir())


def test_a_preprocessing_that_could_not_be_loaded_is_not_saved(tmp_path: Path, make: Callable[..., CeiT]) -> None:
    path, whole = tmp_path / "model.safetensors", {"crop": 1.0, "interpolation": "bicubic"}
    refused = {
        "the preprocessing lacks crop": {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bicubic"},
        "do not fit a network of 3 channels": {"mean": [0.5], "std": [0.2], **whole},
    }
    for sentence, preprocessing in refused.items():
        with pytest.raises(ValueError, match=sentence):
            ceit.save_checkpoint(path, make(), preprocessing=preprocessing)
    with pytest.raises(ValueError, match="training must hold what JSON can: Object of type ndarray"):
        ceit.save_checkpoint(path, make(), training={"rates": np.zeros(2)})
    assert not list(tmp_path.iterdir())
    of_numpy = {"mean": np.full(3, 0.5), "std": np.full(3, 0.25), **whole}
    ceit.save_checkpoint(path, make(), preprocessing=of_numpy)
    assert ceit.load_checkpoint(path).preprocessing == {"mean": [0.5] * 3, "std": [0.25] * 3, **whole}
    carries = make()
    carries.preprocessing = {"mean": (0.1,) * 3, "std": (0.2,) * 3, **whole}
    ceit.save_checkpoint(path, carries)
    assert ceit.load_checkpoint(path).preprocessing == {"mean": [0.1] * 3, "std": [0.2] * 3, **whole}


def test_a_preprocessing_of_other_channels_that_an_earlier_version_saved_costs_no_weights(
    saved: tuple[CeiT, Path], logits: Callable[[CeiT], torch.Tensor]
) -> None:
    network, path = saved
    grey = {"mean": [0.5], "std": [0.2], "crop": 1.0, "interpolation": "bicubic"}
    side = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps({**side, "preprocessing": grey}), encoding="utf-8")
    assert torch.equal(logits(ceit.load_checkpoint(path)), logits(network))
