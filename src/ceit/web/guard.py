"""Who may ask what: every request passes here first, and what is refused gets one sentence as JSON.

Pure ASGI, without a framework: another web page, a name that was bound to this address anew, a flood, and a route that
the page does not need reach none. The answers tell the browser to fetch nothing from anywhere else.
"""

import asyncio
import base64
import hmac
import json
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ceit import limits
from ceit.json_file import parse_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = limits.REQUEST.value
MOST_AT_ONCE, MOST_A_MINUTE = limits.REQUESTS_AT_ONCE.value, limits.REQUESTS_A_MINUTE.value
MOST_WRONG = limits.WRONG_WORDS.value
"""Of requests that bring something: of all clients at once, and of each in a minute. Of wrong words in a minute."""
_MOST_SECONDS = float(limits.REQUEST_SECONDS.value)  # to send one, and to take a part of its answer
_MOST_LETTERS = 1024  # of an address; file systems take fewer for a name, and gradio asks them
_MOST_NUMBER = 1 << 31  # above those that gradio's page gives
_SESSION = re.compile("[A-Za-z0-9-]{1,64}")  # its page makes a dozen letters, its client for Python a UUID

_JOIN, _FILE, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/file=", "/gradio_api/upload"
_POSTS = {"/api/predict", _UPLOAD, _JOIN}
_GETS = re.compile(  # what the page loads; gradio has many routes more
    r"/|/api/models|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.*|"
    r"/gradio_api/(queue/data|upload_progress)"
)
_POLICY = (  # gradio's page is full of scripts; but nothing comes from anywhere else, and nothing goes there
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class RefusedError(Exception):
    """A request that is refused: a status, a sentence, and headers beside it."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Guard:
    """Passes on to ``app`` what is allowed, with its body read.

    ``uploads`` is the folder of uploaded pictures, the only one whose files are given out or asked about. With a
    ``word`` other machines may ask, which know it as the password of HTTP Basic, and call this one by its numbers or
    its ``names``; ``clock`` tells seconds.
    """

    def __init__(
        self,
        app: App,
        uploads: Path,
        word: str | None = None,
        names: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._uploads, self._word = app, os.path.join(uploads, ""), word
        self._names = {"localhost", *(name.lower() for name in names)}
        self._asked = _Minute(MOST_A_MINUTE, "requests", clock)
        self._wrong = _Minute(MOST_WRONG, "wrong words", clock)
        self._at_once = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request: refused, or passed on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page needs no websocket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [name for name, _ in _HEADERS]
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in own]
                message = {**message, "headers": [*kept, *_HEADERS]}
            async with asyncio.timeout(_MOST_SECONDS):  # who does not take an answer may not keep others waiting
                await send(message)

        try:
            await self._pass_on(scope, receive, send_safe)
        except RefusedError as refusal:
            content = json.dumps({"error": refusal.sentence}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            start = {"type": "http.response.start", "status": refusal.status, "headers": [*headers, *refusal.headers]}
            with suppress(TimeoutError):
                await send_safe(start)
                await send_safe({"type": "http.response.body", "body": content})
        except TimeoutError:
            return  # the server ends the connection

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        client = (scope.get("client") or ("",))[0]
        self._require_own_page(headers, is_opened=scope["method"] == "GET" and scope["path"] == "/")
        self._require_word(headers, client)
        self._require_route(scope["method"], scope["path"])
        # No proxy stands before this server, so nobody may say that one does.
        others = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(b"x-forwarded-")]
        scope = {**scope, "headers": others}
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        _require_size(headers.get(b"content-length", "0"))
        self._asked.require_fewer(client)
        self._asked.note(client)
        if self._at_once >= MOST_AT_ONCE:
            raise RefusedError(429, f"{MOST_AT_ONCE} pictures are being answered: try again", (b"retry-after", b"2"))
        self._at_once += 1
        try:
            body = await _body(receive)
            if scope["path"] == _UPLOAD:
                _require_one_picture(headers.get(b"content-type", ""), body)
            if scope["path"] == _JOIN:
                if len(body) > (most := limits.QUESTION.value):
                    raise RefusedError(413, f"more than {most:,} bytes are no question about a picture")
                body = self._question(body)
                scope["headers"] = [pair for pair in others if pair[0].lower() != b"content-length"]
            await self._app(scope, _replaying(body, receive), send)
        finally:
            self._at_once -= 1

    def _require_own_page(self, headers: dict[bytes, str], is_opened: bool) -> None:
        """The page that this server gave out, or a program that is no browser; a link elsewhere may open the page.

        Another page may bind its name to this address (DNS rebinding), so the name must be known. Numbers are safe.
        """
        host = headers.get(b"host", "")
        if not self._is_own_name(_host_name(host)):
            raise RefusedError(403, f"{host!r} is no name of this page: open the address that ceit web printed")
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", "none")
        is_own_page = origin is None or origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
        if not is_own_page or (site not in ("same-origin", "none") and not is_opened):
            raise RefusedError(403, "only the page of ceit web may ask, and no other web page")

    def _is_own_name(self, name: str) -> bool:
        try:
            number = ip_address(name)
        except ValueError:
            return name in self._names
        return self._word is not None or number.is_loopback

    def _require_word(self, headers: dict[bytes, str], client: str) -> None:
        if self._word is None:
            return
        is_tried = b"authorization" in headers
        if is_tried:
            self._wrong.require_fewer(client)  # before the word is looked at, or its answer would tell
        if hmac.compare_digest(_password(headers), self._word.encode()):
            return
        if is_tried:
            self._wrong.note(client)
        challenge = (b"www-authenticate", b'Basic realm="ceit web", charset="UTF-8"')
        raise RefusedError(401, "the word is missing or wrong: give it as the password, with any name", challenge)

    def _require_route(self, method: str, path: str) -> None:
        if len(path) > _MOST_LETTERS:
            raise RefusedError(414, f"an address of {len(path):,} letters is too long: {_MOST_LETTERS:,} are taken")
        is_picture = path.startswith(_FILE) and self._is_upload(path.removeprefix(_FILE))
        if not (path in _POSTS if method == "POST" else method == "GET" and (_GETS.fullmatch(path) or is_picture)):
            raise RefusedError(404, "there is no such page, or it is not needed and therefore closed")

    def _question(self, body: bytes) -> bytes:
        """What the page may ask of gradio, and nothing beside it: about an uploaded picture, or about none.

        gradio would fetch what is at an address, and copy files of the machine.
        """
        try:
            given = parse_json("it", body)
            (picture,) = given["data"]
            path = None if picture is None else picture["path"]
            asked = {key: given.get(key) for key in ("session_hash", "fn_index", "trigger_id")}
            number = asked["trigger_id"]
            if asked["fn_index"] != 0 or not (number is None or (type(number) is int and 0 <= number < _MOST_NUMBER)):
                raise ValueError("a question of another page")  # this one asks one kind
            if not _SESSION.fullmatch(asked["session_hash"]):  # gradio keeps it for ever
                raise ValueError("a session of another page")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RefusedError(400, "this is no question about a picture") from error
        if path is None:
            data = None
        elif isinstance(path, str) and self._is_upload(path) and os.path.isfile(path):  # gradio trips over a folder
            data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        else:
            raise RefusedError(
                403, "only an uploaded picture can be asked about: no address, and no file of the machine"
            )
        return json.dumps({**asked, "data": [data]}).encode()

    def _is_upload(self, path: str) -> bool:
        path = path.replace("/", os.sep)  # a browser turns the strokes of a Windows path
        return path.startswith(self._uploads) and os.path.normpath(path) == path and "\0" not in path


class _Minute:
    """Of each client the times of what it did within a minute, of which there may be ``most``."""

    def __init__(self, most: int, what: str, clock: Callable[[], float]) -> None:
        self._most, self._what, self._clock = most, what, clock
        self._times: dict[str, deque[float]] = {}

    def require_fewer(self, client: str) -> None:
        """Raises: RefusedError if the client has done it as often as it may."""
        now, times = self._clock(), self._times.get(client, deque[float]())
        if len(times) == self._most and (wait := times[0] + 60 - now) > 0:
            sentence = f"more than {self._most} {self._what} in a minute: try again in {wait:.0f} s"
            raise RefusedError(429, sentence, (b"retry-after", str(int(wait) + 1).encode()))

    def note(self, client: str) -> None:
        """Note down that it was done now, and forget clients that have done nothing for a minute."""
        now = self._clock()
        self._times = {who: times for who, times in self._times.items() if times[-1] > now - 60}
        self._times.setdefault(client, deque(maxlen=self._most)).append(now)


def _host_name(host: str) -> str:
    """Without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:  # brackets that do not close
        return ""


def _password(headers: dict[bytes, str]) -> bytes:
    """That of HTTP Basic, whatever the name before it."""
    kind, _, value = headers.get(b"authorization", "").partition(" ")
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
    except ValueError:
        return b""


def _require_size(length: str) -> None:
    if not (length.isascii() and length.isdecimal()) or int(length[:20]) > MOST_BYTES:
        raise RefusedError(413, f"more than {MOST_BYTES // 1_000_000} MB: make the picture smaller")


def _require_one_picture(content_type: str, body: bytes) -> None:
    """Of a form, as the page sends it: gradio would keep for ever what comes under another name, or broken off."""
    boundary = re.search(r'boundary="?([^\s";,]+)', content_type)
    mark = b"--" + boundary[1].encode("latin-1") if boundary else b""
    head = body.partition(b"\r\n\r\n")[0].lower()
    is_one = bool(mark) and body.startswith(mark) and body.rstrip().endswith(mark + b"--") and body.count(mark) == 2
    if not is_one or b'name="files"' not in head or b"filename=" not in head:
        raise RefusedError(400, "an upload is a form with one picture, named files")


async def _body(receive: Receive) -> bytes:
    """All that is sent. Raises: RefusedError if it is too much, or comes too slowly or not whole."""
    parts, total = list[bytes](), 0
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            while (message := await receive())["type"] == "http.request":
                parts.append(message.get("body", b""))
                total += len(parts[-1])
                _require_size(str(total))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise RefusedError(408, f"it took more than {_MOST_SECONDS:.0f} s to come") from error
    raise RefusedError(400, "it did not come whole")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what comes after it, which is the end of the connection."""
    messages = deque[Message]([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    return replay
