"""Train a small model, measure it, draw pictures of its results and make a page of them, to see everything work.

If it is interrupted, the same command goes on where it stopped.

usage: ceit demo [options]

examples:
  ceit demo
  ceit demo --data digits --output runs/digits
"""

from pathlib import Path

import torch

from ceit.atomic import replace_files
from ceit.cli._cells import training
from ceit.cli._parser import Parser, adding_to
from ceit.cli.train import LiveProgress, print_report
from ceit.data.batches.loader import make_loader
from ceit.data.sources.choose import fetch
from ceit.data.sources.known_sets import SETS
from ceit.data.splits import ArraySplit
from ceit.inference.backend import prepare
from ceit.inference.computing import chosen
from ceit.paths import expanded
from ceit.plots import draw_confusion, draw_curves, draw_prediction_sheet
from ceit.report.contents import contents_of
from ceit.report.page import page
from ceit.terminal import stderr_console
from ceit.train.recipe import recipe_config
from ceit.train.run import Result, train
from ceit.train.run_directory import saved_config

SHEET_IMAGES = 32
_DATA, _ALWAYS_HERE = "cifar10", "digits"


def main(arguments: list[str]) -> None:
    """Fetch, train by the recipe ``demo``, evaluate, draw. Interrupted, the same command goes on, on the same data.

    Raises: ValueError if the output holds a run on other data than those that were asked for.
    """
    parser = Parser(__doc__)
    add = adding_to(parser)
    text = f"data set; downloaded once, except {_ALWAYS_HERE} (default: that of the run in --output, else {_DATA})"
    add("--data", text, choices=sorted(SETS))
    add("--output", "folder for the model and the pictures", type=expanded, default=Path("runs/demo"), metavar="DIR")
    add("--seed", "another seed gives another model", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    config, output = recipe_config("demo", seed=options.seed), options.output
    begun = str(saved_config(output)["data"]) if (output / "config.yaml").is_file() else None
    data = options.data or (begun if begun in SETS else _DATA)
    command, several = ["ceit", "demo", *arguments], "ceit train runs in several"
    with training(command, several=several, needs=["matplotlib"]), LiveProgress(stderr_console()) as live:
        if options.data is None and data == begun:
            live.say(f"{output} holds a run on {data}, which goes on")
        if begun != _ALWAYS_HERE:  # which the demo may come to by itself
            _require(output, begun, data)
        try:
            fetch(data, say=live.say)
        except OSError as error:
            if begun == data:
                raise
            live.say(f"{error}\ngoing on with {_ALWAYS_HERE} instead of {data}: the results are not comparable")
            data = _ALWAYS_HERE
        _require(output, begun, data)
        result = train(config, data, output, resume="auto", say=live.say, show=live.show)
    print_report(result)
    for path in draw(result):
        print(f"picture: {path}")
    report = result.output / "report.html"
    replace_files({report: page(contents_of(result.output)).encode()})
    print(f"report: {report}, a page for your browser")


def _require(output: Path, begun: str | None, data: str) -> None:
    """Raises: ValueError if the output holds a run on other data."""
    if begun not in (None, data):
        fix = f"give --data {begun} to go on with it, or " if begun in SETS else ""
        raise ValueError(f"{output} holds a run on {begun}, not on {data}: {fix}name another --output")


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
    probabilities = (network(images) / (result.model.temperature or 1.0)).softmax(-1).cpu()
    names = result.dataset.class_names
    assert result.test.confusion is not None  # named sets have few classes
    return [
        draw_curves(folder),
        draw_confusion(result.test.confusion, names, folder / "confusion.png"),
        draw_prediction_sheet(first.images, labels, probabilities, names, folder / "predictions.png"),
    ]
