"""The backends that are measured: those of ``ceit.inference``, and ``plain``, a module as its author wrote it.

``eager`` prepares any module for inference: weights in the precision, faster products, and of a CeiT folded norms.
An opponent is measured as it comes, so ``plain`` does none of this: eval mode, autocast for bf16, torch's default
AdamW, and the memory allocator as a process has it that sets nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from ceit.bench.arms import Arm, Shape, build
from ceit.inference import backend as inference
from ceit.inference.backend import Network, graph_of, in_runtime, network_for_inference, prepare
from ceit.inference.graphs import save_openvino

PLAIN = "plain"
PRECISIONS_OF: dict[str, tuple[str, ...]] = {PLAIN: ("float32", "bf16"), **inference.PRECISIONS_OF}
BACKENDS = tuple(PRECISIONS_OF)
TRAINABLE = {name: ("float32", "bf16") for name in (PLAIN, "eager", "compile")}
"""Backends that can train, and in what."""

Step = Callable[[Tensor, Tensor], None]


def network_of(model: nn.Module, backend: str, precision: str, **options: Any) -> Network:
    """As ``prepare``, with its options, for ``plain`` too: there the module itself, put into eval mode."""
    if backend != PLAIN:
        return prepare(model, backend, precision, **options)
    model.eval()

    def plain(images_bchw: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(images_bchw).float()

    return plain


def training_step(model: nn.Module, *, bf16: bool, compiled: bool = False, fused: bool = False) -> Step:
    """Cross-entropy, backward, AdamW. ``bf16``: under autocast; ``compiled``: forward and backward through
    ``torch.compile``; ``fused``: AdamW in one kernel instead of torch's default, which ``plain`` arms have."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05, fused=fused)
    forward = torch.compile(model) if compiled else model

    def step(images_bchw: Tensor, labels_b: Tensor) -> None:
        with torch.autocast(images_bchw.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = forward(images_bchw)
        loss = F.cross_entropy(logits.float(), labels_b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def save(
    model: nn.Module, backend: str, precision: str, shape: Shape, folder: Path, calibration: Tensor | None
) -> Path:
    """Write what the backend needs at run time into an empty folder: weights for torch, the graph for a runtime.

    Returns the file to ``load``. Raises: as the exporters do.
    """
    if backend in TRAINABLE:  # those of torch
        path = folder / "model.safetensors"
        save_model(model, str(path))
        return path
    graph = graph_of(network_for_inference(model), backend, precision, shape, calibration=calibration)
    if backend == "onnxruntime":
        path = folder / "model.onnx"
        path.write_bytes(graph.SerializeToString())
    else:
        path = folder / "model.xml"
        save_openvino(graph, path)
    return path


def load(file: Path, arm: Arm, shape: Shape, batch: int, threads: int) -> Network:
    """The network in what ``save`` wrote for an arm, ready to run."""
    if arm.backend not in TRAINABLE:
        return in_runtime(file, arm.backend, arm.precision, threads=threads)
    model = build(arm.model)
    load_model(model, str(file))
    return network_of(model, arm.backend, arm.precision, image_shape=shape, batch_size=batch, threads=threads)
