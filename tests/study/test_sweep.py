"""Sweeps on the digits: what is tried, what is refused, what goes on after a stop, and what is called the best."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import ceit_cli
from ceit.cli import _cells
from ceit.cli.sweep import EXAMPLE, print_plan
from ceit.cli.train import parse
from ceit.data.batches.workers import HangingError
from ceit.data.record import ImageRecord
from ceit.model import CeiTConfig
from ceit.model.variants import config_of
from ceit.shipped import shipped_description
from ceit.study import sweep as sweeps
from ceit.study import sweep_report
from ceit.study.cells import Cell, path_of, read_cell, read_record, write_cell
from ceit.study.report import markdown
from ceit.study.run import seconds_needed, write_failure
from ceit.study.sweep import Sweep, run_sweep
from ceit.study.sweep_report import draw_sweep, notes, ranked, table_rows, write_sweep_report
from ceit.train.recipe import recipe_config
from ceit.train.run_directory import lines_of
from ceit.train.trackers import CannotBeginError
from ceit.train.trainer import Trainer

TINY = {
    "model": "ceit_pico_patch4_32",
    "geometry": {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8},
    "global_batch_size": 64,
    "checkpoint_every_steps": 5,
    "log_every_steps": 1,
}


def write(folder: Path, options: dict[str, Any], **changes: Any) -> str:
    """A sweep over the digits; what is None is left out."""
    values = {"data": "digits", "output": str(folder / "out"), "search": "grid", "budget": {"epochs": 1}}
    values |= {"options": TINY | options} | changes
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return str(file)


def run(file: str, said: list[str] | None = None) -> Sweep:
    sweep = Sweep.read(file)
    run_sweep(sweep, (lambda message: None) if said is None else said.append, lambda state: None)
    return sweep


def pretend(sweep: Sweep, *accuracies: float | None, **found: Any) -> None:
    """The runs in turn have found this; those with None are not finished."""
    for cell, accuracy in zip(sweep.cells, accuracies, strict=False):
        if accuracy is not None:
            best = {"validation_top1_percent": accuracy}
            write_cell(sweep.places.results, cell, {"best": best, "train_seconds": 60.0, **found})


def tried(sweep: Sweep) -> list[dict[str, Any]]:
    return [trial.options for trial in sweep.all_trials]


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    options = {"peak_lr": [0.001, 0.01], "augmentation.translate": {"int": [0, 2]}, "ema.decay": 0.9}
    sweep = Sweep.read(write(tmp_path, options, seeds=[0, 3]))
    assert tried(sweep) == [
        {"peak_lr": rate, "augmentation.translate": pixels} for rate in (0.001, 0.01) for pixels in (0, 1, 2)
    ]
    assert [cell.seed for cell in sweep.cells] == [0, 3] * 6
    configs = [cell.config() for cell in sweep.cells]
    assert {config.cut_seed for config in configs} == {0}
    own = Sweep.read(write(tmp_path, options | {"split_seed": 7}, seeds=[0, 3]))
    assert {cell.config().cut_seed for cell in own.cells} == {7}
    for same in (options, options | {"split_seed": 0}):  # and what was trained is found again
        assert {cell.name for cell in Sweep.read(write(tmp_path, same, seeds=[3, 0])).cells} == {
            cell.name for cell in sweep.cells
        }
    assert {config.ema.decay for config in configs} == {0.9}
    assert {config.epochs for config in configs} == {1}
    assert [config.augmentation.translate for config in configs[:6]] == [0, 0, 1, 1, 2, 2]
    assert configs[0].geometry == TINY["geometry"]
    assert len({cell.name for cell in sweep.cells}) == 12


RANDOM = {
    "peak_lr": {"log_uniform": [1e-4, 1e-2]},
    "label_smoothing": {"uniform": [0.0, 0.2]},
    "geometry.depth": {"int": [2, 4]},
    "schedule": ["cosine", "linear"],
}


def test_random_trials_are_a_function_of_the_search_seed_and_more_of_them_add_to_the_end(tmp_path: Path) -> None:
    few = Sweep.read(write(tmp_path, RANDOM, search="random", trials=20))
    many = Sweep.read(write(tmp_path, RANDOM, search="random", trials=60))
    assert [trial.name for trial in many.all_trials[:20]] == [trial.name for trial in few.all_trials]
    other = Sweep.read(write(tmp_path, RANDOM, search="random", trials=20, search_seed=1))
    assert not {trial.name for trial in other.all_trials} & {trial.name for trial in many.all_trials}
    drawn = tried(many)
    rates = [options["peak_lr"] for options in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 15 <= sum(rate < 1e-3 for rate in rates) <= 45  # half of them below the middle of the exponents
    assert all(0 <= options["label_smoothing"] <= 0.2 for options in drawn)
    assert {options["geometry.depth"] for options in drawn} == {2, 3, 4}
    assert {options["schedule"] for options in drawn} == {"cosine", "linear"}


def test_another_option_leaves_the_draws_of_the_others_and_no_combination_is_tried_twice(tmp_path: Path) -> None:
    before = Sweep.read(write(tmp_path, {"peak_lr": RANDOM["peak_lr"]}, search="random", trials=9))
    after = Sweep.read(write(tmp_path, RANDOM, search="random", trials=9))
    assert [options["peak_lr"] for options in tried(before)] == [options["peak_lr"] for options in tried(after)]
    small = {"schedule": ["cosine", "linear"], "geometry.depth": {"int": [2, 4]}}
    drawn = tried(Sweep.read(write(tmp_path, small, search="random", trials=6)))
    assert len({tuple(options.values()) for options in drawn}) == 6


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    """``1e-3`` is text for YAML 1.1; a recipe's options are the ground that a sweep's stand on."""
    file = tmp_path / "own.yaml"
    file.write_text(
        "recipe: demo\ndata: digits\noutput: out\nsearch: grid\noptions:\n"
        "  peak_lr: [1e-3, 2e-2]\n  augmentation: {translate: [0, 2]}\n"
    )
    sweep = Sweep.read(str(file))
    assert [options["peak_lr"] for options in tried(sweep)] == [1e-3, 1e-3, 2e-2, 2e-2]
    config = sweep.cells[0].config()
    assert (config.optimizer, config.augmentation.flip, config.augmentation.translate) == ("muon", True, 0)


def test_the_examples_of_the_page_and_of_the_help_are_sweeps(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "sweep.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    shown = EXAMPLE.partition("\n")[2].partition("\n\n")[0]
    for number, text in enumerate((page, textwrap.dedent(shown))):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        sweep = Sweep.read(str(file), data="digits")
        assert (len(sweep.all_trials), len(sweep.cells), sweep.total_time) == (12, 24, "2h")


@pytest.mark.parametrize(
    ("options", "changes", "sentence"),
    [
        ({"peak_rl": [1, 2]}, {}, "own.yaml: unknown option 'peak_rl'; did you mean 'peak_lr'"),
        ({"geometry.dept": [1, 2]}, {}, "unknown option 'geometry.dept'; did you mean 'geometry.depth'"),
        ({"peak_lr": [0.1, 0.2]}, {"trails": 3}, "unknown key 'trails'; did you mean 'trials'"),
        ({"peak_lr": [0.1, 0.2]}, {"search": "bayes"}, "unknown sweep .*search 'bayes'"),
        ({"peak_lr": [0.1, 0.2]}, {"data": None}, "has no data: set it, or --data"),
        ({"peak_lr": [0.1, 0.2]}, {"output": None}, "has no output: set it, or --output"),
        ({"peak_lr": [0.1, 0.2]}, {"seeds": []}, r"seeds \[\] must be whole numbers"),
        ({"peak_lr": [0.1, 0.2]}, {"seeds": [0, 0]}, r"seeds \[0, 0\] must be whole numbers, each once"),
        ({"peak_lr": [0.1, 0.2]}, {"seeds": [0, -1]}, r"own.yaml: seed -1 must be in \[0, 2\^32\)"),
        ({"peak_lr": [0.1, 0.2]}, {"budget": {"epoch": 1}}, "unknown budget 'epoch'; did you mean 'epochs'"),
        (
            {"peak_lr": [0.1, 0.2]},
            {"budget": {"epochs": 1, "samples": 9}},
            "must be one of epochs, samples, time_budget",
        ),
        ({"peak_lr": [0.1, 0.2]}, {"budget": {"time_budget": 10}}, "duration '10' must be a positive number with"),
        ({"peak_lr": [0.1, 0.2]}, {"budget": {"epochs": 0}}, "epochs 0 must be at least 1"),
        ({"peak_lr": [0.1, 0.2]}, {"total_time": "long"}, "duration 'long' must be a positive number with its unit"),
        ({"peak_lr": [0.1, 0.2]}, {"recipe": "dmo"}, "unknown recipe 'dmo'; did you mean 'demo'"),
        ({"peak_lr": [0.1, 0.2]}, {"trials": 2}, "a grid tries all 2 combinations: leave out trials"),
        ({"peak_lr": [0.1, 0.2]}, {"search": "random"}, "needs the number of trials, at least 1, such as trials: 12"),
        ({"peak_lr": [0.1, 0.2]}, {"search": "random", "trials": 3}, "there are 2 combinations, not 3: search: grid"),
        ({"peak_lr": {"uniform": [0.1, 0.2]}}, {}, "list those of peak_lr, or search: random"),
        ({"peak_lr": {"uniform": [0.2, 0.1]}}, {}, "must be two numbers, the lower one first"),
        (
            {"peak_lr": {"uniform": [0.01, 0.01001]}},
            {"search": "random", "trials": 5},
            "draws gave 2 different trials, not 5: widen the ranges",
        ),
        ({"peak_lr": {"uniform": [0.2]}}, {}, "must be two numbers"),
        ({"peak_lr": {"log_uniform": [0, 0.1]}}, {}, r"log_uniform \[0, 0.1\] must be above 0"),
        ({"geometry.depth": {"int": [1, 2.5]}}, {}, "must be two whole numbers"),
        ({"peak_lr": {"choice": 3}}, {}, "peak_lr: choice 3 must be a list of values"),
        ({"peak_lr": {"normal": [0, 1]}}, {}, "unknown option 'peak_lr.normal'"),
        ({"peak_lr": [0.1, 0.1]}, {}, r"peak_lr: \[0.1, 0.1\] has a value twice"),
        ({"peak_lr": 0.1}, {}, "options hold nothing to choose from"),
        ({"peak_lr": [0.1, -1.0]}, {}, "the trial with peak_lr -1.0: peak_lr -1.0 must be positive"),
        ({"peak_lr": ["high", 0.1]}, {}, "the trial with peak_lr high: peak_lr 'high' must be a number"),
        ({"geometry.num_heads": [2, 5]}, {}, "the trial with geometry.num_heads 5: .*5"),
        (
            {"optimizer": ["adamw", "adamww"]},
            {},
            "the trial with optimizer adamww: unknown optimizer 'adamww'; did you",
        ),
        (
            {"optimizer": "sgd", "optimizer_args.momentun": [0.8, 0.9]},
            {},
            "the trial with optimizer_args.momentun 0.8: optimizer sgd cannot be made with {'momentun': 0.8}: SGD",
        ),
        (
            {"distillation.teacher": [None, "resnet10"]},
            {},
            "teacher resnet10: unknown teacher 'resnet10'; did you mean",
        ),
        ({"seed": [1, 2]}, {}, r"set seeds, such as seeds: \[0, 1\]"),
        ({"epochs": [1, 2]}, {}, "leave out the option epochs, or the budget"),
        ({"split_seed": [1, 2]}, {}, "split_seed chooses the images of the validation: give it one value"),
        ({"validation_percent": [5.0, 10.0]}, {}, "validation_percent chooses the images of the validation"),
        ({"peak_lr": [0.1, 0.2], "validation_percent": 0.0, "select": "last"}, {}, "no images to rank the trials by"),
        (
            {"img_size": 32, "augmentation.translate": [1, 200]},
            {},
            "the trial with augmentation.translate 200: translate 200 must be below the image's shorter side of 32",
        ),
        (
            {"grad_checkpointing": True, "compile": True, "peak_lr": [0.1, 0.2]},
            {},
            "no combination of the options goes together; the first has peak_lr 0.1: compile true does not go with",
        ),
        (
            {"grad_checkpointing": [True, False], "compile": [True, False]},
            {"search": "random", "trials": 4},
            "draws gave 3 different trials, not 4, 1 combinations left out, such as .*: compile true does not go",
        ),
    ],
)
def test_a_wrong_file_is_answered_with_what_is_wrong(
    options: dict[str, Any], changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sweep.read(write(tmp_path, options, **changes))
    assert not (tmp_path / "out").exists()


def test_combinations_that_do_not_go_together_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"sampling": ["shuffle", "balanced"], "class_weights": ["balanced", "none"]}
    sweep = Sweep.read(write(tmp_path, both))
    words = ("sampling shuffle, class_weights balanced", "sampling shuffle, class_weights none")
    assert [trial.words for trial in sweep.all_trials] == [*words, "sampling balanced, class_weights none"]
    assert [line.partition(": sampling balanced would")[0] for line in sweep.remarks] == [
        "1 of 4 combinations left out: sampling balanced, class_weights balanced"
    ]
    monkeypatch.setattr(_cells, "seconds_needed", lambda cell: 60.0)
    print_plan(sweep)
    assert sweep.remarks[0] in capsys.readouterr().out
    alone = Sweep.read(write(tmp_path, both | {"class_weights": ["none"]}))
    assert {trial.name for trial in alone.all_trials} < {trial.name for trial in sweep.all_trials}
    policies = {"augmentation.rand_augment": [None, "rand-m9"], "augmentation.trivial_augment": [False, True]}
    drawn = Sweep.read(write(tmp_path, policies, search="random", trials=3))
    assert len({trial.name for trial in drawn.all_trials}) == 3


def test_options_of_the_machine_name_no_trial(tmp_path: Path) -> None:
    machine = {"workers": 1, "log_every_steps": 7, "compile": False, "tracker": [[]], "device": "cpu"}
    before = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2]}))
    pretend(before, 90.0, 80.0)
    after = Sweep.read(write(tmp_path, machine | {"peak_lr": [0.1, 0.2]}))
    assert [entry.accuracies for entry in ranked(after)] == [[90.0], [80.0]]
    assert after.remarks == []
    assert len({trial.name for trial in Sweep.read(write(tmp_path, {"workers": [0, 1]})).all_trials}) == 2
    other = Sweep.read(write(tmp_path, {"device_batch_size": 8, "peak_lr": [0.1, 0.2]}))
    assert not {cell.name for cell in other.cells} & {cell.name for cell in before.cells}


def test_trials_that_an_earlier_version_named_after_the_machine_too_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, {"peak_lr": [0.1, 0.2]}, seeds=[0, 1])
    with monkeypatch.context() as earlier:
        earlier.setattr(sweeps, "OF_THE_MACHINE", frozenset())
        before = Sweep.read(file)
        pretend(before, 90.0)
    after = Sweep.read(file)
    assert [first.name == second.name for first, second in zip(before.cells, after.cells, strict=True)] == [
        *(True, True),
        *(False, False),
    ]
    assert [entry.accuracies for entry in ranked(after)] == [[90.0]]


@pytest.mark.parametrize(
    ("options", "changes", "why"),
    [
        ({"peak_lr": [0.1, 0.2], "global_batch_size": 32}, {}, "has global_batch_size 64, not 32"),
        ({"peak_lr": [0.3, 0.4]}, {}, "has peak_lr 0."),
        ({"peak_lr": [0.1, 0.2]}, {"budget": {"time_budget": "5s"}}, "has epochs 1, not None"),
        ({"peak_lr": [0.1, 0.2]}, {"seeds": [1]}, "has seed 0"),
    ],
)
def test_finished_runs_of_other_options_are_counted(
    options: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    pretend(Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2]})), 90.0, 80.0)
    sweep = Sweep.read(write(tmp_path, options, **changes))
    (line,) = sweep.remarks
    folder = sweep.places.results / "trials"
    assert line.startswith(f"2 finished runs in {folder} are of other options or data, and count for nothing: ")
    assert why in line
    damaged = min(folder.glob("*.json"))
    damaged.write_text("{}")
    assert sweep.remarks[0].endswith(f"{damaged.stem} is damaged")


def test_a_trial_that_lacks_seeds_waits_unless_it_is_better_than_the_best(tmp_path: Path) -> None:
    sweep = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2, 0.3]}, seeds=[0, 1, 2]))
    pretend(sweep, 90.0, 90.0, 90.0, 93.0, 80.0, 80.0, 85.0)
    found = ranked(sweep)
    assert [row[0] for row in table_rows(sweep, found)[1]] == ["1", "2", "-"]
    assert [entry.trial.options["peak_lr"] for entry in found] == [0.1, 0.2, 0.3]
    write_sweep_report(sweep, found)
    assert recipe_config(str(sweep.places.results / "best.yaml")).peak_lr == 0.1
    assert notes(sweep, found)[1:] == ["2 of 9 runs are not finished."]
    path_of(sweep.places.results, sweep.cells[6]).unlink()
    pretend(sweep, *[None] * 6, 91.0)  # better than the best by the seed that it has
    found = ranked(sweep)
    assert [(entry.trial.options["peak_lr"], entry.accuracies) for entry in found] == [
        (0.2, [93.0]),
        (0.3, [91.0]),
        (0.1, [90.0]),
    ]


def test_a_further_seed_makes_no_trial_the_best(tmp_path: Path) -> None:
    """Only seeds that all trials have are a measure of their options."""
    three = {"peak_lr": [0.1, 0.2, 0.3]}
    first = Sweep.read(write(tmp_path, three))
    pretend(first, 70.0, 92.0, 91.0)
    write_sweep_report(first, ranked(first))
    more = Sweep.read(write(tmp_path, three, seeds=[0, 1]))
    pretend(more, 70.0, 70.0)
    found = ranked(more)
    assert [(entry.trial.options["peak_lr"], entry.accuracies) for entry in found] == [
        (0.2, [92.0]),
        (0.3, [91.0]),
        (0.1, [70.0]),
    ]
    said = notes(more, found)
    assert said[1:] == ["2 of 6 runs are not finished.", "Ranked by seed 0 alone, which every trial here has."]
    rows = table_rows(more, found)[1]
    assert [(row[0], row[4], row[-1]) for row in rows] == [
        ("1", "1 of 2", "unfinished"),
        ("2", "1 of 2", "unfinished"),
        ("3", "2 of 2", ""),
    ]
    write_sweep_report(more, found)
    best = more.places.results / "best.yaml"
    assert recipe_config(str(best)).peak_lr == 0.2
    assert "92.00 % over seeds 0\n" in best.read_text(encoding="utf-8")
    only = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.4]}, seeds=[0, 1]))
    pretend(only, None, None, None, 95.0)
    path_of(only.places.results, only.cells[1]).unlink()
    found, before = ranked(only), best.read_bytes()
    assert [path.name for path in write_sweep_report(only, found)] == ["table.md"]
    assert best.read_bytes() == before
    assert "No seed is finished for every trial here: there is no rank yet, and no new best.yaml." in notes(only, found)
    assert [row[0] for row in table_rows(only, found)[1]] == ["-", "-"]


def test_trials_that_have_not_begun_keep_none_from_its_rank(tmp_path: Path) -> None:
    sweep = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2, 0.3]}, seeds=[0, 1]))
    pretend(sweep, 80.0, 82.0, 90.0, 91.0)
    found = ranked(sweep)
    assert [(row[0], row[1]) for row in table_rows(sweep, found)[1]] == [
        ("1", sweep.all_trials[1].name),
        ("2", sweep.all_trials[0].name),
    ]
    assert notes(sweep, found)[1:] == ["2 of 6 runs are not finished."]


def test_of_equal_trials_the_lower_validation_loss_is_the_better_and_chance_is_told(tmp_path: Path) -> None:
    sweep = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2, 0.3, 0.4]}))
    for cell, accuracy, loss in zip(sweep.cells, (90.0, 90.0, 89.5, 88.0), (0.5, 0.4, 0.1, 0.1), strict=True):
        best = {"validation_top1_percent": accuracy, "validation_loss": loss}
        write_cell(sweep.places.results, cell, {"best": best, "train_seconds": 1.0, "validation_images": 200})
    found = ranked(sweep)
    assert [entry.trial.options["peak_lr"] for entry in found] == [0.2, 0.1, 0.3, 0.4]
    near = "2 more trials are within one validation image of the best: the validation has 200 images."
    assert near in notes(sweep, found)
    pretend(sweep, 90.0)  # by an earlier version, which kept neither
    assert not any("within one" in line for line in notes(sweep, ranked(sweep)))


def test_trials_of_equal_time_show_their_steps(tmp_path: Path) -> None:
    sweep = Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2]}, budget={"time_budget": "5s"}))
    for cell, steps in zip(sweep.cells, (40, 100), strict=True):
        best = {"validation_top1_percent": 90.0, "validation_loss": steps / 1000}
        found = {"best": best, "curve": [{"epoch": 1, "step": steps}], "train_seconds": 5.0}
        write_cell(sweep.places.results, cell, found)
    found = ranked(sweep)
    heads, rows = table_rows(sweep, found)
    assert [row[heads.index("steps")] for row in rows] == ["40", "100"]
    assert "Trials took from 40 to 100 steps: with more time their ranks may be others." in notes(sweep, found)
    assert "steps" not in table_rows(Sweep.read(write(tmp_path, {"peak_lr": [0.1, 0.2]})), found)[0]


def test_a_plan_measures_no_step_twice_and_says_what_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []
    monkeypatch.setattr(_cells, "seconds_needed", lambda cell: timed.append(cell.name) or 60.0)
    free = {"clip_norm": [0.0, 1.0], "early_stopping_epochs": [None, 3], "mixing.mixup_alpha": [0.0, 0.2, 0.8]}
    sweep = Sweep.read(write(tmp_path, free))
    print_plan(sweep)
    assert timed == [sweep.cells[0].name, sweep.cells[1].name]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"measuring run {number} of 12: {name}" for number, name in enumerate(timed, start=1)]
    here = {"machine": _cells.machine(_cells.default_device()), "epochs": 1}
    pretend(sweep, 90.0, curve=[], **here)  # it stopped early, and tells nothing of a whole run
    print_plan(sweep)
    assert len(timed) == 4
    pretend(sweep, 90.0, curve=[{"epoch": 1}], **here)
    print_plan(sweep)
    assert len(timed) == 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two learning rates with two seeds, killed in the second run and started again."""
    folder = tmp_path_factory.mktemp("sweep")
    file = write(folder, {"peak_lr": [0.01, 0.0001]}, seeds=[0, 1], budget={"epochs": 2})
    command = [sys.executable, "-m", "ceit", "sweep", file]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = Sweep.read(file)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = sweep.places.run_of(sweep.cells[1]) / "metrics.jsonl"
    until = time.monotonic() + 120
    while sum('"event": "step"' in line for line in lines_of(metrics)) < 12:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert [read_cell(sweep.places.results, cell) is not None for cell in sweep.cells] == [True, False, False, False]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert "run 1 of 4" not in again.stderr
    assert "resumed after step" in again.stderr
    assert "run 4 of 4" in again.stderr
    assert sweep.all_trials[0].name in again.stdout
    return sweep


def test_a_run_of_before_there_was_a_split_seed_was_split_by_its_seed(finished: Sweep, tmp_path: Path) -> None:
    first, second, *_ = finished.cells
    for cell in (first, second):
        record = read_cell(finished.places.results, cell)
        assert record is not None
        before = replace(cell, options={key: value for key, value in cell.options.items() if key != "split_seed"})
        write_cell(tmp_path, before, {key: record[key] for key in ("best", "train_seconds")})
    assert read_cell(tmp_path, first) is not None
    with pytest.raises(ValueError, match="was measured with split_seed 1, the study has 0 now"):
        read_cell(tmp_path, second)


def test_a_range_within_a_decade_has_numbers(finished: Sweep, tmp_path: Path) -> None:
    narrow = replace(finished, options=finished.options | {"peak_lr": {"log_uniform": [2e-4, 8e-4]}}, trials=2)
    draw_sweep(narrow, ranked(finished), [tmp_path / "figure.svg"])
    ticks = re.findall("<!-- (.*) -->", (tmp_path / "figure.svg").read_text(encoding="utf-8"))
    assert {"0.0002", "0.0005"} <= set(ticks)


def test_the_best_is_that_of_the_highest_validation_accuracy(finished: Sweep) -> None:
    found = ranked(finished)
    assert [entry.trial.options["peak_lr"] for entry in found] == [0.01, 0.0001]
    assert found[0].order > found[1].order
    table = (finished.places.results / "table.md").read_text(encoding="utf-8")
    assert markdown(*table_rows(finished, found)) in table
    assert f"| 1 | {found[0].trial.name} | 0.01 |" in table
    assert "Test top-1 of the best trial" in table
    assert "by its validation accuracy, so its validation accuracy is a little too high." in table
    assert (finished.places.results / "figure.png").stat().st_size > 1000
    ticks = re.findall("<!-- (.*) -->", (finished.places.results / "figure.svg").read_text(encoding="utf-8"))
    assert {"0.0001", "0.01"} <= set(ticks)
    assert not list(finished.places.results.rglob("checkpoints"))


def test_the_test_split_ranks_nothing(finished: Sweep, tmp_path: Path) -> None:
    """Nor is it in the cells' files: with another report in every run, the table and the best recipe are the same."""
    for path in finished.places.results.glob("trials/*.json"):
        assert "test" not in read_record(path)
    copy = Path(shutil.copytree(finished.places.results, tmp_path / "copy"))
    for number, report in enumerate(sorted(copy.glob("trials/*/test.json"))):
        report.write_text(json.dumps({"top1_percent": 10.0 * number}))
    other = Sweep(**{**vars_of(finished), "output": str(copy)})
    write_sweep_report(other, ranked(other))
    assert table_rows(other, ranked(other)) == table_rows(finished, ranked(finished))
    for name in ("best.yaml", "table.md"):
        theirs, ours = (folder.joinpath(name).read_text().splitlines() for folder in (copy, finished.places.results))
        different = [line for line in theirs if line not in ours]
        assert all(line.startswith(("# Run:", "Test top-1")) for line in different)


def test_what_is_gone_costs_no_other_part_of_the_report(
    finished: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(finished.places.results, tmp_path / "copy"))
    other = Sweep(**{**vars_of(finished), "output": str(copy)})
    run_directory = other.places.run_of(ranked(other)[0].trial.cells[1])
    shutil.rmtree(run_directory)
    (copy / "best.yaml").unlink()

    def fail(*arguments: object) -> None:
        raise OSError("no room for a figure")

    monkeypatch.setattr(sweep_report, "draw_sweep", fail)
    with pytest.raises(OSError, match="no room"):
        write_sweep_report(other, ranked(other))
    table = (copy / "table.md").read_text(encoding="utf-8")
    assert f"Test top-1 of the best trial: not known, {run_directory / 'test.json'} is gone." in table
    assert (copy / "best.yaml").is_file()


def vars_of(sweep: Sweep) -> dict[str, Any]:
    return {name: getattr(sweep, name) for name in sweep.__dataclass_fields__}


def test_the_best_recipe_trains_with_the_options_of_the_best(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(finished.places.results / "best.yaml")
    best = ranked(finished)[0].trial.cells[0]
    assert recipe_config(recipe) == best.config()
    assert parse(["--recipe", recipe, "--data", "digits", "--output", "x"])[0] == best.config()
    output = tmp_path / "best"
    assert ceit_cli.main(["train", "--recipe", recipe, "--data", "digits", "--output", str(output)]) == 0
    capsys.readouterr()
    same = json.loads((output / "test.json").read_text())["best"]
    record = read_cell(finished.places.results, best)
    assert record is not None
    assert same == record["best"]


def test_a_second_run_trains_nothing_and_a_longer_grid_keeps_what_there_is(
    finished: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.places.results.parent
    before = {path.name: path.read_bytes() for path in finished.places.results.glob("trials/*.json")}
    said: list[str] = []
    run(str(folder / "own.yaml"), said)
    assert said == []
    longer = write(folder, {"peak_lr": [0.01, 0.02, 0.0001]}, seeds=[0, 1, 2], budget={"epochs": 2})
    assert ceit_cli.main(["sweep", longer, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count(" done"), printed.count("to run")) == (4, 5)
    assert "3 trials, 9 runs" in printed
    assert ceit_cli.main(["sweep", longer, "--report"]) == 0
    table = (finished.places.results / "table.md").read_text(encoding="utf-8")
    assert "5 of 9 runs are not finished" in table
    assert "2 of 3 | " in table
    assert "Test" not in table  # while the choice is open
    assert {path.name: path.read_bytes() for path in finished.places.results.glob("trials/*.json")} == before


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "peak_lr": [1e30, 0.01], "max_skipped_steps": 2, "clip_norm": 0.0}
    said: list[str] = []
    file = write(tmp_path, options)
    sweep = run(file, said)
    found = ranked(sweep)
    assert [entry.failure is None for entry in found] == [True, False]
    assert sum(" failed: " in line for line in said) == 1
    assert not list(sweep.places.results.rglob("checkpoints"))
    assert not any("checkpoint is intact" in line for line in said)
    paths = write_sweep_report(sweep, found)
    assert [path.name for path in paths] == ["table.md", "figure.png", "figure.svg", "best.yaml"]
    row = next(line for line in paths[0].read_text(encoding="utf-8").splitlines() if "1e+30" in line)
    assert row.startswith("| - |")
    assert "| failed: " in row
    said.clear()
    run(file, said)
    assert said == []  # it is not tried again


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't\nallocate"), MemoryError()])
def test_a_run_that_memory_does_not_hold_is_recorded_and_the_others_go_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def fail(trainer: Trainer) -> None:
        if trainer.run.config.peak_lr == 0.02:
            raise error
        fit(trainer)

    monkeypatch.setattr(Trainer, "fit", fail)
    first, second = ranked(run(write(tmp_path, {"peak_lr": [0.02, 0.01]})))
    assert first.failure is None
    assert second.failure in ("DefaultCPUAllocator: can't allocate", "memory is full")


def test_a_trial_that_cannot_begin_is_recorded_once_another_has_begun(tmp_path: Path) -> None:
    """The images' size is known when they are read."""
    said: list[str] = []
    sweep = run(write(tmp_path, {"augmentation.translate": [200, 1]}), said)
    cannot, good = sweep.cells
    assert any(line.startswith(f"{cannot.name} cannot begin, so the others are tried first: ") for line in said)
    first, second = ranked(sweep)
    assert (first.trial.name, second.trial.name) == (good.arm, cannot.arm)
    assert (second.failure or "").startswith("it cannot begin: translate 200 must be below the image's shorter side")
    said.clear()
    more = run(write(tmp_path, {"augmentation.translate": [200, 1, 300]}), said)
    assert not any("tried first" in line for line in said)
    assert [entry.failure is None for entry in ranked(more)] == [True, False, False]


def test_where_no_trial_can_begin_none_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="translate 200 must be below"):
        run(write(tmp_path, {"augmentation.translate": [200, 300]}))
    assert not list(tmp_path.glob("out/trials/*.json"))
    with pytest.raises(ValueError, match="the trial with batch_norm sync: batch_norm sync needs GPUs"):
        run(write(tmp_path, {"batch_norm": ["local", "sync"], "device": "cpu"}))
    assert not list(tmp_path.glob("out/trials/*"))


def test_images_that_are_gone_are_no_fault_of_a_trial(tmp_path: Path, photos: Path) -> None:
    file = write(tmp_path, {"img_size": 32, "peak_lr": [0.01, 0.02]}, data=str(photos))
    pretend(Sweep.read(file), 90.0)
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="photos"):
        run(file)
    assert len(list(tmp_path.glob("out/trials/*.json"))) == 1


def test_seeds_of_a_trial_that_has_failed_are_left_untrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def fail_first(cell: Cell, places: sweeps.Places, *rest: object) -> None:
        ran.append(cell.name)
        if cell.arm == first.arm:
            (places.run_of(cell) / "checkpoints").mkdir(parents=True)
            words = "out of memory: 64 images at once do not fit; go on with --resume auto --device-batch-size 32"
            write_failure(cell, places, lambda message: None, f"{words}; the last checkpoint is intact", 500.0)
        else:
            best = {"validation_top1_percent": 50.0}
            write_cell(places.results, cell, {"best": best, "train_seconds": 60.0})

    monkeypatch.setattr(sweeps, "run_trial", fail_first)
    said: list[str] = []
    file = write(tmp_path, {"peak_lr": [0.1, 0.2]}, seeds=[0, 1], total_time="700s")  # a usual run has 60 s
    first, untrained, *others = Sweep.read(file).cells
    sweep = run(file, said)
    assert ran == [first.name, *(cell.name for cell in others)]
    left = f"{untrained.name} is left untrained: another run that it would count with has failed"
    assert [line for line in said if not line.startswith("run ")] == [left]
    record, output = read_cell(sweep.places.results, first), sweep.places.run_of(first)
    assert record is not None
    assert record["failed"].endswith(
        "--device-batch-size 32; in a sweep, set device_batch_size in options, or remove "
        f"{path_of(sweep.places.results, first)} and {output} to try again"
    )
    assert not list(output.iterdir())
    said = notes(sweep, ranked(sweep))
    assert said[1] == "1 of 4 runs are left untrained: another seed of their trial has failed."
    print_plan(sweep)
    assert capsys.readouterr().out.count("left out") == 1


def test_classes_of_a_sweep_are_names_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    options = "{classes: [[007, no]], peak_lr: [1e-3, 010]}"
    file.write_text(f"data: digits\noutput: out\nsearch: grid\noptions: {options}\n")
    configs = [cell.config() for cell in Sweep.read(str(file)).cells]
    assert [(config.classes, config.peak_lr) for config in configs] == [(("007", "no"), 1e-3), (("007", "no"), 10.0)]


def test_what_is_no_fault_of_a_run_stops_the_sweep_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged_out(*given: Any) -> None:
        raise CannotBeginError("tracking with wandb cannot begin: log in")

    def hang(trainer: Trainer) -> None:
        raise HangingError("no images have come for 10 min")

    file = write(tmp_path, {"peak_lr": [0.01, 0.02]})
    with monkeypatch.context() as during:
        during.setattr("ceit.train.run.start_trackers", logged_out)
        with pytest.raises(ValueError, match="cannot begin: log in"):
            run(file)
    with monkeypatch.context() as during:
        during.setattr(Trainer, "fit", hang)
        with pytest.raises(HangingError):
            run(file)
    assert [entry.failure for entry in ranked(run(file))] == [None, None]


def test_trials_are_not_ranked_that_saw_other_images(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {"img_size": 32, "peak_lr": [0.01, 0.011]}, data=str(photos), seeds=[0, 1])
    assert ceit_cli.main(["sweep", file]) == 0
    first, *others = (ImageRecord.read(path.parent) for path in (tmp_path / "out").glob("trials/*/images.csv"))
    assert len(others) == 3
    assert all(other == first for other in others)  # no image that tests one seed trains or chooses another
    best = ["--recipe", str(tmp_path / "out" / "best.yaml"), "--data", str(photos), "--seed", "5"]
    assert ceit_cli.main(["train", *best, "--output", str(tmp_path / "longer")]) == 0
    assert ImageRecord.read(tmp_path / "longer") == first
    next(photos.glob("a/*.png")).rename(photos / "a" / "renamed.png")
    more = write(tmp_path, {"img_size": 32, "peak_lr": [0.01, 0.011, 0.02]}, data=str(photos), seeds=[0, 1])
    assert ceit_cli.main(["sweep", more]) == 0  # the images are the same
    (photos / "a" / "renamed.png").rename(photos / "b" / "renamed.png")
    capsys.readouterr()
    most = write(tmp_path, {"img_size": 32, "peak_lr": [0.01, 0.011, 0.02, 0.03]}, data=str(photos), seeds=[0, 1])
    said = ""
    for _ in range(2):
        assert ceit_cli.main(["sweep", most]) == 1
        said = capsys.readouterr().err
        assert f"the images of {photos} have changed between cells, which cannot be compared: 6 (" in said
        assert ", ...) and 1 (" in said  # the next one was not begun
    assert "put the images back, or remove the files and run directories of the cells that saw the old ones" in said


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of each of two classes."""
    random = np.random.default_rng(0)
    for name in "ab":
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_where_all_fail_the_reason_is_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"optimizer": "sgd", "peak_lr": [1e30, 1e31], "max_skipped_steps": 2}
    assert ceit_cli.main(["sweep", write(tmp_path, options)]) == 1
    assert "no trial was trained to its end with every seed; the first failed: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_data_that_are_not_there_stop_the_sweep_and_record_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {"peak_lr": [0.01, 0.1]})
    assert ceit_cli.main(["sweep", file, "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/trials/*.json"))


@pytest.mark.parametrize(
    "options",
    [
        {"initial_checkpoint": [None, "nowhere.safetensors"]},
        {"distillation": {"teacher": "resnet18", "checkpoint": [None, "nowhere.safetensors"]}},
    ],
)
def test_weights_that_are_not_there_stop_the_sweep_before_the_first_run(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "run_trial", lambda *_: pytest.fail("a run began"))
    with pytest.raises(ValueError, match=r"checkpoint nowhere\.safetensors is not here: name a run directory"):
        run(write(tmp_path, options))


def test_tuning_begins_with_the_network_of_the_checkpoint(tmp_path: Path) -> None:
    """As ``ceit train`` does with that recipe."""
    start = {"initial_checkpoint": "ceit_nano_patch4_32.cifar10", "peak_lr": [0.001, 0.002]}
    sweep = Sweep(start, "digits", str(tmp_path), "photos_finetune", "grid")
    configs = [cell.config() for cell in sweep.cells]
    network = shipped_description("ceit_nano_patch4_32.cifar10")["config"]
    for config in configs:
        assert asdict(config_of(config.model, **config.geometry, img_size=config.img_size)) == asdict(
            CeiTConfig(**network)
        )
    other = Sweep(start | {"model": "ceit_mini_patch4_32"}, "digits", str(tmp_path), "photos_finetune", "grid")
    assert {cell.config().model for cell in other.cells} == {"ceit_mini_patch4_32"}


def test_the_total_time_ends_a_sweep_between_two_runs_and_a_longer_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def pretend(cell: sweeps.Cell, places: sweeps.Places, *rest: object) -> None:
        ran.append(cell.name)
        best = {"validation_top1_percent": 50.0}
        write_cell(places.results, cell, {"best": best, "train_seconds": 60.0})

    monkeypatch.setattr(sweeps, "run_trial", pretend)
    said: list[str] = []
    sweep = run(write(tmp_path, {"peak_lr": [0.1, 0.2, 0.3, 0.4]}, total_time="150s"), said)
    assert ran == [cell.name for cell in sweep.cells[:2]]
    assert said[-1] == "total_time 150s is used up: 2 of 4 runs are left; a longer one goes on"
    run(write(tmp_path, {"peak_lr": [0.1, 0.2, 0.3, 0.4]}, total_time="5m"))
    assert ran == [cell.name for cell in sweep.cells]


def test_a_stop_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_trial", stop)
    file = write(tmp_path, {"peak_lr": [0.1, 0.2]}, output=None)
    assert ceit_cli.main(["sweep", file, "--output", str(tmp_path / "out")]) == 130
    said = f"stopped, nothing that was saved is lost; go on with: ceit sweep {file} --output {tmp_path / 'out'}"
    assert said in capsys.readouterr().err
    assert ceit_cli.main(["sweep", file, "--output", str(tmp_path / "out"), "--report"]) == 1
    assert "no run of the sweep is finished yet" in capsys.readouterr().err


def test_processes_share_the_runs(tmp_path: Path) -> None:
    file = write(tmp_path, {"peak_lr": [0.01, 0.02, 0.03]})
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ceit", "sweep", file],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for number in (1, 2, 3):
        assert sum(f"run {number} of 3: " in text for text in said) == 1
    assert len(list(tmp_path.glob("out/trials/*.json"))) == 3
    assert not list(tmp_path.rglob("*.lock"))


def test_a_time_budget_is_of_each_run(tmp_path: Path) -> None:
    output = str(tmp_path / "my sweep")
    sweep = run(write(tmp_path, {"peak_lr": [0.01, 0.02]}, budget={"time_budget": "4s"}, output=output))
    best = ranked(sweep)[0]
    assert 0 < best.records[0]["train_seconds"] < 8
    write_sweep_report(sweep, ranked(sweep))
    lines = (sweep.places.results / "best.yaml").read_text(encoding="utf-8").splitlines()
    assert f"# Run:  ceit train --recipe '{output}/best.yaml' --data digits --output DIR --time-budget 4s" in lines


def test_another_optimizer_takes_no_arguments_of_the_recipes_own(tmp_path: Path) -> None:
    own = {"optimizer": ["muon", "adamw"], "optimizer_args": {"betas": [[0.9, 0.95]]}}
    sweep = Sweep.read(write(tmp_path, {"optimizer": ["muon", "adamw"]}, recipe="demo"))
    muon, adamw = (trial.cells[0].options for trial in sweep.all_trials)
    assert muon["optimizer_args"] == {"momentum": 0.85, "nesterov": True}
    assert "optimizer_args" not in adamw
    named = Sweep.read(write(tmp_path, own | {"optimizer": ["adam", "adamw"]}, recipe="demo"))
    assert [trial.cells[0].options["optimizer_args"] for trial in named.all_trials] == [{"betas": [0.9, 0.95]}] * 2


def test_a_trial_that_first_trains_the_head_alone_can_be_estimated(tmp_path: Path) -> None:
    start = {"freeze_epochs": 0.5, "initial_checkpoint": str(tmp_path / "model.safetensors"), "peak_lr": [1e-3, 1e-2]}
    cell, _ = Sweep.read(write(tmp_path, start)).cells
    assert seconds_needed(cell) > 0
