"""The named models: geometry as data, registered with timm."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from math import prod
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ceit.messages import unknown
from ceit.model.ceit import CeiT, resize_pos_embed
from ceit.model.config import CeiTConfig
from ceit.model.timm_config import timm_cfg
from ceit.shipped import shipped_description, shipped_names, shipped_weights, weights_file

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}

# for 32 px: 64 tokens, and a stem that keeps what little resolution there is
_SIZE_32 = {"img_size": 32, "patch_size": 4, "num_classes": 10}
_PICO = {**_SIZE_32, "embed_dim": 64, "depth": 5, "num_heads": 2}
_MINI = {**_SIZE_32, "embed_dim": 96, "depth": 4, "num_heads": 3}
_NANO = {**_SIZE_32, "embed_dim": 160, "depth": 4, "num_heads": 4}
_MICRO = {**_SIZE_32, "embed_dim": 192, "depth": 10, "num_heads": 6}
_STEM_32 = {"stem_channels": 32, "stem_kernel_size": 3, "stem_stride": 1}

# for photos: the same small network, behind a stem that fits the image's size. At 64 and 128 px it has the 64 tokens of
# 32 px again, so an image costs about as much; at 224 px the released grid of 14 x 14, as 64 tokens of 28 px each would
# see no more parts of an image than at 128 px.
_MINI_64 = {**_MINI, "img_size": 64, "patch_size": 8}
_MINI_128 = {**_MINI, "img_size": 128, "patch_size": 16}
_MINI_224 = {**_MINI, "img_size": 224, "patch_size": 16}
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
    "ceit_mini_patch4_32": {**_MINI, **_STEM_32},
    "ceit_nano_patch4_32": {**_NANO, **_STEM_32},
    "ceit_micro_patch4_32": {**_MICRO, **_STEM_32},
    "deit_pico_patch4_32": {**_PICO, **_DEIT},
    "deit_mini_patch4_32": {**_MINI, **_DEIT},
    "deit_nano_patch4_32": {**_NANO, **_DEIT},
    "deit_micro_patch4_32": {**_MICRO, **_DEIT},
    "ceit_mini_patch8_64": {**_MINI_64, **_STEM_64},
    "ceit_mini_patch16_128": {**_MINI_128, **_STEM_128},
    "ceit_mini_patch16_224": {**_MINI_224, **_STEM_128},
    "deit_mini_patch8_64": {**_MINI_64, **_DEIT},
    "deit_mini_patch16_128": {**_MINI_128, **_DEIT},
    "deit_mini_patch16_224": {**_MINI_224, **_DEIT},
}
"""Name to the fields of ``CeiTConfig`` that differ from its defaults."""


def config_of(name: str, **geometry: Any) -> CeiTConfig:
    """The configuration of a named model, or of weights that ship, ``MODEL.TAG``, with fields replaced.

    Raises: ValueError for an unknown name or field.
    """
    model, _, tag = name.partition(".")
    if model not in MODELS:
        raise ValueError(unknown("model", model, MODELS))
    known = {field.name for field in fields(CeiTConfig)}
    for key in geometry:
        if key not in known:
            raise ValueError(unknown("model field", key, known))
    return CeiTConfig(**{**(shipped_description(name)["config"] if tag else MODELS[model]), **geometry})


def list_models(pretrained: bool = False) -> list[str]:
    """Registered names; with ``pretrained``, those of weights that come with the package, ``MODEL.TAG``."""
    return shipped_names() if pretrained else list(MODELS)


def nearest_model(config: CeiTConfig) -> str:
    """The registered model that shares most fields; with all fields given, any of them builds the network."""
    wanted = asdict(config)

    def shared(name: str) -> int:
        return sum(value == wanted[key] for key, value in asdict(config_of(name)).items())

    return max(MODELS, key=shared)


def _shipped_cfg(name: str) -> dict[str, Any]:
    described = shipped_description(name)
    cfg = timm_cfg(CeiTConfig(**described["config"]), described["class_names"], described["preprocessing"])
    return cfg | {"file": str(weights_file(name))}


def _build(name: str, **geometry: Any) -> CeiT:
    """What timm calls with the keywords of ``timm.create_model``, some of which its own training script always gives.

    Raises: ValueError as ``config_of``, and for a ``drop_rate``.
    """
    if rate := geometry.pop("drop_rate", 0):
        raise ValueError(f"drop_rate {rate} must be 0: the network has no dropout; set drop_path_rate")
    placement = {key: geometry.pop(key) for key in ("device", "dtype") if key in geometry}
    return CeiT(config_of(name, **geometry)).to(**placement)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        described: Mapping[str, Any] = {}
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        if pretrained and not pretrained_cfg and not any(overlay.get(source) for source in _SOURCES):
            pretrained_cfg = _first_tag(name)
        if isinstance(pretrained_cfg, str):
            shipped = f"{name}.{pretrained_cfg}"
            described = shipped_description(shipped)
            if pretrained:
                _require_geometry_of(shipped, described["config"], kwargs)
            kwargs = described["config"] | kwargs
            pretrained_cfg = _shipped_cfg(shipped) | {"tag": pretrained_cfg}
            if pretrained:
                shipped_weights(shipped)
        feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
        network = build_model_with_cfg(
            partial(_build, name),
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_filter_fn=_on_grid,
            feature_cfg=feature_cfg,
            **kwargs,
        )
        if pretrained and isinstance(network, CeiT):
            _say_what_it_knows(network, network.pretrained_cfg, described)
        return network

    create.__name__ = name
    create.__module__ = __name__
    create.__doc__ = f"{name}: see MODELS for its geometry."
    return create


def _require_geometry_of(shipped: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises: ValueError naming the first field that would make another network of the weights."""
    for key, value in asked.items():
        if known.get(key, value) != value and key not in _ADAPTED:
            raise ValueError(f"the weights {shipped} are of {key} {known[key]}, not {value!r}: leave {key} out")


_ADAPTED = ("num_classes", "in_chans", "img_size", "drop_path_rate", "skip_dead")  # to which weights are, or no matter
_SOURCES = ("file", "url", "hf_hub_id", "state_dict")  # of weights, in what timm lays over the configuration of a model


def _first_tag(name: str) -> str:
    for shipped in shipped_names(name):
        return shipped.partition(".")[2]
    fix = "'ceit list weights' names those that do"
    if name.startswith(("ceit_tiny", "ceit_small", "ceit_base")):
        fix = "convert the released file with 'ceit convert RELEASED.pth OUT.safetensors' and pass it as checkpoint"
    raise ValueError(f"no weights of {name} come with the package; {fix}")


def _on_grid(state: dict[str, Tensor], network: CeiT) -> dict[str, Tensor]:
    """Weights for the network's image size, of those for the size that timm knows them by; others as they are."""
    patch, (_, height, width) = network.config.patch_size, network.pretrained_cfg["input_size"]
    old_grid, positions = (height // patch, width // patch), state.get("pos_embed")
    if positions is None or positions.shape[1] != 1 + prod(old_grid):
        return state
    return state | {"pos_embed": resize_pos_embed(positions, old_grid, network.config.grid)}


def _say_what_it_knows(network: CeiT, cfg: dict[str, Any], described: Mapping[str, Any]) -> None:
    """Class names and preprocessing, as far as they are still those of the network; of weights that ship, which are
    ``described``, temperature and familiarity, too."""
    if len(cfg.get("label_names") or ()) == network.num_classes:
        network.class_names = list(cfg["label_names"])
    if len(cfg["mean"]) == network.config.in_chans:
        mean_and_std = {key: list(cfg[key]) for key in ("mean", "std")}
        network.preprocessing = mean_and_std | {"crop": cfg["crop_pct"], "interpolation": cfg["interpolation"]}
    network.pretrained_cfg = cfg  # which says so already
    if described and network.class_names and network.preprocessing:
        network.temperature = described.get("temperature")
        if network.config.grid == CeiTConfig(**described["config"]).grid:
            network.familiarity = described.get("familiarity")


# timm takes the first with weights, if no tag is given, unless a star names another: here the one without weights,
# last. A model's name alone has this geometry, whatever weights ship.
_tagged = {name: PretrainedCfg(**_shipped_cfg(name)) for name in shipped_names()}
_plain = {f"{name}.*": PretrainedCfg(**timm_cfg(config_of(name))) for name in MODELS}
default_cfgs = generate_default_cfgs({**_tagged, **_plain})
for _name in MODELS:
    globals()[_name] = register_model(_entrypoint(_name))
