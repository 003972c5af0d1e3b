"""Runs a stretch of inputs of a target, and counts what became of them."""

import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.oracle import judge
from tests.fuzz.seeds import Files, workshop
from tests.fuzz.targets import Target

MEGAPIXELS = "1"
"""The limit that images are read with here, so that the bound on memory is one of the reader."""


@dataclass
class Counted:
    """What became of the inputs of one target; ``faults`` by what was wrong, with the number of the first input."""

    inputs: int = 0
    reached: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)


def run_target(
    target: Target, seed: int, numbers: range, before: Callable[[int], None] = lambda number: None
) -> Counted:
    """Counts these inputs of a target. ``before`` is told the number of each input, in case it ends the process."""
    counted = Counted()
    logger = logging.getLogger("ceit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    workshop()
    with TemporaryDirectory(prefix="ceit-fuzzed-") as name:
        place = Path(name).resolve()
        given, cache, out = (place / part for part in ("given", "cache", "out"))
        settings = {"CEIT_DATA": str(cache), "CEIT_MAX_MEGAPIXELS": MEGAPIXELS}
        tempfile.tempdir, home = str(place), Path.cwd()
        kept = {key: os.environ.get(key) for key in settings}
        os.environ |= settings
        try:
            lay(target.seeds()[0], given)
            out.mkdir()
            os.chdir(out)
            with suppress(ValueError, OSError):
                target.run(given)  # what it loads and makes once is not counted
            began = time.process_time()
            with target.watched() as reached, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as on the command line, they end nothing
                for number in numbers:
                    before(number)
                    files = target.input(seed, number)
                    lay(files, given)
                    verdict = judge(lambda: target.run(given), (place,), target.most_mib << 20, given.name)
                    counted.inputs += 1
                    counted.reached += bool(reached)
                    counted.accepted += not verdict.sentence and not verdict.fault
                    counted.refused += bool(verdict.sentence) and not verdict.fault
                    counted.peak_bytes = max(counted.peak_bytes, verdict.grown_bytes)
                    if verdict.fault:
                        counted.faults.setdefault(_kind_of(verdict.fault), []).append(number)
                    reached.clear()
                    for left in out.iterdir():
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            counted.seconds = time.process_time() - began
        finally:
            tempfile.tempdir = None
            os.chdir(home)
            logger.setLevel(level)
            for key, value in kept.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
    return counted


def lay(files: Files, folder: Path) -> None:
    """The files of one input, and nothing else, in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _kind_of(fault: str) -> str:
    """The fault without what differs from input to input: numbers, and what is quoted."""
    message, _, place = fault.partition(" at ")
    return f"{re.sub(r'[0-9]+', 'N', message)[:110]} at {place}" if place else re.sub(r"[0-9]+", "N", message)[:200]
