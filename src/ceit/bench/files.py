"""What an arm needs at run time, as files: weights for torch, the exported graph for a runtime.

Their sizes are compared, and start-up time and memory are those of a process that begins with them.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ceit.bench.arms import Arm, Shape, build
from ceit.bench.networks import network_of
from ceit.inference.backend import Network
from ceit.inference.folding import fuse
from ceit.model import CeiT


def save(
    model: nn.Module, backend: str, precision: str, shape: Shape, folder: Path, calibration: Tensor | None
) -> Path:
    """Write the model into an empty folder; the file to ``load``. Raises: as the exporters do."""
    if backend in ("plain", "eager", "compile"):
        from safetensors.torch import save_model

        path = folder / "model.safetensors"
        save_model(model, str(path))
        return path
    return _save_graph(model, backend, precision, shape, folder, calibration)


def _save_graph(
    model: nn.Module, backend: str, precision: str, shape: Shape, folder: Path, calibration: Tensor | None
) -> Path:
    from ceit.inference import graphs, quantize

    network = fuse(model) if isinstance(model, CeiT) else model.eval()
    int8 = "int8" in precision
    if int8 and calibration is None:
        raise ValueError(f"{precision} needs images to calibrate with")
    if backend == "onnxruntime":
        import onnx

        path = folder / "model.onnx"
        graph = graphs.onnx_model(network, shape)
        onnx.save(quantize.quantized_onnx(graph, calibration) if int8 and calibration is not None else graph, str(path))
        return path
    path = folder / "model.xml"
    graph = graphs.openvino_model(network, shape)
    if int8 and calibration is not None:
        graph = quantize.quantized_openvino(graph, calibration)
    graphs.save_openvino(graph, path)
    return path


def load(file: Path, arm: dict[str, Any], shape: Shape, batch: int, threads: int) -> Network:
    """The network in what ``save`` wrote for an arm, ready to run."""
    backend, precision = arm["backend"], arm["precision"]
    if backend == "onnxruntime":
        from ceit.inference.runtimes import OnnxRuntime

        return OnnxRuntime(file, threads=threads)
    if backend == "openvino":
        from ceit.inference.runtimes import OpenVino

        return OpenVino(file, precision="bf16" if "bf16" in precision else "float32", threads=threads)
    from safetensors.torch import load_model

    model = build(Arm.from_dict(arm).subject)
    load_model(model, str(file))
    return network_of(model, backend, precision, image_shape=shape, batch_size=batch, threads=threads)
