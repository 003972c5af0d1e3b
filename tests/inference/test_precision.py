"""One precision has one arithmetic, whatever computes; and ``auto`` is decided by the machine, however busy it is."""

import json
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ceit
import ceit.inference.fastest
import ceit.inference.folding
import ceit_cli
from ceit.cli import evaluate as verb
from ceit.data.preprocessing import Preprocessing
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.inference import device as module
from ceit.inference import fuse, optimize
from ceit.inference.device import autocast_dtype, computes_bf16, cpu_instructions, machine
from ceit.train.run import train
from ceit.train.trainer import EVALUATION_BATCH
from tests.train.conftest import SMALL

CPU = torch.device("cpu")


def test_a_figure_of_an_accelerator_is_not_taken_for_one_of_the_cpu() -> None:
    assert machine(CPU)["accelerator"] is None
    assert machine(torch.device("mps"))["accelerator"] == "mps"


@pytest.mark.parametrize(
    ("instructions", "native"),
    [
        ({"avx2", "avx512_f", "avx512_bw"}, False),  # Xeon of 2017: bf16 would be computed in float32
        ({"avx2", "avx_ne_convert", "avx_vnni"}, False),  # converts only
        ({"avx512_f", "avx512_bf16"}, True),  # EPYC of 2022
        ({"amx_tile", "amx_bf16"}, True),  # Xeon of 2023
        ({"asimd", "i8mm"}, False),
        ({"asimd", "bf16"}, True),  # Graviton 3
        (set(), False),
    ],
)
def test_m7_the_processor_s_instructions_decide(
    instructions: set[str], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cpu_instructions", lambda: frozenset(instructions))
    assert computes_bf16(CPU) == native
    assert autocast_dtype("auto", CPU) == (torch.bfloat16 if native else None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # nothing in torch would use them
    assert not computes_bf16(CPU)


@pytest.mark.parametrize("slow", ["float32", "bf16"])
def test_m7_a_busy_machine_chooses_as_a_quiet_one(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = autocast_dtype("auto", CPU)
    product, now = torch.Tensor.__matmul__, [0.0]

    def disturbed(one: Tensor, other: Tensor) -> Tensor:
        now[0] += 10.0 if (one.dtype == torch.bfloat16) == (slow == "bf16") else 0.1
        return product(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", disturbed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert autocast_dtype("auto", CPU) == quiet


def test_m7_where_torch_does_not_tell_the_instructions_linux_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "cpu", types.SimpleNamespace())
    for text, expected in {
        "model name\t: AMD EPYC\nflags\t\t: fpu avx512_bf16\nbugs\t\t: none\n": {"fpu", "avx512_bf16"},
        "Features\t: fp asimd bf16\nCPU part\t: 0xd40\n": {"fp", "asimd", "bf16"},
        "": set(),
    }.items():
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(module, "Path", lambda name: tmp_path / Path(name).name)
        assert cpu_instructions() == expected


@pytest.mark.parametrize(("native", "expected"), [(True, True), (False, False), (None, False)])
def test_m7_of_an_accelerator_torch_tells(native: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = types.SimpleNamespace(device=lambda device: torch.device("cpu"))
    if native is not None:
        kind.is_bf16_supported = lambda including_emulation: native or including_emulation
    monkeypatch.setattr(torch, "get_device_module", lambda device: kind)
    assert computes_bf16(torch.device("cuda")) == expected


@pytest.fixture(params=[(16, 1), (80, 3)], ids=["in memory, grey", "on the disk, RGB"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A network of two classes, and ``photos`` of its size beside it, 8 to test."""
    side, chans = request.param
    torch.manual_seed(2)
    geometry: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=side, in_chans=chans, num_classes=2, patch_size=4, **geometry))
    (tmp_path / "run").mkdir()
    preprocessing = Preprocessing((0.4,) * chans, (0.2,) * chans)
    file = tmp_path / "run/model.safetensors"
    ceit.save_checkpoint(file, model, class_names=["cat", "dog"], preprocessing=preprocessing)
    for split, count in {"train": 4, "test": 4}.items():
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (90, 100, chans), dtype=np.uint8)
                Image.fromarray(pixels.squeeze()).save(folder / f"{i}.png")
    return tmp_path / "run"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_m8_predict_and_evaluate_see_the_same_logits(
    precision: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    observed: list[Tensor] = []

    def noted(*arguments: Any, **options: Any) -> Evaluation:
        collected = options.pop("observe")

        def observe(logits: Tensor, labels: Tensor) -> None:
            observed.append(logits)
            collected(logits, labels)

        return evaluate(*arguments, **options, observe=observe)

    monkeypatch.setattr(verb, "evaluate", noted)
    photos = run.parent / "photos"
    # one image at a time: in a batch, sums may be added up in another order
    options = ["--checkpoint", str(run), "--precision", precision, "--batch-size", "1", "--json"]
    assert ceit_cli.main(["evaluate", *options, "--data", str(photos)]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == precision
    assert ceit_cli.main(["predict", *options, str(photos / "test")]) == 0
    answers = [
        {score["label"]: score["probability"] for score in answer["predictions"]}
        for answer in json.loads(capsys.readouterr().out)
    ]
    probabilities = torch.cat(observed).softmax(1).tolist()
    assert [[answer["cat"], answer["dog"]] for answer in answers] == probabilities
    assert len(answers) == 8


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16", "float64"])
def test_m8_the_test_report_is_what_evaluate_measures_afterwards(
    precision: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, precision=precision, limit_batches=4, epochs=1)  # the test split has two
    result = train(config, "digits", tmp_path / "run")
    command = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", "digits", "--json"]
    command += ["--precision", "bf16" if precision == "bf16" else "float32", "--batch-size", str(EVALUATION_BATCH)]
    assert ceit_cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == result.test.images
    assert document["loss"] == pytest.approx(result.test.loss, rel=1e-6 if precision == "float64" else 0)


def test_m8_fp16_is_for_gpus(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(run.parent / "photos")
    for verb_name in (["evaluate", "--data", photos], ["predict", photos]):
        command = [*verb_name, "--checkpoint", str(run), "--precision", "fp16", "--device", "cpu"]
        assert ceit_cli.main(command) == 1
        sentence = "error: eager has no precision 'fp16': choose float32, bf16; fp16 is for GPUs\n"
        assert capsys.readouterr().err.endswith(sentence)


def test_m12_fuse_and_optimize_are_functions_of_the_package() -> None:
    named: Mapping[str, Any] = {"fuse": fuse, "optimize": optimize}
    for name, function in named.items():
        assert isinstance(function, types.FunctionType)
        assert getattr(ceit.inference, name) is function
        assert name in dir(ceit.inference)
        assert f"ceit.inference.{name}" not in sys.modules
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(fuse(model)(images), model(images), atol=1e-5)
        assert torch.allclose(optimize(model, "eager", "float32")(images), model(images), atol=1e-5)
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        _ = ceit.inference.__getattr__("optimise")
