"""Graphs of runtimes, kept in the cache directory: to make one takes many times as long as to read it."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ceit.atomic import replace_files
from ceit.data.cache import NoCacheError, cache_dir
from ceit.inference.graphs import save_openvino

MOST_BYTES = 2_000_000_000
"""So much is kept, what was used last; a graph is about as large as the weights in it."""
_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}


def recall_graph(name: str, backend: str) -> Path | None:
    """The file of the graph kept under a name; None if there is none, or it is not as it was written."""
    with suppress(NoCacheError):
        for file in _folder().glob(f"{name}.*{_SUFFIX[backend]}"):
            with suppress(OSError):
                if file.stem == f"{name}.{_digest(part.read_bytes() for part in _parts(file))}":
                    with suppress(OSError):  # a cache may be for reading alone
                        os.utime(file)  # it is in use
                    return file
    return None


def keep_graph(name: str, backend: str, graph: Any) -> None:
    """Keeps a graph for later runs. A cache that cannot be written costs them the time to make it anew, no more."""
    with suppress(OSError):
        if backend == "openvino":
            with TemporaryDirectory(prefix="ceit-") as folder:
                made = Path(folder, "graph.xml")
                save_openvino(graph, made)
                contents = [part.read_bytes() for part in _parts(made)]
        else:
            contents = [graph.SerializeToString()]
        place = _folder() / f"{name}.{_digest(contents)}{_SUFFIX[backend]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_files(dict(zip(_parts(place), contents, strict=True)))
        _forget_old(place.parent)


def _folder() -> Path:
    return cache_dir() / "graphs"


def _parts(file: Path) -> list[Path]:
    """What a graph lies in; OpenVINO has the weights beside it."""
    return [file.with_suffix(".bin"), file] if file.suffix == _SUFFIX["openvino"] else [file]


def _digest(contents: Iterable[bytes]) -> str:
    """It tells accidents alone, and stands in a file's name: 64 bits will do."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


def _forget_old(folder: Path) -> None:
    graphs = [file for file in folder.iterdir() if file.suffix in _SUFFIX.values()]
    held = 0
    for file in sorted(graphs, key=lambda file: file.stat().st_mtime, reverse=True):
        parts = [part for part in _parts(file) if part.exists()]
        held += sum(part.stat().st_size for part in parts)
        for part in reversed(parts) if held > MOST_BYTES else ():
            part.unlink()
