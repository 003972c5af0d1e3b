"""The labelled images that a trained model may be asked about."""

from collections.abc import Mapping
from typing import Any

from ceit.data.held_out import without_other_classes
from ceit.data.labelled import LabelledSet
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import FIXED
from ceit.data.sources.choose import load_images
from ceit.data.sources.class_names import class_name
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.listing import size_to_read
from ceit.data.sources.published import PUBLISHED
from ceit.model import CeiTConfig


def images_for(
    config: CeiTConfig,
    preprocessing: Preprocessing,
    training: Mapping[str, Any],
    data: str,
    *,
    skip_broken: bool = False,
) -> tuple[LabelledSet, dict[str, Any]]:
    """The images of ``data`` as a network takes them, of the classes that its run was told to keep.

    ``training`` is what the model's file says of its training; it comes back with what a run by an earlier version does
    not say by itself. Raises: as ``load_images``.
    """
    size = size_to_read(config.image_hw, preprocessing)
    found = load_images(data, img_size=size, in_chans=config.in_chans, skip_broken=skip_broken)
    said = dict(training)
    if "images" not in said and said.get("data") in {*SETS, *PUBLISHED} - {found.name}:
        said["images"] = FIXED
    if (kept := said.get("classes")) is not None:
        found = without_other_classes(found, set(map(class_name, kept)))
    return found, said
