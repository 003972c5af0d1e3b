"""``ceit data``: bring a named set onto the disk, or check a folder of images."""

import argparse
from pathlib import Path

import torch

from ceit.data.dataset import Split, load_dataset
from ceit.data.fetch import fetch
from ceit.data.folder import load_folder
from ceit.data.sources import SETS


def main(arguments: list[str]) -> None:
    """Runs ``ceit data fetch NAME`` or ``ceit data check DIR``."""
    parser = argparse.ArgumentParser(prog="ceit data", description="Data sets by name and by folder.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch | check")
    fetching = verbs.add_parser("fetch", help="download a set once, check it and keep it in the cache")
    fetching.add_argument("name", metavar="NAME", help=", ".join(SETS))
    checking = verbs.add_parser("check", help="read every file of a folder of class folders and count what it holds")
    checking.add_argument("folder", metavar="DIR", type=Path)
    checking.add_argument("--seed", type=int, default=0, help="splits a folder that comes unsplit (default 0)")
    chosen = parser.parse_args(arguments)
    if chosen.verb == "fetch":
        fetch_set(chosen.name)
    else:
        check_folder(chosen.folder, chosen.seed)


def fetch_set(name: str) -> None:
    """Fetches the set and prints what it is and whose."""
    folder = fetch(name)
    named, dataset = SETS[name], load_dataset(name)
    height, width, channels = named.image_shape
    print(f"{named.title}: {len(dataset.class_names)} classes of {height} x {width} x {channels} pixels")
    print(f"images     {len(dataset.train):,} to train, {len(dataset.test):,} to test")
    print(f"place      {folder if named.sources else 'inside the package'}")
    print(f"licence    {named.licence}")
    print(f"citation   {named.citation}")


def check_folder(folder: Path, seed: int) -> None:
    """Prints how a folder would be used: classes, images of each in each split, size, and the files left out.

    Raises: ValueError if it is no data set, or, after printing, if files cannot be read.
    """
    dataset = load_folder(folder, None, None, seed, skip_broken=True)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = {
        name: _class_counts(split, len(dataset.class_names)) for name, split in splits.items() if split is not None
    }
    height, width = dataset.img_size
    print(f"{folder}: {len(dataset.class_names)} classes, used at {height} x {width} x {dataset.in_chans} pixels")
    print(" ".join([f"{'class':24}", *(f"{name:>10}" for name in counts)]))
    for number, class_name in enumerate(dataset.class_names):
        print(" ".join([f"{class_name:24}", *(f"{count[number]:10,}" for count in counts.values())]))
    print(" ".join([f"{'all':24}", *(f"{sum(count):10,}" for count in counts.values())]))
    for line in dataset.skipped:
        print(f"cannot be read: {line}")
    if dataset.skipped:
        raise ValueError(f"{len(dataset.skipped)} files of {folder} cannot be read: remove them")


def _class_counts(split: Split, classes: int) -> list[int]:
    return torch.bincount(split.labels, minlength=classes).tolist()
