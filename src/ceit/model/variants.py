"""The named models: geometry as data, registered with timm."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ceit.messages import unknown
from ceit.model.ceit import CeiT
from ceit.model.config import CeiTConfig

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}

# for 32 px: 64 tokens, and a stem that keeps what little resolution there is
_SIZE_32 = {"img_size": 32, "patch_size": 4, "num_classes": 10}
_PICO = {**_SIZE_32, "embed_dim": 64, "depth": 5, "num_heads": 2}
_NANO = {**_SIZE_32, "embed_dim": 160, "depth": 4, "num_heads": 4}
_MICRO = {**_SIZE_32, "embed_dim": 192, "depth": 10, "num_heads": 6}
_STEM_32 = {"stem_channels": 32, "stem_kernel_size": 3, "stem_stride": 1}

# for photos: the same small network, behind a stem that fits the image's size. At 64 and 128 px it has the 64 tokens of
# 32 px again, so an image costs about as much; at 224 px the released grid of 14 x 14, as 64 tokens of 28 px each would
# see no more parts of an image than at 128 px.
_NANO_64 = {**_NANO, "img_size": 64, "patch_size": 8}
_NANO_128 = {**_NANO, "img_size": 128, "patch_size": 16}
_NANO_224 = {**_NANO, "img_size": 224, "patch_size": 16}
_STEM_64 = {"stem_channels": 32, "stem_kernel_size": 5}
_STEM_128 = {"stem_channels": 32}
_DEIT = {"stem": "patch", "feed_forward": "mlp", "lca": False}

MODELS: dict[str, dict[str, Any]] = {
    "ceit_tiny_patch16_224": {**_TINY, "img_size": 224},
    "ceit_small_patch16_224": {**_SMALL, "img_size": 224},
    "ceit_base_patch16_224": {**_BASE, "img_size": 224},
    "ceit_tiny_patch16_384": {**_TINY, "img_size": 384},
    "ceit_small_patch16_384": {**_SMALL, "img_size": 384},
    "ceit_base_patch16_384": {**_BASE, "img_size": 384},
    "ceit_pico_patch4_32": {**_PICO, **_STEM_32},
    "ceit_nano_patch4_32": {**_NANO, **_STEM_32},
    "ceit_micro_patch4_32": {**_MICRO, **_STEM_32},
    "deit_pico_patch4_32": {**_PICO, **_DEIT},
    "deit_nano_patch4_32": {**_NANO, **_DEIT},
    "deit_micro_patch4_32": {**_MICRO, **_DEIT},
    "ceit_nano_patch8_64": {**_NANO_64, **_STEM_64},
    "ceit_nano_patch16_128": {**_NANO_128, **_STEM_128},
    "ceit_nano_patch16_224": {**_NANO_224, **_STEM_128},
    "deit_nano_patch8_64": {**_NANO_64, **_DEIT},
    "deit_nano_patch16_128": {**_NANO_128, **_DEIT},
    "deit_nano_patch16_224": {**_NANO_224, **_DEIT},
}
"""Name to the fields of ``CeiTConfig`` that differ from its defaults."""


def config_of(name: str, **geometry: Any) -> CeiTConfig:
    """The configuration of a named model, with fields replaced. Raises ValueError for an unknown name or field."""
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    known = {field.name for field in fields(CeiTConfig)}
    for key in geometry:
        if key not in known:
            raise ValueError(unknown("model field", key, known))
    return CeiTConfig(**{**MODELS[name], **geometry})


def list_models(pretrained: bool = False) -> list[str]:
    """Registered names; with ``pretrained``, those whose weights come with the package."""
    return [] if pretrained else list(MODELS)


def _build(name: str, **geometry: Any) -> CeiT:
    """What timm calls with the keywords of ``timm.create_model``."""
    return CeiT(config_of(name, **geometry))


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise ValueError(
                f"no weights of {name} come with the package; convert the released file with "
                "'ceit convert RELEASED.pth OUT.safetensors' and pass it as checkpoint"
            )
        feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
        return build_model_with_cfg(partial(_build, name), name, pretrained, feature_cfg=feature_cfg, **kwargs)

    create.__name__ = name
    create.__module__ = __name__
    create.__doc__ = f"{name}: see MODELS for its geometry."
    return create


def _default_cfg(name: str) -> dict[str, Any]:
    config = config_of(name)
    small = max(config.image_hw) <= 64  # whole, as training takes images that it holds in memory
    return {
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, *config.image_hw),
        "pool_size": None,
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if small else 0.875,  # the release crops 0.875 at 384 px too
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv" if config.stem == "i2t" else "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2103.11816",
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name) for name in MODELS})
for _name in MODELS:
    globals()[_name] = register_model(_entrypoint(_name))
