"""The average of the weights is timm's, however it is computed."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ceit.train.average import MovingAverage
from ceit.train.config import WeightAverage

MOVED, SKIPPED = torch.tensor(True), torch.tensor(False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).double()


def moved_on(model: nn.Module) -> None:
    """As if a step had been taken."""
    model(torch.randn(5, 3, 4, 4, dtype=torch.float64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("config", [WeightAverage(0.9, False), WeightAverage(0.99), WeightAverage(0.9, True, "copy")])
def test_it_equals_timms(config: WeightAverage) -> None:
    model = network()
    ours = MovingAverage(model, config)
    copied = config.batch_norm == "copy"
    theirs = ModelEmaV3(model, decay=config.decay, use_warmup=config.warmup, exclude_buffers=copied)
    for step in range(1, 12):
        moved_on(model)
        ours.follow(step, MOVED)
        theirs.update(model, step=step)
        torch.testing.assert_close(state(ours.module), state(theirs.module), rtol=1e-13, atol=1e-13)
    assert not torch.equal(ours.module.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_a_skipped_step_moves_nothing() -> None:
    model = network()
    average = MovingAverage(model, WeightAverage(0.9))
    for step in (1, 2):
        moved_on(model)
        average.follow(step, MOVED)
    before, weights = state(average.module), copy.deepcopy(model.state_dict())
    average.follow(3, SKIPPED)
    torch.testing.assert_close(state(average.module), before, rtol=0, atol=0)
    average.begin_again()
    torch.testing.assert_close(state(average.module), weights, rtol=0, atol=0)
