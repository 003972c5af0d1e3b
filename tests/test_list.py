"""``ceit list`` names everything that is there, at once, without torch; and its file of names is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ceit
import ceit_cli
import ceit_list
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.model import config_of
from ceit.study.plan import study_names
from ceit.train.recipe import recipe_names
from tools.names import names


def test_it_lists_what_the_code_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listed = {kind: [entry["name"] for entry in entries] for kind, entries in found.items()}
    assert listed == {
        "models": ceit.list_models(),
        "weights": ceit.list_models(pretrained=True),
        "recipes": recipe_names(),
        "data": [*SETS, *PUBLISHED],
        "studies": study_names(),
    }
    assert all(entry["about"] for kind in ("recipes", "studies") for entry in found[kind])


def test_the_file_of_names_is_up_to_date(repository: Path) -> None:
    written = (repository / "src/ceit/names.json").read_text(encoding="utf-8")
    assert written == names(), "run: python -m tools.names src/ceit/names.json"


def test_tables_have_a_heading_and_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["list", "models", "data"]) == 0
    models, data = capsys.readouterr().out.rstrip("\n").split("\n\n")
    heading, columns, first, *_ = models.splitlines()
    assert heading == "models: ceit info NAME, ceit train --model NAME"
    assert (columns.split(), first.split()) == (
        ["name", "parameters", "images"],
        ["ceit_tiny_patch16_224", "6,356,904", "224", "px"],
    )
    assert columns.index("parameters") + len("parameters") == first.index("6,356,904") + len("6,356,904")
    assert "  cifar10" in data


def test_weights_say_what_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    monkeypatch.setattr(ceit_list, "PACKAGE", tmp_path)
    network = ceit.CeiT(config_of("ceit_pico_patch4_32", depth=1, embed_dim=8, num_heads=1, num_classes=2))
    path = folder / "ceit_pico_patch4_32.pets.safetensors"
    training = {"data": "pets", "test_top1_percent": 87.125}
    ceit.save_checkpoint(path, network.half(), class_names=["cat", "dog"], training=training)
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    wanted = {"name": "ceit_pico_patch4_32.pets", "data": "pets", "classes": 2, "size": size, "test top-1": "87.12 %"}
    assert ceit_list.weights() == [wanted]


def test_an_unknown_kind_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["list", "recipe"]) == 2
    assert "unknown kind 'recipe'; there are models, weights, recipes, data, studies" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    program = """
import sys, ceit_cli
assert ceit_cli.main(["list"]) == 0
heavy = {"ceit", "torch", "timm", "numpy", "rich", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stderr
