"""The fastest way to run a network on this machine: measured, within a stated accuracy budget, and remembered."""

import hashlib
import importlib.util
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ceit.data.cache import keep, recall
from ceit.inference.backend import BACKENDS, PRECISIONS, RUNTIMES, Network, precisions_on, prepare, require
from ceit.inference.device import machine
from ceit.inference.example_images import ExampleImages
from ceit.json_file import as_written, parse_json
from ceit.messages import unknown
from ceit.model.ceit import CeiT
from ceit.version import __version__
from ceit.weights import Description
from ceit.weights.checkpoint import fingerprint

LEAST_AGREEMENT = 0.985
"""Share of images whose first answer must be that of eager float32, for ``auto`` to take a precision."""

Examples = Callable[[], ExampleImages | None]
"""Gives some hundred training images, or None where none are at hand."""

_NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
LEAST_IMAGES = 16
_ROUNDS = 7

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
    named by the caller, and the chosen one alone if it was remembered. ``judged_on`` says in words which images
    precisions were judged by, empty if there were none.
    """

    network: Network
    backend: str
    precision: str
    measured: tuple[Candidate, ...] = ()
    judged_on: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)

    @property
    def chosen(self) -> Candidate:
        """What was measured of it. Raises: LookupError if nothing was."""
        return {(one.backend, one.precision): one for one in self.measured}[self.backend, self.precision]


def optimize(
    model: CeiT,
    backend: str = "auto",
    precision: str = "auto",
    *,
    batch_size: int = 1,
    images: Tensor | Examples | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    remember: bool = True,
    device: torch.device | None = None,
    threads: int | None = None,
    callers: int = 1,
    leave_out: Collection[str] = (),
) -> Optimized:
    """The network on a backend in a precision; on ``auto``, on the fastest of those installed, timed at ``batch_size``.

    ``images`` are training images as the network sees them, ``(n, C, H, W)``, some hundred, or a function that is asked
    for them only where nothing is remembered. The first half calibrates int8, the second half judges: ``auto`` takes a
    precision only if its first answer is that of eager float32 on ``least_agreement`` of them, and so is int8 judged
    even if it is named. Without images there is nothing to judge by, and ``auto`` stays with float32.

    The choice is remembered in the cache directory, for these weights, this machine and these versions, unless
    ``remember`` is false. The first choice takes minutes, most of them for ``compile``. ``device`` is by default that
    of the model; ``threads`` compute a call, by default as many as torch has, and ``callers`` call at the same time.
    ``leave_out`` are backends that ``auto`` is not to take: ``compile`` compiles anew in every process, which the rate
    does not tell.

    Raises: ValueError for a combination that does not exist, too few images, or an ``int8`` without images.
    """
    device = device or next(model.parameters()).device
    named = [pair for pair in _named(backend, precision, device) if backend != "auto" or pair[0] not in leave_out]
    shape = (model.config.in_chans, *model.config.image_hw)

    def prepared(
        backend: str, precision: str, calibration: Tensor | None = None, kept_as: str | None = None
    ) -> Network:
        if kept_as is not None:
            kept_as = f"{kept_as}-{precision}" if "int8" in precision else graph_name(model, backend)
        options: dict[str, Any] = {"threads": threads, "callers": callers, "device": device, "graph_name": kept_as}
        if backend == "compile":
            options["batch_size"] = batch_size
        return prepare(model, backend, precision, image_shape=shape, calibration=calibration, **options)

    if len(named) == 1 and "int8" not in named[0][1]:
        return Optimized(prepared(*named[0]), *named[0])
    setting = named, batch_size, least_agreement, str(device), threads, callers
    key = _key(model, device, images, *setting)
    if remember and (known := _remembered(key, prepared)) is not None:
        return known
    found, judged_on = _found(images)
    if found is None and images is not None:  # a function that has none, today
        key = _key(model, device, None, *setting)
        if remember and (known := _remembered(key, prepared)) is not None:
            return known
    if found is None:
        named = [pair for pair in named if pair[1] == precision or pair[1] == "float32"]
        if "int8" in precision:
            raise ValueError(
                f"{precision} needs at least {LEAST_IMAGES} images to be calibrated with and judged by, and so many "
                "are not at hand: name more, or write a file with ceit export --precision int8 --images PATH..."
            )
        if len(named) == 1:
            return Optimized(prepared(*named[0]), *named[0])
    with _threads_of_torch(threads):
        measured = _measured(
            partial(prepared, kept_as=key if remember else None), named, found, batch_size, shape, model.num_classes
        )
    networks = {
        one: network
        for one, network in measured.items()
        if network is not None and (one.agreement is None or one.agreement >= least_agreement)
    }
    if not networks:
        reasons = "".join(f"; {one.backend} {one.precision}: {one.error}" for one in measured if one.error)
        raise ValueError(
            f"nothing in precision {precision!r} gives eager float32's first answer on {100 * least_agreement:g} % of "
            f"the images: allow another precision, or lower least_agreement{reasons}"
        )
    chosen = max(networks, key=lambda candidate: candidate.images_per_second or 0)
    if remember:
        keep(f"optimize/{key}.json", json.dumps({"chosen": asdict(chosen), "judged_on": judged_on}))
    return Optimized(networks[chosen], chosen.backend, chosen.precision, tuple(measured), judged_on)


def is_installed(backend: str) -> bool:
    """Whether all packages are there that the backend needs."""
    return all(importlib.util.find_spec(package) for package in _NEEDS.get(backend, ()))


def graph_name(model: CeiT, backend: str) -> str | None:
    """What to keep a graph under that is not quantised: a digest of all that it depends on; None of torch's backends.

    The device, and how many threads there are, make no difference to it.
    """
    if backend not in RUNTIMES:
        return None
    packages = {name: _version(name) for name in _NEEDS[backend]} | {"ceit": __version__}
    said = fingerprint(dict(model.state_dict()), Description(model.config)), packages, torch.__version__, backend
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # it comes in a distribution of another name, for GPUs for instance
        return "unknown"


def _named(backend: str, precision: str, device: torch.device) -> list[tuple[str, str]]:
    """The backends and precisions that are meant. Raises: ValueError if there are none, or none is installed."""
    there = precisions_on(device)
    if backend not in ("auto", *BACKENDS):
        raise ValueError(unknown("backend", backend, ("auto", *BACKENDS)))
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(unknown("precision", precision, ("auto", *PRECISIONS)))
    if backend != "auto":
        require(backend, "float32" if precision == "auto" else precision, device)
    named = [
        (name, one)
        for name in (BACKENDS if backend == "auto" else (backend,))
        for one in there.get(name, ())
        if precision in ("auto", one)
    ]
    if not named:
        raise ValueError(f"nothing computes in {precision} on {device}: choose another precision, or auto")
    installed = [pair for pair in named if pair[0] == backend or is_installed(pair[0])]
    if not installed:
        raise ValueError(f'no backend that is installed has precision {precision!r}: pip install "ceit-vision[export]"')
    return installed


def _remembered(key: str, prepared: Callable[..., Network]) -> Optimized | None:
    """What was chosen before; None if nothing was, or it can no longer be had."""
    if (text := recall(f"optimize/{key}.json")) is None:
        return None
    try:
        with as_written(key, "it is written anew"):
            stored = parse_json(key, text)
            chosen, judged_on = Candidate(**stored["chosen"]), str(stored["judged_on"])
            network = prepared(chosen.backend, chosen.precision, kept_as=key)
    except ValueError as error:  # the graph in int8, say, is no longer kept, or the file is damaged
        logger.info("what was remembered is measured anew: %s", error)
        return None
    return Optimized(network, chosen.backend, chosen.precision, (chosen,), judged_on)


def _measured(
    prepared: Callable[..., Network],
    named: list[tuple[str, str]],
    images: Tensor | None,
    batch_size: int,
    shape: tuple[int, int, int],
    classes: int,
) -> dict[Candidate, Network | None]:
    """What was measured of each, with the network, or with None where there is none."""
    calibration, check = (None, None) if images is None else images.tensor_split(2)
    reference = None if check is None else _answers(prepared("eager", "float32")(check), classes)
    candidates: list[Candidate] = []
    networks: dict[tuple[str, str], Network] = {}
    for pair in named:
        agreement = None
        try:
            network = prepared(*pair, calibration)
            if check is not None:
                answers = torch.cat([_answers(network(part), classes) for part in check.split(batch_size)])
                agreement = float((answers == reference).float().mean())
            network(torch.zeros(batch_size, *shape))  # compiled, and whatever else the first call has to do
            networks[pair], error = network, None
        except (ImportError, RuntimeError, ValueError) as failure:
            error = (str(failure) or type(failure).__name__).splitlines()[0]
        candidates.append(Candidate(*pair, agreement=agreement, error=error))
    rates = _images_per_second(networks, torch.randn(batch_size, *shape))
    measured: dict[Candidate, Network | None] = {}
    for candidate in candidates:
        pair = candidate.backend, candidate.precision
        measured[candidate := replace(candidate, images_per_second=rates.get(pair))] = networks.get(pair)
        logger.info("%s", candidate)
    return measured


def _answers(outputs: Tensor, classes: int) -> Tensor:
    """The class named for each image; behind the logits a network may give its features."""
    return outputs[:, :classes].argmax(1).cpu()


def _found(images: Tensor | Examples | None) -> tuple[Tensor | None, str]:
    """The images, and what to call the half that judges. Raises: ValueError for too few."""
    origin = "the images given"
    if callable(images):
        examples = images()
        if examples is None:
            return None, ""
        images, origin = examples.images, examples.origin
    if images is None:
        return None, ""
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"{len(images)} images are too few to choose by: pass at least {LEAST_IMAGES}")
    return images, f"{len(images) // 2} images ({origin})"


@contextmanager
def _threads_of_torch(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _images_per_second(networks: dict[tuple[str, str], Network], images: Tensor) -> dict[tuple[str, str], float]:
    """In rounds, in which each has a turn and waits for its answer; by the best of them, which others disturb least."""
    seconds = dict.fromkeys(networks, math.inf)
    for _ in range(_ROUNDS):
        for pair, network in networks.items():
            began = time.perf_counter()
            network(images).cpu()
            seconds[pair] = min(seconds[pair], time.perf_counter() - began)
    return {pair: len(images) / best for pair, best in seconds.items()}


def _key(model: CeiT, device: torch.device, images: Tensor | Examples | None, *choice: object) -> str:
    """Of all that the choice depends on: the weights, the images, the machine and the versions."""
    tensors = dict(model.state_dict()) | ({"images": images} if isinstance(images, Tensor) else {})
    runtimes = {name: _version(name) for name in RUNTIMES if importlib.util.find_spec(name)}
    asked_for = "on request" if callable(images) else None  # as good as any others that a caller would give
    said = [fingerprint(tensors, Description(model.config)), asked_for, *choice, machine(device), runtimes]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
