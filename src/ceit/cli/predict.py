"""``ceit predict``: classify images."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import track
from rich.text import Text

from ceit.data.image import IMAGE_SUFFIXES
from ceit.inference.predictor import Prediction, Predictor, Score
from ceit.model import list_models
from ceit.weights import create_model

STDIN = "-"
_BAR_CELLS = 10
_GAP = "  "
_LABEL = "label"
_NAMED_FILES = 3  # of the broken ones, in the last sentence


def main(arguments: list[str]) -> None:
    """Print what the network says of every image, as a table, as JSON or as CSV, in the order asked.

    Raises: ValueError for a path that does not exist or a folder without images; and after the last image, if some
    could not be read and that was not accepted beforehand.
    """
    options = _parser().parse_args(arguments)
    paths = [path for name in options.paths for path in _images_at(name)]
    predictor = _predictor(options.checkpoint)
    with ExitStack() as stack:
        files = _without_stdin(paths, stack)
        answers = predictor.predict_stream(files, top_k=options.top_k, batch_size=options.batch_size)
        broken: list[str] = []
        predictions = _with_progress(_named(paths, answers, broken), len(paths))
        if options.json:
            _print_json(predictions)
        elif options.csv:
            _print_csv(predictions)
        else:
            _print_table(predictions, paths, predictor.class_names, options.top_k)
    if broken:
        sentence = _broken_sentence(broken, len(paths))
        if not options.skip_broken:
            raise ValueError(f"{sentence}; --skip-broken accepts that")
        print(sentence, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceit predict", description="Classify images: files, folders with all below them, or - for standard input."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="an image, a folder of images, or - for standard input"
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN|FILE", help="a run directory or a file of weights (default: the model that ships)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="most probable classes to print (default: 5)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument(
        "--csv", action="store_true", help="print comma-separated values, a line for every image and rank"
    )
    parser.add_argument("--skip-broken", action="store_true", help="files that cannot be read are no failure")
    return parser


def _images_at(name: str) -> list[str]:
    """The images that an argument stands for; those of a folder sorted, hidden ones passed over."""
    path = Path(name)
    if name != STDIN and not path.exists():
        raise ValueError(f"{name} does not exist")
    if name == STDIN or not path.is_dir():
        return [name]
    found = [
        str(file)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not found:
        raise ValueError(f"folder {name} holds no images: their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _predictor(checkpoint: str | None) -> Predictor:
    if checkpoint is not None:
        return Predictor.from_checkpoint(checkpoint)
    shipped = list_models(pretrained=True)
    if not shipped:
        raise ValueError("no trained model ships with this version: name one with --checkpoint RUN|FILE")
    return Predictor.from_model(create_model(shipped[0], pretrained=True))


def _without_stdin(paths: list[str], stack: ExitStack) -> list[str]:
    """The paths, with a file in the place of standard input: an image is read more than once over."""
    if STDIN not in paths:
        return paths
    file = Path(stack.enter_context(TemporaryDirectory(prefix="ceit-")), "stdin")
    file.write_bytes(sys.stdin.buffer.read())
    return [str(file) if path == STDIN else path for path in paths]


def _named(paths: list[str], answers: Iterable[Prediction], broken: list[str]) -> Iterator[Prediction]:
    """The answers under the paths that the user gave; those of broken files are noted down."""
    for path, answer in zip(paths, answers, strict=True):
        if answer.error is not None:
            broken.append(path)
        yield replace(answer, path=path)


def _with_progress(predictions: Iterable[Prediction], images: int) -> Iterable[Prediction]:
    """A bar on the terminal where the answers go elsewhere."""
    console = Console(stderr=True)
    hidden = sys.stdout.isatty() or not console.is_terminal
    return track(predictions, "predicting", total=images, console=console, transient=True, disable=hidden)


def _print_json(predictions: Iterable[Prediction]) -> None:
    """One list, an image a line, each printed as soon as it is known."""
    start = "["
    for prediction in predictions:
        print(f"{start}\n  {json.dumps(prediction.as_dict())}", end="")
        start = ","
    print("\n]")


def _print_csv(predictions: Iterable[Prediction]) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "rank", "label", "probability", "error"])
    for prediction in predictions:
        path = printable(prediction.path or "")
        if prediction.error is not None:
            rows.writerow([path, "", "", "", prediction.error])
        for rank, score in enumerate(prediction.predictions, 1):
            rows.writerow([path, rank, score.label, f"{score.probability:.6f}", ""])


def _print_table(
    predictions: Iterable[Prediction], paths: Sequence[str], class_names: Sequence[str], top_k: int
) -> None:
    """A line for every image as soon as it is known, so all widths are chosen before."""
    console = Console(highlight=False)
    path_cells = min(max(map(cell_len, map(printable, paths))), max(16, console.width * 2 // 5))
    label_cells = min(max(map(cell_len, [*class_names, _LABEL])), 20)
    others_cells = console.width - path_cells - label_cells - _BAR_CELLS - 7 - 3 * len(_GAP)
    others_heading = "runners-up" if top_k > 1 and others_cells >= len("runners-up") else ""

    def print_line(path: str, answer: Text, style: str = "") -> None:
        console.print(
            Text.assemble(_end_of(path, path_cells), _GAP, answer, style=style), no_wrap=True, overflow="ellipsis"
        )

    heading = f"{_fit(_LABEL, label_cells)}{_GAP}{'probability':<{_BAR_CELLS + 7}}{_GAP}{others_heading}"
    print_line("image", Text(heading), "bold")
    console.print("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * console.width, style="dim")
    for prediction in predictions:
        path = printable(prediction.path or "")
        if prediction.error is not None:
            print_line(path, Text(f"cannot be read: {prediction.error}", "red"))
            continue
        best, *others = prediction.predictions
        label = Text(_fit(best.label, label_cells), "bold")
        print_line(path, Text.assemble(label, _GAP, _bar(best), _GAP, (_runners_up(others, others_cells), "dim")))


def _bar(score: Score) -> Text:
    filled = round(_BAR_CELLS * score.probability)
    return Text.assemble(("█" * filled, "green"), ("░" * (_BAR_CELLS - filled), "dim"), f" {_percent(score):>6}")


def _percent(score: Score) -> str:
    return f"{100 * score.probability:.1f}%"


def _runners_up(scores: Sequence[Score], cells: int) -> str:
    """As many of them as fit."""
    text = ""
    for score in scores:
        longer = f"{text}{', ' if text else ''}{score.label} {_percent(score)}"
        if cell_len(longer) > cells:
            break
        text = longer
    return text


def _fit(text: str, cells: int) -> str:
    """The text in exactly so many cells of the terminal."""
    return set_cell_size(text if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1)}…", cells)


def _end_of(path: str, cells: int) -> str:
    """As ``_fit``, but of a long path the end: the file's name tells images apart."""
    end = path
    while cell_len(end) > cells - (end != path):
        end = end[1:]
    return _fit(path if end == path else f"…{end}", cells)


def printable(path: str) -> str:
    """The path with a mark for every character that cannot be shown: names of files may hold any bytes."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)


def _broken_sentence(broken: list[str], images: int) -> str:
    named = [printable(path) for path in broken[:_NAMED_FILES]]
    more = ["..."] if len(broken) > _NAMED_FILES else []
    return f"{len(broken)} of {images} images cannot be read: {', '.join([*named, *more])}"
