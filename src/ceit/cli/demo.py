"""Train a small model, measure it, draw pictures of its results and make a page of them, to see everything work.

If it is interrupted, the same command goes on where it stopped.

usage: ceit demo [options]

examples:
  ceit demo
  ceit demo --data digits --output runs/digits
"""

import importlib
from pathlib import Path

import torch
from rich.console import Console

from ceit.atomic import replace_files
from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress, print_report
from ceit.data.batches.loader import make_loader
from ceit.data.sources.choose import fetch
from ceit.data.sources.known_sets import SETS
from ceit.data.splits import ArraySplit
from ceit.inference.backend import prepare
from ceit.inference.computing import chosen
from ceit.inference.memory import keep_freed_memory
from ceit.paths import expanded
from ceit.plots import draw_confusion, draw_curves, draw_prediction_sheet
from ceit.report.contents import contents_of
from ceit.report.page import page
from ceit.train.recipe import recipe_config
from ceit.train.run import Result, train

SHEET_IMAGES = 32


def main(arguments: list[str]) -> None:
    """Fetch, train by the recipe ``demo``, evaluate, draw. Interrupted, the same command goes on."""
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("--data", "data set; downloaded once, except digits", choices=sorted(SETS), default="cifar10")
    add("--output", "folder for the model and the pictures", type=expanded, default=Path("runs/demo"), metavar="DIR")
    add("--seed", "another seed gives another model", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    importlib.import_module("matplotlib")  # or it would be missed when all is trained
    keep_freed_memory()
    config, data = recipe_config("demo", seed=options.seed), options.data
    with LiveProgress(Console(stderr=True)) as live:
        try:
            fetch(data, say=live.say)
        except OSError as error:
            live.say(f"{error}\ngoing on with digits instead of {data}: the results are not comparable")
            data = "digits"  # which is always there
        result = train(config, data, options.output, resume="auto", say=live.say, show=live.show)
    print_report(result)
    for path in draw(result):
        print(f"picture: {path}")
    report = result.output / "report.html"
    replace_files({report: page(contents_of(result.output)).encode()})
    print(f"report: {report}, a page for your browser")


def draw(result: Result) -> list[Path]:
    """``curves.png``, ``confusion.png`` and ``predictions.png`` (the first test images, nothing chosen) beside the
    model."""
    folder = result.output
    first = result.dataset.test.subset(torch.arange(min(SHEET_IMAGES, len(result.dataset.test))))
    assert isinstance(first, ArraySplit)  # named sets are small
    loader = make_loader(
        first, batch_size=SHEET_IMAGES, img_size=result.dataset.img_size, preprocessing=result.dataset.preprocessing
    )
    images, labels = next(loader.epoch(0))
    precision = chosen("auto", next(result.model.parameters()).device)
    network = prepare(result.model, "eager", precision, image_shape=(images.shape[1], *result.dataset.img_size))
    probabilities = network(images).softmax(-1).cpu()
    names = result.dataset.class_names
    assert result.test.confusion is not None  # named sets have few classes
    return [
        draw_curves(folder),
        draw_confusion(result.test.confusion, names, folder / "confusion.png"),
        draw_prediction_sheet(first.images, labels, probabilities, names, folder / "predictions.png"),
    ]
