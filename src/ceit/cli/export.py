"""``ceit export``: a trained model as one file for ONNX Runtime, OpenVINO or torch, in float32 or int8."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ceit.atomic import require_place
from ceit.data.held_out import used_for
from ceit.data.labelled import LabelledSet, as_dataset, cut_by_place, of_classes
from ceit.data.preprocessing import Preprocessing
from ceit.data.record import FILE, FIXED, TRAIN, VALIDATION, ImageRecord
from ceit.data.reduced import IN_MEMORY_SIDE
from ceit.data.sources.choose import load_images, place_of
from ceit.data.sources.walk import image_files
from ceit.data.splits import Split, cut_validation
from ceit.inference.example_images import ExampleImages, of_dataset, of_files, synthetic
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
from ceit.inference.predictor import default_preprocessing, stored_preprocessing
from ceit.inference.quantize import CALIBRATION_IMAGES
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.train.run_directory import saved_config
from ceit.weights import load_checkpoint, read_description

_FEWEST_FOR_INT8 = 20  # pictures: half to calibrate, half to check
_SYNTHETIC_IMAGES = 32


def main(arguments: list[str]) -> None:
    """Write the file and print what it was checked on and how far it is from the network.

    Raises: ValueError for a checkpoint or images that cannot be read, an output that exists, or an export that is
    refused.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_usage(parser, options)
    require_place(options.output)
    if not options.overwrite:
        refuse_existing(options.output)
    model = load_checkpoint(options.checkpoint)
    description = read_description(options.checkpoint)
    training = (description and description.training) or {}
    preprocessing = stored_preprocessing(model) or default_preprocessing(model)
    model.preprocessing = preprocessing.as_dict()
    check, calibration = _images(options, model, preprocessing, training)
    report = export(
        model,
        options.output,
        format=options.format,
        precision=options.precision,
        check=check,
        calibration=None if calibration is None else calibration.images,
        any_size=options.dynamic_size,
        overwrite=options.overwrite,
        training=description and description.training,
    )
    files = [options.output, options.output.with_suffix(".bin")] if options.format == "openvino" else [options.output]
    sizes = {str(file): file.stat().st_size for file in files}
    if options.json:
        calibrated = None if calibration is None else {"images": len(calibration), "from": calibration.origin}
        document = {"checkpoint": options.checkpoint, "files": sizes, "calibration": calibrated}
        print(json.dumps(document | asdict(report)))
    else:
        _print_report(report, sizes, calibration)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceit export",
        description="Write a trained model for another runtime. The file is compared with the model on real images, "
        "and refused if it differs.",
    )
    parser.add_argument("--checkpoint", metavar="RUN|FILE", required=True, help="a run directory or a file of weights")
    parser.add_argument("--format", choices=FORMATS, required=True, help="torch: a program of torch.export")
    parser.add_argument("--output", metavar="FILE", required=True, type=expanded, help=f"ends in {', '.join(SUFFIXES)}")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32")
    parser.add_argument(
        "--dynamic-size", action="store_true", help="take images of any sides that are multiples of the patch size"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", metavar="NAME|DIR", help="a data set to check and calibrate with (default: that of the run)"
    )
    source.add_argument(
        "--images", metavar="PATH", nargs="+", type=expanded, help="pictures, or folders of them, instead of a data set"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with 2 where the options do not go together."""
    try:
        refuse_combination(options.format, options.precision, options.dynamic_size)
    except ValueError as error:
        parser.error(str(error))
    if options.output.suffix != suffix_of(options.format):
        parser.error(f"--output {options.output} must end in {suffix_of(options.format)} for --format {options.format}")


def _images(
    options: argparse.Namespace, model: CeiT, preprocessing: Preprocessing, training: dict[str, Any]
) -> tuple[ExampleImages, ExampleImages | None]:
    """What to check with, and what to calibrate with for int8: never the same, and of a data set never a test split."""
    shown: dict[str, Any] = {"image_hw": model.config.image_hw, "preprocessing": preprocessing}
    int8, small = options.precision == "int8", max(model.config.image_hw) <= IN_MEMORY_SIDE
    count = (2000 if small else 500) if int8 else (256 if small else 64)
    if options.images:
        pictures = of_files(_pictures(options.images), count + (CALIBRATION_IMAGES if int8 else 0), **shown)
        return _shared_out(pictures, int8)
    examples = _examples(options, model, training, needed=int8)
    if examples is None:
        return synthetic(_SYNTHETIC_IMAGES, **shown), None
    shown["class_names"] = model.class_names
    found, rest, held_out, held_out_name = examples
    check = of_dataset(found, held_out, held_out_name, count, **shown)
    return check, of_dataset(found, rest, "training images", CALIBRATION_IMAGES, **shown) if int8 else None


def _shared_out(pictures: ExampleImages, int8: bool) -> tuple[ExampleImages, ExampleImages | None]:
    """Half of the pictures, and no more than it needs, calibrate int8; all others check.

    Raises: ValueError if there are too few that can be read.
    """
    _say(f"skipped {line}" for line in pictures.skipped)
    if pictures.skipped:
        total = len(pictures.skipped) + len(pictures)
        _say([f"{len(pictures.skipped):,} of {total:,} pictures cannot be read and are left out"])
    if not len(pictures):
        raise ValueError("none of the pictures can be read: give others with --images")
    if not int8:
        return pictures, None
    if len(pictures) < _FEWEST_FOR_INT8:
        raise ValueError(
            f"{len(pictures)} pictures are too few for int8: give at least {_FEWEST_FOR_INT8}, of which half "
            "calibrate and half check"
        )
    end = min(CALIBRATION_IMAGES, len(pictures) // 2)
    return replace(pictures, images=pictures.images[end:]), replace(pictures, images=pictures.images[:end])


def _examples(
    options: argparse.Namespace, model: CeiT, training: dict[str, Any], needed: bool
) -> tuple[LabelledSet, Split, Split, str] | None:
    """The data that were named, or those of the training if they are at hand; of them images to calibrate with and
    others to check with, and what the latter are called.

    Raises: ValueError if there are none and they are ``needed``, or were named.
    """
    try:
        record = ImageRecord.of_run(options.checkpoint, training)
        source = options.data or _place_of_training(options.checkpoint, training, record)
        found = load_images(source, img_size=model.config.image_hw, in_chans=model.config.in_chans, skip_broken=True)
        _say((*(f"skipped {file}" for file in found.skipped), *found.remarks))
        if not options.data:
            if training.get("classes") is not None:
                found = of_classes(found, training["classes"])
            _require_own(found, model, record)
        return found, *_held_out(found, training, record)
    except (ValueError, OSError) as error:
        if options.data is None and not needed:
            _say([f"no images are at hand to check with: {error}; --data or --images names some"])
            return None
        hint = "" if options.data else "; name another with --data, or give --images PATH..."
        raise ValueError(f"{error}{hint}") from error


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
    name = Path(saved["data"]).name if known is None else known[0]
    return (name, saved.get("seed")) == (training["data"], training.get("seed"))


def _require_own(found: LabelledSet, model: CeiT, record: ImageRecord | None) -> None:
    """Raises: ValueError for data that lie where those of the training did, and are others."""
    if record is not None and used_for(TRAIN, found, record) is None:
        raise ValueError(f"{found.place} has none of the images that the run was trained on")
    if record is None and model.class_names is not None and set(model.class_names) != set(found.class_names):
        raise ValueError(f"{found.place} has other classes than the checkpoint")


def _held_out(found: LabelledSet, training: dict[str, Any], record: ImageRecord | None) -> tuple[Split, Split, str]:
    """Images to calibrate with, others to check with, and what those are: the run's validation images where it had any.

    What the run recorded counts. A set without validation images, and a run that is not known, give a tenth of the
    training images.
    """
    train, validation = used_for(TRAIN, found, record), used_for(VALIDATION, found, record)
    seed = training.get("seed", 0)
    if train is None:  # no record, or other data than the run's
        old = "images" not in training and "seed" in training  # such runs cut their images by place
        dataset = as_dataset(cut_by_place(found) if old else found, seed)
        train, validation = dataset.train, dataset.validation
        if validation is None and (percent := training.get("validation_percent")):
            train, validation = cut_validation(train, float(percent), seed)
    if validation is not None:
        return train, validation, "validation split"
    return *cut_validation(train, max(1, len(train) // 10), seed), "training images"


def _pictures(paths: list[Path]) -> list[Path]:
    """Files as given, and those in folders. Raises: ValueError for a path that is not there, an empty folder."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files, passed_over = image_files(path) if path.is_dir() else ([path], "")
        if passed_over:
            _say([f"{path}: {passed_over}"])
        found += files
    return list(dict.fromkeys(found))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _print_report(report: Report, sizes: dict[str, int], calibration: ExampleImages | None) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)

    def row(name: str, value: str, style: str = "") -> None:
        table.add_row(Text(name, "dim"), Text(value, style))

    for file, size in sizes.items():
        row("written", f"{file}  {size / 1e6:.2f} MB")
    row("precision", report.precision)
    row("checked on", f"{report.images:,} images: {report.images_from}", "" if report.real_images else "yellow")
    if calibration is not None:
        row("calibrated on", f"{len(calibration):,} images: {calibration.origin}")
    limit = f" (limit {MAX_ERROR:.0e})" if report.precision == "float32" else ""
    row("largest error", f"{report.max_error:.1e} of the largest logit{limit}")
    limit = f" (limit {MIN_AGREEMENT_PERCENT}%)" if report.precision == "int8" else ""
    row("same class", f"{report.agreement_percent:.2f}% of the images{limit}", "bold")
    if report.top1_percent is not None:
        row("top-1", f"{report.top1_percent:.2f}%, the network itself {report.float32_top1_percent:.2f}%")
    Console(highlight=False).print(table)
