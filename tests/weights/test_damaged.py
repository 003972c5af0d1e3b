"""Damaged files: each is one clear sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ceit
from ceit.inference.exported import SUFFIXES
from ceit.model import CeiT


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file_is_one_sentence(
    kind: str, share: float, tmp_path: Path, make: Callable[..., CeiT], released: Callable[[CeiT], dict[str, Tensor]]
) -> None:
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


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".ONNX"])
def test_an_exported_file_is_not_called_damaged(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"whatever a runtime reads")
    with pytest.raises(
        ValueError, match=rf"model\{suffix} is an exported file, .*: name the checkpoint that it was made"
    ):
        ceit.load_checkpoint(path)
