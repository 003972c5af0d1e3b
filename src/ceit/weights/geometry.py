"""A network's geometry from the shapes of its tensors, and whether two geometries are the same.

Shapes: ``D`` embed dim, ``E`` expanded dim.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from math import inf, isqrt, nextafter
from typing import Any

import torch
from torch import Tensor

from ceit.messages import listed, unknown
from ceit.model import MODELS, CeiT, CeiTConfig, config_of

# What loading may change or training may choose, the architecture being the same.
_OUTSIDE_ARCHITECTURE = {"img_size", "num_classes", "in_chans", "drop_path_rate", "skip_dead"}
_DEIT_DIMS = (192, 384, 768)
# What no shape tells.
NOT_IN_SHAPES = (
    "num_heads",
    "stem_stride",
    "stem_pool",
    "layer_norm_eps",
    "leff_last_activation",
    "leff_class_token",
    "global_pool",
)


def config_from_shapes(
    state: Mapping[str, Tensor],
    *,
    name: str | None = None,
    expected: CeiTConfig | None = None,
    img_size: int | tuple[int, int] | None = None,
    square: bool = False,
    **geometry: Any,
) -> CeiTConfig:
    """The configuration that a state dict of our keys was made with.

    Shapes do not tell the number of heads nor the stem's stride and pooling. These are taken from ``geometry``, from
    the ``expected`` network called ``name``, from the registered model of the same stem and width, or from DeiT,
    which has 64 channels a head. Without LCA they do not tell what is classified, and ``geometry`` must. The grid is
    that of ``img_size`` where it has as many patches, else square; where the token count forbids that, ``img_size``
    must say it. ``square`` takes a square one wherever the count allows it, as that of released weights.

    Raises: ValueError if something cannot be told, with what to pass, or if the shapes contradict ``geometry`` or
    ``expected``.
    """
    in_shapes = _fields_in_shapes(state)
    side = _shape(state, "patch_embed.proj.weight", 4)[-1]
    if expected is not None:
        of_weights = in_shapes | {"patch_size": side * _stem_stride(expected)}
        _refuse_difference("a network", of_weights, name or "the model", _architecture(expected))
    for key, value in geometry.items():
        if in_shapes.get(key, value) != value:
            raise ValueError(f"the weights have {key} {in_shapes[key]}, not {value}")
    if in_shapes["stem"] == "i2t" and not in_shapes["lca"] and "global_pool" not in geometry:
        raise ValueError(
            "weights without LCA do not tell what is classified: take the .safetensors file that the training wrote, "
            "or pass global_pool (ceit convert --geometry global_pool=avg), avg as in ceit's recipes, or token"
        )
    similar = expected or _registered(in_shapes, side)
    values = {**({key: getattr(similar, key) for key in NOT_IN_SHAPES} if similar else {}), **in_shapes, **geometry}
    if "num_heads" not in values:
        raise ValueError(
            f"the number of heads cannot be told from weights of width {in_shapes['embed_dim']}; "
            "name their model (model_name, ceit convert --model) or pass num_heads (ceit convert --num-heads)"
        )
    stem = {key: values[key] for key in ("stem", "stem_stride", "stem_pool") if key in values}
    values.setdefault("patch_size", side * _stem_stride(CeiTConfig(**stem)))
    return CeiTConfig(**values, img_size=_image_hw(state, values["patch_size"], img_size, square))


def require_fields(geometry: Mapping[str, Any]) -> None:
    """Raises: ValueError if a key is no field of ``CeiTConfig``, naming the nearest."""
    known = {field.name for field in fields(CeiTConfig)}
    for key in geometry:
        if key not in known:
            raise ValueError(unknown("model field", key, known))


def require_same(config: CeiTConfig, name: str, expected: CeiTConfig) -> None:
    """Raises: ValueError naming both geometries if weights of ``config`` are not for ``expected``, a ``name``."""
    _refuse_difference(name_of(config) or "a network", _architecture(config), name, _architecture(expected))


def require_fit(state: Mapping[str, Tensor], config: CeiTConfig) -> CeiT:
    """A network of ``config`` without memory (on ``meta``), which ``state`` fits tensor by tensor.

    Raises: ValueError naming the first tensors that are missing, left over or of another shape.
    """
    if config.depth > len(state):  # before so many blocks are made
        raise ValueError(f"the weights do not fit their network: {len(state)} tensors for a depth of {config.depth:,}")
    try:
        with torch.device("meta"):
            network = CeiT(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond what a computer can number
        raise ValueError(f"the weights do not fit their network: its sizes are none ({error})") from error
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = {"missing": missing, "unexpected": extra, "of another shape": other}
    if any(faults.values()):
        told = "; ".join(f"{fault}: {listed(keys)}" for fault, keys in faults.items() if keys)
        raise ValueError(f"the weights do not fit their network: {told}")
    return network


def name_of(config: CeiTConfig) -> str | None:
    """The registered model of this architecture and image size, whatever its classes and channels, or None."""
    for name in MODELS:
        registered = config_of(name)
        if registered.image_hw == config.image_hw and _architecture(registered) == _architecture(config):
            return name
    return None


def nearest_model(config: CeiTConfig) -> tuple[str, dict[str, Any]]:
    """The registered model of the fewest other fields, and these: ``config_of`` both is the same architecture.

    Of equal ones the model of the same image size, which is left out of the fields.
    """
    values = {key: value for key, value in asdict(config).items() if key not in _OUTSIDE_ARCHITECTURE}
    found = []
    for name in MODELS:
        registered = config_of(name)
        known = _architecture(registered)
        if known == _architecture(config):
            other: dict[str, Any] = {}
        else:
            other = {key: value for key, value in values.items() if value != getattr(registered, key)}
        found.append((len(other), registered.image_hw != config.image_hw, name, other))
    _, _, name, other = min(found, key=lambda entry: entry[:2])
    return name, other


def _architecture(config: CeiTConfig) -> dict[str, Any]:
    """The fields that make the computation, without those of parts that are switched off."""
    off = ("stem_",) if config.stem == "patch" else ()
    off += ("leff_",) if config.feed_forward == "mlp" else ()
    off += () if config.lca else ("lca_",)
    values = asdict(config) | {"mlp_ratio": _ratio(config.expanded_dim, config.embed_dim)}
    return {key: value for key, value in values.items() if key not in _OUTSIDE_ARCHITECTURE and not key.startswith(off)}


def _refuse_difference(holder: str, held: Mapping[str, Any], name: str, wanted: Mapping[str, Any]) -> None:
    different = [key for key in held if key in wanted and held[key] != wanted[key]]
    if different:
        mine, others = (", ".join(f"{key} {values[key]}" for key in different) for values in (held, wanted))
        raise ValueError(
            f"the weights are of {holder} with {mine}, but {name} has {others}; give "
            "that geometry, or name no model where the weights know their own"
        )


def _fields_in_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that shapes and keys tell."""
    i2t = "patch_embed.conv.weight" in state
    leff = "blocks.0.mlp.expand.weight" in state
    dim = _shape(state, "pos_embed", 3)[-1]
    first_conv = _shape(state, "patch_embed.conv.weight" if i2t else "patch_embed.proj.weight", 4)
    expanded = _shape(state, "blocks.0.mlp.expand.weight" if leff else "blocks.0.mlp.fc1.weight", 2)[0]
    in_shapes: dict[str, Any] = {
        "in_chans": first_conv[1],
        "num_classes": _shape(state, "head.weight", 2)[0] if "head.weight" in state else 0,
        "embed_dim": dim,
        "depth": _depth(state),
        "mlp_ratio": _ratio(expanded, dim),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "stem": "i2t" if i2t else "patch",
        "feed_forward": "leff" if leff else "mlp",
        "lca": "lca.norm1.weight" in state,
    }
    if i2t:
        in_shapes |= {"stem_channels": first_conv[0], "stem_kernel_size": first_conv[-1]}
        in_shapes["stem_norm"] = "batch" if "patch_embed.norm.weight" in state else "none"
    if leff:
        in_shapes["leff_kernel_size"] = _shape(state, "blocks.0.mlp.depthwise.weight", 4)[-1]
        in_shapes["leff_norm"] = "batch" if "blocks.0.mlp.expand_norm.weight" in state else "none"
    if in_shapes["lca"]:
        in_shapes["lca_pos_embed"] = "lca.pos_embed" in state
    return in_shapes


def _registered(in_shapes: Mapping[str, Any], side: int) -> CeiTConfig | None:
    """A registered model, or DeiT, with this stem, width and side of the patches cut from the stem's map."""
    stem, dim, kernel = in_shapes["stem"], in_shapes["embed_dim"], in_shapes.get("stem_kernel_size")
    for config in map(config_of, MODELS):
        same_kernel = stem == "patch" or config.stem_kernel_size == kernel
        sides = config.patch_size // _stem_stride(config)
        if same_kernel and (config.stem, config.embed_dim, sides) == (stem, dim, side):
            return config
    if stem == "patch" and side == 16 and dim in _DEIT_DIMS:
        return CeiTConfig(stem="patch", embed_dim=dim, num_heads=dim // 64)
    return None


def is_deit(config: CeiTConfig) -> bool:
    """Whether a network is as large as a published DeiT, which classifies its class token."""
    return config.stem == "patch" and config.patch_size == 16 and config.embed_dim in _DEIT_DIMS


def _stem_stride(config: CeiTConfig) -> int:
    return config.total_stem_stride if config.stem == "i2t" else 1


def _ratio(expanded: int, dim: int) -> float:
    """The ratio of which ``int(ratio * dim)`` is ``expanded``, rounding notwithstanding."""
    ratio = expanded / dim
    return ratio if int(ratio * dim) == expanded else nextafter(ratio, inf)


def _image_hw(
    state: Mapping[str, Tensor], patch_size: int, img_size: int | tuple[int, int] | None, square: bool
) -> tuple[int, int]:
    patches = _shape(state, "pos_embed", 3)[1] - 1
    side = isqrt(max(patches, 0))
    has_square = side * side == patches
    if img_size is not None and not (square and has_square):
        sizes = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
        if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"img_size {img_size!r} must be a side in pixels or two, [height, width]")
        if (sizes[0] // patch_size) * (sizes[1] // patch_size) == patches:
            return sizes[0], sizes[1]
    if has_square:
        return side * patch_size, side * patch_size
    given = f"{patches} patches" if img_size is None else f"img_size {img_size} does not give {patches} patches, which"
    raise ValueError(
        f"{given} make no square grid: pass the height and width that they were trained on, img_size=(H, W) "
        "(ceit convert --geometry 'img_size=[H,W]')"
    )


def _depth(state: Mapping[str, Tensor]) -> int:
    blocks = {int(block[1]) for key in state if (block := re.match(r"blocks\.(\d+)\.", key))}
    if blocks != set(range(len(blocks))):
        raise ValueError(
            f"these are not the whole weights of a CeiT: of {max(blocks) + 1} blocks only {len(blocks)} are there"
        )
    return len(blocks)


def _shape(state: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"these are not the whole weights of a CeiT: {key} is missing")
    if state[key].ndim != ndim:
        raise ValueError(f"{key} has shape {tuple(state[key].shape)} where {ndim} dimensions were expected")
    return tuple(state[key].shape)
