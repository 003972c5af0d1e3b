"""A checkpoint as it lies on the disk, in any of the layouts that are understood, before a network is made of it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ceit.json_file import parse_json
from ceit.limits import JSON, read_file
from ceit.model import MODELS
from ceit.paths import expanded
from ceit.shipped import shipped_weights
from ceit.weights.description import FORMAT, Description
from ceit.weights.layouts import convert_released_state_dict, is_released
from ceit.weights.reading import read_metadata, read_tensors

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")  # of files, and of no tag
METADATA_KEY = "ceit"
"""Where the safetensors file itself holds the description."""


@dataclass(frozen=True)
class StoredNetwork:
    """Tensors under our keys, and the description where the file is ours.

    A ``plain`` file holds our keys or timm's, and no geometry.
    """

    path: Path
    layout: Literal["ceit", "released", "plain"]
    state: dict[str, Tensor]
    description: Description | None


def read_stored(path: Path, entry: str | None = None) -> StoredNetwork:
    """Read a checkpoint file, a run directory, or weights that ship; ``entry`` as in ``read_tensors``.

    Raises: ValueError with one sentence for a damaged or foreign file; OSError for one that cannot be read.
    """
    path = _file_of(expanded(path))
    state, metadata = read_tensors(path, entry)
    if "state" in metadata and METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} is what a run continues from (--resume {path}): for its weights, name the run directory"
        )
    try:
        released = is_released(state)
        state = convert_released_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    description = _description(path, metadata.get(METADATA_KEY))
    return StoredNetwork(path, "ceit" if description else "released" if released else "plain", state, description)


def read_description(path: str | Path) -> Description | None:
    """What a checkpoint file or run directory of ours says about itself, None for any other; no tensor is read.

    Raises: ValueError and OSError as ``read_stored``.
    """
    path = _file_of(expanded(path))
    return _description(path, read_metadata(path).get(METADATA_KEY))


def training_of(path: str | Path) -> dict[str, Any]:
    """What such a file says of its training; nothing, where it says nothing. Raises: as ``read_stored``."""
    description = read_description(path)
    return (description and description.training) or {}


def side_file(path: Path) -> Path:
    """The JSON file beside the tensors."""
    return path.with_suffix(".json")


def is_shipped_name(path: str | Path) -> bool:
    """Whether a word that is no file names a model, or weights that come with the package."""
    path = expanded(path)
    is_a_word = len(path.parts) == 1 and path.suffix.lower() not in _ENDINGS
    return is_a_word and path.name.partition(".")[0] in MODELS and not path.exists()


def is_here(path: str | Path) -> bool:
    """Whether weights ship under this name, or something lies at this path."""
    return is_shipped_name(path) or expanded(path).exists()


A_CHECKPOINT = "a run directory, a file, or weights that ship (ceit list weights)"
"""What a checkpoint may be."""
_CONFIG_OF_TIMM = "config.json"
_EXPORTED = (".onnx", ".pt2", ".xml")  # as ceit.inference.exported has them


def _file_of(path: Path) -> Path:
    if is_shipped_name(path):
        return shipped_weights(path.name)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} is not here: name {A_CHECKPOINT}")
    if not path.is_dir():
        if path.suffix.lower() in _EXPORTED:
            raise ValueError(
                f"{path} is an exported file, which does not show its layers: name the checkpoint that it was made of"
            )
        if path.suffix.lower() == ".json":
            raise ValueError(f"{path} describes weights and holds none: name the file of the weights beside it")
        return path
    if not (path / "model.safetensors").exists():
        raise ValueError(
            f"{path} holds no model.safetensors: name a run directory whose training has saved a model, or a file"
        )
    return path / "model.safetensors"


def _description(path: Path, embedded: str | None) -> Description | None:
    """The side file's, if it belongs to these tensors, else the copy inside them.

    The two files are replaced one after the other. Between the two moments, or after a crash there, the side file
    belongs to other tensors: its fingerprint tells. One that belongs may have been edited, to rename classes say, and
    is believed.
    """
    inside = _parse(path, embedded) if embedded is not None else None
    side = side_file(path) if path.suffix.lower() == ".safetensors" else None
    beside = _parse(side, read_file(side, JSON)) if side is not None and side.exists() else None
    stale = inside and beside and inside.get("fingerprint") != beside.get("fingerprint")
    body, source = (inside, path) if stale or not beside else (beside, side_file(path))
    if body is None:
        source = path.with_name(_CONFIG_OF_TIMM)
        body = _parse_timm(source) if path.suffix.lower() == ".safetensors" and source.is_file() else None
    try:
        return None if body is None else Description.from_json(body)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _parse_timm(path: Path) -> dict[str, Any] | None:
    """What timm's ``save_for_hf`` has written beside a network of ours, in the words of a description."""
    with suppress(ValueError):  # it is somebody else's
        body = parse_json("it", read_file(path, JSON))
        if isinstance(body, dict) and str(body.get("architecture")) in MODELS and "model_args" in body:
            cfg = body.get("pretrained_cfg")
            cfg = cfg if isinstance(cfg, dict) else {}
            known = all(key in cfg for key in ("mean", "std", "crop_pct", "interpolation"))
            preprocessing = {key: cfg[key] for key in ("mean", "std", "interpolation")} if known else None
            return {
                "format_version": 1,
                "model": body["architecture"],
                "config": body["model_args"],
                "class_names": body.get("label_names") or cfg.get("label_names"),
                "preprocessing": preprocessing and preprocessing | {"crop": cfg["crop_pct"]},
                "training": None,
            }
    return None


def _parse(path: Path, text: str | bytes) -> dict[str, Any] | None:
    """The JSON object if it is a description of ours: a stranger's JSON may lie beside a stranger's tensors."""
    try:
        body = parse_json("its description", text)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy it again, or remove it if the tensors beside it are ceit's"
        ) from error
    return body if isinstance(body, dict) and body.get("format") == FORMAT else None
