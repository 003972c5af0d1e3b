"""A run ends when its time is up, whatever was measured before it: with a clock that only the steps move."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from ceit.cli.train import parse
from ceit.data.batches.loader import Loader
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.train.config import WeightAverage
from ceit.train.interruption import Interrupted
from ceit.train.learner import Learner
from ceit.train.run import train
from ceit.train.step import StepResult
from ceit.train.time_budget import CLOSING_SECONDS, TimeBudget
from tests.train.conftest import SMALL


@dataclass
class Parts:
    """How long the parts of a run take in truth: ``step_seconds`` of each step, counted from 0."""

    step_seconds: Callable[[int], float]
    steps_per_epoch: int
    epoch_end_seconds: float = 0.0
    report_seconds: float = 0.0
    first_share: float = 0.0  # of the steps, which take a part of the time of the others
    first_cost: float = 1.0


def run_within(seconds: float, parts: Parts, step_seconds: float, epoch_end_seconds: float) -> tuple[float, int]:
    """When a run ends for which so much was measured before, and how often its steps were chosen anew."""
    now, changes = 0.0, 0

    def first_of(steps: int) -> int:
        return round(parts.first_share * steps)

    budget = TimeBudget(
        ends=seconds,
        seconds=seconds,
        steps_per_epoch=parts.steps_per_epoch,
        step_seconds=step_seconds,
        epoch_end_seconds=epoch_end_seconds,
        report_seconds=parts.report_seconds,
        report_share=0.0,
        clock=lambda: now,
        first_steps=first_of,
        first_cost=parts.first_cost,
    )
    step, steps = 0, budget.steps_that_fit(0)
    budget.begin(steps)
    while step < steps:
        now += parts.step_seconds(step) * (parts.first_cost if step < first_of(steps) else 1)
        step += 1
        if step >= budget.next_look:
            before, steps = steps, budget.look(step, steps)
            budget.look_again(step, steps)
            changes += steps != before
        if step % parts.steps_per_epoch == 0 or step == steps:
            now += parts.epoch_end_seconds
            budget.epoch_ended(parts.epoch_end_seconds, parts.epoch_end_seconds)
    return now + parts.report_seconds + CLOSING_SECONDS, changes


CASES = {
    "what was measured is so": (180, Parts(lambda step: 0.043, 100, 2.0, 3.0), 0.043, 2.0),
    "the first steps were read ahead": (
        180,
        Parts(lambda step: 0.013 if step < 7 else 0.043, 100, 2.0, 3.0),
        0.013,
        2.0,
    ),
    "the first steps were slow": (60, Parts(lambda step: 0.02, 100), 0.4, 0.0),
    "images come in bursts": (180, Parts(lambda step: 0.01 if step % 8 else 0.8, 1000, 5.0, 8.0), 0.01, 5.0),
    "an epoch is longer than the budget": (600, Parts(lambda step: 0.5, 100_000, 10.0, 20.0), 0.3, 30.0),
    "an epoch is five steps, and saving slow": (30, Parts(lambda step: 0.03, 5, 0.3, 0.4), 0.03, 0.0),
    "the machine gets busy halfway": (120, Parts(lambda step: 0.1 if step < 600 else 0.3, 50, 1.0, 1.0), 0.1, 1.0),
    "the machine gets free halfway": (120, Parts(lambda step: 0.3 if step < 200 else 0.1, 50, 1.0, 1.0), 0.3, 1.0),
    "later epochs come from the cache": (180, Parts(lambda step: 1.0 if step < 40 else 0.05, 40, 1.0, 1.0), 1.0, 1.0),
    "a step is a twentieth of the time": (60, Parts(lambda step: 3.0, 200, 2.0, 2.0), 2.0, 2.0),
    "small images at first": (1800, Parts(lambda step: 1.0, 50, 3.0, 5.0, 0.4, 0.58), 1.0, 3.0),
    "smallest images, on a machine that gets busy": (
        1800,
        Parts(lambda step: 1.0 if step < 300 else 2.0, 50, 3.0, 5.0, 0.4, 0.3),
        1.0,
        3.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_m3_a_time_budget_is_kept_within_ten_percent(case: str) -> None:
    seconds, parts, step_seconds, epoch_end_seconds = CASES[case]
    ended, changes = run_within(seconds, parts, step_seconds, epoch_end_seconds)
    assert abs(ended - seconds) <= 0.1 * seconds
    assert changes <= 20


def test_m3_what_was_measured_rightly_is_never_chosen_anew() -> None:
    ended, changes = run_within(180, Parts(lambda step: 0.043, 100, 2.0, 3.0), 0.043, 2.0)
    assert changes == 0
    assert 180 - 2.1 <= ended <= 180  # another step might need another validation


def test_a_run_whose_first_steps_are_quicker_is_planned_once() -> None:
    """A step of small images taken for all: 1697 steps were planned, then 2741, then 2143, half of them small."""
    ended, changes = run_within(1800, Parts(lambda step: 1.0, 50, 3.0, 5.0, 0.4, 0.58), 1.0, 3.0)
    assert changes == 0
    assert 1800 - 4.1 <= ended <= 1800


def test_m3_a_budget_that_is_gone_leaves_one_step() -> None:
    assert run_within(-5, Parts(lambda step: 2.0, 10), 2.0, 0.0) == (2.0 + CLOSING_SECONDS, 0)


class Clock:
    """Stands in for the module ``time`` where a run looks at it; only ``pass_`` moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of a machine whose first seven steps take 13 ms, all others 43 ms, and an evaluation 1 ms an image."""
    clock = Clock()

    def timed_step(learner: Learner, images: Tensor, labels: Tensor, step: int) -> StepResult:
        clock.pass_(0.013 if step < 7 else 0.043)
        learner.schedule.step_update(step)
        return StepResult(learner, step, len(labels), torch.tensor([len(labels), 0.0, 1.0, 1.0, 1.0]), torch.ones(1))

    def timed_evaluation(model: nn.Module, loader: Loader, **options: Any) -> Evaluation:
        clock.pass_(0.001 * loader.images)
        return evaluate(model, loader, **options)

    for module in ("probe", "trainer", "log", "run"):
        monkeypatch.setattr(f"ceit.train.{module}.time", clock)
    for module in ("probe", "trainer"):
        monkeypatch.setattr(f"ceit.train.{module}.train_step", timed_step)
    monkeypatch.setattr("ceit.train.trainer.evaluate", timed_evaluation)
    return clock


BUDGETED = replace(SMALL, epochs=None, ema=WeightAverage(), keep_checkpoints=50)


def records(run: Path, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in found if line["event"] == event]


@pytest.mark.parametrize("seconds", [4.0, 60.0])
def test_m3_a_whole_run_ends_in_time(seconds: float, clock: Clock, tmp_path: Path) -> None:
    """A budget shorter than an epoch of 42 steps, and one of many epochs."""
    said: list[str] = []
    began = clock.now
    train(BUDGETED, "digits", tmp_path / "run", time_budget_seconds=seconds, say=said.append)
    assert abs(clock.now + CLOSING_SECONDS - began - seconds) <= 0.1 * seconds
    assert any(f"{seconds:.0f} s are left: a step takes 0.0" in line for line in said)


def test_m3_what_was_chosen_anew_stays_when_the_run_is_resumed(clock: Clock, tmp_path: Path) -> None:
    """Every step's learning rate is that of the plan that its checkpoint holds."""

    def slow_down_and_stop(state: dict[str, Any]) -> None:
        if state.get("event") == "plan":
            planned.append(state["steps"])
        if state.get("total_steps") and state["step"] == 300:
            os.kill(os.getpid(), signal.SIGINT)

    planned: list[int] = []
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(BUDGETED, "digits", run, time_budget_seconds=60.0, show=slow_down_and_stop)
    assert planned
    said: list[str] = []
    train(BUDGETED, "digits", run, resume="auto", time_budget_seconds=60.0, say=said.append)
    assert "a resumed run keeps its number of steps: the time budget changes nothing" in said
    assert records(run, "test")[0]["step"] == planned[-1]
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert saved["steps"] != planned[-1]
    assert [line["epochs"] for line in records(run, "plan")] == [-(-steps // 42) for steps in planned]


def test_m3_a_run_without_a_budget_that_is_resumed_with_one_keeps_its_steps_and_says_so(tmp_path: Path) -> None:
    def stop(state: dict[str, Any]) -> None:
        if state.get("total_steps") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    config, run = replace(SMALL, epochs=1, limit_batches=3), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, "digits", run, show=stop)
    said: list[str] = []
    train(replace(config, epochs=9), "digits", run, resume="auto", time_budget_seconds=60.0, say=said.append)
    assert "a resumed run keeps its number of steps: the time budget changes nothing" in said
    assert records(run, "test")[0]["step"] == 3


def test_m3_a_run_killed_before_its_first_checkpoint_starts_over_in_as_many_steps(clock: Clock, tmp_path: Path) -> None:
    """The budget chose a part of an epoch of 42 steps; with other options the whole epochs count that are asked for."""

    class Killed(KeyboardInterrupt):
        """Leaves a run as ``kill -9`` does: nothing is saved any more."""

    def kill(state: dict[str, Any]) -> None:
        if state.get("total_steps"):
            raise Killed

    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(Killed):
        train(BUDGETED, "digits", run, time_budget_seconds=1.8, show=kill)
    shutil.copytree(run, other)
    steps = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["steps"]
    assert steps < 42
    said: list[str] = []
    config, asked = parse(["--output", str(run), "--resume", "auto"])
    train(config, asked.data, run, resume="auto", say=said.append)
    assert f"{run} holds no checkpoint yet: the run starts over, and takes {steps} steps" in said
    assert records(run, "test")[0]["step"] == steps
    train(replace(config, global_batch_size=64), asked.data, other, resume="auto", say=said.append)
    assert f"{other} holds no checkpoint yet: the run starts over, and takes 21 steps" in said
    assert records(other, "test")[0]["step"] == 21
