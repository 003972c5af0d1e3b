"""What is measured before a run, and that measuring leaves the run as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.conftest import TINY, MakeSession
from torch import Tensor, nn

from ceit.train.config import TrainConfig, WeightAverage
from ceit.train.probe import HIGHEST_RATE, LOWEST_RATE, device_batch_that_fits, learning_rate_range_test
from ceit.train.run import find_learning_rate
from ceit.train.session import Session
from ceit.train.step import train_step


class Narrow(nn.Module):
    """A device on which no more than ``images`` fit."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        network.register_forward_pre_hook(self.check)
        self.images = images

    def check(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")


def weights_of(session: Session) -> dict[str, Tensor]:
    return {key: value.clone() for net in session.candidates().values() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(("fitting", "found"), [(32, None), (31, 16), (9, 8), (1, 1)])
def test_the_batch_that_fits_is_found_by_halving(make_session: MakeSession, fitting: int, found: int | None) -> None:
    said: list[str] = []
    session = make_session(said, device_batch_size="auto", ema=WeightAverage(decay=0.9))
    before = weights_of(session)
    Narrow(session.model, fitting)
    assert device_batch_that_fits(session) == found
    assert all(torch.equal(value, before[key]) for key, value in weights_of(session).items())
    assert any("gradients are accumulated" in line for line in said) == (found is not None)
    session.config = replace(session.config, device_batch_size=found)
    assert train_step(session, *next(session.train_loader.epoch(0)), 0).images == 32


def test_nothing_that_fits_is_an_error(make_session: MakeSession) -> None:
    session = make_session()
    Narrow(session.model, 0)
    with pytest.raises(ValueError, match="not even one image fits into memory"):
        device_batch_that_fits(session)


def test_another_error_is_not_taken_for_a_lack_of_memory(make_session: MakeSession) -> None:
    def fail(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise RuntimeError("a bug")

    session = make_session()
    session.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        device_batch_that_fits(session)


def test_the_range_test_rises_until_the_loss_does_and_puts_everything_back(make_session: MakeSession) -> None:
    session = make_session(ema=WeightAverage(decay=0.9))
    before = weights_of(session)
    found = learning_rate_range_test(session, steps=60)
    assert all(torch.equal(value, before[key]) for key, value in weights_of(session).items())
    assert not session.optimizer.state_dict()["state"]
    ratios = {round(after / rate, 6) for rate, after in zip(found.rates, found.rates[1:], strict=False)}
    assert len(ratios) == 1
    assert LOWEST_RATE == found.rates[0] < found.suggested < HIGHEST_RATE / 10
    assert min(found.losses) < 0.98 * found.losses[0]
    assert found.suggested * 10 in found.rates


def test_the_range_test_leaves_one_file(tmp_path: Path) -> None:
    config = TrainConfig(model="ceit_pico_patch4_32", geometry=TINY, global_batch_size=64, precision="float32")
    found = find_learning_rate(config, "digits", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lr_range_test.json"]
    assert 0 < found.suggested < 1
