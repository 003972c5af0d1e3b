"""The exported page in Chromium, opened from the disk: the same pixels and answers as ``ceit predict``, and no network.

These tests need Chromium and playwright, and the network once, for onnxruntime-web: ``make test-web``.
"""

import os
import re
import shutil
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

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


def worst_error(found: dict[str, dict[str, float] | str], predictor: Predictor, files: list[Path]) -> float:
    """The largest difference between a probability that the page shows and that of ``ceit predict``."""
    worst = 0.0
    for prediction in predictor.predict(files, top_k=5):
        assert prediction.path
        shown = found[Path(prediction.path).name]
        assert isinstance(shown, dict), shown
        assert len(shown) == 5
        assert max(shown, key=shown.__getitem__) == prediction.predictions[0].label
        worst = max(worst, *(abs(shown[score.label] - score.probability) for score in prediction.predictions))
    return worst


def of_default() -> Predictor:
    return Predictor.from_checkpoint(DEFAULT, device="cpu", precision="float32")


def turned(order: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = order
    return exif


def saved(folder: Path) -> list[Path]:
    """A scene, and the ways in which people's pictures are stored."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
    clear = scene.resize((120, 90)).convert("RGBA")
    clear.putalpha(Image.fromarray(rng.integers(0, 2, (90, 120), dtype=np.uint8) * 255))
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "large.png": (scene.resize((3000, 2250)), {}),
        "large.webp": (scene, {"lossless": True}),
        "tall.png": (scene.resize((40, 700)), {}),
        "thin.png": (scene.resize((3, 900)), {}),
        "one.png": (scene.resize((1, 1)), {}),
        "small.jpg": (scene.resize((60, 44)), {"quality": 90}),
        "turned.jpg": (scene.resize((60, 44)), {"quality": 90, "exif": turned(6)}),
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
    assert worst_error(asked(page, files), predictor, files) <= SAME
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


def other_colours() -> bytes:
    """A colour profile that takes red for blue, and blue for red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks before its pixels."""
    more = b"".join(len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks)
    return png[:33] + more + png[33:]


def test_a_picture_to_be_turned_is_turned(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{order}.{suffix}" for order in range(1, 9) for suffix in ("jpg", "png", "webp")]
    for file in files:
        image = Image.effect_noise((24, 20), 80).convert("RGB")
        image.save(file, exif=turned(int(file.stem)), quality=90, lossless=True)
    found = asked(opened(chromium, page_file), files)
    assert worst_error(found, of_default(), files) <= SAME


def test_where_a_browser_converts_by_profiles_the_page_does_not(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    """As Safari does, whatever the page asks for."""
    image = Image.new("RGB", (64, 64), (220, 60, 20))
    files = [tmp_path / name for name in ("a.jpg", "a.png", "a.webp")]
    for file in files:
        image.save(file, icc_profile=other_colours(), lossless=True)
    page = opened(chromium, page_file)
    page.evaluate("""() => {
        const real = createImageBitmap;
        globalThis.createImageBitmap = (blob) => real(blob);
    }""")
    assert worst_error(asked(page, files), of_default(), files) <= SAME


def test_bytes_lose_what_browsers_do_not_agree_on(chromium: Any, repository: Path, tmp_path: Path) -> None:
    page = chromium.new_page()
    page.goto("about:blank")
    page.add_script_tag(path=repository / "src" / "ceit" / "browser" / "files.js")
    image = Image.effect_noise((24, 20), 80).convert("RGB")
    for name in ("JPEG", "PNG", "WebP"):
        image.save(tmp_path / name, name, icc_profile=other_colours(), exif=turned(6), lossless=True)
    contents = {name: (tmp_path / name).read_bytes() for name in ("JPEG", "PNG", "WebP")}
    colours = [(b"gAMA", (100_000).to_bytes(4)), (b"sRGB", b"\0"), (b"cICP", b"\x09\x10\0\1"), (b"cHRM", bytes(32))]
    contents["PNG"] = with_chunks(contents["PNG"], *colours)
    contents["WebP"] += bytes(7)  # which are no part of it
    for kind, content in contents.items():
        left, order = page.evaluate(
            """([bytes, kind]) => {
                const { pieces, orientation } = bare(Uint8Array.from(bytes), kind);
                return [pieces.flatMap((piece) => [...piece]), orientation];
            }""",
            [list(content), kind],
        )
        with Image.open(BytesIO(content)) as before, Image.open(BytesIO(bytes(left))) as after:
            assert before.tobytes() == after.tobytes()
            assert "icc_profile" in before.info
            assert not {"icc_profile", "gamma", "srgb", "chromaticity"} & {*after.info}
            lies = after.getexif().get(ExifTags.Base.Orientation)
            assert (order, lies) == ((1, 6) if kind == "JPEG" else (6, None))  # every browser turns a JPEG
        for chunk in (b"ICCP", b"EXIF", b"iCCP", b"eXIf", b"gAMA", b"sRGB", b"cICP", b"cHRM", b"ICC_PROFILE"):
            assert chunk not in bytes(left), (kind, chunk)
        if kind == "WebP":
            assert int.from_bytes(bytes(left[4:8]), "little") == len(left) - 7 - 8
            assert not left[20] & 0b101000  # neither profile nor EXIF is announced


@pytest.mark.parametrize(
    ("exif", "order"),
    [
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0", 8),
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0", 3),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x05", 5),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0", 1),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03", 1),
        (b"MM\0*\xff\xff\xff\xff", 1),
        (b"no EXIF", 1),
        (b"", 1),
    ],
)
def test_an_orientation_is_read_where_there_is_one(chromium: Any, repository: Path, exif: bytes, order: int) -> None:
    page = chromium.new_page()
    page.goto("about:blank")
    page.add_script_tag(path=repository / "src" / "ceit" / "browser" / "files.js")
    assert page.evaluate("(bytes) => orientationOf(Uint8Array.from(bytes))", list(exif)) == order


def test_a_browser_that_refuses_a_question_has_not_found_damage(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "good.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file)
    page = opened(chromium, page_file)
    page.evaluate("""() => {
        const real = createImageBitmap;
        globalThis.createImageBitmap = (blob, options) => { // as Chrome 111
            return "imageOrientation" in options ? Promise.reject(new TypeError("unknown")) : real(blob, options);
        };
    }""")
    assert isinstance(asked(page, [file])["good.png"], dict)
    page = opened(chromium, page_file)
    page.evaluate("() => { globalThis.createImageBitmap = () => Promise.reject(new TypeError('no such option')); }")
    assert asked(page, [file])["good.png"] == "good.png cannot be classified: no such option."


def test_canvases_give_their_memory_back(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("RGB", (3000, 2250), (200, 30, 30)).save(file)
    page = opened(chromium, page_file)
    page.evaluate("""() => {
        const real = HTMLCanvasElement.prototype.getContext, made = globalThis.made = [];
        HTMLCanvasElement.prototype.getContext = function (...given) {
            made.push(this);
            return real.apply(this, given);
        };
    }""")
    assert isinstance(asked(page, [file])["large.png"], dict)
    assert page.evaluate("() => made.map((canvas) => [canvas.isConnected, canvas.width])") == [[False, 0], [True, 32]]


LITTLE_MEMORY = "this browser has too little memory left: close other pages and load this one again."


def test_a_browser_without_memory_for_a_canvas_is_told_of(chromium: Any, page_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "good.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file)
    page = opened(chromium, page_file)
    page.evaluate("() => { HTMLCanvasElement.prototype.getContext = () => null; }")
    assert asked(page, [file])["good.png"] == f"good.png cannot be classified: {LITTLE_MEMORY}"


def test_a_folder_that_is_dropped_is_named_and_the_picture_beside_it_answered(chromium: Any, page_file: Path) -> None:
    page = opened(chromium, page_file)
    page.evaluate("""() => new Promise((done) => document.createElement("canvas").toBlob((picture) => {
        DataTransferItem.prototype.webkitGetAsEntry = function () {
            const { name } = this.getAsFile();
            return { name, isDirectory: name === "holiday" };
        };
        const given = new DataTransfer();
        given.items.add(new File([], "holiday"));
        given.items.add(new File([picture], "good.png"));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: given }));
        done();
    }))""")
    page.locator("#answers li[data-done]").nth(1).wait_for(timeout=60_000)
    assert page.locator("#answers h2").all_inner_texts() == ["holiday", "good.png"]
    sentence = "holiday is a folder: open it and choose the pictures in it."
    assert page.locator("#answers .fault").all_inner_texts() == [sentence]
    assert page.locator("#answers li").nth(1).locator("[data-probability]").count() == 5


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
    missing = "model.js is missing: unpack the whole folder first, on a phone open it from a web server."
    assert page.inner_text("#warning") == f"The model cannot be started: {missing}"
    assert page.locator("#chooser").is_disabled()


@pytest.mark.parametrize(
    ("change", "end"),
    [
        ("delete globalThis.DecompressionStream;", ". This page needs a browser of 2023 or newer."),
        ("globalThis.atob = () => { throw new RangeError('no room'); };", f"started: {LITTLE_MEMORY}"),
        (
            "globalThis.atob = () => { throw new Error('[wasm] RangeError: Out of memory'); };",
            f"started: {LITTLE_MEMORY}",
        ),
        ("globalThis.atob = () => { throw new Error('something else'); };", "started: something else."),
    ],
)
def test_a_start_that_fails_says_what_to_do(chromium: Any, page_file: Path, change: str, end: str) -> None:
    page = chromium.new_page()
    page.add_init_script(change)
    page.goto(page_file.as_uri())
    page.locator("#warning:not(:empty)").wait_for(timeout=60_000)
    said = page.inner_text("#warning")
    assert said.startswith("The model cannot be started: ")
    assert said.endswith(end)


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
