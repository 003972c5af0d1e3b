"""Loading changes nothing unless asked, and then says so."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import adapt_input_conv
from torch import Tensor

import ceit
from ceit.model import CeiT, CeiTConfig, resize_pos_embed
from ceit.weights.checkpoint import adapt_input_channels

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def test_nothing_is_said_when_nothing_changes(
    saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture, logits: Callable[[CeiT], Tensor]
) -> None:
    loaded = ceit.load_checkpoint(saved[1], num_classes=5, in_chans=3, img_size=32)
    assert torch.equal(logits(loaded), logits(saved[0]))
    assert loaded.class_names == NAMES
    assert not caplog.records


def test_another_head_on_request(
    saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture, logits: Callable[[CeiT], Tensor]
) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], num_classes=3)
    assert "a fresh head of 3 classes replaces the one of 5; train it before use" in caplog.text
    assert logits(loaded).shape == (2, 3)
    assert loaded.config.num_classes == 3
    assert loaded.class_names is None
    head = {"head.weight", "head.bias"}
    assert all(
        torch.equal(loaded.state_dict()[key], value) for key, value in saved[0].state_dict().items() if key not in head
    )


@pytest.mark.parametrize("img_size", [64, (48, 80)])
def test_another_image_size_on_request(
    img_size: int | tuple[int, int],
    saved: tuple[CeiT, Path],
    caplog: pytest.LogCaptureFixture,
    logits: Callable[[CeiT], Tensor],
) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], img_size=img_size)
    grid = CeiTConfig(img_size=img_size).grid
    assert f"position embedding interpolated from 2 x 2 to {grid[0]} x {grid[1]} patches" in caplog.text
    assert torch.equal(loaded.pos_embed, resize_pos_embed(saved[0].pos_embed, (2, 2), grid))
    assert logits(loaded).shape == (2, 5)


@pytest.mark.parametrize("in_chans", [1, 2, 6, 7])
def test_other_channels_on_request_see_a_grey_image_as_before(
    in_chans: int, saved: tuple[CeiT, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ceit"):
        loaded = ceit.load_checkpoint(saved[1], in_chans=in_chans)
    assert f"first convolution adapted from 3 to {in_chans} channels" in caplog.text
    assert loaded.config.in_chans == in_chans
    assert loaded.preprocessing is None
    if in_chans in (1, 6):
        grey = torch.randn(1, 1, 32, 32)
        torch.testing.assert_close(loaded(grey.expand(-1, in_chans, -1, -1)), saved[0](grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("in_chans", [1, 2, 4, 5])
def test_channels_are_adapted_as_timm_does_it(in_chans: int) -> None:
    weight = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(adapt_input_channels(weight, in_chans), adapt_input_conv(in_chans, weight))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num_classes": -1}, r"num_classes -1 must be at least 0"),
        ({"in_chans": -1}, r"in_chans -1 must be at least 1"),
        ({"img_size": 225}, r"image size \(225, 225\) must be a multiple of 16 \(remainder 1, 1\)"),
        ({"num_head": 2}, r"unknown model field 'num_head'; did you mean 'num_heads'"),
    ],
)
def test_requests_out_of_range_are_refused(request_: dict[str, Any], message: str, saved: tuple[CeiT, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        ceit.load_checkpoint(saved[1], **request_)
