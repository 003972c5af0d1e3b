"""Folders of class folders: found, checked, read or left on the disk, and split by a seed where they come unsplit."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ceit.data.dataset import (
    IN_MEMORY_SIDE,
    ArraySplit,
    FileSplit,
    ImageDataset,
    Split,
    channel_statistics,
    from_pixels,
    stratified,
)
from ceit.data.fetch import cache_dir
from ceit.data.image import IMAGE_SUFFIXES, BrokenImageError, read_header, read_image
from ceit.data.preprocessing import IMAGENET, fit, to_array

VALIDATION_NAMES = ("val", "valid", "validation")
LARGE_SIZE = (224, 224)  # what images above IN_MEMORY_SIDE are brought to unless asked otherwise
_PROBED_FILES = 1000  # of a folder, to find its usual size and channels
_NAMED_FILES = 3  # of the broken ones, in an error
_BLOCK_FILES = 1024  # handed to the threads at a time
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_IMAGENET_GREY = ((0.449,), (0.226,))  # mean and std of its luminance

_Result = TypeVar("_Result")


class _File(NamedTuple):
    path: Path
    class_name: str


def load_folder(
    root: Path, img_size: tuple[int, int] | None, in_chans: int | None, seed: int, skip_broken: bool
) -> ImageDataset:
    """The data set in ``root``: ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/`` of class folders.

    Without ``test/``, ``val/`` is the reported split, as ImageNet's is. A folder that comes unsplit, class folders or
    ``train/`` alone, is cut 80/10/10 by the seed, class by class, with at least one image of each class in each part.
    ``img_size`` defaults to the median of the shorter sides rounded up to a multiple of 4, if that is at most 64, else
    to 224; ``in_chans`` to 1 if all images are grey, else to 3.

    Every file is decoded once: those of at most 64 px stay in memory, of the others the verdict is kept in the cache.

    Raises: ValueError for a folder without images, with fewer than two classes, with a class that training lacks, or,
    unless ``skip_broken``, with files that cannot be read.
    """
    found = _find_splits(root)
    paths = [file.path for files in found.values() for file in files]
    usual_size, usual_chans = _probe(paths)
    size, chans = img_size or usual_size, in_chans or usual_chans
    in_memory = max(size) <= IN_MEMORY_SIDE
    images, broken = _read_all(paths, size, chans) if in_memory else ({}, _check_all(paths, chans))
    if broken and not skip_broken:
        raise ValueError(_broken_sentence(root, broken, len(paths)))
    found = {split: [file for file in files if file.path not in broken] for split, files in found.items()}
    class_names = _class_names(root, found)
    numbers = {name: number for number, name in enumerate(class_names)}

    def as_split(files: list[_File]) -> Split:
        labels = torch.tensor([numbers[file.class_name] for file in files])
        if not in_memory:
            return FileSplit(tuple(file.path for file in files), labels)
        return ArraySplit(from_pixels(np.stack([images[file.path] for file in files])), labels)

    if "test" not in found:
        found = _cut(found["train"], class_names, seed)
    train = as_split(found["train"])
    if isinstance(train, ArraySplit):
        mean, std = channel_statistics(train.pixels())
    else:
        mean, std = (IMAGENET.mean, IMAGENET.std) if chans == 3 else _IMAGENET_GREY
    return ImageDataset(
        name=root.resolve().name,
        class_names=class_names,
        train=train,
        validation=as_split(found["validation"]) if "validation" in found else None,
        test=as_split(found["test"]),
        mean=mean,
        std=std,
        img_size=size,
        skipped=tuple(f"{path.relative_to(root)} ({reason})" for path, reason in broken.items()),
    )


def _find_splits(root: Path) -> dict[str, list[_File]]:
    if not root.is_dir():
        raise ValueError(f"data {root} is not a folder")
    train = root / "train"
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    folders = {"train": train, "validation": validation, "test": root / "test"}
    if not train.is_dir() or not any(child.is_dir() for child in train.iterdir()):  # a class may be named train
        folders = {"train": root}
    elif not folders["test"].is_dir():
        folders = {"train": train, "test": validation}
    found = {split: _find_files(folder) for split, folder in folders.items() if folder is not None}
    for split, files in found.items():
        if not files:
            raise ValueError(f"folder {folders[split]} has no images: it must hold a folder of images for each class")
    return found


def _find_files(folder: Path) -> list[_File]:
    """The image files below each class folder, sorted; hidden files and folders are passed over."""
    return [
        _File(path, class_folder.name)
        for class_folder in sorted(folder.iterdir())
        if class_folder.is_dir() and not class_folder.name.startswith((".", "__"))
        for path in sorted(class_folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _class_names(root: Path, found: dict[str, list[_File]]) -> tuple[str, ...]:
    names = {file.class_name for file in found["train"]}
    for split, files in found.items():
        if strange := {file.class_name for file in files} - names:
            raise ValueError(
                f"class {min(strange)!r} of folder {root} is in {split} but not in train: add it or remove it"
            )
        if not files:
            raise ValueError(f"the {split} part of folder {root} has no image that can be read")
    if len(names) < 2:
        raise ValueError(f"folder {root} has only the class {min(names)!r}: a classifier needs at least two")
    return tuple(sorted(names))


def _cut(files: list[_File], class_names: tuple[str, ...], seed: int) -> dict[str, list[_File]]:
    labels = np.searchsorted(class_names, [file.class_name for file in files])
    sizes = np.bincount(labels)
    if sizes.min() < 3:
        smallest = class_names[int(sizes.argmin())]
        raise ValueError(f"class {smallest!r} has {sizes.min()} images: a folder that is not split yet needs 3 of each")
    tenths = np.maximum(1, np.rint(sizes / 10).astype(np.int64))
    test = stratified(labels, tenths, seed)
    rest = np.setdiff1d(np.arange(len(files)), test)
    validation = rest[stratified(labels[rest], tenths, seed)]
    parts = {"train": np.setdiff1d(rest, validation), "validation": validation, "test": test}
    return {part: [files[index] for index in indices] for part, indices in parts.items()}


def _probe(paths: list[Path]) -> tuple[tuple[int, int], int]:
    """Usual size and channels, from the headers of up to 1,000 files spread over the folder."""
    sides, modes = [], set()
    for path in paths[:: -(-len(paths) // _PROBED_FILES)]:
        with suppress(ValueError, OSError):  # a broken file is reported when it is decoded
            size, mode = read_header(path)
            sides.append(min(size))
            modes.add(mode)
    if not sides:
        return LARGE_SIZE, 3
    side = -(-int(np.ceil(np.median(sides))) // 4) * 4
    return (side, side) if side <= IN_MEMORY_SIDE else LARGE_SIZE, 1 if modes <= _GREY_MODES else 3


def _read_all(paths: list[Path], size: tuple[int, int], chans: int) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Every readable file as uint8 ``(H, W, C)``, and why the others are not."""
    images, broken = {}, {}
    for path, result in _each(lambda path: to_array(fit(read_image(path, chans), size)), paths, "reading images"):
        (broken if isinstance(result, str) else images)[path] = result
    return images, broken


def _check_all(paths: list[Path], chans: int) -> dict[Path, str]:
    """Why files cannot be read, by decoding each once; the verdict is kept in the cache while no file changes."""
    state = hashlib.sha256(str(chans).encode())
    for path in paths:
        stat = path.stat()
        state.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    verdict = cache_dir() / "checked" / f"{state.hexdigest()[:32]}.json"
    if verdict.is_file():
        broken = json.loads(verdict.read_text(encoding="utf-8"))
    else:
        results = _each(lambda path: read_image(path, chans).size, paths, "checking images")
        broken = [(number, reason) for number, (_, reason) in enumerate(results) if isinstance(reason, str)]
        with suppress(OSError):  # a cache that cannot be written costs the next run this check, no more
            verdict.parent.mkdir(parents=True, exist_ok=True)
            partial = verdict.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(broken), encoding="utf-8")
            os.replace(partial, verdict)
    return {paths[number]: reason for number, reason in broken}


def _each(read: Callable[[Path], _Result], paths: list[Path], description: str) -> Iterator[tuple[Path, _Result | str]]:
    """``read(path)`` of every path, in threads as Pillow decodes outside the lock, or the reason why it failed."""

    def attempt(path: Path) -> _Result | str:
        try:
            return read(path)
        except BrokenImageError as error:
            return error.reason
        except OSError as error:
            return error.strerror or str(error)

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        blocks = (paths[start : start + _BLOCK_FILES] for start in range(0, len(paths), _BLOCK_FILES))
        results = (pair for block in blocks for pair in zip(block, pool.map(attempt, block), strict=True))
        disable = not console.is_terminal
        yield from track(results, description, len(paths), console=console, transient=True, disable=disable)


def _broken_sentence(root: Path, broken: dict[Path, str], files: int) -> str:
    named = [f"{path.relative_to(root)} ({reason})" for path, reason in list(broken.items())[:_NAMED_FILES]]
    more = ["..."] if len(broken) > _NAMED_FILES else []
    fix = "remove them or leave them out with --skip-broken"
    return f"{len(broken)} of {files} files cannot be read: {', '.join(named + more)}; {fix}"
