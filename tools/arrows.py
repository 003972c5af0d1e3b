"""Who imports whom: every import of this repository as an arrow from file to file, and two rules for arrows.

Files import each other in no circle, and arrows point down. So every file can be read, tested and changed knowing only
what lies below it.
"""

import ast
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

FLOORS: dict[str, tuple[str, ...]] = {
    "": (  # the rooms, the lowest floor first; rooms of one floor do not know each other
        "version paths messages lock limits shipped machine terminal",
        "atomic options yaml_file json_file",
        "model plots",
        "weights data",
        "inference",
        "evaluation explain browser",
        "train bench ceit",  # ceit: what `import ceit` offers
        "study report web",
        "cli ceit_list",
        "ceit_cli",
        "__main__ tools benchmarks",
    ),
    "data": ("*", "splits", "labelled", "record", "held_out", "sources batches", "audit"),
    "train": ("*", "resolve", "learner", "step", "log", "trainer", "probe", "run"),
}
"""Room to the floors inside it, a room being a folder or a file. ``*`` are the files that have no floor by name."""


class Arrow(NamedTuple):
    """One import: the module that has it, where, and the module that it names."""

    place: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.place}: {self.source} imports {self.target}"


def modules_of(repository: Path) -> dict[str, Path]:
    """Module name to file: the package in ``src``, and ``tools`` and ``benchmarks``, which are not installed."""
    source = repository / "src"
    files = [*source.rglob("*.py"), *repository.glob("tools/*.py"), *repository.glob("benchmarks/**/*.py")]
    modules: dict[str, Path] = {}
    for path in sorted(files):
        inside = path.relative_to(source if path.is_relative_to(source) else repository)
        modules[".".join(inside.parent.parts if path.stem == "__init__" else inside.with_suffix("").parts)] = path
    return modules


def arrows_of(repository: Path) -> list[Arrow]:
    """Every import of one module of the repository by another, in functions and under ``TYPE_CHECKING``, too.

    A string that is the name of a module counts: modules that are loaded at first use and those of child processes are
    named so. What Python imports by itself on the way, the packages that a module lies in, does not count.
    """
    modules = modules_of(repository)
    arrows: list[Arrow] = []
    for source, path in modules.items():
        package = source.split(".") if path.stem == "__init__" else source.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for target in dict.fromkeys(_modules_named(node, package, modules)):
                if target != source:
                    place = f"{path.relative_to(repository).as_posix()}:{getattr(node, 'lineno', 1)}"
                    arrows.append(Arrow(place, source, target))
    return arrows


def in_circles(arrows: list[Arrow]) -> list[Arrow]:
    """The arrows that are part of a circle, or on a way from one circle to another."""
    inner = {arrow.source for arrow in arrows} & {arrow.target for arrow in arrows}
    left = [arrow for arrow in arrows if arrow.source in inner and arrow.target in inner]
    return left if len(left) == len(arrows) else in_circles(left)


def upward(arrows: list[Arrow]) -> list[Arrow]:
    """The arrows that do not lead to a lower floor of ``FLOORS``. Raises ValueError for a room without a floor."""
    return [arrow for arrow in arrows if not _leads_down(way_to(arrow.source), way_to(arrow.target))]


def way_to(module: str) -> tuple[str, ...]:
    """The way to a module through the house: ``("data", "image")`` for ``ceit.data.image``."""
    names = module.split(".")
    return tuple(names[1:] if names[0] == "ceit" and len(names) > 1 else names)


def floor_of(room: str, inside: str = "") -> int:
    """The floor of a room, or of what stands ``inside`` a room, from 0. Raises ValueError if it has none."""
    floors = [floor.split() for floor in FLOORS[inside]]
    for name in (room, "*"):
        for number, rooms in enumerate(floors):
            if name in rooms:
                return number
    raise ValueError(f"{room!r} stands on no floor: give it one in tools/arrows.py")


def _leads_down(source: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Whether an arrow leads down where the two ways into the house part."""
    inside = ""
    for own, other in zip_longest(source, target):
        if own != other:
            if own is None or other is None or inside not in FLOORS:
                return True
            named = {own, other} & set(" ".join(FLOORS[inside]).split())
            return not named or floor_of(own, inside) > floor_of(other, inside)
        inside = f"{inside}/{own}".lstrip("/")
    return True


def _modules_named(node: ast.AST, package: list[str], modules: Mapping[str, Path]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            named = [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = [*package[: len(package) - level + 1], module] if level else [module]
            named = [".".join(part for part in (*base, alias.name) if part) for alias in names]
        case ast.Constant(value=str() as text) if "." in text:
            yield from (name for name in modules if name == text or (text.endswith(".") and name.startswith(text)))
            return
        case _:
            return
    for name in named:  # of a module, or of something in it
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name:
            yield name
