"""What is built for a release, tried as a user gets it: ``python -m tools.release FOLDER`` with a wheel and an sdist.

Each is installed in an empty environment. There its version is asked, a small model is trained on the digits that ship,
and a model that ships predicts. No image, option or file of this checkout is used.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import ceit_cli

STEPS = (
    ("train", "--data", "digits", "--model", "ceit_pico_patch4_32", "--epochs", "1", "--output", "run"),
    ("evaluate", "--checkpoint", "run", "--data", "digits"),
    ("predict", "--json", "digit.png"),
)
DIGIT = "from PIL import Image; Image.linear_gradient('L').save('digit.png')"


def tried(package: Path) -> str:
    """What the installed command calls its version. Raises: ValueError for a step that fails."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder, "empty"), with_pip=True)
        programs = Path(folder, "empty/bin")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

        def run(*command: str | Path) -> str:
            print(f"{package.name}: {' '.join(map(str, command[1:]))[:100]}", flush=True)
            done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(
                    f"{package.name}: this step ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
                )
            return done.stdout

        run(programs / "python", "-m", "pip", "install", "--quiet", package.resolve())
        run(programs / "python", "-c", DIGIT)
        answer = [run(programs / "ceit", *step) for step in STEPS][-1]
        if not json.loads(answer)[0]["predictions"]:
            raise ValueError(f"{package.name}: ceit predict gave no answer")
        return run(programs / "ceit", "--version").split()[-1]


def main() -> int:
    """Returns 1, with a sentence, if a package is missing, fails, or is of another version than this checkout."""
    packages = sorted(Path(sys.argv[1]).iterdir())
    kinds = {path.suffix for path in packages if path.suffix in (".whl", ".gz")}
    if kinds != {".whl", ".gz"}:
        print(f"error: {sys.argv[1]} holds no wheel and sdist: run hatchling build", file=sys.stderr)
        return 1
    try:
        versions = {path.name: tried(path) for path in packages if path.suffix in kinds}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = [name for name, version in versions.items() if version != ceit_cli.__version__]
    if wrong:
        print(f"error: {wrong[0]} is of another version than {ceit_cli.__version__}: {versions}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
