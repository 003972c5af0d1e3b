"""What a user installs: known advisories, licences and a list of parts (SBOM): ``python -m tools.dependencies PYTHON``.

PYTHON is the interpreter of an environment that holds the package with its extras. pip-audit asks for advisories, and
cyclonedx-py writes ``build/sbom.json``. ``studies/trust/decisions.json`` holds a decision for each advisory and licence
that is known; ``studies/trust/dependencies.json`` gets what was seen. What nobody has decided on fails, and so does a
package that could not be asked about.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from packaging.version import Version

TRUST = Path("studies/trust")
SBOM = Path("build/sbom.json")
ALLOWED = re.compile(
    r"Apache([- ]2\.0| Software License| License,? Version 2\.0)?( WITH LLVM-exception)?|MIT( License)?|MIT-CMU"
    r"|(3-Clause )?BSD( License| 3-Clause License)?|BSD-[23]-Clause|0BSD|ISC|ISC License \(ISCL\)|BSL-1\.0|Zlib"
    r"|CC0-1\.0|Unlicense|PSF-2\.0|Python Software Foundation License|CNRI-Python"
    r"|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)"
)
"""Of an Apache-2.0 package's dependencies; MPL-2.0 binds those who change the files it is on."""

Finding = dict[str, Any]


def licences_of(package: Message) -> list[str]:
    """Every licence that a package names, by its expression, else its classifiers, else its free text."""
    if expression := package.get("License-Expression"):
        return re.split(r" (?:AND|OR) ", expression.replace("(", "").replace(")", ""))
    classifiers = [text.split(" :: ")[-1] for text in package.get_all("Classifier") or () if text.startswith("License")]
    if classifiers and classifiers != ["OSI Approved"]:
        return classifiers
    text = (package.get("License") or "").strip().split("\n")[0]
    return re.split(r" (?:AND|OR) ", text) if text else []


def not_allowed(packages: dict[str, list[str]], decided: dict[str, str]) -> Iterator[str]:
    """A sentence for each package whose licence is not allowed, nor decided on by a pattern of its name."""
    for name, licences in packages.items():
        strange = [licence for licence in licences if not ALLOWED.fullmatch(licence)]
        is_decided = any(fnmatch(name, pattern) for pattern in decided)
        if not is_decided and (strange or not licences):
            yield f"{name} has the licence {' and '.join(strange) or 'that it does not name'}: decide on it"


def undecided(found: list[Finding], decided: dict[str, Finding]) -> Iterator[str]:
    """A sentence for each advisory that pip-audit tells of and nobody has decided on."""
    for one in found:
        names = {one["id"], *one.get("aliases", ())}
        if not names & decided.keys():
            yield f"{one['package']} {one['version']} has {one['id']}: raise its floor, or decide on it"


def below(installed: dict[str, str], decided: dict[str, Finding]) -> Iterator[str]:
    """A sentence for each package older than a version that mends an advisory, where no other decision was made."""
    for name, one in decided.items():
        version = installed.get(one["package"])
        if version and one["decision"] == "fixed by floor" and Version(version) < Version(one["fixed"]):
            yield f"{one['package']} {version} has {name}, which {one['fixed']} mends: raise its floor"


def audited(site: Path) -> list[Finding]:
    """What pip-audit says of each package. Raises: ValueError if it gives no answer."""
    command = [sys.executable, "-m", "pip_audit", "--path", str(site), "--format", "json", "--progress-spinner", "off"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if not answer.stdout.strip():
        raise ValueError(f"pip-audit gave no answer: {answer.stderr.strip().splitlines()[-1:]}")
    return json.loads(answer.stdout)["dependencies"]


def main() -> int:
    """Returns 1, with a sentence for each, if anything is undecided, not allowed or not audited."""
    python = sys.argv[1]
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    decisions = json.loads((TRUST / "decisions.json").read_text(encoding="utf-8"))
    packages = {
        dist.name.lower().replace("_", "-"): dist
        for dist in importlib.metadata.distributions(path=[str(site)])
        if dist.name not in ("pip", "ceit-vision")
    }
    licences = {name: licences_of(cast(Message, packages[name].metadata)) for name in sorted(packages)}
    versions = {name: packages[name].version for name in sorted(packages)}
    answers = audited(site)
    skipped = versions.keys() & {one["name"].lower().replace("_", "-") for one in answers if "skip_reason" in one}
    found = [
        {"package": one["name"], "version": one["version"], "id": vuln["id"], "aliases": vuln["aliases"]}
        for one in answers
        for vuln in one.get("vulns", ())
    ]
    SBOM.parent.mkdir(exist_ok=True)
    bill = ["-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", "-o", str(SBOM), python]
    subprocess.run([sys.executable, *bill], check=True)
    seen = {
        "date": datetime.now(UTC).date().isoformat(),
        "audited": len(versions) - len(skipped),
        "not_audited": len(skipped),
        "findings": found,
        "packages": {name: {"version": versions[name], "licences": licences[name]} for name in versions},
    }
    (TRUST / "dependencies.json").write_text(json.dumps(seen, indent=1) + "\n", encoding="utf-8")
    wrong = [
        *not_allowed(licences, decisions["licences"]),
        *below(versions, decisions["advisories"]),
        *undecided(found, decisions["advisories"]),
    ]
    if skipped:
        wrong.append(
            f"{len(skipped)} of {len(versions)} packages were not audited: the advisory service knows none here"
        )
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(versions)} packages, {len(found)} advisories, {len(wrong)} to decide on; parts: {SBOM}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
