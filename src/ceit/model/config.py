"""The geometry of one CeiT: every size, every ablation switch, every difference between paper and release."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal

from ceit.options import Count, Limit, ShareBelowOne, fits, require_types

_Classes = Annotated[int, Limit("must be at least 0 (0 means features without a head)", minimum=0)]
_Epsilon = Annotated[float, Limit("must be between 0 and 1", exclusiveMinimum=0, exclusiveMaximum=1)]


@dataclass(frozen=True)
class CeiTConfig:
    """Geometry of a CeiT; the defaults are the released CeiT-T at 224 px.

    With ``stem="patch"``, ``feed_forward="mlp"`` and ``lca=False`` the same network is a DeiT.
    Fields that timm has keep timm's name. Where the paper's text [P] and the released weights [R] differ, the default
    is [R] and the field's comment says what [P] reads as; each has a page in docs/decisions.

    Raises:
        ValueError: a field is outside its range; the sentence names the value and the limit.

    Source: arXiv 2103.11816 and the released implementation.
    """

    img_size: int | tuple[int, int] = 224  # pixels, one side or (height, width)
    in_chans: Count = 3
    num_classes: _Classes = 1000  # 0: no head, features only
    patch_size: Count = 16  # side in pixels that a token stands for: the stem's stride times the side of its patches
    embed_dim: Count = 192
    depth: Count = 12
    num_heads: Count = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_norm_eps: _Epsilon = 1e-6
    drop_path_rate: ShareBelowOne = 0.0  # of the last block; linear over depth from zero

    stem: Literal["i2t", "patch"] = "i2t"  # patch: DeiT's linear embedding of raw pixels
    stem_channels: Count = 64  # 32 in ports, said to be the paper's; only 64 gives the published parameter counts
    stem_kernel_size: int = 7
    stem_stride: Count = 2
    stem_pool: bool = True  # max-pool 3x3 stride 2
    stem_norm: Literal["batch", "none"] = "batch"

    feed_forward: Literal["leff", "mlp"] = "leff"
    leff_kernel_size: int = 3
    leff_norm: Literal["batch", "none"] = "batch"
    leff_last_activation: bool = False  # [P]: True, a GELU after the last norm too
    leff_class_token: Literal["normalized", "identity"] = "normalized"  # LeFF adds LN2(cls) in [R], nothing in [P]

    lca: bool = True
    lca_pos_embed: bool = True  # the learned layer embedding of [R]; the paper's text has none

    # what is classified, token in the release; avg (no LCA then): the patch tokens' mean; sum: class token and mean
    global_pool: Literal["token", "avg", "sum"] = "token"
    skip_dead: bool = False  # train without the last block's patch rows, which cannot reach the logits

    def __post_init__(self) -> None:
        if isinstance(self.img_size, list):  # JSON and YAML have no tuples
            object.__setattr__(self, "img_size", tuple(self.img_size))
        if not fits(self.img_size, int | tuple[int, int]):
            raise ValueError(f"img_size {self.img_size!r} must be a whole number of pixels, or two: height and width")
        if not self.global_pool:  # timm's word for a network that gives its tokens
            raise ValueError(
                f"global_pool {self.global_pool!r} is none of token, avg, sum: forward_features gives tokens"
            )
        require_types(CeiTConfig, vars(self))
        _require(isfinite(self.mlp_ratio) and self.expanded_dim >= 1, "mlp_ratio", self, "must be positive")
        for name in ("stem_kernel_size", "leff_kernel_size"):
            kernel = getattr(self, name)
            _require(kernel >= 1 and kernel % 2 == 1, name, self, "must be odd, so that the padding keeps the grid")
        divides = f"must divide embed_dim {self.embed_dim} (remainder {self.embed_dim % self.num_heads})"
        _require(self.embed_dim % self.num_heads == 0, "num_heads", self, divides)
        if self.stem == "i2t":
            multiple = f"must be a multiple of the stem's total stride {self.total_stem_stride}"
            _require(self.patch_size % self.total_stem_stride == 0, "patch_size", self, multiple)
        height, width = self.image_hw
        rest = (height % self.patch_size, width % self.patch_size)
        if any(rest):
            fitting = tuple(max(1, side // self.patch_size) * self.patch_size for side in (height, width))
            multiple = f"must be a multiple of {self.patch_size} (remainder {rest[0]}, {rest[1]}), such as {fitting}"
            raise ValueError(f"image size {(height, width)} {multiple}")
        if min(height, width) < self.patch_size:
            raise ValueError(f"image size {(height, width)} must be at least {self.patch_size} on each side, one patch")
        if self.skip_dead and not self.has_dead_rows:
            raise ValueError("skip_dead true needs global_pool token: the patch tokens of the last block are pooled")
        if self.lca and self.global_pool == "avg":
            raise ValueError(
                "lca true needs global_pool token or sum: no class token is classified; give lca false too"
            )
        if height == width:  # 224 and (224, 224) are one configuration
            object.__setattr__(self, "img_size", height)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image size ``(height, width)`` in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patch tokens ``(H, W)`` that an image gives."""
        height, width = self.image_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def total_stem_stride(self) -> int:
        """``S``: pixels between neighbours of the map that I2T cuts its patches from."""
        return self.stem_stride * (2 if self.stem_pool else 1)

    @property
    def has_dead_rows(self) -> bool:
        """Whether the last block's patch rows cannot reach the logits: of them only the class token is classified."""
        return self.global_pool == "token"

    @property
    def expanded_dim(self) -> int:
        """``E = e * D``: channels inside LeFF and the MLP."""
        return int(self.embed_dim * self.mlp_ratio)


def _require(holds: bool, name: str, config: Any, limit: str) -> None:
    if not holds:
        raise ValueError(f"{name} {getattr(config, name)} {limit}")
