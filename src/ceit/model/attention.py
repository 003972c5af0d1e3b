"""Multi-head attention of the encoder blocks and of LCA.

Shapes: ``B`` batch, ``T`` tokens, ``Q`` queries, ``K`` heads, ``D`` embed dim, ``d = D / K``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class MultiHeadSelfAttention(nn.Module):
    """``MSA(x) = proj(concat_k softmax(q_k k_k^T / sqrt(d)) v_k)`` with q, k, v linear in x.

    Shape: ``(B, T, D)`` to ``(B, T, D)``; with ``queries_bqd``, some of the tokens, to ``(B, Q, D)``: attention of
    those only, which costs O(Q T) instead of O(T^2).
    Raises: ValueError if ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide dim {dim} (remainder {dim % num_heads})")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_btd: Tensor, queries_bqd: Tensor | None = None) -> Tensor:
        if not is_affine(self.qkv):
            k_btd, v_btd = self.qkv(tokens_btd).chunk(3, dim=-1)[1:]
            q_bqd = self.qkv(tokens_btd if queries_bqd is None else queries_bqd).chunk(3, dim=-1)[0]
        elif queries_bqd is None and not torch.compiler.is_exporting():
            q_bqd, k_btd, v_btd = self.qkv(tokens_btd).chunk(3, dim=-1)
        else:  # in exported graphs too: there the chunks of activations would be copied, those of weights are constants
            weights = self.qkv.weight.chunk(3)
            biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
            inputs = tokens_btd if queries_bqd is None else queries_bqd, tokens_btd, tokens_btd
            q_bqd, k_btd, v_btd = map(F.linear, inputs, weights, biases)
        q_bkqd, k_bktd, v_bktd = self._split_heads(q_bqd), self._split_heads(k_btd), self._split_heads(v_btd)
        if q_bkqd.device.type == "cpu" and (
            torch.is_grad_enabled()
            or q_bkqd.dtype == torch.bfloat16
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # whose graph must be the same with and without gradients
        ):  # where the fused kernel is the slower one: its backward, in bf16, and where a compiler could do better
            weights_bkqt = (q_bkqd * self.scale @ k_bktd.transpose(-2, -1)).softmax(dim=-1)
            mixed_bkqd = weights_bkqt @ v_bktd
        else:
            mixed_bkqd = F.scaled_dot_product_attention(q_bkqd, k_bktd, v_bktd)
        return self.proj(mixed_bkqd.transpose(1, 2).flatten(2))

    def _split_heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def is_affine(layer: nn.Module) -> bool:
    """Whether a layer is what its weight and bias say: an adapter, a hook or a quantised layer or weight does more."""
    of_its_class = type(layer).forward is nn.Linear.forward or getattr(type(layer), "is_affine", False)
    is_plain = of_its_class and not is_traceable_wrapper_subclass(layer.weight)
    return is_plain and not layer._forward_pre_hooks and not is_watched(layer)


def is_watched(part: nn.Module) -> bool:
    """Whether somebody looks at what comes out of a module, or at the gradients that go back through it."""
    return bool(part._forward_hooks or part._backward_hooks or part._backward_pre_hooks)
