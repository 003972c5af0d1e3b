"""The first learning at the released size: CIFAR-10 enlarged on the device, equal time for every network."""

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.turns import Setting, wait_for
from ceit.bench import arms
from ceit.bench.arms import ModelSpec
from ceit.data.sources.choose import load_images
from ceit.data.splits import ArraySplit

PEAK_LR, WEIGHT_DECAY, SMOOTHING = 1e-3, 0.05, 0.1
WARMUP = 0.1  # of the time
EVALUATION_BATCH = 250
OTHER_SECONDS = 60.0  # a network's compiling and its test
WAIT_EVERY = 10  # steps, so that the host does not run ahead of the clock


def learning(setting: Setting, seconds: float, most_seconds: float) -> dict[str, Any]:
    """Test accuracy of every network after its share of the time. Raises: ValueError without the images."""
    parts = load_images("cifar10").parts
    train, test = (_on(setting.device, parts[name]) for name in ("train", "test"))
    each = min(most_seconds, seconds / len(setting.learn) - OTHER_SECONDS)
    if each <= 0:
        raise ValueError(f"{seconds:.0f} s are too few for {len(setting.learn)} networks")
    rows = [_learnt(name, train, test, setting, each) for name in setting.learn]
    return {"data": "cifar10", "batch_size": setting.batch_size, "seconds_each": round(each, 1), "networks": rows}


def _learnt(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], setting: Setting, seconds: float
) -> dict[str, Any]:
    """One network: AdamW in bf16, compiled, the rate over the share of the time that is gone."""
    device, batch = setting.device, setting.batch_size
    spec = ModelSpec(f"{name},num_classes=10")
    model = arms.build(spec).to(device)
    _, side, _ = arms.image_shape(spec, model)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=WEIGHT_DECAY, fused=True)
    forward = torch.compile(model)
    images, labels = train

    def step(share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (share + 1e-3) / WARMUP) * (1 + math.cos(math.pi * share)) / 2
        drawn = torch.randint(len(labels), (batch,), device=device)
        is_mirrored = torch.rand(batch, 1, 1, 1, device=device) < 0.5
        given = images[drawn]
        given = torch.where(is_mirrored, given.flip(3), given)
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(_enlarged(given, side))
        F.cross_entropy(logits.float(), labels[drawn], label_smoothing=SMOOTHING).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0.0)  # compiles
    wait_for(device)
    began, steps = time.perf_counter(), 0
    while (gone := time.perf_counter() - began) < seconds:
        step(gone / seconds)
        steps += 1
        if steps % WAIT_EVERY == 0:
            wait_for(device)
    wait_for(device)
    took = time.perf_counter() - began
    return {
        "model": name,
        "side": side,
        "steps": steps,
        "epochs": round(steps * batch / len(labels), 2),
        "train_seconds": round(took, 1),
        "images_per_second": round(steps * batch / took, 1),
        "test_top1_percent": round(_top1_percent(model.eval(), test, side, device), 2),
    }


@torch.no_grad()
def _top1_percent(model: nn.Module, test: tuple[Tensor, Tensor], side: int, device: torch.device) -> float:
    right = 0
    for images, labels in zip(*(tensor.split(EVALUATION_BATCH) for tensor in test), strict=True):
        with torch.autocast(device.type, torch.bfloat16):
            right += int((model(_enlarged(images, side)).argmax(1) == labels).sum())
    return 100 * right / len(test[1])


def _enlarged(images: Tensor, side: int) -> Tensor:
    """uint8 ``(B, C, H, W)`` to the network's size, about 0."""
    larger = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return ((larger - 127.5) / 64).contiguous(memory_format=torch.channels_last)


def _on(device: torch.device, split: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(split, ArraySplit):
        raise ValueError("cifar10 must lie in memory")
    return split.images.to(device), split.labels.to(device)
