"""The network: images to logits, and the methods that timm expects of a model.

Shapes: ``B`` batch, ``H W`` token grid, ``N = H * W`` patches, ``T = N + 1`` tokens (class token first), ``D`` embed
dim, ``L`` encoder blocks.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ceit.model.attention import MultiHeadSelfAttention, is_watched
from ceit.model.config import CeiTConfig
from ceit.model.i2t import ImageToTokens, PatchEmbedding
from ceit.model.lca import LayerwiseClassTokenAttention
from ceit.model.leff import LocallyEnhancedFeedForward, MultilayerPerceptron, to_map, to_tokens
from ceit.model.timm_config import preparation_cfg


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: ``x = x + DropPath(MSA(LN1(x)))``, then ``x = x + DropPath(FF(LN2(x)))``.

    ``FF`` is LeFF or the MLP. Shape: tokens ``(B, T, D)`` and their grid to tokens of the same shape.
    """

    def __init__(self, config: CeiTConfig, drop_path: float) -> None:
        super().__init__()
        feed_forward = LocallyEnhancedFeedForward if config.feed_forward == "leff" else MultilayerPerceptron
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = MultiHeadSelfAttention(config.embed_dim, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = feed_forward(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_btd: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens_btd = tokens_btd + self.drop_path(self.attn(self.norm1(tokens_btd)))
        return tokens_btd + self.drop_path(self.mlp(self.norm2(tokens_btd), grid))

    def forward_class_token(self, tokens_btd: Tensor) -> Tensor:
        """Row 0 of ``forward`` alone, ``(B, 1, D)``, without what only other rows need; BN statistics do not move."""
        normed_btd = self.norm1(tokens_btd)
        class_b1d = tokens_btd[:, :1] + self.drop_path(self.attn(normed_btd, normed_btd[:, :1]))
        return class_b1d + self.drop_path(self.mlp.of_class_token(self.norm2(class_b1d)))


class CeiT(nn.Module):
    """Convolution-enhanced image Transformer: I2T, ``L`` encoder blocks with LeFF, LCA, a linear head.

    Shape: images ``(B, in_chans, height, width)`` to logits ``(B, num_classes)``, or of 0 classes to the head's
    input ``(B, D)``.
    Raises: ValueError for an image of another size than ``config.image_hw``; ``at_size`` changes it for a while.

    Only the class token is classified, and LeFF never mixes patches into it, so the last block's patch rows cannot
    reach the logits. ``forward`` leaves them out in eval mode, exactly; in training it computes them as the release
    does, their BN statistics move and their gradients are zeros, unless ``config.skip_dead``. With ``global_pool``
    ``avg`` or ``sum`` the patches are classified, and no patch row is dead.

    Source: arXiv 2103.11816 and the released implementation. Differs: see docs/decisions; defaults follow the release.
    """

    # what a checkpoint knows beside the weights: the classes in the order of the logits, how images are prepared, what
    # divides the logits where they become probabilities, and what the features of known images are like
    class_names: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    temperature: float | None = None
    familiarity: dict[str, Any] | None = None
    _cfg: dict[str, Any] | None = None

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        self.config: CeiTConfig = config
        self.num_classes = config.num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = config.embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": config.embed_dim, "reduction": config.patch_size}
            for i in range(config.depth)
        ]

        height, width = self.pos_grid = config.grid
        self.patch_embed = ImageToTokens(config) if config.stem == "i2t" else PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, config.embed_dim))
        drop_paths = torch.linspace(0, config.drop_path_rate, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(EncoderBlock(config, drop_path) for drop_path in drop_paths)
        self.lca = LayerwiseClassTokenAttention(config) if config.lca else None
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.head = _head(config.embed_dim, config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of std 0.02 and zero bias, but Conv2d's default in I2T's and LeFF's layers, as released."""
        keep_default: set[nn.Module] = set()
        for module in self.modules():
            if isinstance(module, ImageToTokens | LocallyEnhancedFeedForward):
                keep_default.update(module.modules())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module not in keep_default:
                _init_layer(module)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        live_only = self.config.skip_dead if self.training else self.config.has_dead_rows
        return self.forward_head(self.encode(self._embed(images), self.config.grid, live_only))

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens ``(B, 1 + N, D)``: LCA's output (or the class token), then the last block's patches."""
        return self.encode(self._embed(images), self.config.grid)

    def forward_head(self, tokens_btd: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, num_classes)`` of row 0, of the mean of the other rows or of their sum, by ``global_pool``.

        With ``pre_logits`` what the head gets, ``(B, D)``.
        """
        if self.config.global_pool == "avg":
            pooled_bd = tokens_btd[:, 1:].mean(dim=1)
        elif self.config.global_pool == "sum":
            pooled_bd = tokens_btd[:, 0] + tokens_btd[:, 1:].mean(dim=1)
        else:
            pooled_bd = tokens_btd[:, 0]
        return pooled_bd if pre_logits else self.head(pooled_bd)

    def encode(self, tokens_btd: Tensor, grid: tuple[int, int], live_only: bool = False) -> Tensor:
        """Embedded tokens ``(B, 1 + N, D)`` of a grid to what ``forward_features`` gives; with ``live_only`` row 0."""
        class_tokens: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            is_live_alone = live_only and i == len(self.blocks) - 1
            if is_live_alone and type(block) is EncoderBlock and not _is_hooked(block):
                tokens_btd = block.forward_class_token(tokens_btd)
            else:
                tokens_btd = self._forward_block(block, tokens_btd, grid)
                tokens_btd = tokens_btd[:, :1] if is_live_alone else tokens_btd
            class_tokens.append(tokens_btd[:, 0])
        if self.lca is not None:
            class_b1d = self.lca(torch.stack(class_tokens, dim=1))
            tokens_btd = class_b1d if live_only else torch.cat([class_b1d, tokens_btd[:, 1:]], dim=1)
        return self.norm(tokens_btd)

    def _embed(self, images: Tensor) -> Tensor:
        patches_bnd = self.patch_embed(images)
        class_b1d = self.cls_token.expand(patches_bnd.shape[0], -1, -1).to(patches_bnd.dtype)
        pos_embed = resize_pos_embed(self.pos_embed, self.pos_grid, self.config.grid)
        return torch.cat([class_b1d, patches_bnd], dim=1) + pos_embed

    def _forward_block(self, block: nn.Module, tokens_btd: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.grad_checkpointing and self.training:
            contexts = partial(_checkpoint_contexts, block)
            return checkpoint(block, tokens_btd, grid, use_reentrant=False, context_fn=contexts)
        return block(tokens_btd, grid)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of chosen blocks, as timm's contract has it.

        ``indices`` takes the last n blocks if an int, all if None. Each is a map ``(B, D, H, W)`` or, for ``NLC``,
        tokens ``(B, N, D)``; with ``return_prefix_tokens`` a pair with the class token ``(B, 1, D)``. Unless
        ``intermediates_only``, returns ``(forward_features(images), intermediates)``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r} must be 'NCHW' or 'NLC'")
        take = _take_indices(len(self.blocks), indices)
        last = max(take)
        tokens_btd = self._embed(images)
        class_tokens: list[Tensor] = []
        intermediates: list[Any] = []
        for i, block in enumerate(self.blocks):
            if stop_early and intermediates_only and i > last:
                break
            tokens_btd = self._forward_block(block, tokens_btd, self.config.grid)
            class_tokens.append(tokens_btd[:, 0])
            if i in take:
                taken_btd = self.norm(tokens_btd) if norm else tokens_btd
                patches = taken_btd[:, 1:]
                if output_fmt == "NCHW":
                    patches = to_map(patches, self.config.grid).contiguous()
                intermediates.append((patches, taken_btd[:, :1]) if return_prefix_tokens else patches)
        if intermediates_only:
            return intermediates
        if self.lca is not None:
            tokens_btd = torch.cat([self.lca(torch.stack(class_tokens, dim=1)), tokens_btd[:, 1:]], dim=1)
        return self.norm(tokens_btd), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last one asked for, and LCA and the head with them; returns the indices kept."""
        take = _take_indices(len(self.blocks), indices)
        last = max(take)
        if last + 1 < len(self.blocks):
            self.lca = None  # it takes one class token of every block
            self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.lca = None
            self.reset_classifier(0)
        self.config = replace(self.config, depth=len(self.blocks), lca=self.lca is not None)
        return take

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """For timm, which sets it: with the class names and the preprocessing that the network has got since then."""
        if self._cfg is None:
            raise AttributeError("a network that timm has not made, nor weights, has no pretrained_cfg")
        known = self._known()
        if known != self._known_before:
            self._cfg["label_names"] = known["class_names"]
            self._cfg |= preparation_cfg(known["preprocessing"] or {})
            self._known_before = known
        return self._cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self._cfg, self._known_before = cfg, self._known()

    def _known(self) -> dict[str, Any]:
        """A copy of what timm's configuration has to tell as well."""
        return deepcopy({"class_names": self.class_names, "preprocessing": self.preprocessing})

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of it."""
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, cfg: dict[str, Any]) -> None:
        self.pretrained_cfg = cfg

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a network that an earlier version has pickled, with the configuration as it is."""
        super().__setstate__(state)
        for name in ("default_cfg", "pretrained_cfg"):
            if name in self.__dict__:
                self.pretrained_cfg = self.__dict__.pop(name)

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves beside the weights, to build the network again."""
        return asdict(self.config)

    @property
    def _traits(self) -> dict[str, Any]:
        """What timm asks of a network's images."""
        config, first = self.config, "conv" if self.config.stem == "i2t" else "proj"
        size = {"in_chans": config.in_chans, "img_size": config.image_hw, "fixed_input_size": True}
        return size | {"first_conv": f"patch_embed.{first}"}

    @_model_args.setter
    def _model_args(self, known: dict[str, Any]) -> None:
        """timm notes its keywords here. The configuration holds them all, and stays true when the size changes."""

    @_traits.setter
    def _traits(self, known: dict[str, Any]) -> None:
        """As ``_model_args``."""

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of ``num_classes`` outputs, none at 0, and another ``global_pool`` of CeiTConfig if it is given.

        What is known of the old one's answers, their names, temperature and familiarity, goes with it.

        Raises: ValueError for a pooling that CeiTConfig does not have.
        """
        changed: dict[str, Any] = {} if global_pool is None else {"global_pool": global_pool}
        self.config = replace(self.config, num_classes=num_classes, **changed)
        self.num_classes = num_classes
        self.class_names = self.temperature = self.familiarity = None
        like = self.cls_token
        self.head = _head(self.embed_dim, num_classes).to(like.device, like.dtype)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Take images of another size: the position embedding is interpolated (bicubic, no antialias).

        The familiarity of images goes, as its distances are of the old size.

        Raises: ValueError for a new patch size, or a size that is no multiple of it.
        """
        if patch_size not in (None, self.config.patch_size, (self.config.patch_size,) * 2):
            raise ValueError(
                f"patch_size {patch_size} must stay {self.config.patch_size}: the stem's weights are made for it"
            )
        if img_size is None:
            return
        self.config = replace(self.config, img_size=img_size if isinstance(img_size, int) else tuple(img_size))
        self.patch_embed.image_hw = self.config.image_hw
        if self.pos_grid == self.config.grid:  # an optimizer may know the parameter
            return
        self.familiarity = None
        resized = resize_pos_embed(self.pos_embed.data, self.pos_grid, self.config.grid)
        self.pos_grid = self.config.grid
        self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)

    @contextmanager
    def at_size(self, image_hw: tuple[int, int]) -> Iterator[None]:
        """Take images of another size within the context, and leave all parameters as they are.

        Each forward pass interpolates the position embedding, as ``set_input_size`` does once; its gradient reaches the
        parameter. Raises: ValueError for a size that is no multiple of the patch.
        """
        config = self.config
        self.config = replace(config, img_size=image_hw)
        self.patch_embed.image_hw = image_hw
        try:
            yield
        finally:
            self.config = config
            self.patch_embed.image_hw = config.image_hw

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations: less memory, more time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups in order of depth, for timm's layer-wise learning rates and freezing."""
        # timm reads every captured group as a number, and 99999 as "with the group before"
        blocks = r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^(?:lca|norm)\.", (99999,))]
        return {"stem": r"^(?:cls_token|pos_embed|patch_embed)", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Tensors beside the 1-D ones that weight decay spares; LCA's layer embedding is decayed, as released."""
        return {"pos_embed", "cls_token"}


def _is_hooked(block: nn.Module) -> bool:
    """Whether somebody looks at what goes through a block, or in evaluation at what comes out of a part of it."""
    looked_at = [block] if block.training else block.modules()
    return bool(block._forward_pre_hooks) or any(map(is_watched, looked_at))


def resize_pos_embed(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding on another grid: patches interpolated (bicubic, no antialias), the class row kept.

    Shape: ``(1, 1 + H*W, D)`` to ``(1, 1 + H'*W', D)``. Source: the release's way from 224 to 384 px.
    """
    if old_grid == new_grid:
        return pos_embed
    in_full = torch.promote_types(pos_embed.dtype, torch.float32)
    map_1dhw = to_map(pos_embed[:, 1:], old_grid).to(in_full)
    map_1dhw = F.interpolate(map_1dhw, new_grid, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([pos_embed[:, :1], to_tokens(map_1dhw).to(pos_embed.dtype)], dim=1)


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What a checkpointed block runs in: first as ever, then recomputed with its BN statistics held."""
    return nullcontext(), _hold_statistics(block)


@contextmanager
def _hold_statistics(block: nn.Module) -> Iterator[None]:
    """Normalise by the batch without moving the running statistics, which the first pass has moved already."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
    held = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, batches in held:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _take_indices(depth: int, indices: int | list[int] | None) -> list[int]:
    """Block indices from timm's way of asking: the last n, a list (negative from the end), or all."""
    if indices is None:
        return list(range(depth))
    asked = list(range(depth - indices, depth)) if isinstance(indices, int) else list(indices)
    take = [i + depth if i < 0 else i for i in asked]
    if not take or not all(0 <= i < depth for i in take) or (isinstance(indices, int) and indices > depth):
        raise ValueError(f"block indices {indices} must lie within the {depth} blocks")
    return take


def _head(embed_dim: int, num_classes: int) -> nn.Module:
    return _init_layer(nn.Linear(embed_dim, num_classes)) if num_classes else nn.Identity()


def _init_layer(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
