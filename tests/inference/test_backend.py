"""Every backend in every precision computes the network; what does not exist is refused."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from ceit.inference.backend import PRECISIONS_OF, prepare
from ceit.inference.folding import fuse
from ceit.model import CeiT, config_of

SHAPE = (3, 16, 24)
FLOAT = [(backend, "float32") for backend in PRECISIONS_OF if backend != "compile"] + [
    ("eager", "bf16"),
    ("openvino", "bf16"),
]
LIMIT = {"float32": 1e-5, "bf16": 0.1, "int8": 0.3, "int8+bf16": 0.3}  # of the largest logit, random weights


def network() -> CeiT:
    """A small one, with logits that differ."""
    torch.manual_seed(0)
    geometry = {"img_size": SHAPE[1:], "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = CeiT(config_of("ceit_nano_patch4_32", **geometry)).eval()
    assert isinstance(model.head, nn.Linear)
    nn.init.normal_(model.head.weight)
    return model


def images(number: int) -> Tensor:
    """Of the network's size."""
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def error(got: Tensor, wanted: Tensor) -> float:
    """As a share of the largest logit."""
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("backend", "precision"), FLOAT)
def test_logits_are_the_networks(backend: str, precision: str) -> None:
    model = network()
    prepared = prepare(model, backend, precision, image_shape=SHAPE)
    for number in (1, 3):
        got = prepared(images(number))
        assert got.dtype == torch.float32
        assert error(got, model(images(number)).detach()) <= LIMIT[precision]


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "int8"), ("openvino", "int8+bf16")])
def test_int8_is_near(backend: str, precision: str) -> None:
    model = network()
    prepared = prepare(model, backend, precision, image_shape=SHAPE, calibration=images(32))
    found = error(prepared(images(8)), model(images(8)).detach())
    assert 1e-4 < found <= LIMIT[precision]  # and it is not float32 under another name


def test_a_network_of_another_make_is_prepared_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    prepared = prepare(model, "openvino", "float32", image_shape=SHAPE, threads=1)
    assert error(prepared(images(2)), model.eval()(images(2)).detach()) <= 1e-5


def test_the_model_is_left_as_it_is() -> None:
    model = network().train()
    prepare(model, "eager", "bf16", image_shape=SHAPE)
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_large_batches_are_computed_in_parts() -> None:
    model = network()
    prepared = prepare(model, "openvino", "float32", image_shape=SHAPE, threads=2)
    many = images(67)  # two parts of 32 and a rest
    assert error(prepared(many), model(many).detach()) <= 1e-5


@pytest.mark.parametrize(
    ("backend", "precision", "sentence"),
    [
        ("eager", "int8", "eager has no precision 'int8': choose float32, bf16"),
        ("onnxruntime", "bf16", "choose float32, int8"),
        ("openvin", "float32", "openvino"),
        ("openvino", "int8", "needs calibration images"),
    ],
)
def test_what_does_not_exist_is_refused(backend: str, precision: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        prepare(network(), backend, precision, image_shape=SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_compiled_in_one_graph(precision: str) -> None:
    model = network()
    got = prepare(model, "compile", precision, image_shape=SHAPE)(images(3))
    assert error(got, model(images(3)).detach()) <= LIMIT[precision]
    torch.compile(fuse(model), fullgraph=True, dynamic=True)(images(2))


def test_a_forked_process_computes_with_openvino_after_its_parent() -> None:
    lines = [
        "import os, signal, torch",
        "from ceit.inference.backend import prepare",
        "layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))",
        "network = prepare(layers, 'openvino', 'float32', image_shape=(3, 2, 2), threads=1)",
        "expected = network(torch.ones(3, 3, 2, 2))",
        "if (child := os.fork()) == 0:",
        "    signal.alarm(300)",
        "    os._exit(0 if torch.equal(network(torch.ones(3, 3, 2, 2)), expected) else 1)",
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=900)


def test_a_signal_is_taken_after_networks_of_openvino_have_gone() -> None:
    lines = [
        "import gc, os, signal, torch",
        "from ceit.inference.backend import prepare",
        "networks = []",
        "for _ in range(2):",
        "    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))",
        "    networks.append(prepare(layers, 'openvino', 'float32', image_shape=(3, 2, 2), threads=1))",
        "    networks[-1](torch.zeros(1, 3, 2, 2))",
        "while networks:",
        "    networks.pop(0)",
        "    gc.collect()",
        "signal.signal(signal.SIGUSR1, lambda *_: print('taken'))",
        "os.kill(os.getpid(), signal.SIGUSR1)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "taken\n"), done.stderr
