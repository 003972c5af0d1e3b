"""The backends that are measured: those of ``ceit.inference``, and ``plain``, a module as its author wrote it.

``eager`` prepares any module for inference: weights in the precision, faster products, and of a CeiT folded norms.
An opponent is measured as it comes, so ``plain`` does none of this: eval mode, autocast for bf16, torch's default
AdamW, and the memory allocator as a process has it that sets nothing.
"""

import torch
from torch import Tensor, nn

from ceit.bench.arms import Shape
from ceit.inference import backend as inference
from ceit.inference.backend import Network, prepare

PLAIN = "plain"
PRECISIONS_OF: dict[str, tuple[str, ...]] = {PLAIN: ("float32", "bf16"), **inference.PRECISIONS_OF}
BACKENDS = tuple(PRECISIONS_OF)
TRAINABLE = {name: ("float32", "bf16") for name in (PLAIN, "eager", "compile")}
"""Backends that can train, and in what."""


def network_of(
    model: nn.Module,
    backend: str,
    precision: str,
    *,
    image_shape: Shape,
    batch_size: int,
    threads: int,
    calibration: Tensor | None = None,
) -> Network:
    """As ``prepare``, for ``plain`` too; of that, the module itself, put into eval mode. Raises: as ``prepare``."""
    if backend != PLAIN:
        return prepare(
            model,
            backend,
            precision,
            image_shape=image_shape,
            batch_size=batch_size,
            threads=threads,
            calibration=calibration,
        )
    model.eval()

    def plain(images_bchw: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(images_bchw).float()

    return plain
