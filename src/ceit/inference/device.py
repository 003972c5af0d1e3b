"""Where to compute, and in which number format."""

import time
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bf16", "fp16")

_PROBE_SIDE = 768


def default_device() -> torch.device:
    """The accelerator if the machine has one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for none.

    ``auto`` takes bf16 where a matrix product is clearly faster in it: measured, since no name of a processor tells.
    """
    if precision == "auto":
        precision = "bf16" if _seconds(torch.bfloat16, device) < 0.75 * _seconds(torch.float32, device) else "float32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of five for a matrix product."""
    factor = torch.ones(_PROBE_SIDE, _PROBE_SIDE, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
