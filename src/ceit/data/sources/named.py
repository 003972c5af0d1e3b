"""Sets known by name, out of the cache or out of the package."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from ceit.data.cache import cache_dir
from ceit.data.labelled import LabelledSet
from ceit.data.preprocessing import to_array, to_image
from ceit.data.reduced import IN_MEMORY_SIDE
from ceit.data.sources.archives import ARRAY_NAMES, Arrays, open_unpacked
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.listing import usual_statistics
from ceit.data.sources.load_options import LoadOptions
from ceit.data.splits import ArraySplit, from_pixels, resized


def load_named(name: str, folder: Path | None, options: LoadOptions) -> LabelledSet:
    """The set ``name`` out of the cache, or of a folder that holds the files of its owner's archives.

    It has its own size and channels unless given. Raises: ValueError if it was not fetched, or lies not in the folder.
    """
    named = SETS[name]
    arrays = _stored(name) if folder is None else _unpacked(name, folder)
    size, chans = options.size_for(named.image_shape[:2]), options.in_chans or named.image_shape[2]
    parts = {}
    for part in ("train", "test"):
        pixels_nhwc = _with_channels(arrays[f"{part}_images"], chans)
        if max(size) <= IN_MEMORY_SIDE:
            pixels_nhwc = resized(pixels_nhwc, size)
        labels = torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64))
        parts[part] = ArraySplit(from_pixels(pixels_nhwc), labels)
    return LabelledSet(
        name=name,
        place=name,
        class_names=named.class_names,
        parts=parts,
        statistics=usual_statistics(chans),  # not used: the images are in memory
        img_size=size,
        licence=named.licence,
        citation=named.citation,
        mirror_safe=named.mirror_safe,
    )


def _with_channels(pixels_nhwc: np.ndarray, channels: int) -> np.ndarray:
    """Grey from RGB by luminance, RGB from grey by repetition; the array itself if it has that many channels."""
    if pixels_nhwc.shape[3] == channels:
        return pixels_nhwc
    if channels == 3:
        return np.repeat(pixels_nhwc, 3, axis=3)
    return np.stack([to_array(to_image(pixels).convert("L")) for pixels in pixels_nhwc])


def _stored(name: str) -> Arrays:
    if name == "digits":
        return _digits()
    folder = cache_dir() / name
    if not folder.is_dir():
        fix = f"get it with `ceit data fetch {name}`, or use digits, which ships with the package"
        raise ValueError(f"{name} is not in {folder.parent}: {fix}")
    # Copy on write: the arrays stay on the disk until they are read, and nothing here can change the files.
    return {key: np.load(folder / f"{key}.npy", mmap_mode="c") for key in ARRAY_NAMES}


def _unpacked(name: str, folder: Path) -> Arrays:
    """Raises: ValueError if no source's files are all there, or they are not of that set's form."""
    if not folder.is_dir():
        raise ValueError(f"{name} is not in {folder}: there is no such folder")
    members, failures = open_unpacked(folder), []
    for source in SETS[name].sources:
        try:
            arrays = source.decode(members)
            for part in ("train", "test"):
                images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
                if len(images) != len(labels) or labels.max() >= len(SETS[name].class_names):
                    raise ValueError(f"its {part} part has {len(images)} images and {len(labels)} labels")
            return arrays
        except ValueError as error:
            failures.append(str(error))
    raise ValueError(f"{name} is not in {folder}: {failures[0] if failures else 'it ships with the package'}")


def _digits() -> Arrays:
    with files("ceit.data").joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images_nhwc, labels, test = stored["images"][..., None], stored["labels"], stored["test"]
    train = np.setdiff1d(np.arange(len(labels)), test)
    return dict(zip(ARRAY_NAMES, (images_nhwc[train], labels[train], images_nhwc[test], labels[test]), strict=True))
