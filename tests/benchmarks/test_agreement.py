"""What faster arithmetic costs: figures of networks that are known, and calibration on training images alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ceit
from benchmarks import agreement
from ceit.data.sources.choose import load_dataset
from ceit.weights import save_checkpoint

SEEN: list[Tensor] = []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny untrained network for the digits that come with the package."""
    digits = load_dataset("digits", img_size=(16, 16), in_chans=1)
    model = ceit.create_model("ceit_pico_patch4_32", img_size=16, in_chans=1, embed_dim=8, depth=1, num_heads=1)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, class_names=digits.class_names, preprocessing=digits.preprocessing)
    return path


def pretend(model: nn.Module, backend: str, precision: str, *, calibration: Tensor | None, **_: Any) -> Any:
    """Exact, but the int8 network answers class 0 whenever the exact one answers class 1."""
    if backend == "onnxruntime":
        raise RuntimeError("no\nluck")
    if calibration is not None:
        SEEN.append(calibration)

    def network(images: Tensor) -> Tensor:
        logits = model(images)
        if precision == "int8":
            logits[logits.argmax(1) == 1, 0] = 100.0
        return logits

    return network


def test_figures_are_those_of_the_networks(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "prepare", pretend)
    monkeypatch.setattr(agreement, "file_bytes", lambda _m, _b, precision, _c: 100 if precision == "int8" else 400)
    SEEN.clear()
    output = tmp_path / "agreement.json"
    words = ["--checkpoint", str(checkpoint), "--data", "digits", "--output", str(output), "--threads", "1"]
    words += ["--backends", "eager", "openvino", "onnxruntime", "--precisions", "float32", "int8"]
    monkeypatch.setattr(sys, "argv", ["agreement", *words, "--calibration-images", "7"])
    with pytest.raises(SystemExit, match="onnxruntime float32: RuntimeError: no luck"):
        agreement.main()
    result = json.loads(output.read_text())
    rows = {(row["backend"], row["precision"]): row for row in result["rows"]}
    exact = rows["eager", "float32"]
    assert (exact["agreement_percent"], exact["accuracy_loss_points"], exact["largest_logit_error"]) == (100, 0, 0)
    assert exact["top1_percent"] == result["top1_percent"]
    model = ceit.load_checkpoint(checkpoint)
    digits = load_dataset("digits", img_size=(16, 16), in_chans=1)
    loader = agreement.make_loader(digits.test, batch_size=50, img_size=(16, 16), preprocessing=digits.preprocessing)
    logits, labels = agreement.logits_of(model, loader)
    assert len(labels) == result["images"] == 360
    share = float((logits.argmax(1) == 1).float().mean())
    assert rows["openvino", "int8"]["agreement_percent"] == pytest.approx(100 * (1 - share), abs=1e-3)
    assert rows["openvino", "int8"]["file_percent_of_float32"] == 25
    (calibration,) = SEEN
    assert calibration.shape == (7, 1, 16, 16)


def test_calibration_images_are_training_images(checkpoint: Path) -> None:
    digits = load_dataset("digits", img_size=(16, 16), in_chans=1)
    model = ceit.load_checkpoint(checkpoint)
    images = agreement.calibration_batch(digits, model, digits.preprocessing, 5)
    loader = agreement.make_loader(
        digits.train, batch_size=len(digits.train), img_size=(16, 16), preprocessing=digits.preprocessing
    )
    every, _ = next(loader.epoch(0))
    assert all(bool((every == image).flatten(1).all(1).any()) for image in images)


def test_classes_must_be_as_many(tmp_path: Path) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", img_size=16, num_classes=3, embed_dim=8, depth=1, num_heads=1)
    save_checkpoint(tmp_path / "model.safetensors", model)
    with pytest.raises(ValueError, match="the model tells 3 classes apart, digits has 10"):
        agreement.compare(
            str(tmp_path / "model.safetensors"),
            "digits",
            [],
            calibration_images=1,
            batch_size=9,
            threads=1,
            say=lambda _: None,
        )


def test_the_sizes_of_files_are_those_of_the_weights(checkpoint: Path) -> None:
    model = ceit.load_checkpoint(checkpoint)
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    assert 4 * parameters <= agreement.file_bytes(model, "eager", "float32", torch.empty(0)) <= 4 * parameters + 20_000
