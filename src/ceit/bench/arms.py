"""What is measured: a model on a backend in a precision. Names to modules, and the multiply-accumulates they execute.

Letters: C channels, H height, W width.
"""

import copy
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ceit.messages import unknown
from ceit.model import CeiT
from ceit.model.complexity import complexity
from ceit.paths import expanded
from ceit.weights import load_checkpoint

OPPONENTS = ("deit_tiny_patch16_224", "resnet50", "mobilenetv3_large_100", "efficientnet_b0")
"""Of timm, with random weights: what is measured does not depend on them."""

Shape = tuple[int, int, int]
Size = Sequence[int]


@dataclass(frozen=True)
class ModelSpec:
    """A model to measure.

    ``text`` is a name that timm knows (after importing ceit), with fields behind commas
    (``ceit_tiny_patch16_224,skip_dead=true``), a factory ``FILE.py:function``, or a checkpoint. ``img_size`` is a side
    or ``(height, width)`` in pixels, None for the model's own.
    """

    text: str
    kind: str = "name"  # or: factory, checkpoint
    img_size: int | tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """For tables: a factory is known by its file and function, a checkpoint by its last two parts."""
        if self.kind == "factory":
            file, _, function = self.text.rpartition(":")
            return f"{Path(file).stem}:{function}"
        return "/".join(Path(self.text).parts[-2:]) if self.kind == "checkpoint" else self.text


@dataclass(frozen=True)
class Arm:
    """A model on a backend in a precision: one row of the result."""

    model: ModelSpec
    backend: str
    precision: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.model.label} {self.backend} {self.precision}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict`` reads it."""
        return {"subject": asdict(self.model), "backend": self.backend, "precision": self.precision}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Arm":
        """The arm of ``as_dict``."""
        model = ModelSpec(**document["subject"])
        if isinstance(model.img_size, list):  # JSON has no tuples
            model = replace(model, img_size=tuple(model.img_size))
        return cls(model, document["backend"], document["precision"])


def require_known(spec: ModelSpec) -> None:
    """Refuse a model that cannot be built, before anything is measured.

    Raises: ValueError for a name that timm does not know or a file that is not there.
    """
    if spec.kind == "name":
        name, _ = _name_and_fields(spec.text)
        if not timm.is_model(name):
            raise ValueError(unknown("model", name, timm.list_models()))
    elif spec.kind == "factory":
        file, _, function = spec.text.rpartition(":")
        if not file or not function:
            raise ValueError(f"{spec.text!r} must be FILE.py:factory, a file and a function in it")
        if not expanded(file).is_file():
            raise ValueError(f"there is no file {file!r} to take {function!r} from")
    elif not expanded(spec.text).exists():
        raise ValueError(f"there is no checkpoint {spec.text!r}")


def build(spec: ModelSpec) -> nn.Module:
    """The module, in training mode and with weights of seed 0 unless they come from a checkpoint.

    Raises: ValueError if it is no module, or cannot take the image size.
    """
    torch.manual_seed(0)
    if spec.kind == "checkpoint":
        return load_checkpoint(spec.text, img_size=spec.img_size)
    if spec.kind == "factory":
        return _from_factory(spec)
    name, fields = _name_and_fields(spec.text)
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if spec.img_size is not None and pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        fields["img_size"] = spec.img_size
    return timm.create_model(name, **fields)


def image_shape(spec: ModelSpec, model: nn.Module) -> Shape:
    """``(C, H, W)`` of what the model takes: its own or the size asked for; 3x224x224 if nothing tells."""
    if isinstance(model, CeiT):
        return (model.config.in_chans, *model.config.image_hw)
    own = getattr(model, "image_shape", None)
    if own is None:
        own = getattr(getattr(model, "pretrained_cfg", None), "get", {}.get)("input_size", (3, 224, 224))
    channels, height, width = own
    if spec.img_size is not None:
        height, width = (spec.img_size,) * 2 if isinstance(spec.img_size, int) else spec.img_size
    return channels, height, width


def inference_macs(model: nn.Module, shape: Shape) -> int:
    """MACs of a forward pass in eval mode for one image: closed-form (live) for a CeiT, else counted, nothing run."""
    if isinstance(model, CeiT):
        return complexity(model.config).live_macs
    return _counted(copy.deepcopy(model).eval(), shape, backward=False)


def training_macs(model: nn.Module, shape: Shape) -> int:
    """MACs of forward and backward for one image, counted."""
    return _counted(copy.deepcopy(model).train(), shape, backward=True)


def _counted(model: nn.Module, shape: Shape, *, backward: bool) -> int:
    """On the meta device, with attention as its two products: fused kernels are not counted on every device."""
    images, model = 2, model.to("meta")  # batch norm refuses to train on one
    counts = {torch.ops.aten.convolution_backward: _flops_of_convolution_backward}
    with (
        FlopCounterMode(display=False, custom_mapping=counts) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.set_grad_enabled(backward),
    ):
        logits = model(torch.empty(images, *shape, device="meta"))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() // (2 * images)


def _flops_of_convolution_backward(
    output: Size, _images: Size, weight: Size, *rest: Any, out_shape: Any, **_: Any
) -> int:
    """As the forward pass for each gradient that is asked for; torch's own count takes no notice of groups."""
    of_images, of_weight, _of_bias = rest[-1]
    return 2 * output[0] * prod(output[2:]) * prod(weight) * (of_images + of_weight)


def _name_and_fields(text: str) -> tuple[str, dict[str, Any]]:
    name, *pairs = text.split(",")
    fields: dict[str, Any] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} in {text!r} must be FIELD=VALUE, as in {name},skip_dead=true")
        try:
            fields[field] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{pair!r} in {text!r}: {value!r} is no value as YAML writes it") from error
    return name, fields


def _from_factory(spec: ModelSpec) -> nn.Module:
    text, _, function = spec.text.rpartition(":")
    file = expanded(text)
    found = importlib.util.spec_from_file_location(file.stem, file)
    if found is None or found.loader is None:
        raise ValueError(f"{text!r} is not a Python file to take {function!r} from")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    factory = getattr(module, function, None)
    if not callable(factory):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(unknown(f"factory in {file}", function, functions))
    takes_size = "img_size" in inspect.signature(factory).parameters
    if spec.img_size is not None and not takes_size:
        raise ValueError(f"{spec.text} cannot be measured at another size: give it a parameter img_size")
    model = factory(img_size=spec.img_size) if spec.img_size is not None else factory()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec.text} must return a torch.nn.Module, not {type(model).__name__}")
    return model
