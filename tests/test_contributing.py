"""The contributor's page: every file and name on it is there, and the ways through the code are short."""

import ast
import os
import platform
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ceit_cli
from ceit.data.batches.loader import make_loader
from ceit.data.sources.choose import load_dataset
from ceit.inference.predictor import Predictor
from ceit.model import CeiT, config_of
from ceit.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ceit"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CITATION = re.compile(r"`([\w./]+\.py):([\w.]+)`")
STEP = re.compile(rf"^\d+\. {CITATION.pattern} ", re.MULTILINE)
IMAGES = ("A photograph becomes part of a training batch:", "A photograph becomes logits:")
OPTIONS = ("`--peak-lr 0.001`", "`--img-size 96`")
"""The lines above each way."""


def steps(beginning: str) -> list[tuple[Path, str]]:
    """The files and names of the numbered list that follows the line which begins so."""
    _, found, rest = PAGE.partition(beginning)
    assert found, beginning
    _, _, listed = rest.partition("\n\n")
    return [((PACKAGE / file).resolve(), name) for file, name in STEP.findall(listed.partition("\n\n")[0])]


def has(file: Path, name: str) -> bool:
    """Whether a file defines a name, ``Class.member`` included."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if part in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def files_of(taken: list[traceback.FrameSummary]) -> list[Path]:
    """The files of the package that a call goes through."""
    files = [Path(frame.filename) for frame in taken]
    return [file for file in files if file.is_relative_to(ROOT / "src")]


def names_of(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


@pytest.mark.parametrize(("file", "name"), sorted(set(CITATION.findall(PAGE))))
def test_every_name_is_where_the_page_says(file: str, name: str) -> None:
    assert has(PACKAGE / file, name)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:src|tests|tools|docs|\.ci|studies)(?:/[\w./]*)?)`", PAGE)))
)
def test_every_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("beginning", IMAGES)
def test_the_way_of_an_image_has_at_most_six_names(beginning: str) -> None:
    assert 3 <= len(set(steps(beginning))) == len(steps(beginning)) <= 6


@pytest.mark.parametrize("beginning", OPTIONS)
def test_the_way_of_an_option_has_at_most_ten_files(beginning: str) -> None:
    assert 3 <= len({file for file, _ in steps(beginning)}) <= 10


@pytest.mark.parametrize("beginning", [*IMAGES, *OPTIONS])
def test_each_step_is_taken_in_the_file_of_one_before_it(beginning: str) -> None:
    way = steps(beginning)
    text = way[0][0].read_text(encoding="utf-8")
    for file, name in way[1:]:
        assert set(name.split(".")) & set(re.findall(r"\w+", text)), f"nothing before it takes {name}"
        text += file.read_text(encoding="utf-8")


def test_the_way_of_an_option_is_the_one_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[traceback.FrameSummary] = []

    def stop(_model: object, config: TrainConfig) -> None:
        assert config.scaled_lr == 0.003
        taken.extend(traceback.extract_stack())
        raise ValueError("far enough")

    monkeypatch.setattr("ceit.train.learner.make_optimizer", stop)
    words = ["--data", "digits", "--model", "ceit_pico_patch4_32", "--output", str(tmp_path / "run")]
    assert ceit_cli.main(["train", *words, "--peak-lr", "0.003", "--lr-base-size", "null"]) == ceit_cli.FAILED
    assert len(files_of(taken)) > 3
    assert set(files_of(taken)) <= {file for file, _ in steps(OPTIONS[0])}


@pytest.mark.parametrize("beginning", IMAGES)
def test_the_way_of_an_image_is_the_one_that_is_taken(
    beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[traceback.FrameSummary] = []
    really = Image.open

    def opened(file: Any, **options: Any) -> Image.Image:
        taken[:] = taken or traceback.extract_stack()
        return really(file, **options)

    for number in range(8):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 120), (20 * number, 9, 9)).save(path)
    dataset = load_dataset(tmp_path, img_size=(96, 96))
    monkeypatch.setattr(Image, "open", opened)
    if beginning == IMAGES[0]:
        loader = make_loader(
            dataset.train, batch_size=2, img_size=(96, 96), preprocessing=dataset.preprocessing, workers=0
        )
        next(iter(loader.epoch(0)))
    else:
        Predictor(CeiT(config_of("ceit_pico_patch4_32")), device="cpu").predict(tmp_path / "class0" / "0.png")
    way = [file for file, _ in steps(beginning)]
    files = files_of(taken)
    files = files[next(number for number, file in enumerate(files) if file in way) :]  # what the threads call
    assert len(set(files)) > 1
    assert set(files) <= set(way)


def test_what_is_not_there_is_noticed() -> None:
    file = PACKAGE / "model" / "config.py"
    assert has(file, "CeiTConfig.embed_dim")
    assert not has(file, "CeiTConfig.embedding")
    assert not has(file, "embed_dim")


def test_make_says_that_an_environment_keeps_its_python(tmp_path: Path) -> None:
    there = tmp_path / ".venv/bin/python"
    there.parent.mkdir(parents=True)
    there.write_text("#!/bin/sh\necho Python 3.10.1\n")
    there.chmod(0o755)
    outside = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "PYTHON")
    }

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(ROOT / "Makefile"), *words, "same-python"]
        return subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=600)

    refused = make(f"PYTHON={sys.executable}")
    assert refused.returncode != 0
    assert f"error: .venv is of Python 3.10.1, not of Python {platform.python_version()}" in refused.stderr
    assert make().returncode == 0  # a target that names no Python takes the one that is there
