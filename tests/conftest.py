"""What every test runs under: no network, no cache of the user's, a fixed seed, nothing left of the test before."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
os.environ["OMP_NUM_THREADS"] = "1"  # so that runs started by tests have the same bits beside other tests

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("gate", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("gate")
torch.set_num_threads(1)
# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Seed torch, hide the user's data cache, and forget accelerate's process-wide singletons afterwards."""
    torch.manual_seed(0)
    monkeypatch.setenv("CEIT_DATA", str(tmp_path_factory.getbasetemp() / "no-data-here"))
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse files beyond a size, as it does when the disk is full."""
    import resource  # not on every system, as little as the limit is

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of what the released implementation computed; its README tells the origin."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def start_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """Chromium of playwright, with a camera that sees black on the left and white on the right, and with no name but
    this machine's."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "install Chromium: apt-get install chromium"
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        camera, row = tmp_path_factory.mktemp("camera") / "seen.y4m", bytes([16] * 160 + [235] * 160)
        frame = b"FRAME\n" + row * 240 + bytes([128]) * (2 * 160 * 120)
        camera.write_bytes(b"YUV4MPEG2 W320 H240 F5:1 Ip A1:1 C420jpeg\n" + frame * 5)
        arguments.append(f"--use-file-for-fake-video-capture={camera}")
        arguments.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        arguments.append("--disable-features=LocalNetworkAccessChecks")  # so that nothing but a page's policy stops it
        yield lambda: playwright.chromium.launch(executable_path=path, args=arguments)


@pytest.fixture(scope="session")
def chromium(start_browser: Callable[[], Any]) -> Iterator[Any]:
    """One browser for many tests."""
    browser = start_browser()
    yield browser
    browser.close()


@pytest.fixture
def serious_faults() -> Callable[[Any], list[str]]:
    """What axe finds on a page of playwright that keeps people from using it."""

    def find(page: Any) -> list[str]:
        found = import_module("axe_playwright_python.sync_playwright").Axe().run(page).response
        assert found["passes"]
        faults = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
        return [f"{fault['id']}: {node['html'][:120]}" for fault in faults for node in fault["nodes"]]

    return find
