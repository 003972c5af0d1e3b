"""``ceit train`` as it is typed: switches, what is printed, and wrong usage."""

import io
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args, get_origin

import psutil
import pytest
import yaml
from rich.console import Console

import ceit_cli
from ceit.cli.train import FIRST, GROUPS, PLACES, SWITCHES, LiveProgress, parse
from ceit.options import option_types, parts_of
from ceit.train.config import SECTIONS, TrainConfig, known_keys
from ceit.train.schema import descriptions

SMALL = ["--geometry", '{"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}']


def test_a_fast_dev_run_does_everything_in_two_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--recipe", "demo", "--data", "digits", "--output", str(run), *SMALL, "--fast-dev-run"]
    assert ceit_cli.main(arguments) == 0
    events = [json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events == ["step", "step", "epoch", "test"]
    assert (run / "model.safetensors").is_file()
    printed = capsys.readouterr()
    assert "kept: raw weights of epoch 1" in printed.out
    assert f"for the real training name another --output, or remove {run}" in printed.err


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (["--lr-base-size", "512", "--global-batch-size", "256"], "0.02 * 256 / 512 = 0.01"),
        (["--global-batch-size", "128"], "0.02"),
        (["--global-batch-size", "null"], None),
    ],
)
def test_the_printed_configuration_is_a_recipe(
    given: list[str], rate: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ceit_cli.main(["train", "--recipe", "demo", *given, "--epochs", "7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    told = [line for line in printed.splitlines() if line.startswith("#")]
    assert told == ([] if rate is None else [f"# learning rate after the warm-up: {rate}"])
    path = tmp_path / "printed.yaml"
    path.write_text(printed, encoding="utf-8")
    assert yaml.safe_load(printed)["epochs"] == 7
    assert ceit_cli.main(["train", "--recipe", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_the_printed_schema_knows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["train", "--print-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(TrainConfig().as_dict())


def test_the_range_test_prints_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--recipe", "demo", "--data", "digits", "--output", str(tmp_path / "range"), *SMALL]
    assert ceit_cli.main([*arguments, "--lr-range-test"]) == 0
    assert "suggested peak_lr: " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "range" / "lr_range_test.json").read_text(encoding="utf-8"))["rates"]) > 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipe", "demo", "--output", "x"], "--data is missing"),
        (["--data", "digits", "--output", "x", "--peak_lrr", "1"], "did you mean '--peak-lr'"),
        (
            ["--data", "digits", "--output", "x", "--precision", "bf17"],
            "--precision bf17 must be one of auto, bf16, fp16, float32, float64",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["train", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_help_shows_the_first_options_and_help_all_every_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pages = []
    for word in ("--help", "--help-all"):
        assert ceit_cli.main(["train", word]) == 0
        pages.append(capsys.readouterr().out)
        assert all(len(line) <= 80 for line in pages[-1].splitlines())
        assert pages[-1].startswith("usage: ceit train --data DATA --output DIR")
    listed = [re.findall(r"^  (--\S+)", page, re.MULTILINE) for page in pages]
    assert listed[0][:-2] == ["--" + name.replace("_", "-") for name in FIRST]
    every = {*PLACES, *SWITCHES, *known_keys()} - set(SECTIONS)
    assert sorted(listed[1]) == sorted("--" + name.replace("_", "-") for name in every)
    titles = re.findall(r"^(\S.*):$", pages[1], re.MULTILINE)
    assert titles == ["first options", *GROUPS.values(), "beside or instead of training", "examples"]


def test_a_recipes_arguments_are_for_its_own_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"momentum": 0.85, "nesterov": True}
    for words, arguments in (
        (["--optimizer", "adamw"], {}),
        (["--optimizer", "adamw", "--optimizer-args", "{eps: 1e-7}"], {"eps": 1e-7}),
        (["--optimizer", "muon"], own),
        ([], own),
    ):
        assert ceit_cli.main(["train", "--recipe", "demo", *words, "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["optimizer_args"] == arguments


def test_help_says_the_defaults_that_would_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["train", "--help-all"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "--final-lr Learning rate at the end of the schedule. (default: 1e-05)" in page
    assert page.count("(default: ") == len(known_keys()) - len(SECTIONS)
    assert ceit_cli.main(["train", "--recipe", "demo", "-h"]) == 0
    assert "(default: 0.02)" in " ".join(capsys.readouterr().out.split())


def test_help_names_every_choice() -> None:
    for of in (TrainConfig, *SECTIONS.values()):
        for name, hint in option_types(of).items():
            choices = [choice for part in parts_of(hint) if get_origin(part) is Literal for choice in get_args(part)]
            assert all(choice in descriptions(of)[name] for choice in choices), name


def test_each_epoch_says_how_long_the_run_still_takes_by_its_own_pace() -> None:
    text = io.StringIO()
    live = LiveProgress(Console(file=text, width=200))

    def show_step(step: int, share_done: float) -> None:
        state = {"step": step, "total_steps": 40, "share_done": share_done}
        live.show(state | {"epoch": 1, "loss": 1.5, "top1_percent": None})

    epoch = {"event": "epoch", "epoch": 1, "step": 4, "train_loss": 1.5, "elapsed_seconds": 20.0}
    live.show(epoch | {"validation": {"raw": None, "ema": None}})  # a run that was stopped after an epoch's last step
    show_step(1, 0.08)
    show_step(4, 0.1)  # a time budget may plan anew
    live.show(epoch | {"validation": {"raw": {"top1_percent": 50.0, "loss": 1.0}, "ema": None}})
    show_step(40, 1.0)
    live.show(epoch | {"validation": {"raw": None, "ema": None}, "step": 40, "epoch": 9, "elapsed_seconds": 5400.0})
    assert text.getvalue().splitlines() == [
        "epoch   1: loss 1.500, validation top-1 -, 20 s gone",
        "epoch   1: loss 1.500, validation top-1 raw 50.00 %, 20 s gone, 3 min left",
        "epoch   9: loss 1.500, validation top-1 -, 1.5 h gone, 0 s left",
    ]


def test_the_bar_of_another_run_begins_anew() -> None:
    live = LiveProgress(Console(file=io.StringIO(), force_terminal=True, width=200))
    for share in (0.5, 1.0, 0.25):
        state = {"step": 1, "total_steps": 4, "share_done": share}
        live.show(state | {"epoch": 1, "loss": 1.5, "top1_percent": None})
        task = live.tasks[live.task]
        assert (task.percentage, task.finished) == (100 * share, share == 1)


STUCK = """
import os, sys, time
import ceit_cli
from ceit.data.batches.batch import Batches


def read_for_long(self, request):
    os.write(1, b"stuck\\n")  # in one piece, whatever the others write
    time.sleep(120)


Batches.read = read_for_long
sys.exit(ceit_cli.main(sys.argv[1:]))
"""


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """As after ``ceit train 2>&1 | head -1``, or in a shell that was left."""
    arguments = ["train", "--recipe", "demo", "--data", "digits", "--output", str(tmp_path / "run"), *SMALL]
    command = [sys.executable, "-m", "ceit", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline()
    process.stderr.close()
    process.wait(timeout=900)
    assert (tmp_path / "run" / "test.json").is_file()
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_run_that_waits_for_images_that_never_come(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    arguments = ["train", "--recipe", "demo", "--data", "digits", "--output", str(tmp_path / "run"), *SMALL]
    command = [sys.executable, "-c", STUCK, *arguments, "--workers", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    stuck = (line for line in process.stdout if line == "stuck\n")
    assert list(itertools.islice(stuck, 5)) == ["stuck\n"] * 5
    used = -1.0
    while (now := psutil.Process(process.pid).cpu_times().user) > used:  # until it has nothing to do but wait
        used = now
        time.sleep(1)
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == code
    assert told.endswith({130: "interrupted\n", 143: "terminated\n"}[code])


@pytest.mark.parametrize("words", [["--epochs", "3"], ["--samples=5"], ["--fast-dev-run"], ["--lr-range-test"]])
def test_m3_what_a_time_budget_would_override_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    option = words[0].partition("=")[0]
    assert ceit_cli.main(["train", "--data", "digits", "--output", "x", "--time-budget", "8h", *words]) == 2
    sentence = f"--time-budget chooses the number of steps: leave out {option} or --time-budget"
    assert sentence in capsys.readouterr().err


def test_m3_a_time_budget_replaces_the_epochs_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 300\n", encoding="utf-8")
    place = ["--recipe", str(tmp_path / "mine.yaml"), "--data", "digits", "--output", str(tmp_path / "run")]
    config, asked = parse([*place, "--time-budget", "8h", "--epochs", "null"])
    assert (config.epochs, asked.time_budget) == (None, "8h")
    config, asked = parse([*place, "--time-budget", "8h"])
    assert (config.epochs, asked.typed) == (300, {"recipe", "data", "output", "time_budget"})


def test_a_demo_fetches_nothing_for_a_run_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("ceit.cli.demo.fetch", lambda name, **_: fetched.append(name))
    (tmp_path / "config.yaml").write_text("{data: /my/photos, epochs: 1, precision: float32}", encoding="utf-8")
    assert ceit_cli.main(["demo", "--data", "mnist", "--output", str(tmp_path)]) == 1
    assert "holds a run on /my/photos, not on mnist: name another --output" in capsys.readouterr().err
    assert fetched == []


@pytest.mark.parametrize(("words", "trained_on"), [([], "digits"), (["--data", "cifar10"], None)])
def test_a_demo_goes_on_with_its_own_command_and_its_own_data(
    words: list[str],
    trained_on: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It began on the digits, without a network, and there is one now."""
    seen: list[str] = []

    def stop(config: object, data: str, *places: object, **options: object) -> None:
        seen.append(data)
        raise KeyboardInterrupt

    monkeypatch.setattr("ceit.cli.demo.train", stop)
    monkeypatch.setattr("ceit.cli.demo.fetch", lambda *_, **__: None)
    (tmp_path / "config.yaml").write_text("{data: digits, epochs: 1, precision: float32}", encoding="utf-8")
    code = ceit_cli.main(["demo", *words, "--output", str(tmp_path)])
    said = capsys.readouterr().err
    if trained_on:
        assert (code, seen) == (130, [trained_on])
        assert "holds a run on digits, which goes on" in said
        assert f"go on with: ceit demo --output {tmp_path}" in said
    else:
        assert (code, seen) == (1, [])
        assert "holds a run on digits, not on cifar10: give --data digits to go on with it, or name another" in said


def test_a_demo_that_cannot_draw_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert ceit_cli.main(["demo", "--data", "digits", "--output", str(tmp_path / "demo")]) == 1
    assert "this needs matplotlib, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
