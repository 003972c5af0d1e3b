"""What computes: by default eager, or OpenVINO where it pays and answers as eager does; else what was asked for."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ceit.inference import computing as module
from ceit.inference import device as devices_module
from ceit.inference import fastest, kept_graphs
from ceit.inference.backend import Network, in_turns, prepare, split_among
from ceit.inference.computing import MAX_ERROR, Work, chosen, computing, devices_for
from ceit.inference.device import devices_named
from ceit.inference.example_images import ExampleImages
from ceit.inference.fastest import optimize
from ceit.inference.predictor import Predictor
from ceit.model import CeiT

CPU = (torch.device("cpu"),)
MUCH = 10**12  # images, so many that any set-up pays


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_X86", (*module._X86, module.platform.machine()))
    return tmp_path / "cache"


@pytest.fixture
def work(examples: ExampleImages) -> Work:
    """Much to do, with images to compare on."""
    return Work(16, MUCH, threads=1, callers=1, sample=lambda: examples.images[:16])


def logits(model: CeiT, images: Tensor) -> Tensor:
    return prepare(model, "eager", "float32", image_shape=(1, 24, 16))(images)


def test_by_default_openvino_computes_much_and_says_what_was_checked(
    make: Callable[..., CeiT], work: Work, examples: ExampleImages, own_cache: Path
) -> None:
    model, said = make(), list[str]()
    found = computing(model, None, "float32", CPU, work, said.append)
    assert (str(found), found.devices) == ("openvino float32", CPU)
    expected = logits(model, examples.images)
    assert (found.networks[0](examples.images) - expected).abs().max() <= MAX_ERROR * expected.abs().max()
    (line,) = said
    assert line.startswith("OpenVINO computes in float32, checked on 16 of the images: its logits differ from eager")
    assert line.endswith("of the largest (limit 1e-04); --backend eager takes torch")

    # the graph is kept now, and less work is enough
    assert sorted(file.suffix for file in (own_cache / "graphs").iterdir()) == [".bin", ".xml"]
    macs = module.complexity(model.config).live_macs
    less = replace(work, images=int(module._MACS_TO_READ / macs) + 1)
    assert str(computing(model, None, "float32", CPU, less)) == "openvino float32"
    assert str(computing(model, None, "float32", CPU, replace(less, images=less.images // 2))) == "eager float32"
    assert str(computing(model, None, "float32", CPU, replace(less, callers=4))) == "eager float32"


def test_in_bf16_it_may_be_twice_as_far_from_float32_as_eager_is(
    make: Callable[..., CeiT], examples: ExampleImages
) -> None:
    model, images = make(), examples.images
    shape = 1, 24, 16
    eager = prepare(model, "eager", "bf16", image_shape=shape)
    exact = prepare(model, "eager", "float32", image_shape=shape)
    error, limit = module._errors(model, eager, "bf16", images)
    assert limit == pytest.approx(2 * error)
    error, limit = module._errors(model, lambda given: exact(given) + 3 * (eager(given) - exact(given)), "bf16", images)
    assert error > limit > MAX_ERROR


@pytest.mark.parametrize("reason", ["little to do", "not installed", "no image", "another processor", "two devices"])
def test_without_a_word_eager_computes(
    reason: str, make: Callable[..., CeiT], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = CPU
    if reason == "little to do":
        work = replace(work, images=300, sample=lambda: pytest.fail("no image is needed"))
    elif reason == "not installed":
        find = fastest.importlib.util.find_spec
        monkeypatch.setattr(
            fastest.importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
        )
    elif reason == "no image":
        work = replace(work, sample=lambda: None)
    elif reason == "another processor":
        monkeypatch.setattr(module, "_X86", ())
    else:
        devices = CPU * 2
    found = computing(make(), None, "auto", devices, work, lambda line: pytest.fail(line))
    assert (found.backend, len(found.networks)) == ("eager", len(devices))


@pytest.mark.parametrize(
    ("openvino", "sentence"),
    [
        (lambda images: torch.ones(len(images), 4), "OpenVINO in float32 does not answer as eager on 16 of the images"),
        (lambda images: torch.full((len(images), 4), torch.nan), "differ from eager float32's by nan of the largest"),
        (ImportError("libtbb.so.12 is missing"), "OpenVINO cannot run the model, torch does: libtbb.so.12 is missing"),
    ],
)
def test_where_openvino_fails_eager_computes_and_it_is_said(
    openvino: Any, sentence: str, make: Callable[..., CeiT], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(model: CeiT, backend: str, precision: str, **options: Any) -> Network:
        if backend == "eager":
            return prepare(model, backend, precision, **options)
        if isinstance(openvino, Exception):
            raise openvino
        return openvino

    monkeypatch.setattr(module, "prepare", prepared)
    said: list[str] = []
    assert str(computing(make(), None, "float32", CPU, work, said.append)) == "eager float32"
    (line,) = said
    assert sentence in line


def test_auto_says_its_budget_and_remembers_without_asking_for_images(
    make: Callable[..., CeiT], work: Work, examples: ExampleImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "BACKENDS", ("eager", "onnxruntime"))
    said: list[str] = []
    first = computing(make(), "auto", "float32", CPU, replace(work, examples=lambda: examples), said.append)
    assert said[0] == "--backend auto measures once for each model what is fastest here: that can take minutes"
    assert f"{first.backend} computes in float32, the fastest of 2 measured: " in said[1]
    budget = "first answers as eager float32's on 100.0 % of 12 images (test images), at least 98.5 % were demanded"
    assert said[1].endswith(budget)

    said.clear()
    asked = replace(work, examples=lambda: pytest.fail("it is remembered"))
    assert str(computing(make(), "auto", "float32", CPU, asked, said.append)) == str(first)
    (line,) = said
    assert ", as measured: " in line
    assert line.endswith(budget)


@pytest.mark.parametrize(("images", "is_tried"), [(0, True), (1, False), (MUCH, True)])
def test_auto_compiles_only_where_there_is_enough_to_do(
    images: int, is_tried: bool, make: Callable[..., CeiT], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or where nobody knows how much: every process compiles anew, and 2,000 images are done before it pays."""
    tried: list[str] = []

    def prepared(model: CeiT, backend: str, precision: str, **options: Any) -> Network:
        tried.append(backend)
        return prepare(model, "eager", precision, image_shape=options["image_shape"])

    monkeypatch.setattr(fastest, "BACKENDS", ("eager", "compile"))
    monkeypatch.setattr(fastest, "prepare", prepared)
    computing(make(), "auto", "float32", CPU, replace(work, images=images))
    assert ("compile" in tried) == is_tried


def test_auto_without_images_takes_float32_and_says_why(
    make: Callable[..., CeiT], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "BACKENDS", ("eager", "onnxruntime"))
    for _ in range(2):
        said: list[str] = []
        assert computing(make(), "auto", "auto", CPU, work, said.append).precision == "float32"
        assert said[-1].endswith("only float32 was allowed, since 16 images to judge other formats by are not at hand")


def test_a_graph_in_int8_is_kept_with_the_choice(make: Callable[..., CeiT], examples: ExampleImages) -> None:
    model, images = make(), examples.images
    first = optimize(model, "openvino", "int8", images=lambda: examples, least_agreement=0.5, threads=1)
    assert first.chosen.agreement is not None
    again = optimize(
        model, "openvino", "int8", images=lambda: pytest.fail("it is kept"), least_agreement=0.5, threads=1
    )
    assert torch.equal(again(images), first(images))
    assert not torch.allclose(again(images), logits(model, images), rtol=1e-4)
    with pytest.raises(ValueError, match=r"int8 needs at least 16 images .* and so many are not at hand: name more"):
        optimize(make(depth=1), "openvino", "int8")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_kept_graph_that_is_damaged_is_made_anew(backend: str, examples: ExampleImages, own_cache: Path) -> None:
    model, graphs = nn.Sequential(nn.Flatten(), nn.Linear(24 * 16, 4)), own_cache / "graphs"
    named: dict[str, Any] = {"image_shape": (1, 24, 16), "graph_name": "a"}
    wanted = prepare(model, backend, "float32", **named)(examples.images)
    for file in list(graphs.iterdir()):
        whole = file.read_bytes()
        half = whole[: len(whole) // 2]
        for damaged in (half, half + bytes(len(whole) - len(half))):
            file.write_bytes(damaged)
            assert kept_graphs.recall_graph("a", backend) is None
        file.unlink()
        assert kept_graphs.recall_graph("a", backend) is None
        file.write_bytes(half)
    assert torch.equal(prepare(model, backend, "float32", **named)(examples.images), wanted)
    assert kept_graphs.recall_graph("a", backend) is not None
    (graphs / f"a.{'0' * 16}{kept_graphs._SUFFIX[backend]}").write_bytes(b"of a process that was killed")
    assert kept_graphs.recall_graph("a", backend) is not None


def test_graphs_used_last_are_kept(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def kept() -> list[str]:
        """Their names, less the digests."""
        return sorted(f"{file.name[0]}{file.suffix}" for file in (own_cache / "graphs").iterdir())

    graph = SimpleNamespace(SerializeToString=lambda: bytes(100))
    monkeypatch.setattr(kept_graphs, "MOST_BYTES", 250)
    for name in "abcd":
        kept_graphs.keep_graph(name, "onnxruntime", graph)
    assert kept() == ["c.onnx", "d.onnx"]
    assert kept_graphs.recall_graph("a", "onnxruntime") is None

    (own_cache / "graphs" / "c.bin").write_bytes(bytes(100))  # of an OpenVINO graph of the same name
    (own_cache / "graphs" / "c.xml").write_bytes(bytes(10))
    kept_graphs.keep_graph("e", "onnxruntime", graph)
    assert kept() == ["c.bin", "c.xml", "e.onnx"]
    monkeypatch.setenv("CEIT_DATA", "/proc/nowhere")  # nothing can be written
    kept_graphs.keep_graph("a", "onnxruntime", graph)
    assert kept_graphs.recall_graph("a", "onnxruntime") is None


def test_graphs_are_read_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    kept_graphs.keep_graph("a", "onnxruntime", SimpleNamespace(SerializeToString=lambda: bytes(100)))
    monkeypatch.setattr(os, "utime", refused)
    assert kept_graphs.recall_graph("a", "onnxruntime") is not None
    monkeypatch.setenv("CEIT_DATA", "~nobody-such/cache")
    assert kept_graphs.recall_graph("a", "onnxruntime") is None


def test_several_devices_take_turns_or_share_a_batch(make: Callable[..., CeiT], examples: ExampleImages) -> None:
    model = make()
    found = computing(model, None, "float32", CPU * 3, Work(16))
    calls: list[int] = []

    def counted(number: int) -> Network:
        def network(images: Tensor) -> Tensor:
            calls.append(number)
            return found.networks[number](images)

        return network

    networks = [counted(number) for number in range(3)]
    expected = logits(model, examples.images)
    turns = in_turns(networks, CPU * 3)
    for _ in range(4):
        assert torch.allclose(turns(examples.images), expected, atol=1e-5)
    assert calls == [0, 1, 2, 0]
    for count in (24, 7, 2, 1):  # also fewer images than devices
        calls.clear()
        assert torch.allclose(split_among(networks)(examples.images[:count]), expected[:count], atol=1e-5)
        assert sorted(calls) == list(range(min(count, 3)))

    several = Predictor.from_model(model, device=["cpu", "cpu"], workers=3)
    one = Predictor.from_model(model, device="cpu")
    pictures = [torch.rand(1, 30, 20) for _ in range(40)]
    for ours, theirs in zip(several.predict(pictures, batch_size=3), one.predict(pictures), strict=True):
        assert dict(ours.predictions) == pytest.approx(dict(theirs.predictions), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime has no precision 'bf16': choose float32, int8"),
        ({"precision": "fp16"}, "eager has no precision 'fp16': choose float32, bf16; fp16 is for GPUs"),
        ({"backend": "openvino", "precision": "int8"}, "int8 needs at least 16 images to be calibrated with"),
        ({"backend": "eager", "precision": "int8"}, "eager has no precision 'int8': choose float32, bf16"),
        (
            {"backend": "auto", "precision": "fp16"},
            "nothing computes in fp16 on cpu: choose another precision, or auto",
        ),
        ({"backend": "openvin"}, "unknown backend 'openvin'; did you mean 'openvino'"),
        ({"workers": 0}, "workers 0 must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    options: dict[str, Any], sentence: str, make: Callable[..., CeiT]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Predictor.from_model(make(), device="cpu", **options)


def test_int8_without_a_backend_and_a_runtime_on_a_gpu_are_refused(make: Callable[..., CeiT], work: Work) -> None:
    with pytest.raises(ValueError, match="int8 is computed by onnxruntime or openvino: name one with --backend"):
        computing(make(), None, "int8", CPU, work)
    gpu = (torch.device("cuda"),)
    with pytest.raises(ValueError, match="openvino computes on the CPU, not on cuda: choose the backend eager or"):
        computing(make(), "openvino", "float32", gpu, work)


def test_a_backend_that_is_not_installed_is_named(
    make: Callable[..., CeiT], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_installed", lambda backend: False)
    with pytest.raises(ValueError, match=r'onnxruntime is not installed: pip install "ceit-vision\[export\]"'):
        computing(make(), "onnxruntime", "float32", CPU, work)


@pytest.mark.parametrize(
    ("native_bf16", "capability", "expected"),
    [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "float32")],
)
def test_auto_is_what_the_gpu_computes_natively(
    native_bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "computes_bf16", lambda device: native_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert chosen("auto", torch.device("cuda")) == expected
    assert chosen("float32", torch.device("cuda")) == "float32"
    assert chosen("auto", CPU[0], "onnxruntime") == "float32"


def test_a_runtime_of_the_cpu_computes_there_beside_a_gpu(
    make: Callable[..., CeiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "default_device", lambda: torch.device("cuda"))
    assert Predictor.from_model(make(), backend="onnxruntime").device == CPU[0]


def test_devices_are_those_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    three = tuple(torch.device("cuda", index) for index in range(3))
    assert devices_named() == devices_named("cuda") == devices_for(None, "eager") == three
    assert devices_named("cuda:2, cuda:0") == (three[2], three[0])
    assert devices_named("cpu") == devices_for(None, "openvino") == CPU
    with pytest.raises(ValueError, match=r"there is no device cuda:3 here, torch sees cpu, cuda:0, cuda:1, cuda:2$"):
        devices_named("cuda:3")
    with pytest.raises(ValueError, match="unknown device 'gpu': name cpu, cuda, cuda:1 or mps"):
        devices_named("gpu")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # one alone has no number
    assert devices_named("cuda:0") == devices_named("cuda") == (torch.device("cuda"),)
    with pytest.raises(ValueError, match="there is no device cuda:1 here, torch sees cpu, cuda; a CUDA device needs"):
        devices_named("cuda:1")
    monkeypatch.setattr(devices_module, "default_device", lambda: torch.device("cpu"))
    assert devices_named() == devices_named("cpu") == CPU
    with pytest.raises(ValueError, match="no device cuda here, torch sees cpu; a CUDA device needs its driver and a"):
        devices_named("cuda")
    with pytest.raises(ValueError, match=r"there is no device mps here, torch sees cpu$"):
        devices_named("mps")
