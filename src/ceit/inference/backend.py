"""Networks made ready to answer fast: what computes them (the backend), and in which precision.

A network is a callable: images float32 ``(B, C, H, W)`` to logits float32 ``(B, classes)``.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.inference.folding import fuse
from ceit.inference.graphs import onnx_model, openvino_model
from ceit.inference.quantize import quantized_onnx, quantized_openvino
from ceit.inference.runtimes import OnnxRuntime, OpenVino
from ceit.messages import unknown
from ceit.model.ceit import CeiT

Network = Callable[[Tensor], Tensor]

PRECISIONS = ("float32", "bf16", "int8", "int8+bf16")
PRECISIONS_OF: dict[str, tuple[str, ...]] = {
    "eager": ("float32", "bf16"),
    "compile": ("float32", "bf16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": PRECISIONS,
}
"""What makes sense with what. ``int8+bf16``: products in int8, what stays float in bf16."""

BACKENDS = tuple(PRECISIONS_OF)

_FEW_TOKENS = 16  # a product of fewer rows gains nothing as a convolution


def prepare(
    model: nn.Module,
    backend: str,
    precision: str,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int | None = None,
    threads: int | None = None,
    calibration: Tensor | None = None,
) -> Network:
    """The model, a CeiT or any other from images to logits, in eval mode on a backend in a precision.

    ``image_shape`` is ``(C, H, W)``. A ``batch_size`` makes graphs for that many images at a time: faster, and then
    the only batch that ONNX Runtime takes. ``threads`` is for the runtimes outside torch, by default as torch has them.
    ``calibration`` are some hundred training images as the network sees them, ``(n, C, H, W)``, for int8.

    The model itself is left as it is: what is prepared is a copy. The network of ``compile`` is compiled at its first
    call, which takes a minute. Outside torch, and in torch with gradients enabled or not, no gradient is kept.
    Raises: ValueError for a combination that does not exist, and for int8 without calibration images.
    """
    require(backend, precision)
    network = network_for_inference(model)
    if backend in ("eager", "compile"):
        return _in_torch(network, precision, compiled=backend == "compile")
    options: dict[str, Any] = {"batch_size": batch_size, "calibration": calibration, "attention": precision == "int8"}
    graph = graph_of(network.cpu().float(), backend, precision, image_shape, **options)
    return in_runtime(graph, backend, precision, threads=threads)


def require(backend: str, precision: str) -> None:
    """Refuse what does not exist. Raises: ValueError naming what does."""
    if backend not in PRECISIONS_OF:
        raise ValueError(unknown("backend", backend, BACKENDS))
    if precision not in PRECISIONS_OF[backend]:
        raise ValueError(f"{backend} has no precision {precision!r}: choose {', '.join(PRECISIONS_OF[backend])}")


def network_for_inference(model: nn.Module) -> nn.Module:
    """A copy in eval mode, of a CeiT without BatchNorm."""
    return fuse(model) if isinstance(model, CeiT) else copy.deepcopy(model).eval()


def graph_of(
    network: nn.Module,
    backend: str,
    precision: str,
    image_shape: tuple[int, int, int],
    *,
    batch_size: int | None = None,
    calibration: Tensor | None = None,
    any_size: bool = False,
    attention: bool = False,
) -> Any:
    """What ``onnxruntime`` or ``openvino`` computes: an ONNX or an OpenVINO model, in int8 if the precision says so.

    ``any_size`` is as in ``exported_program``, ``attention`` as in ``quantized_openvino``.
    Raises: ValueError for int8 without calibration images.
    """
    if "int8" not in precision:
        calibration = None
    elif calibration is None:
        raise ValueError(f"{precision} on {backend} needs calibration images: pass some hundred training images")
    if backend == "onnxruntime":
        graph = onnx_model(network, image_shape, batch_size=batch_size, any_size=any_size)
        return graph if calibration is None else quantized_onnx(graph, calibration)
    graph = openvino_model(network, image_shape, any_size=any_size)
    return graph if calibration is None else quantized_openvino(graph, calibration, attention=attention)


def in_runtime(graph: Any, backend: str, precision: str, *, threads: int | None = None) -> OnnxRuntime | OpenVino:
    """A graph of ``graph_of``, or the file that holds it, ready to run in ``onnxruntime`` or ``openvino``."""
    if backend == "onnxruntime":
        return OnnxRuntime(graph, threads=threads)
    return OpenVino(graph, precision="bf16" if "bf16" in precision else "float32", threads=threads)


def _in_torch(network: nn.Module, precision: str, *, compiled: bool) -> Network:
    """The network in torch, eager or compiled, with its weights in the precision; on the device it is on.

    In bf16 all weights and activations are bf16, products are summed in float32 inside.
    On the CPU linear layers over tokens are computed as 1x1 convolutions, a view away: oneDNN multiplies them faster
    than the library that torch calls for matrix products, on some processors by a third.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = network.to(dtype).requires_grad_(False)
    device = next(network.parameters()).device
    if device.type == "cpu":
        for module in list(network.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, _PointwiseLinear(child))
    forward = torch.compile(network, dynamic=False) if compiled else network  # a graph for each batch size

    def logits(images: Tensor) -> Tensor:
        # freezing folds constants and lays weights out as products want them; as an option of compile it has no effect
        frozen = inductor.patch(freezing=True) if compiled else nullcontext()
        with torch.no_grad(), frozen:
            return forward(images.to(device, dtype, memory_format=torch.channels_last)).float()

    return logits


class AsModule(nn.Module):
    """A network where a module is asked for; it has one mode, that of inference."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class _PointwiseLinear(nn.Module):
    """A linear layer on tokens ``(B, T, D)`` as a 1x1 convolution over a map of one column."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 3 or tokens.shape[1] < _FEW_TOKENS:
            return F.linear(tokens, self.weight, self.bias)
        column_bdt1 = tokens.unflatten(1, (-1, 1)).permute(0, 3, 1, 2)
        return F.conv2d(column_bdt1, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1).flatten(1, 2)
