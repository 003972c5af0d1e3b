"""What a run tells trackers: TensorBoard as it is installed, the others as modules that note what they are told."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ceit.train.trackers
from ceit.train.config import TrainConfig
from ceit.train.interruption import Interrupted
from ceit.train.run import train
from ceit.train.trackers import chosen_trackers
from tests.train.conftest import SMALL

CONFIG = replace(SMALL, limit_batches=6, log_every_steps=2)
TOLD = ("loss", "learning_rate", "images_per_second")
RUN = """
class Run:
    def __init__(self, options):
        told.append(("init", options))
    def log(self, values, step):
        told.append(("log", values, step))
    def finish(self, exit_code=0):
        told.append(("finish", exit_code))
told = []
def init(**options):
    return Run(options)
"""
MLFLOW = """
import types
told, info = [], types.SimpleNamespace(run_id="of-mlflow")
def search_experiments(filter_string): return []
def create_experiment(name, **_): told.append(("experiment", name))
def start_run(**options):
    told.append(("init", options))
    return types.SimpleNamespace(info=info)
def log_params(values): told.append(("params", values))
def log_metrics(values, step): told.append(("log", values, step))
def end_run(status="FINISHED"): told.append(("finish", status))
limits = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
utils = types.SimpleNamespace(validation=limits)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``wandb``, ``trackio`` and ``mlflow`` can be imported, and are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in {"wandb": RUN, "trackio": RUN, "mlflow": MLFLOW}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in ("wandb", "trackio", "mlflow"):
        sys.modules.pop(name, None)


def told(name: str) -> list[Any]:
    """What a fake noted, once."""
    noted = [*sys.modules[name].told]
    sys.modules[name].told.clear()
    return noted


def stop_at(step: int) -> Any:
    def show(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return show


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_gets_options_steps_validation_and_test_and_goes_on_after_an_interruption(
    name: str, tmp_path: Path
) -> None:
    output = tmp_path / "my_run"
    config = replace(CONFIG, tracker=(name,))
    with pytest.raises(Interrupted):
        train(config, "digits", output, show=stop_at(3))
    assert not {"wandb", "trackio", "mlflow"} - {name} & sys.modules.keys()
    first = told(name)
    assert first[-1] == ("finish", {"wandb": 1, "trackio": 0, "mlflow": "KILLED"}[name])
    train(config, "digits", output, resume="auto")
    second = told(name)
    assert second[-1] == ("finish", "FINISHED" if name == "mlflow" else 0)

    began, resumed = (next(entry[1] for entry in part if entry[0] == "init") for part in (first, second))
    if name == "mlflow":
        assert (began["run_id"], began["run_name"], resumed["run_id"]) == (None, "my_run", "of-mlflow")
        options = dict(next(entry[1] for entry in first if entry[0] == "params"))
        assert "params" not in [entry[0] for entry in second]  # mlflow refuses to be told others
    else:
        assert (began["project"], began["resume"]) == ("ceit", "allow")
        identity = {"wandb": "id", "trackio": "name"}[name]
        assert began[identity] == resumed[identity] != ""
        assert "my_run" in began["name"]
        options = began["config"]
    assert options["peak_lr"] == 1e-2
    assert options["augmentation.translate"] == 1
    assert options["data"] == "digits"

    logged = [(entry[1], entry[2]) for entry in first + second if entry[0] == "log"]
    steps = [step for values, step in logged if "learning_rate" in values]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert all(values.keys() >= {*TOLD} for values, step in logged if "learning_rate" in values)
    epochs = [(step, values["validation/ema/top1_percent"]) for values, step in logged if "train_loss" in values]
    assert [step for step, _ in epochs] == [6, 12]
    report = json.loads((output / "test.json").read_text(encoding="utf-8"))
    values, step = logged[-1]
    assert (step, values["test/top1_percent"], values["test/loss"]) == (12, report["top1_percent"], report["loss"])
    assert all(isinstance(value, int | float) for values, _ in logged for value in values.values())


@pytest.mark.usefixtures("fakes")
def test_several_trackers_at_once_and_a_run_that_begins_anew_is_another(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, tracker=("wandb", "tensorboard", "trackio", "mlflow"))
    identities = []
    for output in (tmp_path / "a", tmp_path / "b"):
        train(config, "digits", output)
        assert (output / "tensorboard").is_dir()
        for name in ("wandb", "trackio", "mlflow"):
            assert Counter(entry[0] for entry in told(name))["log"] == 5  # three steps, an epoch, the test
        identities.append(json.loads((output / "trackers.json").read_text(encoding="utf-8")))
    assert identities[0].keys() == {"wandb", "trackio", "mlflow"}
    assert identities[0]["wandb"] != identities[1]["wandb"]
    assert identities[0]["trackio"] != identities[1]["trackio"]


@pytest.mark.usefixtures("fakes")
def test_a_run_that_starts_over_goes_on_in_its_trackers_and_replaces_its_curves(tmp_path: Path) -> None:
    config, run = replace(CONFIG, epochs=1, tracker=("wandb", "tensorboard")), tmp_path / "run"
    train(config, "digits", run)
    before = (run / "trackers.json").read_bytes()
    once = curves(run)
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before the first
    for name in ("model.safetensors", "test.json"):
        (run / name).unlink()
    train(config, "digits", run, resume="auto")
    assert (run / "trackers.json").read_bytes() == before
    assert curves(run) == once


@pytest.mark.usefixtures("fakes")
def test_a_tracker_that_cannot_begin_stops_the_run_in_its_own_words_and_the_run_can_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise KeyError("api_key not configured")

    config, fake, said = replace(CONFIG, epochs=1, tracker=("wandb",)), importlib.import_module("wandb"), list[str]()
    with monkeypatch.context() as logged_out:
        logged_out.setattr(fake, "init", refuse)
        with pytest.raises(ValueError, match=r"tracking with wandb cannot begin: 'api_key not configured'"):
            train(config, "digits", tmp_path / "run", say=said.append)
    assert not [line for line in said if "wandb" in line]
    train(config, "digits", tmp_path / "run", resume="auto")
    assert told("wandb")[-1] == ("finish", 0)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_outage_of_a_tracker_costs_its_curves_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise ConnectionError("no answer\nafter 5 tries")

    fake, said, run = importlib.import_module(name), list[str](), tmp_path / "run"
    for method in ("log", "finish", "log_metrics", "end_run"):
        monkeypatch.setattr(fake.Run if name == "wandb" else fake, method, fail, raising=False)
    train(replace(CONFIG, epochs=1, tracker=(name, "tensorboard")), "digits", run, say=said.append)
    about = [line for line in said if line.startswith(name) or "not been ended" in line]
    why = "(no answer after 5 tries)"
    later = f"{why}: it is told no more for 10 min; metrics.jsonl has everything"
    assert about == [
        *(f"{name} has not taken the figures of step {step} {later}" for step in (2, 6)),  # the first, and the test's
        f"the run in {name} has not been ended {why}",
    ]
    assert (run / "test.json").is_file()
    assert curves(run)["loss"]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_that_failed_has_failed_in_its_trackers(name: str, tmp_path: Path) -> None:
    def fail(state: dict[str, Any]) -> None:
        if state.get("total_steps"):
            raise ValueError("of the test")

    with pytest.raises(ValueError, match="of the test"):
        train(replace(CONFIG, tracker=(name,)), "digits", tmp_path / "run", show=fail)
    assert told(name)[-1] == ("finish", "FAILED" if name == "mlflow" else 1)


def test_a_tensorboard_that_does_not_work_is_said_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Any:
        raise TypeError("Descriptors cannot be created directly.\nIf this call came from a _pb2.py file ...")

    said = list[str]()
    monkeypatch.setattr(ceit.train.trackers, "import_module", broken)
    train(replace(CONFIG, epochs=1), "digits", tmp_path / "run", say=said.append)
    (line,) = (line for line in said if "TensorBoard" in line)
    assert line.startswith("TensorBoard is installed and does not work, so it gets no curves: Descriptors cannot be")
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.usefixtures("fakes")
def test_the_project_of_wandb_is_that_of_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    train(replace(CONFIG, epochs=1, tracker=("wandb",)), "digits", tmp_path / "run")
    assert told("wandb")[0][1]["project"] == "birds"


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    timing = ("images_per_second", "elapsed_seconds", "data_wait_percent", "tflops")
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if not name.endswith(timing)
    }


def test_tensorboard_has_the_curves_of_a_run_once_though_it_was_interrupted(tmp_path: Path) -> None:
    train(CONFIG, "digits", tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(CONFIG, "digits", tmp_path / "parts", show=stop_at(8))
    oldest = str(min((tmp_path / "parts" / "checkpoints").iterdir()))  # lies behind what was logged
    train(CONFIG, "digits", tmp_path / "parts", resume=oldest)
    whole, parts = curves(tmp_path / "whole"), curves(tmp_path / "parts")
    assert whole == parts
    assert [step for step, _ in whole["loss"]] == [2, 4, 6, 8, 10, 12]
    assert whole.keys() >= {"learning_rate", "train_loss", "validation/raw/top1_percent", "test/loss"}
    assert not (tmp_path / "whole" / "trackers.json").exists()


def test_no_tracker_and_none_that_is_installed_leave_the_files_of_a_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(CONFIG, epochs=1, tracker=()), "digits", tmp_path / "none")
    assert not {"tensorboard", "trackers.json"} & {path.name for path in (tmp_path / "none").iterdir()}
    assert chosen_trackers(None, print) == ("tensorboard",)
    monkeypatch.setattr(ceit.train.trackers, "find_spec", lambda name: None)
    assert chosen_trackers(None, print) == ()


def test_a_run_that_named_no_tracker_goes_on_where_none_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = replace(CONFIG, epochs=1), list[str]()
    with pytest.raises(Interrupted):
        train(config, "digits", tmp_path / "run", show=stop_at(2))
    monkeypatch.setattr(ceit.train.trackers, "find_spec", lambda name: None)
    saved = replace(config, tracker=("tensorboard",))  # as the command line takes it from config.yaml
    train(saved, "digits", tmp_path / "run", resume="auto", say=said.append)
    assert "resumed with another option: tracker was ['tensorboard'], now []" in said
    with pytest.raises(ValueError, match="the tracker tensorboard is not installed"):
        train(saved, "digits", tmp_path / "run", resume="auto", typed=("tracker",))


def test_a_tracker_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb").mkdir()  # where an earlier run of wandb's has left its files
    with pytest.raises(ValueError, match=r"the tracker wandb is not installed: pip install wandb, or leave it out"):
        train(replace(CONFIG, tracker=("wandb",)), "digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(ceit.train.trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "ceit-vision\[tensorboard\]"'):
        chosen_trackers(("tensorboard",), print)


def test_an_unknown_tracker_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown tracker 'wandbb'; did you mean 'wandb'\? Known: mlflow, tensorboard"
    ):
        TrainConfig(tracker=("tensorboard", "wandbb"))


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    names = "{'tensorboard', 'torch.utils.tensorboard', 'wandb', 'mlflow', 'trackio'}"
    program = f"import sys, ceit.cli.train; sys.exit(', '.join({names} & sys.modules.keys()) or None)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("fakes")
def test_a_resumed_run_may_be_followed_by_other_trackers(tmp_path: Path) -> None:
    config, said = replace(CONFIG, epochs=1, tracker=("wandb",)), list[str]()
    train(config, "digits", tmp_path / "run")
    told("wandb")
    train(replace(config, tracker=None), "digits", tmp_path / "run", resume="auto")
    assert [entry[0] for entry in told("wandb")] == ["init", "log", "finish"]  # it reports again, to the same
    train(replace(config, tracker=()), "digits", tmp_path / "run", resume="auto", say=said.append)
    assert told("wandb") == []
    assert "resumed with another option: tracker was ['wandb'], now []" in said
