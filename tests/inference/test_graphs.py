"""Graphs compute what the network computes: any batch, oblong grids, and any size where that is asked for."""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import ceit
from ceit.inference.folding import fuse
from ceit.inference.graphs import exported_program, onnx_model, openvino_core, openvino_model
from ceit.inference.runtimes import OnnxRuntime, OpenVino
from ceit.model import CeiT

VARIANTS: list[dict[str, Any]] = [
    {"stem": "patch", "feed_forward": "mlp", "lca": False, "in_chans": 3},
    {"leff_norm": "none", "stem_norm": "none", "leff_class_token": "identity", "leff_last_activation": True},
    {"global_pool": "avg", "lca": False},
    {"global_pool": "sum", "leff_class_token": "identity"},
    {"stem_pool": False, "lca_pos_embed": False, "qkv_bias": False, "depth": 1},
]
OTHER_SIZES = [(24, 16), (8, 8), (40, 24), (16, 48), (8, 32)]


def agree(network: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor) -> None:
    """The same logits up to what another order of summation makes."""
    with torch.no_grad():
        wanted = model(images)
    got = network(images)
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def graphs_agree(model: CeiT) -> None:
    shape = model.config.in_chans, *model.config.image_hw
    graph = onnx_model(fuse(model), shape)
    onnx.checker.check_model(graph, full_check=True)
    for network in OnnxRuntime(graph, threads=1), OpenVino(openvino_model(fuse(model), shape), threads=1):
        for batch in (1, 2, 5):
            agree(network, model, torch.randn(batch, *shape))


def test_onnx_and_openvino_compute_the_same_for_any_batch(make: Callable[..., CeiT]) -> None:
    graphs_agree(make())


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_variant_of_the_geometry_is_a_graph(make: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    graphs_agree(make(**changes))


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    ("name", "img_size"),
    [
        ("ceit_tiny_patch16_224", 224),
        ("ceit_tiny_patch16_224", (320, 256)),
        ("ceit_small_patch16_224", 224),
        ("ceit_small_patch16_224", (320, 256)),
        ("ceit_pico_patch4_32", 32),
        ("ceit_nano_patch4_32", (40, 28)),
        ("ceit_micro_patch4_32", 32),
        ("deit_nano_patch4_32", 32),
    ],
)
def test_registered_networks_are_graphs(name: str, img_size: int | tuple[int, int], in_chans: int) -> None:
    model = ceit.create_model(name, img_size=img_size, in_chans=in_chans).eval()
    graphs_agree(model)


def test_onnx_is_one_valid_model_with_whole_operators_and_nothing_of_this_machine(make: Callable[..., CeiT]) -> None:
    graph = onnx_model(fuse(make()), (1, 24, 16), batch_size=3)
    onnx.checker.check_model(graph, full_check=True)
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds["Gelu"] == 3  # two in the first block's LeFF, one in LCA; none in the dead last LeFF
    assert kinds["LayerNormalization"] > 0
    assert "BatchNormalization" not in kinds
    assert "Erf" not in kinds
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer)
    content = graph.SerializeToString()
    assert ceit.__path__[0].encode() not in content
    assert b"stack_trace" not in content
    agree(OnnxRuntime(content, threads=1), make(), torch.randn(3, 1, 24, 16))


def test_axes_of_onnx_have_names_and_its_version_is_that_of_its_operators(make: Callable[..., CeiT]) -> None:
    graph = onnx_model(fuse(make()), (1, 24, 16), any_size=True)
    onnx.checker.check_model(graph, full_check=True)
    assert (graph.opset_import[0].version, graph.ir_version) == (20, 9)
    values = graph.graph.input[0], graph.graph.output[0]
    dims = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
    assert dims == [["batch", 1, "height", "width"], ["batch", 4]]
    options = onnxruntime.SessionOptions()
    for name, length in {"batch": 2, "height": 40, "width": 16}.items():
        options.add_free_dimension_override_by_name(name, length)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 1, 40, 16]
    logits = session.run(None, {"images": torch.randn(2, 1, 40, 16).numpy()})[0]
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("runtime", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_any_size_is_what_set_input_size_gives(runtime: str, make: Callable[..., CeiT]) -> None:
    model = make()
    if runtime == "onnx":
        network = OnnxRuntime(onnx_model(fuse(model), (1, 24, 16), any_size=True), threads=1)
    else:
        network = OpenVino(openvino_model(fuse(model), (1, 24, 16), any_size=True), threads=1)
    for image_hw in OTHER_SIZES:
        resized = copy.deepcopy(model)
        resized.set_input_size(image_hw)
        agree(network, resized, torch.randn(2, 1, *image_hw))
    assert isinstance(network, OnnxRuntime) or len(network._compiled) == 1


def test_any_size_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a Flatten has one image size: only a CeiT can be exported for any$"):
        exported_program(nn.Flatten(), (1, 8, 8), any_size=True)


def test_a_network_of_another_kind_is_a_graph_too() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    agree(OnnxRuntime(onnx_model(network, (1, 8, 8)), threads=1), network, torch.randn(3, 1, 8, 8))


def test_openvino_reports_to_nobody() -> None:
    openvino_core()
    assert "openvino_telemetry" not in {name for name, module in sys.modules.items() if module is not None}
