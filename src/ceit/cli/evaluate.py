"""``ceit evaluate``: how good a trained model is on a split of a data set."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from ceit.data.batches.loader import make_loader
from ceit.data.held_out import ASKABLE, to_measure
from ceit.data.labelled import LabelledSet
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import FIXED, ImageRecord
from ceit.data.sources.choose import load_images
from ceit.data.sources.class_names import class_name
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.data.splits import Split
from ceit.inference.backend import AsModule, prepare
from ceit.inference.cores import sharing_cores
from ceit.inference.device import default_device
from ceit.inference.exported import is_exported, load_exported
from ceit.inference.predictor import (
    PRECISIONS,
    Precision,
    chosen,
    default_preprocessing,
    exported_precision,
    geometry_of,
    stored_preprocessing,
)
from ceit.model import CeiTConfig
from ceit.train.metrics import ClassAccuracy, Evaluation, evaluate
from ceit.weights import load_checkpoint, read_description

_BAR_CELLS = 20


def main(arguments: list[str]) -> None:
    """Print loss, top-1, top-5 and the accuracy of every class, as tables or as one JSON document.

    Raises: ValueError for a checkpoint or data that cannot be read, classes that differ, or a split that is not there.
    """
    options = _parser().parse_args(arguments)
    subject = _subject(options.checkpoint, options.precision)
    found = load_images(
        options.data,
        img_size=subject.config.image_hw,
        in_chans=subject.config.in_chans,
        skip_broken=options.skip_broken,
    )
    training = subject.training
    if "images" not in training and training.get("data") in {*SETS, *PUBLISHED} - {found.name}:
        training = {**training, "images": FIXED}  # of a run by an earlier version
    if (kept := training.get("classes")) is not None:  # a run was told to keep these alone
        found = _without_other_classes(found, set(map(class_name, kept)))
    measured = to_measure(found, ImageRecord.of_run(options.checkpoint, training), training, options.split)
    for line in (*(f"skipped {file}" for file in found.skipped), *found.remarks, *measured.remarks):
        print(line, file=sys.stderr)
    class_names = subject.class_names or found.class_names
    split = with_labels_of(class_names, found, measured.split)
    loader = make_loader(
        split,
        batch_size=options.batch_size,
        img_size=subject.config.image_hw,
        preprocessing=subject.preprocessing,
    )
    follows = subject.device.type == "cpu" and not is_exported(options.checkpoint)  # those have threads of their own
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        sharing_cores(follows, partial(print, file=sys.stderr)) as cores,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=loader.images)
        result = evaluate(
            subject.network,
            loader,
            class_names=class_names,
            device=subject.device,
            progress=lambda done: bar.update(task, completed=done),
            cores=cores,
        )
    heading = {
        "checkpoint": options.checkpoint,
        "data": found.name,
        "split": measured.name,
        "precision": subject.precision,
    }
    if options.json:
        print(json.dumps({**heading, **result.as_dict()}))
    else:
        print_tables(heading, result)


class _Subject(NamedTuple):
    """What is evaluated, and what its file says of it; ``precision`` is what it is computed in."""

    network: nn.Module
    config: CeiTConfig
    class_names: Sequence[str] | None
    preprocessing: Preprocessing
    training: dict[str, Any]
    device: torch.device
    precision: str


def _subject(checkpoint: str, precision: Precision) -> _Subject:
    if is_exported(checkpoint):
        device, computed_in = torch.device("cpu"), exported_precision(Path(checkpoint), precision)
        model = network = load_exported(checkpoint, precision=computed_in)
        training = model.description.network.training
        written_in = model.description.precision
        name = {"float32": written_in, "bf16": "bf16" if written_in == "float32" else f"{written_in}+bf16"}[computed_in]
    else:
        device = default_device()
        model, description = load_checkpoint(checkpoint), read_description(checkpoint)
        shape = model.config.in_chans, *model.config.image_hw
        name = chosen(precision, device)
        network = prepare(model.to(device), "eager", name, image_shape=shape)  # which is what predicts
        training = description and description.training
    preprocessing = stored_preprocessing(model) or default_preprocessing(model)
    config, class_names = geometry_of(model), model.class_names
    return _Subject(AsModule(network), config, class_names, preprocessing, training or {}, device, name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceit evaluate", description="Measure a trained model on every image of a split of a data set."
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN|FILE", required=True, help="a run directory, a file of weights or an exported file"
    )
    parser.add_argument(
        "--data", metavar="NAME|DIR", required=True, help="a data set's name, or a folder of class folders"
    )
    parser.add_argument(
        "--split",
        choices=ASKABLE,
        help="test, validation or train as the run had them, new for images that came since, all (default: all images "
        "that the run was not trained on or chosen by)",
    )
    parser.add_argument("--batch-size", type=int, default=250, metavar="N", help="images at a time (default: 250)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: bf16 where the machine has it natively (default)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--skip-broken", action="store_true", help="leave files out that cannot be read, and name them")
    return parser


def _without_other_classes(found: LabelledSet, kept: set[str]) -> LabelledSet:
    """The images of the classes that the run was told to keep; how many others there are is said."""
    is_kept = torch.tensor([name in kept for name in found.class_names])
    parts = {name: split.subset(torch.nonzero(is_kept[split.labels]).flatten()) for name, split in found.parts.items()}
    if left_out := sum(len(found.parts[name]) - len(split) for name, split in parts.items()):
        others = ", ".join(name for name in found.class_names if name not in kept)
        line = f"left out: {left_out:,} images of classes that the run was told to leave out ({others})"
        found = replace(found, remarks=(*found.remarks, line))
    return replace(found, parts={name: split for name, split in parts.items() if len(split)})


def with_labels_of(class_names: Sequence[str], found: LabelledSet, split: Split) -> Split:
    """The split with every label as its class is numbered in ``class_names``; classes without images are no matter.

    Raises: ValueError naming the classes that the checkpoint does not know.
    """
    number = {class_name(name): i for i, name in enumerate(class_names)}
    given = [found.class_names[label] for label in split.labels.unique().tolist()]
    if strange := [name for name in given if name not in number]:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ValueError(
            f"class {strange[0]!r}{more} of {found.name} is not among the {len(class_names)} of the checkpoint"
        )
    return replace(split, labels=torch.tensor([number.get(name, -1) for name in found.class_names])[split.labels])


def print_tables(heading: dict[str, str], result: Evaluation) -> None:
    """Print the figures of the whole split, then those of its classes; of very many, the least recognised."""
    console = Console(highlight=False)
    summary = Table(box=None, show_header=False, pad_edge=False)
    for name, value in heading.items():
        summary.add_row(Text(name, "dim"), Text(value))
    summary.add_row(Text("images", "dim"), f"{result.images:,}")
    summary.add_row(Text("loss", "dim"), f"{result.loss:.4f}")
    summary.add_row(Text("top-1", "dim"), Text(f"{result.top1_percent:.2f}%", "bold"))
    if result.top5_percent is not None:
        summary.add_row(Text("top-5", "dim"), f"{result.top5_percent:.2f}%")
    console.print(summary)

    listed = result.listed()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("class", no_wrap=True, max_width=32)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("top-1", no_wrap=True)
    for entry in listed:
        table.add_row(Text(entry.label), f"{entry.images:,}", _bar(entry))
    console.print()
    console.print(table)
    if len(listed) < len(result.per_class):
        console.print(
            f"the {len(listed)} least recognised of {len(result.per_class)} classes; --json has all", style="dim"
        )


def _bar(entry: ClassAccuracy) -> Text:
    if entry.top1_percent is None:
        return Text("no images", "dim")
    filled = round(_BAR_CELLS * entry.top1_percent / 100)
    bar = ("█" * filled, "green"), ("░" * (_BAR_CELLS - filled), "dim")
    return Text.assemble(*bar, f" {entry.top1_percent:6.2f}%")
