"""Smaller images in the first steps: which, how they are made, and what stays as it is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ceit.model import CeiT
from ceit.train.config import SmallImages
from ceit.train.probe import measured_budget
from ceit.train.run import train
from ceit.train.step import train_step
from tests.train.conftest import SMALL, MakeTrainer, train_until

HALF = SmallImages(scale=0.5, share=0.5)  # the digits have 16 pixels


def sizes(make_trainer: MakeTrainer, steps: int, **options: Any) -> list[tuple[int, ...]]:
    """The sizes of the images that the network saw in each of the first steps, and in a validation behind them."""
    trainer = make_trainer(**options)
    seen: list[tuple[int, ...]] = []
    trainer.learner.model.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[2:])))
    trainer.plan(8)
    batch = next(trainer.train_loader.epoch(0))
    for step in range(steps):
        assert train_step(trainer.learner, *batch, step).skipped is None
    trainer.validate(trainer.learner.model)
    assert seen[-1] == trainer.run.dataset.img_size
    return seen[:steps]


def test_the_first_share_of_the_steps_is_small_and_evaluation_never(make_trainer: MakeTrainer) -> None:
    assert sizes(make_trainer, 8, small_images=HALF) == [(8, 8)] * 4 + [(16, 16)] * 4
    assert sizes(make_trainer, 3, small_images=HALF) == [(8, 8)] * 3  # with validation between them
    assert sizes(make_trainer, 8, small_images=SmallImages(scale=0.75, share=0.3)) == [(12, 12)] * 2 + [(16, 16)] * 6
    assert sizes(make_trainer, 2) == [(16, 16)] * 2
    pooled: dict[str, Any] = {"geometry": {"global_pool": "sum"}, "small_images": HALF}
    assert sizes(make_trainer, 5, **pooled) == [(8, 8)] * 4 + [(16, 16)]


def test_the_time_left_counts_what_a_step_costs(make_trainer: MakeTrainer) -> None:
    """Of eight steps four have a quarter of the pixels; while the head learns alone, a step costs a third."""
    learner = make_trainer(small_images=HALF).learner
    learner.plan(8)
    assert learner.share_done(4, 8) == pytest.approx(1 / 5)
    assert learner.share_done(6, 8) == pytest.approx(3 / 5)
    assert learner.share_done(8, 8) == 1
    learner.head_only_steps = 6
    assert learner.share_done(4, 8) == pytest.approx((4 / 4 / 3) / 3)
    assert learner.share_done(6, 8) == pytest.approx(1 / 3)
    learner.head_only_steps = 2
    assert learner.share_done(4, 8) == pytest.approx((2 / 12 + 2 / 4) / (2 / 12 + 2 / 4 + 4))
    plain = make_trainer().learner
    assert plain.share_done(3, 8) == 3 / 8


def test_a_small_step_is_that_of_a_network_of_the_small_size(make_trainer: MakeTrainer) -> None:
    """Its loss is that of images scaled down and of a position embedding that was resized for good."""
    trainer = make_trainer(small_images=HALF, label_smoothing=0.0)
    images, labels = next(trainer.train_loader.epoch(0))
    whole = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    result = train_step(trainer.learner, images, labels, 0)
    other = make_trainer(label_smoothing=0.0)
    other.learner.model.load_state_dict(whole)
    assert isinstance(other.learner.model, CeiT)
    other.learner.model.set_input_size(8)
    small = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    assert F.cross_entropy(other.learner.model(small), labels).item() == pytest.approx(result.loss, rel=1e-5)
    moved = trainer.learner.model.pos_embed - whole["pos_embed"]
    assert moved.shape == whole["pos_embed"].shape
    assert moved.abs().amin() > 0  # every position of the whole grid got its share of the gradient


@pytest.mark.parametrize("options", [{"grad_checkpointing": True}, {"device_batch_size": 8}, {"precision": "bf16"}])
def test_it_goes_with_what_else_changes_a_step(options: dict[str, Any], make_trainer: MakeTrainer) -> None:
    frozen: dict[str, Any] = {"batch_norm": "frozen", "small_images": HALF}  # the statistics of a part are others
    losses = []
    for more in ({}, options):
        trainer = make_trainer(**frozen, **more)
        batch = next(trainer.train_loader.epoch(0))
        losses.append([train_step(trainer.learner, *batch, step).loss for step in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if "precision" in options else 1e-4)


def test_a_compiled_network_is_compiled_once_for_each_size(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []
    compile_network = torch.compile

    def traced_only(network: Any, **given: Any) -> Any:
        def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return compile_network(network, backend=note, fullgraph=True, **given)

    monkeypatch.setattr(torch, "compile", traced_only)
    assert sizes(make_trainer, 8, small_images=HALF, compile=True) == [(8, 8)] * 4 + [(16, 16)] * 4
    assert len(graphs) == 2  # validation computes with the network as it is written


def test_interrupted_on_both_sides_of_the_boundary_a_run_has_the_same_bits(tmp_path: Path) -> None:
    config = replace(SMALL, small_images=SmallImages(scale=0.5, share=0.4), limit_batches=5, epochs=3)  # six steps
    train(config, "digits", tmp_path / "whole")
    for step in (5, 6, 7):
        train_until(step, config, tmp_path / "parts")
    train(config, "digits", tmp_path / "parts", resume="auto")
    whole, parts = (load_file(tmp_path / run / "checkpoints/step_00000015.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("image_hw", "scale", "small_hw"),
    [
        ((32, 32), 0.75, (24, 24)),
        ((28, 28), 0.75, (20, 20)),  # whole patches of 4 pixels
        ((16, 24), 0.5, (8, 12)),
        ((4, 32), 0.5, (4, 16)),
        ((4, 4), 0.5, None),  # one patch cannot be smaller
        ((32, 32), 1.0, None),
    ],
)
def test_sizes_are_whole_patches(image_hw: tuple[int, int], scale: float, small_hw: tuple[int, int] | None) -> None:
    assert SmallImages(scale=scale).size(image_hw, 4) == small_hw


def test_oblong_images_are_scaled_on_both_sides(make_trainer: MakeTrainer) -> None:
    assert sizes(make_trainer, 1, img_size=(16, 24), small_images=HALF) == [(8, 12)]


def test_small_and_full_steps_are_measured_for_a_time_budget(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that only the images move."""
    now = [0.0]

    def look_at_the_image(_: Any, images: tuple[torch.Tensor]) -> None:
        now[0] += {8: 1.0, 16: 4.0}[images[0].shape[-1]]

    trainer = make_trainer(small_images=SmallImages(scale=0.5, share=0.4), epochs=2)
    trainer.learner.model.register_forward_pre_hook(look_at_the_image)
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr("ceit.train.probe.time", clock)
    budget = measured_budget(600.0, 600.0, trainer)
    assert (budget.step_seconds, budget.first_cost) == (4.0, 0.25)
    assert budget.first_steps(100) == 40
