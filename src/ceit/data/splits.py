"""What a data set is here: labelled images in splits, wherever they lie.

Letters: n images, C channels, H height, W width.
"""

import os
from collections.abc import Sequence
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ceit.data.cache import file_state
from ceit.data.cut import SHARE_STREAM, VALIDATION_STREAM, by_content, nearest, shares_of_classes, stratified
from ceit.data.encoded import EncodedSplit
from ceit.data.image import image_bytes, image_mode, read_header
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import Preprocessing, fit, to_array, to_image
from ceit.data.reduced import Size, usual_crop
from ceit.data.survey import Survey
from ceit.messages import plain, require_plain


class Split(Protocol):
    """Labelled images, wherever they lie: a frozen dataclass, so that ``dataclasses.replace`` gives it other labels."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def labels(self) -> Tensor:
        """int64 ``(n,)``."""
        ...

    @property
    def digests(self) -> np.ndarray | None:
        """What each image is known by, uint64 ``(n,)`` of ``digest_of``; None in a set known by name: it is fixed."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int, in_chans: int, cover: Size | None = None) -> Image.Image:
        """One image as ``RGB`` (three channels) or ``L`` (one). Raises: BrokenImageError, which names the sample.

        ``cover`` may spare work: what is larger comes reduced to it, see ``ceit.data.reduced``.
        """
        ...

    def key(self, index: int) -> str:
        """The sample's name, stable across runs, machines and subsets: ``class/name``, or a number."""
        ...

    def name(self, index: int) -> str:
        """What people call the sample: its file, as it was given, or where it lies in one."""
        ...

    def subset(self, indices: Tensor) -> "Split":
        """The samples at ``indices``, in that order."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory: uint8 ``(n, C, H, W)`` whose channels lie innermost; without ``keys`` they are numbered.

    ``names`` are those of the files that they were read from, if they were.
    """

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...] = ()
    digests: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self) -> np.ndarray:
        """The images as ``(n, H, W, C)``, the way they lie in memory; no copy."""
        return self.images.permute(0, 2, 3, 1).numpy()

    def read(self, index: int, in_chans: int, cover: Size | None = None) -> Image.Image:
        return to_image(self.images[index].permute(1, 2, 0).numpy()).convert(image_mode(in_chans))

    def key(self, index: int) -> str:
        return self.keys[index] if self.keys else str(index)

    def name(self, index: int) -> str:
        return self.names[index] if self.names else self.key(index)

    def subset(self, indices: Tensor) -> "ArraySplit":
        keys, chosen = tuple(self.key(index) for index in indices.tolist()), indices.numpy()
        digests = None if self.digests is None else self.digests[chosen]
        names = tuple(self.names[index] for index in indices.tolist()) if self.names else ()
        return ArraySplit(from_pixels(self.pixels()[chosen]), self.labels[indices], keys, digests, names)


@dataclass(frozen=True)
class FileSplit(EncodedSplit):
    """Images on the disk, read when they are needed, and int64 labels ``(n,)``.

    A sample's key is its path relative to ``root``, without suffix; a path that lies elsewhere stays whole.
    """

    paths: PathArray
    labels: Tensor
    root: Path = Path()
    digests: np.ndarray | None = None

    def encoded(self, index: int) -> bytes:
        return image_bytes(self.paths[index])

    def header(self, index: int) -> tuple[tuple[int, int], str]:
        return read_header(self.paths[index], self.name(index))  # without reading all of a large file

    def state(self, index: int) -> str:
        state = file_state(self.paths.text(index))
        return state if "\0" in state else ""

    def name(self, index: int) -> str:
        return self.paths.text(index)

    def key(self, index: int) -> str:
        name = os.path.splitext(self.paths.text(index))[0]
        return name.removeprefix(os.path.join(self.root, "")).replace(os.sep, "/")

    def subset(self, indices: Tensor) -> "FileSplit":
        digests = None if self.digests is None else self.digests[indices.numpy()]
        return FileSplit(self.paths.take(indices.tolist()), self.labels[indices], self.root, digests)


@dataclass(frozen=True)
class JoinedSplit:
    """Splits after one another as one; labels may be replaced. What they are ``called`` tells equal numbers apart."""

    splits: tuple[Split, ...]
    labels: Tensor
    where: np.ndarray
    """``(n, 2)``: which split, and which of its images."""
    digests: np.ndarray | None
    called: tuple[str, ...] = ()

    @classmethod
    def of(cls, splits: Sequence[Split], called: Sequence[str] = ()) -> "JoinedSplit":
        """All images of all splits; without digests if one has none."""
        places = [np.stack([np.full(len(s), number), np.arange(len(s))], 1) for number, s in enumerate(splits)]
        known = [split.digests for split in splits if split.digests is not None]
        digests = np.concatenate(known) if len(known) == len(splits) else None
        labels = torch.cat([split.labels for split in splits])
        return cls(tuple(splits), labels, np.concatenate(places), digests, tuple(called))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, in_chans: int, cover: Size | None = None) -> Image.Image:
        number, place = self.where[index].tolist()
        return self.splits[number].read(place, in_chans, cover)

    def key(self, index: int) -> str:
        number, place = self.where[index].tolist()
        return self.splits[number].key(place)

    def name(self, index: int) -> str:
        number, place = self.where[index].tolist()
        name = self.splits[number].name(place)
        return f"{self.called[number]}/{name}" if self.called and name.isdecimal() else name

    def subset(self, indices: Tensor) -> "JoinedSplit":
        chosen = indices.numpy()
        digests = None if self.digests is None else self.digests[chosen]
        return replace(self, labels=self.labels[indices], where=self.where[chosen], digests=digests)


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """What belongs to all images: ``skipped`` has a line per file left out, ``remarks`` what else is to be said."""

    name: str
    class_names: tuple[str, ...]
    img_size: tuple[int, int]
    licence: str = ""
    citation: str = ""
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    mirror_safe: bool = True  # whether an image mirrored left to right is still of its class; not so for digits

    def __post_init__(self) -> None:
        """Raises: ValueError for a class whose name has control characters. In what is told they are spelt out."""
        require_plain("class", self.class_names)
        for told in ("name", "licence", "citation"):
            object.__setattr__(self, told, plain(getattr(self, told)))
        for told in ("skipped", "remarks"):
            object.__setattr__(self, told, tuple(map(plain, getattr(self, told))))


@dataclass(frozen=True, kw_only=True)
class ImageDataset(SetDescription):
    """A data set as training takes it; ``mean`` and ``std`` are per channel, of the training images in 0..1."""

    train: Split
    validation: Split | None
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_chans(self) -> int:
        return len(self.mean)

    @property
    def preprocessing(self) -> Preprocessing:
        """How these images come to a network: small ones whole, files by the released code's crop of 0.875."""
        crop = 1.0 if isinstance(self.train, ArraySplit) else usual_crop(self.img_size)
        return Preprocessing(self.mean, self.std, crop)


def readable(split: Split, found: Survey, rows: np.ndarray) -> Split:
    """The images that a survey could read, in memory if it holds them: image ``i`` is number ``rows[i]`` there."""
    kept = np.flatnonzero(~np.isin(rows, [*found.broken]))
    part, chosen = split.subset(torch.from_numpy(kept)), rows[kept]
    if found.pixels is None:
        return part
    is_whole = len(chosen) == len(found.pixels)  # then nothing is copied
    pixels_nhwc = found.pixels if is_whole and (np.diff(chosen) == 1).all() else found.pixels[chosen]
    keys, names = (tuple(map(told, range(len(part)))) for told in (part.key, part.name))
    return ArraySplit(from_pixels(pixels_nhwc), part.labels, keys, part.digests, names)


def cut_validation(
    split: Split, percent_or_count: float, seed: int, stream: int = VALIDATION_STREAM, least: int = 0
) -> tuple[Split, Split]:
    """Cuts a stratified part off ``split``: ``(rest, part)``, each in the order of ``split``.

    A float is a percentage, of which at least one image comes, an int a number of images. Every class gives its share,
    at least ``least`` images, and otherwise keeps one. Images with digests are cut by content, and the total is about
    what was asked for; a fixed set gives it exactly, or a little more for ``least``. ``stream`` tells cuts after one
    another apart. Raises: ValueError if the part would be empty or could not leave every class an image.
    """
    labels = split.labels.numpy()
    if isinstance(count := percent_or_count, float):
        count = max(round(len(labels) * count / 100), int(count > 0))
    sizes = np.bincount(labels)
    most = len(labels) - np.count_nonzero(sizes)
    if not 0 < count <= most:
        limit = f"it must have 1 to {most}" if most else "none is left for it"
        what = f"a validation part of {count} images cannot be cut off {len(labels)}"
        raise ValueError(f"{what}: every class keeps an image, so {limit}")
    if split.digests is None:
        counts = np.maximum(shares_of_classes(sizes, count), np.minimum(sizes, least))
        part = stratified(labels, counts, seed)
    else:
        part, _ = by_content(split.digests, labels, (count / len(labels),), seed, stream, least)
        if not len(part):
            part = nearest(split.digests, labels, seed, stream)
        if not len(part):
            raise ValueError(f"a validation part cannot be cut off {len(labels)} images: no class has two that differ")
    rest = np.setdiff1d(np.arange(len(labels)), part)
    return split.subset(torch.from_numpy(rest)), split.subset(torch.from_numpy(part))


def cut_share(train: Split, percent: float, seed: int) -> tuple[Split, Split]:
    """The images that ``train_percent`` leaves unused, and those that train, of each class at least one.

    Raises: ValueError as ``cut_validation``.
    """
    return cut_validation(train, round(len(train) * percent / 100), seed, SHARE_STREAM, least=1)


def from_pixels(pixels_nhwc: np.ndarray) -> Tensor:
    """uint8 ``(n, H, W, C)`` as the images ``(n, C, H, W)`` of an ``ArraySplit``; no copy of a contiguous array."""
    return torch.from_numpy(np.require(pixels_nhwc, requirements=["C", "W"])).permute(0, 3, 1, 2)


def resized(pixels_nhwc: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """All images brought to ``size = (H, W)`` by ``fit``; the array itself if they have that size."""
    if pixels_nhwc.shape[1:3] == size:
        return pixels_nhwc
    return np.stack([to_array(fit(to_image(pixels), size, interpolation=interpolation)) for pixels in pixels_nhwc])


def channel_statistics(pixels_nhwc: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel values in 0..1, to five digits; a constant channel has std 1."""
    channels = pixels_nhwc.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels_nhwc), 4096):  # a histogram is exact for any number of images
        chunk = pixels_nhwc[start : start + 4096].reshape(-1, channels)
        counts += np.stack([np.bincount(chunk[:, c], minlength=256) for c in range(channels)])
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    means = shares @ values
    stds = np.sqrt((shares * (values - means[:, None]) ** 2).sum(1))
    return tuple(round(float(m), 5) for m in means), tuple(round(float(s), 5) if s > 1e-4 else 1.0 for s in stds)
