"""What timm wants to know of a network beside its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from ceit.model.config import CeiTConfig


def timm_cfg(
    config: CeiTConfig, class_names: Sequence[str] | None = None, preprocessing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What timm calls the ``pretrained_cfg`` of a network: its classes, and how images are prepared for it."""
    cfg: dict[str, Any] = {
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, *config.image_hw),
        "pool_size": None,
        "fixed_input_size": True,
        "interpolation": "bicubic",
        # small images whole, as training takes those that it holds in memory; the release crops 0.875 at 384 px too
        "crop_pct": 1.0 if max(config.image_hw) <= 64 else 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv" if config.stem == "i2t" else "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2103.11816",
    }
    if class_names is not None:
        cfg["label_names"] = list(class_names)
    if preprocessing is not None:
        cfg |= preparation_cfg(preprocessing)
    return cfg


def preparation_cfg(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """How images are prepared, in timm's words, as far as it is known."""
    names = {"mean": "mean", "std": "std", "crop": "crop_pct", "interpolation": "interpolation"}
    values = {names[key]: value for key, value in preprocessing.items() if key in names}
    return values | {key: tuple(values[key]) for key in ("mean", "std") if key in values}
