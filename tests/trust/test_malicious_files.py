"""Checkpoints and archives that somebody made to do harm: each is refused in one sentence that says what it is."""

import gzip
import io
import json
import os
import pickle
import re
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ceit
from ceit.data.labelled import as_dataset
from ceit.data.sources.archives import open_archives
from ceit.data.sources.choose import load_images
from ceit.data.sources.shards.load import open_shards
from ceit.data.sources.shards.write import write_shards
from ceit.inference.exported import load_exported
from ceit.model import CeiT, CeiTConfig

Refused = Callable[[Callable[[], object]], str]
SMALL = CeiTConfig(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=2, stem_channels=8)


class Harm:
    """Unpickled without restriction it calls something."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "overlapping offsets": safetensors(json.dumps({"a": entry(), "b": entry(offsets=(4, 12))}), bytes(12)),
    "a header of 4 EB": safetensors("{}", length=2**62),
    "a header of 200 MB that is not there": safetensors("{}", length=200_000_000),
    "a key twice": safetensors(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', bytes(8) + b"x"),
    "a negative shape": safetensors(json.dumps({"a": entry(shape=(-2,))}), bytes(8)),
    "a shape of 10^12": safetensors(json.dumps({"a": entry(shape=(10**6, 10**6))}), bytes(8)),
    "a shape that overflows": safetensors(json.dumps({"a": entry(shape=(2**33, 2**33))}), bytes(8)),
    "a lie about the kind of number": safetensors(json.dumps({"a": entry("F64")}), bytes(8)),
    "no kind of number": safetensors(json.dumps({"a": entry("OBJECT")}), bytes(8)),
    "offsets behind the file": safetensors(json.dumps({"a": entry(shape=(2000,), offsets=(0, 8000))}), bytes(8)),
    "offsets backwards": safetensors(json.dumps({"a": entry(offsets=(8, 0))}), bytes(8)),
    "NaN in the header": safetensors('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', bytes(8)),
    "a header as deep as it is long": safetensors(b'{"a":' + b"[" * 100_000, bytes(8)),
    "bytes that no tensor owns": safetensors(json.dumps({"a": entry()}), bytes(800)),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors(kind: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    sentence = refused(lambda: ceit.load_checkpoint(path))
    assert sentence.startswith(f"{path} is damaged or no safetensors file (")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_names": ["../../etc/passwd\x00", "b"]}, r"class '\.\./\.\./etc/passwd\\x00' has a control character"),
        ({"class_names": ["\x1b]0;owned\x07", "b"]}, r"class '\\x1b\]0;owned\\x07' has a control character"),
        ({"class_names": ["a\nb", "b"]}, r"class 'a\\nb' has a control character or a line break"),
        ({"class_names": [{"a": 1}, "b"]}, r"class name \{'a': 1\} must be a text"),
        ({"config": {"depth": 10**9}}, "tensors for a depth of 1,000,000,000"),
        ({"config": {"embed_dim": 10**9}}, "do not fit their network"),
        ({"config": {"img_size": 10**9}}, "do not fit their network"),
        ({"temperature": float("nan")}, "temperature nan must be a number greater than 0"),
        ({"config": {"__class__": "os.system"}}, "is damaged .*__class__"),
    ],
)
def test_side_files(change: dict[str, Any], said: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, CeiT(SMALL), class_names=["a", "b"])
    side = path.with_suffix(".json")
    body = json.loads(side.read_text())
    config = body["config"] | change.get("config", {})
    side.write_text(json.dumps(body | change | {"config": config}))
    assert re.search(said, refused(lambda: ceit.load_checkpoint(path)))


def test_a_side_file_as_deep_as_it_is_long(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.safetensors"
    ceit.save_checkpoint(path, CeiT(SMALL))
    path.with_suffix(".json").write_text('{"a":' * 50_000)
    assert "50,000 levels of JSON, above the limit of 100" in refused(lambda: ceit.load_checkpoint(path))


def with_pickle(path: Path, content: bytes) -> None:
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", content, len(content))
    writer.write_end_of_file()


def tuples_in_tuples() -> bytes:
    """A key of 2^60 values in 200 bytes."""
    twice = b"".join(
        b"h" + bytes([number]) + b"h" + bytes([number]) + b"\x86q" + bytes([number + 1]) for number in range(60)
    )
    return b"\x80\x02}K\x01q\x00" + twice + b"K\x01s."


def rezip(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> None:
    torch.save({"model": {"a": torch.ones(200_000)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(zipfile.ZipInfo(member.filename), archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members:
            change(archive, member, content)


def compressed(archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: bytes) -> None:
    archive.writestr(member, content * 100 if "data/" in member.filename else content, zipfile.ZIP_DEFLATED)


def beside(name: str, mode: int = 0) -> Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]:
    def change(archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: bytes) -> None:
        archive.writestr(member, content)
        if member.filename.endswith("data.pkl"):
            extra = zipfile.ZipInfo(name)
            extra.external_attr = mode << 16
            archive.writestr(extra, b"/etc/passwd")

    return change


def jit(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def lying_storage(path: Path) -> None:
    """The pickle says that a storage of 8 bytes has 10^12 numbers."""
    torch.save({"model": {"a": torch.ones(2)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"K\x02tq", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"tq"))


TORCH: dict[str, tuple[Callable[[Path], object], str]] = {
    "os.system": (lambda path: torch.save(Harm(os.system, "touch touched"), path), r"would call (posix|nt)\.system"),
    "eval": (
        lambda path: torch.save(Harm(eval, "open('touched', 'w')"), path),
        "would call eval",
    ),
    "exec": (
        lambda path: with_pickle(path, pickle.dumps(Harm(exec, "open('touched', 'w')"), 2)),
        "would call exec",
    ),
    "nested": (
        lambda path: torch.save({"model": {"a": [{"b": Harm(os.mkdir, "touched")}]}}, path),
        r"call (posix|nt)\.mkdir",
    ),
    "pickle in the old form": (
        lambda path: torch.save(Harm(os.system, "touch touched"), path, _use_new_zipfile_serialization=False),
        r"would call (posix|nt)\.system",
    ),
    "tuples in tuples": (lambda path: with_pickle(path, tuples_in_tuples()), "values of pickle, above the limit"),
    "a view of 10^12": (
        lambda path: torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path),
        "4,000,000,000,000 bytes",
    ),
    "a storage of 10^12": (lying_storage, "is damaged or not what torch.save writes|is refused"),
    "a zip bomb": (lambda path: rezip(path, compressed), "is compressed, which torch does not do"),
    "a member above": (lambda path: rezip(path, beside("../../evil")), r"its member '\.\./\.\./evil' leads out of it"),
    "an absolute member": (lambda path: rezip(path, beside("/etc/evil")), "its member '/etc/evil' leads out of it"),
    "a link": (
        lambda path: rezip(path, beside("model/link", stat.S_IFLNK | 0o777)),
        "its member 'model/link' is a link",
    ),
    "TorchScript": (jit, "is a TorchScript program, and nothing in a file is executed"),
    "a dense pickle of nothing": (
        lambda path: with_pickle(path, b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."),
        "a list",
    ),
}


@pytest.mark.parametrize("kind", TORCH)
def test_torch_files(kind: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = TORCH[kind]
    make(tmp_path / "model.pth")
    assert re.search(said, refused(lambda: ceit.load_checkpoint(tmp_path / "model.pth")))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sparse(path: Path) -> None:
    info = member("1.png")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "1"}
    shard(path, (info, b"x"), (member("1.cls"), b"0"))


TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a sparse image of 1 TB": (sparse, "sparse|of image file, above the limit"),
    "class 10^9": (
        lambda path: shard(path, (member("1.png"), png()), (member("1.cls"), b"999999999")),
        "CEIT_MAX_CLASSES",
    ),
    "a class of 2 MB": (
        lambda path: shard(path, (member("1.png"), png()), (member("1.cls"), b"a" * 2_000_000)),
        "2 MB of label",
    ),
    "JSON as deep as long": (
        lambda path: shard(path, (member("1.png"), png()), (member("1.json"), b"[" * 90_000)),
        "tells no class",
    ),
    "a class with an escape": (
        lambda path: shard(path, (member("1.png"), png()), (member("1.cls"), b"\x1b[2J")),
        "control",
    ),
    "a link to a file of the machine": (
        lambda path: shard(path, (member("1.png", tarfile.SYMTYPE, "/etc/passwd"), b""), (member("1.cls"), b"0")),
        "has no image of a known kind, only",
    ),
    "a hard link out of it": (
        lambda path: shard(path, (member("1.png", tarfile.LNKTYPE, "../../x"), b""), (member("1.cls"), b"0")),
        "has no image of a known kind, only",
    ),
    "a device": (
        lambda path: shard(path, (member("1.png", tarfile.CHRTYPE), b""), (member("1.cls"), b"0")),
        "has no image of a known kind, only",
    ),
    "a name with an escape": (
        lambda path: shard(path, (member("a\x1b[31mb\n.png"), b"no image"), (member("a\x1b[31mb\n.cls"), b"0")),
        r"a\\x1b\[31mb\\n",
    ),
}


@pytest.mark.parametrize("kind", TARS)
def test_shards(kind: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    make, said = TARS[kind]
    make(folder / "train-0.tar")
    assert re.search(said, refused(lambda: load_images(folder)))
    assert [file.name for file in folder.iterdir()] == ["train-0.tar"]


@pytest.mark.parametrize("name", ["../1.png", "/abs/1.png", "a/../../1.png"])
def test_a_path_in_a_shard_leads_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "in" / "shards"
    folder.mkdir(parents=True)
    label = name.replace(".png", ".cls")
    shard(folder / "train-0.tar", (member(name), png()), (member(label), b"0"))
    assert open_shards(folder).samples.encoded(0) == png()
    assert sorted(file.name for file in tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../train-000000.tar"}, "lies outside of the folder"),
        ({"name": "/etc/passwd"}, "lies outside of the folder"),
        ({"name": "C:/Users/me/train-000000.tar"}, "lies outside of the folder"),
        ({"name": "..\\\\train-000000.tar"}, "lies outside of the folder"),
        ({"bytes": 10}, "a sample lies outside its shard"),
    ],
)
def test_an_index_of_shards_stays_in_its_folder(
    change: dict[str, Any], said: str, tmp_path: Path, refused: Refused
) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.full((8, 8, 3), 20 * number + (name == "a"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    write_shards(as_dataset(load_images(tmp_path / "images"), 0), tmp_path / "shards")
    index = tmp_path / "shards" / "index.json"
    document = json.loads(index.read_text())
    document["shards"][0] |= change
    index.write_text(json.dumps(document))
    assert said in refused(lambda: open_shards(tmp_path / "shards"))


def test_an_archive_of_a_known_set_is_read_in_memory_alone(tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for info in (member("../../evil.bin"), member("/abs/evil2.bin")):
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
        archive.addfile(member("out", tarfile.SYMTYPE, ".."))
    assert open_archives([path])("evil.bin") == b"evil"
    assert [file.name for file in tmp_path.iterdir()] == ["set.tar.gz"]


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "set.tar.gz"
    info = member("big.bin")
    info.size = 2_000_000_000
    path.write_bytes(gzip.compress(info.tobuf()))
    assert "2,000 MB of unpacked archive, above the limit of 1,000" in refused(lambda: open_archives([path]))


def onnx_file(location: str) -> bytes:
    import onnx
    from onnx import helper

    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    ends = [helper.make_tensor_value_info(name, 1, [4]) for name in ("images", "logits")]
    graph = helper.make_graph([helper.make_node("Add", ["images", "w"], ["logits"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/passwd"])
def test_an_onnx_file_with_its_numbers_elsewhere(
    location: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "model.onnx").write_bytes(onnx_file(location))
    sentence = refused(lambda: load_exported(tmp_path / "model.onnx"))
    assert f"refused because its numbers are in another file, {location!r}" in sentence


_LAUGHS = "".join(f'<!ENTITY l{n} "&l{n - 1};&l{n - 1};">' for n in range(1, 30))


@pytest.mark.parametrize(
    "xml",
    [
        f'<!DOCTYPE net [<!ENTITY l0 "ha">{_LAUGHS}]><net name="&l29;" version="11"><layers/><edges/></net>',
        '<!DOCTYPE net [<!ENTITY e SYSTEM "file:///etc/passwd">]><net name="&e;" version="11"><layers/><edges/></net>',
        '<net name="n" version="11"><layers><layer id="0" name="w" type="Const" version="opset1">'
        '<data element_type="f32" shape="1000000,1000000" offset="0" size="4000000000000"/><output>'
        '<port id="0" precision="FP32"><dim>1000000</dim><dim>1000000</dim></port></output></layer></layers>'
        "<edges/></net>",
        "<net>" * 100_000,
    ],
    ids=["laughing entities", "an entity of the machine", "a constant behind its file", "deep"],
)
def test_an_openvino_file(xml: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "model.xml").write_text(xml)
    (tmp_path / "model.bin").write_bytes(bytes(16))
    sentence = refused(lambda: load_exported(tmp_path / "model.xml"))
    assert sentence.startswith(f"{tmp_path / 'model.xml'}: ")
    assert "root:" not in sentence
