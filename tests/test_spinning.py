"""Threads that wait give their core to other programs: said before torch is loaded, never over a user's own word."""

import os
import subprocess
import sys

import pytest

import ceit_cli

SHOW = "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def told(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    command = [sys.executable, "-c", f"import os, sys\n{code}\n{SHOW}"]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_m1_the_command_bounds_spinning_before_torch_is_loaded() -> None:
    assert told("import ceit_cli; ceit_cli.main(['--version'])") == f"{ceit_cli.SPIN_COUNT} False"


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_m1_a_users_own_setting_stands(own: dict[str, str]) -> None:
    said = told("import ceit_cli; ceit_cli.main(['--version'])", **own)
    assert said == f"{own.get('GOMP_SPINCOUNT')} False"


def test_m1_so_does_python_m_ceit_though_the_package_loads_torch() -> None:
    """A launcher starts ``python -m ceit``, which imports the package, and so torch, before the command."""
    code = (
        "import builtins, runpy\n"
        "loaded, usual = [], builtins.__import__\n"
        "def note(name, *rest, **named):\n"
        "    if name == 'torch' and not loaded: loaded.append(os.environ.get('GOMP_SPINCOUNT'))\n"
        "    return usual(name, *rest, **named)\n"
        "builtins.__import__ = note\n"
        "sys.argv = ['-m', '--version']\n"
        "import ceit\n"
        "print(loaded)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    command = [sys.executable, "-c", f"import os, sys\n{code}"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"['{ceit_cli.SPIN_COUNT}']"
    version = subprocess.run([sys.executable, "-m", "ceit", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("ceit ")


def test_m1_the_library_leaves_the_environment_alone() -> None:
    assert told("import ceit") == "None True"
