"""An exported file computes what the network computes, says what it is, and is not written if it would not."""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import ceit
from ceit.inference import exporter as exporting
from ceit.inference.example_images import ExampleImages
from ceit.inference.exported import FORMATS, Format, is_exported, load_exported
from ceit.inference.exporter import Report, export
from ceit.inference.folding import fuse
from ceit.model import CeiT

SUFFIX_OF = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[..., CeiT], examples: ExampleImages
) -> dict[str, tuple[Path, Report]]:
    """The network in every format, with the report of each."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        format: (path, export(make(), path, format=format, check=examples, training={"seed": 3}))
        for format in FORMATS
        for path in [folder / f"network{SUFFIX_OF[format]}"]
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_computes_what_the_network_computes_and_says_what_it_is(
    format: Format, files: dict[str, tuple[Path, Report]], make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    path, report = files[format]
    model, network = make(), load_exported(path, threads=1)
    with torch.no_grad():
        wanted = model(examples.images)
    for batch in (1, 3, 24):
        torch.testing.assert_close(network(examples.images[:batch]), wanted[:batch], rtol=1e-4, atol=1e-4)
    assert network(examples.images[:0]).shape == (0, 4)
    for dtype in (torch.float64, torch.bfloat16, torch.uint8):
        images = (100 * examples.images[:2].abs()).to(dtype)
        assert network(images).equal(network(images.float()))
    assert is_exported(path)
    assert (network.image_hw, network.in_chans, network.num_classes) == ((24, 16), 1, 4)
    assert network.class_names == model.class_names
    assert network.preprocessing == model.preprocessing
    description = network.description
    assert description.network.config == model.config
    assert description.network.training == {"seed": 3}
    assert (description.format, description.precision, description.ceit) == (format, "float32", ceit.__version__)
    assert description.check == json.loads(json.dumps(asdict(report)))
    with pytest.raises(ValueError, match=r"images of shape \(2, 1, 24, 24\) do not fit: .* 1 channels and 24 x 16 pix"):
        network(torch.zeros(2, 1, 24, 24))
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 24, 16\) do not fit"):
        network(torch.zeros(2, 3, 24, 16))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("global_pool", ["avg", "sum"])
def test_pooled_networks_are_written_too(
    format: Format, global_pool: str, tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    path = tmp_path / f"pooled{SUFFIX_OF[format]}"
    model = make(global_pool=global_pool, lca=global_pool == "sum")
    export(model, path, format=format, check=examples)
    with torch.no_grad():
        wanted = model(examples.images)
    torch.testing.assert_close(load_exported(path, threads=1)(examples.images), wanted, rtol=1e-4, atol=1e-4)


def test_a_network_in_bf16_is_written_in_float32(
    tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    model = make().bfloat16()
    export(model, tmp_path / "a.pt2", format="torch", check=examples)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        wanted = model.float()(examples.images)
    torch.testing.assert_close(load_exported(tmp_path / "a.pt2")(examples.images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_the_report_says_what_was_measured(
    format: Format, files: dict[str, tuple[Path, Report]], make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    report = files[format][1]
    assert examples.labels is not None
    with torch.no_grad():
        top1_percent = 100 * (make()(examples.images).argmax(1) == examples.labels).float().mean().item()
    assert 0 <= report.max_error <= exporting.MAX_ERROR
    assert (report.images, report.images_from, report.agreement_percent) == (24, "test images", 100)
    assert report.float32_top1_percent == report.top1_percent == pytest.approx(top1_percent)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_of_this_machine_is_in_a_file(format: Format, files: dict[str, tuple[Path, Report]]) -> None:
    path = files[format][0]
    for file in path.parent.glob("network*"):
        content = file.read_bytes()
        assert ceit.__path__[0].encode() not in content
        assert torch.__path__[0].encode() not in content


def test_a_network_that_is_exported_wrongly_is_refused_and_nothing_is_written(
    tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: CeiT) -> CeiT:
        model = fuse(model)
        assert isinstance(model.head, nn.Linear)
        nn.init.zeros_(model.head.bias)
        return model

    monkeypatch.setattr(exporting, "fuse", broken)
    with pytest.raises(ValueError, match=r"^the export is refused and nothing was written: over 24 images \(test ima"):
        export(make(), tmp_path / "a.pt2", format="torch", check=examples)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "error", "agreement", "refused"),
    [
        ("float32", 0.9e-4, 90.0, False),
        ("float32", 1.1e-4, 100.0, True),
        ("float32", float("nan"), 100.0, True),
        ("int8", 0.3, 98.5, False),
        ("int8", 0.3, 98.4, True),
        ("int8", float("nan"), 100.0, True),
    ],
)
def test_limits_of_a_refusal(
    precision: str, error: float, agreement: float, refused: bool, files: dict[str, tuple[Path, Report]]
) -> None:
    report = dataclasses.replace(files["torch"][1], precision=precision, max_error=error, agreement_percent=agreement)
    assert (exporting.refusal(report) is not None) == refused


def test_a_file_is_replaced_only_if_asked(tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages) -> None:
    path = tmp_path / "a.pt2"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"a\.pt2 exists: choose another name, or replace it with --overwrite$"):
        export(make(), path, format="torch", check=examples)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "torch", "precision": "int8"}, "int8 goes with the formats onnx and openvino"),
        ({"format": "torch", "any_size": True}, "a dynamic size goes with the formats onnx and openvino"),
        ({"format": "onnx", "any_size": True, "precision": "int8"}, "a dynamic size goes with float32"),
        ({"format": "onnx"}, r"a\.pt2 must end in \.onnx for the format onnx"),
    ],
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    with pytest.raises(ValueError, match=sentence):
        export(make(), tmp_path / "a.pt2", check=examples, calibration=examples.images, **changes)


def clear(model: CeiT, images: Tensor) -> ExampleImages:
    """The images of which the network is sure."""
    with torch.no_grad():
        best, second = model(images).topk(2).values.T
    return ExampleImages(images[(best - second) > (best - second).median()], "clear images")


def test_int8_of_openvino(tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages) -> None:
    int8_is_small_and_agrees("openvino", tmp_path, make(embed_dim=64), examples)


@pytest.mark.slow
def test_int8_of_onnx(tmp_path: Path, make: Callable[..., CeiT], examples: ExampleImages) -> None:
    int8_is_small_and_agrees("onnx", tmp_path, make(embed_dim=64), examples)


def int8_is_small_and_agrees(format: Format, folder: Path, model: CeiT, examples: ExampleImages) -> None:
    path = folder / f"int8{SUFFIX_OF[format]}"
    report = export(
        model,
        path,
        format=format,
        precision="int8",
        check=clear(model, examples.images),
        calibration=examples.images,
    )
    assert report.max_error > exporting.MAX_ERROR  # it is quantised indeed
    weights = path.with_suffix(".bin") if format == "openvino" else path
    assert weights.stat().st_size < 2.5 * sum(value.numel() for value in model.parameters())
    assert load_exported(path).description.precision == "int8"
    if format == "onnx":
        written = onnx.load_model(path)
        assert written.ir_version == 9
        assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    if format == "openvino":
        load_exported(path, precision="bf16")(examples.images)
        floats = [int(size) for size in re.findall(r'element_type="f32"[^>]* size="(\d+)"', path.read_text())]
        assert 0 < max(floats) <= 4 * 512  # what is larger lies in float16
