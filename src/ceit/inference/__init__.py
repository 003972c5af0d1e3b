"""From weights to answers: ``predictor`` classifies images, ``device`` chooses where and how precisely to compute.

``fuse`` folds a network's BatchNorm, ``optimize`` finds the fastest way to run it. A network becomes a graph in
``graphs``, int8 in ``quantize``, and is run in ``runtimes``; ``backend`` puts these together. ``exporter`` writes a
graph to a file, ``exported`` reads it back.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ceit.inference.fastest import optimize
    from ceit.inference.folding import fuse

_LAZY = {"fuse": "ceit.inference.folding", "optimize": "ceit.inference.fastest"}  # imported at first use

__all__ = ["fuse", "optimize"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
