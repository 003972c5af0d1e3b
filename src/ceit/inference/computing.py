"""What computes the answers of a network: as it was asked for, as it was measured, or what is quickest without asking.

By default that is torch, eager, or, where there is so much to compute that its set-up pays, OpenVINO: once it has been
seen to give eager's answers. See docs/speed.md.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ceit.inference.backend import RUNTIMES, Network, precisions_on, prepare, require
from ceit.inference.device import computes_bf16, devices_named
from ceit.inference.example_images import ExampleImages
from ceit.inference.fastest import (
    LEAST_AGREEMENT,
    LEAST_IMAGES,
    Examples,
    Optimized,
    graph_name,
    is_installed,
    optimize,
)
from ceit.inference.kept_graphs import recall_graph
from ceit.messages import Say
from ceit.model import CeiT
from ceit.model.complexity import complexity

Precision = Literal["auto", "float32", "bf16", "fp16", "int8", "int8+bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""``auto`` is what the machine computes natively: bf16, on older CUDA devices fp16, else float32."""

SAMPLE_IMAGES = 16  # that a runtime is compared with eager on
MAX_ERROR = 1e-4
"""How far its logits may be from those of eager float32, as a share of the largest; or twice as far as eager's own are
in the precision asked for, if that is more."""

_MACS_TO_MAKE, _MACS_TO_READ = 1e12, 1.5e11
"""Multiply-accumulates of each core from which OpenVINO pays: to make its graph takes some ten seconds, to read one
that is kept one second; in float32 a core computes some 25 thousand million a second, and a quarter of it is won."""
_MACS_TO_COMPILE = 8e12
"""The same of ``compile``, which takes twenty seconds or more in every process, and then wins a third in bf16."""
_RATE = {"float32": 1, "bf16": 2}  # as many times as fast
_X86 = ("x86_64", "AMD64")  # where OpenVINO was measured


@dataclass(frozen=True)
class Computing:
    """A network on every device, and what computes it there."""

    networks: tuple[Network, ...]
    backend: str
    precision: str
    devices: tuple[torch.device, ...]

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class Work:
    """What there is to compute: how many images, in batches of which size, by how many callers at the same time.

    ``threads`` compute a call, by default as many as torch has. ``sample`` gives some of the images as the network sees
    them, ``examples`` images to calibrate and to judge by; None where there are none.
    """

    batch_size: int
    images: int = 0
    threads: int | None = None
    callers: int = 1
    sample: Callable[[], Tensor | None] = lambda: None
    examples: Examples = lambda: None

    @property
    def cores(self) -> int:
        """Threads that compute, all calls together."""
        return (self.threads or torch.get_num_threads()) * self.callers


def devices_for(device: str | None, backend: str | None) -> tuple[torch.device, ...]:
    """The devices that were named, or all accelerators of the machine; the CPU for what computes there alone.

    Raises: ValueError for a device that is not there.
    """
    return devices_named("cpu" if device is None and backend in RUNTIMES else device)


def computing(
    model: CeiT,
    backend: str | None,
    precision: str,
    devices: Sequence[torch.device],
    work: Work,
    say: Say = lambda message: None,
) -> Computing:
    """The network on the ``devices``, ready for the ``work``; ``say`` is told what computes, unless it is eager.

    ``backend`` may be ``auto``, the measured choice, or None: eager, or OpenVINO where it pays and answers as eager.
    Raises: ValueError for a combination that does not exist, and for int8 without images to calibrate it with.
    """
    device = devices[0]
    refuse_combination(backend, precision, device)
    if backend == "auto" or "int8" in precision:

        def examples() -> ExampleImages | None:
            """Asked for where nothing is remembered."""
            if backend == "auto":
                say("--backend auto measures once for each model what is fastest here: that can take minutes")
            return work.examples()

        found = optimize(
            model,
            backend or "auto",
            precision,
            batch_size=work.batch_size,
            images=examples,
            device=device,
            threads=work.threads,
            callers=work.callers,
            leave_out=() if _may_compile(model, device, work) else ("compile",),
        )
        say(_account(found))
        first, backend, precision = found.network, found.backend, found.precision
    else:
        precision = chosen(precision, device, backend or "eager")
        first = None
        if backend is None:
            first = _openvino_if_it_pays(model, precision, devices, work, say)
            backend = "eager" if first is None else "openvino"
    rest = [_prepared(model, backend, precision, one, work) for one in (devices if first is None else devices[1:])]
    return Computing((*(() if first is None else (first,)), *rest), backend, precision, tuple(devices))


def refuse_combination(backend: str | None, precision: str, device: torch.device) -> None:
    """Raises: ValueError for what does not go together, naming what does, and for a backend that is not installed."""
    if backend is None and "int8" in precision:
        raise ValueError(f"{precision} is computed by {' or '.join(RUNTIMES)}: name one with --backend, or auto")
    if backend != "auto":
        require(backend or "eager", chosen(precision, device, backend or "eager"), device)
    if backend in RUNTIMES and not is_installed(backend):
        raise ValueError(f'{backend} is not installed: pip install "ceit-vision[export]"')


def chosen(precision: str, device: torch.device, backend: str = "eager") -> str:
    """The precision, and for ``auto`` what the device computes natively, of those that the backend has."""
    if precision != "auto":
        return precision
    if computes_bf16(device):
        native = "bf16"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        native = "fp16"
    else:
        native = "float32"
    return native if native in precisions_on(device).get(backend, ()) else "float32"


def _prepared(model: CeiT, backend: str, precision: str, device: torch.device, work: Work) -> Network:
    options: dict[str, Any] = {
        "threads": work.threads,
        "callers": work.callers,
        "graph_name": graph_name(model, backend),
    }
    if backend == "compile":
        options["batch_size"] = work.batch_size
    shape = model.config.in_chans, *model.config.image_hw
    return prepare(model, backend, precision, image_shape=shape, device=device, **options)


def _openvino_if_it_pays(
    model: CeiT, precision: str, devices: Sequence[torch.device], work: Work, say: Say
) -> Network | None:
    """The network in OpenVINO; None if it is not installed, would take longer or has other answers than eager.

    What there is to do decides, not how long something took: a busy machine answers as a quiet one.
    """
    on_the_cpu = [device.type for device in devices] == ["cpu"] and platform.machine() in _X86
    if not on_the_cpu or precision not in _RATE or not is_installed("openvino"):
        return None
    macs, name = _macs_of_a_core(model, work), graph_name(model, "openvino")
    assert name is not None
    if macs < _MACS_TO_READ * _RATE[precision]:
        return None  # whatever is kept
    if macs < _MACS_TO_MAKE * _RATE[precision] and recall_graph(name, "openvino") is None:
        return None
    sample = work.sample()
    if sample is None:
        return None
    try:
        network = _prepared(model, "openvino", precision, devices[0], work)
        error, limit = _errors(model, network, precision, sample)
    except (ImportError, RuntimeError, ValueError) as failure:
        say(f"OpenVINO cannot run the model, torch does: {failure}")
        return None
    told = f"{len(sample)} of the images: its logits differ from eager float32's by {error:.1e} of the largest"
    if not error <= limit:
        say(f"OpenVINO in {precision} does not answer as eager on {told}, the limit is {limit:.0e}; eager computes")
        return None
    say(f"OpenVINO computes in {precision}, checked on {told} (limit {limit:.0e}); --backend eager takes torch")
    return network


def _may_compile(model: CeiT, device: torch.device, work: Work) -> bool:
    """Whether there is enough to do to compile for it; always where nobody knows how much there is, and on a GPU."""
    return device.type != "cpu" or not work.images or _macs_of_a_core(model, work) >= _MACS_TO_COMPILE


def _macs_of_a_core(model: CeiT, work: Work) -> float:
    return work.images * complexity(model.config).live_macs / work.cores


def _errors(model: CeiT, network: Network, precision: str, images: Tensor) -> tuple[float, float]:
    """The largest error of a network's logits, as a share of the largest logit, and what is allowed."""
    shape = model.config.in_chans, *model.config.image_hw
    exact = prepare(model, "eager", "float32", image_shape=shape)(images)
    eager = prepare(model, "eager", precision, image_shape=shape)(images)
    error, own = (float((found - exact).abs().max() / exact.abs().max()) for found in (network(images), eager))
    return error, max(MAX_ERROR, 2 * own)


def _account(found: Optimized) -> str:
    """What was chosen, how it was judged, and what it was chosen from."""
    if not found.measured:
        return f"{found.backend} computes in {found.precision}: nothing else is to be had"
    one = found.chosen
    rate = f"{one.images_per_second:,.0f} images/s of one caller" if one.images_per_second else ""
    if one.agreement is None:
        judged = f"only float32 was allowed, since {LEAST_IMAGES} images to judge other formats by are not at hand"
    else:
        judged = (
            f"first answers as eager float32's on {100 * one.agreement:.1f} % of {found.judged_on}, "
            f"at least {100 * LEAST_AGREEMENT:g} % were demanded"
        )
    others = f"the fastest of {len(found.measured)} measured" if len(found.measured) > 1 else "as measured"
    return f"{one.backend} computes in {one.precision}, {others}: {rate}; {judged}"
