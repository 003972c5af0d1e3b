"""Networks by name, to disk and from disk."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import clean_state_dict
from torch import Tensor
from torch.nn import Module

from ceit.atomic import replace_files
from ceit.model import CeiT, CeiTConfig, config_of
from ceit.model.timm_config import timm_cfg
from ceit.model.variants import nearest_model
from ceit.paths import expanded
from ceit.weights.description import Description
from ceit.weights.geometry import (
    NOT_IN_SHAPES,
    config_from_shapes,
    is_deit,
    name_of,
    require_fields,
    require_fit,
    require_same,
)
from ceit.weights.stored import METADATA_KEY, StoredNetwork, read_stored, side_file

logger = logging.getLogger("ceit")

ImageSize = int | tuple[int, int]

_OF_TRAINING = ("drop_path_rate", "skip_dead")

RELEASED_PREPROCESSING = {
    "mean": list(IMAGENET_DEFAULT_MEAN),
    "std": list(IMAGENET_DEFAULT_STD),
    "crop": 0.875,  # at 384 px too: the release resizes to 256/224 of any size
    "interpolation": "bicubic",
}


class SupportsAsDict(Protocol):
    """A preprocessing of ``ceit.data``, say."""

    def as_dict(self) -> dict[str, Any]: ...


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    img_size: ImageSize | None = None,
    in_chans: int | None = None,
    **geometry: Any,
) -> CeiT:
    """A registered network in training mode: as ``timm.create_model(name, ...)``, which has more keywords.

    It is freshly initialised; with ``pretrained`` it has weights that come with the package. ``MODEL.TAG`` names them,
    and the geometry, classes and channels that they were trained with; ``MODEL`` alone stands for the first of its
    tags. Another number of classes gives a fresh head, other channels an adapted first convolution, another image size
    an interpolated position embedding.

    With ``checkpoint`` it has that file's weights and is in eval mode, as from ``load_checkpoint``. Classes and
    channels are then the file's unless given; the image size is the name's unless given, and the position embedding
    is interpolated if the file's is another. ``geometry`` are fields of ``CeiTConfig``.

    Raises: ValueError for an unknown name or field, with the nearest, for a value out of range, for ``pretrained``
    where no weights come with the package, and for a checkpoint of another geometry, naming both.
    """
    asked = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    asked = {key: value for key, value in asked.items() if value is not None}
    config = config_of(name, **asked, **geometry)
    if checkpoint is None:
        network = timm.create_model(name, pretrained=pretrained, **asked, **geometry)
        assert isinstance(network, CeiT)
        return network
    if pretrained:
        raise ValueError("pretrained and checkpoint exclude each other: the weights come from one of the two")
    return load_checkpoint(
        checkpoint, num_classes=num_classes, in_chans=in_chans, img_size=config.image_hw, model_name=name, **geometry
    )


def load_checkpoint(
    path: str | Path,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: ImageSize | None = None,
    model_name: str | None = None,
    entry: str | None = None,
    **geometry: Any,
) -> CeiT:
    """The network in a file or run directory: float32, on the CPU, in eval mode, with class names and preprocessing.

    Reads our safetensors with their JSON side file, the release's ``.pth``, and files with our or timm's keys (timm's
    DeiT among them), and executes nothing in them. Nothing is changed unless asked, and what is changed is said
    through the logger ``ceit``: ``num_classes`` other than the file's gives a fresh head, ``in_chans`` an adapted
    first convolution, ``img_size`` an interpolated position embedding.

    Files without a side file do not tell everything: ``model_name`` or fields of ``CeiTConfig`` do. A plain state dict
    with as many patches as ``img_size`` gives is taken to be of that size. A ``.pth`` of a
    training script may hold several state dicts; ``entry`` picks one, such as ``model_ema``.

    Raises: ValueError with one sentence for a damaged or foreign file, one that would execute something, one of a
    newer format, or one of another geometry than ``model_name``; OSError for one that cannot be read.
    """
    require_fields(geometry)
    stored = read_stored(Path(path), entry)
    return network_of(
        stored, num_classes=num_classes, in_chans=in_chans, img_size=img_size, model_name=model_name, **geometry
    )


def save_checkpoint(
    path: str | Path,
    model: Module,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: SupportsAsDict | dict[str, Any] | None = None,
    model_name: str | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``, each whole or not at all.

    The JSON file is for readers of any kind; the safetensors file holds a copy, so that it stands alone and the two
    cannot be mixed up. Class names and preprocessing are by default those that the network carries; its
    temperature and familiarity are kept with them, but not with other class names, as they were measured on those.
    ``model_name`` is the registered one of its geometry. ``training`` is free: anything that JSON can hold.

    ``model`` may stand in a wrapper that has it as ``module``, as torch's ``DistributedDataParallel`` does.

    Raises: ValueError if ``path`` does not end in ``.safetensors``, the class names do not match the head, the
    preprocessing or ``training`` cannot be written, or the network no longer matches its configuration; OSError if the
    disk is full, with the files that stood there before untouched.
    """
    path, model = expanded(path), _network_in(model)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    whole = torch.contiguous_format
    state = {  # copies: layers may share their weights, a file's do not
        key: value.detach().cpu().clone(memory_format=whole)
        for key, value in clean_state_dict(model.state_dict()).items()
    }
    require_fit(state, model.config)
    names = model.class_names if class_names is None else list(class_names)
    measured = model.temperature, model.familiarity
    if model.class_names not in (None, names) and any(measured):
        logger.warning("%s: temperature and familiarity were measured on other classes, and are left out", path)
        measured = None, None
    description = Description(
        model.config,
        model_name or name_of(model.config),
        names,
        _in_lists(model.preprocessing if preprocessing is None else preprocessing),
        training,
        *measured,
    )
    description.require_channels()
    try:
        text = description.to_json(fingerprint(state, description))
    except TypeError as error:
        raise ValueError(f"training must hold what JSON can: {error}") from error
    replace_files({path: save(state, {METADATA_KEY: text}), side_file(path): text.encode()})


def _network_in(model: Module) -> CeiT:
    """The network itself, in what compiles it, or averages its weights, or its gradients in several processes."""
    inner = model
    while not isinstance(inner, CeiT):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if inner is None:
            raise ValueError(f"a {type(model).__name__} is no CeiT, and no wrapper of one")
    return inner


def _in_lists(preprocessing: SupportsAsDict | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """For JSON: mean and std may be tuples, or of numpy or torch."""
    if preprocessing is None:
        return None
    values = dict(preprocessing) if isinstance(preprocessing, Mapping) else preprocessing.as_dict()
    return values | {key: [float(value) for value in values[key]] for key in ("mean", "std") if key in values}


def save_confidence(path: str | Path, temperature: float | None, familiarity: dict[str, Any] | None) -> None:
    """Write another temperature and familiarity into a checkpoint of ours; its tensors keep every bit.

    Raises: ValueError for a file without a description, or a temperature that is no positive number.
    """
    stored = read_stored(expanded(path))
    if stored.description is None:
        raise ValueError(f"{path} says nothing of its network: load it, and save it with save_checkpoint")
    description = replace(stored.description, temperature=temperature, familiarity=familiarity)
    state = {key: stored.state[key] for key in require_fit(stored.state, description.config).state_dict()}
    text = description.to_json(fingerprint(state, description))
    replace_files({stored.path: save(state, {METADATA_KEY: text}), side_file(stored.path): text.encode()})


def network_of(
    stored: StoredNetwork,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: ImageSize | None = None,
    model_name: str | None = None,
    **geometry: Any,
) -> CeiT:
    """What ``load_checkpoint`` makes of a file that has been read."""
    try:
        expected = None if model_name is None else config_of(model_name, **geometry)
        if stored.description is None:
            config = config_from_shapes(
                stored.state,
                name=model_name,
                expected=expected,
                img_size=img_size,
                square=stored.layout == "released",
                **geometry,
            )
            if stored.layout == "plain" and expected is None and not is_deit(config):
                taken = [f"{key} {getattr(config, key)}" for key in NOT_IN_SHAPES if key not in geometry]
                logger.warning("%s: the tensors do not tell everything; assumed: %s", stored.path, ", ".join(taken))
        else:
            if model_name is not None and expected is not None:
                require_same(stored.description.config, model_name, expected)
            config = _described(stored.description.config, geometry)
        network = require_fit(stored.state, config)
        state = {key: _own(stored.state[key], like.dtype) for key, like in network.state_dict().items()}
        if in_chans is not None and in_chans != config.in_chans:
            adapted = replace(config, in_chans=in_chans)
            first = "patch_embed.conv.weight" if config.stem == "i2t" else "patch_embed.proj.weight"
            state[first] = adapt_input_channels(state[first], in_chans)
            network = require_fit(state, adapted)
        network.load_state_dict(state, assign=True)
        if stored.description is not None:
            network.class_names = list(stored.description.class_names or ()) or None
            network.preprocessing = stored.description.preprocessing
            network.temperature = stored.description.temperature
            network.familiarity = stored.description.familiarity
        elif stored.layout == "released":
            network.preprocessing = dict(RELEASED_PREPROCESSING)
        _adapt(network, config, num_classes, img_size, stored.path)
        cfg = timm_cfg(network.config, network.class_names, network.preprocessing)
        network.pretrained_cfg = cfg | {"architecture": nearest_model(network.config)}
    except ValueError as error:
        raise ValueError(f"{stored.path}: {error}") from error
    return network.eval()


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: tensors of a file may share their memory, and training would move them all at once."""
    return tensor.to(dtype, copy=True).contiguous()


def _described(config: CeiTConfig, geometry: Mapping[str, Any]) -> CeiTConfig:
    """The network that a file describes, with what makes a difference to its training alone."""
    for key, value in geometry.items():
        if key not in _OF_TRAINING and getattr(config, key) != value:
            raise ValueError(f"the file says {key} {getattr(config, key)}, not {value}: leave {key} out")
    return replace(config, **geometry)


def adapt_input_channels(weight: Tensor, in_chans: int) -> Tensor:
    """A first convolution's weight ``(D, C, k, k)`` for other channels: summed for one, else repeated and rescaled.

    For one channel, or a multiple of ``C``, an image that is the same in all of them gives the same features as
    before. Source: timm's ``adapt_input_conv``, for any ``C``.
    """
    channels = weight.shape[1]
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, ceil(in_chans / channels), 1, 1)[:, :in_chans]
    return repeated * (channels / in_chans)


def fingerprint(state: Mapping[str, Tensor], description: Description) -> str:
    """A digest of a network, SHA-256: of its tensors, on whatever device, and of what is said about them."""
    digest = hashlib.sha256(description.to_json("").encode())
    for key, value in state.items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapt(network: CeiT, config: CeiTConfig, num_classes: int | None, img_size: ImageSize | None, path: Path) -> None:
    """Changes what was asked for and says so; ``config`` is the file's."""
    if network.config.in_chans != config.in_chans:
        channels = f"{config.in_chans} to {network.config.in_chans}"
        logger.warning(
            "%s: first convolution adapted from %s channels; its preprocessing no longer fits", path, channels
        )
        network.preprocessing = network.temperature = network.familiarity = None
    if img_size is not None:
        network.set_input_size(img_size)
        if network.config.grid != config.grid:
            grids = "from {} x {} to {} x {} patches".format(*config.grid, *network.config.grid)
            logger.warning("%s: position embedding interpolated %s", path, grids)
    if num_classes is not None and num_classes != config.num_classes:
        network.reset_classifier(num_classes)
        heads = f"{num_classes} classes replaces the one of {config.num_classes}"
        logger.warning("%s: a fresh head of %s; train it before use", path, heads)
