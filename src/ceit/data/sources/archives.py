"""Published archives to arrays: uint8 images ``(n, H, W, C)`` and labels ``(n,)``; nothing in them is executed."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ceit.data.sources.walk import SYSTEM_FOLDERS
from ceit.limits import ARCHIVE, ARCHIVE_MEMBERS, MB

Arrays = dict[str, np.ndarray]
Members = Callable[[str], bytes]  # gives the contents of the file of that name, wherever it lies in the archives

ARRAY_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def cifar_binary(label_bytes: int, train: tuple[str, ...], test: tuple[str, ...]) -> Callable[[Members], Arrays]:
    """The official binary version: records of ``label_bytes`` labels, the last one counts, and 3 x 32 x 32 pixels."""

    def decode(members: Members) -> Arrays:
        arrays = {}
        for split, names in (("train", train), ("test", test)):
            records = np.frombuffer(b"".join(map(members, names)), np.uint8).reshape(-1, label_bytes + 3072)
            arrays[f"{split}_images"] = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            arrays[f"{split}_labels"] = records[:, label_bytes - 1]
        return arrays

    return decode


def cifar_png(train: tuple[str, ...], test: tuple[str, ...], labels: tuple[str, str]) -> Callable[[Members], Arrays]:
    """Sheets whose every row of 1,024 pixels is a 32 x 32 image, and the labels of the two splits as JSON lists."""

    def decode(members: Members) -> Arrays:
        arrays = {}
        for split, names, label_name in (("train", train, labels[0]), ("test", test, labels[1])):
            sheets = [np.asarray(Image.open(io.BytesIO(members(name))).convert("RGB")) for name in names]
            arrays[f"{split}_images"] = np.concatenate(sheets).reshape(-1, 32, 32, 3)
            arrays[f"{split}_labels"] = np.array(json.loads(members(label_name)), np.uint8)
        return arrays

    return decode


def idx(members: Members) -> Arrays:
    """The four IDX files of MNIST and its kin, which bear the same names everywhere."""
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        arrays[f"{split}_images"] = _idx_array(members(f"{prefix}-images-idx3-ubyte"))[..., None]
        arrays[f"{split}_labels"] = _idx_array(members(f"{prefix}-labels-idx1-ubyte"))
    return arrays


def _idx_array(data: bytes) -> np.ndarray:
    """IDX: two zero bytes, the type (8 is uint8), the number of dimensions, each as big-endian int32, the values."""
    if data[:3] != b"\0\0\x08" or len(data) < 4:
        raise ValueError("not an IDX file of bytes")
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def open_archives(paths: list[Path]) -> Members:
    """The files inside ``.tar.gz``, ``.tgz`` and ``.deb``, and files that come alone; gzipped ones are unpacked.

    Archives are read in memory and never extracted, so no path in them can lead anywhere.
    """
    contents: dict[str, bytes | Path] = {}
    for path in paths:
        if path.name.endswith((".tar.gz", ".tgz")):
            contents |= _tar_members(path.read_bytes())
        elif path.suffix == ".deb":
            contents |= _tar_members(deb_data(path.read_bytes()))
        else:
            contents[path.name] = path
    return _members(contents)


def open_unpacked(folder: Path) -> Members:
    """The files anywhere below a folder, but for those in hidden folders and a system's; gzipped ones are unpacked.

    Of a name that lies in several folders, with other contents, it raises ValueError.
    """
    folders: dict[Path, dict[str, bytes | Path]] = {}
    for path in sorted(folder.rglob("*")):
        above = path.relative_to(folder).parent.parts
        if path.is_file() and not any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in above):
            folders.setdefault(path.parent, {})[path.name] = path

    def member(name: str) -> bytes:
        there = {place: files for place, files in folders.items() if files.keys() & {name, f"{name}.gz"}}
        found = {_members(files)(name): place for place, files in there.items()}
        if len(found) > 1:
            first, second, *_ = found.values()
            raise ValueError(f"{name} lies in {first} and, with other contents, in {second}: name the inner folder")
        return found.popitem()[0] if found else _members({})(name)

    return member


def _members(contents: Mapping[str, bytes | Path]) -> Members:
    def member(name: str) -> bytes:
        for stored, unpack in ((name, bytes), (f"{name}.gz", _unzipped)):
            if (found := contents.get(stored)) is not None:
                try:
                    return unpack(found.read_bytes() if isinstance(found, Path) else found)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise ValueError(f"{found if isinstance(found, Path) else stored} is damaged ({error})") from error
        raise ValueError(f"it holds no {name}")

    return member


def _unzipped(data: bytes) -> bytes:
    with gzip.open(io.BytesIO(data)) as file:
        content = file.read(int(ARCHIVE.most * MB) + 1)
    ARCHIVE.require(len(content), "it")
    return content


def _tar_members(data: bytes) -> dict[str, bytes]:
    """Raises: ValueError for more members, or more bytes in all, than a known set has."""
    contents, unpacked = {}, 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for number, member in enumerate(archive, 1):
            unpacked += member.size
            ARCHIVE_MEMBERS.require(number, "it")
            ARCHIVE.require(unpacked, "it")
            if member.isreg() and (file := archive.extractfile(member)) is not None:
                contents[member.name.rsplit("/", 1)[-1]] = file.read()
    return contents


def deb_data(data: bytes) -> bytes:
    """The ``data.tar.*`` of a Debian package, an ar archive: 60-byte headers (name 16, size at 48), even offsets."""
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("not a Debian package")
    offset = 8
    while offset + 60 <= len(data):
        name, size = data[offset : offset + 16].decode("ascii").rstrip(" /"), int(data[offset + 48 : offset + 58])
        if name.startswith("data.tar"):
            return data[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    raise ValueError("a Debian package without data.tar")
