"""The folder that classifies in a browser: whole, offline, with the network that was checked; or nothing."""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch

from ceit.browser.folder import export_folder, rows_first
from ceit.browser.runtime import Runtime
from ceit.data.preprocessing import Preprocessing
from ceit.inference import exporter
from ceit.inference.example_images import ExampleImages, synthetic
from ceit.inference.exported import load_exported
from ceit.model import CeiT, CeiTConfig

RUNTIME = Runtime(b"export const ok = 1;", b"\0asm")
NAMES = ["ant", "</script><b>", 'cat > dog & "co"', "été"]
"""Among them what HTML and scripts would take for their own."""


GREY = Preprocessing((0.4,), (0.25,))


def network(class_names: Sequence[str] = NAMES) -> CeiT:
    """For grey oblong images; untrained."""
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    config = CeiTConfig(img_size=(24, 16), in_chans=1, num_classes=len(class_names), patch_size=4, **geometry)
    torch.manual_seed(1)
    model = CeiT(config).eval()
    model.class_names, model.preprocessing, model.temperature = list(class_names), GREY.as_dict(), 2.0
    return model


@pytest.fixture(scope="module")
def examples() -> ExampleImages:
    return synthetic(8, image_hw=(24, 16), preprocessing=GREY)


@pytest.fixture(scope="module")
def folder(examples: ExampleImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export") / "page"
    export_folder(network(), place, check=examples, training={"data": "pets", "seed": 1}, runtime=RUNTIME)
    return place


def packed(folder: Path, file: str, after: str) -> bytes:
    text = (folder / file).read_text(encoding="utf-8")
    found = re.search(re.escape(after) + r'"([A-Za-z0-9+/=]+)"', text)
    assert found
    return gzip.decompress(base64.b64decode(found[1]))


def about(folder: Path) -> dict[str, Any]:
    page = (folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script id="about" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_files(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "model.js", "runtime.js", "LICENCES.txt"}
    assert packed(folder, "runtime.js", '"module": ') == RUNTIME.module
    assert packed(folder, "runtime.js", '"wasm": ') == RUNTIME.wasm
    licences = (folder / "LICENCES.txt").read_text(encoding="utf-8")
    assert "MIT License" in licences
    assert "Microsoft Corporation" in licences


def test_the_network_is_the_one_that_was_exported(folder: Path, examples: ExampleImages, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(packed(folder, "model.js", "globalThis.ceitModel = "))
    with torch.no_grad():
        wanted = network()(examples.images)
    np.testing.assert_allclose(load_exported(file)(examples.images), wanted, atol=1e-5)


def test_the_page_knows_what_prediction_knows(folder: Path) -> None:
    known = about(folder)
    assert known["class_names"] == NAMES
    assert known["image_hw"] == [24, 16]
    assert (known["in_chans"], known["temperature"], known["mean"], known["std"]) == (1, 2.0, [0.4], [0.25])
    assert (known["crop"], known["interpolation"]) == (1.0, "bicubic")


def test_names_are_text_and_nothing_names_an_address(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert "</script><b>" not in page
    assert page.count("http") == page.count("http-equiv") == 1
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"model.js", "runtime.js"}
    assert "default-src 'none'" in page
    assert "trained on</dt><dd>pets" in page


def test_the_program_of_the_page_is_whole(folder: Path, repository: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    scripts = sorted((repository / "src/ceit/browser").glob("*.js"))
    assert [script.name for script in scripts] == ["files.js", "page.js", "pixels.js"]
    for script in scripts:
        assert script.read_text(encoding="utf-8") in page


def test_what_is_there_is_never_replaced(examples: ExampleImages, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    with pytest.raises(ValueError, match=r"page exists: name another folder, or remove it"):
        export_folder(network(), tmp_path / "page", check=examples, runtime=RUNTIME)
    with pytest.raises(ValueError, match="there is no folder"):
        export_folder(network(), tmp_path / "no" / "page", check=examples, runtime=RUNTIME)


def test_a_refused_network_leaves_nothing(
    examples: ExampleImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "MAX_ERROR", 0.0)
    with pytest.raises(ValueError, match="the export is refused"):
        export_folder(network(), tmp_path / "page", check=examples, runtime=RUNTIME)
    assert not list(tmp_path.iterdir())


def test_many_classes_are_counted_not_all_named(examples: ExampleImages, tmp_path: Path) -> None:
    model = network([f"kind {i}" for i in range(1000)])
    export_folder(model, tmp_path / "page", check=examples, runtime=RUNTIME)
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "This model knows 1,000 classes: kind 0, kind 1," in page
    assert "kind 19 and 980 more." in page
    assert "kind 20" not in page.split("<script")[0]


def test_the_order_of_pillows_passes_is_known() -> None:
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    assert rows_first() == ("many" if version >= (13, 0) else "tall" if version >= (12, 3) else "none")
