"""What the machine is, whether the device computes what the CPU does, and whether a training step waits for it."""

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.turns import Setting
from ceit.bench import arms
from ceit.bench.arms import ModelSpec
from ceit.train.config import Mixing, TrainConfig, WeightAverage
from ceit.train.run import begun
from ceit.train.step import bring_to_host, train_step

REPOSITORY = Path(__file__).parents[2]
ASKED_OF_THE_DRIVER = "name,power.limit,clocks.max.sm,clocks.sm,clocks.mem,temperature.gpu,memory.total,driver_version"
STEPS = 20
TESTS_SECONDS = 240.0  # at most


def facts(_setting: Setting, _seconds: float) -> dict[str, Any]:
    """The driver's figures, the versions that matter, and what torch.compile needs to be there."""
    include = sysconfig.get_paths()["include"]
    versions = {name: _version(name) for name in ("torch", "triton", "accelerate", "timm")}
    return {
        "driver": _told_by_the_driver(),
        "versions": versions | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "compilers": [name for name in ("cc", "gcc", "clang", "c++", "nvcc") if shutil.which(name)],
        "python_headers": Path(include, "Python.h").is_file(),
    }


def parity(setting: Setting, seconds: float) -> dict[str, Any]:
    """The tests that need a CUDA device, counted, and the largest errors of the first network to learn."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    most = min(seconds, TESTS_SECONDS)
    try:
        tests = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"the tests were not over after {most:.0f} s") from error
    return {"tests": outcomes(tests.stdout), "errors": errors(setting.learn[0], setting.device)}


def outcomes(text: str) -> dict[str, Any]:
    """What pytest's last line counts, such as ``{"passed": 12}``, and which tests failed. Raises: ValueError."""
    last = text.strip().rpartition("\n")[2]
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|errors?)", last)}
    if not counts:
        raise ValueError(f"pytest ran no test: {last or 'it said nothing'}")
    return counts | {"named": re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)}


def errors(name: str, device: torch.device) -> dict[str, float]:
    """Largest differences from the CPU in float32, as shares of the largest value: of logits and of any gradient."""
    spec = ModelSpec(name)
    model = arms.build(spec)
    images = torch.randn(4, *arms.image_shape(spec, model))
    found: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    with torch.backends.cudnn.flags(enabled=False):  # its convolutions round float32 to TF32
        for place in (torch.device("cpu"), device):
            model = model.to(place)
            model.zero_grad()
            logits = model(images.to(place))
            logits.square().mean().backward()
            gradients = [p.grad.double().cpu() for p in model.parameters() if p.grad is not None]
            found.append((logits.detach().double().cpu(), gradients))
    (expected, of_cpu), (logits, of_device) = found
    largest = max(float(gradient.abs().max()) for gradient in of_cpu)
    apart = max(float((ours - theirs).abs().max()) for ours, theirs in zip(of_device, of_cpu, strict=True))
    return {"logits": float((logits - expected).abs().max() / expected.abs().max()), "gradients": apart / largest}


def host_reads(_setting: Setting, _seconds: float) -> dict[str, Any]:
    """Training steps while torch makes every wait for the device an error. Raises: RuntimeError from that."""
    config = TrainConfig(
        model="ceit_pico_patch4_32",
        global_batch_size=32,
        precision="bf16",
        mixing=Mixing(mixup_alpha=0.8),
        ema=WeightAverage(decay=0.9),
        clip_norm=1.0,
    )
    with TemporaryDirectory(prefix="ceit-") as made, begun(config, "digits", Path(made, "run")) as trainer:
        trainer.learner.start_training()
        images, labels = next(trainer.train_loader.epoch(0))
        for step in range(3):
            train_step(trainer.learner, images, labels, step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = [train_step(trainer.learner, images, labels, 3 + step) for step in range(STEPS)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        bring_to_host(results)
    return {"steps": STEPS, "waits": 0}


def _told_by_the_driver() -> dict[str, str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={ASKED_OF_THE_DRIVER}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if answer.returncode:
        raise ValueError(f"nvidia-smi answers: {(answer.stderr or answer.stdout).strip()}")
    first = answer.stdout.splitlines()[0]
    return dict(zip(ASKED_OF_THE_DRIVER.split(","), map(str.strip, first.split(",")), strict=True))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
