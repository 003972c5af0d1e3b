"""Only the head learns at first, then everything: what moves when, and what a run is that was interrupted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ceit.cli.train import parse
from ceit.train.config import WeightAverage
from ceit.train.run import train
from ceit.train.step import train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import SMALL, MakeTrainer, train_until

HEAD = {"head.weight", "head.bias"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six of the ten digits."""
    output = tmp_path_factory.mktemp("runs") / "six"
    train(replace(SMALL, epochs=1, classes=tuple("012345"), limit_batches=5), "digits", output)
    return output


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def options(pretrained: Path, **more: Any) -> dict[str, Any]:
    geometry = {"drop_path_rate": 0.3}
    return {"initial_checkpoint": str(pretrained), "geometry": geometry, "freeze_epochs": 2 / 42} | more  # two steps


def test_at_first_the_head_moves_and_nothing_else_then_everything(pretrained: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**options(pretrained, ema=WeightAverage(decay=0.9), clip_norm=1.0))
    learner, batch = trainer.learner, next(trainer.train_loader.epoch(0))
    assert learner.head_only_steps == 2
    states = [weights_of(trainer)]
    for step in range(3):
        assert train_step(learner, *batch, step).skipped is None
        states.append(weights_of(trainer))
        if step < 2:
            has_state = {id(parameter) for parameter in learner.optimizer.state}
            assert has_state == {id(parameter) for parameter in learner.model.get_submodule("head").parameters()}
            assert {name for name, p in learner.model.named_parameters() if p.requires_grad} == HEAD
            assert learner.average is not None
            assert moved(states[0], learner.average.module.state_dict()) == HEAD
    assert moved(states[0], states[1]) == moved(states[1], states[2]) == HEAD
    everything = moved(states[2], states[3])
    assert {"head.weight", "pos_embed", "patch_embed.norm.running_mean", "blocks.0.attn.qkv.weight"} <= everything


def test_what_is_frozen_computes_as_in_evaluation(pretrained: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**options(pretrained, label_smoothing=0.0))
    images, labels = next(trainer.train_loader.epoch(0))
    with torch.no_grad():
        expected = F.cross_entropy(trainer.learner.model.eval()(images), labels).item()
    trainer.learner.start_training()
    assert train_step(trainer.learner, images, labels, 0).loss == pytest.approx(expected, rel=1e-6)
    trainer.learner.start_training()  # as each epoch does
    assert not trainer.learner.model.training
    train_step(trainer.learner, images, labels, 2)
    assert trainer.learner.model.training


def test_layers_that_learn_more_slowly_do_so_behind_the_boundary_too(
    pretrained: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(**options(pretrained, layer_decay=0.5, optimizer="muon"))
    batch = next(trainer.train_loader.epoch(0))
    for step in range(3):
        train_step(trainer.learner, *batch, step)
    assert trainer.learner.learning_rate() == pytest.approx(trainer.run.config.peak_lr)  # no warm-up here, so the peak
    rates = {group["lr"] for group in trainer.learner.optimizer.param_groups}
    assert {round(rate / max(rates), 6) for rate in rates} == {1, 0.5, 0.25, 0.125}


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_interrupted_on_both_sides_of_the_boundary_and_on_it_a_run_has_the_same_bits(
    pretrained: Path, tmp_path: Path, precision: Any
) -> None:
    config = replace(
        SMALL,
        initial_checkpoint=str(pretrained),
        precision=precision,
        limit_batches=4,
        epochs=3,
        freeze_epochs=1.5,  # six steps
        layer_decay=0.7,
        batch_norm_bias_lr_factor=4.0,
    )
    train(config, "digits", tmp_path / "whole")
    for step in (5, 6, 7, 10):
        train_until(step, config, tmp_path / "parts")
    train(config, "digits", tmp_path / "parts", resume="auto")
    for name in ("model.safetensors", "checkpoints/step_00000012.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert not moved(whole, parts)


def test_a_head_that_alone_learns_to_the_end_leaves_all_else_as_it_was(pretrained: Path, tmp_path: Path) -> None:
    config = replace(SMALL, initial_checkpoint=str(pretrained), limit_batches=4, freeze_epochs=1000.0)
    train(config, "digits", tmp_path / "run")
    before, after = (load_file(run / "model.safetensors") for run in (pretrained, tmp_path / "run"))
    assert {name for name in before if name not in HEAD and not torch.equal(before[name], after[name])} == set()


@pytest.mark.usefixtures("level")
def test_early_stopping_waits_until_all_layers_learn(pretrained: Path, tmp_path: Path) -> None:
    patient = replace(SMALL, initial_checkpoint=str(pretrained), limit_batches=1, early_stopping_epochs=2)
    for frozen, epochs, last in ((4.5, 9, 7), (9.0, 9, 3)):  # the second never thaws
        run = train(replace(patient, epochs=epochs, freeze_epochs=frozen), "digits", tmp_path / f"{frozen}")
        assert json.loads((run.output / "test.json").read_text(encoding="utf-8"))["epochs"] == last


def test_a_time_budget_that_ends_before_the_thaw_is_said(pretrained: Path, make_trainer: MakeTrainer) -> None:
    said: list[str] = []
    trainer = make_trainer(said, **options(pretrained))
    said.clear()
    trainer.warn_of_frozen_steps()
    assert not said
    trainer.plan(2)
    trainer.warn_of_frozen_steps()
    assert said == [
        "all 2 steps fall into freeze_epochs 0.047619: the head alone learns; lower that, or give more time"
    ]


def test_a_trial_of_everything_takes_a_step_of_the_head_and_one_of_all() -> None:
    words = ["--data", "photos", "--output", "run", "--recipe", "photos_finetune", "--freeze-epochs", "3"]
    assert parse([*words, "--fast-dev-run"])[0].freeze_steps(2) == 1


def test_a_compiled_network_thaws(pretrained: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_network = torch.compile

    def traced_only(network: Any, **given: Any) -> Any:
        return compile_network(network, backend="aot_eager", fullgraph=True, **given)

    monkeypatch.setattr(torch, "compile", traced_only)
    found = []
    for compiled in (False, True):
        trainer = make_trainer(**options(pretrained, compile=compiled, optimizer="sgd"))
        batch = next(trainer.train_loader.epoch(0))
        losses = [train_step(trainer.learner, *batch, step).loss for step in range(4)]
        found.append((losses, weights_of(trainer)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-3)
