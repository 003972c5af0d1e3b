"""The rules that a machine can check, over source and tests. Each test lists its findings as ``file:line``."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tools.arrows import FLOORS, arrows_of, in_circles, modules_of, upward, way_to

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OWN = sorted([*(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])  # not installed


def test_no_files_import_each_other_in_a_circle() -> None:
    """Every file stands on a floor of its own: imports inside functions and for types alone count, too."""
    assert not [str(arrow) for arrow in in_circles(arrows_of(ROOT))]


def test_arrows_point_down() -> None:
    """A room knows lower floors alone, and the package nothing of ``tools`` and ``benchmarks``."""
    assert not [str(arrow) for arrow in upward(arrows_of(ROOT))]


def test_floors_name_each_room_once_and_only_rooms_that_are_there() -> None:
    ways = [way_to(module) for module in modules_of(ROOT)]
    for inside, floors in FLOORS.items():
        above = tuple(inside.split("/")) if inside else ()
        there = {way[len(above)] for way in ways if way[: len(above)] == above != way}
        named = [room for floor in floors for room in floor.split() if room != "*"]
        assert len(set(named)) == len(named)
        assert set(named) <= there


def test_model_reads_and_writes_no_files() -> None:
    findings = [
        place(path, node.lineno)
        for path in SOURCES
        if path.is_relative_to(ROOT / "src" / "ceit" / "model")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"open", "Path", "load", "save"}
    ]
    assert not findings


def test_files_are_named_after_what_they_hold() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert not [
        str(path) for path in SOURCES + OWN + TESTS if vague & set(path.with_suffix("").parts[len(ROOT.parts) :])
    ]


def test_everything_public_has_a_docstring() -> None:
    findings: list[str] = []
    for path in SOURCES + OWN:
        tree = parse(path)
        if path.stat().st_size and not ast.get_docstring(tree):
            findings.append(place(path, 1))
        for node in public_definitions(tree):
            if not ast.get_docstring(node):
                findings.append(f"{place(path, node.lineno)}: {node.name}")
    assert not findings


def test_no_exception_is_swallowed() -> None:
    findings = [
        place(path, node.lineno)
        for path in SOURCES + OWN + TESTS
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(isinstance(step, ast.Pass | ast.Continue) for step in node.body))
    ]
    assert not findings


def test_no_check_is_silenced_and_nothing_is_left_to_do() -> None:
    silencer = re.compile(r"noqa|type:\s*ignore|pyright:|ruff:|fmt:|pragma|\b(TODO|FIXME|XXX)\b", re.IGNORECASE)
    findings: list[str] = []
    for path in SOURCES + OWN + TESTS:
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.COMMENT and silencer.search(token.string):
                    findings.append(f"{place(path, token.start[0])}: {token.string}")
    assert not findings


def test_no_test_is_skipped() -> None:
    ways_out = {"skip", "skipif", "xfail", "importorskip", "skipTest"}
    findings = [
        place(path, node.lineno)
        for path in TESTS
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ways_out
    ]
    assert not findings


def test_nothing_is_unpickled_without_restriction() -> None:
    findings: list[str] = []
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            restricted = any(
                word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
                for word in node.keywords
            )
            if (name == "torch.load" and not restricted) or name in {"pickle.load", "pickle.loads", "eval", "exec"}:
                findings.append(f"{place(path, node.lineno)}: {name}")
    assert not findings


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


def public_definitions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes at the top level of a module."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def dotted(node: ast.expr) -> str:
    """``torch.load`` for the expression that reads so, an empty string for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
