"""Attention weights of a network while it computes, taken beside its path and not out of it.

Shapes: ``B`` batch, ``L`` encoder blocks, ``K`` heads, ``T = 1 + H * W`` tokens (class token first), ``D`` embed dim.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.model import CeiT
from ceit.model.attention import MultiHeadSelfAttention


@dataclass(frozen=True)
class Attention:
    """Whom the class token listened to, in one forward pass; every row sums to 1.

    ``class_rows_blkt``: in each encoder block, each head's weights of the class token over all tokens, itself first.
    ``layer_weights_bkl``: in LCA, each head's weights of the last class token over those of all blocks; None without
    LCA. ``grid``: rows and columns of the patches. ``global_pool``: what the network classifies, as in ``CeiTConfig``.
    """

    class_rows_blkt: Tensor
    layer_weights_bkl: Tensor | None
    grid: tuple[int, int]
    global_pool: str


class Capture:
    """What was seen of the last forward pass."""

    def __init__(self, model: CeiT) -> None:
        self._model = model
        self._rows_bkt: list[Tensor] = []
        self._layer_weights_bkl: Tensor | None = None
        self._grid = model.config.grid

    def attention(self) -> Attention:
        """Raises: ValueError if the network has not computed anything yet."""
        if len(self._rows_bkt) < len(self._model.blocks):
            raise ValueError("the network has computed nothing while it was watched: call it inside the context")
        pool = self._model.config.global_pool
        return Attention(torch.stack(self._rows_bkt, dim=1), self._layer_weights_bkl, self._grid, pool)

    def _see_block(self, number: int, attention: MultiHeadSelfAttention, tokens_btd: Tensor) -> None:
        if number == 0:
            self._rows_bkt, self._layer_weights_bkl, self._grid = [], None, self._model.config.grid
        self._rows_bkt.append(attention_weights(attention, tokens_btd[:, :1], tokens_btd)[:, :, 0])

    def _see_lca(self, attention: MultiHeadSelfAttention, normed_bld: Tensor) -> None:
        self._layer_weights_bkl = attention_weights(attention, normed_bld[:, -1:], normed_bld)[:, :, 0]


@contextmanager
def capture(model: CeiT) -> Iterator[Capture]:
    """Watches every forward pass of the network inside the context; ``Capture.attention`` tells of the last one.

    Hooks get what comes into each attention and compute its weights again from q and k, in float32. The path of the
    network is not touched: its logits keep every bit, and the hooks are gone after the context.
    """
    seen = Capture(model)
    with ExitStack() as hooks:

        def watch(attention: nn.Module, see: Any) -> None:
            own = cast("MultiHeadSelfAttention", attention)
            handle = own.register_forward_pre_hook(lambda module, inputs: see(own, inputs[0]))
            hooks.callback(handle.remove)

        for number, block in enumerate(model.blocks):
            watch(cast("Any", block).attn, lambda own, tokens, number=number: seen._see_block(number, own, tokens))
        if model.lca is not None:
            watch(model.lca.attn, seen._see_lca)
        yield seen


@torch.no_grad()
def attention_weights(attention: MultiHeadSelfAttention, queries_bqd: Tensor, tokens_btd: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d))`` of some tokens over all, ``(B, K, Q, T)`` in float32."""
    dim = tokens_btd.shape[-1]
    weight, bias = attention.qkv.weight.float(), attention.qkv.bias
    q_bqd, k_btd = (
        F.linear(inputs.float(), weight[rows], None if bias is None else bias.float()[rows])
        for inputs, rows in ((queries_bqd, slice(0, dim)), (tokens_btd, slice(dim, 2 * dim)))
    )
    q_bkqd, k_bktd = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q_bqd, k_btd))
    return (q_bkqd * attention.scale @ k_bktd.transpose(-2, -1)).softmax(dim=-1)
