"""Options that change the speed or the memory of a step, and nothing else."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from ceit.train.config import TrainConfig
from ceit.train.step import train_step
from tests.train.conftest import MakeTrainer


def after_steps(make_trainer: MakeTrainer, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of three steps."""
    trainer = make_trainer(**options)
    images, labels = next(iter(trainer.train_loader.epoch(0)))
    losses = [train_step(trainer.learner, images, labels, step).loss for step in range(3)]
    return losses, {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}


def test_a_compiled_step_is_the_same_step(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, weights = after_steps(make_trainer)
    calls: list[dict[str, Any]] = []
    compile_network = torch.compile

    def traced_only(network: Any, **options: Any) -> Any:
        calls.append(options)
        return compile_network(network, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced_only)
    compiled_losses, compiled_weights = after_steps(make_trainer, compile=True)
    assert calls == [{"dynamic": False}]
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    assert compiled_weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.allclose(compiled_weights[name], tensor, atol=2e-3), name


def test_a_checkpointed_step_is_the_same_step(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, weights = after_steps(make_trainer)
    calls: list[object] = []
    from ceit.model import ceit as network

    checkpoint = network.checkpoint

    @functools.wraps(checkpoint)
    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(network, "checkpoint", counted)
    again_losses, again_weights = after_steps(make_trainer, grad_checkpointing=True)
    assert len(calls) == 3 * 2  # steps and blocks
    assert again_losses == pytest.approx(losses, rel=1e-6)
    assert all(torch.allclose(again_weights[name], tensor, atol=1e-5) for name, tensor in weights.items())


def test_what_does_not_go_with_compiling() -> None:
    with pytest.raises(ValueError, match="choose speed or memory"):
        TrainConfig(compile=True, grad_checkpointing=True)
