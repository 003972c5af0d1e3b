"""Measure a trained model on labelled images: loss, top-1, top-5, and the accuracy of every class.

By default images that the model was trained on, or chosen by, are left out. With --tta the model is also asked about
several views of each image; how good the mean of its answers is then stands beside the plain figures.

usage: ceit evaluate --checkpoint RUN|FILE --data NAME|DIR [options]

examples:
  ceit evaluate --checkpoint runs/photos --data photos/
  ceit evaluate --checkpoint runs/demo --data cifar10 --split validation --json
  ceit evaluate --checkpoint runs/demo --data cifar10 --tta mirror+shift
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ceit.cli._parser import JSON, MODEL, PRECISION, Parser, adding_to
from ceit.cli._terminal import print_evaluation, tell
from ceit.data.batches.loader import make_loader
from ceit.data.held_out import ASKABLE, to_measure, with_labels_of, without_other_classes
from ceit.data.record import FIXED, ImageRecord
from ceit.data.sources.choose import load_images
from ceit.data.sources.class_names import class_name
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.inference.backend import AsModule, prepare
from ceit.inference.cores import sharing_cores
from ceit.inference.device import default_device
from ceit.inference.exported import ExportedNetwork, is_exported, load_exported
from ceit.inference.predictor import PRECISIONS, Precision, chosen, exported_precision, preprocessing_of
from ceit.inference.views import VIEWS, MeanOverViews
from ceit.model import CeiT
from ceit.train.metrics import Evaluation, evaluate
from ceit.weights import load_checkpoint, read_description


def main(arguments: list[str]) -> None:
    """Print loss, top-1, top-5 and the accuracy of every class, as tables or as one JSON document.

    Raises: ValueError for a checkpoint or data that cannot be read, classes that differ, or a split that is not there.
    """
    options = _parsed(arguments)
    model, network, training, device, precision = _load(options.checkpoint, options.precision)
    preprocessing, config = preprocessing_of(model), model.config
    image_hw = config.image_hw
    found = load_images(options.data, img_size=image_hw, in_chans=config.in_chans, skip_broken=options.skip_broken)
    if options.tta is not None and not found.mirror_safe:
        what = f"--tta {options.tta} mirrors images, and mirrored images of {found.name} are other classes or none"
        raise ValueError(f"{what}: leave it out")
    if "images" not in training and training.get("data") in {*SETS, *PUBLISHED} - {found.name}:
        training = {**training, "images": FIXED}  # of a run by an earlier version
    if (kept := training.get("classes")) is not None:  # a run was told to keep these alone
        found = without_other_classes(found, set(map(class_name, kept)))
    measured = to_measure(found, ImageRecord.of_run(options.checkpoint, training), training, options.split)
    tell(*(f"skipped {file}" for file in found.skipped), *found.remarks, *measured.remarks)
    class_names = model.class_names or found.class_names
    split = with_labels_of(list(map(class_name, class_names)), found, measured.split)
    loader = make_loader(split, batch_size=options.batch_size, img_size=image_hw, preprocessing=preprocessing)
    follows = device.type == "cpu" and not is_exported(options.checkpoint)  # those have threads of their own
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        sharing_cores(follows, tell) as cores,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):

        def measure(asked: nn.Module) -> Evaluation:
            task = progress.add_task("", total=loader.images)
            return evaluate(
                asked,
                loader,
                class_names=class_names,
                device=device,
                progress=lambda done: progress.update(task, completed=done),
                cores=cores,
            )

        result = measure(network)
        tta = None if options.tta is None else (options.tta, measure(MeanOverViews(network, options.tta)))
    heading = {"checkpoint": options.checkpoint, "data": found.name, "split": measured.name, "precision": precision}
    if options.json:
        beside = None if tta is None else {"views": tta[0], **tta[1].figures()}
        print(json.dumps({**heading, **result.as_dict(), "tta": beside}))
    else:
        print_evaluation(heading, result, tta=tta)


def _load(
    checkpoint: str, precision: Precision
) -> tuple[CeiT | ExportedNetwork, nn.Module, dict[str, Any], torch.device, str]:
    """The model, what computes it, what its file says of the training, where, and in which number format."""
    if is_exported(checkpoint):
        computed_in = exported_precision(Path(checkpoint), precision)
        exported = load_exported(checkpoint, precision=computed_in)
        written_in, training = exported.description.precision, exported.description.network.training
        name = {"float32": written_in, "bf16": "bf16" if written_in == "float32" else f"{written_in}+bf16"}[computed_in]
        return exported, AsModule(exported), training or {}, torch.device("cpu"), name
    device = default_device()
    model, description = load_checkpoint(checkpoint), read_description(checkpoint)
    shape = model.config.in_chans, *model.config.image_hw
    name = chosen(precision, device)
    network = prepare(model.to(device), "eager", name, image_shape=shape)  # which is what predicts
    return model, AsModule(network), (description and description.training) or {}, device, name


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("--checkpoint", MODEL, required=True, metavar="RUN|FILE")
    add("--data", "data set's name, folder of class folders, or labels file", required=True, metavar="NAME|DIR")
    text = "which images: test, validation or train as the run had them; new, which came after it; or all (default: "
    text += "all that the run was not trained on or chosen by)"
    add("--split", text, choices=ASKABLE)
    text = "test-time augmentation: beside the plain figures, those of the mean answer to each image and its mirror "
    text += "image (mirror), or to these two as they are and moved by a pixel, six views (mirror+shift)"
    add("--tta", text, choices=VIEWS)
    add("--json", JSON, action="store_true")
    add("--skip-broken", "leave out images that cannot be read, and name them", action="store_true")
    add = adding_to(parser.add_argument_group("computing"))
    add("--precision", PRECISION, choices=PRECISIONS, default="auto")
    add("--batch-size", "images per batch", type=int, default=250, metavar="N")
    return parser.parse_args(arguments)
