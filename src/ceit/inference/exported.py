"""Exported files: what they say about themselves, and how to run them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ceit.inference import program_file
from ceit.inference.graphs import openvino_core
from ceit.inference.runtimes import OPENVINO_PRECISIONS, OnnxRuntime, OpenVino
from ceit.json_file import parse_json
from ceit.limits import EXPORTED_SIDE
from ceit.messages import unknown
from ceit.paths import expanded
from ceit.weights import Description

Format = Literal["onnx", "torch", "openvino"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch", ".xml": "openvino"}
METADATA_KEY = "ceit"
"""Where ONNX files keep their description; OpenVINO has it in ``rt_info``, torch in an extra file."""
WEIGHTS_KEY = "ceit_weights_sha256"
"""Where an OpenVINO ``.xml`` keeps the digest of its ``.bin``."""


@dataclass(frozen=True)
class ExportedDescription:
    """What travels inside an exported file.

    ``network`` has geometry, class names and preprocessing, as the JSON file beside a checkpoint does. ``any_size``:
    images may have any sides that are multiples of the patch size. ``check`` is the report of the comparison with the
    network that was exported.
    """

    network: Description
    format: Format
    precision: str
    any_size: bool
    ceit: str
    check: dict[str, Any] | None = None

    def to_json(self) -> str:
        """In one line of ASCII, which every container keeps as it is."""
        export = {key: value for key, value in vars(self).items() if key != "network"}
        return json.dumps({**json.loads(self.network.to_json("")), "export": export})

    @classmethod
    def from_json(cls, text: str) -> "ExportedDescription":
        """The inverse of ``to_json``. Raises: ValueError for another text."""
        try:
            body = parse_json("the description of the network", text)
            found = cls(Description.from_json(body), **body["export"])
            EXPORTED_SIDE.require(max(found.network.config.image_hw), "the exported network")
            return found
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the description of the network is damaged ({error})") from error


class ExportedNetwork:
    """An exported file, ready to run: images ``(B, C, H, W)`` to logits ``(B, classes)``, on the CPU in float32.

    ``image_hw`` is the size in pixels that it was exported for. ``class_names``, in the order of the logits, and
    ``preprocessing``, as ``Preprocessing.from_dict`` takes it, are None where the checkpoint did not know them. The
    logits are those of the network: ``temperature``, if there is one, has not divided them.

    Raises: ValueError for images of a shape that the file does not take.
    """

    def __init__(self, description: ExportedDescription, run: OnnxRuntime | OpenVino | torch.nn.Module) -> None:
        self.description, self._run = description, run
        network = description.network
        self.config, self.class_names, self.preprocessing = network.config, network.class_names, network.preprocessing
        self.temperature = network.temperature
        self.image_hw, self.in_chans = network.config.image_hw, network.config.in_chans
        self.num_classes = network.config.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        config = self.config
        channels, *image_hw = images.shape[1:] if images.dim() == 4 else (0, 0, 0)
        multiples = min(image_hw) > 0 and not any(side % config.patch_size for side in image_hw)
        fits = multiples if self.description.any_size else tuple(image_hw) == config.image_hw
        if channels != config.in_chans or not fits:
            one_size = "{} x {}".format(*config.image_hw)
            sides = f"multiples of {config.patch_size}" if self.description.any_size else one_size
            raise ValueError(
                f"images of shape {tuple(images.shape)} do not fit: the exported network takes (B, C, H, W) of "
                f"{config.in_chans} channels and {sides} pixels"
            )
        with torch.no_grad():
            return self._run(images.to("cpu", torch.float32))


def is_exported(path: str | Path) -> bool:
    """Whether the name is that of an exported file: ``.onnx``, ``.pt2`` or ``.xml``, in any case."""
    return Path(path).suffix.lower() in SUFFIXES


def load_exported(
    path: str | Path, *, precision: Literal["float32", "bf16"] = "float32", threads: int | None = None, callers: int = 1
) -> ExportedNetwork:
    """The network in a file that ``ceit export`` wrote; nothing in the file is executed.

    ``precision="bf16"`` is for OpenVINO, which then computes what is float in bf16 where the processor can.
    ``threads`` compute a call, by default, and for torch always, as many as torch has; ``callers`` are how many call at
    the same time.

    Raises: ValueError with one sentence for a damaged or foreign file, bf16 of another format, another precision, or
    fewer than one thread or caller; OSError for a file that cannot be read.
    """
    path = expanded(path)
    if not is_exported(path):
        raise ValueError(f"{path} is no exported file: their names end in {', '.join(SUFFIXES)}")
    format = SUFFIXES[path.suffix.lower()]
    if precision not in OPENVINO_PRECISIONS:
        raise ValueError(unknown("precision", precision, OPENVINO_PRECISIONS))
    for name, number in (("threads", threads), ("callers", callers)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
    if precision == "bf16" and format != "openvino":
        raise ValueError(f"{path} cannot be run in bf16: only OpenVINO's .xml can, others run in float32")
    try:
        if format == "onnx":
            run = OnnxRuntime(_onnx_content(path), threads=threads)
            text = run.metadata.get(METADATA_KEY, "")
        elif format == "torch":
            program, text = program_file.from_bytes(path.read_bytes())
            run = program.module()
        else:
            model = _openvino_model(path)
            run = OpenVino(model, precision=precision, threads=threads, callers=callers)
            text = rt_info(model, METADATA_KEY)
        if not text:
            raise ValueError("it was not written by ceit export, so its classes and preprocessing are not known")
        return ExportedNetwork(ExportedDescription.from_json(text), run)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _onnx_content(path: Path) -> bytes:
    """The file, which holds all its numbers itself. Raises: ValueError for one whose numbers are in other files."""
    import onnx
    from google.protobuf.message import DecodeError, Message

    content = path.read_bytes()

    def elsewhere(message: Message) -> Iterator[str]:
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            for part in [value] if isinstance(value, Message) else value:
                if isinstance(part, onnx.TensorProto) and (part.external_data or part.data_location):
                    yield next((entry.value for entry in part.external_data if entry.key == "location"), "")
                yield from elsewhere(part)

    try:
        place = next(elsewhere(onnx.load_model_from_string(content)), None)
    except (DecodeError, RecursionError) as error:
        raise ValueError("it is damaged or no ONNX model") from error
    if place is not None:
        raise ValueError(f"it is refused because its numbers are in another file, {place!r}: write it as one file")
    return content


def precision_run(written_in: str, computed_in: str) -> str:
    """The precision of a file that was written in one, and whose float operators are computed in another."""
    if computed_in == "float32":
        return written_in
    return computed_in if written_in == "float32" else f"{written_in}+{computed_in}"


def _openvino_model(path: Path) -> Any:
    beside = path.with_suffix(".bin")
    if not beside.is_file() and path.with_suffix(".BIN").is_file():  # of a model renamed in capitals
        beside = path.with_suffix(".BIN")
    weights = beside.read_bytes()
    try:
        model = openvino_core().read_model(path.read_bytes(), weights)
    except RuntimeError as error:
        raise ValueError("it is damaged or no OpenVINO model") from error
    digest = rt_info(model, WEIGHTS_KEY)
    if digest and digest != hashlib.sha256(weights).hexdigest():
        raise ValueError(f"{beside.name} is damaged or belongs to another model")
    return model


def rt_info(model: Any, key: str) -> str:
    """A text that an OpenVINO model carries, empty if it does not."""
    return str(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else ""
