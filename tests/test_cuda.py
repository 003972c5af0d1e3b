"""What only a CUDA device can show: the same answers as on the CPU, and training on it. Run with ``-m gpu``."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ceit
from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import make_loader
from ceit.data.preprocessing import IMAGENET
from ceit.data.splits import ArraySplit, from_pixels
from ceit.evaluation.metrics import evaluate
from ceit.inference.backend import prepare
from ceit.inference.device import autocast_dtype, default_device
from ceit.train.config import Mixing, WeightAverage
from ceit.train.distributed import make_accelerator
from ceit.train.interruption import Interrupted
from ceit.train.probe import device_batch_that_fits
from ceit.train.resolve import resolve
from ceit.train.run import train
from ceit.train.run_directory import RunDirectory
from ceit.train.step import train_step
from ceit.train.trainer import Trainer
from tests.train.conftest import SMALL

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
IMPORTS_OF_COMPILE = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
"""Inductor of torch 2.11 imports what torch itself has deprecated."""


@pytest.fixture
def exact_products() -> Iterator[None]:
    """torch's own convolutions: cuDNN's round float32 to TF32 unless they are told not to."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


def loss_of_each_step(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["event"] == "step"]


def test_it_is_the_device_that_is_taken() -> None:
    assert default_device().type == "cuda"
    assert autocast_dtype("auto", CUDA) == torch.bfloat16


@pytest.mark.parametrize("name", ["ceit_pico_patch4_32", "ceit_tiny_patch16_224"])
@pytest.mark.usefixtures("exact_products")
def test_logits_and_gradients_are_those_of_the_cpu(name: str) -> None:
    model = ceit.create_model(name, num_classes=10).train()
    images = torch.randn(4, 3, *model.config.image_hw)
    found: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        logits = model(images.to(device))
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found[device] = [value.detach().cpu().double() for value in (logits, *gradients)]
    assert len(found["cpu"]) == len(found["cuda"]) > 50
    largest = max(value.abs().max() for value in found["cpu"][1:])
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * max(theirs.abs().max(), 1e-3 * largest)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "augmentation",
    [
        None,
        Augmentation(translate=4, cutout=8, brightness=0.2),
        Augmentation(crop_scale=(0.3, 1.0), random_erasing=0.5, repeats=2),
    ],
)
def test_batches_are_those_of_the_cpu_to_the_bit(augmentation: Augmentation | None, workers: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    split = ArraySplit(from_pixels(pixels), torch.arange(50))
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for device in (torch.device("cpu"), CUDA):
        loader = make_loader(
            split,
            batch_size=8,
            img_size=(32, 32),
            preprocessing=IMAGENET,
            augmentation=augmentation,
            shuffle=True,
            workers=workers,
            device=device,
        )
        batches = []
        for images, labels in loader.epoch(0):
            assert (images.device.type, labels.device.type) == (device.type, device.type)
            torch.ones(2000, 2000, device=CUDA).matrix_power(9)  # a step that still computes
            batches.append((images.cpu(), labels.cpu()))
        found.append(batches)
    for ours, theirs in zip(*found, strict=True):
        assert all(map(torch.equal, ours, theirs))


@IMPORTS_OF_COMPILE
@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [("eager", "float32", 1e-4), ("eager", "bf16", 5e-2), ("compile", "bf16", 5e-2)],
)
@pytest.mark.usefixtures("exact_products")
def test_a_prepared_network_answers_as_the_model_on_the_cpu(backend: str, precision: str, tolerance: float) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=10).eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    network = prepare(model.to(CUDA), backend, precision, image_shape=(3, 32, 32), batch_size=8)
    assert (network(images).cpu() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.usefixtures("exact_products")
def test_training_learns_and_the_cpu_agrees_on_what_was_learnt(precision: Any, tmp_path: Path) -> None:
    result = train(replace(SMALL, precision=precision, epochs=4), "digits", tmp_path / "run")
    assert next(result.model.parameters()).device.type == "cuda"
    assert result.test.top1_percent > 40  # chance is 10
    model = ceit.load_checkpoint(tmp_path / "run")
    data = result.dataset
    loader = make_loader(data.test, batch_size=60, img_size=data.img_size, preprocessing=data.preprocessing)
    on_cpu = evaluate(model, loader, class_names=data.class_names, device="cpu")
    assert on_cpu.top1_percent == pytest.approx(result.test.top1_percent, abs=0.0 if precision == "float32" else 1.5)


def test_a_deterministic_run_resumed_equals_one_uninterrupted(tmp_path: Path) -> None:
    config = replace(SMALL, log_every_steps=1, deterministic=True)

    def interrupt(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 53:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(config, "digits", tmp_path / "whole")
    with pytest.raises(Interrupted, match=r"saved step_00000053"):
        train(config, "digits", tmp_path / "run", show=interrupt)
    resumed = train(config, "digits", tmp_path / "run", resume="auto")
    assert loss_of_each_step(resumed.output) == loss_of_each_step(whole.output)
    ours, theirs = (load_file(run.output / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@IMPORTS_OF_COMPILE
def test_a_compiled_step_learns(tmp_path: Path) -> None:
    result = train(replace(SMALL, precision="bf16", compile=True, epochs=4), "digits", tmp_path / "run")
    assert result.test.top1_percent > 40


def test_mixed_images_and_accumulated_gradients_train(tmp_path: Path) -> None:
    config = replace(SMALL, precision="auto", device_batch_size=16, mixing=Mixing(mixup_alpha=0.8, cutmix_alpha=1.0))
    train(replace(config, log_every_steps=1), "digits", tmp_path / "run")
    losses = loss_of_each_step(tmp_path / "run")
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_batch_that_fits_is_found_where_memory_really_ends(tmp_path: Path) -> None:
    config = replace(SMALL, geometry={}, global_batch_size=1024, device_batch_size="auto", ema=WeightAverage())
    accelerator = make_accelerator(config)
    trainer = Trainer(resolve(config, "digits", accelerator), RunDirectory(tmp_path), accelerator, say=print)
    trainer.learner.start_training()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**28) / total))
    try:
        size = device_batch_that_fits(trainer)
        assert size is not None
        assert 1 <= size < 1024
        trainer.take(replace(trainer.run, config=replace(trainer.run.config, device_batch_size=size)))
        assert train_step(trainer.learner, *next(trainer.train_loader.epoch(0)), 0).images == 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_predictions_are_those_of_the_cpu(tmp_path: Path) -> None:
    model = ceit.create_model("ceit_pico_patch4_32", num_classes=10)
    ceit.save_checkpoint(tmp_path / "model.safetensors", model)
    images = list(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8))
    cpu = ceit.Predictor.from_checkpoint(tmp_path / "model.safetensors", device="cpu").predict(images)
    gpu = ceit.Predictor.from_checkpoint(tmp_path / "model.safetensors").predict(images)
    for ours, theirs in zip(gpu, cpu, strict=True):
        probabilities = {score.label: score.probability for score in theirs.predictions}
        assert all(
            score.probability == pytest.approx(probabilities.get(score.label, 0), abs=2e-3)
            for score in ours.predictions
        )
