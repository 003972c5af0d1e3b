"""Every limit holds before memory is taken, names value, limit and fix, and can be raised where it says so."""

import gzip
import io
import json
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

import ceit
from ceit import limits
from ceit.data import pillow
from ceit.data.image import read_header, read_image
from ceit.data.sources.archives import open_archives, open_unpacked
from ceit.data.sources.columns import read_columns
from ceit.data.sources.download import SourceError, get_files
from ceit.data.sources.known_sets import SETS
from ceit.inference.exported import ExportedDescription
from ceit.json_file import parse_json
from ceit.limits import Limit
from ceit.model import CeiTConfig
from ceit.train.recipe import read_recipe
from ceit.weights import Description

Refused = Callable[[Callable[[], object]], str]
ROOT = Path(__file__).parents[2]
COLUMNS = [["path"], ["label"]]


def hole(path: Path, size: int) -> Path:
    """A file of so many bytes that takes none on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_an_image_file_of_2_gb(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hole(tmp_path / "a.png", 2_000_000_000)
    said = "has 2,000 MB of image file, above the limit of 1,100: CEIT_MAX_IMAGE_MB=2000 in the environment allows it"
    assert refused(lambda: read_image(path, 3)) == f"{path} {said}"
    monkeypatch.setenv("CEIT_MAX_IMAGE_MB", "1")
    hole(path, 1_500_000)
    assert "has 1.5 MB of image file, above the limit of 1: CEIT_MAX_IMAGE_MB=2" in refused(lambda: read_image(path, 3))


def test_a_device_and_a_pipe_are_no_images(tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", Path("/dev/zero")):
        said = refused(lambda place=place: read_image(place, 3))
        assert said == f"{place} cannot be read (no regular file: save it to one first)"
        assert refused(lambda place=place: read_header(place)) == said


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_of_ten_billion_pixels(refused: Refused) -> None:
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = png_chunks((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    assert "above the limit of 179 megapixels; CEIT_MAX_MEGAPIXELS=10000" in refused(lambda: read_image(data, 3))
    assert round(pillow.limit_megapixels()) == 179


def test_texts_that_unpack_to_much_are_left_out() -> None:
    bomb = zlib.compress(bytes(10**8))
    head, rows = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\x80")
    texts = [(b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)]
    assert read_image(png_chunks((b"IHDR", head), *texts, (b"IDAT", rows), (b"IEND", b"")), 1).getpixel((0, 0)) == 128


def test_of_many_frames_one_is_decoded() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), number) for number in range(200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert read_image(buffer.getvalue(), 1).size == (64, 64)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_a_table_of_2_gb(name: str, tmp_path: Path, refused: Refused) -> None:
    if name.endswith("csv"):
        hole(tmp_path / name, 2_000_000_000)
        said = "2,000 MB of table of labels, above the limit of 1,000: CEIT_MAX_TABLE_MB=2000"
    else:
        import numpy as np
        import pyarrow
        import pyarrow.parquet

        label = pyarrow.DictionaryArray.from_arrays(np.zeros(60_000_000, np.int8), ["a"])
        pyarrow.parquet.write_table(pyarrow.table({"path": label, "label": label}), tmp_path / name)
        del label
        said = "60,000,000 rows of table of labels, above the limit of 50,000,000: CEIT_MAX_TABLE_ROWS=60000000"
    assert said in refused(lambda: read_columns(tmp_path / name, COLUMNS))


def test_a_cell_of_a_megabyte(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "labels.csv").write_text(f"path,label\na.png,{'a' * 10**6}\n")
    assert "field larger than field limit (131072)" in refused(lambda: read_columns(tmp_path / "labels.csv", COLUMNS))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "21 aliases of YAML, above the limit of 20"),
        ("a0: &a0 {x: 1}\n" + "b: {<<: [" + "*a0, " * 30 + "]}\n", "21 aliases of YAML"),
        ("[" * 5_000, "21 levels of YAML, above the limit of 20"),
        ("- " * 5_000, "21 levels of YAML"),
        ("a: &a [*a]", "has 'a' inside of itself: write it out"),
        ("a: " + "x" * 2_000_000, "of YAML, above the limit of 1"),
    ],
    ids=["laughs", "merges", "brackets", "dashes", "itself", "long"],
)
def test_a_recipe(text: str, said: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert said in refused(lambda: read_recipe(str(tmp_path / "recipe.yaml")))


def test_json(tmp_path: Path, refused: Refused) -> None:
    assert parse_json("it", '{"a": "[[' + "[" * 500 + '"}') == {"a": "[[" + "[" * 500}
    assert parse_json("it", "[" * 100 + "]" * 100)
    assert refused(lambda: parse_json("it", b"[" * 101 + b"]" * 101)).startswith("it has 101 levels of JSON")
    assert "levels of JSON" in refused(lambda: parse_json("it", '"' + r"\"" * 10**5 + '"' + "[" * 10**5))
    network = ceit.model.CeiT(
        CeiTConfig(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=2, stem_channels=8)
    )
    ceit.save_checkpoint(tmp_path / "model.safetensors", network)
    hole(tmp_path / "model.json", 200_000_000)
    said = "200 MB of JSON, above the limit of 100: CEIT_MAX_JSON_MB=200 in the environment allows it"
    assert said in refused(lambda: ceit.load_checkpoint(tmp_path / "model.safetensors"))


def test_an_exported_file_that_asks_for_huge_images(refused: Refused) -> None:
    config = CeiTConfig(img_size=2**20, embed_dim=24, depth=1, num_heads=2, num_classes=2)
    told = ExportedDescription(Description(config), "onnx", "float32", True, "0").to_json()
    assert "1,048,576 pixels a side" in refused(lambda: ExportedDescription.from_json(told))


def test_a_gzipped_file_of_a_set(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ceit.data.sources.archives.ARCHIVE", limits.ARCHIVE._replace(value=10))
    (tmp_path / "images.gz").write_bytes(gzip.compress(bytes(11_000_000)))
    assert "10.1 MB of unpacked archive, above the limit of 10" in refused(lambda: open_unpacked(tmp_path)("images"))
    assert "unpacked archive" in refused(lambda: open_archives([tmp_path / "images.gz"])("images"))


class _Endless(BaseHTTPRequestHandler):
    """A server that means harm."""

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/large":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Endless) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("large", "it has 1,000,000 MB of download, above the limit of 3: CEIT_MAX_DOWNLOAD_MB=1000000"),
        ("endless", "MB of download, above the limit of 3: CEIT_MAX_DOWNLOAD_MB=4"),
        ("elsewhere", "is not allowed"),
    ],
)
def test_downloads(path: str, said: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEIT_MAX_DOWNLOAD_MB", "3")
    with pytest.raises(SourceError, match=re.escape(said)):
        get_files({f"{server}/{path}": tmp_path / "file"})
    assert not (tmp_path / "file").exists()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3_000_000


def test_every_set_that_is_fetched_has_hashes() -> None:
    for name, known in SETS.items():
        assert all(known.sha256 or source.sha256 for source in known.sources), name


@pytest.mark.parametrize("limit", [limit for limit in limits.ALL if limit.variable], ids=lambda limit: limit.variable)
def test_a_variable_sets_another_limit(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = limits.MB if limit.unit == "MB" else 1
    limit.require(limit.value * unit, "it")
    with pytest.raises(
        limits.TooMuchError, match=rf"^it has .* above the limit of .*: {limit.variable}=\d+ in the env"
    ):
        limit.require(2 * limit.value * unit, "it")
    monkeypatch.setenv(limit.variable, str(2 * limit.value))
    limit.require(2 * limit.value * unit, "it")
    monkeypatch.setenv(limit.variable, "much")
    with pytest.raises(ValueError, match=f"{limit.variable} must be a number above 0, got 'much'"):
        limit.require(1, "it")


def test_every_limit_is_used_and_every_test_named_in_the_table_is_there() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py") if path.name != "limits.py")
    names = [name for name, value in vars(limits).items() if isinstance(value, Limit)]
    own = (ROOT / "src" / "ceit" / "limits.py").read_text("utf-8")
    assert [name for name in names if not re.search(rf"\b{name}\b", sources) and f"    {name}.require" not in own] == []
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    assert [place for place in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / place).exists()] == []
    assert json.dumps(text).count("<!-- computed: limits") == 1
