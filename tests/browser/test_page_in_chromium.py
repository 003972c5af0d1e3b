"""The exported page in Chromium, opened from the disk: the same pixels and answers as ``ceit predict``, and no network.

These tests need Chromium and playwright, and the network once, for onnxruntime-web: ``make test-web``.
"""

import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import ceit
from ceit.browser.folder import export_folder, rows_first
from ceit.browser.runtime import Runtime, fetch_runtime
from ceit.data.image import read_image
from ceit.data.preprocessing import Preprocessing, to_array, to_image
from ceit.data.reduced import evaluation_cover
from ceit.inference.example_images import synthetic
from ceit.inference.predictor import Predictor, preprocessing_of
from ceit.shipped import DEFAULT, shipped_names, shipped_weights
from tests.listener import Listener

pytestmark = pytest.mark.browser

SAME = 1e-4
CACHE = os.environ.get("CEIT_DATA")
"""The user's own, where the runtime stays between runs; other tests must not see it."""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CEIT_DATA", CACHE) if CACHE else patch.delenv("CEIT_DATA", raising=False)
        return fetch_runtime()


@pytest.fixture(scope="module")
def page_of(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a model that ships, made once."""

    @cache
    def make(name: str) -> Path:
        model = ceit.load_checkpoint(shipped_weights(name))
        images = synthetic(8, image_hw=model.config.image_hw, preprocessing=preprocessing_of(model))
        folder = tmp_path_factory.mktemp(name) / "page"
        export_folder(model, folder, check=images, runtime=runtime)
        return folder / "index.html"

    return make


@pytest.fixture
def page_file(page_of: Callable[[str], Path]) -> Path:
    return page_of(DEFAULT)


def opened(chromium: Any, page_file: Path, **options: Any) -> Any:
    """The page, when the model is ready. Each request and each message of the console is kept on it."""
    page = chromium.new_page(**options)
    page.requests, page.messages = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.goto(page_file.as_uri())
    page.locator("body[data-ready]").wait_for(timeout=60_000)
    return page


def asked(page: Any, files: list[Path]) -> dict[str, dict[str, float] | str]:
    """By file name the probability of each class that is shown, or the sentence in their place."""
    page.set_input_files("#chooser", [str(file) for file in files])
    page.locator("#answers li[data-done]").nth(len(files) - 1).wait_for(timeout=120_000)
    found = {}
    for card in page.query_selector_all("#answers li"):
        rows = card.query_selector_all("tr")
        shares = [row.query_selector("[data-probability]").get_attribute("data-probability") for row in rows]
        names = [row.query_selector("th").inner_text() for row in rows]
        found[card.query_selector("h2").inner_text()] = (
            dict(zip(names, map(float, shares), strict=True)) or card.query_selector(".fault").inner_text()
        )
    return found


def saved(folder: Path) -> list[Path]:
    """A scene, and the ways in which people's pictures are stored."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = scene.resize((120, 90)).convert("RGBA")
    clear.putalpha(Image.fromarray(rng.integers(0, 2, (90, 120), dtype=np.uint8) * 255))
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "large.png": (scene.resize((3000, 2250)), {}),
        "large.webp": (scene, {"lossless": True}),
        "tall.png": (scene.resize((40, 700)), {}),
        "thin.png": (scene.resize((3, 900)), {}),
        "one.png": (scene.resize((1, 1)), {}),
        "small.jpg": (scene.resize((60, 44)), {"quality": 90}),
        "turned.jpg": (scene.resize((60, 44)), {"quality": 90, "exif": turned}),
        "press.jpg": (scene.resize((60, 44)).convert("CMYK"), {"quality": 90}),
        "grey.png": (scene.convert("L"), {}),
        "palette.png": (scene.convert("P"), {}),
        "clear.png": (clear, {}),
        "moving.gif": (scene.convert("P"), {"save_all": True, "append_images": [ImageOps.invert(scene).convert("P")]}),
        "old.bmp": (scene.resize((64, 48)), {}),
        "frames.png": (scene, {"save_all": True, "append_images": [ImageOps.invert(scene)], "default_image": True}),
    }
    for name, (image, options) in ways.items():
        image.save(folder / name, **options)
    motion = folder / "motion.jpg"
    motion.write_bytes((folder / "small.jpg").read_bytes() + b"\0\0\0\x18ftypmp42" + rng.bytes(1_000_000))
    return [motion, *(folder / name for name in ways)]


@pytest.mark.parametrize("name", shipped_names())
def test_answers_are_those_of_predict(chromium: Any, page_of: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    predictor = Predictor.from_checkpoint(name, device="cpu", precision="float32")
    files = saved(tmp_path)
    page = opened(chromium, page_of(name))
    found = asked(page, files)
    worst = 0.0
    for prediction in predictor.predict(files, top_k=5):
        assert prediction.path
        shown = found[Path(prediction.path).name]
        assert isinstance(shown, dict), shown
        assert len(shown) == 5
        assert max(shown, key=shown.__getitem__) == prediction.predictions[0].label
        worst = max(worst, *(abs(shown[score.label] - score.probability) for score in prediction.predictions))
    assert worst <= SAME
    assert page.messages == []


def test_nothing_is_asked_of_a_network(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    page = opened(chromium, page_file)
    asked(page, saved(tmp_path)[:2])
    assert page.requests
    own = page_file.parent.as_uri()
    assert [url for url in page.requests if not url.startswith((own, "blob:"))] == []
    listener, free = Listener(), tmp_path / "free.html"
    fetching = f"() => fetch('{listener.address}').then(() => 'sent', () => 'refused')"
    assert page.evaluate(fetching) == "refused"
    assert listener.lines == []
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')
    free.write_text(policy.sub("", page_file.read_text(encoding="utf-8")), encoding="utf-8")
    page.goto(free.as_uri())
    page.evaluate(fetching)
    assert len(listener.lines) == 1  # what the policy keeps from going out


def test_what_is_no_picture_gets_a_sentence_and_the_next_picture_an_answer(
    chromium: Any, page_file: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(good)
    whole = BytesIO()
    Image.effect_noise((640, 480), 80).save(whole, "JPEG")
    Image.new("L", (10_000, 10_000), 128).save(tmp_path / "huge.png")
    Image.new("L", (70_000, 20), 128).save(tmp_path / "wide.png")
    contents = {
        "notes.txt": b"a text",
        "empty.png": b"",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "half.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
        "half.png": good.read_bytes()[:-20],
        "bad.jpg": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9",
        "bombay.txt": b"BM, formerly",
        "fifty.jpg": whole.getvalue() + bytes(50_000_000),
        "<img src=x onerror=alert(1)>.png": b"no picture",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    page = opened(chromium, page_file)
    found = asked(page, [*(tmp_path / name for name in (*contents, "huge.png", "wide.png")), good])
    kinds = "it is no picture that this page knows: give a PNG, JPEG, WebP, GIF, BMP or AVIF."
    for name in ("notes.txt", "bombay.txt", "empty.png", "drawing.svg", "<img src=x onerror=alert(1)>.png"):
        assert found[name] == f"{name} cannot be classified: {kinds}"
    for name, kind in (("half.jpg", "JPEG"), ("half.png", "PNG")):
        assert found[name] == f"{name} cannot be classified: this {kind} breaks off: copy or download it again."
    damaged = "this JPEG is damaged, or this browser does not read it."
    assert found["bad.jpg"] == f"bad.jpg cannot be classified: {damaged}"
    assert found["fifty.jpg"] == "fifty.jpg cannot be classified: it is 50 MB, this page takes up to 40 MB."
    assert found["huge.png"] == "huge.png cannot be classified: it has 100 megapixels, this page takes up to 64."
    longer = "its longer side has 70000 pixels, this page takes up to 16384."
    assert found["wide.png"] == f"wide.png cannot be classified: {longer}"
    assert isinstance(found["good.png"], dict)


def test_a_picture_to_be_turned_is_turned_or_refused(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    for order in range(1, 9):
        turned[0x0112] = order
        Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / f"{order}.webp", lossless=True, exif=turned)
    found = asked(opened(chromium, page_file), [tmp_path / f"{order}.webp" for order in range(1, 9)])
    refused = "this WebP is to be turned, which not all browsers do: save it as a PNG or JPEG."
    assert isinstance(found.pop("1.webp"), dict)
    assert found == {name: f"{name} cannot be classified: {refused}" for name in found}


def test_what_comes_while_the_model_loads_waits_for_it(chromium: Any, page_file: Path) -> None:
    page = chromium.new_page()
    page.goto(page_file.as_uri(), wait_until="commit")
    drop = """() => new Promise(done => document.createElement('canvas').toBlob(picture => {
        const given = new DataTransfer();
        given.items.add(new File([picture], 'early.png'));
        document.dispatchEvent(new DragEvent('drop', { dataTransfer: given }));
        done(document.body.dataset.ready === undefined);
    }))"""
    while page.evaluate("() => typeof take") != "function":  # the page's own program runs
        pass
    assert page.evaluate(drop)  # it was not ready yet
    page.locator("#answers li[data-done] [data-probability]").first.wait_for(timeout=60_000)


def test_without_its_files_the_page_says_what_is_missing(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    shutil.copy(page_file, tmp_path)
    page = chromium.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.locator("#warning:not(:empty)").wait_for()
    assert "model.js is missing: it must lie in the folder of this page" in page.inner_text("#warning")
    assert page.locator("#chooser").is_disabled()


@pytest.mark.parametrize("width", [1100, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_and_serves_everybody(
    chromium: Any,
    page_file: Path,
    tmp_path: Path,
    width: int,
    scheme: str,
    serious_faults: Callable[[Any], list[str]],
) -> None:
    name = tmp_path / f"{'long' * 40}.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(name)
    page = opened(chromium, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked(page, [name, page_file])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("details").evaluate("element => element.open = true")
    assert serious_faults(page) == []


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pixels_are_pillows_to_the_bit(chromium: Any, interpolation: str, repository: Path) -> None:
    page = chromium.new_page()
    page.goto("about:blank")
    page.add_script_tag(path=repository / "src" / "ceit" / "browser" / "pixels.js")
    rng = np.random.default_rng(len(interpolation))
    for number in range(24):
        channels = int(rng.choice([1, 3]))
        most = (60, 400)[number % 2]
        height, width = (int(side) for side in rng.integers(1, most, 2)) if number % 10 else (900, 2)
        size = int(rng.choice([28, 32, 64])), int(rng.choice([28, 32, 64]))
        mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.247, 0.2435, 0.2616)[:channels]
        prepare = Preprocessing(mean, std, float(rng.choice([1.0, 0.875, 0.9])), interpolation)
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        cover = evaluation_cover(size, prepare.crop)
        wanted = to_array(prepare.fit(read_image(to_image(pixels), channels, cover), size))
        values = prepare.normalise(wanted[None])[0].permute(2, 0, 1)
        about = prepare.as_dict() | {"image_hw": size, "rows_first": rows_first()}
        picture = {"width": width, "height": height, "channels": channels, "data": pixels.ravel().tolist()}
        got = page.evaluate(
            """([picture, about]) => {
                const view = seen({ ...picture, data: Uint8Array.from(picture.data) }, about, false);
                return [Array.from(view.data), Array.from(normalised(view, about.mean, about.std))];
            }""",
            [picture, about],
        )
        case = f"{width} x {height} x {channels} to {size}, crop {prepare.crop}"
        assert got[0] == wanted.ravel().tolist(), case
        assert torch.equal(torch.tensor(got[1]), values.flatten()), case
