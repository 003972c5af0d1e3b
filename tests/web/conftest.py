"""Requests without a network: what a browser or curl would send, given to an ASGI app as messages."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest


class Answer(NamedTuple):
    """A status, headers with small names, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def _ask(
    app: Any, target: str, *parts: bytes, method: str = "GET", client: str = "127.0.0.1", **headers: str
) -> Answer:
    """``parts`` are those of the body as they come; of ``headers`` ``_`` is ``-``, and ``host`` is the page's own."""
    address = urlsplit(target)
    named = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(address.path),
        "raw_path": address.path.encode(),
        "query_string": address.query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
        "client": (client, 50000),
        "server": ("127.0.0.1", 7860),
    }
    chunks = parts or (b"",)
    coming = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    started, *rest = sent
    found = {name.decode().lower(): value.decode() for name, value in started["headers"]}
    return Answer(started["status"], found, b"".join(message.get("body", b"") for message in rest))


@pytest.fixture
def ask() -> Callable[..., Answer]:
    """``ask(app, "/path?query", b"body", method="POST", header="value")``."""
    return _ask
