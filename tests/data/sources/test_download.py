"""Fetching, from a server of our own: resumed, checked, whole or not at all, and clear about what went wrong."""

import errno
import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from huggingface_hub import hf_hub_url

from ceit.cli import data as command
from ceit.data.sources import addresses, download
from ceit.data.sources.archives import ARRAY_NAMES, Arrays, Members, idx
from ceit.data.sources.choose import fetch, load_dataset
from ceit.data.sources.known_sets import SETS, NamedSet, Source
from ceit.data.splits import ArraySplit

ARRAYS = {
    "train_images": np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8),
    "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
    "test_images": np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8),
    "test_labels": np.array([0, 1, 2], np.uint8),
}


class Archives(Protocol):
    """The server of the fixture."""

    files: dict[str, bytes]
    cuts: int
    resumes: bool
    requests: list[str]

    @property
    def url(self) -> str: ...


def concatenated(members: Members) -> Arrays:
    """A format as simple as can be: the four arrays one after the other."""
    data, arrays, offset = np.frombuffer(members("set.bin"), np.uint8), {}, 0
    for name, array in ARRAYS.items():
        arrays[name] = data[offset : offset + array.size].reshape(array.shape)
        offset += array.size
    return arrays


CONTENT = b"".join(array.tobytes() for array in ARRAYS.values())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, archives: Archives, tmp_path: Path) -> NamedSet:
    """A set named tiny, on the server, and an empty cache."""
    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("CEIT_DATA_MIRROR", raising=False)
    archives.files["set.bin"] = CONTENT
    named = NamedSet(
        title="Tiny",
        class_names=("a", "b", "c"),
        image_shape=(8, 8, 1),
        train_images=6,
        test_images=3,
        licence="CC0",
        citation="nobody, 2026",
        sources=(Source((f"{archives.url}/set.bin",), concatenated),),
        sha256={name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in ARRAYS.items()},
    )
    monkeypatch.setitem(SETS, "tiny", named)
    return named


def assert_stored(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.npy" for name in ARRAY_NAMES)
    for name, array in ARRAYS.items():
        assert np.array_equal(np.load(folder / f"{name}.npy"), array)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing is left of the download


def test_a_set_is_fetched_once(tiny: NamedSet, archives: Archives, tmp_path: Path) -> None:
    assert fetch("tiny") == tmp_path / "cache" / "tiny"
    assert_stored(fetch("tiny"))
    assert archives.requests == ["/set.bin None"]
    dataset = load_dataset("tiny")
    assert isinstance(dataset.train, ArraySplit)
    assert np.array_equal(dataset.train.pixels(), ARRAYS["train_images"])


def test_the_cache_can_be_named(tiny: NamedSet, tmp_path: Path) -> None:
    assert_stored(fetch("tiny", tmp_path / "elsewhere"))


def test_loading_cannot_change_the_cache(tiny: NamedSet) -> None:
    folder = fetch("tiny")
    dataset = load_dataset("tiny")
    assert isinstance(dataset.train, ArraySplit)
    dataset.train.images.zero_()
    assert_stored(folder)


@pytest.mark.parametrize("resumes", [True, False])
def test_a_cut_connection_is_taken_up(tiny: NamedSet, archives: Archives, resumes: bool) -> None:
    archives.cuts, archives.resumes = 1, resumes
    assert_stored(fetch("tiny"))
    assert archives.requests == ["/set.bin None", f"/set.bin bytes={len(CONTENT) // 2}-"]


def test_the_next_call_takes_up_a_download(tiny: NamedSet, archives: Archives, tmp_path: Path) -> None:
    archives.cuts = 99
    with pytest.raises(ConnectionError, match=rf"the connection was cut at \d+ of {len(CONTENT)} bytes"):
        fetch("tiny")
    archives.cuts = 0
    archives.requests.clear()
    assert_stored(fetch("tiny"))
    assert len(archives.requests) == 1
    assert archives.requests[0] != "/set.bin None"


def test_a_partial_file_of_something_else_is_thrown_away(tiny: NamedSet, archives: Archives) -> None:
    archives.cuts = 99
    with pytest.raises(ConnectionError):
        fetch("tiny")
    archives.cuts = 0
    archives.files["set.bin"] = CONTENT[:50]
    with pytest.raises(ConnectionError):
        fetch("tiny")
    archives.files["set.bin"] = CONTENT
    assert_stored(fetch("tiny"))


def test_a_wrong_hash_is_not_stored(tiny: NamedSet, archives: Archives, tmp_path: Path) -> None:
    archives.files["set.bin"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ConnectionError, match=r"test_labels: SHA-256 [0-9a-f]{12}\.\.\., expected"):
        fetch("tiny")
    assert not (tmp_path / "cache" / "tiny").exists()
    archives.files["set.bin"] = CONTENT
    assert_stored(fetch("tiny"))  # the wrong file was not kept


def test_a_wrong_archive_hash_is_not_decoded(
    tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(tiny.sources[0], sha256=("0" * 64,))
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(pinned,), sha256={}))
    with pytest.raises(ConnectionError, match=r"set\.bin: SHA-256 .*, expected 000000000000"):
        fetch("tiny")
    right = replace(tiny.sources[0], sha256=(hashlib.sha256(CONTENT).hexdigest(),))
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(right,), sha256={}))
    assert_stored(fetch("tiny"))


def test_without_hashes_the_classes_are_counted(
    tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sha256={}))
    archives.files["set.bin"] = CONTENT[:-1] + b"\0"
    with pytest.raises(ConnectionError, match="test: not 1 images of each class"):
        fetch("tiny")


def test_a_wrong_shape_is_not_stored(tiny: NamedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "tiny", replace(tiny, train_images=7))
    with pytest.raises(ConnectionError, match=r"train: shape \(6, 8, 8, 1\), 6 labels; expected \(7, 8, 8, 1\)"):
        fetch("tiny")


def test_the_next_source_is_tried(tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Source((f"{archives.url}/missing.bin",), concatenated)
    damaged = Source((f"{archives.url}/damaged.tgz",), concatenated)
    archives.files["damaged.tgz"] = b"no archive"
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(bad, damaged, *tiny.sources)))
    assert_stored(fetch("tiny"))
    assert [request.split()[0] for request in archives.requests] == ["/missing.bin", "/damaged.tgz", "/set.bin"]


def test_a_source_on_the_hub_takes_one_line(
    tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "hf_hub_url", partial(hf_hub_url, endpoint=archives.url))
    archives.files["datasets/owner/name/resolve/0123abc/data/set.bin"] = archives.files.pop("set.bin")
    far = Source(("http://127.0.0.1:9/set.bin",), concatenated)
    hub = Source(("hf:owner/name@0123abc/data/set.bin",), concatenated, (hashlib.sha256(CONTENT).hexdigest(),))
    package = Source(("npm:no-such-package@1/set.bin",), concatenated)
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(far, hub, package)))
    assert_stored(fetch("tiny"))
    assert archives.requests == ["/datasets/owner/name/resolve/0123abc/data/set.bin None"]


@pytest.mark.parametrize("name", SETS)
def test_package_managers_are_asked_last(name: str) -> None:
    are_packages = [source.urls[0].startswith(("npm:", "apt:")) for source in SETS[name].sources]
    assert are_packages == sorted(are_packages)
    assert not (are_packages and are_packages[0])


@pytest.mark.parametrize("kind", ["folder", "file URL", "http URL"])
def test_a_mirror_goes_first(
    tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "set.bin").write_bytes(CONTENT)
    official = Source(("http://127.0.0.1:9/far/set.bin",), concatenated)  # where nothing answers
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(official,)))
    mirrors = {"folder": str(tmp_path / "mirror"), "file URL": (tmp_path / "mirror").as_uri(), "http URL": archives.url}
    monkeypatch.setenv("CEIT_DATA_MIRROR", mirrors[kind])
    assert_stored(fetch("tiny"))


def test_an_empty_mirror_is_named_and_passed_over(
    tiny: NamedSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CEIT_DATA_MIRROR", str(tmp_path))
    assert_stored(fetch("tiny"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/données", "://x", "http://[::1", "http://127.0.0.1:port/"])
def test_a_mirror_whose_address_is_none_is_passed_over(
    address: str, tiny: NamedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEIT_DATA_MIRROR", address)
    assert_stored(fetch("tiny"))


def test_a_mirror_may_have_any_letters(tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.files["donn%C3%A9es/set.bin"] = archives.files.pop("set.bin")
    monkeypatch.setenv("CEIT_DATA_MIRROR", f"{archives.url}/données")
    assert_stored(fetch("tiny"))


def test_an_empty_folder_is_no_set_and_half_of_one_is_named(tiny: NamedSet, tmp_path: Path) -> None:
    (tmp_path / "cache" / "tiny").mkdir(parents=True)
    folder = fetch("tiny")
    assert_stored(folder)
    (folder / "test_labels.npy").unlink()
    with pytest.raises(ValueError, match=r"tiny is there without test_labels\.npy: remove the folder"):
        fetch("tiny")


def test_offline_says_what_was_tried_and_offers_digits(tiny: NamedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tuple(Source((f"http://127.0.0.1:9/{name}",), concatenated) for name in ("one", "two"))
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=sources))
    with pytest.raises(ConnectionError) as raised:
        fetch("tiny")
    sentence = str(raised.value)
    assert sentence.startswith("tiny could not be fetched; tried http://127.0.0.1:9/one (")
    assert "; http://127.0.0.1:9/two (" in sentence
    assert sentence.endswith("; the set digits ships with the package and needs no network")


def test_a_set_that_cannot_be_stored_leaves_nothing(
    tiny: NamedSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(file: Path, array: np.ndarray) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "write_array", full)
    with pytest.raises(OSError, match="No space left on device"):
        fetch("tiny")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.downloads"]


def test_the_error_of_a_full_disk_names_the_download(tiny: NamedSet, file_size_limit: Callable[[int], None]) -> None:
    file_size_limit(len(CONTENT) - 1)
    with pytest.raises(OSError, match=f"{os.strerror(errno.EFBIG)}: '.*tiny.downloads.*set.bin.part'"):
        fetch("tiny")


def test_digits_need_no_fetching(archives: Archives, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["fetch", "digits"])
    printed = capsys.readouterr().out
    assert "1,437 to train, 360 to test" in printed
    assert "inside the package" in printed
    assert archives.requests == []


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnits'; did you mean 'mnist'"):
        fetch("mnits")


def test_the_real_idx_sets_decode_from_single_files(
    tiny: NamedSet, archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four files of MNIST's form, gzipped, each a download of its own."""
    urls = []
    for name, array in ARRAYS.items():
        split, kind = name.split("_")
        values = array[..., 0] if kind == "images" else array
        header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
        file = f"{'train' if split == 'train' else 't10k'}-{kind}-idx{values.ndim}-ubyte.gz"
        archives.files[file] = gzip.compress(header + values.tobytes())
        urls.append(f"{archives.url}/{file}")
    monkeypatch.setitem(SETS, "tiny", replace(tiny, sources=(Source(tuple(urls), idx),)))
    assert_stored(fetch("tiny"))


def test_the_command_prints_licence_and_citation(tiny: NamedSet, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["fetch", "tiny"])
    captured = capsys.readouterr()
    assert "Tiny: 3 classes of 8 x 8 x 1 pixels" in captured.out
    assert "licence    CC0" in captured.out
    assert "citation   nobody, 2026" in captured.out
    assert "fetching http://127.0.0.1" in captured.err


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fetch"], ["fetsch", "mnist"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(arguments)
