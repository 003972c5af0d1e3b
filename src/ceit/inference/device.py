"""Where to compute, in which number format, and what a figure was measured on."""

import platform
from pathlib import Path
from typing import Any, Literal

import torch

from ceit.version import __version__

Precision = Literal["auto", "float32", "bf16", "fp16"]

_BF16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Those of a CPU that multiply bf16, as torch and Linux call them: two of x86, one of ARM."""


def default_device() -> torch.device:
    """The accelerator if the machine has one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def devices_named(names: str | None = None) -> tuple[torch.device, ...]:
    """``cpu``, ``cuda:1``, ``mps``, or several with commas between; ``cuda`` is every CUDA device that torch sees.

    By default all accelerators of the machine, else the CPU. Raises: ValueError for a device that is not there.
    """
    accelerator = default_device()
    there = _all_of(accelerator)
    if names is None:
        return there
    found: list[torch.device] = []
    for name in map(str.strip, names.split(",")):
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"unknown device {name!r}: name cpu, cuda, cuda:1 or mps") from error
        all_of_it = there if device.type == accelerator.type else (device,) * (device.type == "cpu")
        meant = [one for one in all_of_it if device.index in (None, one.index or 0)]  # a single one has no index
        if not meant:
            listed = ", ".join(dict.fromkeys(["cpu", *map(str, there)]))
            hint = "; a CUDA device needs its driver and a build of torch for CUDA" if device.type == "cuda" else ""
            raise ValueError(f"there is no device {name} here, torch sees {listed}{hint if len(there) == 1 else ''}")
        found += meant
    return tuple(found)


def _all_of(device: torch.device) -> tuple[torch.device, ...]:
    count = torch.accelerator.device_count() if device.type != "cpu" else 1
    return (device,) if count < 2 else tuple(torch.device(device.type, index) for index in range(count))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for none. ``auto`` takes bf16 where the machine computes it natively."""
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "float32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively, which is then its faster format.

    What the machine is decides, not how long something took: a busy machine answers as a quiet one.
    """
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and not _BF16_INSTRUCTIONS.isdisjoint(cpu_instructions())
    kind = torch.get_device_module(device)
    if not hasattr(kind, "is_bf16_supported"):  # Apple's GPUs take bf16, and are no faster in it
        return False
    with kind.device(device):
        return kind.is_bf16_supported(including_emulation=False)


def cpu_instructions() -> frozenset[str]:
    """The names of the CPU's instruction sets, as torch tells them, or Linux where torch does not yet."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return frozenset(name for name, value in capabilities().items() if value is True)
    flags = _cpuinfo("flags") or _cpuinfo("Features")  # of x86 and of ARM
    return frozenset(flags[0].split() if flags else ())


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that a figure was measured on, and the versions that matter."""
    names = _cpuinfo("model name")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": None if device.type == "cpu" else _accelerator_name(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ceit": __version__,
    }


def _accelerator_name(device: torch.device) -> str:
    """As the device's library calls it; Apple's has no names."""
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name_of is None else name_of(device)


def _cpuinfo(key: str) -> list[str]:
    """What Linux says of each of its processors under a key; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    pairs = [line.partition(":") for line in lines]
    return [value.strip() for name, _, value in pairs if name.strip() == key]
