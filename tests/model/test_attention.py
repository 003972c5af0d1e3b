"""Attention against torch's own, its two paths against each other, and LCA as one row of a full transformer layer."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.model import CeiT, CeiTConfig
from ceit.model.attention import MultiHeadSelfAttention
from ceit.model.lca import LayerwiseClassTokenAttention

BATCH, TOKENS, DIM, HEADS = 2, 7, 12, 3


def make_attention(bias: bool) -> MultiHeadSelfAttention:
    attention = MultiHeadSelfAttention(DIM, HEADS, bias).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_grad", [True, False], ids=["plain", "fused"])
def test_attention_equals_torch(bias: bool, needs_grad: bool) -> None:
    attention = make_attention(bias)
    reference = nn.MultiheadAttention(DIM, HEADS, bias=True, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.in_proj_bias.copy_(attention.qkv.bias if bias else torch.zeros(3 * DIM))
        reference.out_proj.load_state_dict(attention.proj.state_dict())
    tokens = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64)
    with torch.set_grad_enabled(needs_grad):
        torch.testing.assert_close(attention(tokens), reference(tokens, tokens, tokens, need_weights=False)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_grad", [True, False], ids=["plain", "fused"])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(-1, None), slice(2, 5)], ids=["first", "last", "middle"])
def test_attention_of_some_queries_is_those_rows_of_the_full_one(bias: bool, needs_grad: bool, rows: slice) -> None:
    attention = make_attention(bias)
    tokens = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64)
    with torch.set_grad_enabled(needs_grad):
        torch.testing.assert_close(attention(tokens, tokens[:, rows]), attention(tokens)[:, rows])


def test_attention_treats_keys_as_a_set() -> None:
    attention = make_attention(bias=True)
    tokens = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64)
    order = torch.randperm(TOKENS)
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_heads 5 must divide dim 12 \(remainder 2\)$"):
        MultiHeadSelfAttention(12, 5)


@pytest.mark.parametrize("embedded", [True, False])
def test_lca_is_the_last_row_of_a_full_layer_over_the_class_tokens(embedded: bool) -> None:
    config = CeiTConfig(embed_dim=DIM, num_heads=HEADS, depth=TOKENS, mlp_ratio=2.0, lca_pos_embed=embedded)
    lca = LayerwiseClassTokenAttention(config).double()
    for parameter in lca.parameters():
        nn.init.normal_(parameter)
    class_tokens = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64, requires_grad=True)

    def full_layer(x: Tensor) -> Tensor:
        x = x + lca.attn(lca.norm1(x))
        return x + lca.mlp.fc2(F.gelu(lca.mlp.fc1(lca.norm2(x))))

    embedding = 0.0 if lca.pos_embed is None else lca.pos_embed
    out = lca(class_tokens)
    torch.testing.assert_close(out, full_layer(class_tokens + embedding)[:, -1:])
    (gradient,) = torch.autograd.grad(out.sum(), class_tokens)
    assert (gradient.abs().amax(dim=(0, 2)) > 1e-6).all(), "every layer's class token is read"


def test_lca_adds_to_the_embedded_last_token() -> None:
    lca = LayerwiseClassTokenAttention(CeiTConfig(embed_dim=DIM, num_heads=HEADS, depth=4))
    assert lca.pos_embed is not None
    nn.init.normal_(lca.pos_embed)
    for layer in (lca.attn.proj, lca.mlp.fc2):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    class_tokens = torch.randn(BATCH, 4, DIM)
    torch.testing.assert_close(lca(class_tokens)[:, 0], class_tokens[:, -1] + lca.pos_embed[0, -1])


def test_lca_reads_the_class_tokens_of_all_blocks_in_order_and_nothing_else(tiny: Callable[..., CeiT]) -> None:
    model = tiny()
    assert model.lca is not None
    left: list[Tensor] = []
    read: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: left.append(output[:, 0]))
    model.lca.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model.forward_features(torch.randn(2, 3, 32, 48))
    assert torch.equal(read[0], torch.stack(left, dim=1))
