"""The map is the one that the imports give: its bytes, its arrows, its rooms."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.map import HEIGHT, ROOMS, ROOT, Room, house, levels, longest_ways, picture, room_of, rooms_of

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_is_that_of_the_imports() -> None:
    assert (ROOT / "docs" / "map.svg").read_text(encoding="utf-8") == picture(), "run: make map"


def test_the_picture_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "tools.map", tmp_path / f"{seed}.svg"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, timeout=600)
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()


def test_every_arrow_leads_down_from_a_room_to_a_room() -> None:
    drawing = ElementTree.fromstring(picture())
    paths = [path.attrib["d"] for path in drawing.findall(f"{SVG}path")]
    graph = longest_ways(rooms_of(*house(ROOT)))
    assert len(paths) == sum(map(len, graph.values())) > 10
    bottoms = {float(box.attrib.get("y", 0)) + HEIGHT for box in drawing.findall(f"{SVG}rect")}
    for path in paths:
        top, bottom = float(re.findall(r"M\d+ (\d+)", path)[0]), float(re.findall(r"V(\d+)$", path)[0])
        assert top < bottom
        assert top in bottoms
        assert bottom + 2 + HEIGHT in bottoms


def test_rooms_of_a_floor_stand_side_by_side_and_hold_their_words() -> None:
    floor = levels(rooms_of(*house(ROOT)))
    assert floor.keys() == ROOMS.keys()
    for left, right in pairwise(sorted((floor[name], *room[:2]) for name, room in ROOMS.items())):
        assert left[0] != right[0] or left[2] < right[1]
    for room in ROOMS.values():
        assert 6.5 * len(room.purpose) < room.right - room.left


def test_an_arrow_that_a_longer_way_says_is_left_out() -> None:
    graph = {"top": {"middle", "ground"}, "middle": {"ground"}, "ground": set[str]()}
    assert longest_ways(graph) == {"top": {"middle"}, "middle": {"ground"}, "ground": set()}
    assert levels(graph) == {"top": 2, "middle": 1, "ground": 0}


def test_a_file_without_a_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert room_of("ceit.data.sources.shards.load") == "data/sources"
    assert (room_of("ceit.data.image"), room_of("ceit_cli"), room_of("ceit")) == ("data", "cli", "ceit")
    with pytest.raises(
        ValueError, match=r"ceit\.attic\.box has no room on the map: give 'attic' a place in tools/map\.py"
    ):
        room_of("ceit.attic.box")
    monkeypatch.setitem(ROOMS, "attic", Room(0, 1, "", ""))
    assert room_of("ceit.attic.box") == "attic"
