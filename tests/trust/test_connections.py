"""Idle connections end and are few; who is slow to send or to take an answer keeps nobody waiting."""

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from ceit import limits
from ceit.web import connection, guard
from ceit.web.guard import Guard


async def _app(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "IDLE_SECONDS", limits.IDLE_SECONDS._replace(value=1))
    settings = uvicorn.Config(Guard(_app, tmp_path), http=connection.Connection, log_level="error", ws="none")
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what is not taken soon stands still
        running = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        running.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        running.join()


def _connect(port: int, content: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=5)
    made.sendall(content)
    return made


def _is_open(made: socket.socket) -> bool:
    made.settimeout(0.2)
    try:
        return made.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def _answer(port: int) -> bytes:
    with _connect(
        port, f"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    ) as one:
        return b"".join(iter(lambda: one.recv(4096), b""))


def test_idle_connections_are_few_and_end(port: int) -> None:
    assert _answer(port).endswith(b"ok")
    began = time.monotonic()
    idle = [_connect(port, b"GET / HT" if number % 2 else b"") for number in range(60)]
    assert sum(map(_is_open, idle[limits.CONNECTIONS_A_CLIENT.value :])) == 0
    while _is_open(idle[0]) or _is_open(idle[1]):
        assert time.monotonic() - began < 10
    assert _answer(port).endswith(b"ok")
    for one in idle:
        one.close()


def test_a_connection_whose_answer_nobody_takes_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MOST_SECONDS", 0.5)
    monkeypatch.setattr(connection, "CONNECTIONS_A_CLIENT", limits.CONNECTIONS_A_CLIENT._replace(value=5))
    question = f"GET /api/models HTTP/1.1\r\nHost: elsewhere:{port}\r\n\r\n".encode()  # which is refused
    stuck = [socket.socket() for _ in range(5)]
    for one in stuck:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(1)
        one.connect(("127.0.0.1", port))
        with suppress(OSError):  # nothing more is read, as nobody takes the answers
            for _ in range(100):
                one.sendall(question * 100)
    began = time.monotonic()
    while not _is_answered(port):
        assert time.monotonic() - began < 20
    for one in stuck:
        one.close()


def _is_answered(port: int) -> bool:
    try:
        return _answer(port).endswith(b"ok")
    except OSError:
        return False


def test_nothing_holds_a_connection_that_has_ended() -> None:
    async def one() -> bool:
        loop, settings = asyncio.get_running_loop(), uvicorn.Config(_app, http=connection.Connection)
        settings.load()
        transport, protocol = await loop.create_connection(
            lambda: connection.Connection(settings, ServerState(), {}), sock=ours
        )
        transport.close()
        await asyncio.sleep(0)
        ended = weakref.ref(protocol)
        del transport, protocol
        gc.collect()
        return ended() is None

    ours, theirs = socket.socketpair()
    with theirs:
        assert asyncio.run(one())


def test_an_answer_that_nobody_takes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MOST_SECONDS", 0.05)
    held = Guard(_app, tmp_path)
    body = {"type": "http.request", "body": b"", "more_body": False}
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": "/api/predict", "headers": headers, "client": ("a", 1)}

    async def receive() -> dict[str, Any]:
        return body

    async def never(_message: Any) -> None:
        await asyncio.sleep(60)

    asyncio.run(asyncio.wait_for(held(scope, receive, never), 5))
    assert held._at_once == 0
