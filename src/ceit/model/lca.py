"""Layer-wise Class-token Attention. Shapes: ``B`` batch, ``L`` encoder blocks, ``D`` embed dim."""

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from ceit.model.attention import MultiHeadSelfAttention
from ceit.model.config import CeiTConfig


class LayerwiseClassTokenAttention(nn.Module):
    """One transformer layer over the class tokens of all encoder blocks, of which only the last asks (LCA).

    Paper: arXiv 2103.11816, the LCA section.
        c_bld = class tokens + pos_embed
        y_b1d = c[L] + MSA(query = LN1(c)[L], keys and values = LN1(c))
        y_b1d = y + MLP(LN2(y))
    One query makes the attention O(L) instead of O(L^2).

    Shape: class tokens ``(B, L, D)`` to ``(B, 1, D)``.
    Differs: ``pos_embed`` is the release's; the paper's text has none (``lca_pos_embed=False``).
    """

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pos_embed = nn.Parameter(torch.zeros(1, config.depth, dim)) if config.lca_pos_embed else None
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = MultiHeadSelfAttention(dim, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(dim, config.expanded_dim)

    def forward(self, class_tokens_bld: Tensor) -> Tensor:
        if self.pos_embed is not None:
            class_tokens_bld = class_tokens_bld + self.pos_embed
        normed_bld = self.norm1(class_tokens_bld)
        class_b1d = class_tokens_bld[:, -1:] + self.attn(normed_bld, normed_bld[:, -1:])
        return class_b1d + self.mlp(self.norm2(class_b1d))
