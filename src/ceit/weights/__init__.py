"""Networks by name, to disk, and from the files of this package, of the release and of timm."""

from ceit.weights.checkpoint import create_model, load_checkpoint, save_checkpoint
from ceit.weights.description import Description
from ceit.weights.layouts import convert_released_state_dict
from ceit.weights.stored import read_description, training_of

__all__ = [
    "Description",
    "convert_released_state_dict",
    "create_model",
    "load_checkpoint",
    "read_description",
    "save_checkpoint",
    "training_of",
]
