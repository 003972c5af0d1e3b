"""What ``make check-deps`` lets pass, and what it does not."""

import json
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.dependencies import below, licences_of, not_allowed, undecided

DECIDED = {"CVE-1": {"package": "pillow", "fixed": "12.3.0", "decision": "fixed by floor", "why": "it mends it"}}


def package(**fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MPL-2.0 AND (Apache-2.0 OR MIT)"}, ["MPL-2.0", "Apache-2.0", "MIT"]),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, ["MIT License"]),
        ({"License": "BSD-3-Clause"}, ["BSD-3-Clause"]),
        ({}, []),
    ],
)
def test_licences_are_found_wherever_a_package_names_them(fields: dict[str, str], expected: list[str]) -> None:
    assert licences_of(package(**fields)) == expected


def test_a_licence_that_is_not_allowed_is_told_by_its_package() -> None:
    packages = {"good": ["MIT"], "bad": ["GPL-3.0-only"], "mute": [], "nvidia-x": ["Proprietary"]}
    lines = [*not_allowed(packages, {"nvidia-*": "of torch"})]
    assert [line.split()[0] for line in lines] == ["bad", "mute"]
    assert "GPL-3.0-only" in lines[0]


def test_an_advisory_nobody_decided_on_is_told() -> None:
    known = {"package": "pillow", "version": "12.2.0", "id": "PYSEC-1", "aliases": ["CVE-1"]}
    new = {"package": "torch", "version": "2.10.0", "id": "PYSEC-2", "aliases": []}
    assert [*undecided([known, new], DECIDED)] == ["torch 2.10.0 has PYSEC-2: raise its floor, or decide on it"]


def test_a_version_below_one_that_mends_is_told() -> None:
    assert [*below({"pillow": "12.3.0"}, DECIDED)] == []
    assert [*below({"pillow": "12.2.0"}, DECIDED)] == ["pillow 12.2.0 has CVE-1, which 12.3.0 mends: raise its floor"]


def test_floors_are_where_the_decisions_say_and_licences_seen_are_decided(repository: Path) -> None:

    trust = repository / "studies/trust"
    decisions, seen = (json.loads((trust / f"{name}.json").read_text()) for name in ("decisions", "dependencies"))
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    floors = {
        (requirement := Requirement(text)).name: next(iter(requirement.specifier)).version
        for text in asked
        if ">=" in text
    }
    assert [*below(floors, decisions["advisories"])] == []
    licences = {name: about["licences"] for name, about in seen["packages"].items()}
    assert [*not_allowed(licences, decisions["licences"])] == []
