"""Image files whose classes are known to a data set: probed, read or left on the disk, cut by a seed where unsplit."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ceit.data.cache import file_state, remembered
from ceit.data.cut import digest_of
from ceit.data.image import read_header, read_image
from ceit.data.labelled import LabelledSet, SizeChoice, chosen_size
from ceit.data.preprocessing import IMAGENET, fit, to_array
from ceit.data.splits import (
    IN_MEMORY_SIDE,
    ArraySplit,
    FileSplit,
    Split,
    from_pixels,
)
from ceit.data.threads import each

LARGE_SIZE = (224, 224)  # what images above IN_MEMORY_SIDE are brought to unless asked otherwise

_PROBED_IMAGES = 1000  # of a set, to find its usual size and channels
_NAMED_IMAGES = 3  # of the broken ones, in an error
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_IMAGENET_GREY = ((0.449,), (0.226,))  # mean and std of its luminance

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Listing:
    """The image files of a split, in order, and the class of each; keys are relative to ``root``."""

    root: Path
    paths: Sequence[Path]
    class_names: Sequence[str]

    def take(self, indices: Iterable[int]) -> "Listing":
        """The files at ``indices``, in that order."""
        chosen = list(indices)
        return Listing(self.root, [self.paths[i] for i in chosen], [self.class_names[i] for i in chosen])

    def without(self, broken: Collection[Path]) -> "Listing":
        """All files but those."""
        return self.take(i for i, path in enumerate(self.paths) if path not in broken) if broken else self

    def split(self, class_names: Sequence[str]) -> FileSplit:
        """The split that leaves its files on the disk; its labels number ``class_names``."""
        return FileSplit(tuple(self.paths), self.labels(class_names), self.root)

    def labels(self, class_names: Sequence[str]) -> torch.Tensor:
        """The number of each file's class among ``class_names``, int64 ``(n,)``."""
        numbers = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([numbers[name] for name in self.class_names], dtype=torch.int64)


def load_files(
    listings: Mapping[str, Listing],
    place: Path,
    img_size: SizeChoice,
    in_chans: int | None,
    skip_broken: bool,
    order: Callable[[str], Any] = str,
    remarks: Sequence[str] = (),
) -> LabelledSet:
    """The set of files listed under ``train``, ``validation`` and ``test``, or ``all``; they lie in or below ``place``.

    Classes are sorted by ``order``. ``img_size`` defaults to the median of the shorter sides rounded up to a multiple
    of 4, if that is at most 64, else to 224; ``in_chans`` to 1 if all images are grey, else to 3.

    Every file is decoded once: those of at most 64 px stay in memory, of the others the verdict is kept in the cache.

    Raises: ValueError if, unless ``skip_broken``, files cannot be read.
    """
    paths = [path for listing in listings.values() for path in listing.paths]
    usual_size, usual_chans = usual_geometry(paths, read_header)
    size, chans = chosen_size(img_size, usual_size), in_chans or usual_chans
    in_memory = max(size) <= IN_MEMORY_SIDE
    images, broken = _read_all(paths, size, chans) if in_memory else ({}, unreadable(paths, chans))
    lines = tuple(f"{shown_path(path, place)} ({reason})" for path, reason in broken.items())
    if broken and not skip_broken:
        raise ValueError(broken_sentence(lines, len(paths)))
    found = Counter(name for listing in listings.values() for name in listing.class_names)
    listings = {split: listing.without(broken) for split, listing in listings.items()}
    class_names = tuple(sorted({name for listing in listings.values() for name in listing.class_names}, key=order))
    lost = [
        f"class {name!r} is left out: none of its {count:,} images can be read"
        for name, count in found.items()
        if name not in class_names
    ]

    def as_split(listing: Listing) -> Split:
        split = listing.split(class_names)
        split = replace(split, digests=content_digests(Path.read_bytes, split.paths))
        if not in_memory:
            return split
        keys = tuple(split.key(index) for index in range(len(split)))
        pixels = np.stack([images[path] for path in listing.paths]) if len(split) else np.zeros((0, *size, chans), "u1")
        return ArraySplit(from_pixels(pixels), split.labels, keys, split.digests)

    mean, std = usual_statistics(chans)
    return LabelledSet(
        name=place.resolve().name,
        place=f"{'folder' if place.is_dir() else 'file'} {place}",
        class_names=class_names,
        parts={name: as_split(listing) for name, listing in listings.items()},
        mean=mean,
        std=std,
        img_size=size,
        skipped=lines,
        remarks=(*remarks, *lost),
    )


def content_digests(read: Callable[[_Item], bytes], items: Sequence[_Item]) -> np.ndarray:
    """``digest_of`` every item's bytes, uint64 ``(n,)``."""
    results = each(lambda item: digest_of(read(item)), items, "hashing images")
    return np.array([digest for _, digest in results], np.uint64)


def usual_geometry(
    items: Sequence[_Item], header: Callable[[_Item], tuple[tuple[int, int], str]]
) -> tuple[tuple[int, int], int]:
    """Usual size and channels, from the headers (size and Pillow's mode) of up to 1,000 images spread over the set."""
    sides, modes = [], set()
    for item in items[:: -(-len(items) // _PROBED_IMAGES) or 1]:
        with suppress(ValueError, OSError):  # a broken file is reported when it is decoded
            size, mode = header(item)
            sides.append(min(size))
            modes.add(mode)
    if not sides:
        return LARGE_SIZE, 3
    side = -(-int(np.ceil(np.median(sides))) // 4) * 4
    return (side, side) if side <= IN_MEMORY_SIDE else LARGE_SIZE, 1 if modes <= _GREY_MODES else 3


def usual_statistics(chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images that are not held in memory: ImageNet's."""
    return (IMAGENET.mean, IMAGENET.std) if chans == 3 else _IMAGENET_GREY


def unreadable(paths: Sequence[Path], chans: int) -> dict[Path, str]:
    """Why files cannot be read, by decoding each once; the verdict is kept in the cache while no file changes."""
    broken = remembered(
        (f"{chans}", *map(file_state, paths)),
        lambda: [reason for _, reason in each(lambda path: read_image(path, chans).size, paths, "checking images")],
    )
    return {paths[number]: reason for number, reason in broken.items()}


def shown_path(path: Path, place: Path) -> Path:
    """The path as messages show it: relative to ``place``, a folder or a file, if it lies there."""
    folder = place if place.is_dir() else place.parent
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def broken_sentence(lines: Sequence[str], count: int) -> str:
    """The error of a set some of whose ``count`` images cannot be read; ``lines`` have each its name and reason."""
    more = ["..."] if len(lines) > _NAMED_IMAGES else []
    fix = "remove them or leave them out with --skip-broken"
    return f"{len(lines)} of {count} files cannot be read: {', '.join([*lines[:_NAMED_IMAGES], *more])}; {fix}"


def _read_all(
    paths: Sequence[Path], size: tuple[int, int], chans: int
) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Every readable file as uint8 ``(H, W, C)``, and why the others are not."""
    images, broken = {}, {}
    for path, result in each(lambda path: to_array(fit(read_image(path, chans), size)), paths, "reading images"):
        (broken if isinstance(result, str) else images)[path] = result
    return images, broken
