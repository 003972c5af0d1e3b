"""Knowledge distillation: what a trained classifier says of the images that the network is trained on.

Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), for ``soft``; Touvron et al.,
DeiT (ICML 2021), for ``hard``, where the teacher's decision is one more label.
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import load_checkpoint as load_checkpoint_of_timm
from torch import Tensor, nn

from ceit.data.preprocessing import Preprocessing
from ceit.machine import MachineError
from ceit.messages import unknown
from ceit.model import CeiT
from ceit.model.variants import MODELS, config_of
from ceit.train.config import LOCAL_TEACHER, Distillation
from ceit.weights import load_checkpoint, read_description
from ceit.weights.geometry import require_same

_ELSEWHERE = ("hf-hub:", "hf_hub:", LOCAL_TEACHER)  # what timm loads from there
_DAMAGED = (
    *(RuntimeError, OSError, KeyError, UnpicklingError),
    *(SafetensorError, EOFError, AttributeError, TypeError, NotImplementedError),
)
"""What timm's reader raises for a file that it cannot use."""


class Teacher(nn.Module):
    """A frozen classifier that takes the student's images, each brought to its own normalisation and size."""

    def __init__(
        self,
        network: nn.Module,
        own: Preprocessing,
        size: tuple[int, int],
        student: Preprocessing,
        order: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.order = order  # the teacher's number of each of the student's classes; None where they are the same
        self.network = network.requires_grad_(False)
        self.own, self.size = own, size
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (student.mean, student.std, own.mean, own.std)
        )
        self.factor, self.offset = std / own_std, (mean - own_mean) / own_std
        self.eval()

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the student's normalised images ``(B, C, H, W)``."""
        images_bchw = images_bchw * self.factor.to(images_bchw) + self.offset.to(images_bchw)
        if images_bchw.shape[2:] != self.size:
            images_bchw = F.interpolate(images_bchw, self.size, mode="bilinear", antialias=True)
        with torch.no_grad():
            logits_bk = self.network(images_bchw)
        return logits_bk if self.order is None else logits_bk[:, self.order]

    def told(self, top1_percent: float) -> str:
        """What it sees, and how much of that it knows: a size, a normalisation or an order that is not its own shows
        in its accuracy alone."""
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.own.mean, self.own.std))
        sees = f"the teacher sees {self.size[0]} x {self.size[1]} px, of mean {mean} and deviation {std}"
        return f"{sees}; it names {top1_percent:.2f} % of the validation images rightly"


def make_teacher(
    config: Distillation, class_names: Sequence[str], student: Preprocessing, device: torch.device, dtype: torch.dtype
) -> Teacher | None:
    """The teacher that the options name, None where they name none.

    Raises: ValueError for a name that timm does not have, a file that is no checkpoint of it, or other classes.
    """
    if config.teacher is None:
        return None
    require_teacher(config.teacher)
    name = config.teacher.partition(".")[0]
    if config.checkpoint is not None and name in MODELS:
        told = read_description(config.checkpoint)
        if told is not None and told.model not in (None, name):
            require_same(told.config, name, config_of(name))
        network: nn.Module = load_checkpoint(config.checkpoint, model_name=None if told else name)
    else:
        network = _network_of_timm(config, len(class_names))
    known, wanted = network.num_classes, len(class_names)
    if known != wanted:
        raise ValueError(f"teacher {config.teacher} tells {known} classes apart, the data has {wanted}: name another")
    is_ours = isinstance(network, CeiT)
    names: list[str] = list((network.class_names if is_ours else _names_of_timm(network)) or ())
    if isinstance(network, CeiT) and network.preprocessing is not None:
        own, size = Preprocessing.from_dict(network.preprocessing), network.config.image_hw
    else:
        expected = resolve_model_data_config(network)
        own, size = Preprocessing(expected["mean"], expected["std"]), tuple(expected["input_size"][1:])
    if len(own.mean) != len(student.mean):
        raise ValueError(f"teacher {config.teacher} takes {len(own.mean)} channels, the data has {len(student.mean)}")
    if names and set(names) != set(class_names) and is_ours:
        strange = min(set(names) ^ set(class_names))
        raise ValueError(f"teacher {config.teacher} was not trained on the data's classes: only one knows {strange!r}")
    order = [names.index(name) for name in class_names] if names and set(names) == set(class_names) else None
    return Teacher(network.to(device, dtype), own, size, student, order)


def _names_of_timm(network: nn.Module) -> Any:
    """The classes of a network of timm in their order, where its makers have told them."""
    return getattr(network, "pretrained_cfg", {}).get("label_names")


def require_teacher(name: str) -> None:
    """Raises: ValueError for a name that timm does not have; what a hub or a folder has shows when it is loaded."""
    if not name.startswith(_ELSEWHERE) and not timm.is_model(name):
        raise ValueError(unknown("teacher", name, timm.list_models()))


def _network_of_timm(config: Distillation, classes: int) -> nn.Module:
    """With a checkpoint the head has the data's classes; timm's pre-trained weights keep their own."""
    assert config.teacher is not None
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ValueError(f"teacher {config.teacher} cannot be loaded from {config.checkpoint}: it is no file")
    try:
        if config.checkpoint is None:
            return timm.create_model(config.teacher, pretrained=True)
        network = timm.create_model(config.teacher, num_classes=classes)
        load_checkpoint_of_timm(network, config.checkpoint, weights_only=True)  # nothing in a file is executed
        return network
    except _DAMAGED as error:
        source = config.checkpoint or "timm's pre-trained weights"
        reason = f"{error}" or type(error).__name__
        kind = ValueError if config.checkpoint else MachineError  # which could not fetch them just now
        raise kind(f"teacher {config.teacher} cannot be loaded from {source}: {reason}") from error


def divergence(logits_bk: Tensor, teacher_bk: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(z_t / T) || softmax(z / T))`` as a mean over images."""
    ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (logits_bk, teacher_bk.float()))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
