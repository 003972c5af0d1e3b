"""Measure a trained model on labelled images: accuracy, precision, recall and F1 of every class, and its confidence.

By default images that the model was trained on, or chosen by, are left out. --predictions writes what it said of every
image, its worst mistakes first. With --tta the model is also asked about several views of each image; how good the mean
of its answers is then stands beside the plain figures.

usage: ceit evaluate --checkpoint RUN|FILE --data NAME|DIR [options]

examples:
  ceit evaluate --checkpoint runs/photos --data photos/
  ceit evaluate --checkpoint runs/photos --data photos/ --metrics classes.csv
  ceit evaluate --checkpoint runs/demo --data cifar10 --split validation --json
  ceit evaluate --checkpoint runs/demo --data cifar10 --tta mirror+shift
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ceit.cli._computing import add_computing
from ceit.cli._parser import JSON, MODEL, RAW, Parser, adding_to, natural, require_output
from ceit.cli._terminal import print_evaluation, tell
from ceit.data.batches.loader import Loader, make_loader
from ceit.data.held_out import ASKABLE, to_measure, with_labels_of
from ceit.data.labelled import LabelledSet
from ceit.data.record import ImageRecord
from ceit.data.sources.class_names import class_name
from ceit.data.splits import Split
from ceit.evaluation.answers import FORMS, Collected, document_of, write_figures, write_predictions
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.evaluation.run_images import images_for
from ceit.inference.backend import AsModule, Network, split_among
from ceit.inference.computing import SAMPLE_IMAGES, Work, computing, devices_for, refuse_combination
from ceit.inference.cores import sharing_cores
from ceit.inference.example_images import ExampleImages, of_dataset
from ceit.inference.exported import ExportedNetwork, is_exported, load_exported, precision_run
from ceit.inference.predictor import exported_precision, preprocessing_of, refuse_for_exported
from ceit.inference.views import VIEWS, MeanOverViews
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.terminal import stderr_console
from ceit.train.example_sets import to_choose_by
from ceit.weights import load_checkpoint, training_of

_BATCH = 250


def main(arguments: list[str]) -> None:
    """Print the figures of the whole split and of every class, as tables or as one JSON document; write what is asked.

    Raises: ValueError for a checkpoint or data that cannot be read, classes that differ, a split that is not there, or
    a file that is there already.
    """
    options = _parsed(arguments)
    on_cpu = is_exported(options.checkpoint)
    devices = (torch.device("cpu"),) if on_cpu else devices_for(options.device, options.backend)
    model, training = _load(options, devices[0])
    preprocessing, config = preprocessing_of(model), model.config
    image_hw = config.image_hw
    found, training = images_for(config, preprocessing, training, options.data, skip_broken=options.skip_broken)
    if options.tta is not None and not found.mirror_safe:
        what = f"--tta {options.tta} mirrors images, and mirrored images of {found.name} are other classes or none"
        raise ValueError(f"{what}: leave it out")
    measured = to_measure(found, ImageRecord.of_run(options.checkpoint, training), training, options.split)
    tell(*(f"skipped {file}" for file in found.skipped), *found.remarks, *measured.remarks)
    class_names = model.class_names or found.class_names
    split = with_labels_of(list(map(class_name, class_names)), found, measured.split)
    loader = make_loader(
        split,
        batch_size=_BATCH * len(devices) if options.batch_size is None else options.batch_size,
        img_size=image_hw,
        preprocessing=preprocessing,
        workers=options.workers,
    )
    network, backend, precision = _network(options, model, devices, loader, found, split)
    module = AsModule(network)
    follows = devices[0].type == "cpu" and backend == "eager"  # runtimes have threads of their own
    collected = Collected()
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = stderr_console()
    with (
        sharing_cores(follows, tell) as cores,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):

        def measure(asked: nn.Module, observe: Collected | None = None) -> Evaluation:
            task = progress.add_task("", total=loader.images)
            return evaluate(
                asked,
                loader,
                class_names=class_names,
                device=devices[0],
                progress=lambda done: progress.update(task, completed=done),
                temperature=None if options.raw else model.temperature,
                observe=observe,
                cores=cores,
            )

        result = measure(module, collected)
        tta = None if options.tta is None else (options.tta, measure(MeanOverViews(module, options.tta)))
    answers = collected.answers()
    heading = {"checkpoint": options.checkpoint, "data": found.name, "split": measured.name}
    heading |= {"backend": backend, "precision": precision}
    document = document_of(heading, result, answers.auroc())
    document["tta"] = None if tta is None else {"views": tta[0], **tta[1].figures()}
    with ExitStack() as files:  # each is tried, whatever becomes of the other and of what is printed
        if options.predictions is not None:
            files.callback(write_predictions, options.predictions, answers, class_names, split.name)
        if options.metrics is not None:
            files.callback(write_figures, options.metrics, document)
        if options.json:
            print(json.dumps(document), flush=True)
        else:
            print_evaluation(heading, result, auroc=document["auroc"], tta=tta)
    if options.metrics is not None:
        tell(f"{options.metrics} has the figures")
    if options.predictions is not None:
        tell(f"{options.predictions} has what was said of each of the {result.images:,} images, the worst first")


def _load(options: argparse.Namespace, device: torch.device) -> tuple[CeiT | ExportedNetwork, dict[str, Any]]:
    """The model, and what its file says of the training; it is asked first whether the device can compute it so."""
    checkpoint = options.checkpoint
    if is_exported(checkpoint):
        refuse_for_exported(options.backend, options.device)
        exported = load_exported(checkpoint, precision=exported_precision(Path(checkpoint), options.precision))
        return exported, exported.description.network.training or {}
    refuse_combination(options.backend, options.precision, device)
    return load_checkpoint(checkpoint), training_of(checkpoint)


def _network(
    options: argparse.Namespace,
    model: CeiT | ExportedNetwork,
    devices: Sequence[torch.device],
    loader: Loader,
    found: LabelledSet,
    split: Split,
) -> tuple[Network, str, str]:
    """What computes the model, and its backend and precision by name."""
    if not isinstance(model, CeiT):
        computed_in = exported_precision(Path(options.checkpoint), options.precision)
        written = model.description
        return model, written.format, precision_run(written.precision, computed_in)

    def sample() -> Tensor:
        seen_as: dict[str, Any] = {"image_hw": model.config.image_hw, "preprocessing": preprocessing_of(model)}
        return of_dataset(found, split, "measured", SAMPLE_IMAGES, class_names=None, **seen_as).images

    def examples() -> ExampleImages | None:
        of_training = to_choose_by(options.checkpoint, None, model, tell)
        return of_training or to_choose_by(options.checkpoint, options.data, model, tell)

    work = Work(loader.batch_size, loader.images, sample=sample, examples=examples)
    computed = computing(model, options.backend, options.precision, devices, work, tell)
    return split_among(computed.networks), computed.backend, computed.precision


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
    add("--raw", RAW, action="store_true")
    add("--json", JSON, action="store_true")
    text = "write what was said of every image: path, true class, answer, probabilities, loss; the largest loss first"
    add("--predictions", text, metavar="FILE.csv", type=expanded)
    text = "write the figures to a file: all of them (.json), or those of the classes as a table (.csv)"
    add("--metrics", text, metavar="FILE", type=expanded)
    add("--skip-broken", "leave out images that cannot be read, and name them", action="store_true")
    group = parser.add_argument_group("computing")
    add_computing(group)
    add = adding_to(group)
    add("--batch-size", f"images per batch (default: {_BATCH} for each device)", type=int, metavar="N")
    text = "processes that read images; 0: this one reads (default: 0 for images in memory, else one per core)"
    add("--workers", text, type=natural, metavar="N")
    options = parser.parse_args(arguments)
    for name, endings in (("predictions", (".csv",)), ("metrics", FORMS)):
        if (file := getattr(options, name)) is not None:
            require_output(parser, f"--{name}", file, endings)
    files = [file.resolve() for file in (options.predictions, options.metrics) if file is not None]
    if len(set(files)) < len(files):
        parser.error(f"--predictions and --metrics name the same file, {options.predictions}")
    return options
