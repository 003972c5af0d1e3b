"""``ceit web`` says in one sentence what keeps it from serving, and does not serve others by mistake."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ceit_cli
from ceit.cli import web


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another server listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No gradio, the variables as they were, and a folder of its own for temporary files."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE", "CEIT_MAX_MEGAPIXELS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_gradio_the_extra_is_named(capsys: pytest.CaptureFixture[str], temporary: Path) -> None:
    assert ceit_cli.main(["web", "--port", "0"]) == 1
    sentence = 'error: this needs gradio, which is not installed; install it with: pip install "ceit-vision[web]"\n'
    assert capsys.readouterr() == ("", sentence)
    assert os.listdir(temporary) == []


def test_a_port_that_is_taken_is_one_sentence(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["web", "--port", str(taken)]) == 1
    assert capsys.readouterr() == ("", f"error: port {taken} is taken, or not allowed: name another with --port\n")


def test_without_a_port_the_next_free_one_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PORT", taken)
    with web.listening_at("127.0.0.1", None) as found:
        address, port = found.getsockname()
    assert address == "127.0.0.1"
    assert taken < port < taken + 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--share"], "argument --share: expected one argument"),
        (["--share", ""], "--share needs a word of 8 letters or more"),
        (["--share", "short"], "--share needs a word of 8 letters or more"),
        (["--share", "\udcff\udcfe a long word"], "--share needs a word of letters that can be printed"),
        (["--port", "abc"], "abc must be between 0 and 65535, where 0 is any free port"),
        (["--port", "70000"], "70000 must be between 0 and 65535, where 0 is any free port"),
        (["--unknown-below", "2"], "2 must be auto or a number between 0 and 1"),
    ],
)
def test_wrong_usage_serves_nothing(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["web", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
