"""Images of a data set that an exported network is calibrated with, and others that it is checked with."""

from dataclasses import replace
from typing import Any

import torch

from ceit.data.held_out import to_calibrate_and_check, used_for
from ceit.data.labelled import LabelledSet, of_classes
from ceit.data.record import FILE, FIXED, TRAIN, ImageRecord
from ceit.data.sources.choose import load_images, place_of
from ceit.data.sources.class_names import class_name
from ceit.data.splits import Split
from ceit.inference.example_images import ExampleImages, of_dataset
from ceit.inference.fastest import LEAST_IMAGES
from ceit.inference.predictor import preprocessing_of
from ceit.inference.quantize import CALIBRATION_IMAGES
from ceit.messages import Say
from ceit.model import CeiT
from ceit.paths import expanded, last_part
from ceit.train.run_directory import saved_config
from ceit.weights import training_of


def calibrating_and_checking(
    checkpoint: str, data: str | None, model: CeiT, training: dict[str, Any], say: Say
) -> tuple[LabelledSet, Split, Split, str]:
    """A set, by default that of the training; of it images to calibrate with, others to check with, and their name.

    Raises: ValueError or OSError if there are none, or those that lie where the training's did are others.
    """
    record = ImageRecord.of_run(checkpoint, training)
    source = data or _place_of_training(checkpoint, training, record)
    found = load_images(source, img_size=model.config.image_hw, in_chans=model.config.in_chans, skip_broken=True)
    for line in (*(f"skipped {file}" for file in found.skipped), *found.remarks):
        say(line)
    if not data:
        if training.get("classes") is not None:
            found = of_classes(found, [class_name(str(name)) for name in training["classes"]])
        if record is not None and used_for(TRAIN, found, record) is None:
            raise ValueError(f"{found.place} has none of the images that the run was trained on")
        if record is None and model.class_names is not None and set(model.class_names) != set(found.class_names):
            raise ValueError(f"{found.place} has other classes than the checkpoint")
    return found, *to_calibrate_and_check(found, record, training)


def to_choose_by(checkpoint: str, data: str | None, model: CeiT, say: Say) -> ExampleImages | None:
    """Images as the network sees them: the first half are training images, the second half held out of the training.

    None if the data of the training are not at hand, nor any named by ``data``, or if they are too few; ``say`` is
    told why. Test images are never among them.
    """
    training = training_of(checkpoint)
    try:
        found, rest, held_out, name = calibrating_and_checking(checkpoint, data, model, training, say)
    except (ValueError, OSError) as error:
        say(f"no training images to choose by: {error}")
        return None
    count = min(CALIBRATION_IMAGES, len(rest), len(held_out))
    if 2 * count < LEAST_IMAGES:
        say(f"images of {found.name} to choose by: {2 * count}, at least {LEAST_IMAGES} are needed")
        return None
    seen_as: dict[str, Any] = {"image_hw": model.config.image_hw, "preprocessing": preprocessing_of(model)}
    halves = [of_dataset(found, split, name, count, class_names=None, **seen_as) for split in (rest, held_out)]
    return replace(halves[1], images=torch.cat([half.images for half in halves]), labels=None)


def _place_of_training(checkpoint: str, training: dict[str, Any], record: ImageRecord | None) -> str:
    """Where the data of the training lie: as the run's directory tells, or known by their name.

    A folder here that is called as they were may be any other. Raises: ValueError if it is not known.
    """
    if "data" not in training:
        raise ValueError("this checkpoint does not tell what it was trained on")
    name, path = training["data"], expanded(checkpoint)
    folder = path if path.is_dir() else path.parent
    saved = saved_config(folder) if (folder / "config.yaml").is_file() else {}
    if saved and (record is not None or _is_of(saved, training)):
        return saved["data"]
    if training.get("images", FIXED) == FIXED and place_of(name) is not None:
        return name
    raise ValueError(f"this checkpoint was trained on {name}, and only the directory of its run tells where that lies")


def _is_of(saved: dict[str, Any], training: dict[str, Any]) -> bool:
    """Whether a model is of the run so configured, which has no record: on a fixed set, or of an earlier version."""
    if FILE in (training.get("images"), saved.get("images")):
        return False
    known = place_of(saved["data"])
    name = last_part(saved["data"]) if known is None else known[0]
    return name == training["data"] and all(saved.get(key) == training.get(key) for key in ("seed", "split_seed"))
