"""``ceit train --profile`` writes where the time of some steps goes, and changes nothing of the run."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ceit_cli
from ceit.train.profiling import StepProfile
from ceit.train.run import train
from tests.train.conftest import SMALL, TINY

ONE = replace(SMALL, epochs=1, deterministic=True)


def test_the_files_name_operators_and_the_run_is_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    plain = train(ONE, "digits", tmp_path / "plain")
    profiled = train(ONE, "digits", tmp_path / "profiled", profile=True, say=said.append)
    folder = profiled.output / "profile"
    with gzip.open(folder / "trace.json.gz", "rt", encoding="utf-8") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::convolution_backward") % 5 == 0 < names.count("aten::convolution_backward")
    text = (folder / "operators.txt").read_text(encoding="utf-8")
    assert text.startswith("Steps 11 to 15 of this start on cpu: ")
    assert "steps/s under the profiler" in text
    assert "aten::convolution_backward" in text
    assert f"where the time of steps 11 to 15 went: {folder / 'operators.txt'}, and trace.json.gz beside it" in said
    ours, theirs = (load_file(run.output / "model.safetensors") for run in (profiled, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [(run.output / "config.yaml").read_text(encoding="utf-8") for run in (profiled, plain)]
    assert configs[0] == configs[1]
    assert not (plain.output / "profile").exists()


def test_it_is_an_option_of_the_command_and_of_short_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "--recipe", "demo", "--data", "digits", "--output", str(run), "--geometry", json.dumps(TINY)]
    assert ceit_cli.main([*words, "--fast-dev-run", "--profile"]) == 0
    assert (run / "profile" / "operators.txt").read_text(encoding="utf-8").startswith("Steps 2 to 2 of this start")
    assert "where the time of steps 2 to 2 went" in capsys.readouterr().err
    other = [*words[:6], str(tmp_path / "rates"), "--profile", "--lr-range-test"]
    assert ceit_cli.main(other) == 1
    assert "--lr-range-test takes other steps than training: leave out --profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("left", "first", "steps"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (12, 6, 5), (20, 10, 5), (1000, 10, 5)]
)
def test_a_short_run_warms_up_for_half_of_its_steps(left: int, first: int, steps: int, tmp_path: Path) -> None:
    found = StepProfile(tmp_path, torch.device("cpu"), left, print)
    assert (found.first, found.steps) == (first, steps)


def test_a_run_that_ends_early_leaves_no_profiler_behind(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):  # only one profiler can be on in a process
        found = StepProfile(tmp_path, torch.device("cpu"), 4, said.append)
        for _ in range(3):
            found.step_ended(0.0)
        assert found.is_on
        found.close()
        assert not found.is_on
    assert said == ["nothing is profiled: the run has ended after 3 of the 4 steps that this takes"] * 2
    assert not list(tmp_path.iterdir())
