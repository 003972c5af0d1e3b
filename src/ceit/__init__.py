"""CeiT: train image classifiers from scratch. Importing it registers the models with timm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ceit.model import CeiT, CeiTConfig, list_models
from ceit.version import __version__ as __version__

if TYPE_CHECKING:
    from ceit.inference.predictor import Prediction, Predictor
    from ceit.weights import convert_released_state_dict, create_model, load_checkpoint, save_checkpoint

_LAZY = {  # public name to the module that holds it, imported at first use
    "Prediction": "ceit.inference.predictor",
    "Predictor": "ceit.inference.predictor",
    "convert_released_state_dict": "ceit.weights",
    "create_model": "ceit.weights",
    "load_checkpoint": "ceit.weights",
    "save_checkpoint": "ceit.weights",
}

__all__ = [
    "CeiT",
    "CeiTConfig",
    "Prediction",
    "Predictor",
    "convert_released_state_dict",
    "create_model",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
