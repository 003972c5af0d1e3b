"""One step: what moves, what does not when something is not finite, and what parts of a batch add up to."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ceit.train.config import TrainConfig, WeightAverage
from ceit.train.learner import Learner
from ceit.train.objective import Targets
from ceit.train.run import train
from ceit.train.step import StepResult, train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import TINY, MakeTrainer


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that a step may move."""
    found = {
        f"{kind}.{key}": value
        for kind, net in trainer.learner.candidates().items()
        for key, value in net.state_dict().items()
    }
    for index, entries in trainer.learner.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    return {key: value.clone() for key, value in found.items()}


def batch_of(trainer: Trainer) -> tuple[Tensor, Tensor]:
    return next(trainer.train_loader.epoch(0))


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """What has moved; a state of the optimizer begins with zeros."""
    keys = before.keys() | after.keys()
    return {key for key in keys if not torch.equal(before.get(key, torch.zeros_like(after[key])), after[key])}


@pytest.fixture
def trainer(make_trainer: MakeTrainer) -> Trainer:
    """Behind its first step, so that the optimizer has a state."""
    trainer = make_trainer(ema=WeightAverage(decay=0.9))
    assert train_step(trainer.learner, *batch_of(trainer), 0).skipped is None
    return trainer


def test_a_step_moves_weights_average_statistics_and_optimizer(trainer: Trainer) -> None:
    before = state_of(trainer)
    result = train_step(trainer.learner, *batch_of(trainer), 1)
    assert (result.images, result.skipped) == (32, None)
    assert 0 < result.loss < 10
    moved = differing(before, state_of(trainer))
    for key in ("raw.head.weight", "ema.head.weight", "raw.patch_embed.norm.running_mean", "optimizer.0.exp_avg"):
        assert key in moved


def test_an_image_that_is_not_finite_skips_the_step_and_nothing_moves(trainer: Trainer) -> None:
    before = state_of(trainer)
    images, labels = batch_of(trainer)
    images[3] = math.nan
    result = train_step(trainer.learner, images, labels, 1)
    assert (result.skipped, result.counts) == ("the images", True)
    assert differing(before, state_of(trainer)) == set()
    assert all(parameter.grad is None for parameter in trainer.learner.model.parameters())


def test_the_module_that_first_is_not_finite_is_named(trainer: Trainer) -> None:
    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * math.inf

    before = state_of(trainer)
    trainer.learner.model.get_submodule("blocks.1.attn.proj").register_forward_hook(spoil)
    assert train_step(trainer.learner, *batch_of(trainer), 1).skipped == "module blocks.1.attn.proj"
    assert differing(before, state_of(trainer)) == set()


def test_a_gradient_that_is_not_finite_is_named_though_the_loss_is(trainer: Trainer) -> None:
    before = state_of(trainer)
    trainer.learner.model.get_parameter("blocks.0.norm1.weight").register_hook(lambda gradient: gradient * math.nan)
    result = train_step(trainer.learner, *batch_of(trainer), 1)
    assert result.skipped == "gradient of blocks.0.norm1.weight"
    assert math.isfinite(result.loss)
    assert differing(before, state_of(trainer)) == set()


@pytest.mark.parametrize("size", [8, 12, 31])
def test_parts_of_a_batch_add_up_to_it(make_trainer: MakeTrainer, size: int) -> None:
    """With BatchNorm frozen, as its statistics are those of a part."""
    options: dict[str, Any] = {"precision": "float64", "batch_norm": "frozen", "clip_norm": 1.0}
    results: list[StepResult] = []
    states = []
    for device_batch_size in (None, size):
        trainer = make_trainer(device_batch_size=device_batch_size, **options)
        results.append(train_step(trainer.learner, *batch_of(trainer), 0))
        states.append(state_of(trainer))
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-12)
    assert results[0].right == results[1].right
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-9)


def test_random_numbers_are_a_function_of_the_step(make_trainer: MakeTrainer) -> None:
    losses = []
    for before in (0, 3):
        trainer = make_trainer(geometry={"drop_path_rate": 0.5})
        torch.manual_seed(before)
        losses.append(train_step(trainer.learner, *batch_of(trainer), 7).loss)
    trainer = make_trainer(geometry={"drop_path_rate": 0.5})
    other = train_step(trainer.learner, *batch_of(trainer), 8).loss
    assert losses[0] == losses[1] != other


def test_frozen_statistics_stay(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(batch_norm="frozen")
    before = state_of(trainer)
    train_step(trainer.learner, *batch_of(trainer), 0)
    assert not any("running" in key for key in differing(before, state_of(trainer)) if key.startswith("raw"))
    assert "raw.head.weight" in differing(before, state_of(trainer))


def test_m12_what_stays_in_float32_under_bf16_on_a_cpu_is_what_the_page_says(
    make_trainer: MakeTrainer, repository: Path
) -> None:
    trainer = make_trainer(precision="bf16")
    found: dict[str, set[torch.dtype]] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.setdefault(type(module).__name__, set()).add(output.dtype)

    for module in trainer.learner.model.modules():
        module.register_forward_hook(note)
    loss = trainer.learner.objective.loss

    def noted_loss(logits: Tensor, targets: Targets) -> Tensor:
        found["loss"] = {logits.dtype}
        return loss(logits, targets)

    object.__setattr__(trainer.learner.objective, "loss", noted_loss)
    train_step(trainer.learner, *batch_of(trainer), 0)
    assert {parameter.dtype for parameter in trainer.learner.model.parameters()} == {torch.float32}
    assert found["EncoderBlock"] == found["LayerNorm"] == found["loss"] == {torch.float32}
    assert found["Conv2d"] == found["Linear"] == found["BatchNorm2d"] == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ones(2, 2, dtype=torch.bfloat16).softmax(-1).dtype == torch.bfloat16
    page = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    assert "Weights, the sum that runs through the blocks, LayerNorm and the loss stay in float32" in page
    assert "BatchNorm takes and gives bf16, and on a CPU so does the softmax of attention" in page


def test_half_precision_scales_the_loss_and_an_overflow_is_no_fault(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(precision="fp16")
    assert trainer.learner.autocast_dtype == torch.float16
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = state_of(trainer)
    result = train_step(trainer.learner, *batch_of(trainer), 0)
    assert result.skipped is not None
    assert math.isfinite(result.loss)
    assert not result.counts
    assert differing(before, state_of(trainer)) == set()
    steps = 1
    while train_step(trainer.learner, *batch_of(trainer), steps).skipped is not None:
        steps += 1
    assert 2.0 <= trainer.learner.scaler.get_scale() < 2.0**40
    assert differing(before, state_of(trainer))


def test_a_run_stops_after_too_many_skipped_steps_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "run"
    options: dict[str, Any] = {
        "model": "ceit_pico_patch4_32",
        "geometry": TINY,
        "epochs": 3,
        "global_batch_size": 128,
        "precision": "float32",
        "max_skipped_steps": 3,
    }
    said: list[str] = []

    def spoil_after_the_first_epoch(state: dict[str, Any]) -> None:
        if state.get("event") == "epoch":
            spoilt.append(state["epoch"])

    spoilt: list[int] = []
    step = train_step

    def spoiling(learner: Learner, images: Tensor, labels: Tensor, number: int) -> StepResult:
        return step(learner, images * math.nan if spoilt else images, labels, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ceit.train.trainer.train_step", spoiling)
        with pytest.raises(ValueError, match=r"3 steps in a row up to step 13 had no finite loss or gradient"):
            train(TrainConfig(**options), "digits", output, say=said.append, show=spoil_after_the_first_epoch)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step_00000010.safetensors"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    skipped = [(line["step"], line["not_finite"]) for line in lines if line["event"] == "skipped"]
    assert skipped == [(11, "the images"), (12, "the images"), (13, "the images")]
    assert "step 11 was skipped: the images is not finite" in said
    assert train(TrainConfig(**options), "digits", output, resume="auto").test.images == 360


def test_parts_of_a_batch_are_even(make_trainer: MakeTrainer) -> None:
    """A rest of one image would have BatchNorm follow that image alone."""
    trainer, sizes = make_trainer(device_batch_size=31), list[int]()
    trainer.learner.model.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    train_step(trainer.learner, *batch_of(trainer), 0)
    assert sizes == [16, 16]
