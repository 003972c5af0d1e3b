"""Sets known by name, out of the cache or out of the package."""

from importlib.resources import files

import numpy as np
import torch

from ceit.data.dataset import IN_MEMORY_SIDE, ArraySplit, ImageDataset, channel_statistics, from_pixels, resized
from ceit.data.decode import ARRAY_NAMES, Arrays
from ceit.data.fetch import cache_dir
from ceit.data.preprocessing import to_array, to_image
from ceit.data.sources import SETS


def load_named(name: str, img_size: tuple[int, int] | None, in_chans: int | None) -> ImageDataset:
    """The set ``name``, at its own size and channels unless given. Raises: ValueError if it was not fetched."""
    named = SETS[name]
    arrays = _digits() if name == "digits" else _cached(name)
    size = img_size or named.image_shape[:2]
    train, test = (_split(arrays, part, size, in_chans or named.image_shape[2]) for part in ("train", "test"))
    mean, std = channel_statistics(train.pixels())
    return ImageDataset(
        name=name,
        class_names=named.class_names,
        train=train,
        validation=None,
        test=test,
        mean=mean,
        std=std,
        img_size=size,
        licence=named.licence,
        citation=named.citation,
        mirror_safe=named.mirror_safe,
    )


def _split(arrays: Arrays, part: str, size: tuple[int, int], in_chans: int) -> ArraySplit:
    pixels_nhwc = _with_channels(arrays[f"{part}_images"], in_chans)
    if max(size) <= IN_MEMORY_SIDE:
        pixels_nhwc = resized(pixels_nhwc, size)
    return ArraySplit(from_pixels(pixels_nhwc), torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64)))


def _with_channels(pixels_nhwc: np.ndarray, channels: int) -> np.ndarray:
    """Grey from RGB by luminance, RGB from grey by repetition; the array itself if it has that many channels."""
    if pixels_nhwc.shape[3] == channels:
        return pixels_nhwc
    if channels == 3:
        return np.repeat(pixels_nhwc, 3, axis=3)
    return np.stack([to_array(to_image(pixels).convert("L")) for pixels in pixels_nhwc])


def _cached(name: str) -> Arrays:
    folder = cache_dir() / name
    if not folder.is_dir():
        offline = "or use digits, which ships with the package"
        raise ValueError(f"{name} is not in {cache_dir()}: get it with `ceit data fetch {name}`, {offline}")
    # Copy on write: the arrays stay on the disk until they are read, and nothing here can change the files.
    return {key: np.load(folder / f"{key}.npy", mmap_mode="c") for key in ARRAY_NAMES}


def _digits() -> Arrays:
    with files("ceit.data").joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images_nhwc, labels, test = stored["images"][..., None], stored["labels"], stored["test"]
    train = np.setdiff1d(np.arange(len(labels)), test)
    return {
        "train_images": images_nhwc[train],
        "train_labels": labels[train],
        "test_images": images_nhwc[test],
        "test_labels": labels[test],
    }
