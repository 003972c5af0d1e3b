"""The reader of imports and its two rules, on made-up repositories: each kind of import is seen where it stands."""

from pathlib import Path

import pytest

from tools.arrows import arrows_of, floor_of, in_circles, upward


def build(repository: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return repository


LAZY = "def work():\n    from ceit.model import b\n"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ceit.model.b import B\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("from ceit.model.b import B\n", "src/ceit/model/a.py:1"),
        ("from ceit.model import b\n", "src/ceit/model/a.py:1"),
        ("import os\nimport ceit.model.b\n", "src/ceit/model/a.py:2"),
        ("from .b import B\n", "src/ceit/model/a.py:1"),
        ("from . import b\n", "src/ceit/model/a.py:1"),
        ("from ..model.b import B\n", "src/ceit/model/a.py:1"),
        (LAZY, "src/ceit/model/a.py:2"),
        (FOR_TYPES, "src/ceit/model/a.py:3"),
        ("import importlib\nb = importlib.import_module('ceit.model.b')\n", "src/ceit/model/a.py:2"),
        ("name = 'b'\ncommand = ['python', '-m', f'ceit.model.{name}']\n", "src/ceit/model/a.py:2"),
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path: Path, text: str, place: str) -> None:
    files = {"model/__init__.py": "", "model/a.py": text, "model/b.py": "def work():\n    from ceit.model.a import A\n"}
    files |= {"paths.py": "", "cli/c.py": "from ceit import paths\nfrom ceit.model import a\n"}  # not part of it
    repository = build(tmp_path, {f"src/ceit/{name}": text for name, text in files.items()})
    found = {str(arrow) for arrow in in_circles(arrows_of(repository))}
    back = "src/ceit/model/b.py:2: ceit.model.b imports ceit.model.a"
    assert found == {f"{place}: ceit.model.a imports ceit.model.b", back}


def test_a_circle_through_several_rooms_is_found_whole(tmp_path: Path) -> None:
    files = {"a/one.py": "from ceit.b.two import X", "b/two.py": "from ceit.c import X", "c/__init__.py": LAZY}
    files |= {"model/b.py": "from ceit.a import one", "paths.py": "", "a/above.py": "from ceit.a import one"}
    repository = build(tmp_path, {f"src/ceit/{name}": text for name, text in files.items()})
    assert [arrow.source for arrow in in_circles(arrows_of(repository))] == [
        "ceit.a.one",
        "ceit.b.two",
        "ceit.c",
        "ceit.model.b",
    ]


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("src/ceit/model/a.py", "\nfrom ceit.weights.b import B", 2),  # a higher floor
        ("src/ceit/model/a.py", LAZY.replace("model", "weights"), 2),
        ("src/ceit/model/a.py", FOR_TYPES.replace("model", "weights"), 3),
        ("src/ceit/weights/a.py", "from ceit.data import b", 1),  # the same floor
        ("src/ceit/data/b.py", "from ceit.data.splits import S", 1),  # inside a room
        ("src/ceit/data/batches/b.py", "from ceit.data.sources.b import b", 1),
        ("src/ceit/data/b.py", "from ceit import Predictor", 1),  # the front door
        ("src/ceit/cli/b.py", "import tools.b", 1),  # what is not installed
        ("src/ceit/cli/b.py", "import sys\nfrom benchmarks import b", 2),
    ],
)
def test_an_arrow_that_does_not_lead_down_is_found(tmp_path: Path, file: str, text: str, line: int) -> None:
    names = ("ceit/__init__", "ceit/weights/b", "ceit/data/splits", "ceit/data/sources/b", "ceit/data/b")
    files = {f"src/{name}.py": "" for name in names} | {"tools/b.py": "", "benchmarks/b.py": "", file: text}
    (found,) = upward(arrows_of(build(tmp_path, files)))
    assert found.place == f"{file}:{line}"


def test_arrows_downwards_and_inside_a_room_are_left_in_peace(tmp_path: Path) -> None:
    files = {
        "src/ceit/__init__.py": "from ceit.model import a",
        "src/ceit/model/__init__.py": "from ceit.model.a import A",
        "src/ceit/model/a.py": "from ceit.model.b import B\nfrom ceit.paths import expanded\nimport torch",
        "src/ceit/model/b.py": "",
        "src/ceit/paths.py": "import ceit_other",
        "src/ceit/data/a.py": "from ceit.data.b import B",
        "src/ceit/data/b.py": "",
        "src/ceit/data/sources/a.py": "from ceit.data import a\nfrom ceit.data.sources.deep import b",
        "src/ceit/data/sources/deep/b.py": "",
        "tools/a.py": "from ceit.model import a\nfrom tools import b",
        "tools/b.py": "name = 'ceit.model.a'",
    }
    arrows = arrows_of(build(tmp_path, files))
    assert len(arrows) == 10
    assert not in_circles(arrows)
    assert not upward(arrows)


def test_a_room_without_a_floor_is_refused(tmp_path: Path) -> None:
    files = {"src/ceit/attic/a.py": "from ceit.paths import expanded", "src/ceit/paths.py": ""}
    with pytest.raises(ValueError, match=r"'attic' stands on no floor: give it one in tools/arrows.py"):
        upward(arrows_of(build(tmp_path, files)))


def test_floors_are_counted_from_below() -> None:
    assert floor_of("paths") == 0 < floor_of("model") < floor_of("cli")
    assert floor_of("image", "data") == 0 < floor_of("splits", "data")
