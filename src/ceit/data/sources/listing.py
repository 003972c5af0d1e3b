"""Image files whose classes are known to a data set: probed, read or left on the disk, cut by a seed where unsplit."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ceit.data.image import read_header
from ceit.data.labelled import LabelledSet, require_classes
from ceit.data.path_array import PathArray
from ceit.data.preprocessing import IMAGENET, Preprocessing
from ceit.data.reduced import IN_MEMORY_SIDE, Size
from ceit.data.sources.load_options import LoadOptions
from ceit.data.splits import FileSplit, readable
from ceit.data.threads import read_all

LARGE_SIZE = (224, 224)  # what images above IN_MEMORY_SIDE are brought to unless asked otherwise

_PROBED_IMAGES = 1000  # of a set, to find its usual size and channels
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

    def of_classes(self, classes: Collection[str]) -> "Listing":
        """The files of these classes."""
        return self.take(index for index, name in enumerate(self.class_names) if name in classes)

    def split(self, class_names: Sequence[str]) -> FileSplit:
        """The split that leaves its files on the disk; its labels number ``class_names``."""
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = torch.tensor([numbers[name] for name in self.class_names], dtype=torch.int64)
        return FileSplit(PathArray.of(self.paths), labels, self.root)


def load_files(
    listings: Mapping[str, Listing],
    place: Path,
    options: LoadOptions,
    order: Callable[[str], Any] = str,
    remarks: Sequence[str] = (),
) -> LabelledSet:
    """The set of files listed under ``train``, ``validation`` and ``test``, or ``all``; they lie in or below ``place``.

    Classes are sorted by ``order``. ``img_size`` defaults to the median of the shorter sides rounded up to a multiple
    of 4, if that is at most 64, else to 224; ``in_chans`` to 1 if all images are grey, else to 3. Every file is read
    once, see ``ceit.data.survey``. With ``classes`` files of others are left out before.

    Raises: ValueError if, unless ``skip_broken``, files cannot be read, and as ``require_classes``.
    """
    if options.classes is not None:
        there = {name for listing in listings.values() for name in listing.class_names}
        require_classes(options.classes, there, place.resolve().name)
        listings = {split: listing.of_classes(set(options.classes)) for split, listing in listings.items()}
    paths = [path for listing in listings.values() for path in listing.paths]
    usual_size, chans = usual_geometry(paths, read_header, options.in_chans)
    size = options.size_for(usual_size)
    files = FileSplit(PathArray.of(paths), torch.zeros(len(paths), dtype=torch.int64))
    found = options.survey(files, options.form_for(len(paths), size, usual_size, chans))
    lines = tuple(f"{shown_path(paths[number], place)} ({reason})" for number, reason in found.broken.items())
    options.require_whole(lines, len(paths))
    first, rows, kept = 0, {}, {}
    for split, listing in listings.items():
        good = [index for index in range(len(listing.paths)) if first + index not in found.broken]
        rows[split], kept[split] = first + np.array(good, np.int64), listing.take(good)
        first += len(listing.paths)
    class_names = tuple(sorted({name for listing in kept.values() for name in listing.class_names}, key=order))
    counts = Counter(name for listing in listings.values() for name in listing.class_names)
    lost = [(name, count) for name, count in counts.items() if name not in class_names]
    if lost and options.classes is not None:
        name, count = lost[0]
        raise ValueError(
            f"none of the {count:,} images of class {name!r} can be read: mend them, or leave it out of classes"
        )
    parts = {
        split: readable(replace(listing.split(class_names), digests=found.digests[rows[split]]), found, rows[split])
        for split, listing in kept.items()
    }
    return LabelledSet(
        name=place.resolve().name,
        place=f"{'folder' if place.is_dir() else 'file'} {place}",
        class_names=class_names,
        parts=parts,
        statistics=usual_statistics(chans),
        img_size=size,
        skipped=lines,
        remarks=(*remarks, *(f"class {name!r} is left out: none of its {n:,} images can be read" for name, n in lost)),
    )


def usual_geometry(
    items: Sequence[_Item], header: Callable[[_Item], tuple[Size, str]], in_chans: int | None = None
) -> tuple[Size, int]:
    """Usual size and channels, from the headers: size, and Pillow's mode.

    The size is that of up to 1,000 images spread over the set. Unless ``in_chans`` is asked for, one image in colour
    makes 3 channels: where those are grey the others are looked at until one is met.
    """
    step = -(-len(items) // _PROBED_IMAGES) or 1
    sides, is_grey = [], True
    for item in items[::step]:
        with suppress(ValueError, OSError):  # a broken file is reported when it is decoded
            size, mode = header(item)
            sides.append(min(size))
            is_grey &= mode in _GREY_MODES
    if not sides:
        return LARGE_SIZE, in_chans or 3
    if in_chans is None and is_grey:
        others = [item for number, item in enumerate(items) if number % step]
        heads = read_all(header, others, "looking for colour")
        is_grey = all(isinstance(head, str) or head[1] in _GREY_MODES for _, head in heads)
    side = -(-int(np.ceil(np.median(sides))) // 4) * 4
    return (side, side) if side <= IN_MEMORY_SIDE else LARGE_SIZE, in_chans or (1 if is_grey else 3)


def size_to_read(image_hw: Size, preprocessing: Preprocessing) -> Size:
    """What to ask of ``load_images`` for a network: its size, or one that leaves small images as they lie on the disk.

    Those must not be held in the network's size where only a part of them is seen, or where it comes of another
    interpolation.
    """
    is_small = max(image_hw) <= IN_MEMORY_SIDE
    return LARGE_SIZE if is_small and not preprocessing.takes_whole else image_hw


def usual_statistics(chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images that are not held in memory: ImageNet's."""
    return (IMAGENET.mean, IMAGENET.std) if chans == 3 else _IMAGENET_GREY


def shown_path(path: Path, place: Path) -> Path:
    """The path as messages show it: relative to ``place``, a folder or a file, if it lies there."""
    folder = place if place.is_dir() else place.parent
    return path.relative_to(folder) if path.is_relative_to(folder) else path
