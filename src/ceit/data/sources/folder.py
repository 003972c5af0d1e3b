"""Folders of class folders, as ``layout`` understands them."""

from collections.abc import Sequence
from pathlib import Path

from ceit.data.labelled import LabelledSet, SizeChoice
from ceit.data.sources.layout import class_files, understand
from ceit.data.sources.listing import Listing, load_files


def load_folder(
    root: Path,
    img_size: SizeChoice,
    in_chans: int | None,
    skip_broken: bool,
    classes: Sequence[str] | None = None,
) -> LabelledSet:
    """The images in ``root``: class folders, or folders named after splits that hold class folders.

    Everything else is as in ``listing.load_files``. Raises: as there, and as ``layout.understand``.
    """
    layout = understand(root)
    listings = {split: listing_of(part.folder, part.classes) for split, part in layout.splits.items()}
    return load_files(listings, root, img_size, in_chans, skip_broken, remarks=layout.remarks, classes=classes)


def find_files(folder: Path) -> Listing:
    """The images of the class folders in one folder. Raises: as ``layout.understand``, and ValueError for none."""
    listing = listing_of(folder, class_files(folder))
    if not listing.paths:
        raise ValueError(f"folder {folder} has no images: it must hold a folder of images for each class")
    return listing


def listing_of(folder: Path, classes: dict[str, list[Path]]) -> Listing:
    """The images of all classes, class by class."""
    paths = [path for images in classes.values() for path in images]
    return Listing(folder, paths, [name for name, images in classes.items() for _ in images])
