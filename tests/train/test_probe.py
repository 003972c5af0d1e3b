"""What is measured before a run, and that measuring leaves the run as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from torch import Tensor, nn

import ceit
from ceit.cli.train import print_range_test
from ceit.data.preprocessing import Preprocessing
from ceit.model import CeiT
from ceit.train.config import Distillation, Mixing, TrainConfig, WeightAverage
from ceit.train.objective import Targets
from ceit.train.probe import HIGHEST_RATE, LOWEST_RATE, RangeTest, device_batch_that_fits, learning_rate_range_test
from ceit.train.run import find_learning_rate, train
from ceit.train.step import train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import SMALL, TINY, MakeTrainer


class Narrow(nn.Module):
    """A device on which no more than ``images`` fit."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        network.register_forward_pre_hook(self.check)
        self.images = images

    def check(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {
        key: value.clone() for net in trainer.learner.candidates().values() for key, value in net.state_dict().items()
    }


@pytest.mark.parametrize(("fitting", "found"), [(32, None), (31, 16), (9, 8), (1, 1)])
def test_the_batch_that_fits_is_found_by_halving(make_trainer: MakeTrainer, fitting: int, found: int | None) -> None:
    said: list[str] = []
    trainer = make_trainer(said, device_batch_size="auto", ema=WeightAverage(decay=0.9))
    before = weights_of(trainer)
    Narrow(trainer.learner.model, fitting)
    assert device_batch_that_fits(trainer) == found
    assert all(torch.equal(value, before[key]) for key, value in weights_of(trainer).items())
    assert any("gradients are accumulated" in line for line in said) == (found is not None)
    trainer.take(replace(trainer.run, config=replace(trainer.run.config, device_batch_size=found)))
    assert train_step(trainer.learner, *next(trainer.train_loader.epoch(0)), 0).images == 32


class Room:
    """A device with room for so many images, where the optimizer's state takes as much as ``state`` of them."""

    def __init__(self, trainer: Trainer, images: int, state: int) -> None:
        self.trainer, self.images, self.state = trainer, images, state
        networks = (
            [trainer.learner.model]
            if trainer.learner.objective.teacher is None
            else [trainer.learner.objective.teacher.network]
        )
        for network in networks:
            network.register_forward_pre_hook(self.check)

    def check(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) + (self.state if self.trainer.learner.optimizer.state_dict()["state"] else 0) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")


@pytest.mark.parametrize("is_taught", [False, True])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_m10_a_batch_fits_with_optimizer_teacher_and_mixing_and_all_is_put_back(
    is_taught: bool, precision: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Of 32 images, 24 fit beside nothing, and 8 beside the optimizer's state."""
    names = [str(digit) for digit in range(10)]
    teacher = ceit.create_model("ceit_pico_patch4_32", num_classes=10, in_chans=1, img_size=32, depth=2)
    ceit.save_checkpoint(
        tmp_path / "t.safetensors", teacher, class_names=names, preprocessing=Preprocessing((0.3,), (0.35,))
    )
    taught = Distillation("ceit_pico_patch4_32", str(tmp_path / "t.safetensors")) if is_taught else Distillation()
    trainer = make_trainer(
        device_batch_size="auto",
        precision=precision,
        distillation=taught,
        mixing=Mixing(mixup_alpha=0.8),
        ema=WeightAverage(decay=0.9),
    )
    before, scale = weights_of(trainer), trainer.learner.scaler.get_scale()
    mixed: list[torch.Size] = []
    targets = trainer.learner.objective.targets

    def noted(images: Tensor, labels: Tensor) -> Targets:
        mixed.append(labels.shape)
        return targets(images, labels)

    object.__setattr__(trainer.learner.objective, "targets", noted)
    Room(trainer, 24, 16)
    assert device_batch_that_fits(trainer) == 8
    assert set(mixed) == {(size, 10) for size in (32, 16, 8)}
    assert all(torch.equal(value, before[key]) for key, value in weights_of(trainer).items())
    assert trainer.learner.optimizer.state_dict()["state"] == {}
    assert trainer.learner.scaler.get_scale() == scale
    assert all(parameter.grad is None for parameter in trainer.learner.model.parameters())


def test_m10_a_resumed_run_keeps_the_batch_that_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, epochs=1, device_batch_size="auto", limit_batches=2)
    said: list[str] = []
    for resume, found in ((None, 8), ("auto", 16)):
        monkeypatch.setattr("ceit.train.run.device_batch_that_fits", lambda trainer, found=found: found)
        train(config, "digits", tmp_path / "run", resume=resume, say=said.append)
        saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
        assert saved["device_batch_size"] == 8
    assert len([line for line in said if line.startswith("BatchNorm sees 8 images")]) == 2
    assert not any("device_batch_size was" in line for line in said)


def test_nothing_that_fits_is_an_error(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    Narrow(trainer.learner.model, 0)
    with pytest.raises(ValueError, match="not even one image fits into memory"):
        device_batch_that_fits(trainer)


def test_another_error_is_not_taken_for_a_lack_of_memory(make_trainer: MakeTrainer) -> None:
    def fail(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise RuntimeError("a bug")

    trainer = make_trainer()
    trainer.learner.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        device_batch_that_fits(trainer)


def test_the_range_test_rises_until_the_loss_does_and_puts_everything_back(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(ema=WeightAverage(decay=0.9))
    before = weights_of(trainer)
    found = learning_rate_range_test(trainer, steps=60)
    assert all(torch.equal(value, before[key]) for key, value in weights_of(trainer).items())
    assert not trainer.learner.optimizer.state_dict()["state"]
    ratios = {round(after / rate, 6) for rate, after in zip(found.rates, found.rates[1:], strict=False)}
    assert len(ratios) == 1
    assert found.suggested is not None
    assert LOWEST_RATE == found.rates[0] < found.suggested < HIGHEST_RATE / 10
    assert min(found.losses) < 0.98 * found.losses[0]
    assert found.suggested * 10 in found.rates


def test_the_suggested_rate_is_the_option_that_gives_the_rate_found(make_trainer: MakeTrainer) -> None:
    as_it_is = learning_rate_range_test(make_trainer(), steps=60)
    scaled = learning_rate_range_test(make_trainer(lr_base_size=128, lr_scaling="sqrt"), steps=60)
    assert scaled.rates == as_it_is.rates
    assert as_it_is.suggested is not None
    assert scaled.suggested == pytest.approx(2 * as_it_is.suggested)  # batches of 32: half the rate in training


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([2.0] * 30, "the loss does not fall at any of these rates"),
        ([2.0, 1.5, *[1.6] * 28], "the loss does not fall at any of these rates"),
        ([2.0] * 20 + [1.97] + [2.0] * 9, "the loss does not fall at any of these rates"),
        ([2.0 - 0.01 * step for step in range(30)], "the loss still falls at 1.0e-01, behind which it breaks"),
    ],
)
def test_losses_that_show_no_rate_suggest_none(losses: list[float], why: str) -> None:
    assert (RangeTest([1e-1] * 30, losses, None).why_none or "").startswith(why)
    assert RangeTest([1e-1] * 30, [2.0] * 15 + [1.5] + [1.9] * 14, None).why_none is None


def test_a_range_test_at_whose_rates_nothing_is_learnt_suggests_nothing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ceit.train.probe.HIGHEST_RATE", 1e-6)
    found = learning_rate_range_test(make_trainer(), steps=20)
    assert (len(found.rates), found.suggested) == (20, None)
    print_range_test(found, Path("rates"))
    assert f"no peak_lr is suggested: {found.why_none}" in capsys.readouterr().out


def test_the_range_test_leaves_one_file_and_the_run_may_follow(tmp_path: Path) -> None:
    config = TrainConfig(model="ceit_pico_patch4_32", geometry=TINY, global_batch_size=64, precision="float32")
    found = find_learning_rate(config, "digits", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lr_range_test.json"]
    assert found.suggested is not None
    assert 0 < found.suggested < 1
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty; name another"):
        train(replace(config, epochs=1, limit_batches=2), "digits", tmp_path / "run")
    (tmp_path / "run" / "notes.txt").unlink()
    train(replace(config, epochs=1, limit_batches=2), "digits", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "lr_range_test.json").read_text())["suggested"] == found.suggested


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A device on which so many ``images`` can be trained on at once."""
    room, forward = {"images": 16}, CeiT.forward

    def narrow(network: CeiT, images: Tensor) -> Tensor:
        if network.training and len(images) > room["images"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return forward(network, images)

    monkeypatch.setattr(CeiT, "forward", narrow)
    return room


def test_m10_a_step_that_does_not_fit_says_how_to_start_again(room: dict[str, int], tmp_path: Path) -> None:
    advice = "out of memory: 32 images at once do not fit; start again with {}--device-batch-size auto, which finds"
    config, run = replace(SMALL, epochs=1, limit_batches=2), tmp_path / "run"
    with pytest.raises(ValueError, match=advice.format("--resume auto ")):
        train(config, "digits", run)
    train(replace(config, device_batch_size="auto"), "digits", run, resume="auto")
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["device_batch_size"] == 16
    for begin in (
        lambda: find_learning_rate(config, "digits", tmp_path / "rates"),
        lambda: train(config, "digits", tmp_path / "rates", time_budget_seconds=60.0),
    ):
        with pytest.raises(ValueError, match=advice.format("")):
            begin()
    assert find_learning_rate(replace(config, device_batch_size="auto"), "digits", tmp_path / "rates").losses
    room["images"] = 0
    with pytest.raises(ValueError, match="out of memory: not even one image at once fits, take a smaller model or"):
        train(replace(config, device_batch_size=1), "digits", tmp_path / "none")


def test_m10_a_lack_of_the_machines_own_memory_is_told_alike(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    batch = next(trainer.train_loader.epoch(0))
    words = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried",  # on Windows
        "Invalid buffer size: 19.38 GiB",  # on Apple's GPUs
    )
    lack = ValueError
    cases = [(error, lack) for error in (*map(RuntimeError, words), MemoryError())]
    for raised, told in (*cases, (RuntimeError("other"), RuntimeError)):
        monkeypatch.setattr(CeiT, "forward", Mock(side_effect=raised))
        with pytest.raises(ValueError, match="not even one image fits") if told is lack else pytest.raises(told):
            device_batch_that_fits(trainer)
        with pytest.raises(told) as found:
            train_step(trainer.learner, *batch, 0)
        assert ("out of memory: 32 images at once do not fit" in str(found.value)) == (told is lack)


def test_m10_a_step_that_no_longer_fits_says_how_to_go_on(room: dict[str, int], tmp_path: Path) -> None:
    def fill(state: dict[str, object]) -> None:
        room["images"] = 16 if state.get("step") == 2 else room["images"]

    room["images"] = 32
    config = replace(SMALL, epochs=1, limit_batches=3, checkpoint_every_steps=1)
    sentence = "32 images at once do not fit; go on from step_00000002.* with --resume auto --device-batch-size 16"
    with pytest.raises(ValueError, match=sentence):
        train(config, "digits", tmp_path / "run", show=fill)
    with pytest.raises(ValueError, match=sentence):  # what auto found at the start stays
        train(replace(config, device_batch_size="auto"), "digits", tmp_path / "run", resume="auto")
    train(replace(config, device_batch_size=16), "digits", tmp_path / "run", resume="auto")


def test_a_step_that_fails_behind_its_gradients_halves_the_batch_in_fp16_too(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is often full in the first step of the optimizer, which makes its state."""
    trainer, calls = make_trainer(precision="fp16", device_batch_size="auto", optimizer="sgd"), list[int]()
    step = trainer.learner.optimizer.step

    def fail_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return step(*arguments)

    monkeypatch.setattr(trainer.learner.optimizer, "step", fail_once)
    scale = trainer.learner.scaler.get_scale()
    assert device_batch_that_fits(trainer) == 16
    assert trainer.learner.scaler.get_scale() == scale


def test_a_loss_scale_that_is_too_large_ends_no_range_test(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(precision="fp16")
    trainer.learner.scaler.load_state_dict(trainer.learner.scaler.state_dict() | {"scale": 2.0**40})
    found = learning_rate_range_test(trainer, steps=40)
    assert found.losses
    assert len(found.losses) < 40, "the first steps overflow, and are none"
