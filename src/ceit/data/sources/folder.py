"""Folders of class folders, as ``layout`` understands them."""

from pathlib import Path

from ceit.data.labelled import LabelledSet
from ceit.data.sources.layout import understand
from ceit.data.sources.listing import load_files
from ceit.data.sources.options import LoadOptions


def load_folder(root: Path, options: LoadOptions) -> LabelledSet:
    """The images in ``root``: class folders, or folders named after splits that hold class folders.

    Everything else is as in ``listing.load_files``. Raises: as there, and as ``layout.understand``.
    """
    layout = understand(root)
    listings = {split: part.listing for split, part in layout.splits.items()}
    return load_files(listings, root, options, remarks=layout.remarks)
