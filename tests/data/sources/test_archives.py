"""The published formats, from tiny archives of our own."""

import gzip
import io
import json
import lzma
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ceit.data.sources.archives import cifar_binary, cifar_png, deb_data, idx, open_archives, open_unpacked

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
TEST = RANDOM.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def ar(files: dict[str, bytes]) -> bytes:
    """The format of Debian packages."""
    parts = [b"!<arch>\n"]
    for name, data in files.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        parts += [header, data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def idx_file(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_binary(tmp_path: Path, label_bytes: int) -> None:
    def records(images: np.ndarray, labels: list[int]) -> bytes:
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        label = np.array(labels, np.uint8)[:, None]
        columns = [label, pixels] if label_bytes == 1 else [label + 100, label, pixels]
        return np.concatenate(columns, axis=1).tobytes()

    files = {"a/1.bin": records(TRAIN[:4], [0, 1, 2, 3]), "a/2.bin": records(TRAIN[4:], [4, 5])}
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(gzip.compress(tar({**files, "a/test.bin": records(TEST, [9, 8])})))
    arrays = cifar_binary(label_bytes, ("1.bin", "2.bin"), ("test.bin",))(open_archives([path]))
    assert np.array_equal(arrays["train_images"], TRAIN)
    assert np.array_equal(arrays["test_images"], TEST)
    assert arrays["train_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert arrays["test_labels"].tolist() == [9, 8]


def test_cifar_sheets(tmp_path: Path) -> None:
    def sheet(images: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    labels = {"package/l.json": json.dumps(list(range(6))).encode(), "package/t.json": b"[9, 8]"}
    files = {"package/1.png": sheet(TRAIN[:4]), "package/2.png": sheet(TRAIN[4:]), "package/test.png": sheet(TEST)}
    path = tmp_path / "cifar.tgz"
    path.write_bytes(gzip.compress(tar({**files, **labels})))
    arrays = cifar_png(("1.png", "2.png"), ("test.png",), ("l.json", "t.json"))(open_archives([path]))
    assert np.array_equal(arrays["train_images"], TRAIN)
    assert np.array_equal(arrays["test_images"], TEST)
    assert arrays["train_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert arrays["test_labels"].dtype == np.uint8


@pytest.mark.parametrize("packing", ["single files", "deb"])
def test_idx(tmp_path: Path, packing: str) -> None:
    files = {
        "train-images-idx3-ubyte": idx_file(TRAIN[..., 0]),
        "train-labels-idx1-ubyte": idx_file(np.arange(6, dtype=np.uint8)),
        "t10k-images-idx3-ubyte": idx_file(TEST[..., 1]),
        "t10k-labels-idx1-ubyte": idx_file(np.array([7, 6], np.uint8)),
    }
    zipped = {f"{name}.gz": gzip.compress(data) for name, data in files.items()}
    if packing == "deb":
        data = lzma.compress(tar({f"./usr/share/{name}": data for name, data in zipped.items()}))
        control = b"odd"  # so that padding matters
        zipped = {"set_1_all.deb": ar({"debian-binary": b"2.0\n", "control.tar.xz": control, "data.tar.xz": data})}
    paths = [tmp_path / name for name in zipped]
    for path in paths:
        path.write_bytes(zipped[path.name])
    arrays = idx(open_archives(paths))
    assert np.array_equal(arrays["train_images"], TRAIN[..., :1])
    assert np.array_equal(arrays["test_images"], TEST[..., 1:2])
    assert arrays["train_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert arrays["test_labels"].tolist() == [7, 6]


def test_what_is_in_the_wrong_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Debian package"):
        deb_data(b"PK")
    with pytest.raises(ValueError, match=r"a Debian package without data\.tar"):
        deb_data(ar({"debian-binary": b"2.0\n"}))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not an IDX file of bytes"):
        idx(open_archives([path]))
    with pytest.raises(ValueError, match=r"it holds no train\.bin"):
        cifar_binary(1, ("train.bin",), ())(open_archives([path]))


def test_a_link_in_an_archive_leads_nowhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("train.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    path = tmp_path / "a.tgz"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"it holds no train\.bin"):
        open_archives([path])("train.bin")


def test_a_name_in_two_folders_is_read_where_both_hold_the_same(tmp_path: Path) -> None:
    places = {"MNIST/raw/a": b"1", "FashionMNIST/raw/a": b"2", "MNIST/raw/b.gz": gzip.compress(b"3"), "b": b"3"}
    for name, content in places.items() | {(".Trash/b", b"4"), ("__MACOSX/b", b"5"), ("MNIST/raw/empty", b"")}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    members = open_unpacked(tmp_path)
    with pytest.raises(
        ValueError, match=r"a lies in .*FashionMNIST.raw and, with other contents, in .*: name the inner"
    ):
        members("a")
    assert (members("b"), members("empty")) == (b"3", b"")
    assert open_unpacked(tmp_path / "MNIST")("a") == b"1"
    with pytest.raises(ValueError, match="it holds no c"):
        members("c")
