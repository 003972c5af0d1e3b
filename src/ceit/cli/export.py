r"""Write a trained model as one file for ONNX Runtime, OpenVINO or torch, or as a page that classifies in a browser.

What is written is compared with the model on real images, and refused if its answers differ.

usage: ceit export --checkpoint RUN|FILE --format FORMAT --output PATH [options]

examples:
  ceit export --checkpoint runs/photos --format onnx --output photos.onnx
  ceit export --checkpoint runs/photos --format openvino --precision int8 \
      --output photos.xml
  ceit export --checkpoint runs/photos --format web --output photos-page
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ceit.atomic import require_place
from ceit.browser import folder
from ceit.cli._parser import JSON, WEIGHTS, Parser, adding_to
from ceit.cli._terminal import facts, tell
from ceit.data.reduced import IN_MEMORY_SIDE
from ceit.inference.example_images import ExampleImages, of_dataset, of_files, pictures_in, shared_out, synthetic
from ceit.inference.exported import FORMATS, SUFFIXES
from ceit.inference.exporter import (
    MAX_ERROR,
    MIN_AGREEMENT_PERCENT,
    PRECISIONS,
    Report,
    export,
    refuse_combination,
    refuse_existing,
    suffix_of,
)
from ceit.inference.predictor import preprocessing_of
from ceit.inference.quantize import CALIBRATION_IMAGES
from ceit.model import CeiT
from ceit.paths import expanded, matching
from ceit.train.example_sets import calibrating_and_checking
from ceit.weights import load_checkpoint, read_description

_SYNTHETIC_IMAGES = 32
_WEB = "web"


def main(arguments: list[str]) -> None:
    """Write the file, or the folder of a page, and print what it was checked on and how far it is from the network.

    Raises: ValueError for a checkpoint or images that cannot be read, an output that exists, or an export that is
    refused; ConnectionError if the page's runtime cannot be fetched.
    """
    options = _parsed(arguments)
    if options.format == _WEB:
        folder.refuse_existing(options.output)
    elif not options.overwrite:
        refuse_existing(options.output)
    require_place(options.output)
    model = load_checkpoint(options.checkpoint)
    description = read_description(options.checkpoint)
    training = description and description.training
    model.preprocessing = preprocessing_of(model).as_dict()
    check, calibration = _images(options, model, training or {})
    about: dict[str, Any] = {
        "precision": options.precision,
        "check": check,
        "calibration": None if calibration is None else calibration.images,
        "training": training,
    }
    if options.format == _WEB:
        report = folder.export_folder(model, options.output, **about)
    else:
        places: dict[str, Any] = {"any_size": options.dynamic_size, "overwrite": options.overwrite}
        report = export(model, options.output, format=options.format, **about, **places)
    sizes = {str(file): file.stat().st_size for file in _written(options.output, options.format)}
    if options.json:
        calibrated = None if calibration is None else {"images": len(calibration), "from": calibration.origin}
        document = {"checkpoint": options.checkpoint, "files": sizes, "calibration": calibrated}
        print(json.dumps(document | asdict(report)))
    else:
        _print_report(report, sizes, calibration)


def _written(output: Path, format: str) -> list[Path]:
    if format == _WEB:
        return sorted(output.iterdir())
    return [output, output.with_suffix(".bin")] if format == "openvino" else [output]


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("--checkpoint", WEIGHTS, required=True, metavar="RUN|FILE")
    text = "what runs it: ONNX Runtime, torch (by torch.export), OpenVINO, or a browser (web)"
    add("--format", text, required=True, choices=(*FORMATS, _WEB))
    ends = ", ".join(f"{end} ({name})" for end, name in SUFFIXES.items())
    text = f"file to write, whose name ends in {ends}; for web, a folder to make"
    add("--output", text, required=True, type=expanded, metavar="PATH")
    text = "number format; int8 is smaller and faster, needs images to calibrate with, and is not for torch"
    add("--precision", text, choices=PRECISIONS, default="float32")
    add("--overwrite", "replace the output if it exists (not for web)", action="store_true")
    text = "take any image size in multiples of the patch (float32, not for torch or web)"
    add("--dynamic-size", text, action="store_true")
    add("--json", JSON, action="store_true")
    images = parser.add_argument_group("images to compare and to calibrate with")
    add = adding_to(images.add_mutually_exclusive_group())
    add("--data", "a data set (default: that of the run)", metavar="NAME|DIR")
    text = "pictures, or folders of them, instead of a data set"
    add("--images", text, nargs="+", action="extend", type=expanded, metavar="PATH")
    options = parser.parse_args(arguments)
    if options.format == _WEB:
        for name in ("dynamic_size", "overwrite"):
            if getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} is not for --format web")
        return options
    try:
        refuse_combination(options.format, options.precision, options.dynamic_size)
    except ValueError as error:
        parser.error(str(error))
    if options.output.suffix != suffix_of(options.format):
        parser.error(f"--output {options.output} must end in {suffix_of(options.format)} for --format {options.format}")
    return options


def _images(
    options: argparse.Namespace, model: CeiT, training: dict[str, Any]
) -> tuple[ExampleImages, ExampleImages | None]:
    """What to check with, and what to calibrate with for int8: never the same, and of a data set never a test split."""
    seen_as: dict[str, Any] = {"image_hw": model.config.image_hw, "preprocessing": preprocessing_of(model)}
    int8, small = options.precision == "int8", max(model.config.image_hw) <= IN_MEMORY_SIDE
    count = (2000 if small else 500) if int8 else (256 if small else 64)
    if options.images:
        paths = [Path(name) for path in options.images for name in matching(str(path))]
        files = pictures_in(paths, tell)
        pictures = of_files(files, count + (CALIBRATION_IMAGES if int8 else 0), **seen_as)
        tell(*(f"skipped {line}" for line in pictures.skipped))
        if skipped := len(pictures.skipped):
            tell(f"{skipped:,} of {skipped + len(pictures):,} pictures cannot be read and are left out")
        if not len(pictures):
            raise ValueError("none of the pictures can be read: give others with --images")
        return shared_out(pictures) if int8 else (pictures, None)
    try:
        found, rest, held_out, name = calibrating_and_checking(options.checkpoint, options.data, model, training, tell)
    except (ValueError, OSError) as error:
        if not options.data and not int8:
            tell(f"no images are at hand to check with: {error}; --data or --images names some")
            return synthetic(_SYNTHETIC_IMAGES, **seen_as), None
        raise ValueError(f"{error}; name another set with --data, or give --images PATH...") from error
    seen_as["class_names"] = model.class_names
    check = of_dataset(found, held_out, name, count, **seen_as)
    return check, of_dataset(found, rest, "training images", CALIBRATION_IMAGES, **seen_as) if int8 else None


def _print_report(report: Report, sizes: dict[str, int], calibration: ExampleImages | None) -> None:
    rows: list[tuple[str, str | Text]] = [("written", f"{file}  {size / 1e6:.2f} MB") for file, size in sizes.items()]
    checked_on = Text(f"{report.images:,} images: {report.images_from}", "" if report.real_images else "yellow")
    rows += [("precision", report.precision), ("checked on", checked_on)]
    if calibration is not None:
        rows.append(("calibrated on", f"{len(calibration):,} images: {calibration.origin}"))
    limit = f" (limit {MAX_ERROR:.0e})" if report.precision == "float32" else ""
    rows.append(("largest error", f"{report.max_error:.1e} of the largest logit{limit}"))
    limit = f" (limit {MIN_AGREEMENT_PERCENT}%)" if report.precision == "int8" else ""
    rows.append(("same class", Text(f"{report.agreement_percent:.2f}% of the images{limit}", "bold")))
    if report.top1_percent is not None:
        rows.append(("top-1", f"{report.top1_percent:.2f}%, the network itself {report.float32_top1_percent:.2f}%"))
    Console(highlight=False).print(facts(rows))
