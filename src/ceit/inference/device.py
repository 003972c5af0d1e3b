"""Where to compute, in which number format, and what a figure was measured on."""

import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch

import ceit

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


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that a figure was measured on, and the versions that matter."""
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text(encoding="utf-8").splitlines() if processors.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ceit": ceit.__version__,
    }


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of five for a matrix product."""
    factor = torch.ones(_PROBE_SIDE, _PROBE_SIDE, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
