"""The fastest way to run a network on this machine: measured, within a stated accuracy budget, and remembered."""

import hashlib
import importlib.util
import json
import logging
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from ceit.data.cache import keep, recall
from ceit.inference.backend import BACKENDS, PRECISIONS, PRECISIONS_OF, Network, prepare, require
from ceit.inference.device import machine
from ceit.messages import unknown
from ceit.model.ceit import CeiT
from ceit.weights import Description
from ceit.weights.checkpoint import fingerprint

LEAST_AGREEMENT = 0.985
"""Share of images whose first answer must be that of eager float32, for ``auto`` to take a precision."""

_NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_LEAST_IMAGES = 16
_TIMED_CALLS = 7

logger = logging.getLogger("ceit")


@dataclass(frozen=True)
class Candidate:
    """What was measured of a backend in a precision; ``error`` says why there is no figure."""

    backend: str
    precision: str
    images_per_second: float | None = None
    agreement: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Optimized:
    """A network made ready: images float32 ``(B, C, H, W)`` to logits float32 ``(B, classes)``.

    ``backend`` and ``precision`` are what computes it; ``measured`` is what they were chosen from, empty if they were
    named by the caller.
    """

    network: Network
    backend: str
    precision: str
    measured: tuple[Candidate, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)


def optimize(
    model: CeiT,
    backend: str = "auto",
    precision: str = "auto",
    *,
    batch_size: int = 1,
    images: Tensor | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    remember: bool = True,
) -> Optimized:
    """The network on a backend in a precision; on ``auto``, on the fastest of those installed, timed at ``batch_size``.

    ``images`` are training images as the network sees them, ``(n, C, H, W)``, some hundred. The first half calibrates
    int8, the second half judges: ``auto`` takes a precision only if its first answer is that of eager float32 on
    ``least_agreement`` of them. Without images there is nothing to judge by, and ``auto`` stays with float32.

    The choice is remembered in the cache directory, for these weights, this machine and these versions, unless
    ``remember`` is false. The first choice takes minutes, most of them for ``compile``.

    Raises: ValueError for a combination that does not exist, too few images, or an ``int8`` without images.
    """
    if backend != "auto" and precision != "auto":
        require(backend, precision)
    elif backend not in ("auto", *BACKENDS):
        raise ValueError(unknown("backend", backend, ("auto", *BACKENDS)))
    elif precision not in ("auto", *PRECISIONS):
        raise ValueError(unknown("precision", precision, ("auto", *PRECISIONS)))
    if images is not None and len(images) < _LEAST_IMAGES:
        raise ValueError(f"{len(images)} images are too few to choose by: pass at least {_LEAST_IMAGES}")
    calibration = None if images is None else images[: len(images) // 2]
    check = None if images is None else images[len(images) // 2 :]
    shape = (model.config.in_chans, *model.config.image_hw)

    def prepared(backend: str, precision: str) -> Network:
        return prepare(model, backend, precision, image_shape=shape, calibration=calibration)

    candidates = [
        (name, number_format)
        for name in (BACKENDS if backend == "auto" else (backend,))
        for number_format in PRECISIONS_OF[name]
        if precision == number_format or (precision == "auto" and (images is not None or number_format == "float32"))
        if backend == name or all(importlib.util.find_spec(package) for package in _NEEDS.get(name, ()))
    ]
    if not candidates:
        raise ValueError(f"no backend that is installed has precision {precision!r}: pip install 'ceit-vision[export]'")
    if len(candidates) == 1:
        return Optimized(prepared(*candidates[0]), *candidates[0])
    cache_name = f"optimize/{_key(model, images, candidates, batch_size, least_agreement)}.json"
    if remember and (remembered := recall(cache_name)) is not None:
        chosen = Candidate(**json.loads(remembered))
        return Optimized(prepared(chosen.backend, chosen.precision), chosen.backend, chosen.precision, (chosen,))
    reference = None if check is None else prepared("eager", "float32")(check).argmax(1)
    networks: dict[Candidate, Network] = {}
    measured: list[Candidate] = []
    for name, number_format in candidates:
        try:
            network = prepared(name, number_format)
            agreement = None if check is None else float((network(check).argmax(1) == reference).float().mean())
            rate = _images_per_second(network, torch.randn(batch_size, *shape))
            candidate = Candidate(name, number_format, rate, agreement)
            if agreement is None or agreement >= least_agreement:
                networks[candidate] = network
        except (ImportError, RuntimeError, ValueError) as error:
            candidate = Candidate(name, number_format, error=str(error).splitlines()[0])
        measured.append(candidate)
        logger.info("%s", candidate)
    if not networks:
        raise ValueError(
            f"nothing in precision {precision!r} gives eager float32's first answer on {100 * least_agreement:g} % of "
            "the images: allow another precision, or lower least_agreement"
        )
    chosen = max(networks, key=lambda candidate: candidate.images_per_second or 0)
    if remember:
        keep(cache_name, json.dumps(asdict(chosen)))
    return Optimized(networks[chosen], chosen.backend, chosen.precision, tuple(measured))


def _images_per_second(network: Network, images: Tensor) -> float:
    """By the median of several calls."""
    seconds = []
    for _ in range(_TIMED_CALLS + 1):
        began = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - began)
    return len(images) / statistics.median(seconds[1:])


def _key(model: CeiT, images: Tensor | None, *choice: object) -> str:
    """Of all that the choice depends on: the weights, the images, the machine and the versions."""
    tensors = dict(model.state_dict()) | ({} if images is None else {"images": images})
    runtimes = {name: version(name) for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)}
    device = next(model.parameters()).device
    said = [fingerprint(tensors, Description(model.config)), *choice, str(device), machine(device), runtimes]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
