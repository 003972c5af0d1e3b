"""What a data set is here, and how one is asked for, by name or by folder.

Letters: n images, C channels, H height, W width.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ceit.data.image import image_mode
from ceit.data.preprocessing import Preprocessing, fit, to_array, to_image
from ceit.data.random_bits import shuffled
from ceit.model.names import unknown

IN_MEMORY_SIDE = 64  # up to this many pixels a side, all images are decoded once and stay in memory as uint8


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory: uint8 ``(n, C, H, W)`` whose channels lie innermost, and int64 labels ``(n,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self) -> np.ndarray:
        """The images as ``(n, H, W, C)``, the way they lie in memory; no copy."""
        return self.images.permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class FileSplit:
    """Images on the disk, read when they are needed, and int64 labels ``(n,)``."""

    paths: tuple[Path, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


Split = ArraySplit | FileSplit


@dataclass(frozen=True)
class ImageDataset:
    """A data set: its splits (``validation`` is None where the set has none) and what belongs to all of them.

    ``mean`` and ``std`` are per channel, of the training images in 0..1. ``skipped`` has a line per file left out.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: tuple[int, int]
    licence: str = ""
    citation: str = ""
    skipped: tuple[str, ...] = ()
    mirror_safe: bool = True  # whether an image mirrored left to right is still of its class; not so for digits

    @property
    def in_chans(self) -> int:
        return len(self.mean)

    @property
    def preprocessing(self) -> Preprocessing:
        """How these images come to a network: small ones whole, files by the released code's crop of 0.875."""
        return Preprocessing(self.mean, self.std, crop=1.0 if isinstance(self.train, ArraySplit) else 0.875)


def load_dataset(
    name_or_dir: str | Path,
    *,
    img_size: tuple[int, int] | None = None,
    in_chans: int | None = None,
    seed: int = 0,
    skip_broken: bool = False,
) -> ImageDataset:
    """A set by name (``cifar10``, ...), else by folder: see ``ceit.data.folder.load_folder``.

    ``img_size`` ``(H, W)`` and ``in_chans`` (1 or 3) are those of the set unless given. Up to 64 px the images are held
    in memory at exactly that size; larger ones stay as they are and the loader resizes them. ``seed`` splits a folder
    that comes unsplit. ``skip_broken`` leaves unreadable files of a folder out and names them in ``skipped``.

    Raises: ValueError for an unknown name, a set not fetched yet, a folder that is no data set, or unreadable files.
    """
    from ceit.data.folder import load_folder
    from ceit.data.named import load_named
    from ceit.data.sources import SETS

    if img_size is not None and min(img_size) < 1:
        raise ValueError(f"image size {img_size} must be positive")
    if in_chans is not None:
        image_mode(in_chans)
    text = os.fspath(name_or_dir)
    if text in SETS:
        return load_named(text, img_size, in_chans)
    folder = Path(text).expanduser()
    if folder.exists():
        return load_folder(folder, img_size, in_chans, seed, skip_broken)
    if folder.name == text:
        raise ValueError(f"{unknown('data set', text, SETS)}; there is no folder of that name either")
    raise ValueError(f"data folder {text} does not exist")


def subset(split: Split, indices: Tensor) -> Split:
    """The images at ``indices``, in that order."""
    if isinstance(split, ArraySplit):
        return ArraySplit(from_pixels(split.pixels()[indices.numpy()]), split.labels[indices])
    return FileSplit(tuple(split.paths[i] for i in indices.tolist()), split.labels[indices])


def cut_validation(split: Split, percent_or_count: float, seed: int) -> tuple[Split, Split]:
    """Cuts a stratified part off ``split``: ``(rest, part)``, each in the order of ``split``.

    A float is a percentage, an int a number of images. Every class gives its share, rounded so that the total is exact,
    and keeps at least one image. Raises: ValueError if the part would be empty or could not leave every class an image.
    """
    labels = split.labels.numpy()
    count = percent_or_count if isinstance(percent_or_count, int) else round(len(labels) * percent_or_count / 100)
    sizes = np.bincount(labels)
    most = len(labels) - np.count_nonzero(sizes)
    if not 0 < count <= most:
        limit = f"it must have 1 to {most}, as every class keeps an image"
        raise ValueError(f"a validation part of {count} images cannot be cut off {len(labels)}: {limit}")
    part = stratified(labels, _shares(sizes, count), seed)
    rest = np.setdiff1d(np.arange(len(labels)), part)
    return subset(split, torch.from_numpy(rest)), subset(split, torch.from_numpy(part))


def stratified(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """The sorted indices of ``counts[c]`` images of every class ``c``: a function of labels, counts and seed alone."""
    order = shuffled(len(labels), seed, epoch=-1)  # no epoch of training has this number
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts.tolist())]))


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """``count`` shared out in proportion to ``sizes``, largest remainders first; no class gives its last image."""
    exact = sizes * count / sizes.sum()
    counts = np.minimum(exact.astype(np.int64), np.maximum(sizes - 1, 0))
    while missing := count - counts.sum():
        room = np.flatnonzero(counts < sizes - 1)
        counts[room[np.argsort(counts[room] - exact[room], kind="stable")[:missing]]] += 1
    return counts


def from_pixels(pixels_nhwc: np.ndarray) -> Tensor:
    """uint8 ``(n, H, W, C)`` as the images ``(n, C, H, W)`` of an ``ArraySplit``; no copy of a contiguous array."""
    return torch.from_numpy(np.ascontiguousarray(pixels_nhwc)).permute(0, 3, 1, 2)


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
