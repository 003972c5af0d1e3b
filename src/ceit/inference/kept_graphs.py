"""Graphs of runtimes, kept in the cache directory: to make one takes many times as long as to read it."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ceit.atomic import replace_files
from ceit.data.cache import cache_dir
from ceit.inference.graphs import save_openvino

MOST_BYTES = 2_000_000_000
"""So much is kept, what was used last; a graph is about as large as the weights in it."""
_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}


def recall_graph(name: str, backend: str) -> Path | None:
    """The file of the graph kept under a name, None if there is none."""
    try:
        file = _place(name, backend)
        os.utime(file)  # it is in use
        return file if backend != "openvino" or file.with_suffix(".bin").is_file() else None
    except OSError:
        return None


def keep_graph(name: str, backend: str, graph: Any) -> None:
    """Keeps a graph for later runs. A cache that cannot be written costs them the time to make it anew, no more."""
    with suppress(OSError):
        place = _place(name, backend)
        place.parent.mkdir(parents=True, exist_ok=True)
        if backend == "openvino":
            with TemporaryDirectory(prefix="ceit-") as folder:
                made = Path(folder, "graph.xml")
                save_openvino(graph, made)
                files = {suffix: made.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}
        else:
            files = {".onnx": graph.SerializeToString()}
        replace_files({place.with_suffix(suffix): content for suffix, content in files.items()})
        _forget_old(place.parent)


def _place(name: str, backend: str) -> Path:
    return cache_dir() / "graphs" / f"{name}{_SUFFIX[backend]}"


def _forget_old(folder: Path) -> None:
    graphs = [file for file in folder.iterdir() if file.suffix in _SUFFIX.values()]
    held = 0
    for file in sorted(graphs, key=lambda file: file.stat().st_mtime, reverse=True):
        weights = [file.with_suffix(".bin")] if file.suffix == _SUFFIX["openvino"] else []
        parts = [part for part in (file, *weights) if part.exists()]
        held += sum(part.stat().st_size for part in parts)
        for part in parts if held > MOST_BYTES else ():
            part.unlink()
