"""``ceit benchmark``: arms are what their names say, figures follow from seconds, and nothing that fails is lost."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from PIL import Image
from torch import nn

import ceit_cli
from benchmarks.scaling import exponent
from ceit.bench import measure as measuring
from ceit.bench.arms import Arm, ModelSpec, build, image_shape, inference_macs, require_known, training_macs
from ceit.bench.backends import network_of, training_step
from ceit.bench.chart import draw_bars
from ceit.bench.gemm import products
from ceit.bench.measure import Settings, measure
from ceit.bench.processes import ArmError, Process
from ceit.bench.summary import ratios, summarise
from ceit.bench.worker import FAILURES, Worker, sentence, timed
from ceit.model import CeiT
from ceit.model.complexity import complexity
from ceit.model.variants import config_of

PICO = "ceit_pico_patch4_32"
MADE = """
from torch import nn


def good(img_size=8):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * img_size * img_size, 2))
    model.image_shape = (3, img_size, img_size)
    return model


def uncounted():
    class Reading(nn.Module):
        image_shape = (3, 8, 8)

        def forward(self, images):
            return images.flatten(1) * images.sum().item()  # which has no value where operations are counted

    return Reading()


def bad():
    raise ValueError("no such\\nluck")


def word():
    return "a model"


def dies():
    import os

    os._exit(3)
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A file of factories."""
    path = tmp_path / "made.py"
    path.write_text(MADE)
    return path


def test_a_subject_is_built_at_its_own_size_or_the_one_asked_for(made: Path) -> None:
    for subject, shape in (
        (ModelSpec(PICO), (3, 32, 32)),
        (ModelSpec(PICO, img_size=(16, 24)), (3, 16, 24)),
        (ModelSpec(f"{PICO},in_chans=1,skip_dead=true"), (1, 32, 32)),
        (ModelSpec("test_resnet", img_size=64), (3, 64, 64)),
        (ModelSpec(f"{made}:good", "factory"), (3, 8, 8)),
        (ModelSpec(f"{made}:good", "factory", 4), (3, 4, 4)),
    ):
        model = build(subject)
        assert image_shape(subject, model) == shape
        with torch.no_grad():
            assert len(model.eval()(torch.randn(2, *shape))) == 2
    skipping = build(ModelSpec(f"{PICO},skip_dead=true"))
    assert isinstance(skipping, CeiT)
    assert skipping.config.skip_dead


def test_weights_are_the_same_each_time() -> None:
    first, second = (build(ModelSpec(PICO)).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_arm_survives_json() -> None:
    arm = Arm(ModelSpec(PICO, img_size=(16, 24)), "eager", "bf16")
    assert Arm.from_dict(json.loads(json.dumps(arm.as_dict()))) == arm


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (ModelSpec("ceit_pica_patch4_32"), "unknown model 'ceit_pica_patch4_32'; did you mean 'ceit_pico_patch4_32'"),
        (ModelSpec("nowhere.py", "factory"), "must be FILE.py:factory"),
        (ModelSpec("nowhere.py:f", "factory"), "there is no file 'nowhere.py'"),
        (ModelSpec("nowhere", "checkpoint"), "there is no checkpoint 'nowhere'"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(subject: ModelSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_known(subject)


def test_a_factory_must_make_a_module(made: Path) -> None:
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module, not str"):
        build(ModelSpec(f"{made}:word", "factory"))
    with pytest.raises(ValueError, match=r"unknown factory in .* 'goof'; did you mean 'good'"):
        build(ModelSpec(f"{made}:goof", "factory"))
    with pytest.raises(ValueError, match="cannot be measured at another size: give it a parameter img_size"):
        build(ModelSpec(f"{made}:bad", "factory", 4))


def test_macs_are_counted_as_they_are_computed() -> None:
    config = config_of(PICO)
    model, shape = build(ModelSpec(PICO)), (3, 32, 32)
    assert inference_macs(model, shape) == complexity(config).live_macs
    hidden = nn.Sequential(model)  # no CeiT by its type: counted instead
    assert inference_macs(hidden, shape) == complexity(config).live_macs
    forward, both = complexity(config).macs, training_macs(model, shape)
    stem = complexity(config).part("patch_embed.conv").macs  # needs no gradient of the image
    assert both == 3 * forward - stem
    skipping = training_macs(build(ModelSpec(f"{PICO},skip_dead=true")), shape)
    assert skipping == 3 * complexity(config).live_macs - stem
    assert next(model.parameters()).device.type == "cpu"


def test_every_library_has_its_products() -> None:
    for precision in ("float32", "bf16", "int8"):
        found = {library: products(library, precision, 64, 1) for library in ("torch", "openvino")}
        assert list(found["openvino"]) == ["OpenVINO"]
        assert {"torch matmul", "oneDNN convolution"} <= set(found["torch"]) or precision == "int8"
        for calls in found.values():
            for call in calls.values():
                assert len(timed(call, 0.0, 2)) == 2
    assert products("torch", "int8", 64, 1) == {}
    torch.manual_seed(0)
    product = products("torch", "float32", 64, 1)["torch matmul"]()
    assert isinstance(product, torch.Tensor)
    torch.manual_seed(0)
    assert torch.equal(product, torch.randn(64, 64) @ torch.randn(64, 64))


def test_a_step_moves_the_weights() -> None:
    for options in ({"bf16": False}, {"bf16": True, "fused": True}):
        model = build(ModelSpec(PICO))
        before = model.get_parameter("head.weight").clone()
        training_step(model, **options)(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))
        assert not torch.equal(before, model.get_parameter("head.weight"))


def test_calls_are_as_many_and_as_long_as_asked_for() -> None:
    assert len(timed(lambda: None, 0.0, 3)) == 3
    assert sum(timed(lambda: None, 0.001, 1)) >= 0.001


def test_statistics() -> None:
    assert ratios([[2.0], [4.0], [9.0]], [[1.0], [1.0]]) == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert ratios([], [[1.0]]) is None
    line = exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0])
    assert line == {"exponent": 2.0, "factor": 3.0, "r2": 1.0}


def row(**given: Any) -> dict[str, Any]:
    """A measured arm of 1 GMAC an image."""
    subject = {"text": "m", "kind": "name", "img_size": None}
    found = {"model": "m", "backend": "eager", "precision": "float32", "subject": subject, "errors": []}
    return {**found, "inference": {}, "train": {}, "deployment": {}, "inference_macs": 10**9, **given}


def measured() -> dict[str, Any]:
    """A result with seconds and nothing that follows from them."""
    peak = [
        {"product": "slow", "precision": "float32", "size": 1000, "seconds": [[0.04], [0.04]]},
        {"product": "fast", "precision": "float32", "size": 1000, "seconds": [[0.02], [0.02, 0.9, 0.01]]},
        {"product": "fast", "precision": "int8", "size": 1000, "seconds": [[0.01]]},
        {"product": "fast", "precision": "bf16", "size": 1000, "seconds": [], "errors": ["it has no bf16"]},
    ]
    subject = {"text": "plain.py:m", "kind": "factory", "img_size": None}
    rows = [
        row(inference={"16": {"seconds": [[0.8], [0.4]]}}),
        row(model="plain:m", subject=subject, inference={"16": {"seconds": [[1.6], [1.6]]}}),
        row(model="m", backend="openvino", precision="int8+bf16", inference={"16": {"seconds": [[0.1, 0.3, 0.2]]}}),
        row(model="broken", backend="openvino", errors=["openvino is not installed"]),
    ]
    machine = {"processor": "P", "threads": 2, "cores": 2, "torch": "2", "packages": {"timm": "1", "onnx": None}}
    settings = {"threads": 2, "rounds": 2}
    return {"complete": True, "machine": machine, "settings": settings, "peak": peak, "arms": rows}


def test_figures_follow_from_the_seconds() -> None:
    result = measured()
    summarise(result)
    assert result["best_peak_gflops"] == {"float32": 100.0, "bf16": None, "int8": 200.0}
    assert result["baseline"] == "plain:m eager float32"
    ours, plain, int8, broken = result["arms"]
    found = ours["inference"]["16"]
    assert found["images_per_second"] == pytest.approx(16 / 0.6, rel=1e-4)
    assert found["percent_of_peak"] == pytest.approx(100 * 2 * 16 / 0.6 / 100, rel=1e-4)
    assert found["times_baseline"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert plain["inference"]["16"]["times_baseline"]["median"] == 1.0
    assert int8["inference"]["16"]["milliseconds"] == {"median": 200, "p25": 150, "p75": 250, "p90": 280, "p99": 298}
    assert int8["inference"]["16"]["percent_of_peak"] == pytest.approx(100 * 2 * 16 / 0.2 / 200)
    assert broken["inference"] == {}


def test_the_chart_shows_what_there_is(tmp_path: Path) -> None:
    result = measured()
    summarise(result)
    assert draw_bars(result, tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_bars({**result, "arms": [row()]}, tmp_path / "none.png")


def test_a_process_answers_fails_and_dies_in_one_sentence(made: Path) -> None:
    arm = Arm(ModelSpec(f"{made}:bad", "factory"), "eager", "float32")
    with Process(1, memory="kept") as process:
        with pytest.raises(ArmError, match=r"^no such luck$"):
            process.ask("build", arm=arm.as_dict())
        good = Arm(ModelSpec(f"{made}:good", "factory"), "eager", "float32").as_dict()
        assert process.ask("build", arm=good) == {"parameters": 3 * 64 * 2 + 2, "image_shape": [3, 8, 8]}
        assert process.ask("memory")["peak_bytes"] > 0
        dies = Arm(ModelSpec(f"{made}:dies", "factory"), "eager", "float32").as_dict()
        with pytest.raises(ArmError, match=r"^the process ended with code 3"):
            process.ask("build", arm=dies)
    assert process.process.returncode == 3


def test_only_the_packages_own_arms_keep_freed_memory() -> None:
    assert [Settings(1).memory(backend) for backend in ("plain", "eager", None)] == ["default", "kept", "kept"]
    assert Settings(1, freed_memory="returned").memory("eager") == "returned"


def test_no_process_is_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(ArmError, match="1 MiB of memory are free, too few for one more process: measure fewer at once"):
        Process(1, memory="kept")


class Here:
    """A worker in this process, which starts at once; requests and answers still pass through JSON."""

    def __init__(self, threads: int, *, memory: str) -> None:
        self.started, self.worker = time.time(), Worker(threads, keep_memory=False)

    def ask(self, do: str, **request: Any) -> Any:
        """As the process does."""
        try:
            answer = getattr(self.worker, do)(**json.loads(json.dumps(request)))
        except FAILURES as error:
            raise ArmError(sentence(error)) from None
        return json.loads(json.dumps(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, without pauses; other libraries than torch have no turn."""
    monkeypatch.setattr(measuring, "Process", Here)
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "STARTS", 1)
    monkeypatch.setattr(measuring, "LIBRARIES", ("torch",))


@pytest.mark.usefixtures("here")
def test_what_cannot_be_counted_is_timed(made: Path) -> None:
    arms = [Arm(ModelSpec(f"{made}:uncounted", "factory"), "plain", "float32")]
    settings = Settings(threads=1, batch_sizes=(2,), rounds=1, turn_seconds=0.0, gemm_sizes=(64,))
    said: list[str] = []
    [found] = measure(arms, settings, said.append, lambda _: None)["arms"]
    assert (found["errors"], found["inference_macs"]) == ([], None)
    assert found["inference"]["2"]["images_per_second"] > 0
    assert found["inference"]["2"]["percent_of_peak"] is None
    assert any("its operations cannot be counted, so its share of the peak is not known" in line for line in said)


@pytest.mark.usefixtures("here")
def test_arms_are_measured_in_turns_and_failures_kept(made: Path) -> None:
    arms = [Arm(ModelSpec(f"{made}:{name}", "factory"), "eager", "float32") for name in ("good", "bad")]
    settings = Settings(threads=1, batch_sizes=(2,), rounds=2, turn_seconds=0.0, gemm_sizes=(64,))
    saved: list[dict[str, Any]] = []
    result = measure(arms, settings, lambda _: None, lambda now: saved.append(json.loads(json.dumps(now))))
    good, bad = result["arms"]
    assert good["errors"] == []
    assert bad["errors"] == ["no such luck"]
    assert [len(calls) for calls in good["inference"]["2"]["seconds"]] == [3, 3]
    assert all([len(calls) for calls in product["seconds"]] == [2, 2] for product in result["peak"])
    assert good["inference_macs"] == 3 * 64 * 2
    assert good["inference"]["2"]["percent_of_peak"] > 0
    assert {product["precision"] for product in result["peak"]} == {"float32", "bf16"}
    assert [now["complete"] for now in saved] == [*[False] * (len(saved) - 1), True]
    assert saved[0]["arms"][0]["inference"]["2"]["images_per_second"] > 0


def test_a_plain_module_is_measured_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Dropout(0.5))
    images, hw = torch.randn(5, 3, 2, 2), (3, 2, 2)
    logits = network_of(model, "plain", "float32", image_shape=hw, batch_size=5, threads=1)(images)
    assert torch.equal(logits, model[1](images.flatten(1)))
    halved = network_of(model, "plain", "bf16", image_shape=hw, batch_size=5, threads=1)(images)
    assert halved.dtype == torch.float32
    assert torch.allclose(halved, logits, atol=0.05)
    assert not torch.equal(halved, logits)
    prepared = network_of(model, "eager", "float32", image_shape=hw, batch_size=5, threads=1)(images)
    assert torch.allclose(prepared, logits, atol=1e-6)


@pytest.mark.usefixtures("here")
def test_training_and_a_fresh_process_are_measured(made: Path) -> None:
    arms = [Arm(ModelSpec(f"{made}:good", "factory"), "plain", "bf16")]
    settings = Settings(
        threads=1,
        measures=("train", "deployment"),
        batch_sizes=(1,),
        train_batch_size=2,
        rounds=1,
        turn_seconds=0.0,
        gemm_sizes=(64,),
    )
    (good,) = measure(arms, settings, lambda _: None, lambda _: None)["arms"]
    assert good["errors"] == []
    assert good["train_macs"] == 2 * 3 * 64 * 2  # the image needs no gradient
    assert good["train"]["2"]["images_per_second"] > 0
    assert good["train"]["2"]["peak_bytes"] > 0
    assert good["deployment"]["bytes"] > 4 * 3 * 64 * 2
    assert good["deployment"]["median_start_seconds"] > 0
    assert good["deployment"]["memory"]["1"]["peak_bytes"] > good["deployment"]["memory"]["1"]["batch_bytes"] >= 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("stage", ["preparing", "round 1"])
def test_a_run_that_is_interrupted_before_anything_is_measured_saves_nothing(made: Path, stage: str) -> None:
    def say(text: str) -> None:
        if stage in text:
            raise KeyboardInterrupt

    arms = [Arm(ModelSpec(f"{made}:good", "factory"), "eager", "float32")]
    with pytest.raises(KeyboardInterrupt):
        measure(arms, Settings(threads=1, batch_sizes=(1,), gemm_sizes=(64,)), say, lambda _: pytest.fail("saved"))


@pytest.mark.usefixtures("here")
def test_an_interrupted_run_keeps_what_it_measured(made: Path) -> None:
    saved: list[dict[str, Any]] = []

    def say(text: str) -> None:
        if "round 2" in text:
            raise KeyboardInterrupt

    arms = [Arm(ModelSpec(f"{made}:good", "factory"), "eager", "float32")]
    settings = Settings(threads=1, batch_sizes=(1,), rounds=3, turn_seconds=0.0, gemm_sizes=(64,))
    with pytest.raises(KeyboardInterrupt):
        measure(arms, settings, say, lambda now: saved.append(json.loads(json.dumps(now))))
    assert len(saved[-1]["arms"][0]["inference"]["1"]["seconds"]) == 1
    assert not saved[-1]["complete"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--models", PICO, "--backends", "plain", "eager", "--precisions", "int8"],
            "int8 is not to be had with plain eager: add",
        ),
        (["--models", PICO, "--backends", "eager", "onnxruntime", "--precisions", "bf16"], "onnxruntime has none of"),
        (["--models", PICO, "--precisions", "int4"], "--precisions int4: choose from float32 bf16"),
        (["--models", PICO, "--backends", "tpu"], "invalid choice: 'tpu'"),
        (["--models", PICO, "--batch-sizes", "0"], "0 must be at least 1"),
        (["--models", PICO, "--img-size", "1", "2", "3"], "must be one side or height and width"),
        (
            ["--models", PICO, "--backends", "openvino", "--measures", "train"],
            "train needs a backend of plain eager compile",
        ),
        (
            ["--against", f"{__file__}:good", "--precisions", "int8"],
            "--precisions int8 is not to be had with plain: add",
        ),
        (
            ["--models", PICO, "--against", f"{__file__}:good", "--precisions", "int8"],
            "--against-backends plain has none of int8: it has float32 bf16",
        ),
        (
            ["--against", f"{__file__}:good", "--against-backends", "onnxruntime", "--measures", "train"],
            "--against-backends onnxruntime: --measures train needs a backend of plain eager compile",
        ),
        *(
            (["--measures", "loader", "--data", "photos", *words], f"measures no model: leave out {words[0]}, or give")
            for words in (["--models", PICO], ["--checkpoint", "run"], ["--against", "a.py:f"], ["--opponents"])
        ),
        ([], "nothing to measure"),
        (["--measures", "loader"], "--measures loader and --data FOLDER go together"),
        (["--models", PICO, "--data", "photos"], "--measures loader and --data FOLDER go together"),
        (["--measures", "loader", "--data", "photos", "--chart", "a.png"], "--chart draws models"),
        (["--models", PICO, "--measures", "deployment", "--chart", "a.png"], "--chart draws models"),
        *((["--models", PICO, "--seconds", value], "must be more than 0, and 600") for value in ("0", "nan", "inf")),
    ],
)
def test_combinations_that_make_no_sense_are_wrong_usage(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ceit_cli.main(["benchmark", *arguments, "--output", str(tmp_path / "out.json")]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("output", "chart", "code", "sentence"),
    [
        ("nodir/x.json", "a.png", 1, "x.json cannot be written: there is no folder"),
        ("x.json", "nodir/a.png", 1, "a.png cannot be written: there is no folder"),
        ("x.txt", "a.png", 2, "x.txt must end in .json"),
        ("x.json", "a.gif", 2, "a.gif must end in .png or .svg"),
    ],
)
def test_a_place_that_takes_no_result_is_told_before_anything_is_measured(
    output: str,
    chart: str,
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ceit.cli.benchmark.measure", lambda *_: pytest.fail("it was measured"))
    words = ["benchmark", "--models", PICO, "--backends", "eager", "--output", str(tmp_path / output)]
    assert ceit_cli.main([*words, "--chart", str(tmp_path / chart)]) == code
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_every_stage_of_reading_is_measured_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out.json"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (number, 0, 0)).save(folder / f"{number}.jpg")
    words = [
        "--measures",
        "loader",
        "--data",
        str(folder),
        "--output",
        str(output),
        "--img-size",
        "32",
        "--rounds",
        "2",
    ]
    assert ceit_cli.main(["benchmark", *words]) == 0
    found = json.loads(output.read_text())["loader"]
    assert (found["images"], found["img_size"]) == (3, [32, 32])
    assert list(found["stages"]) == ["read", "decode", "crop", "RandAugment", "mirror", "erase", "normalise"]
    for cost in found["stages"].values():
        assert cost["core_milliseconds"] * cost["images_per_second_a_core"] == pytest.approx(1000, rel=1e-3)
    assert found["whole"]["images_per_second"] > 0
    told = capsys.readouterr().out
    assert "Reading 3 images to 32x32" in told
    assert "RandAugment" in told


def test_a_folder_without_images_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.json").write_text("an older result", encoding="utf-8")
    words = ["--measures", "loader", "--data", str(tmp_path), "--output", str(tmp_path / "out.json")]
    assert ceit_cli.main(["benchmark", *words]) != 0
    assert "holds no images" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "an older result"


def test_a_result_is_complete_when_reading_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    def measured_arms(arms: object, settings: object, say: object, save: Callable[[Any], None]) -> dict[str, Any]:
        save(result := measured())
        return result

    monkeypatch.setattr("ceit.cli.benchmark.measure_loader", stopped)
    Image.new("RGB", (60, 40)).save(tmp_path / "0.jpg")
    output = tmp_path / "out.json"
    words = ["--data", str(tmp_path), "--output", str(output), "--measures", "loader"]
    assert ceit_cli.main(["benchmark", *words]) == 130
    assert not output.exists()
    monkeypatch.setattr("ceit.cli.benchmark.measure", measured_arms)
    assert ceit_cli.main(["benchmark", *words, "inference", "--models", PICO, "--backends", "eager"]) == 130
    assert json.loads(output.read_text(encoding="utf-8"))["complete"] is False
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["[1", "2000-13-45"])
def test_a_value_that_is_no_yaml_is_named(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", f"{PICO},depth={value}", "--backends", "eager", "--output", str(tmp_path / "out.json")]
    assert ceit_cli.main(["benchmark", *words]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{value!r} is no value as YAML writes it" in said
    assert "unexpected" not in said


def test_the_command_writes_prints_and_fails_where_an_arm_failed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = measured()
    summarise(result)
    asked: list[Any] = []

    def pretend(arms: list[Arm], settings: Settings, say: Any, save: Any) -> dict[str, Any]:
        asked.extend((arms, settings))
        save(result)
        return result

    monkeypatch.setattr("ceit.cli.benchmark.measure", pretend)
    monkeypatch.setenv("COLUMNS", "40")
    output, chart = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--models", PICO, "--against", f"{made}:good", "--backends", "eager", "openvino", "--precisions"]
    words += [
        "float32",
        "int8",
        "--output",
        str(output),
        "--chart",
        str(chart),
        "--threads",
        "1",
    ]
    assert ceit_cli.main(["benchmark", *words]) == 1
    assert [(arm.model.label, arm.backend, arm.precision) for arm in asked[0]] == [
        ("made:good", "plain", "float32"),
        (PICO, "eager", "float32"),
        (PICO, "openvino", "float32"),
        (PICO, "openvino", "int8"),
    ]
    assert json.loads(output.read_text())["best_peak_gflops"]["int8"] == 200
    assert chart.stat().st_size > 1000
    told = capsys.readouterr()
    assert "26.7 3.00x" in told.out  # whole, in 40 columns
    assert "openvino is not installed" in " ".join(told.out.split())
    assert "1 of 4 arms could not be measured" in told.err
