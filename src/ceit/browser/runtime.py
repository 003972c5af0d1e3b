"""The two files of onnxruntime-web that run a network in a browser: fetched once, and none with another hash."""

import io
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from ceit.atomic import replace_files
from ceit.data.cache import cache_dir
from ceit.data.sources.download import SourceError, check_hash, copy_from_mirror, get_files

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
_ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
_NPM = f"npm:{PACKAGE}/{_ARCHIVE}"
_SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


class Runtime(NamedTuple):
    """An ES module, and the WebAssembly that it runs."""

    module: bytes
    wasm: bytes


def fetch_runtime() -> Runtime:
    """The files out of the cache, else out of the npm package: from CEIT_DATA_MIRROR or npm.

    Raises: ConnectionError naming what was tried, if none has the files with the right hashes; OSError as the cache.
    """
    folder = cache_dir() / f"onnxruntime-web-{VERSION}"
    try:
        return _checked({name: (folder / name).read_bytes() for name in _SHA256})
    except (OSError, ValueError):
        _make(folder)
    failures = []
    for get in (_from_mirror, _from_npm):
        try:
            files = get(folder)
            runtime = _checked(files)
        except (SourceError, ValueError, LookupError, tarfile.TarError, EOFError, zlib.error) as error:
            failures.append(f"{get.__name__.removeprefix('_from_')}: {error}")
            continue
        replace_files({folder / name: content for name, content in files.items()})
        return runtime
    fix = f"put {_ARCHIVE} of that package into a folder, and set CEIT_DATA_MIRROR to it"
    raise ConnectionError(f"{PACKAGE}, an npm package, could not be fetched; tried {'; '.join(failures)}; {fix}")


def _make(folder: Path) -> None:
    """Raises: OSError if the cache takes no folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; set CEIT_DATA to a folder that takes files"
        raise OSError(error.errno, reason, str(folder)) from error


def _from_mirror(folder: Path) -> dict[str, bytes]:
    if failures := copy_from_mirror([_ARCHIVE], folder):
        raise ValueError(failures[0])
    return _unpacked(folder / _ARCHIVE)


def _from_npm(folder: Path) -> dict[str, bytes]:
    get_files({_NPM: folder / _ARCHIVE})
    return _unpacked(folder / _ARCHIVE)


def _unpacked(archive: Path) -> dict[str, bytes]:
    """Raises: LookupError, TarError or EOFError for another archive."""
    if not archive.exists():
        raise LookupError("not set")
    with tarfile.open(fileobj=io.BytesIO(_taken(archive)), mode="r:gz") as files:
        return {name: _member(files, f"package/dist/{name}") for name in _SHA256}


def _member(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    if file is None:
        raise LookupError(f"{name} is no file")
    return file.read()


def _taken(path: Path) -> bytes:
    """What a download holds, which is not kept: a wrong one would be found again."""
    content = path.read_bytes()
    path.unlink()
    return content


def _checked(files: dict[str, bytes]) -> Runtime:
    """Raises: ValueError for other files."""
    for name, expected in _SHA256.items():
        check_hash(name, files[name], expected)
    return Runtime(*(files[name] for name in _SHA256))
