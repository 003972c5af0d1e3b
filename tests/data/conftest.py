"""Folders of images to load, and a web server of archives that can cut a connection."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ImageFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Makes a folder: ``image_folder({"train/cat": 3}, size=(10, 8))`` writes three PNG files of noise, (W, H)."""

    def make(counts: dict[str, int], size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Path:
        root = tmp_path / "photos"
        random = np.random.default_rng(0)
        for number, (name, count) in enumerate(counts.items()):
            folder = root / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                pixels[0, 0] = number, index, 0  # tells the files apart
                Image.fromarray(pixels).convert(mode).save(folder / f"{index}.png")
        root.mkdir(exist_ok=True)
        return root

    return make


@pytest.fixture
def photo() -> Callable[[Path, int], Path]:
    """Writes a photograph of 40 x 30 noisy pixels, whose mean is known: ``photo(path, 120)``; returns the path."""

    def make(path: Path, brightness: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(brightness).integers(-4, 5, (30, 40, 3))
        Image.fromarray((noise + brightness).clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=95)
        return path

    return make


class Archives(ThreadingHTTPServer):
    """Serves ``files`` by name; the first ``cuts`` answers end after half of the bytes asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.resumes = True
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        assert isinstance(server, Archives)
        server.requests.append(f"{self.path} {asked}")
        data = server.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.resumes else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data)
        if server.cuts > 0:
            server.cuts -= 1
            end = start + (len(data) - start) // 2
        self.wfile.write(data[start:end])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are kept."""


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archives]:
    """The server, which is asked directly whatever the machine's proxy is."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Archives() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
