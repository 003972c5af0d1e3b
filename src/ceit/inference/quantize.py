"""Post-training quantization to int8: weights per channel, activations by what calibration images give.

Done by NNCF in a process of its own, because it replaces functions of torch when it is imported. Products with weights
become int8. In float stay LayerNorm, softmax, and what would lose time in int8: depth-wise convolutions, which are as
fast as memory in any precision, and attention's two products, which runtimes compute with the softmax between them in
one pass; where all else is float32 these gain too.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ceit.atomic import write_array
from ceit.inference.graphs import INPUT, openvino_core, shorten, silence_telemetry

if TYPE_CHECKING:
    import onnx
    import openvino

CALIBRATION_IMAGES = 300  # as many as are used when there are more
_BATCH = 4
_SMALL = 512  # values, whose halves would be outweighed by the text that describes them
_IMAGES, _BEFORE, _AFTER = "images.npy", "before", "after"


def quantized_openvino(model: "openvino.Model", calibration: Tensor, *, attention: bool = False) -> "openvino.Model":
    """The model in int8; ``calibration`` are images as the network sees them, ``(n, C, H, W)``.

    ``attention``: its products too, which pays where all else is computed in float32, and costs where it is in bf16.

    Raises: ValueError with NNCF's reason if it cannot be done.
    """
    import openvino

    with TemporaryDirectory(prefix="ceit-") as folder:
        openvino.save_model(model, Path(folder, f"{_BEFORE}.xml"), compress_to_fp16=False)
        _quantize_elsewhere(Path(folder), calibration, "openvino-attention" if attention else "openvino")
        graph, weights = (Path(folder, f"{_AFTER}{suffix}").read_bytes() for suffix in (".xml", ".bin"))
        quantized = openvino_core().read_model(graph, weights)
    shorten(quantized)
    _halve(quantized)
    return quantized


def quantized_onnx(model: "onnx.ModelProto", calibration: Tensor) -> "onnx.ModelProto":
    """As ``quantized_openvino``, of an ONNX model: int8 between QuantizeLinear and DequantizeLinear."""
    import onnx

    with TemporaryDirectory(prefix="ceit-") as folder:
        onnx.save_model(model, Path(folder, f"{_BEFORE}.onnx"))
        _quantize_elsewhere(Path(folder), calibration, "onnx")
        return onnx.load_model(Path(folder, f"{_AFTER}.onnx"))


def _quantize_elsewhere(folder: Path, calibration: Tensor, kind: str) -> None:
    """Run this file as a program over the model in ``folder``."""
    write_array(folder / _IMAGES, calibration[:CALIBRATION_IMAGES].float().cpu().numpy())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "ceit.inference.quantize", str(folder), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        if reason.startswith("ModuleNotFoundError: No module named 'nncf'"):
            raise ModuleNotFoundError("NNCF is not installed", name="nncf")
        raise ValueError(f"the network could not be quantised: {reason}")


def _main(folder: Path, kind: str) -> None:
    """Quantise the model that lies in ``folder`` and leave the result beside it."""
    silence_telemetry()
    import nncf

    def quantize(model: Any, ignored: list[str], batch_size: int) -> Any:
        batches = _batches(np.load(folder / _IMAGES), batch_size)
        without = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,  # LayerNorm and softmax stay in float
            ignored_scope=nncf.IgnoredScope(names=ignored),
            # Smoothing would put a product before every layer; it costs time and was of no use to networks this small.
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=without),
        )

    if kind.startswith("openvino"):
        import openvino
        from openvino.passes import ConstantFolding, Manager

        model = openvino_core().read_model(folder / f"{_BEFORE}.xml")
        folding = Manager()
        folding.register_pass(ConstantFolding())  # a weight that is computed would not be seen as one
        folding.run_passes(model)
        quantized = quantize(model, _float_in_openvino(model, attention=kind.endswith("attention")), _BATCH)
        openvino.save_model(quantized, folder / f"{_AFTER}.xml", compress_to_fp16=False)
    else:
        import onnx

        model = onnx.load_model(folder / f"{_BEFORE}.onnx")
        batch_size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or _BATCH
        onnx.save_model(quantize(model, _float_in_onnx(model), batch_size), folder / f"{_AFTER}.onnx")


def _halve(model: "openvino.Model") -> None:
    """Store in float16 what int8 has left in float, as far as it is large; it is computed with in float32 as ever."""
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.data.dtype == np.float32 and node.data.size > _SMALL:
            halved = opset13.convert(opset13.constant(node.data.astype(np.float16)), np.float32)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(halved.output(0))


def _float_in_openvino(model: Any, *, attention: bool) -> list[str]:
    """Names of the layers that stay in float; with ``attention`` its products do not."""
    nodes = model.get_ordered_ops()
    depthwise = [node for node in nodes if node.get_type_name() == "GroupConvolution"]
    products = [
        node
        for node in nodes
        if node.get_type_name() == "MatMul"
        and not any(source.get_node().get_type_name() == "Constant" for source in node.input_values())
    ]
    return [node.get_friendly_name() for node in (depthwise if attention else (*depthwise, *products))]


def _float_in_onnx(model: "onnx.ModelProto") -> list[str]:
    """Names of the layers that stay in float."""
    weights = {tensor.name for tensor in model.graph.initializer}
    depthwise = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    ]
    products = [node for node in model.graph.node if node.op_type == "MatMul" and not weights & set(node.input)]
    return [node.name for node in (*depthwise, *products)]


def _batches(images: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    """All images, some of them twice where the last batch would not be full."""
    whole = np.resize(images, (-(-len(images) // size) * size, *images.shape[1:]))
    return [{INPUT: whole[start : start + size]} for start in range(0, len(whole), size)]


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
