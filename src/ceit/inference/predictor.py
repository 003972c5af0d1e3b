"""Images in, labels and probabilities out: a network with the preprocessing and class names that belong to it.

Letters: B batch, C channels, H height, W width.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import length_hint
from pathlib import Path
from threading import Event, Lock
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, Self, TypeGuard, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ceit.data.image import UnreadableImageError, or_reason, read_image
from ceit.data.preprocessing import IMAGENET, Preprocessing, to_array, to_image
from ceit.data.reduced import IN_MEMORY_SIDE, evaluation_cover
from ceit.data.threads import map_in_order
from ceit.inference.backend import Network, in_turns
from ceit.inference.computing import Precision, Work, chosen, computing, devices_for
from ceit.inference.device import devices_named
from ceit.inference.example_images import ExampleImages
from ceit.inference.exported import SUFFIXES, ExportedNetwork, is_exported, load_exported
from ceit.inference.familiarity import Familiarity, with_features
from ceit.model import CeiT
from ceit.paths import PathError, expanded
from ceit.weights import load_checkpoint

ImageInput = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor

CPU_BATCH, ACCELERATOR_BATCH = 16, 64  # of one core: more makes it hardly faster, and every core holds its own

_Answer = TypeVar("_Answer")

Devices = torch.device | str | Sequence[torch.device | str] | None

logger = logging.getLogger("ceit")


class Score(NamedTuple):
    """A label and its probability in 0..1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image, most probable first; or ``error``, why the image could not be read.

    ``path`` is None for an image that did not come from a file. ``familiarity``, see ``ceit.inference.familiarity``,
    and ``unknown``, whether it is too small for an image of these classes, are None where nobody asked for them.
    """

    path: str | None
    predictions: tuple[Score, ...] = ()
    error: str | None = None
    familiarity: float | None = None
    unknown: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``{path, predictions: [{label, probability}]}`` or ``{path, error}``.

        Where it was asked for, with ``familiarity`` and ``unknown``.
        """
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        found: dict[str, Any] = {"path": self.path, "predictions": [score._asdict() for score in self.predictions]}
        if self.unknown is not None:
            found |= {"familiarity": self.familiarity, "unknown": self.unknown}
        return found


@dataclass(frozen=True)
class Embedding:
    """The features of one image, float32 ``(D,)``, or ``error``, why it could not be read; ``path`` as of
    ``Prediction``."""

    path: str | None
    features: np.ndarray | None = None
    error: str | None = None


class _Streams:
    """The streams of all predictors of the process: each sets torch's threads for its workers, and whoever sets them
    last sets them for all threads to come. So what holds between streams is put back when the last one ends."""

    def __init__(self) -> None:
        self._lock, self._open, self._cores = Lock(), 0, 0

    @contextmanager
    def one(self) -> Iterator[int]:
        """Of a stream: torch's threads, as they are where none is open."""
        with self._lock:
            if not self._open:
                self._cores = torch.get_num_threads()
            self._open += 1
        try:
            yield self._cores
        finally:
            with self._lock:
                self._open -= 1
                torch.set_num_threads(self._cores)


_streams = _Streams()


class Predictor:
    """Classifies images.

    An image is a path, a file open for reading, its bytes, a Pillow image, an array ``(H, W)`` or ``(H, W, C)``, or a
    tensor ``(C, H, W)``; arrays and tensors hold uint8, or floats in 0..1, which are rounded to 8 bits. All are brought
    to the network's size and channels as files are in evaluation.

    It stays in its process, but for a fork: what computes cannot be sent. Each process makes its own.
    """

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Predictor stays in its process: make one there, as by Predictor.from_checkpoint")

    def __init__(
        self,
        model: CeiT | ExportedNetwork,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        backend: str | None = None,
        precision: Precision = "float32",
        device: Devices = None,
        workers: int | None = None,
        examples: ExampleImages | None = None,
        network: Network | None = None,
        calibrated: bool = True,
        unknown_below: float | None = None,
        features: bool = False,
    ) -> None:
        """Leaves the model as it is, and computes a copy of it, folded, in eval mode.

        ``class_names`` default to "class 0" and so on, ``preprocessing`` to ImageNet's; the logger ``ceit`` says so.
        ``backend`` is one of ``ceit.inference.backend.BACKENDS``, by default ``eager``, or ``auto``: the measured
        choice, as ``optimize`` makes it. ``examples`` are images for int8, and for ``auto`` to judge by. ``device`` is
        one, by default the machine's accelerator, or several, which take turns. ``workers`` threads each read and
        compute images of their own, by default one for each of torch's threads. ``network`` computes in place of all
        that: it takes images on the CPU, and several threads call it at once. The probabilities are softmax(logits / T)
        where the model has a ``temperature`` T and ``calibrated`` is left on, else softmax(logits). An exported network
        computes on the CPU, in what it was loaded in.

        ``unknown_below`` P calls images unknown whose familiarity is less than P, and so a share P of the images that
        are like those of training; ``KNOWN_REJECTED`` is a sound choice. ``features`` is for ``embed_stream``. With
        either a ``network`` gives features, too, as one of ``with_features`` does.

        Raises: ValueError if names or preprocessing do not fit the model, for a device that is not there, for a
        combination of backend, precision and device that does not exist, and for ``unknown_below`` or ``features`` of a
        model that cannot tell.
        """
        geometry, classes = model.config, model.config.num_classes
        class_names = class_names_of(model) if class_names is None else list(class_names)
        if len(class_names) != classes or not classes:
            raise ValueError(f"{len(class_names)} class names do not fit a model of {classes} classes")
        preprocessing = preprocessing or default_preprocessing(model)
        if preprocessing.in_chans != geometry.in_chans:
            raise ValueError(
                f"mean and std of {preprocessing.in_chans} channels do not fit a model of {geometry.in_chans}"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers {workers} must be at least 1")
        self.workers, self.unknown_below = workers, unknown_below
        self.familiarity = None if unknown_below is None else familiarity_of(model, unknown_below)
        self.gives_features = features or self.familiarity is not None
        if self.gives_features:
            require_features(model)
        if isinstance(model, CeiT):
            devices = devices_for(None, backend)[:1] if device is None else _as_devices(device)
            if network is None:
                callers = workers or torch.get_num_threads()
                work = Work(batch_of(devices), threads=1, callers=callers, examples=lambda: examples)
                computed = with_features(model) if self.gives_features else model
                found = computing(computed, backend or "eager", precision, devices, work)
                network = in_turns(found.networks, found.devices)
            self.device, self.network = devices[0], network
        else:
            refuse_for_exported(backend, device)
            self.device, self.network = torch.device("cpu"), network or model
        self.model, self.image_hw, self.in_chans = model, geometry.image_hw, geometry.in_chans
        self.class_names, self.preprocessing = tuple(class_names), preprocessing
        self.temperature = (model.temperature if calibrated else None) or 1.0

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        precision: Precision = "float32",
        device: Devices = None,
        workers: int | None = None,
        examples: ExampleImages | None = None,
        calibrated: bool = True,
        unknown_below: float | None = None,
        features: bool = False,
    ) -> Self:
        """The predictor in a run directory, a file of weights or an exported file; options as of ``Predictor``.

        Raises: as ``load_checkpoint`` or ``load_exported``; ValueError for options that do not go together.
        """
        path = expanded(path)
        if is_exported(path):
            refuse_for_exported(backend, device)
            computed_in, callers = exported_precision(path, precision), workers or torch.get_num_threads()
            model = load_exported(path, precision=computed_in, threads=1, callers=callers)
            return cls.from_model(
                model, workers=workers, calibrated=calibrated, unknown_below=unknown_below, features=features
            )
        return cls.from_model(
            load_checkpoint(path),
            backend=backend,
            precision=precision,
            device=device,
            workers=workers,
            examples=examples,
            calibrated=calibrated,
            unknown_below=unknown_below,
            features=features,
        )

    @classmethod
    def from_model(
        cls,
        model: CeiT | ExportedNetwork,
        *,
        backend: str | None = None,
        precision: Precision = "float32",
        device: Devices = None,
        workers: int | None = None,
        examples: ExampleImages | None = None,
        network: Network | None = None,
        calibrated: bool = True,
        unknown_below: float | None = None,
        features: bool = False,
    ) -> Self:
        """The predictor of a network that carries its class names and preprocessing, as one that was loaded does.

        Options and errors are those of ``Predictor``.
        """
        return cls(
            model,
            class_names=model.class_names,
            preprocessing=None if model.preprocessing is None else Preprocessing.from_dict(model.preprocessing),
            backend=backend,
            precision=precision,
            device=device,
            workers=workers,
            examples=examples,
            network=network,
            calibrated=calibrated,
            unknown_below=unknown_below,
            features=features,
        )

    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, top_k: int = 5, batch_size: int | None = None
    ) -> list[Prediction]:
        """The ``top_k`` most probable classes of every image, in order; a single image gives a list of one.

        At most ``batch_size`` images are computed at a time, by default ``CPU_BATCH`` or ``ACCELERATOR_BATCH``.
        A file that cannot be read gives a ``Prediction`` with an ``error``.
        Raises: ValueError for an array or tensor that is no image.
        """
        return list(self.predict_stream(_as_images(images), top_k=top_k, batch_size=batch_size))

    def predict_stream(
        self, images: Iterable[ImageInput], *, top_k: int = 5, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """As ``predict``, in constant memory: at most two batches ahead for each worker.

        Every worker reads a batch and computes it, alone: nothing waits for anything, so all are busy to the end.
        """
        if top_k < 1:
            raise ValueError(f"top_k {top_k} must be at least 1")
        return self._stream(images, partial(self._answer, top_k=min(top_k, len(self.class_names))), batch_size)

    def embed_stream(self, images: Iterable[ImageInput], *, batch_size: int | None = None) -> Iterator[Embedding]:
        """The features of every image, in order and in constant memory: what the head gets.

        Raises: ValueError for a predictor without ``features``, or an array or tensor that is no image.
        """
        if not self.gives_features:
            raise ValueError("this predictor gives no features: make it with features=True")
        return self._stream(images, self._embed, batch_size)

    def _stream(
        self,
        images: Iterable[ImageInput],
        answer: Callable[[Sequence[ImageInput], Event], list[_Answer]],
        batch_size: int | None,
    ) -> Iterator[_Answer]:
        """``answer`` of every batch, each by a worker of its own. It is given an event that says that nobody waits."""
        if batch_size is None:
            batch_size = batch_of([self.device])
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be at least 1")
        return self._in_order(images, answer, batch_size)

    def _in_order(
        self,
        images: Iterable[ImageInput],
        answer: Callable[[Sequence[ImageInput], Event], list[_Answer]],
        batch_size: int,
    ) -> Iterator[_Answer]:
        with _streams.one() as cores:
            asked = self.workers or cores
            workers = min(asked, length_hint(images, asked)) or 1  # of few images each gets several cores
            threads = max(1, cores // workers)
            batch_size = min(batch_size, -(-length_hint(images, workers * batch_size) // workers)) or 1
            source, stop = iter(images), Event()
            batches = iter(lambda: list(islice(source, batch_size)), [])
            pool = ThreadPoolExecutor(workers, "predict", initializer=torch.set_num_threads, initargs=(threads,))
            try:
                for answers in map_in_order(pool, lambda batch: answer(batch, stop), batches, 2 * workers):
                    yield from answers
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _answer(self, images: Sequence[ImageInput], stop: Event, *, top_k: int) -> list[Prediction]:
        read, images_bhwc = self._read(images, stop)
        found = iter([] if images_bhwc is None else self._found(images_bhwc, top_k))
        return [
            Prediction(path, error=one) if isinstance(one, str) else replace(next(found), path=path)
            for path, one in read
        ]

    def _embed(self, images: Sequence[ImageInput], stop: Event) -> list[Embedding]:
        read, images_bhwc = self._read(images, stop)
        found: Iterator[np.ndarray] = iter([])
        if images_bhwc is not None:
            with torch.inference_mode():
                outputs = self.network(images_bhwc.permute(0, 3, 1, 2)).float().cpu()
            require_numbers(outputs)
            found = iter(outputs[:, len(self.class_names) :].numpy())
        return [
            Embedding(path, error=one) if isinstance(one, str) else Embedding(path, next(found)) for path, one in read
        ]

    def _read(
        self, images: Sequence[ImageInput], stop: Event
    ) -> tuple[list[tuple[str | None, np.ndarray | str]], Tensor | None]:
        """Of each image its path, and its pixels or why there are none; and those that could be read, as the network
        takes them. Nothing where nobody waits for it."""
        read = list[tuple[str | None, np.ndarray | str]]()
        for image in images:
            if stop.is_set():
                return [], None
            path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
            read.append((path, or_reason(self.pixels, image)))
        pixels = [one for _, one in read if not isinstance(one, str)]
        return read, self.preprocessing.normalise(np.stack(pixels)) if pixels else None

    def pixels(self, source: ImageInput) -> np.ndarray:
        """What the network sees of an image, uint8 ``(H, W, C)``. Raises: UnreadableImageError, OSError, ValueError."""
        if isinstance(source, np.ndarray | Tensor):
            source = to_pillow(source)
        cover = evaluation_cover(self.image_hw, self.preprocessing.crop)
        given: Any = source.read() if _is_file(source) else source
        if given is not source and not isinstance(given, bytes):
            what = f"reading it gives no bytes but {type(given).__name__}: open it in binary mode, or give its bytes"
            raise UnreadableImageError(what, what)
        place = given if isinstance(given, bytes | Image.Image) else _place(given)
        image = read_image(place, self.in_chans, cover)
        return to_array(self.preprocessing.fit(image, self.image_hw))

    def _found(self, images_bhwc: Tensor, top_k: int) -> list[Prediction]:
        """What is said of images, without their paths."""
        classes = len(self.class_names)
        with torch.inference_mode():
            outputs = self.network(images_bhwc.permute(0, 3, 1, 2)).float()
            top = (outputs[:, :classes] / self.temperature).softmax(-1).topk(top_k)
        require_numbers(top.values)
        names = [[self.class_names[i] for i in row] for row in top.indices.tolist()]
        found = [Prediction(None, tuple(map(Score, *row))) for row in zip(names, top.values.tolist(), strict=True)]
        if self.familiarity is None or self.unknown_below is None:
            return found
        shares = self.familiarity.of(outputs[:, classes:]).tolist()
        limit = self.unknown_below
        return [replace(one, familiarity=f, unknown=f < limit) for one, f in zip(found, shares, strict=True)]


def _place(path: str | os.PathLike[str]) -> Path:
    """Raises: UnreadableImageError for what is no path."""
    try:
        if "\0" in os.fspath(path):
            raise PathError("there is a NUL in the path")
        return expanded(path)
    except PathError as error:
        raise UnreadableImageError(str(error), str(error)) from error


def require_features(model: CeiT | ExportedNetwork) -> CeiT:
    """The model, which has features. Raises: ValueError for an exported file."""
    if not isinstance(model, CeiT):
        raise ValueError(
            "an exported file does not give its features, by which images are compared: name the checkpoint instead"
        )
    return model


def familiarity_of(model: CeiT | ExportedNetwork, unknown_below: float) -> Familiarity:
    """The model's. Raises: ValueError for a model that has none, or a share that it cannot tell."""
    model = require_features(model)
    if model.familiarity is None:
        raise ValueError(
            "this model cannot tell unknown images: that takes validation images, 20 or more and one of every class, "
            "and a training by this version of ceit"
        )
    familiarity, fitting = Familiarity.from_dict(model.familiarity), (model.num_classes, model.embed_dim)
    if tuple(familiarity.centers_kd.shape) != fitting:
        told = "{} classes and {} features".format(*familiarity.centers_kd.shape)
        raise ValueError(f"what is said of known images is of {told}, the model has {fitting[0]} and {fitting[1]}")
    if not familiarity.least < unknown_below < 1:
        raise ValueError(
            f"unknown below {unknown_below:g} must be more than {familiarity.least:.4g} and less than 1: the model "
            f"knows the distances of {familiarity.images} validation images"
        )
    return familiarity


def require_numbers(probabilities: Tensor) -> None:
    """Raises: ValueError for an answer that is none."""
    if not probabilities.isfinite().all():
        reasons = "its weights are damaged, its training diverged, or fp16 is too narrow for it"
        raise ValueError(f"the network's answer is not a number: {reasons}")


def batch_of(devices: Sequence[torch.device]) -> int:
    """Images that are computed at a time by default."""
    return CPU_BATCH if devices[0].type == "cpu" else ACCELERATOR_BATCH


def exported_precision(path: Path, precision: str) -> Literal["float32", "bf16"]:
    """What an exported file is computed in: of ``auto``, bf16 only by OpenVINO. Raises: ValueError for another."""
    if precision == "auto" and SUFFIXES[path.suffix.lower()] != "openvino":
        return "float32"
    if (found := chosen(precision, torch.device("cpu"))) in ("float32", "bf16"):
        return "bf16" if found == "bf16" else "float32"
    raise ValueError(
        f"{path} was given its int8 by ceit export, or has none: --precision {precision} is for checkpoints"
    )


def refuse_for_exported(backend: str | None, device: Devices) -> None:
    """Raises: ValueError for what an exported file does not leave open."""
    if backend is not None:
        raise ValueError(f"backend {backend} is for checkpoints: what runs an exported file was chosen by its format")
    named = [device] if device is None or isinstance(device, str | torch.device) else device
    if not all(str(one or "cpu").startswith("cpu") for one in named):
        raise ValueError(f"an exported file is computed on the CPU, not on {device}: name the checkpoint instead")


def _as_devices(device: torch.device | str | Sequence[torch.device | str]) -> tuple[torch.device, ...]:
    if isinstance(device, str):
        return devices_named(device)[:1]
    if isinstance(device, torch.device):
        return (device,)
    return tuple(found for each in device for found in _as_devices(each))


def class_names_of(model: CeiT | ExportedNetwork) -> Sequence[str]:
    """What the model's checkpoint says, else "class 0" and so on, as the logger then says."""
    if model.class_names is not None:
        return model.class_names
    classes = model.config.num_classes
    logger.warning("the checkpoint names no classes: they are called class 0 to class %d", classes - 1)
    return [f"class {i}" for i in range(classes)]


def preprocessing_of(model: CeiT | ExportedNetwork) -> Preprocessing:
    """What the model's checkpoint says, else ImageNet's. Raises: ValueError if it is incomplete or does not fit."""
    return default_preprocessing(model) if model.preprocessing is None else Preprocessing.from_dict(model.preprocessing)


def default_preprocessing(model: CeiT | ExportedNetwork) -> Preprocessing:
    """ImageNet's, as the logger says; small images are taken whole. Raises: ValueError unless it has 3 channels."""
    config = model.config
    if config.in_chans != IMAGENET.in_chans:
        raise ValueError(
            f"the checkpoint has no preprocessing, and ImageNet's does not fit its {config.in_chans} channels; "
            "write mean and std into its JSON file"
        )
    logger.warning("the checkpoint has no preprocessing: ImageNet's is used")
    return replace(IMAGENET, crop=1.0) if max(config.image_hw) <= IN_MEMORY_SIDE else IMAGENET


def to_pillow(image: np.ndarray | Tensor) -> Image.Image:
    """An array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``, of uint8 or of floats in 0..1, as an image.

    Raises: ValueError for another shape, dtype or range.
    """
    shape = tuple(image.shape)
    if isinstance(image, Tensor):
        form, channels = "a tensor must be (C, H, W)", shape[0] if len(shape) == 3 else 0
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        pixels_hwc = np.moveaxis(image, 0, -1) if channels else image
    else:
        pixels_hwc = image[:, :, None] if len(shape) == 2 else image
        form, channels = "an array must be (H, W) or (H, W, C)", pixels_hwc.shape[-1] if pixels_hwc.ndim == 3 else 0
    if not 1 <= channels <= 4 or 0 in shape:
        raise ValueError(f"shape {shape} is no image: {form} with 1 to 4 channels")
    if np.issubdtype(pixels_hwc.dtype, np.floating):
        least, most = pixels_hwc.min(), pixels_hwc.max()
        if not (least > -0.5 / 255 and most < 1 + 0.5 / 255):  # what rounds to 0 to 255
            raise ValueError(f"pixels of {least:g} to {most:g} are out of range: floats must be in 0 to 1")
        pixels_hwc = np.rint(pixels_hwc * 255).astype(np.uint8)
    if pixels_hwc.dtype != np.uint8:
        raise ValueError(f"pixels of {pixels_hwc.dtype} must be uint8, or floats in 0 to 1")
    return to_image(pixels_hwc)


def _as_images(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return [images] if images.ndim < 4 else list(images)
    return [images] if _is_file(images) else images  # which would give its lines


def _is_file(source: object) -> TypeGuard[BinaryIO]:
    """Whether it can be read: an open file, or what a web framework gives in its place."""
    return callable(getattr(source, "read", None)) and not isinstance(source, os.PathLike)
