"""The fast part: some inputs of each target with a fixed seed, and an oracle that does see what is wrong.

The long part is ``make fuzz``. Files of export are in that alone, as to write one takes seconds.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ceit.inference.memory import keep_freed_memory
from tests.fuzz import oracle
from tests.fuzz.run import run_target
from tests.fuzz.targets import TARGETS, Target

SEED = 18
MANY = {"images": 800, "run: report": 6, "command lines": 25, "checkpoint": 40, "side file": 40}
QUICK = [target for target in TARGETS if not target.name.startswith("exported ") or target.name == "exported text"]


@pytest.mark.parametrize("target", QUICK, ids=lambda target: target.name)
def test_every_input_is_taken_or_refused_in_one_sentence(target: Target) -> None:
    counted = run_target(target, SEED, range(MANY.get(target.name, 60)))
    assert not counted.faults
    assert counted.reached >= 0.3 * counted.inputs


def test_the_same_seed_and_number_give_the_same_input() -> None:
    target = next(target for target in TARGETS if target.name == "recipes")
    assert [target.input(1, number) for number in range(20)] == [target.input(1, number) for number in range(20)]
    assert target.input(1, 3) != target.input(2, 3)


def _compute_for_ever() -> None:
    while True:
        pass


def _raises(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (_raises(KeyError("a")), "KeyError: 'a'"),
        (_raises(ValueError("bad value")), "names neither file nor value: bad value"),
        (_raises(ValueError("")), "no sentence"),
        (lambda: sys.exit(3), "ends with 3"),
        (lambda: time.sleep(5), "hangs"),
        (_compute_for_ever, "hangs"),
        (lambda: b"x" * (256 << 20), "memory grows by"),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "subprocess.Popen"),
        (lambda: Path("left_here").write_text(""), "open of "),
        (lambda: Path("folder").mkdir(), "os.mkdir of "),
        (lambda: os.rename("here", "there"), "os.rename of "),
    ],
)
def test_the_oracle_sees(
    run: Callable[[], object], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("")
    monkeypatch.setattr(oracle, "MOST_SECONDS", 2)
    monkeypatch.setattr(oracle, "MOST_SECONDS_ASLEEP", 2)
    found = oracle.judge(run, (tmp_path / "allowed",), 32 << 20, "given")
    assert fault in found.fault


def test_the_oracle_sees_what_is_taken_of_kept_memory() -> None:
    keep_freed_memory()  # as a command does, in whichever test called one before
    for _ in range(2):
        assert "memory grows by" in oracle.judge(lambda: b"x" * (256 << 20), (), 32 << 20, "given").fault


def test_the_oracle_lets_pass_what_is_right(tmp_path: Path) -> None:
    assert oracle.judge(lambda: (tmp_path / "a").write_text(""), (tmp_path,), 32 << 20, "given").fault == ""
    assert oracle.judge(_raises(ValueError("given/a is damaged")), (), 32 << 20, "given").fault == ""
    assert oracle.judge(lambda: sys.exit(2), (), 32 << 20, "given").fault == ""
