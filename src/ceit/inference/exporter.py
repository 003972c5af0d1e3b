"""A trained network as a file for ONNX Runtime, OpenVINO or torch, compared with the network before it is kept."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ceit.atomic import replace_files, require_place
from ceit.inference import graphs, program_file
from ceit.inference.backend import graph_of
from ceit.inference.example_images import ExampleImages
from ceit.inference.exported import METADATA_KEY, SUFFIXES, WEIGHTS_KEY, ExportedDescription, Format, load_exported
from ceit.inference.folding import fuse
from ceit.model import CeiT
from ceit.paths import expanded
from ceit.version import __version__
from ceit.weights import Description
from ceit.weights.geometry import name_of

ExportPrecision = Literal["float32", "int8"]
PRECISIONS: tuple[ExportPrecision, ...] = ("float32", "int8")

MAX_ERROR = 1e-4
"""A float32 export may differ from the network by this share of the largest logit, and no more."""
MIN_AGREEMENT_PERCENT = 98.5
"""An int8 export must name the class that the network names for this share of the images, at least."""
_BATCH = 16


@dataclass(frozen=True)
class Report:
    """An export compared with the network it was made of, in eager float32.

    ``max_error`` is the largest difference between two logits, as a share of the largest logit; ``agreement_percent``
    the share of images for which both name the same class. Accuracies are of the same images, None without labels.
    ``real_images`` is False where none were at hand.
    """

    format: str
    precision: str
    any_size: bool
    images: int
    images_from: str
    real_images: bool
    max_error: float
    agreement_percent: float
    top1_percent: float | None
    float32_top1_percent: float | None


def export(
    model: CeiT,
    file: str | Path,
    *,
    format: Format,
    precision: ExportPrecision = "float32",
    check: ExampleImages,
    calibration: Tensor | None = None,
    any_size: bool = False,
    overwrite: bool = False,
    training: dict[str, Any] | None = None,
) -> Report:
    """Write the network to ``file``: ``.onnx``, ``.pt2``, or ``.xml`` with a ``.bin`` beside it.

    The model may be on any device and in any precision. BatchNorm is folded first. The file takes any number of images
    at a time, of one size or, with ``any_size``, of any sides that are multiples of the patch size. Geometry, class
    names, preprocessing, temperature and the result of the check are inside. ``calibration`` are preprocessed images
    that int8 takes its ranges from; ``training`` is what the checkpoint says of its training.

    The file is run on the images of ``check`` before it gets its name. Raises: ValueError, and nothing is written, if
    it differs from the network by more than ``MAX_ERROR``, in int8 if fewer than ``MIN_AGREEMENT_PERCENT`` of the
    answers are the same, if the file exists and is not to be overwritten, or for arguments that do not go together.
    """
    file = expanded(file)
    refuse_combination(format, precision, any_size)
    if SUFFIXES.get(file.suffix) != format:
        raise ValueError(f"{file} must end in {suffix_of(format)} for the format {format}")
    require_place(file)
    if not overwrite:
        refuse_existing(file)
    if not model.config.num_classes:
        raise ValueError("a network of 0 classes has no head: there is nothing to export")
    about = model.class_names, model.preprocessing, training, model.temperature
    said = Description(model.config, name_of(model.config), *about)
    description = ExportedDescription(said, format, precision, any_size, __version__)
    model = copy.deepcopy(model).cpu().float()
    network, image_shape = fuse(model), (model.config.in_chans, *model.config.image_hw)
    if format == "torch":
        graph: Any = graphs.exported_program(network, image_shape)
    else:
        runtime = "onnxruntime" if format == "onnx" else format
        graph = graph_of(network, runtime, precision, image_shape, calibration=calibration, any_size=any_size)
    with TemporaryDirectory(prefix="ceit-") as folder:
        trial = Path(folder, file.name)
        for suffix, content in _contents(graph, description).items():
            trial.with_suffix(suffix).write_bytes(content)
        report = _compare(model, trial, description, check)
    checked = _contents(graph, replace(description, check=asdict(report)))
    replace_files({file.with_suffix(suffix): content for suffix, content in checked.items()})
    return report


def refuse_combination(format: str, precision: str, any_size: bool) -> None:
    """Raises: ValueError for what does not go together, naming what does."""
    if precision == "int8" and format == "torch":
        raise ValueError("int8 goes with the formats onnx and openvino, not with torch, which goes with float32")
    if any_size and format == "torch":
        raise ValueError("a dynamic size goes with the formats onnx and openvino, not with torch")
    if any_size and precision == "int8":
        raise ValueError("a dynamic size goes with float32, not with int8, whose ranges hold for one size")


def refuse_existing(file: Path) -> None:
    """Raises: ValueError if the export would replace a file."""
    for path in (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,):
        if path.exists():
            raise ValueError(f"{path} exists: choose another name, or replace it with --overwrite")


def suffix_of(format: str) -> str:
    """How the names of a format's files end."""
    return next(suffix for suffix, known in SUFFIXES.items() if known == format)


def _contents(graph: Any, description: ExportedDescription) -> dict[str, bytes]:
    """What the files of a graph hold, by suffix, with the description inside; the last is the one to name."""
    text = description.to_json()
    if description.format == "torch":
        return {".pt2": program_file.to_bytes(graph, text)}
    if description.format == "onnx":
        import onnx

        graph.producer_name, graph.producer_version = "ceit", __version__
        onnx.helper.set_model_props(graph, {METADATA_KEY: text})
        onnx.checker.check_model(graph, full_check=True)
        return {".onnx": graph.SerializeToString()}
    graph.set_rt_info(text, METADATA_KEY)
    with TemporaryDirectory(prefix="ceit-") as folder:
        place = Path(folder, "model.xml")
        graphs.save_openvino(graph, place)
        weights = place.with_suffix(".bin").read_bytes()
        graph.set_rt_info(hashlib.sha256(weights).hexdigest(), WEIGHTS_KEY)
        graphs.save_openvino(graph, place)
        return {".bin": weights, ".xml": place.read_bytes()}


def _compare(model: CeiT, file: Path, description: ExportedDescription, check: ExampleImages) -> Report:
    """The file against the network as it is. Raises: ValueError if they differ by too much."""
    network, eager = load_exported(file), copy.deepcopy(model).eval()
    wanted = _in_batches(eager, check.images)
    got = _in_batches(network, check.images)
    errors = [_error(got, wanted)]
    agreement_percent = _same(got, wanted.argmax(1))
    for image_hw in _other_sizes(model) if description.any_size else ():
        images = F.interpolate(check.images[:_BATCH], image_hw, mode="bilinear")
        eager.set_input_size(model.config.image_hw)
        eager.load_state_dict(model.state_dict())  # positions are interpolated from those of the checkpoint
        eager.set_input_size(image_hw)
        errors.append(_error(_in_batches(network, images), _in_batches(eager, images)))
    right = (None, None) if check.labels is None else (_same(got, check.labels), _same(wanted, check.labels))
    worst = max(errors, key=lambda error: error if error == error else float("inf"))
    kind = description.format, description.precision, description.any_size
    report = Report(*kind, len(check), check.origin, check.real, worst, agreement_percent, *right)
    if reason := refusal(report):
        raise ValueError(
            f"the export is refused and nothing was written: over {len(check)} images ({check.origin}) {reason}"
        )
    return report


def refusal(report: Report) -> str | None:
    """Why the export will not do. Comparisons are such that what is not a number is refused.

    In float32 the error decides: where it holds, another class can be named only if two logits differ by less.
    """
    if report.precision == "float32":
        if report.max_error <= MAX_ERROR:
            return None
        return f"its logits differ by {report.max_error:.1e} of the largest, the limit is {MAX_ERROR:.0e}"
    if report.max_error < float("inf") and report.agreement_percent >= MIN_AGREEMENT_PERCENT:
        return None
    same = f"it names the same class for {report.agreement_percent:.2f} %, the limit is {MIN_AGREEMENT_PERCENT} %"
    return f"{same}; more calibration images may help, or float32"


def _other_sizes(model: CeiT) -> tuple[tuple[int, int], ...]:
    """One larger and oblong, one smaller where there is one."""
    (height, width), patch = model.config.image_hw, model.config.patch_size
    return (height + patch, width + 2 * patch), (max(patch, height - patch), width)


def _in_batches(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits in float64, of batches of different sizes: the first holds one image."""
    with torch.no_grad():
        return torch.cat([network(batch).double() for batch in (images[:1], *images[1:].split(_BATCH)) if len(batch)])


def _error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def _same(logits: Tensor, classes: Tensor) -> float:
    """Percent of the images that are given their class."""
    return 100 * (logits.argmax(1) == classes).double().mean().item()
