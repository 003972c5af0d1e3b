"""Networks made ready to answer fast: what computes them (the backend), and in which precision.

A network is a callable: images float32 ``(B, C, H, W)`` to logits float32 ``(B, classes)``.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Lock
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from ceit.inference.folding import fuse
from ceit.inference.graphs import onnx_model, openvino_model
from ceit.inference.kept_graphs import keep_graph, recall_graph
from ceit.inference.quantize import quantized_onnx, quantized_openvino
from ceit.inference.runtimes import OnnxRuntime, OpenVino
from ceit.messages import unknown
from ceit.model.ceit import CeiT

Network = Callable[[Tensor], Tensor]

PRECISIONS_OF: dict[str, tuple[str, ...]] = {
    "eager": ("float32", "bf16"),
    "compile": ("float32", "bf16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bf16", "int8", "int8+bf16"),
}
"""What makes sense with what, on the CPU. ``int8+bf16``: products in int8, what stays float in bf16."""
ON_ACCELERATORS = {name: ("float32", "bf16", "fp16") for name in ("eager", "compile")}

BACKENDS = tuple(PRECISIONS_OF)
RUNTIMES = ("onnxruntime", "openvino")
"""Those outside torch. They run graphs, and on the CPU alone."""
PRECISIONS = ("float32", "bf16", "fp16", "int8", "int8+bf16")

_FEW_TOKENS = 16  # a product of fewer rows gains nothing as a convolution


def prepare(
    model: nn.Module,
    backend: str,
    precision: str,
    *,
    image_shape: tuple[int, int, int],
    device: torch.device | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    callers: int = 1,
    calibration: Tensor | None = None,
    graph_name: str | None = None,
) -> Network:
    """The model, a CeiT or any other from images to logits, in eval mode on a backend in a precision.

    ``image_shape`` is ``(C, H, W)``. The ``device`` is by default that of the model. A ``batch_size`` makes graphs for
    that many images at a time: faster, and then the only batch that ONNX Runtime takes; ``compile`` fills smaller
    batches up, since it would compile anew for each. ``threads``, by default as many as torch has, and ``callers``, how
    many call at the same time, are for the runtimes outside torch. ``calibration`` are some hundred training images as
    the network sees them, ``(n, C, H, W)``, for int8. Under a ``graph_name`` the graph of a runtime is kept in the
    cache directory, and taken from there the next time.

    The model itself is left as it is: what is prepared is a copy. The network of ``compile`` is compiled at its first
    call, which takes a minute. Outside torch, and in torch with gradients enabled or not, no gradient is kept.
    Raises: ValueError for a combination that does not exist, and for int8 without calibration images.
    """
    device = device or next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    require(backend, precision, torch.device("cpu") if backend in RUNTIMES else device)
    if backend not in RUNTIMES:
        network = network_for_inference(model).to(device)
        return _in_torch(network, precision, compiled_for=batch_size or 1 if backend == "compile" else None)
    running: dict[str, Any] = {"threads": threads, "callers": callers}
    if graph_name is not None and (file := recall_graph(graph_name, backend)) is not None:
        return in_runtime(file, backend, precision, **running)
    options: dict[str, Any] = {"batch_size": batch_size, "calibration": calibration, "attention": precision == "int8"}
    graph = graph_of(network_for_inference(model).cpu().float(), backend, precision, image_shape, **options)
    if graph_name is not None:
        keep_graph(graph_name, backend, graph)
    return in_runtime(graph, backend, precision, **running)


def precisions_on(device: torch.device) -> Mapping[str, tuple[str, ...]]:
    """The backends that compute on a device, and the precisions that each has there."""
    return PRECISIONS_OF if device.type == "cpu" else ON_ACCELERATORS


def require(backend: str, precision: str, device: torch.device) -> None:
    """Refuse what does not exist. Raises: ValueError naming what does."""
    if backend not in PRECISIONS_OF:
        raise ValueError(unknown("backend", backend, BACKENDS))
    there = precisions_on(device)
    if backend not in there:
        raise ValueError(f"{backend} computes on the CPU, not on {device}: choose the backend eager or compile there")
    if precision not in there[backend]:
        hint = "; fp16 is for GPUs" if precision == "fp16" and backend in ON_ACCELERATORS else ""
        raise ValueError(f"{backend} has no precision {precision!r}: choose {', '.join(there[backend])}{hint}")


def in_turns(networks: Sequence[Network], devices: Sequence[torch.device]) -> Network:
    """Networks, one on each device, as one that several threads may call at once: each call goes to the next device.

    On Apple's GPU, where torch fails when two threads compute, a call waits for the others, and answers on the CPU.
    """
    networks = [_alone(one) if device.type == "mps" else one for one, device in zip(networks, devices, strict=True)]
    turns = cycle(networks)
    return networks[0] if len(networks) == 1 else lambda images: next(turns)(images)


def _alone(network: Network) -> Network:
    one_at_a_time = Lock()

    def logits(images: Tensor) -> Tensor:
        with one_at_a_time:
            return network(images).cpu()

    return logits


def split_among(networks: Sequence[Network]) -> Network:
    """Networks, one on each device, as one that shares out every batch: the logits are where the first one's are."""
    if len(networks) == 1:
        return networks[0]
    pool = ThreadPoolExecutor(len(networks), "device")

    def logits(images: Tensor) -> Tensor:
        parts = list(pool.map(lambda network, part: network(part), networks, images.chunk(len(networks))))
        return torch.cat([part.to(parts[0].device) for part in parts])

    return logits


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


def in_runtime(
    graph: Any, backend: str, precision: str, *, threads: int | None = None, callers: int = 1
) -> OnnxRuntime | OpenVino:
    """A graph of ``graph_of``, or the file that holds it, ready to run in ``onnxruntime`` or ``openvino``."""
    if backend == "onnxruntime":
        return OnnxRuntime(graph, threads=threads)
    computed_in = "bf16" if "bf16" in precision else "float32"
    return OpenVino(graph, precision=computed_in, threads=threads, callers=callers)


def _in_torch(network: nn.Module, precision: str, *, compiled_for: int | None) -> Network:
    """The network in torch, eager, or compiled for batches of at least so many; on the device it is on.

    In bf16 and fp16 all weights and activations are so, products are summed in float32 inside.
    On the CPU linear layers over tokens are computed as 1x1 convolutions, a view away: oneDNN multiplies them faster
    than the library that torch calls for matrix products, on some processors by a third.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    network = network.to(dtype).requires_grad_(False)
    device = next(network.parameters()).device
    if device.type == "cpu":
        for module in list(network.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, _PointwiseLinear(child))

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.to(device, dtype, memory_format=torch.channels_last)).float()

    return logits if compiled_for is None else _compiled(network, device, dtype, compiled_for)


def _compiled(network: nn.Module, device: torch.device, dtype: torch.dtype, batch_size: int) -> Network:
    """The network compiled; smaller batches are filled up. Several threads may call it: one compiles, others wait."""
    forward = torch.compile(network, dynamic=False)  # a graph for each batch size
    known, one_at_a_time = set[tuple[Any, ...]](), Lock()

    def compute(images: Tensor) -> Tensor:
        key = tuple(images.shape), torch.get_num_threads()  # a graph is for as many threads as compiled it
        if key in known:
            return forward(images)
        # freezing folds constants and lays weights out as products want them; as an option of compile it has no effect
        with one_at_a_time, inductor.patch(freezing=True):
            try:
                found = forward(images)
            except TorchDynamoException as error:
                reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
                raise ValueError(f"torch cannot compile the network here, choose another backend: {reason}") from error
            known.add(key)
            return found

    def logits(images: Tensor) -> Tensor:
        count = len(images)
        with torch.inference_mode(False), torch.no_grad():  # to torch, tensors of inference mode are of another kind
            given = images.to(device, dtype, memory_format=torch.channels_last, copy=images.is_inference())
            if count < batch_size:
                given = torch.cat([given, given.new_zeros(batch_size - count, *given.shape[1:])])
                given = given.contiguous(memory_format=torch.channels_last)
            return compute(given)[:count].float()

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

    is_affine = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 3 or tokens.shape[1] < _FEW_TOKENS:
            return F.linear(tokens, self.weight, self.bias)
        column_bdt1 = tokens.unflatten(1, (-1, 1)).permute(0, 3, 1, 2)
        return F.conv2d(column_bdt1, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1).flatten(1, 2)
