"""What the machine can do: square matrix products in each precision, by every library at hand.

A library's product counts as the peak only if it is the fastest; all are reported. oneDNN in float32 is reached through
its packed linear layer and through 1x1 convolutions, since torch itself calls MKL there.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from ceit.inference.graphs import openvino_core

SIZES = (1024, 2048, 3072)
LIBRARIES = ("torch", "openvino")
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = (*DTYPES, "int8")
PEAK_OF = {"float32": "float32", "bf16": "bf16", "int8": "int8", "int8+bf16": "int8"}
"""Precision of an arm to that of the products it is measured against."""

Call = Callable[[], object]


def products(library: str, precision: str, size: int, threads: int) -> dict[str, Call]:
    """Name to a call that multiplies two ``size x size`` matrices once; empty where the library has no such product."""
    if library == "torch":
        return _torch_products(DTYPES[precision], size) if precision in DTYPES else {}
    if importlib.util.find_spec("openvino") is None:
        return {}
    return {"OpenVINO": _openvino_product(precision, size, threads)}


def _torch_products(dtype: torch.dtype, size: int) -> dict[str, Call]:
    with warnings.catch_warnings():  # importing it uses a decorator that torch itself has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        from torch.utils.mkldnn import to_mkldnn

    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    layer = nn.Linear(size, size, bias=False).requires_grad_(False)
    convolution = nn.Conv2d(size, size, 1, bias=False).requires_grad_(False).to(dtype)
    convolution = convolution.to(memory_format=torch.channels_last)
    image = torch.randn(1, size, 32, size // 32).to(dtype).contiguous(memory_format=torch.channels_last)
    found: dict[str, Call] = {"torch matmul": lambda: left @ right, "oneDNN convolution": lambda: convolution(image)}
    if torch.backends.mkldnn.is_available():
        packed = to_mkldnn(layer) if dtype == torch.float32 else to_mkldnn(layer, dtype)
        blocked = left.float().to_mkldnn() if dtype == torch.float32 else left.float().to_mkldnn(dtype)
        with suppress(RuntimeError):  # a processor that oneDNN has no such product for, as in bf16 without AVX-512
            packed(blocked)
            found["oneDNN linear"] = lambda: packed(blocked)
    return found


def _openvino_product(precision: str, size: int, threads: int) -> Call:
    core = openvino_core()
    openvino: Any = importlib.import_module("openvino")
    opset13 = openvino.opset13
    random = np.random.default_rng(0)
    left = opset13.parameter([size, size], np.float32)
    values = random.standard_normal((size, size), dtype=np.float32)
    if precision == "int8":
        scale = np.float32(4 / 127)
        weights = opset13.constant((values / scale).round().clip(-127, 127).astype(np.int8))
        right = opset13.multiply(opset13.convert(weights, np.float32), opset13.constant(scale))
        low, high = opset13.constant(-128 * scale), opset13.constant(127 * scale)
        factor = opset13.fake_quantize(left, low, high, low, high, 256)
    else:
        factor, right = left, opset13.constant(values)
    model = openvino.Model([opset13.matmul(factor, right, False, False)], [left], "product")
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(values))
    return request.infer
