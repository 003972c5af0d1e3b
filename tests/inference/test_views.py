"""Test-time augmentation: which views there are, how they count, and what their mean does not depend on."""

import pytest
import torch
from torch import Tensor, nn

from ceit.inference.views import VIEWS, MeanOverViews, Views, weighted_views


class _Pixels(nn.Module):
    """Logits that are the image's own pixels: a mean over views can be read off."""

    def forward(self, images_bchw: Tensor) -> Tensor:
        return images_bchw.flatten(1)


def image() -> Tensor:
    return torch.arange(12.0).reshape(1, 1, 3, 4)


def test_two_views_are_the_image_and_its_mirror_image() -> None:
    views = list(weighted_views(image(), "mirror"))
    assert [weight for weight, _ in views] == [0.5, 0.5]
    assert torch.equal(views[1][1][0, 0, 0], torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_six_views_are_moved_by_one_pixel_along_the_diagonal() -> None:
    views = list(weighted_views(image(), "mirror+shift"))
    assert [weight for weight, _ in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    up_and_left, down_and_right = views[2][1][0, 0], views[4][1][0, 0]
    assert torch.equal(up_and_left[:2, :3], image()[0, 0, 1:, 1:])
    assert torch.equal(down_and_right[1:, 1:], image()[0, 0, :2, :3])
    assert torch.equal(up_and_left[2], torch.tensor([5.0, 6.0, 7.0, 6.0]))  # beyond the border: the pixels before it
    assert all(view.shape == image().shape for _, view in views)


def test_an_image_and_its_mirror_image_get_the_same_answer() -> None:
    network = MeanOverViews(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(5)), "mirror")
    images_bchw = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(network(images_bchw), network(images_bchw.flip(3)))


@pytest.mark.parametrize("views", VIEWS)
def test_views_that_are_all_alike_change_nothing(views: Views) -> None:
    flat = torch.full((2, 1, 4, 4), 0.7)
    torch.testing.assert_close(MeanOverViews(_Pixels(), views)(flat), flat.flatten(1))
