"""No code comes from data: every place that could run something is known, every reader is watched while it reads."""

import ast
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

import ceit
from ceit.data.cache import keep, recall
from ceit.data.image import read_image
from ceit.data.record import ImageRecord
from ceit.data.sources.archives import open_archives
from ceit.data.sources.choose import load_images
from ceit.data.sources.columns import read_columns
from ceit.data.sources.shards.index import read_index
from ceit.data.sources.shards.split import SampleTable
from ceit.inference.exported import load_exported
from ceit.inference.prediction_file import Origin, unanswered
from ceit.model import CeiT, CeiTConfig
from ceit.study.cells import read_record
from ceit.train.recipe import read_recipe
from ceit.train.run_directory import RunDirectory, saved_config
from ceit.web.guard import Guard, RefusedError

ROOT = Path(__file__).parents[2]
NAME = "canary_7f3a"
CODE = f"__import__('os').system('touch {NAME}')"

KNOWN = {
    "__init__.py: import_module": "a name of the package's own table",
    "inference/__init__.py: import_module": "a name of the package's own table",
    "bench/arms.py: yaml.safe_load": "builds plain values alone",
    "bench/gemm.py: importlib.import_module": "the text openvino",
    "bench/processes.py: subprocess.Popen": "this Python, with a module of the package",
    "cli/_cells.py: importlib.import_module": "a name of the package's own table",
    "cli/benchmark.py: importlib.import_module": "the text matplotlib",
    "cli/embed.py: importlib.import_module": "the text pyarrow",
    "data/sources/addresses.py: subprocess.run": "npm or apt-get, with an address of the package's own table",
    "data/sources/named.py: np.load": "arrays of the cache, without pickles",
    "inference/memory.py: ctypes.CDLL": "the C library of this process",
    "inference/quantize.py: np.load": "arrays that this program has just written, without pickles",
    "inference/quantize.py: subprocess.run": "this Python, with a module of the package",
    "train/run_directory.py: yaml.safe_load": "builds plain values alone",
    "train/trackers.py: import_module": "the texts torch.utils.tensorboard and mlflow",
    "weights/reading.py: torch.load": "weights_only",
    "web/page.py: import_module": "the text gradio",
    "yaml_file.py: yaml.load": "a loader that builds plain values alone",
}
"""Every place of the package that loads, imports or runs by a value, and why the value is not a stranger's."""


def test_every_place_that_could_run_something_is_known() -> None:
    found: set[str] = set()
    for path in sorted((ROOT / "src" / "ceit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            module, _, name = called.rpartition(".")
            runs = name in {"eval", "exec", "compile", "__import__", "import_module"} and module in ("", "importlib")
            runs |= module in {"os", "subprocess", "pickle", "torch", "np", "numpy", "yaml", "ctypes", "marshal"} and (
                name in {"system", "popen", "Popen", "run", "call", "check_output", "execv", "execvp", "load", "loads"}
                or name in {"safe_load", "unsafe_load", "full_load", "Unpickler", "load_library", "CDLL", "startfile"}
            )
            if runs:
                found.add(f"{path.relative_to(ROOT / 'src' / 'ceit').as_posix()}: {called}")
    assert found == set(KNOWN)


def test_only_weights_are_unpickled_and_only_plain_values_made_of_yaml() -> None:
    text = (ROOT / "src" / "ceit" / "weights" / "reading.py").read_text(encoding="utf-8")
    assert text.count("torch.load(") == text.count("weights_only=True)") == 1
    assert "allow_pickle" not in "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))


_seen: list[list[str]] = []  # of who is watching now
_EVENTS = ("compile", "exec", "import", "pickle.find_class", "subprocess.Popen", "ctypes.dlopen", "marshal.loads")


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen and (event in _EVENTS or event.startswith(("os.system", "os.exec", "os.posix_spawn", "os.spawn"))):
        told = [getattr(it, "co_names", it) for it in arguments] + [getattr(it, "co_consts", ()) for it in arguments]
        if NAME in repr(told) or event == "pickle.find_class":
            _seen[-1].append(event)


sys.addaudithook(_hook)


class _Finder:
    """Sees the names of modules that are looked for; it knows none."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if _seen and NAME in name:
            _seen[-1].append("import")


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[str]]:
    """The events of Python that run, import or load something of data, which all hold ``NAME``."""
    events: list[str] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "meta_path", [_Finder, *sys.meta_path])
    _seen.append(events)
    try:
        yield events
    finally:
        _seen.pop()
        if (folder / NAME).exists():
            events.append("a file")


CONTROLS: dict[str, Callable[[], object]] = {
    "eval": lambda: eval(f"'{NAME}'"),
    "exec": lambda: exec(f"{NAME} = 1"),
    "import": lambda: importlib.import_module(NAME),
    "pickle": lambda: pickle.loads(f"cposix\nsystem\n(Vtouch {NAME}\ntR.".encode()),
    "subprocess": lambda: subprocess.run([NAME], check=False),
    "shell": lambda: os.system(f"true {NAME}"),
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_the_watch_sees_what_it_is_for(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(monkeypatch, tmp_path) as events, suppress(ImportError, OSError):
        CONTROLS[kind]()
    assert events


def _pickled() -> bytes:
    return f"cposix\nsystem\n(Vtouch {NAME}\ntR.".encode()


def _png() -> bytes:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("comment", CODE)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _checkpoint(folder: Path) -> Path:
    network = CeiT(CeiTConfig(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=2, stem_channels=8))
    path = folder / "model.safetensors"
    ceit.save_checkpoint(path, network, class_names=[CODE, "b"], training={CODE: CODE, "images": "images.csv"})
    return path


def _torch_file(folder: Path) -> object:
    writer = torch._C.PyTorchFileWriter(str(folder / "model.pth"))
    writer.write_record("data.pkl", _pickled(), len(_pickled()))
    writer.write_end_of_file()
    return ceit.load_checkpoint(folder / "model.pth")


def _legacy_file(folder: Path) -> object:
    (folder / "model.pth").write_bytes(_pickled())
    return ceit.load_checkpoint(folder / "model.pth")


def _side_file(folder: Path) -> object:
    path = _checkpoint(folder)
    body = json.loads(path.with_suffix(".json").read_text())
    body["config"]["stem"] = CODE
    path.with_suffix(".json").write_text(json.dumps(body))
    return ceit.load_checkpoint(path)


def _recipe(text: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "recipe.yaml").write_text(text)
        return read_recipe(str(folder / "recipe.yaml"))

    return read


def _run(folder: Path) -> object:
    (folder / "config.yaml").write_text(f"data: {CODE!r}\nepochs: !!python/object/apply:os.system ['touch {NAME}']\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_00000001.safetensors").write_bytes(_pickled())
    with suppress(ValueError):
        saved_config(folder)
    return RunDirectory(folder).saved("auto")


def _record(folder: Path) -> object:
    (folder / "images.csv").write_text(f'"part","source","class","name","content"\n"train","train","{CODE}","a","00"\n')
    return ImageRecord.read(folder)


def _table(folder: Path) -> object:
    (folder / "a.png").write_bytes(_png())
    (folder / "labels.csv").write_text(f'path,label\na.png,"{CODE}"\n"{CODE}",=cmd|{NAME}\n')
    return load_images(folder / "labels.csv")


def _parquet(folder: Path) -> object:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"path": [CODE], "label": [CODE]}).replace_schema_metadata({"pandas": CODE})
    pyarrow.parquet.write_table(table, folder / "labels.parquet")
    return read_columns(folder / "labels.parquet", [["path"], ["label"]]).cells


def _shards(folder: Path) -> object:
    told = json.dumps({"label": CODE, "class_name": CODE}).encode()
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for suffix, content in {"png": _png(), "json": told, "pyd": _pickled(), "pkl": _pickled()}.items():
            info = tarfile.TarInfo(f"1.{suffix}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return load_images(folder)


def _index(folder: Path) -> object:
    (folder / "index.json").write_text(json.dumps({"format": "ceit shards 1", "class_names": [CODE]}))
    with suppress(ValueError):
        SampleTable.from_bytes(save({"shard": np.zeros(1), NAME: np.zeros(1)}))
    return read_index(folder)


def _archive(folder: Path) -> object:
    with tarfile.open(folder / "set.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(f"{NAME}.py")
        info.size = len(CODE)
        archive.addfile(info, io.BytesIO(CODE.encode()))
    return open_archives([folder / "set.tar.gz"])(f"{NAME}.py")


def _image(folder: Path) -> object:
    with suppress(ValueError):
        read_image(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch {NAME}) run".encode(), 3)
    (folder / f"{NAME}.png").write_bytes(_png())
    return read_image(folder / f"{NAME}.png", 3)


def _exported(name: str, content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_bytes(content)
        (folder / "model.bin").write_bytes(_pickled())
        return load_exported(folder / name)

    return read


def _cell(folder: Path) -> object:
    (folder / "cell.json").write_text(json.dumps({"format": CODE, "sha256": CODE}))
    return read_record(folder / "cell.json")


def _predictions(folder: Path) -> object:
    (folder / "a.csv").write_text(f'path,rank,label,probability,error\n"{CODE}",1,"{CODE}",1.0,\n')
    (folder / "a.csv.model.json").write_text(json.dumps({"checkpoint": CODE, "sha256": "0"}))
    return unanswered(folder / "a.csv", ["a"], 1, [CODE], Origin("m", "0"), print)


def _cache(folder: Path) -> object:
    os.environ["CEIT_DATA"] = str(folder)
    keep("checked/1.json", CODE)
    (folder / "digits").mkdir()
    with suppress(ValueError):
        np.load(io.BytesIO(_pickled()))
    return recall("checked/1.json")


def _web(folder: Path) -> object:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None: ...

    body = json.dumps({"session_hash": CODE, "fn_index": 0, "trigger_id": 1, "data": [{"path": f"/etc/{CODE}"}]})
    return Guard(app, folder)._question(body.encode())


READERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda folder: ceit.load_checkpoint(_checkpoint(folder)),
    "torch file": _torch_file,
    "torch file in the old form": _legacy_file,
    "side file": _side_file,
    "recipe with an object": _recipe(f"a: !!python/object/apply:os.system ['touch {NAME}']"),
    "recipe with a name": _recipe(f"a: !!python/name:{NAME}.x"),
    "recipe with code": _recipe(f'data: "{CODE}"'),
    "run directory": _run,
    "record of images": _record,
    "CSV table": _table,
    "Parquet table": _parquet,
    "shards of others": _shards,
    "index of shards": _index,
    "archive of a set": _archive,
    "image": _image,
    "ONNX file": _exported("model.onnx", CODE.encode()),
    "OpenVINO file": _exported("model.xml", f'<net name="{CODE}" version="11"><layers/></net>'.encode()),
    "torch program": _exported("model.pt2", _pickled()),
    "cell of a study": _cell,
    "prediction file": _predictions,
    "cache": _cache,
    "request of the page": _web,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_runs_nothing_of_what_it_reads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "there"
    folder.mkdir()
    with watched(monkeypatch, folder) as events, suppress(ValueError, OSError, RefusedError):
        READERS[kind](folder)
    assert events == []
