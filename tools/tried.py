"""Run the tests under one interpreter, and put down what was seen: ``python -m tools.tried FILE TEST ...``.

It is run by the interpreter that is tried, from the project's root. FILE is JSON; the entry of this Python is replaced.
An entry: ``{"date", "machine", "versions", "tests", "exit_code", "passed", "failed", "errors",
"failures", "cpu_seconds"}``. An ``exit_code`` of 2 is a run that was stopped before its last test. ``failures`` has a
reason for each, to be filled in by hand: the page tells it.
"""

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def direct_versions(project: Path) -> dict[str, str]:
    """What is installed here of all that ``pyproject.toml`` asks for by name, in its extras too."""
    asked = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    texts = [*asked["dependencies"], *(text for extra in asked["optional-dependencies"].values() for text in extra)]
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    names = {Requirement(text).name.lower().replace("_", "-") for text in texts} - {"ceit-vision"}
    return {name: installed[name] for name in sorted(names & installed.keys())}


def counts(report: Path) -> dict[str, Any]:
    """Of pytest's junit file: how many tests passed and failed, and which did not pass."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error")}
    bad = [case for found in kinds.values() for case in found]
    return {
        "passed": len(cases) - len(bad),
        "failed": len(kinds["failure"]),
        "errors": len(kinds["error"]),
        "failures": dict.fromkeys(
            sorted(f"{case.get('classname')}::{case.get('name')}" for case in bad), "not looked into"
        ),
    }


def main() -> int:
    """Returns pytest's exit code."""
    file, *tests = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        code = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode
        found = counts(report)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    entry = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": direct_versions(Path("pyproject.toml")),
        "tests": tests,
        "exit_code": code,
        **found,
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
    }
    path = Path(file)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    key = ".".join(map(str, sys.version_info[:2]))
    known[key] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
