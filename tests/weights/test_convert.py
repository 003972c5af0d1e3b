"""``ceit convert``: says what it recognised, writes what prediction needs, overwrites and executes nothing."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import ceit
from ceit.cli.convert import main as convert
from ceit.model import CeiT, config_of


def test_convert_says_what_it_recognised_and_writes_what_prediction_needs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[..., CeiT],
    logits: Callable[[CeiT], Tensor],
    released: Callable[[CeiT], dict[str, Tensor]],
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


def test_convert_overwrites_only_when_told(
    tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
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
