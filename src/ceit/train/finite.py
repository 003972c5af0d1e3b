"""Where a loss that is not finite comes from."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def source_in_forward(model: nn.Module, images_bchw: Tensor, autocast: Any) -> str | None:
    """The first place in a forward pass that is not finite: a parameter, the images, or a module's output; or None.

    Runs the network once more, in the mode that it is in; its BatchNorm statistics move.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name}"
    if not images_bchw.isfinite().all():
        return "the images"
    found: list[str] = []

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    handles = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), autocast:
            model(images_bchw)
    finally:
        for handle in handles:
            handle.remove()
    return f"module {found[0]}" if found else None
