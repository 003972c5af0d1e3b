"""Classify images with a trained model and print the most probable classes of each.

usage: ceit predict [options] PATH ...

examples:
  ceit predict --checkpoint runs/photos holiday.jpg
  ceit predict --checkpoint runs/photos --output answers.csv photos/
"""

import argparse
import json
import os
import signal
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import track
from rich.text import Text
from torch import Tensor

from ceit.atomic import require_place
from ceit.cli._computing import add_computing
from ceit.cli._parser import JSON, MODEL, RAW, Parser, adding_to, positive
from ceit.cli._terminal import bar, tell
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.walk import EmptyFolderError, image_files
from ceit.inference import prediction_file
from ceit.inference.backend import Network, in_turns
from ceit.inference.computing import SAMPLE_IMAGES, Work, computing, devices_for
from ceit.inference.example_images import ExampleImages, of_files
from ceit.inference.exported import ExportedNetwork, is_exported, load_exported, precision_run
from ceit.inference.familiarity import KNOWN_REJECTED, with_features
from ceit.inference.fastest import LEAST_IMAGES
from ceit.inference.memory import keep_freed_memory
from ceit.inference.predictor import (
    ACCELERATOR_BATCH,
    CPU_BATCH,
    Prediction,
    Predictor,
    Score,
    batch_of,
    class_names_of,
    exported_precision,
    familiarity_of,
    preprocessing_of,
    refuse_for_exported,
)
from ceit.inference.quantize import CALIBRATION_IMAGES
from ceit.limits import IMAGE
from ceit.messages import listed
from ceit.model import CeiT
from ceit.paths import expanded, matching
from ceit.shipped import DEFAULT, shipped_names
from ceit.terminal import stderr_console
from ceit.train.example_sets import to_choose_by
from ceit.train.interruption import stop_signals
from ceit.weights import load_checkpoint

STDIN = "-"
FILES_FROM = "take the paths in FILE, too: one a line, or with NUL between them; - for standard input"
_SEAMS = {b"\x89PNG": b"IEND\xaeB`\x82\x89PNG", b"\xff\xd8\xff": b"\xff\xd9\xff\xd8\xff"}
"""How a PNG and a JPEG begin, and what stands between two of them."""
_BAR_CELLS = 10
_GAP = "  "
_IMAGE, _LABEL, _UNKNOWN, _LIKE = "image", "label", "unknown", "most like "


def main(arguments: list[str]) -> None:
    """Print what the network says of every image, as a table, as JSON or as CSV, in the order asked.

    Interrupted, it has printed whole answers and nothing else. Raises: ValueError if none of the paths is there or
    holds an image, or another process or another model writes the same file; and after the last image, if some could
    not be read and that was not accepted beforehand.
    """
    options = _parsed(arguments)
    keep_freed_memory()
    paths = images_of([*options.paths, *paths_in(options.files_from)])
    before = prediction_file.computed_by(options.output) if options.resume else None
    backend, precision = _as_before(options, before)
    model = _model(options, precision)
    if options.unknown_below is not None:
        familiarity_of(model, options.unknown_below)
    class_names, preprocessing = class_names_of(model), preprocessing_of(model)
    is_kept, origin_of = options.output is not None, prediction_file.Origin.of
    about = model, class_names, preprocessing, options.checkpoint
    judged = {"calibrated": not options.raw, "unknown_below": options.unknown_below}
    origin = origin_of(*about, **judged) if is_kept else None
    broken: list[str] = []
    with ExitStack() as stack:
        left = paths
        if origin is not None:
            stack.enter_context(prediction_file.for_one_process(options.output))
            if not options.resume:
                prediction_file.require_new(options.output)  # before minutes of preparation
            elif options.output.exists():
                ranks = min(options.top_k, len(class_names))
                left = prediction_file.unanswered(options.output, paths, ranks, class_names, origin, say=tell)
        files = _without_stdin(left, stack)
        computed = with_features(model) if options.unknown_below is not None and isinstance(model, CeiT) else model
        network, computed_by, device = _network(options, computed, backend, precision, preprocessing, files)
        if files and before not in (None, computed_by):
            raise ValueError(
                f"{options.output} holds answers computed by {before}, not by {computed_by}: leave out --backend and "
                "--precision to go on so, or name another --output"
            )
        predictor = Predictor(
            model,
            class_names=class_names,
            preprocessing=preprocessing,
            device=device,
            workers=options.workers,
            network=network,
            **judged,
        )
        stream = predictor.predict_stream(files, top_k=options.top_k, batch_size=options.batch_size)
        answers = stack.enter_context(closing(_between_signals(stream)))
        predictions = _counted(left, answers, len(paths), options.output, broken)
        if origin is not None:
            origin = origin._replace(computed_by=before or computed_by)
            prediction_file.write_answers(options.output, predictions, origin, resume=options.resume)
        elif options.json:
            _print_json(predictions)
        elif options.csv:
            _print_csv(predictions, options.unknown_below is not None)
        else:
            _print_table(predictions, paths, class_names, options.top_k)
    if broken:
        names = listed(map(prediction_file.printable, broken))
        sentence = f"{len(broken)} of {len(paths)} images cannot be read: {names}"
        if not options.skip_broken:
            raise ValueError(f"{sentence}; --skip-broken accepts that")
        tell(sentence)


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("paths", "image, folder of images, or - for standard input", metavar="PATH", nargs="*")
    add("--files-from", FILES_FROM, metavar="FILE")
    add("--checkpoint", f"{MODEL} (default: {DEFAULT})", metavar="RUN|FILE")
    add("--top-k", "print the K most probable classes", type=int, default=5, metavar="K")
    add("--raw", RAW, action="store_true")
    text = f"call images unknown that are less familiar than P; auto is {KNOWN_REJECTED}: of images like those of "
    text += "training about 1 in 20 is called unknown, too"
    add("--unknown-below", text, type=share_of, metavar="auto|P")
    add("--skip-broken", "exit with 0 even if some images cannot be read; they are named", action="store_true")
    results = parser.add_argument_group("results, instead of a table")
    add = adding_to(results.add_mutually_exclusive_group())
    add("--json", JSON, action="store_true")
    add("--csv", "print CSV: a line for every image and rank", action="store_true")
    text = "write answers as they come: to FILE.csv, or to FILE.jsonl, one JSON object per image and line"
    add("--output", text, type=expanded, metavar="FILE")
    text = "continue an interrupted --output (same model, paths written as before): answers are kept, images that "
    text += "could not be read are tried again and come last"
    adding_to(results)("--resume", text, action="store_true")
    group = parser.add_argument_group("computing")
    add_computing(group)
    add = adding_to(group)
    text = f"images per batch, of each worker (default: {CPU_BATCH} on the CPU, {ACCELERATOR_BATCH} on an accelerator)"
    add("--batch-size", text, type=int, metavar="N")
    text = "threads, each of which reads and computes images of its own (default: one per core)"
    add("--workers", text, type=positive, metavar="N")
    options = parser.parse_args(arguments)
    if not options.paths and not options.files_from:
        parser.error("name an image, a folder of images, or a list of them with --files-from")
    if options.files_from == STDIN in options.paths:
        parser.error("standard input cannot be an image and a list: name a file for one of them")
    if options.resume and not options.output:
        parser.error("--resume goes on with a file: name it with --output FILE.csv or FILE.jsonl")
    if options.output and options.output.suffix not in prediction_file.FORMS:
        parser.error(f"--output {options.output} must end in {' or '.join(prediction_file.FORMS)}")
    if options.output:
        require_place(options.output)
    return options


def share_of(text: str) -> float:
    """The share of known images that ``--unknown-below`` calls unknown."""
    with suppress(ValueError):
        share = KNOWN_REJECTED if text == "auto" else float(text)
        if 0 < share < 1:
            return share
    raise argparse.ArgumentTypeError(f"{text} must be auto or a number between 0 and 1")


def paths_in(file: str | None) -> list[str]:
    """The paths that a text file lists, seen from the folder that this is called in. Raises: ValueError for none."""
    if file is None:
        return []
    if file == STDIN:
        _require_stdin()
    content = sys.stdin.buffer.read() if file == STDIN else expanded(file).read_bytes()
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # as a PowerShell writes it
        content = content.decode("utf-16", "replace").encode()
    between = b"\0" if b"\0" in content else b"\n"
    lines = [line.removesuffix(b"\r") for line in content.removeprefix(BOM_UTF8).split(between)]
    if not any(lines):
        raise ValueError(f"--files-from {file} lists no paths")
    return [os.fsdecode(line) for line in lines if line]


def _require_stdin() -> None:
    if sys.stdin is None:
        raise ValueError(f"standard input is closed: name a file in place of {STDIN}")


def images_of(names: Sequence[str]) -> list[str]:
    """The images that the arguments stand for; those of a folder as training finds them, saying what is passed over.

    What is not there, and a folder that cannot be listed, are images that cannot be read. Raises: ValueError if there
    are no others.
    """
    images, lost, empty = list[str](), list[str](), list[str]()
    for name in chain.from_iterable(map(matching, names)):
        path = expanded(name)
        if name == STDIN or not os.path.isdir(path):
            if name != STDIN and not os.path.exists(path):
                lost.append(f"{name} does not exist or cannot be reached")
            images.append(str(path) if name.startswith("~") else name)
            continue
        try:
            files, passed_over = image_files(path, lost)
        except EmptyFolderError as error:
            empty.append(str(error))
            continue
        if passed_over:
            tell(f"{name}: {passed_over}")
        images += map(str, files)
    if len(lost) == len(images):
        reasons = listed(lost + empty)
        raise ValueError(reasons if len(names) == 1 else f"{len(names)} paths, and nothing to predict: {reasons}")
    tell(*empty)
    return images


def _as_before(options: argparse.Namespace, before: str | None) -> tuple[str | None, str]:
    """Backend and precision as asked for; where they are left open, what computed the answers that are there."""
    backend, _, precision = (before or "").partition(" ")
    if before is None or options.backend not in (None, "auto", backend) or options.precision not in ("auto", precision):
        return options.backend, options.precision
    if options.checkpoint is not None and is_exported(options.checkpoint):  # its int8 is no choice
        precision = "bf16" if "bf16" in precision else "float32"
    return backend, precision


def _model(options: argparse.Namespace, precision: str) -> CeiT | ExportedNetwork:
    """The model that was asked for, or that ships: then ``options.checkpoint`` becomes its name."""
    if options.checkpoint is None:
        if DEFAULT not in shipped_names():
            raise ValueError("no trained model ships with this version: name one with --checkpoint RUN|FILE")
        options.checkpoint, model = DEFAULT, load_checkpoint(DEFAULT)
        known = ", ".join(class_names_of(model))
        tell(f"no --checkpoint: {DEFAULT} answers, a small model that comes with ceit and knows only {known}")
        return model
    if not is_exported(options.checkpoint):
        return load_checkpoint(options.checkpoint)
    refuse_for_exported(options.backend, options.device)
    callers = options.workers or torch.get_num_threads()
    computed_in = exported_precision(Path(options.checkpoint), precision)
    return load_exported(options.checkpoint, precision=computed_in, threads=1, callers=callers)


def _network(
    options: argparse.Namespace,
    model: CeiT | ExportedNetwork,
    backend: str | None,
    precision: str,
    preprocessing: Preprocessing,
    files: Sequence[str],
) -> tuple[Network, str, torch.device]:
    """What computes the files' images, its name, and where; several threads may call it, each alone on its core."""
    if not isinstance(model, CeiT):
        computed_in = exported_precision(Path(options.checkpoint), precision)
        written = model.description
        return model, f"{written.format} {precision_run(written.precision, computed_in)}", torch.device("cpu")

    def some(count: int) -> ExampleImages:
        return of_files(list(map(Path, files)), count, image_hw=model.config.image_hw, preprocessing=preprocessing)

    def sample() -> Tensor | None:
        images = some(SAMPLE_IMAGES).images
        return images if len(images) else None

    def examples() -> ExampleImages | None:
        of_training = to_choose_by(options.checkpoint, None, model, tell)
        if of_training:
            return of_training
        found = some(2 * CALIBRATION_IMAGES)
        if len(found) >= LEAST_IMAGES:
            return found
        tell(f"pictures to choose by: {len(found)}, at least {LEAST_IMAGES} are needed")
        return None

    devices = devices_for(options.device, backend)
    workers, batch_size = options.workers or torch.get_num_threads(), options.batch_size or batch_of(devices)
    work = Work(batch_size, len(files), threads=1, callers=workers, sample=sample, examples=examples)
    if not files:  # nothing is left to compute
        backend, precision = "eager", "float32"
    found = computing(model, backend, precision, devices, work, tell)
    return in_turns(found.networks, found.devices), str(found), devices[0]


def _without_stdin(paths: list[str], stack: ExitStack) -> list[str]:
    """The paths in full, with a file in the place of standard input: an image is read more than once over."""
    file = Path()
    if STDIN in paths:
        _require_stdin()
        file = Path(stack.enter_context(TemporaryDirectory(prefix="ceit-")), "stdin")
        with file.open("wb") as kept:
            while piece := sys.stdin.buffer.read(1 << 20):
                kept.write(piece)
                IMAGE.require(kept.tell(), "standard input")
        content = file.read_bytes()
        seam = next((seam for begin, seam in _SEAMS.items() if content.startswith(begin)), None)
        if seam is not None and seam in content and b"MPF\0" not in content:  # the several views of one photo
            tell("standard input holds several images, and only the first is taken: write them to a folder")
    return [str(file if path == STDIN else Path(path).absolute()) for path in paths]


def _between_signals(predictions: Iterable[Prediction]) -> Generator[Prediction, None, None]:
    """The predictions; Ctrl-C and SIGTERM end them when the next is awaited, and never cut what is done with one.

    A second one acts at once.
    """
    for prediction in predictions:
        with stop_signals() as received:
            yield prediction
        for number in received:
            signal.raise_signal(number)


def _counted(
    paths: Sequence[str], answers: Iterable[Prediction], total: int, output: Path | None, broken: list[str]
) -> Iterator[Prediction]:
    """The answers under the paths that the user gave, the last of ``total``; those of ``broken`` images are noted down.

    With a bar on the terminal where the answers go elsewhere; when stopped, it is said how many there are.
    """
    done = total - len(paths)
    console = stderr_console()
    hidden = (sys.stdout.isatty() and output is None) or not console.is_terminal
    tracked = track(answers, "predicting", total=total, completed=done, console=console, transient=True, disable=hidden)
    try:
        for path, answer in zip(paths, tracked, strict=True):
            if answer.error is not None:
                broken.append(path)
            yield replace(answer, path=path)
            done += 1
    except (KeyboardInterrupt, SystemExit):
        tell(f"{done} of {total} images are predicted{'; --resume goes on' if output else ''}")
        raise


def _print_json(predictions: Iterable[Prediction]) -> None:
    """One list, an image a line, each printed as soon as it is known; a whole one if there are fewer than asked."""
    start = "["
    try:
        for prediction in predictions:
            print(f"{start}\n  {json.dumps(prediction.as_dict())}", end="", flush=True)
            start = ","
    finally:
        print("[]" if start == "[" else "\n]")


def _print_csv(predictions: Iterable[Prediction], judged: bool) -> None:
    """The bytes that ``--output`` would write: UTF-8, whatever else is printed in, so that names stay as they are."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors=prediction_file.NAME_ERRORS, newline="\n")
    for text in prediction_file.as_text(predictions, ".csv", judged):
        print(text, end="", flush=True)


def _print_table(
    predictions: Iterable[Prediction], paths: Sequence[str], class_names: Sequence[str], top_k: int
) -> None:
    """A line for every image as soon as it is known, so all widths are chosen before."""
    console = Console(highlight=False)
    shown = map(prediction_file.printable, [*paths, _IMAGE])
    path_cells = min(max(map(cell_len, shown)), max(16, console.width * 2 // 5))
    label_cells = _cells_for([*class_names, _LABEL, _UNKNOWN], most=max(20, console.width // 3))
    others_cells = console.width - path_cells - label_cells - _BAR_CELLS - 7 - 3 * len(_GAP)
    others_heading = "runners-up" if top_k > 1 and others_cells >= len("runners-up") else ""

    def print_line(path: str, answer: Text, style: str = "") -> None:
        line = Text.assemble(_end_of(path, path_cells), _GAP, answer, style=style)
        console.print(line, no_wrap=True, overflow="ellipsis")

    heading = f"{_fit(_LABEL, label_cells)}{_GAP}{'probability':<{_BAR_CELLS + 7}}{_GAP}{others_heading}"
    print_line(_IMAGE, Text(heading), "bold")
    console.print("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * console.width, style="dim")
    for prediction in predictions:
        path = prediction_file.printable(prediction.path or "")
        if prediction.error is not None:
            print_line(path, Text(f"cannot be read: {prediction.error}", "red"))
            continue
        if prediction.unknown:
            like = _runners_up(prediction.predictions, others_cells - len(_LIKE))
            like = f"{_LIKE}{like}" if like else _runners_up(prediction.predictions, others_cells)
            label = (_fit(_UNKNOWN, label_cells), "yellow")
            print_line(path, Text.assemble(label, _GAP, " " * (_BAR_CELLS + 7), _GAP, (like, "dim")))
            continue
        best, *others = prediction.predictions
        label = Text(_fit(best.label, label_cells), "bold")
        share = Text.assemble(bar(best.probability, _BAR_CELLS), f" {_percent(best):>6}")
        print_line(path, Text.assemble(label, _GAP, share, _GAP, (_runners_up(others, others_cells), "dim")))


def _percent(score: Score) -> str:
    return f"{100 * score.probability:.1f}%"


def _runners_up(scores: Sequence[Score], cells: int) -> str:
    """As many of them as fit."""
    words = [f"{score.label} {_percent(score)}" for score in scores]
    while words and cell_len(", ".join(words)) > cells:
        words.pop()
    return ", ".join(words)


def _cells_for(labels: Sequence[str], most: int) -> int:
    """20 cells, or fewer for short labels; or as many more, up to ``most``, as keep shortened ones apart."""
    longest, different = max(map(cell_len, labels)), len({*labels})
    cells = min(longest, 20)
    while cells < min(longest, most) and len({_fit(label, cells) for label in labels}) < different:
        cells += 1
    return cells


def _fit(text: str, cells: int) -> str:
    """The text in exactly so many cells of the terminal."""
    return set_cell_size(text if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1)}…", cells)


def _end_of(path: str, cells: int) -> str:
    """As ``_fit``, but of a long path the end: the file's name tells images apart."""
    if cell_len(path) > cells:
        while cell_len(path) >= cells:
            path = path[1:]
        path = f"…{path}"
    return set_cell_size(path, cells)
