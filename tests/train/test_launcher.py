"""A launcher says how many processes there are, and where; what is computed is for the options to say."""

import pytest
import torch
from torch import Tensor

from ceit.train.config import TrainConfig, WeightAverage
from ceit.train.distributed import make_accelerator
from ceit.train.step import train_step
from tests.train.conftest import MakeTrainer


@pytest.mark.parametrize(
    ("name", "value", "options", "sentence"),
    [
        (
            "MIXED_PRECISION",
            "bf16",
            {"precision": "float32"},
            "mixed precision bf16, the options for precision float32",
        ),
        ("MIXED_PRECISION", "fp16", {"precision": "bf16"}, "mixed precision fp16, the options for precision bf16"),
        ("MIXED_PRECISION", "fp8", {"precision": "bf16"}, "--precision alone decides, so set the launcher's mixed"),
        ("MIXED_PRECISION", "bf16", {}, "mixed precision bf16, the options for precision auto"),
        ("DYNAMO_BACKEND", "INDUCTOR", {}, "the dynamo backend inductor, the options for compile auto"),
        (
            "DYNAMO_BACKEND",
            "AOT_EAGER",
            {"compile": True},
            "the dynamo backend aot_eager, the options for compile true",
        ),
        ("GRADIENT_ACCUMULATION_STEPS", "4", {}, "asks for 4 gradient accumulation steps"),
        ("USE_FSDP", "true", {}, "asks for FSDP, but this run shares out its work by itself"),
        ("USE_DEEPSPEED", "true", {}, "the launcher asks for DeepSpeed"),
        ("USE_MEGATRON_LM", "true", {}, "the launcher asks for Megatron-LM"),
        ("USE_PARALLELISM_CONFIG", "true", {}, "the launcher asks for a parallelism configuration"),
    ],
)
def test_m2_a_launcher_that_asks_for_another_computation_is_refused(
    name: str, value: str, options: dict, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(ValueError, match=sentence):
        make_accelerator(TrainConfig(**options))


def two_steps(make_trainer: MakeTrainer, precision: str) -> tuple[dict[str, Tensor], list[float]]:
    trainer = make_trainer(precision=precision, ema=WeightAverage(decay=0.9))
    assert trainer.accelerator.mixed_precision == "no"
    assert trainer.accelerator.scaler is None
    assert "forward" not in vars(trainer.learner.network)  # accelerate's own autocast would stand here
    for step, batch in zip(range(2), trainer.train_loader.epoch(0), strict=False):
        train_step(trainer.learner, *batch, step)
    losses = [trainer.validate(network).loss for network in trainer.learner.candidates().values()]
    return {key: value.clone() for key, value in trainer.learner.model.state_dict().items()}, losses


@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
def test_m2_a_launcher_that_says_the_same_changes_nothing(
    precision: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as launcher:
        launcher.setenv("ACCELERATE_MIXED_PRECISION", "no" if precision == "float32" else precision)
        launcher.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
        launcher.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
        launcher.setenv("ACCELERATE_USE_FSDP", "false")
        weights, losses = two_steps(make_trainer, precision)
    again, again_losses = two_steps(make_trainer, precision)
    assert losses == again_losses
    assert all(torch.equal(value, weights[key]) for key, value in again.items())
