"""One optimizer step, as the arms of the training measurement do it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], None]


def training_step(model: nn.Module, *, bf16: bool, compiled: bool = False, fused: bool = False) -> Step:
    """Cross-entropy, backward, AdamW. ``bf16``: under autocast; ``compiled``: forward and backward through
    ``torch.compile``; ``fused``: AdamW in one kernel instead of torch's default, which ``plain`` arms have."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05, fused=fused)
    forward = torch.compile(model) if compiled else model

    def step(images_bchw: Tensor, labels_b: Tensor) -> None:
        with torch.autocast(images_bchw.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = forward(images_bchw)
        loss = F.cross_entropy(logits.float(), labels_b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step
