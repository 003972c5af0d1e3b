"""The benchmark of GPUs, run on the CPU: it keeps to its time and goes on, and rates follow from seconds."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks, feeding, learning
from benchmarks.gpu.turns import Setting
from ceit.bench import arms
from ceit.bench.arms import ModelSpec
from ceit.data.splits import ArraySplit, from_pixels
from tools import speed_tables as speed

PICO = "ceit_pico_patch4_32"
CPU = torch.device("cpu")
SETTING = Setting(
    device=CPU,
    models=(PICO,),
    learn=(PICO,),
    batch_size=2,
    batch_sizes=(4,),
    product=16,
    rounds=2,
    turn_seconds=0.01,
)
SMALL = {"batch-size": 2, "batch-sizes": 4, "product": 16, "rounds": 2, "seconds": 0.01, "device": "cpu"}
SMALL |= {"models": PICO, "learn": PICO, "learn-minutes": 0.001}


def run(output: Path, **options: Any) -> dict[str, Any]:
    words = [f"--{key}={value}" for key, value in (SMALL | options).items() if key not in ("models", "learn")]
    gpu.main(["--output", str(output), "--models", PICO, "--learn", PICO, *words])
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, few files are made, and a set of two images stands for CIFAR-10."""

    def as_it_is(model: Any, **_options: Any) -> Any:
        return model

    monkeypatch.setattr(torch, "compile", as_it_is)
    monkeypatch.setattr(feeding, "STEPS", 1)
    monkeypatch.setattr(feeding, "DISTINCT", 2)
    monkeypatch.setattr(feeding, "usable_cores", lambda: 1)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    split = ArraySplit(from_pixels(pixels), torch.tensor([0, 1]))
    found = SimpleNamespace(parts={"train": split, "test": split})
    monkeypatch.setattr(learning, "load_images", lambda name: found)


@pytest.mark.usefixtures("quick")
def test_rates_are_those_of_the_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path / "gpu.json", minutes=60)
    kinds = ["train, compiled", "train", "inference", "inference, compiled"]
    assert [(row["model"], row["kind"]) for row in result["arms"]] == [(PICO, kind) for kind in kinds]
    model = arms.build(ModelSpec(PICO))
    macs = {"train": arms.training_macs(model, (3, 32, 32)), "inference": arms.inference_macs(model, (3, 32, 32))}
    for row in result["arms"]:
        assert len(row["seconds"]) == 2
        rate = 2 / median(row["seconds"])
        assert row["images_per_second"] == pytest.approx(rate, abs=0.06)
        operations = 2 * macs[row["kind"].partition(",")[0]] * rate
        assert row["tflops"] == pytest.approx(operations / 1e12, abs=6e-4)
    assert len(result["peak"]["seconds"]) == 2 * len(kinds)  # two rounds of each part
    assert result["failed"] == {}
    assert set(result["left_out"]) == {"host reads", "parity"}
    parts = result["parts"]
    loader = parts["loader"]
    rates = loader["images_per_second"]
    of_memory = 100 * rates["from_files"] / rates["in_memory"]
    assert loader["of_in_memory_percent"] == pytest.approx(
        of_memory, abs=0.06 * (100 + of_memory) / rates["in_memory"] + 0.06
    )
    assert 0 < loader["data_wait_percent"] < 100
    assert [row["batch_size"] for row in parts["batch sizes"]["by_batch_size"]] == [4]
    (learnt,) = parts["learning"]["networks"]
    assert learnt["steps"] >= 1
    seconds, rate = learnt["train_seconds"], learnt["images_per_second"]  # both rounded to a tenth
    assert seconds * rate == pytest.approx(2 * learnt["steps"], abs=0.06 * (seconds + rate))
    assert learnt["test_top1_percent"] in (0, 50, 100)
    assert parts["facts"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    printed = capsys.readouterr().out
    assert f"| `{PICO}` | train, compiled | 2 |" in printed
    assert "parity left out: needs a CUDA device, not cpu" in printed
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    table = speed.gpu_table("gpu")
    assert f"| `{PICO}` | inference |" in table
    assert "medians of 2 interleaved rounds" in table


@pytest.mark.usefixtures("quick")
def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    first = run(output, minutes=0.2)  # 12 seconds, for the facts alone
    assert list(first["parts"]) == ["facts"]
    assert first["left_out"]["loader"].startswith("takes about 130 s, and 1")
    again = run(output, minutes=0.2)
    assert again["parts"] == first["parts"]
    with pytest.raises(ValueError, match=r"gpu.json is of another setting: name another --output"):
        run(output, product=32)


def document() -> dict[str, Any]:
    return {"arms": [], "parts": {}, "failed": {}, "left_out": {}}


def test_a_part_that_fails_is_named_and_the_others_go_on() -> None:
    def fails(_setting: Setting, _seconds: float) -> dict[str, Any]:
        raise RuntimeError("no kernel image\nis available")

    def works(_setting: Setting, _seconds: float) -> dict[str, Any]:
        return {"figure": 1}

    found, saved = document(), list[str]()
    parts = [gpu.Part("first", 0, fails), gpu.Part("second", 0, works), gpu.Part("third", 1e9, works)]

    def save() -> None:
        saved.append(json.dumps(found))

    gpu.measure(parts, SETTING, found, 60, print, save)
    assert found["failed"] == {"first": "RuntimeError: no kernel image"}
    assert found["parts"]["second"]["figure"] == 1
    assert re.search(r"and (60|5\d) s were left", found["left_out"]["third"])
    assert len(saved) == 3
    assert '"second"' in saved[1]
    mended = [gpu.Part("first", 0, works), *parts[1:2]]
    gpu.measure(mended, SETTING, found, 60, print, save)
    assert list(found["parts"]) == ["second", "first"]
    assert found["failed"] == found["left_out"] == {}


def test_what_an_h100_has_to_show_comes_first() -> None:
    """Rates of both networks compiled, and the loader's, within five minutes of the twelve."""
    setting = Setting(CPU, gpu.MODELS, gpu.LEARN, 256, (64, 128, 512), 8192, 3, 0.4)
    parts = gpu.parts_of(setting, 300)
    names = [part.name for part in parts]
    assert names[:3] == ["facts", "train, compiled: ceit_small_patch16_224, deit_small_patch16_224", "loader"]
    assert sum(part.seconds for part in parts[:3]) < 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("....\n4 passed, 2 deselected in 3.21s\n", {"passed": 4, "named": []}),
        (
            "F.\nFAILED tests/test_cuda.py::test_a - x\n1 failed, 1 passed in 3s",
            {"failed": 1, "passed": 1, "named": ["tests/test_cuda.py::test_a"]},
        ),
    ],
)
def test_the_tests_of_a_device_are_counted(text: str, expected: dict[str, Any]) -> None:
    assert checks.outcomes(text) == expected


def test_tests_that_did_not_run_are_no_parity() -> None:
    with pytest.raises(ValueError, match="pytest ran no test: No module named pytest"):
        checks.outcomes("No module named pytest")


def test_parity_counts_tests_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(command: list[str], **_options: Any) -> Any:
        return SimpleNamespace(stdout=f"..\n2 passed in 1s: {command[3]}")

    monkeypatch.setattr(checks.subprocess, "run", fake)
    found = checks.parity(SETTING, 60)
    assert found == {"tests": {"passed": 2, "named": []}, "errors": {"logits": 0, "gradients": 0}}


def test_every_wait_for_the_device_is_an_error_while_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    assert checks.host_reads(SETTING, 60) == {"steps": 20, "waits": 0}
    assert modes == ["error", "default"]

    step = checks.train_step

    def waits(*given: Any) -> Any:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return step(*given)

    monkeypatch.setattr(checks, "train_step", waits)
    with pytest.raises(RuntimeError, match="called a synchronizing"):
        checks.host_reads(SETTING, 60)
    assert modes[-1] == "default"


def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "NVIDIA H100, 700.00 W, 1980 MHz, 345 MHz, 2619 MHz, 31, 81559 MiB, 580.1"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver = checks.facts(SETTING, 60)["driver"]
    assert (driver["name"], driver["power.limit"], driver["driver_version"]) == ("NVIDIA H100", "700.00 W", "580.1")


def test_a_device_has_no_errors_against_itself() -> None:
    assert checks.errors(PICO, CPU) == {"logits": 0, "gradients": 0}


@pytest.mark.parametrize("call", [learning.learning, feeding.loader])
def test_what_cannot_be_measured_says_so(call: Callable[..., Any], tmp_path: Path) -> None:
    there = Setting(torch.device("meta"), (PICO,), (PICO,), 2, (4,), 16, 2, 0.01)
    options = {"most_seconds": 1.0} if call is learning.learning else {}
    with pytest.raises((ValueError, OSError), match=r"cifar10|the package trains on"):
        call(there, 100.0, **options)


def test_nothing_is_measured_of_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'ceit_huge'"):
        gpu.main(["--output", str(tmp_path / "gpu.json"), "--models", "ceit_huge"])
    for name in ("--rounds", "--seconds", "--minutes"):
        with pytest.raises(SystemExit):
            gpu.main(["--output", str(tmp_path / "gpu.json"), name, "0"])
    assert not list(tmp_path.iterdir())
