"""The page as people use it: ``ceit web`` as a process, Chromium before it, and nothing that leaves the machine.

Needs Chromium, and gradio and playwright, which are no part of the gate: run ``make test-web``.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import ceit
from ceit.data.preprocessing import Preprocessing
from ceit.inference.familiarity import KNOWN_REJECTED
from ceit.inference.predictor import Predictor
from ceit.shipped import DEFAULT
from tests.listener import Listener

pytestmark = pytest.mark.browser

SECOND = "ceit_pico_patch4_32.cifar10"
CHOOSE = "#picture input[type=file]"
TAKING = (*(f"gradio_api/{name}/answers" for name in ("run", "api", "call", "call/v2")), "api/predict", "login")
TAKING += tuple(f"gradio_api/{name}" for name in ("queue/join", "component_server", "process_recording", "upload"))
GIVING = ("gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/", "file=", "svelte/")
SECONDS = 60


class Served(NamedTuple):
    """A running ``ceit web``, its address, and what went out of it."""

    process: subprocess.Popen[str]
    address: str
    went_out: Listener

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """The status and the body; ``_`` in the names of headers is ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.address}/{path}", data, named)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, data: bytes, name: str = "a.png") -> tuple[int, bytes]:
        """As the page does it."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body = f"{head}Content-Type: image/png\r\n\r\n".encode() + data + b"\r\n--b--\r\n"
        return self.ask("gradio_api/upload", body, content_type="multipart/form-data; boundary=b")


def serving(home: Path, *arguments: str) -> Served:
    """With ``home`` for whatever is written, temporary files, too."""
    went_out = Listener()
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), went_out.address)
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    environment.pop("HF_HUB_OFFLINE", None)  # nothing shall go out because nobody wants it to
    command = [sys.executable, "-m", "ceit", "web", "--device", "cpu", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    return Served(process, line.split()[0], went_out)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Afterwards: it ended cleanly, nothing went out of it, and no picture was left."""
    home = tmp_path_factory.mktemp("home")
    running = serving(home, "--checkpoint", DEFAULT, SECOND)
    yield running
    running.process.send_signal(signal.SIGINT)
    _, told = running.process.communicate(timeout=SECONDS)
    assert (running.process.returncode, told) == (130, "interrupted\n")
    assert running.went_out.lines == []
    left = [str(path) for path in home.rglob("*") if path.is_file()]
    assert [path for path in left if ".cache/matplotlib" not in path] == []


@pytest.fixture
def open_page(start_browser: Callable[[], Any], served: Served) -> Iterator[Callable[[], Any]]:
    """Opens the page in a browser of its own. Afterwards: it asked no other machine, and no script failed."""
    asked, wrong, browsers = list[str](), list[str](), list[Any]()

    def open_one() -> Any:
        browsers.append(start_browser())
        page = browsers[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(served.address)
        page.wait_for_selector(CHOOSE, state="attached")
        return page

    yield open_one
    for browser in browsers:
        browser.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((f"{served.address}/", "data:", "blob:"))] == []
    assert wrong == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a picture of its own for every number: blocks of colour."""
    folder = tmp_path_factory.mktemp("pictures")

    def write(number: int, form: str = "png") -> Path:
        file = folder / f"{number}.{form}"
        if not file.exists():  # a browser refuses to send a file that was written anew
            pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((320, 240)).save(file)
        return file

    return write


def shown_on(page: Any, model: str) -> list[tuple[str, float]]:
    """What the page answers, once it does."""
    card = page.locator(f'[data-model="{model}"]')
    card.wait_for()
    rows = card.locator("tr[data-probability]").evaluate_all(
        "rows => rows.map(row => [row.dataset.label, row.dataset.probability])"
    )
    return [(label, float(probability)) for label, probability in rows]


def expected_of(model: str, file: Path) -> list[tuple[str, float]]:
    predictor = Predictor.from_checkpoint(model, device="cpu", precision="auto", unknown_below=KNOWN_REJECTED)
    return [(label, probability) for label, probability in predictor.predict(file)[0].predictions]


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], abs=1e-4)


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_chosen_picture_is_answered_as_predict_answers(
    form: str, open_page: Callable[[], Any], served: Served, pictures: Callable[..., Path]
) -> None:
    page, file = open_page(), pictures(1, form)
    page.set_input_files(CHOOSE, file)
    for model in (DEFAULT, SECOND):
        found, expected = shown_on(page, model), expected_of(model, file)
        assert_same(found, expected)
        status, answer = served.ask(f"api/predict?model={model}", file.read_bytes())
        assert status == 200
        assert_same([(one["label"], one["probability"]) for one in json.loads(answer)["predictions"]], expected)
    panels = page.locator(f'[data-model="{DEFAULT}"] figure img')
    assert panels.count() == 4
    assert panels.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 200 && one.alt)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_it_fits_the_window_and_serves_everybody(
    open_page: Callable[[], Any],
    pictures: Callable[..., Path],
    width: int,
    scheme: str,
    serious_faults: Callable[[Any], list[str]],
) -> None:
    page = open_page()
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.set_input_files(CHOOSE, pictures(1))
    shown_on(page, SECOND)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_faults(page) == []


def test_the_camera_is_answered(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.locator("#picture").get_by_label("Capture from camera").click()
    page.locator("#picture").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("() => document.querySelector('#picture video')?.readyState >= 2")  # it has a frame
    page.locator("#picture").get_by_label("capture photo").click()
    assert len(shown_on(page, DEFAULT)) == 5
    address = page.locator("#picture img").first.get_attribute("src")
    with urllib.request.urlopen(address) as answer, Image.open(io.BytesIO(answer.read())) as seen:
        left, right = (np.asarray(seen.convert("L").crop((x, 0, x + 100, 240))).mean() for x in (0, 220))
    assert left < 20
    assert right > 200


def test_a_pasted_picture_is_answered(open_page: Callable[[], Any], pictures: Callable[..., Path]) -> None:
    page, file = open_page(), pictures(2)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => navigator.clipboard.write(
               [new ClipboardItem({"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])""",
        list(file.read_bytes()),
    )
    page.locator("#picture").get_by_label("Paste from clipboard").click()
    assert_same(shown_on(page, DEFAULT), expected_of(DEFAULT, file))


def test_two_browsers_are_answered_at_once(open_page: Callable[[], Any], pictures: Callable[..., Path]) -> None:
    pages, files = (open_page(), open_page()), (pictures(3), pictures(4))
    for page, file in zip(pages, files, strict=True):
        page.set_input_files(CHOOSE, file)
    for page, file in zip(pages, files, strict=True):
        assert_same(shown_on(page, DEFAULT), expected_of(DEFAULT, file))


def test_bad_files_are_sentences_and_the_next_picture_is_answered(
    open_page: Callable[[], Any], served: Served, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    file = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(file, "PNG")
    photo = pictures(5, "jpg").read_bytes()
    bad = {
        "text.png": (b"no picture\n" * 100, "not an image"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not an image"),
        "large.png": (file.getvalue(), "12000 x 9000 pixels, above the limit of 64 megapixels"),
        "damaged.jpg": (photo[: len(photo) // 2], "truncated"),
        "words.txt": (b"no picture", "Invalid file type"),
    }
    for name, (data, words) in bad.items():
        (tmp_path / name).write_bytes(data)
        page = open_page()
        page.set_input_files(CHOOSE, tmp_path / name)
        page.get_by_text(re.compile(re.escape(words))).first.wait_for()
        page.close()
        good = pictures(6)
        assert json.loads(served.ask("api/predict", good.read_bytes())[1])["predictions"]
        if words in ("not an image", "truncated"):
            status, answer = served.ask("api/predict", data)
            assert status == 422
            assert words in json.loads(answer)["error"]
    page = open_page()
    page.set_input_files(CHOOSE, pictures(6))
    assert_same(shown_on(page, DEFAULT), expected_of(DEFAULT, pictures(6)))


def test_a_heavy_file_and_too_many_are_sentences(
    start_browser: Callable[[], Any], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    running, browser = serving(tmp_path), start_browser()
    try:
        page = browser.new_page()
        page.goto(running.address)
        (tmp_path / "heavy.png").write_bytes(bytes(50_000_000))
        page.set_input_files(CHOOSE, tmp_path / "heavy.png")
        page.get_by_text("exceed the maximum allowed size of 20.0 Mb").wait_for()
        page.set_input_files(CHOOSE, pictures(1))
        assert_same(shown_on(page, DEFAULT), expected_of(DEFAULT, pictures(1)))
        while running.ask("api/predict", b"no picture")[0] == 422:
            assert running.process.poll() is None
        status, answer = running.ask("api/predict", pictures(2).read_bytes())
        assert status == 429
        assert "more than 120 requests in a minute" in json.loads(answer)["error"]
        page.locator("#picture").get_by_label("Remove Image").click()
        page.get_by_text("more than 120 requests in a minute").first.wait_for()
    finally:
        browser.close()
        running.process.terminate()
        running.process.communicate(timeout=SECONDS)


def test_a_picture_that_is_taken_away_takes_its_answers_with_it(
    open_page: Callable[[], Any], pictures: Callable[..., Path]
) -> None:
    page = open_page()
    page.set_input_files(CHOOSE, pictures(7))
    shown_on(page, DEFAULT)
    page.locator("#picture").get_by_label("Remove Image").click()
    page.wait_for_selector(".ceit-card", state="detached")


def test_uploaded_pictures_are_deleted(served: Served, pictures: Callable[..., Path]) -> None:
    path = Path(json.loads(served.upload(pictures(8).read_bytes())[1])[0])
    assert path.is_file()
    assert served.ask(f"gradio_api/file={path}") == (200, pictures(8).read_bytes())
    until = time.monotonic() + 30
    while path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert not path.exists()


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "..\\evil.png", "a.svg", "a.html"])
def test_uploads_stay_in_their_folder(name: str, served: Served) -> None:
    inside = Path(json.loads(served.upload(b"a picture")[1])[0]).parents[1]
    (path,) = json.loads(served.upload(b"another", name)[1])
    assert Path(path).resolve().is_relative_to(inside)
    assert Path(path).is_file()


def test_gradio_fetches_nothing_and_reads_nothing(tmp_path: Path, pictures: Callable[..., Path]) -> None:
    """Every way in of gradio that takes an address or a path, and a few more."""
    secret = Path(pictures(9)).with_name("secret.txt")
    secret.write_text("the secret of this machine", encoding="utf-8")
    running = serving(tmp_path)
    listener, meta = Listener(), {"meta": {"_type": "gradio.FileData"}}
    try:
        for source in (f"{listener.address}/a.png", str(secret), f"file://{secret}", "/etc/passwd"):
            pictures_given: list[Any] = [
                {"path": source, **meta},
                {"path": "a.png", "url": source, **meta},
                {"path": source, "url": source, "orig_name": "a.png", "is_stream": True, **meta},
                source,
            ]
            for given in pictures_given:
                body = {"data": [given], "fn_index": 0, "session_hash": "abc", "trigger_id": 1, "event_data": given}
                for route in TAKING:
                    status, answer = running.ask(route, json.dumps(body).encode(), content_type="application/json")
                    assert status in (400, 403, 404, 422), (route, given)
                    assert b"secret of this machine" not in answer
            for route in GIVING:
                status, answer = running.ask(route + source)
                assert status in (400, 403, 404, 422), (route, source)
                assert b"secret of this machine" not in answer
                assert b"root:" not in answer
        assert running.ask("api/predict", pictures(9).read_bytes())[0] == 200, "all that came before is done"
        assert listener.lines == []
    finally:
        running.process.terminate()
        running.process.communicate(timeout=SECONDS)
    assert running.went_out.lines == []
    with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2]))) as control:
        control.sendall(b"GET /control\r\n")
        control.recv(1)
    assert listener.lines == [b"GET /control"]


def test_the_browser_sends_nothing_elsewhere_even_if_told_to(start_browser: Callable[[], Any], served: Served) -> None:
    listener, browser = Listener(), start_browser()
    page = browser.new_page()
    page.goto(served.address)
    page.wait_for_selector(CHOOSE, state="attached")
    told = """async address => {
        const image = new Promise(done => {
            const one = new Image(); one.onload = one.onerror = done; one.src = address + "/a.png" })
        await image
        return fetch(address, {mode: "no-cors"}).then(() => "sent", () => "blocked") }"""
    assert page.evaluate(told, listener.address) == "blocked"
    assert page.evaluate("() => fetch('/api/models').then(answer => answer.status)") == 200
    browser.close()
    assert listener.lines == []


def test_another_web_page_gets_nothing(start_browser: Callable[[], Any], served: Served) -> None:
    """A page of another port is another origin: it may read nothing, and a form that it sends is refused."""
    other, browser = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler), start_browser()
    threading.Thread(target=other.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{other.server_port}/")  # a page that says that there is none is one, too
    ask = "url => fetch(url).then(answer => answer.text(), () => 'nothing')"
    assert page.evaluate(ask, f"{served.address}/api/models") == "nothing"
    form = """url => {
        document.body.innerHTML = `<form method="post" enctype="text/plain" action="${url}"><input name="a"></form>`
        document.forms[0].submit() }"""
    page.evaluate(form, f"{served.address}/api/predict")
    page.get_by_text("only the page of ceit web may ask, and no other web page").wait_for()
    browser.close()
    other.shutdown()
    other.server_close()


def test_names_are_text_in_the_browser(
    start_browser: Callable[[], Any], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("<img src=x onerror=alert(1)>", "${alert(2)}", "{{#each value}}<script>alert(3)</script>{{/each}}")
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(**geometry, img_size=(16, 24), num_classes=3, patch_size=4))
    file = tmp_path / "<script>alert(4)<" / "script>.safetensors"
    file.parent.mkdir()
    ceit.save_checkpoint(file, model, class_names=names, preprocessing=Preprocessing((0.3,) * 3, (0.4,) * 3))
    (tmp_path / "home").mkdir()
    running, browser = serving(tmp_path / "home", "--checkpoint", str(file)), start_browser()
    try:
        page, opened = browser.new_page(), list[str]()
        page.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
        page.goto(running.address)
        page.get_by_text(str(file)).first.wait_for()
        page.set_input_files(CHOOSE, pictures(1))
        assert {label for label, _ in shown_on(page, str(file))} == set(names)
        assert set(page.locator("tr[data-label] th").all_inner_texts()) == set(names)
        assert opened == []
    finally:
        browser.close()
        running.process.terminate()
        running.process.communicate(timeout=SECONDS)


def test_a_port_in_use_is_one_sentence(served: Served) -> None:
    port = served.address.rpartition(":")[2]
    command = [sys.executable, "-m", "ceit", "web", "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: port {port} is taken, or not allowed: name another with --port\n"


def test_with_a_word_others_may_ask_and_nobody_without(
    tmp_path: Path, pictures: Callable[..., Path], start_browser: Callable[[], Any]
) -> None:
    running = serving(tmp_path, "--share", "eight letters")
    try:
        assert running.ask("")[0] == 401
        assert running.ask("api/models")[0] == 401
        assert running.ask("api/predict", pictures(1).read_bytes())[0] == 401
        assert running.upload(b"x")[0] == 401
        browser = start_browser()
        page = browser.new_context(http_credentials={"username": "me", "password": "eight letters"}).new_page()
        page.goto(running.address)
        page.set_input_files(CHOOSE, pictures(1))
        assert_same(shown_on(page, DEFAULT), expected_of(DEFAULT, pictures(1)))
        browser.close()
    finally:
        running.process.terminate()
        _, told = running.process.communicate(timeout=SECONDS)
    assert running.process.returncode == 143
    assert told.endswith("terminated\n")
    assert running.went_out.lines == []
