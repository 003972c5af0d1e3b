"""The weights that come with the package, by the name of their model and a tag for the data: ``MODEL.TAG``.

Of each there are three files: ``MODEL.TAG.safetensors``, the weights in float16; ``MODEL.TAG.json``, the geometry, the
class names and how images are prepared; and ``MODEL.TAG.md``, how it was trained and how good it is.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "pretrained"
DEFAULT = "ceit_nano_patch4_32.cifar10"
"""What ``ceit predict`` takes if no model is named."""


def shipped_names(model: str | None = None) -> list[str]:
    """All names of weights, or those of one model."""
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in names if model in (None, name.partition(".")[0])]


def shipped_description(name: str) -> dict[str, Any]:
    """What the JSON file says of the weights. Raises: ValueError if there are none of this name."""
    if name not in shipped_names():
        of_model = ", ".join(shipped_names(name.partition(".")[0]))
        known = f"of this model: {of_model}" if of_model else "'ceit list weights' names those that do"
        raise ValueError(f"no weights named {name} come with the package; {known}")
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def shipped_weights(name: str) -> Path:
    """The file of the tensors. Raises: ValueError if there are none of this name, or if the file is not there."""
    shipped_description(name)
    path = weights_file(name)
    if not path.is_file():
        raise ValueError(f"{path} is missing: install ceit-vision anew")
    return path


def weights_file(name: str) -> Path:
    """Where the tensors must lie."""
    return FOLDER / f"{name}.safetensors"
