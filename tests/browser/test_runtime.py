"""The runtime of a page: fetched once from whoever has it, and refused if it is not the one that was tried out."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ceit.browser import runtime
from ceit.browser.runtime import Runtime, fetch_runtime
from ceit.data.sources.download import SourceError

FILES = {"ort.wasm.bundle.min.mjs": b"export const ok = 1;", "ort-wasm-simd-threaded.wasm": b"\0asm"}
ARCHIVE = "onnxruntime-web-1.30.0.tgz"


def archive(files: Mapping[str, bytes]) -> bytes:
    """An npm package with these files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as package:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            package.addfile(entry, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """What lies at which address, at first nothing; the cache is empty, and FILES are the right ones."""
    offered: dict[str, bytes] = {}

    def get(files: Mapping[str, Path]) -> None:
        for address, path in files.items():
            if address not in offered:
                raise SourceError(address, OSError("nobody there"))
            path.write_bytes(offered[address])

    monkeypatch.setenv("CEIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("CEIT_DATA_MIRROR", raising=False)
    monkeypatch.setattr(runtime, "get_files", get)
    monkeypatch.setattr(
        runtime, "_SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    )
    return offered


def npm(content: bytes) -> dict[str, bytes]:
    return {f"npm:onnxruntime-web@1.30.0/{ARCHIVE}": content}


def test_the_package_is_fetched_once(web: dict[str, bytes], tmp_path: Path) -> None:
    web.update(npm(archive(FILES)))
    assert fetch_runtime() == Runtime(*FILES.values())
    web.clear()
    assert fetch_runtime() == Runtime(*FILES.values())
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == set(FILES)


def test_a_folder_of_ones_own_goes_first(
    web: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive(FILES))
    monkeypatch.setenv("CEIT_DATA_MIRROR", str(tmp_path))
    assert fetch_runtime() == Runtime(*FILES.values())
    assert (tmp_path / ARCHIVE).exists()


@pytest.mark.parametrize(
    "content",
    [
        archive(FILES | {"ort-wasm-simd-threaded.wasm": b"\0evil"}),
        archive({"ort.wasm.bundle.min.mjs": FILES["ort.wasm.bundle.min.mjs"]}),
        archive(FILES)[:80],
        b"<html>not found</html>",
        b"",
    ],
    ids=["other files", "too few files", "cut short", "a page", "nothing"],
)
def test_other_files_are_refused_and_not_kept(web: dict[str, bytes], content: bytes, tmp_path: Path) -> None:
    web.update(npm(content))
    with pytest.raises(ConnectionError, match=r"could not be fetched; tried mirror: not set; npm: .+; put .+MIRROR"):
        fetch_runtime()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    web.update(npm(archive(FILES)))
    assert fetch_runtime() == Runtime(*FILES.values())


def test_a_changed_file_in_the_cache_is_fetched_anew(web: dict[str, bytes], tmp_path: Path) -> None:
    web.update(npm(archive(FILES)))
    fetch_runtime()
    cached = tmp_path / "cache" / "onnxruntime-web-1.30.0" / "ort-wasm-simd-threaded.wasm"
    cached.write_bytes(b"\0evil")
    assert fetch_runtime().wasm == b"\0asm"
    assert cached.read_bytes() == b"\0asm"
