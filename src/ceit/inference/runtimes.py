"""Graphs as callables: images float32 ``(B, C, H, W)`` to logits float32 ``(B, classes)``, on the CPU."""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ceit.inference.graphs import INPUT, openvino_core

if TYPE_CHECKING:
    import onnx
    import openvino

OPENVINO_PRECISIONS = {"float32": "f32", "bf16": "bf16"}

_Shape = tuple[int, ...] | None  # of a batch; None for all, of a graph that computes with its own sizes
_PIXELS, _MOST_IMAGES = 200_000, 32  # of a part of a large batch: four images of 224 px


class OnnxRuntime:
    """An ONNX model in ONNX Runtime. May be called by several threads at once."""

    def __init__(self, model: "onnx.ModelProto | Path | bytes", *, threads: int | None = None) -> None:
        """``threads`` by default as torch has them. Raises: ValueError for a model that cannot be read or run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they come as exceptions too
        content = model if isinstance(model, Path | bytes) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a dozen classes of its own, with no base of theirs
            raise ValueError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error

    @property
    def metadata(self) -> dict[str, str]:
        """The texts that the model carries."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: Tensor) -> Tensor:
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            return torch.from_numpy(self._session.run(None, {INPUT: array})[0])
        except Exception as error:  # as above
            raise ValueError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error


class OpenVino:
    """An OpenVINO model on the CPU. May be called by several threads at once.

    ``precision`` is what float operators are computed in; ``bf16`` is only a request, which processors without bf16
    do not follow. A quantised model keeps its int8 products under both.

    A large batch is cut into parts of a few images, each computed by one thread: activations then stay in the cache
    of its core, and no thread waits for another at every layer. All threads work on a small batch together. Graphs are
    made for a batch size when it is first met, because those for any batch are slower; of a model for any image size
    there is one for all.
    """

    def __init__(
        self,
        model: "openvino.Model | Path",
        *,
        precision: Literal["float32", "bf16"] = "float32",
        threads: int | None = None,
        callers: int = 1,
    ) -> None:
        """``threads`` compute a call, by default as many as torch has; ``callers`` are how many call at the same time.

        Raises: ValueError for a model that cannot be read or run.
        """
        self._threads = threads or torch.get_num_threads()
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": self._threads * callers,
            "ENABLE_CPU_PINNING": False,  # several processes would all pin their threads to the first cores
        }
        self._callers = callers
        self._compiled: dict[tuple[int, _Shape, int], Any] = {}
        self._lock = threading.Lock()
        self._requests_of: dict[tuple[int, int, _Shape, int], list[Any]] = {}
        try:
            self._model = openvino_core().read_model(model) if isinstance(model, Path) else model
            self._any_size = self._model.inputs[0].get_partial_shape()[2].is_dynamic
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"OpenVINO cannot run the model: {_first_line(error)}") from error

    def __call__(self, images: Tensor) -> Tensor:
        if not len(images):  # for which there is no graph
            return self(images.new_zeros(1, *images.shape[1:]))[:0]
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        part = max(1, min(_MOST_IMAGES, round(_PIXELS / array[0, 0].size)))
        if len(array) < part * self._threads:
            return torch.from_numpy(self._results([array], streams=1)[0])
        whole = len(array) - len(array) % part
        parts = [array[start : start + part] for start in range(0, whole, part)]
        results = self._results(parts, streams=self._threads)
        if whole < len(array):
            results += self._results([array[whole:]], streams=1)
        return torch.from_numpy(np.concatenate(results))

    def _results(self, parts: list[np.ndarray], streams: int) -> list[np.ndarray]:
        """The logits of parts of equal size, ``streams`` of them at a time."""
        requests = self._requests(None if self._any_size else parts[0].shape, streams)
        results: list[np.ndarray] = []

        def finish(number: int) -> None:
            request = requests[number % streams]
            request.wait()
            results.append(request.get_output_tensor().data.copy())

        for number, part in enumerate(parts):
            if number >= streams:
                finish(number - streams)
            requests[number % streams].start_async([part], share_inputs=True)
        for number in range(len(results), len(parts)):
            finish(number)
        return results

    def _requests(self, shape: _Shape, streams: int) -> list[Any]:
        """This thread's own requests for batches of a shape: each holds the buffers of one computation.

        A forked process makes its own: the threads that compute those of its parent are not in it.
        """
        key = os.getpid(), threading.get_ident(), shape, streams
        if key not in self._requests_of:
            compiled = self._compiled_for(shape, streams)
            self._requests_of[key] = [compiled.create_infer_request() for _ in range(streams)]
        return self._requests_of[key]

    def _compiled_for(self, shape: _Shape, streams: int) -> Any:
        key = os.getpid(), shape, streams
        with self._lock:
            if key not in self._compiled:
                try:
                    model = self._model.clone()
                    if shape is not None:  # a graph that computes with its own sizes comes out of it wrong
                        model.reshape(list(shape))
                    options = {**self._options, "NUM_STREAMS": streams * self._callers}
                    self._compiled[key] = openvino_core().compile_model(model, "CPU", options)
                except RuntimeError as error:
                    raise ValueError(f"OpenVINO cannot run the model: {_first_line(error)}") from error
            return self._compiled[key]


def _first_line(error: Exception) -> str:
    """The first line of an exception that says something: OpenVINO's begin with a place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0].rstrip(".")
