"""The distribution: what the wheel holds and asks for, that it installs and runs, that importing it stays cheap."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ceit
import ceit_cli

# An import of ours may bring these of itself, beyond what torch and timm bring.
LIGHT = re.compile(r"ceit(\.messages|\.options|\.shipped|\.version|\.model(\.\w+)*)?$|ceit_cli$")


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline with the build backend of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=repository, check=True, capture_output=True, timeout=6000)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    """The wheel's own description."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_source_and_nothing_else(wheel: Path, repository: Path) -> None:
    source = repository / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {name.split("/")[0] for name in held} == {"ceit", "ceit_cli.py", "ceit_list.py"}, (
        "tools and benchmarks stay at home"
    )
    assert {"ceit_cli.py", "ceit/py.typed", "ceit/recipes/demo.yaml"} <= held
    assert any(name.startswith("ceit/data/") and name.endswith(".npz") for name in held), "the digits must ship"
    assert wheel.stat().st_size < 30e6


def test_wheel_is_named_and_licensed(wheel: Path, metadata: Message) -> None:
    assert wheel.name == f"ceit_vision-{ceit_cli.__version__}-py3-none-any.whl"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())


def test_requirements_have_floors_and_no_ceilings(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {"export", "viz", "web", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    for requirement in requirements:
        assert [specifier.operator for specifier in requirement.specifier] == [">="], str(requirement)
    for name, newest in (("torch", "2.14"), ("torchvision", "0.29")):
        asked = [requirement for requirement in requirements if requirement.name == name]  # one more for a system
        assert asked
        for requirement in asked:
            assert requirement.specifier.contains(newest), f"{requirement} asks for more than {newest}"


def test_version_is_the_same_wherever_it_stands(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == ceit_cli.__version__ == ceit.__version__
    assert f"## [{ceit_cli.__version__}]" in (repository / "CHANGELOG.md").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert "version" not in project  # it is read from the one place


def test_wheel_runs_where_only_its_dependencies_are(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    python = tmp_path / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, timeout=6000, capture_output=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [python, "-c", "import ceit; print(ceit.__file__)"]
    answer = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=6000)
    assert Path(answer.stdout.strip()).is_relative_to(site), answer.stderr
    info = [tmp_path / "bin/ceit", "info", "ceit_tiny_patch16_224", "--json"]
    answer = subprocess.run(info, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=6000)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["parameters"] == 6_356_904


def test_importing_the_package_loads_only_torch_timm_and_the_model() -> None:
    program = """
import sys
import timm, torch
before = set(sys.modules)
import ceit
print(*sorted(set(sys.modules) - before))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=6000, check=True)
    loaded = answer.stdout.split()
    assert "ceit.model.ceit" in loaded
    standard = {name for name in loaded if name.split(".")[0] in sys.stdlib_module_names}
    registry = {name for name in loaded if name.split(".")[0] in ("timm", "torch")}
    surplus = [name for name in loaded if name not in standard | registry and not LIGHT.match(name)]
    assert not surplus


def test_importing_the_package_changes_and_prints_nothing() -> None:
    program = """
import logging, random, signal, torch, timm, warnings
state = lambda: (
    torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
    torch.get_num_threads(), logging.getLogger().level, len(logging.getLogger().handlers), len(warnings.filters),
    random.getstate(), torch.initial_seed(), torch.is_grad_enabled(), signal.getsignal(signal.SIGTERM),
)
before = state()
import ceit
assert state() == before
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=6000, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
