"""Folders of class folders, found whatever their layout."""

import os
from collections.abc import Iterator
from pathlib import Path

from ceit.data.image import is_image_name
from ceit.data.labelled import UNSPLIT, LabelledSet, SizeChoice
from ceit.data.sources.listing import SPLIT_NAMES, Listing, load_files

VALIDATION_NAMES = tuple(name for name, split in SPLIT_NAMES.items() if split == "validation")


def load_folder(root: Path, img_size: SizeChoice, in_chans: int | None, skip_broken: bool) -> LabelledSet:
    """The images in ``root``: ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/`` of class folders, or
    class folders alone.

    Everything else is as in ``listing.load_files``. Raises: as there, and ValueError for a folder without images.
    """
    return load_files(_find_splits(root), root, img_size, in_chans, skip_broken)


def find_files(folder: Path) -> Listing:
    """The image files below each class folder, sorted; hidden files and folders are passed over.

    Raises: ValueError if there are none.
    """
    paths, class_names = [], []
    for class_folder in sorted(folder.iterdir()):
        if class_folder.is_dir() and not class_folder.name.startswith((".", "__")):
            found = list(_images_below(class_folder))
            paths += found
            class_names += [class_folder.name] * len(found)
    if not paths:
        raise ValueError(f"folder {folder} has no images: it must hold a folder of images for each class")
    return Listing(folder, paths, class_names)


def _find_splits(root: Path) -> dict[str, Listing]:
    if not root.is_dir():
        raise ValueError(f"data {root} is not a folder")
    train = root / "train"
    if not train.is_dir() or not any(child.is_dir() for child in train.iterdir()):  # a class may be named train
        return {UNSPLIT: find_files(root)}
    folders = {"train": train, "test": root / "test"}
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    if validation is not None:
        folders = {"train": train, "validation": validation, "test": root / "test"}
    return {split: find_files(folder) for split, folder in folders.items() if folder.is_dir()}


def _images_below(folder: str | Path) -> Iterator[Path]:
    """In the order of their names; the folder itself tells what is a file, which spares a question for each."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _images_below(entry.path)
            elif is_image_name(entry.name) and entry.is_file():
                yield Path(entry.path)
