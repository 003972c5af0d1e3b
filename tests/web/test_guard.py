"""The guard lets in the page and programs of this machine, and nothing else: no other page, address, file or flood."""

import asyncio
import base64
import json
import ntpath
from collections.abc import Callable
from itertools import count
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ceit.web import guard
from ceit.web.guard import Guard

Ask = Callable[..., Any]
JOIN = "/gradio_api/queue/join"


class Behind:
    """An app that says what reached it."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str, bytes]] = []
        self.headers: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.reached.append((scope["method"], scope["path"], body))
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        loose = [(b"content-type", b"text/html"), (b"Content-Security-Policy", b"default-src *")]
        await send({"type": "http.response.start", "status": 200, "headers": loose})
        await send({"type": "http.response.body", "body": b"page"})


@pytest.fixture
def behind() -> Behind:
    return Behind()


def basic(word: str, name: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{name}:{word}".encode()).decode()


def test_the_page_and_programs_of_this_machine_are_let_in(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    own = Guard(behind, tmp_path)
    for host in ("127.0.0.1:7860", "localhost:7860", "LOCALHOST", "127.0.0.1:8888", "[::1]:7860"):
        assert ask(own, "/", host=host).status == 200
        origin = {"origin": f"http://{host}", "sec_fetch_site": "same-origin"}
        assert ask(own, "/api/predict", b"image", method="POST", host=host, **origin).status == 200
    assert ask(own, "/api/predict", b"image", method="POST").status == 200
    assert behind.reached.count(("POST", "/api/predict", b"image")) == 6


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "192.168.1.9:7860",
        "0.0.0.0",
        "",
        "[::1",
        "@127.0.0.1.",
    ],
)
def test_a_name_that_was_bound_to_this_address_is_refused(host: str, ask: Ask, behind: Behind, tmp_path: Path) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/models"), ("POST", "/api/predict"), ("POST", JOIN)):
        refused = ask(Guard(behind, tmp_path), path, method=method, host=host)
        assert refused.status == 403
        assert "is no name of this page: open the address that ceit web printed" in refused.json()["error"]
    assert behind.reached == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://localhost:7860"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"origin": "file://127.0.0.1:7860"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_another_web_page_may_not_ask(headers: dict[str, str], ask: Ask, behind: Behind, tmp_path: Path) -> None:
    for method, path in (
        ("GET", "/api/models"),
        ("POST", "/api/predict"),
        ("POST", "/gradio_api/upload"),
        ("POST", JOIN),
    ):
        refused = ask(Guard(behind, tmp_path), path, b"image", method=method, **headers)
        assert refused.status == 403
        assert refused.json() == {"error": "only the page of ceit web may ask, and no other web page"}
        assert "access-control-allow-origin" not in refused.headers
    assert behind.reached == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/a.png"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/file={uploads}/../secret"),
        ("GET", "/gradio_api/file={uploads}/a/%2E%2E/%2E%2E/secret"),
        ("GET", "/gradio_api/file={uploads}"),
        ("GET", "/gradio_api/file={uploads}-of-others/a"),
        ("GET", "/gradio_api/file={uploads}/a%00"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("HEAD", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("OPTIONS", "/api/predict"),
        ("DELETE", "/api/predict"),
        ("GET", "/api/predict"),
        ("POST", "/api/models"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/queue/join/"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/"),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(
    method: str, path: str, ask: Ask, behind: Behind, tmp_path: Path
) -> None:
    refused = ask(Guard(behind, tmp_path), path.format(uploads=tmp_path), b"{}", method=method)
    assert refused.status == 404
    assert behind.reached == []


def test_files_of_the_upload_folder_are_given_out(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    assert ask(Guard(behind, tmp_path), f"/gradio_api/file={tmp_path}/a1b2/my%20cat..png").status == 200


@pytest.mark.parametrize(
    "picture",
    [
        {"path": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "{uploads}/../secret"},
        {"path": "{uploads}/a/../../secret"},
        {"path": "{uploads}"},
        {"path": "{uploads}/a1b2"},
        {"path": "{uploads}/a1b2/gone.png"},
        {"path": "{uploads}/a\0.png"},
        {"path": "a.png"},
        {"path": ["{uploads}/a.png"]},
        {"path": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}},
    ],
)
def test_neither_addresses_nor_files_of_the_machine_reach_gradio(
    picture: dict[str, Any], ask: Ask, behind: Behind, tmp_path: Path
) -> None:
    (tmp_path / "a1b2").mkdir()
    body = json.dumps({"data": [picture], "fn_index": 0, "session_hash": "a"}).replace("{uploads}", str(tmp_path))
    refused = ask(Guard(behind, tmp_path), JOIN, body.encode(), method="POST")
    assert refused.status == 403
    assert (
        "only an uploaded picture can be asked about: no address, and no file of the machine" in refused.json()["error"]
    )
    assert behind.reached == []


NO_QUESTIONS = ("", "{", "[]", "7", "null", '{"data": 3}', '{"data": []}', '{"data": [null, null]}')
NO_QUESTIONS += ('{"data": ["/etc/passwd"]}', '{"data": [{"url": "http://127.0.0.1:1/"}]}', "\udc80", "[" * 50_000)


@pytest.mark.parametrize("body", NO_QUESTIONS)
def test_a_question_that_is_none_is_refused(body: str, ask: Ask, behind: Behind, tmp_path: Path) -> None:
    refused = ask(Guard(behind, tmp_path), JOIN, body.encode(errors="surrogateescape"), method="POST")
    assert (refused.status, refused.json()) == (400, {"error": "this is no question about a picture"})
    assert behind.reached == []


def test_of_a_question_only_the_uploaded_picture_is_passed_on(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    path = f"{tmp_path}/a1b2/cat.png"
    (tmp_path / "a1b2").mkdir()
    Path(path).write_bytes(b"picture")
    picture = {"path": path, "url": "http://127.0.0.1:1/", "is_stream": True, "orig_name": "cat.png"}
    hidden = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    asked = {"session_hash": "s", "fn_index": 0, "trigger_id": 4}
    body = json.dumps({**asked, "data": [picture], "event_data": hidden, "oauth_token": "t"}).encode()
    length = str(len(body))
    assert ask(Guard(behind, tmp_path), JOIN, body, method="POST", content_length=length).status == 200
    ((_, _, passed),) = behind.reached
    assert json.loads(passed) == {**asked, "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    assert "content-length" not in behind.headers, "it is another body"
    nothing = b'{"data": [null], "session_hash": "0f8fad5b-d9cb-469f-a165-70867728950e", "fn_index": 0}'
    assert ask(Guard(behind, tmp_path), JOIN, nothing, method="POST").status == 200


def test_bodies_have_a_limit_whatever_they_say_of_their_length(
    ask: Ask, behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_BYTES", 2 << 20)
    own, part = Guard(behind, tmp_path), bytes(1 << 20)
    assert ask(own, "/api/predict", part, part, method="POST").status == 200
    for parts, said in (
        ((part, part, b"x"), {}),
        ((part, part, b"x"), {"content_length": "5"}),
        ((), {"content_length": "2097153"}),
    ):
        refused = ask(own, "/api/predict", *parts, method="POST", **said)
        assert (refused.status, refused.json()) == (413, {"error": "more than 2 MB: make the picture smaller"})
    for lie in ("-1", "1e3", "²", "9" * 5000):
        assert ask(own, "/api/predict", method="POST", content_length=lie).status == 413
    assert len(behind.reached) == 1


def test_a_link_on_another_page_may_open_the_page(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    assert ask(Guard(behind, tmp_path), "/", sec_fetch_site="cross-site").status == 200


def test_a_body_that_breaks_off_or_takes_too_long_is_given_up(
    behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_MOST_SECONDS", 0.05)
    own = Guard(behind, tmp_path)
    statuses: list[int] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/predict",
        "headers": [(b"host", b"localhost")],
        "client": None,
    }

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def breaks_off() -> Any:
        return {"type": "http.disconnect"}

    async def never() -> Any:
        await asyncio.Event().wait()

    asyncio.run(own(dict(scope), breaks_off, send))
    asyncio.run(own(dict(scope), never, send))
    assert statuses == [400, 408]
    assert behind.reached == []


def test_a_client_may_not_ask_too_often_in_a_minute(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    now = 1000.0
    own = Guard(behind, tmp_path, clock=lambda: now)
    asked = [ask(own, "/api/predict", b"x", method="POST").status for _ in range(guard.MOST_A_MINUTE)]
    assert set(asked) == {200}
    now += 20.5
    refused = ask(own, "/api/predict", b"x", method="POST")
    assert (refused.status, refused.headers["retry-after"]) == (429, "40")
    assert refused.json() == {"error": "more than 120 requests in a minute: try again in 40 s"}
    assert ask(own, "/api/predict", b"x", method="POST", client="192.168.1.9").status == 200
    assert ask(own, "/").status == 200, "looking is free"
    now += 40
    assert ask(own, "/api/predict", b"x", method="POST").status == 200


def test_only_so_many_pictures_are_answered_at_once(tmp_path: Path) -> None:
    async def run() -> list[tuple[int, str | None]]:
        go, seen = asyncio.Event(), list[tuple[int, str | None]]()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> Any:
            return {"type": "http.request", "body": b"x"}

        async def send(message: Any) -> None:
            if "status" in message:
                seen.append((message["status"], dict(message["headers"]).get(b"retry-after")))

        scope = {"type": "http", "method": "POST", "path": "/api/predict", "headers": [(b"host", b"localhost")]}
        own = Guard(slow, tmp_path)
        waiting = [asyncio.create_task(own(dict(scope), receive, send)) for _ in range(guard.MOST_AT_ONCE)]
        await asyncio.sleep(0)
        await own(dict(scope), receive, send)
        go.set()
        await asyncio.gather(*waiting)
        await own(dict(scope), receive, send)
        return seen

    assert asyncio.run(run()) == [(429, b"2"), *[(200, None)] * (guard.MOST_AT_ONCE + 1)]


def test_others_need_the_word(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    hours = count()
    shared = Guard(behind, tmp_path, "ein Wört: x", ["Laptop", "laptop.local"], clock=lambda: 3600.0 * next(hours))
    for host in ("192.168.1.9:7860", "laptop:7860", "LAPTOP.local", "localhost", "[fe80::1]:7860"):
        assert ask(shared, "/", host=host, authorization=basic("ein Wört: x")).status == 200
    assert ask(shared, "/", host="evil.example", authorization=basic("ein Wört: x")).status == 403
    reached = len(behind.reached)
    words = (basic("ein Wort: x"), basic(""), "Basic §", "Basic", "Basic =", "Bearer ein Wört: x", "")
    for wrong in ({}, *({"authorization": word} for word in words)):
        for method, path in (("GET", "/"), ("GET", "/api/models"), ("POST", "/api/predict"), ("POST", JOIN)):
            refused = ask(shared, path, b"x", method=method, **wrong)
            assert refused.status == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
    assert len(behind.reached) == reached


def test_words_cannot_be_tried_out(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    now = [0.0]
    shared = Guard(behind, tmp_path, "the true word", clock=lambda: now[0])
    tried = [ask(shared, "/", authorization=basic(f"{number}")).status for number in range(guard.MOST_WRONG + 5)]
    assert tried == [401] * guard.MOST_WRONG + [429] * 5
    assert ask(shared, "/", authorization=basic("the true word")).status == 429  # or it would be told from the others
    assert ask(shared, "/", authorization=basic("the true word"), client="10.0.0.9").status == 200
    now[0] = 61.0
    assert ask(shared, "/", authorization=basic("the true word")).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nbytes\r\n--b--\r\n', 200),
        (b'--b\r\nContent-Disposition: form-data; name="other"; filename="a.png"\r\n\r\nbytes\r\n--b--\r\n', 400),
        (b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nbytes', 400),
        (b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nbytes\r\n--b--', 400),
        (b'--b\r\nX: name="files"; filename="a"\r\n\r\n1\r\n--b\r\nX: y\r\n\r\n2\r\n--b--\r\n', 400),
        (b"", 400),
    ],
)
def test_an_upload_is_one_whole_picture(ask: Ask, behind: Behind, tmp_path: Path, body: bytes, status: int) -> None:
    kind = "multipart/form-data; boundary=b"
    answer = ask(Guard(behind, tmp_path), "/gradio_api/upload", body, method="POST", content_type=kind)
    assert answer.status == status
    assert len(behind.reached) == (status == 200)


@pytest.mark.parametrize("fn_index", ["1", "-1", "99999", "NaN", '"0"', "null", "1" * 4000])
def test_a_question_is_the_one_of_the_page(ask: Ask, behind: Behind, tmp_path: Path, fn_index: str) -> None:
    body = f'{{"data": [null], "fn_index": {fn_index}, "session_hash": "a"}}'.encode()
    assert ask(Guard(behind, tmp_path), JOIN, body, method="POST").status == 400
    assert behind.reached == []


def test_an_address_has_an_end(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    assert ask(Guard(behind, tmp_path), "/static/" + "a" * 2000).status == 414


def test_nothing_is_fetched_from_elsewhere(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    for path, status in (("/", 200), ("/nowhere", 404)):
        answer = ask(Guard(behind, tmp_path), path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert answer.status == status
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        sources = {source for name, listed in policy.items() for source in listed.split()}
        assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_nobody_may_say_that_a_proxy_stands_before_it(ask: Ask, behind: Behind, tmp_path: Path) -> None:
    assert ask(Guard(behind, tmp_path), "/", x_forwarded_host="evil.example", x_forwarded_proto="https").status == 200
    assert set(behind.headers) == {"host"}


def test_websockets_are_closed(behind: Behind, tmp_path: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(behind, tmp_path)({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert behind.reached == []


def test_a_browser_turns_the_strokes_of_a_windows_path(
    ask: Ask, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "os", SimpleNamespace(path=ntpath, sep="\\"))
    own = Guard(behind, cast("Path", PureWindowsPath(r"C:\Users\me\uploads")))
    assert ask(own, "/gradio_api/file=C:/Users/me/uploads/a1b2/cat.png").status == 200
    assert ask(own, "/gradio_api/file=C:/Users/me/uploads/../secret.png").status == 404
    assert ask(own, "/gradio_api/file=C:/Users/me/secret.png").status == 404


@pytest.mark.parametrize(
    "asked",
    [
        {"session_hash": "s" * 65},
        {"session_hash": ""},
        {"session_hash": "\ud800"},
        {"session_hash": 7},
        {"session_hash": "s", "trigger_id": 1 << 40},
        {"session_hash": "s", "trigger_id": "t" * 1000},
    ],
)
def test_what_gradio_would_keep_for_ever_is_small(
    asked: dict[str, Any], ask: Ask, behind: Behind, tmp_path: Path
) -> None:
    body = json.dumps({"data": [None], "fn_index": 0} | asked).encode()
    assert ask(Guard(behind, tmp_path), JOIN, body, method="POST").status == 400
    long = json.dumps({"data": [None], "fn_index": 0, "session_hash": "s", "more": "x" * 100_000}).encode()
    assert ask(Guard(behind, tmp_path), JOIN, long, method="POST").status == 413
    assert behind.reached == []
