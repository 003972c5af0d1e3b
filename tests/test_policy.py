"""The rules that a machine can check, over source and tests. Each test lists its findings as ``file:line``."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OWN = sorted([*(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])  # not installed

# Arrows point one way: a part may import itself and any part of a lower layer.
LAYERS = (
    {"paths", "messages", "atomic", "lock"},
    {"plots", "options", "yaml_file"},
    {"model"},
    {"weights"},
    {"data"},
    {"inference"},
    {"train", "bench"},
    {"study", "web"},
    {"cli"},
)
LAYER = {part: number for number, layer in enumerate(LAYERS) for part in layer}


def test_arrows_point_one_way() -> None:
    findings: list[str] = []
    for path in SOURCES:
        part = part_of(path)
        if part is None:  # the package's front door, ``python -m ceit`` and the command
            continue
        assert part in LAYER, f"{path}: give '{part}' a layer"
        for line, imported in imports_of_the_package(path):
            if imported != part and LAYER.get(imported, len(LAYERS)) >= LAYER[part]:
                findings.append(f"{place(path, line)}: {part} imports {imported}")
    assert not findings


def test_no_file_of_data_is_imported_in_a_circle() -> None:
    """Every file stands on a floor of its own: it imports files of lower floors alone, and at its top."""
    files = {module_of(path): path for path in SOURCES if part_of(path) == "data"}
    imports = {name: {found for found in modules_imported(path) if found in files} for name, path in files.items()}
    floors: dict[str, int] = {}
    while ready := [name for name in files if name not in floors and imports[name] <= floors.keys()]:
        floors |= dict.fromkeys(ready, max(floors.values(), default=-1) + 1)
    assert not [f"{name} imports {', '.join(sorted(imports[name]))}" for name in files if name not in floors]


DATA_ROOMS = ({"splits"}, {"labelled"}, {"record"}, {"held_out"}, {"sources", "batches"}, {"audit"})


def test_rooms_of_data_know_only_what_lies_below_them() -> None:
    """``batches`` knows no source, and nothing below ``splits`` knows a set."""
    level = {room: number for number, rooms in enumerate(DATA_ROOMS, 1) for room in rooms}
    findings: list[str] = []
    for path in SOURCES:
        if part_of(path) == "data":
            own = level.get(room_of(module_of(path)), 0)
            for found in modules_imported(path):
                other = level.get(room_of(found), 0) if room_of(found) != room_of(module_of(path)) else -1
                if found.startswith("ceit.data.") and (other > own or other == own > 0):
                    findings.append(f"{place(path, 1)} imports {found}")
    assert not findings


def test_model_reads_and_writes_no_files() -> None:
    findings = [
        place(path, node.lineno)
        for path in SOURCES
        if part_of(path) == "model"
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


def part_of(path: Path) -> str | None:
    """``model`` for ``src/ceit/model/lca.py`` and ``weights`` for ``src/ceit/weights.py``."""
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return parts[1] if len(parts) > 1 and not parts[1].startswith("__") else None


def imports_of_the_package(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of the package, wherever it stands in the file."""
    package = path.relative_to(ROOT / "src").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            names = module.split(".")
            if names[0] == "ceit" and len(names) > 1:
                yield node.lineno, names[1]


def module_of(path: Path) -> str:
    """``ceit.data.image`` for its file, ``ceit.data.sources`` for that of a package."""
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """``sources`` for ``ceit.data.sources.hub``, ``splits`` for ``ceit.data.splits``."""
    return module.split(".")[2] if module.count(".") > 1 else ""


def modules_imported(path: Path) -> set[str]:
    """Every module of the package that a file imports by ``from MODULE import``, which is how it is done here."""
    return {node.module for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.module}


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
