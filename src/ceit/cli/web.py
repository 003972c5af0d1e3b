"""Serve a page for the browser: drop a picture, see what a model says, how sure it is, and why. With a JSON API.

The page is for this machine alone and keeps nothing; docs/web.md says what it refuses. Several models answer side by
side.

usage: ceit web [--checkpoint RUN|FILE ...] [options]

examples:
  ceit web
  ceit web --checkpoint runs/photos runs/photos.onnx --port 8000
  ceit web --share "a long word"
"""

import argparse
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ceit.cli._parser import MODEL, RAW, Parser, adding_to
from ceit.cli._terminal import tell
from ceit.cli.predict import share_of
from ceit.data.pillow import LIMIT_VARIABLE
from ceit.shipped import DEFAULT

PORT = 7860
_PORTS = 100  # tried one after another if none is named
_MEGAPIXELS = "64"  # as a picture of a stranger, who may not take all memory
_LEAST_LETTERS = 8


def main(arguments: list[str]) -> None:
    """Serve the page until it is interrupted.

    Raises: ModuleNotFoundError without the extra ``web``, ValueError or OSError for a model, OSError if the port is
    taken.
    """
    options = _parsed(arguments)
    import uvicorn

    from ceit.web.answers import shown
    from ceit.web.api import api
    from ceit.web.connection import Connection
    from ceit.web.guard import Guard
    from ceit.web.page import gradio_with, mount_page

    address = "127.0.0.1" if options.share is None else "0.0.0.0"
    with (
        _ended_by_hanging_up(),
        TemporaryDirectory(prefix="ceit-web-") as folder,
        closing(listening_at(address, options.port)) as listening,
    ):
        uploads = Path(folder).resolve()
        gradio = gradio_with(uploads)
        if not os.environ.get(LIMIT_VARIABLE, "").strip():
            os.environ[LIMIT_VARIABLE] = _MEGAPIXELS
        names = dict.fromkeys(options.checkpoint or [DEFAULT])
        models = [shown(name, options.device, not options.raw, options.unknown_below) for name in names]
        app = api(models)
        mount_page(gradio, app, models)
        port, host = listening.getsockname()[1], socket.gethostname()
        guard = Guard(app, uploads, options.share, [host, f"{host}.local"])
        settings = uvicorn.Config(
            guard,
            http=Connection,
            log_level="error",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        print(f"http://127.0.0.1:{port} answers; Ctrl+C ends it", flush=True)
        if options.share is not None:
            known_as = filter(None, (_own_number(), f"{host.removesuffix('.local')}.local"))
            places = " or ".join(f"http://{name}:{port}" for name in known_as)
            tell(f"others may open {places}, with any name and the word as the password")
        uvicorn.Server(settings).run(sockets=[listening])


@contextmanager
def _ended_by_hanging_up() -> Iterator[None]:
    """A terminal that is closed ends the page as SIGTERM does, so that no picture is left; under nohup it does not."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def listening_at(address: str, port: int | None) -> socket.socket:
    """A socket on the port, or on the first free one from 7860 on. Raises: OSError if it is taken."""
    for number in range(PORT, PORT + _PORTS) if port is None else [port]:
        with suppress(OSError):
            return socket.create_server((address, number))
    ports = f"the ports {PORT} to {PORT + _PORTS - 1} are" if port is None else f"port {port} is"
    raise OSError(f"{ports} taken, or not allowed: name another with --port")


def _own_number() -> str | None:
    """This machine's address in its network; None without a network. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # an address that is nobody's
        return way.getsockname()[0]
    return None


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("--checkpoint", MODEL, nargs="+", action="extend", metavar="RUN|FILE")
    add("--port", f"port of the page (default: the first free one from {PORT} on)", type=_port, metavar="N")
    text = "let other machines of the network in, if they give this word as the password; it and the pictures travel "
    text += "unencrypted"
    add("--share", text, metavar="WORD")
    text = "call pictures unknown that are less familiar than P, where the model can tell"
    add("--unknown-below", text, type=share_of, default="auto", metavar="auto|P")
    add("--raw", RAW, action="store_true")
    add("--device", "where to compute: cpu, cuda, cuda:1, mps (default: a GPU, if there is one)", metavar="DEVICE")
    options = parser.parse_args(arguments)
    if options.share is not None and len(options.share) < _LEAST_LETTERS:
        parser.error(f"--share needs a word of {_LEAST_LETTERS} letters or more")
    if options.share is not None and not options.share.isprintable():
        parser.error("--share needs a word of letters that can be printed: no browser can send another")
    return options


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 65535, where 0 is any free port")
    return int(text)
