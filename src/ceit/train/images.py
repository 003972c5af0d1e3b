"""The images of a run: which of them train, which choose the best model, which test it."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ceit.data.held_out import cut_to_train
from ceit.data.labelled import LabelledSet, as_dataset, copies_in_test, cut_by_place, without_copies
from ceit.data.record import COPY, FIXED, TEST, TRAIN, UNUSED, VALIDATION, ImageRecord
from ceit.data.record import FILE as IMAGES_FILE
from ceit.data.sources.choose import load_images
from ceit.data.sources.class_names import class_name
from ceit.data.splits import ImageDataset, Split
from ceit.messages import Say
from ceit.model import config_of
from ceit.train.config import TrainConfig

SMALLEST_SIDE = 16  # pixels; smaller images are enlarged, so that there are tokens to attend to


class ImagesError(ValueError):
    """The images of a run cannot be read, which is no fault of its options."""


@dataclass(frozen=True)
class RunImages:
    """The images of a run: ``dataset`` with the final train, validation and test splits, and the record of them all.

    A set known by name is fixed and needs no record; a run of an earlier version that goes on has none.
    """

    dataset: ImageDataset
    record: ImageRecord | None
    is_fixed: bool = False

    @property
    def description(self) -> dict[str, str]:
        """What the model's file says of them."""
        if self.record is not None:
            return {"images": IMAGES_FILE, "images_digest": self.record.identity}
        return {"images": FIXED} if self.is_fixed else {}


def load_run_images(
    config: TrainConfig, data: str, say: Say, resumed: Path | None = None, typed: Collection[str] = ()
) -> RunImages:
    """The images at the size that the model takes them, shared out.

    ``resumed`` is the directory of the run that goes on, and gets the images that its record names, whatever has come
    since. An option that was ``typed`` must have an effect. Raises: ImagesError for data that cannot be read;
    ValueError for a wrong model, or options that do not suit the data.
    """
    asked = (config.img_size, config.img_size) if isinstance(config.img_size, int) else config.img_size
    size = {} if asked is None else {"img_size": asked}
    config_of(config.model, **config.geometry, **size)  # a wrong model is told before the data is read
    try:
        found = load_images(
            data,
            img_size=asked or partial(_suitable_size, config),
            in_chans=config.in_chans,
            skip_broken=config.skip_broken,
            classes=kept_classes(config),
            crops=config.augmentation.crop_scale is not None,
        )
    except ValueError as error:
        raise ImagesError(str(error)) from error
    for line in found.skipped:
        say(f"skipped {line}")
    images = _shared_out(config, found, say, resumed, typed)
    for line in images.dataset.remarks:
        say(line)
    return images


def kept_classes(config: TrainConfig) -> list[str] | None:
    """The names of the classes to keep, as the data have them; None for all."""
    return None if config.classes is None else [class_name(str(name)) for name in config.classes]


def _shared_out(
    config: TrainConfig, found: LabelledSet, say: Say, resumed: Path | None, typed: Collection[str]
) -> RunImages:
    """What trains, what chooses and what tests: by the seed, and for a run that goes on as it was."""
    record = None if resumed is None else ImageRecord.read(resumed)
    if record is not None and not found.is_fixed:
        dataset, changes = record.restored(found)
        if str(changes):
            say(f"{changes}; the run goes on with the images that it was started with")
        return RunImages(without_copies(dataset), record)
    if found.is_fixed or resumed is not None:
        parts = found if found.is_fixed else cut_by_place(found)  # as an earlier version did
        return RunImages(_cut(config, as_dataset(parts, config.cut_seed))[0], None, found.is_fixed)
    if found.unsplit is not None:
        shares = f"{found.name} comes unsplit: about 80 % of its images train, 10 % choose the best model, 10 % test it"
        if "validation_percent" in typed:
            fix = "leave it out, or put the images into folders train and test"
            raise ValueError(f"{shares}, so --validation-percent has no effect: {fix}")
        say(shares)
    whole = as_dataset(found, config.cut_seed)
    copies = copies_in_test(whole)  # of any training image, also of one that stays unused: all runs test the same
    dataset, unused = _cut(config, without_copies(whole))
    parts = {TRAIN: dataset.train, VALIDATION: dataset.validation, TEST: dataset.test, UNUSED: unused, COPY: copies}
    present = {part: images for part, images in parts.items() if images is not None}
    return RunImages(dataset, ImageRecord.of(present, found))


def _cut(config: TrainConfig, dataset: ImageDataset) -> tuple[ImageDataset, Split | None]:
    return cut_to_train(dataset, config.validation_percent, config.train_percent, config.cut_seed)


def _suitable_size(config: TrainConfig, native: tuple[int, int]) -> tuple[int, int]:
    """The data's size, at least ``SMALLEST_SIDE`` and at most twice the model's own, as a multiple of its patch."""
    model = config_of(config.model, **config.geometry)
    height, width = (
        math.ceil(min(max(SMALLEST_SIDE, side), 2 * own) / model.patch_size) * model.patch_size
        for side, own in zip(native, model.image_hw, strict=True)
    )
    return height, width
