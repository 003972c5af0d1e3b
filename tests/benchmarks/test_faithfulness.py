"""Curves of deletion and insertion, on a network whose answer hangs on patches that are known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import faithfulness
from benchmarks.faithfulness import POINTS, measured
from ceit.model import CeiT, CeiTConfig


class Corner(nn.Module):
    """Answers class 1 by how bright the first two of 16 patches are, and looks at nothing else."""

    config = CeiTConfig(img_size=16, patch_size=4, in_chans=1, num_classes=2, stem="patch", embed_dim=8, num_heads=2)

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0, :4, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(bright), 4 * bright - 2], dim=1)


def test_a_map_that_names_what_decides_beats_a_random_one_and_its_opposite_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, answers = -torch.ones(20, 1, 16, 16), torch.ones(20, dtype=torch.int64)
    images[:, :, :4, :8] = 1.0  # less bright in a blurred image
    best = torch.zeros(20, 4, 4)
    best[:, 0, :2] = 1.0

    def maps(model: Any, images: Tensor, answers: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"random": torch.rand(20, 4, 4, generator=generator), "best": best, "worst": -best}

    monkeypatch.setattr(faithfulness, "maps_of", maps)
    model: Any = Corner()
    found = measured(model, images, answers)
    whole, nothing = torch.tensor([2.0, -2.0]).sigmoid().tolist()
    assert len(found["best"]["deletion"]["curve"]) == POINTS
    for name, area in (("best", 2 * nothing / 2), ("worst", whole)):
        curve = found[name]["deletion"]["curve"]
        assert (curve[0], curve[-1]) == pytest.approx((whole, nothing), abs=1e-3)
        assert found[name]["deletion"]["area"] == pytest.approx(area, abs=0.1)
    assert found["best"]["insertion"]["curve"][-1] == pytest.approx(whole, abs=1e-3)
    low, high = found["best"]["deletion"]["against_random"][1:]
    assert low <= high < 0
    assert found["worst"]["deletion"]["against_random"][1] > 0
    assert found["best"]["insertion"]["against_random"][1] > 0
    assert found["random"]["deletion"]["against_random"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"random", "Grad-CAM", "attention, all layers", "attention, last layer"}),
        ({"global_pool": "avg", "lca": False}, {"random", "Grad-CAM", "for and against"}),
    ],
)
def test_every_map_of_the_network_is_put_to_the_test(changes: dict[str, Any], names: set[str]) -> None:
    options: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    options |= {"img_size": (16, 24), "in_chans": 3, "num_classes": 3, "patch_size": 4, **changes}
    model = CeiT(CeiTConfig(**options)).eval()
    images = torch.randn(6, 3, 16, 24)
    found = measured(model, images, model(images).argmax(1))
    assert found.keys() == names
    assert all(0 <= found[name][kind]["area"] <= 1 for name in names for kind in ("deletion", "insertion"))
