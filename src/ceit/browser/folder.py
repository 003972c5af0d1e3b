"""A folder with a page, a network and what runs it: opened in a browser, it classifies pictures without a server."""

import base64
import gzip
import json
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from ceit.atomic import move, require_place
from ceit.browser import runtime as onnxruntime_web
from ceit.browser.runtime import Runtime
from ceit.inference.example_images import ExampleImages
from ceit.inference.exporter import ExportPrecision, Report, export
from ceit.inference.predictor import class_names_of, preprocessing_of
from ceit.model import CeiT
from ceit.version import __version__
from ceit.weights.geometry import nearest_model

PAGE = "index.html"
_NAMED_CLASSES = 20
_LICENCE = """\
model.js and index.html were written by ceit {ceit}. index.html is licensed under Apache-2.0; the model is its maker's.

runtime.js holds onnxruntime-web {version}, an npm package, unchanged but packed:

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def export_folder(
    model: CeiT,
    folder: Path,
    *,
    precision: ExportPrecision = "float32",
    check: ExampleImages,
    calibration: Any = None,
    training: dict[str, Any] | None = None,
    runtime: Runtime | None = None,
) -> Report:
    """Write ``index.html``, ``model.js``, ``runtime.js`` and ``LICENCES.txt`` into ``folder``, which must not exist.

    The network is exported to ONNX and checked as ``exporter.export`` does, whose arguments these are. Both scripts
    hold their bytes as packed text, since a page that is opened from a disk may not read other files. ``runtime`` is
    by default fetched. The folder appears whole or not at all.

    Raises: ValueError as ``exporter.export``, or if the folder is there; ConnectionError as ``fetch_runtime``.
    """
    refuse_existing(folder)
    require_place(folder)
    runtime = runtime or onnxruntime_web.fetch_runtime()
    with TemporaryDirectory(prefix=".ceit-", dir=folder.parent) as place:
        file, trial = Path(place, "model.onnx"), Path(place, "folder")
        report = export(
            model, file, format="onnx", precision=precision, check=check, calibration=calibration, training=training
        )
        packed = {"module": _packed(runtime.module), "wasm": _packed(runtime.wasm)}
        texts = {
            PAGE: _page(model, report, training or {}),
            "model.js": f'globalThis.ceitModel = "{_packed(file.read_bytes())}";\n',
            "runtime.js": f"globalThis.ceitRuntime = {json.dumps(packed)};\n",
            "LICENCES.txt": _LICENCE.format(ceit=__version__, version=onnxruntime_web.VERSION),
        }
        trial.mkdir()
        for name, text in texts.items():
            trial.joinpath(name).write_text(text, encoding="utf-8", newline="\n")
        move(trial, folder)
    return report


def rows_first() -> str:
    """Which pictures Pillow makes less tall before it makes them less wide: it rounds in between.

    ``many``: those that lose more than twice as many rows as columns, from Pillow 13 on. ``tall``: those more than 100
    times as tall as wide, in 12.3. ``none``: before that.
    """
    for rule, (width, height), size in (("many", (8, 60), (7, 20)), ("tall", (2, 300), (3, 50))):
        picture = Image.frombytes("L", (width, height), bytes(i * i * 37 % 251 for i in range(width * height)))
        if picture.resize(size).tobytes() == picture.resize((width, size[1])).resize(size).tobytes():
            return rule
    return "none"


def refuse_existing(folder: Path) -> None:
    """Raises: ValueError if something of this name is there."""
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists: name another folder, or remove it")


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _page(model: CeiT, report: Report, training: dict[str, Any]) -> str:
    room = files("ceit.browser")
    preprocessing, class_names = preprocessing_of(model), list(class_names_of(model))
    about = preprocessing.as_dict() | {
        "image_hw": model.config.image_hw,
        "in_chans": model.config.in_chans,
        "class_names": class_names,
        "temperature": model.temperature or 1.0,
        "rows_first": rows_first(),
    }
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = strict.from_string(room.joinpath("index.html.j2").read_text(encoding="utf-8"))
    scripts = [room.joinpath(name).read_text(encoding="utf-8") for name in ("files.js", "pixels.js", "page.js")]
    text = template.render(
        classes=_listed(class_names),
        facts=_facts(model, report, training),
        about=Markup(json.dumps(about).replace("<", "\\u003c")),
        script=Markup("".join(scripts)),
    )
    return text.encode(errors="replace").decode()


def _listed(class_names: list[str]) -> str:
    named, more = class_names[:_NAMED_CLASSES], len(class_names) - _NAMED_CLASSES
    return f"{len(class_names):,} classes: {', '.join(named)}{f' and {more:,} more' if more > 0 else ''}"


def _facts(model: CeiT, report: Report, training: dict[str, Any]) -> dict[str, str]:
    height, width = model.config.image_hw
    name, changes = nearest_model(model.config)
    facts = {"network": ", ".join([name, *(f"{key} {value}" for key, value in changes.items())])}
    if isinstance(data := training.get("data"), str):
        facts["trained on"] = data
    if isinstance(percent := training.get("test_top1_percent"), int | float):
        facts["right on its test images"] = f"{percent:.2f}%"
    seen = f"{width} x {height} pixels, {'grey' if model.config.in_chans == 1 else 'colour'}"
    facts |= {
        "sees a picture at": seen,
        "probabilities": "not calibrated" if model.temperature is None else "calibrated on validation images",
        "numbers": report.precision,
        "checked": f"names the class that the trained network names for {report.agreement_percent:.2f}% of "
        f"{report.images:,} images ({report.images_from})",
        "made with": f"ceit {__version__} and onnxruntime-web {onnxruntime_web.VERSION}",
    }
    return facts
