"""The map of the code, made from its imports: a picture of the rooms as floors of a house, and a table of them.

python -m tools.map docs/map.svg
"""

import sys
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path
from typing import NamedTuple

from ceit.atomic import replace_files
from tools.arrows import FLOORS, Arrow, arrows_of, floor_of, modules_of, way_to

ROOT = Path(__file__).parents[1]
Graph = Mapping[str, set[str]]
"""Everything that is imported by each."""


class Room(NamedTuple):
    """Where a room stands on its floor, in pixels from the left, its colour, and what it is for."""

    left: int
    right: int
    colour: str
    purpose: str


GREY, BLUE, ORANGE, GREEN, PURPLE = "#eceff1", "#dcebf7", "#fde8cf", "#d9efe5", "#ece4f4"
ROOMS = {
    "cli": Room(50, 880, PURPLE, "the command: one file for each verb"),
    "study": Room(470, 710, PURPLE, "studies and sweeps: many runs"),
    "web": Room(50, 200, PURPLE, "pictures in a browser"),
    "report": Room(220, 430, PURPLE, "a run on one page"),
    "train": Room(470, 650, GREEN, "images to weights"),
    "bench": Room(730, 880, PURPLE, "speed, side by side"),
    "evaluation": Room(470, 650, GREEN, "how good answers are"),
    "explain": Room(50, 170, PURPLE, "why it answers so"),
    "browser": Room(185, 295, PURPLE, "an offline page"),
    "ceit": Room(310, 455, GREEN, "what Python code uses"),
    "inference": Room(220, 650, GREEN, "weights and images to answers"),
    "data/audit": Room(50, 200, BLUE, "what is wrong in a set"),
    "weights": Room(470, 650, ORANGE, "networks from and to files"),
    "data/sources": Room(50, 270, BLUE, "where sets come from"),
    "data/batches": Room(290, 430, BLUE, "sets to batches"),
    "model": Room(470, 650, ORANGE, "the network of the paper"),
    "plots": Room(670, 880, PURPLE, "pictures of runs"),
    "data": Room(50, 430, BLUE, "an image file to a tensor; what a set is"),
    "ground": Room(50, 880, GREY, "what everything may use"),
}
"""The rooms of the map: a folder, a file, or ``ground``, which is the small files below all folders."""

GROUND = " ".join(FLOORS[""][: floor_of("model")]).split()
JOINED = {"ceit_cli": "cli", "ceit_list": "cli", "__main__": "cli"} | dict.fromkeys(GROUND, "ground")
"""Files that share a room on the map."""

SIGNS = {"ceit": "import ceit", "ground": "   ".join(GROUND)}
"""What is written on a room, where it is not its name."""

ROOF = ("tools", "benchmarks")  # which may import all of it, are imported by nothing and are not installed
ABOVE = Room(50, 880, "#ffffff", "this repository's own pages and measurements, not installed")

WIDTH, HEIGHT, STEP, MARGIN = 900, 50, 88, 20  # of the picture, of a room, from floor to floor, around it
INK, PALE = "#1c2733", "#5b6b7a"
LINE = "#607080"


def house(repository: Path) -> tuple[dict[str, Path], list[Arrow]]:
    """The modules of the package, and the arrows between them."""
    modules = {name: path for name, path in modules_of(repository).items() if way_to(name)[0] not in ROOF}
    return modules, [arrow for arrow in arrows_of(repository) if arrow.source in modules]


def rooms_of(modules: Iterable[str], arrows: Iterable[Arrow]) -> dict[str, set[str]]:
    """Each room with the rooms that its files import. Raises ValueError for a file in no room of the map."""
    graph: dict[str, set[str]] = {room_of(module): set() for module in modules}
    for arrow in arrows:
        graph[room_of(arrow.source)].add(room_of(arrow.target))
    return {room: below - {room} for room, below in graph.items()}


def room_of(module: str) -> str:
    """The room of ``ROOMS`` that a module stands in."""
    way = way_to(module)
    for name in ("/".join(way[:2]), way[0]):
        if (room := JOINED.get(name, name)) in ROOMS:
            return room
    raise ValueError(f"{module} has no room on the map: give {way[0]!r} a place in tools/map.py")


def levels(graph: Graph) -> dict[str, int]:
    """Each name with the length of the longest way down from it."""
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = 1 + max((level[below] for below in graph.get(name, ())), default=-1)
    return level


def longest_ways(graph: Graph) -> dict[str, set[str]]:
    """The graph without the arrows that a longer way says already."""
    beneath: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        direct = graph.get(name, set())
        beneath[name] = direct.union(*(beneath[below] for below in direct))
    return {name: below - set().union(*(beneath[other] for other in below)) for name, below in graph.items()}


def rooms_table() -> str:
    """A Markdown table of the rooms, the lowest floor first, with what they import and their files."""
    modules, arrows = house(ROOT)
    graph = rooms_of(modules, arrows)
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for arrow in arrows:
        imports[arrow.source].add(arrow.target)
    floor, depth = levels(graph), levels(imports)
    lines = ["| floor | room | what for | imports | files, each after those that it imports |", "|---|---|---|---|---|"]
    for room in sorted(graph, key=lambda name: (floor[name], name)):
        below = sorted(graph[room], key=lambda name: (-floor[name], name))
        inside = sorted((name for name in modules if room_of(name) == room), key=lambda name: (depth[name], name))
        files = [modules[name].relative_to(ROOT / "src").with_suffix("").as_posix() for name in inside]
        shown = [
            file.removeprefix("ceit/").removeprefix(f"{room}/")
            for file in files
            if not file.endswith("__init__") or room == "ceit"
        ]
        cells = (str(floor[room]), f"`{room}`", ROOMS[room].purpose, _listed(below), _listed(shown))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture() -> str:
    """The map as SVG: each room above all that it imports, arrows down, the same bytes for the same imports."""
    graph = rooms_of(*house(ROOT))
    level = levels(graph)
    roof = max(level.values()) + 1
    top = {room: MARGIN + STEP * (roof - floor) for room, floor in level.items()}
    height = 2 * MARGIN + STEP * roof + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' role="img" text-anchor="middle" font-family="system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif">',
        "<title>The rooms of the code as floors of a house. Every arrow is an import, and leads down.</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.5L8 4L0 7.5z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
    ]
    for room, below in sorted(longest_ways(graph).items()):
        parts += [_arrow(ROOMS[room], top[room], ROOMS[other], top[other]) for other in sorted(below)]
    for floor in range(roof):
        y = MARGIN + STEP * (roof - floor) + HEIGHT // 2 + 5
        parts.append(_text(25, y, str(floor), 14, PALE))
    for room in sorted(graph):
        parts += _box(ROOMS[room], top[room], SIGNS.get(room, room))
    parts += _box(ABOVE, MARGIN, "   ".join(ROOF), dashes="6 5")
    return "\n".join([*parts, "</svg>", ""])


def _arrow(source: Room, source_top: int, target: Room, target_top: int) -> str:
    """Straight down where one room stands over the other, else down, sideways and down between the nearest corners."""
    y, below = source_top + HEIGHT, target_top - 2
    left, right = max(source.left, target.left), min(source.right, target.right)
    if left < right:
        path = f"M{(left + right) // 2} {y}V{below}"
    else:
        side = 1 if source.left < target.left else -1
        begin, end = (source.right - 24, target.left + 24) if side > 0 else (source.left + 24, target.right - 24)
        middle, turn = (y + below) // 2, 8 * side
        path = (
            f"M{begin} {y}V{middle - 8}Q{begin} {middle} {begin + turn} {middle}"
            f"H{end - turn}Q{end} {middle} {end} {middle + 8}V{below}"
        )
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#tip)"/>'


def _box(room: Room, top: int, name: str, dashes: str = "none") -> list[str]:
    middle = (room.left + room.right) // 2
    return [
        f'<rect x="{room.left}" y="{top}" width="{room.right - room.left}" height="{HEIGHT}" rx="7"'
        f' fill="{room.colour}" stroke="#90a0b0" stroke-dasharray="{dashes}"/>',
        _text(middle, top + 21, name, 16, INK, "600"),
        _text(middle, top + 39, room.purpose, 12, PALE),
    ]


def _text(x: int, y: int, words: str, size: int, colour: str, weight: str = "400") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" xml:space="preserve"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    replace_files({Path(sys.argv[1]): picture().encode()})
