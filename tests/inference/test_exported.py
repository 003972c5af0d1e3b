"""Foreign, damaged and hostile files: one sentence each, and nothing in them is executed."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from ceit.inference.example_images import ExampleImages
from ceit.inference.exported import load_exported
from ceit.inference.exporter import export
from ceit.inference.graphs import exported_program
from ceit.inference.predictor import exported_precision
from ceit.inference.program_file import from_bytes, to_bytes
from ceit.model import CeiT


class Touch:
    """Unpickled without restriction it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def program(make: Callable[..., CeiT]) -> bytes:
    return to_bytes(exported_program(make(leff_norm="none", stem_norm="none"), (1, 24, 16)), "a text of ours")


@pytest.fixture(scope="module")
def intermediate(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., CeiT], examples: ExampleImages) -> Path:
    """An OpenVINO export."""
    path = tmp_path_factory.mktemp("openvino") / "network.xml"
    export(make(), path, format="openvino", check=examples)
    return path


def changed(program: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another content of one member, which is added if it is not there."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as before, zipfile.ZipFile(buffer, "w") as after:
        names = before.namelist()
        for name in [*names, *([member] if member not in names else [])]:
            content = before.read(name) if name in names else b""
            after.writestr(name, change(content) if name == member else content)
    return buffer.getvalue()


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        body = json.loads(content)
        change(body)
        return json.dumps(body).encode()

    return edit


def pickled(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Touch(path), buffer)
    return buffer.getvalue()


def test_a_program_comes_back_as_it_was(program: bytes) -> None:
    loaded, text = from_bytes(program)
    assert text == "a text of ours"
    assert loaded.module()(torch.zeros(3, 1, 24, 16)).shape == (3, 4)


def test_what_a_program_could_be_made_to_execute_is_refused(program: bytes, tmp_path: Path) -> None:
    touched, code = tmp_path / "touched", "__import__('os').system('touch {}')".format(tmp_path / "touched")
    graph = "archive/models/model.json"

    def node(body: dict[str, Any]) -> dict[str, Any]:
        return body["graph_module"]["graph"]["nodes"][0]

    def values(body: dict[str, Any]) -> dict[str, Any]:
        return body["graph_module"]["graph"]["sym_int_values"]

    def shape(body: dict[str, Any]) -> None:
        next(iter(values(body).values()))["as_expr"]["expr_str"] = code

    attacks = {
        r"pickled inputs": ("archive/data/sample_inputs/model.pt", lambda _: pickled(touched)),
        r"the member 'archive/data/constants/custom_obj_0'": (
            "archive/data/constants/custom_obj_0",
            lambda _: pickled(touched),
        ),
        r"the operator 'torch\.load'": (graph, edited(lambda body: node(body).update(target="torch.load"))),
        r"the operator 'torch\.ops\.aten\.save\.default'": (
            graph,
            edited(lambda body: node(body).update(target="torch.ops.aten.save.default")),
        ),
        r"metadata": (graph, edited(lambda body: node(body).update(metadata={"torch_fn": "os.system"}))),
        r"the shape .__import__": (graph, edited(shape)),
        r"the guard .__import__": (graph, edited(lambda body: body.update(guards_code=[code]))),
        r"the symbol .__import__": (graph, edited(lambda body: body.update(range_constraints={code: {}}))),
        r"the pickled tensor": (
            "archive/data/weights/model_weights_config.json",
            edited(lambda body: next(iter(body["config"].values())).update(use_pickle=True)),
        ),
    }
    for what, (member, change) in attacks.items():
        with pytest.raises(ValueError, match=rf"^it is refused because it holds {what}"):
            from_bytes(changed(program, member, change))
    assert not touched.exists()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize("content", [b"", b"no model at all", b"<net></net>", b"PK\x03\x04"])
def test_what_is_no_model_is_refused_in_one_sentence(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"a\{suffix}: ") as refusal:
        load_exported(path)
    assert "\n" not in str(refusal.value)


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "foreign", [value], [output])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save_model(onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"a\.onnx: it was not written by ceit export, so its classes and prepro"):
        load_exported(tmp_path / "a.onnx")


def test_weights_of_another_model_are_refused(intermediate: Path, tmp_path: Path) -> None:
    weights = bytearray(intermediate.with_suffix(".bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "network.xml").write_bytes(intermediate.read_bytes())
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "network.xml")
    (tmp_path / "network.bin").write_bytes(weights)
    with pytest.raises(ValueError, match=r"network\.xml: network\.bin is damaged or belongs to another model$"):
        load_exported(tmp_path / "network.xml")


def test_a_file_renamed_in_capitals_is_read(intermediate: Path, tmp_path: Path) -> None:
    images = torch.zeros(1, 1, 24, 16)
    for weights in ("N.BIN", "N.bin"):
        (tmp_path / "N.XML").write_bytes(intermediate.read_bytes())
        (tmp_path / weights).write_bytes(intermediate.with_suffix(".bin").read_bytes())
        assert exported_precision(tmp_path / "N.XML", "auto") == exported_precision(intermediate, "auto")
        assert torch.equal(load_exported(tmp_path / "N.XML")(images), load_exported(intermediate)(images))
        (tmp_path / weights).unlink()


def test_names_and_precisions_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a\.safetensors is no exported file: their names end in \.onnx, \.pt2, \.xml"
    ):
        load_exported(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.onnx cannot be run in bf16: only OpenVINO's \.xml can"):
        load_exported(tmp_path / "a.onnx", precision="bf16")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"precision": "int8"}, r"unknown precision 'int8'"),
        ({"precision": "auto"}, r"unknown precision 'auto'"),
        ({"threads": 0}, r"threads 0 must be at least 1"),
        ({"threads": -1}, r"threads -1 must be at least 1"),
        ({"callers": 0}, r"callers 0 must be at least 1"),
    ]
    for options, sentence in wrong:
        for suffix in (".onnx", ".pt2", ".xml"):
            with pytest.raises(ValueError, match=sentence):
                load_exported(tmp_path / f"a{suffix}", **options)
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "a.onnx")


def test_threads_may_compute_at_once_from_the_first_image_on(intermediate: Path) -> None:
    lines = [
        "import sys, threading",
        "import numpy as np",
        "from ceit.inference.graphs import openvino_core",
        "core = openvino_core()",
        "network = core.compile_model(core.read_model(sys.argv[1]), 'CPU')",
        "requests = [network.create_infer_request() for _ in range(8)]",
        "sys.setswitchinterval(1e-6)",
        "barrier = threading.Barrier(8)",
        "def compute(request):",
        "    images = np.zeros((1, 1, 24, 16), np.float32)",
        "    barrier.wait()",
        "    request.start_async([images], share_inputs=True)",
        "    request.wait()",
        "threads = [threading.Thread(target=compute, args=(request,)) for request in requests]",
        "for thread in threads: thread.start()",
        "for thread in threads: thread.join()",
        "print('done')",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(intermediate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
