"""State-dict keys: the release's into ours, and others recognised or refused.

Shapes: ``D`` embed dim, ``E`` expanded dim.
"""

import re
from collections.abc import Mapping

from timm.models import clean_state_dict
from torch import Tensor

from ceit.messages import listed

_RELEASED_PREFIXES = {
    "i2t.backbone.conv.": "patch_embed.conv.",
    "i2t.backbone.bn.": "patch_embed.norm.",
    "i2t.proj.": "patch_embed.proj.",
    "pos_layer_embed": "lca.pos_embed",
    "lca.feedforward.": "lca.mlp.",
}
_RELEASED_LEFF = {
    "conv1": "expand",
    "bn1": "expand_norm",
    "conv2": "depthwise",
    "bn2": "depthwise_norm",
    "conv3": "project",
    "bn3": "project_norm",
}
_LEFF_KEY = re.compile(rf"(blocks\.\d+)\.leff\.({'|'.join(_RELEASED_LEFF)})\.")
_OUR_KEY = re.compile(
    r"(cls_token|pos_embed|lca\.pos_embed)$"
    r"|(patch_embed\.(conv|norm|proj)|norm|head)\."
    r"|(blocks\.\d+|lca)\.(norm1|attn|norm2|mlp)\."
)
_PORT_KEY = re.compile(r"transformer\.layers\.\d+\.1\..*\b(up_proj|depth_conv|down_proj)\.")


def convert_released_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's state dict under our keys.

    LeFF's 1x1 convolutions become linear layers, ``(E, D, 1, 1)`` to ``(E, D)``; every other tensor keeps its shape.
    What wrappers add is taken off: ``module.`` and ``_orig_mod.``, one name before all keys, such as Lightning's
    ``model.``, and the counter of averaged weights. Keys that are ours already pass unchanged, so converting twice is
    converting once. Nothing else is left out, and nothing that is missing is made up.

    Raises: ValueError for weights of the rishikksh20 port, which compute another network, and of any other model.
    """
    state_dict = _unwrapped(state_dict)
    _refuse_port(state_dict)
    converted: dict[str, Tensor] = {}
    foreign: list[str] = []
    for key, value in state_dict.items():
        renamed = _rename(key)
        if not _OUR_KEY.match(renamed):
            foreign.append(key)
        elif renamed in converted:
            raise ValueError(f"two tensors are for {renamed}, the second under {key}")
        else:
            converted[renamed] = _squeezed(key, value)
    if foreign:
        raise ValueError(f"these are not the weights of a CeiT: unexpected {listed(foreign)}")
    return converted


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys, with or without a wrapper's prefix, are the release's."""
    return any(key != _rename(key) for key in _unwrapped(state_dict))


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {key.replace("._orig_mod.", "."): value for key, value in clean_state_dict(dict(state_dict)).items()}
    if len(plain) < len(state_dict):
        raise ValueError("two tensors have one name without what wrappers add to it, such as _orig_mod.")
    plain.pop("n_averaged", None)
    inner = {key.partition(".")[2]: value for key, value in plain.items()}
    has_one_name = len({key.partition(".")[0] for key in plain}) == 1
    return inner if has_one_name and all(_OUR_KEY.match(_rename(key)) for key in inner) else plain


def _rename(key: str) -> str:
    if leff := _LEFF_KEY.match(key):
        return f"{leff[1]}.mlp.{_RELEASED_LEFF[leff[2]]}.{key[leff.end() :]}"
    for released, ours in _RELEASED_PREFIXES.items():
        if key.startswith(released):
            return ours + key.removeprefix(released)
    return key


def _squeezed(key: str, value: Tensor) -> Tensor:
    if not key.endswith((".leff.conv1.weight", ".leff.conv3.weight")):
        return value
    if value.ndim != 4 or value.shape[2:] != (1, 1):
        raise ValueError(f"{key} has shape {tuple(value.shape)} where a 1x1 convolution was expected")
    return value.flatten(1)


def _refuse_port(state_dict: Mapping[str, Tensor]) -> None:
    if "pos_embedding" not in state_dict or not any(_PORT_KEY.match(key) for key in state_dict):
        return
    channels = state_dict["conv.0.weight"].shape[0] if "conv.0.weight" in state_dict else 32
    raise ValueError(
        "these weights have the layout of rishikksh20/CeiT-pytorch, which computes another network than the paper and "
        f"the release (its class token bypasses LeFF, its LCA is incomplete, its stem has {channels} channels), so "
        "they cannot be converted; use the released weights or train anew"
    )
