"""Whole runs on the digits that ship with the package, with a network small enough for a test."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ceit.data.batches.augment import Augmentation
from ceit.data.batches.loader import Loader
from ceit.evaluation.metrics import DivergedError, Evaluation, evaluate
from ceit.lock import InUseError
from ceit.messages import Say
from ceit.model.complexity import complexity
from ceit.train.config import Mixing
from ceit.train.interruption import Interrupted, stop_signals
from ceit.train.log import Show
from ceit.train.resolve import ResolvedRun
from ceit.train.run import Result, begun, train
from ceit.weights import load_checkpoint
from tests.train.conftest import SMALL, MakeTrainer

TIMES = ("elapsed_seconds", "images_per_second", "data_wait_percent", "tflops")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(SMALL, "digits", tmp_path_factory.mktemp("runs") / "whole")


def lines(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def test_a_step_line_tells_operations_from_its_images(finished: Result) -> None:
    records = map(json.loads, (finished.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in records if line["event"] == "step"]
    operations = 6 * complexity(finished.model.config).macs
    assert len(steps) == 8
    for line in steps:
        assert line["tflops"] == pytest.approx(operations * line["images_per_second"] / 1e12, rel=6e-3)
        assert "peak_memory_bytes" not in line  # it is of CUDA devices


def test_a_run_directory_holds_what_it_promises(finished: Result) -> None:
    run = finished.output
    events = [line["event"] for line in lines(run)]
    assert events.count("epoch") == 2
    assert events.count("test") == 1
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (resolved["epochs"], resolved["img_size"], resolved["in_chans"]) == (2, [16, 16], 1)
    report = json.loads((run / "test.json").read_text(encoding="utf-8"))
    assert report["images"] == sum(row["images"] for row in report["per_class"]) == 360
    assert report["top1_percent"] == finished.test.top1_percent
    model = load_checkpoint(run)
    assert list(model.class_names or []) == list("0123456789")
    assert any((run / "tensorboard").iterdir())


def test_it_learns(finished: Result) -> None:
    steps = [line["loss"] for line in lines(finished.output) if line["event"] == "step"]
    assert steps[-1] < 0.9 * steps[0]
    assert finished.test.top1_percent > 20  # chance is 10


def test_the_best_model_was_chosen_on_images_cut_from_the_training_split(finished: Result) -> None:
    epochs = [line for line in lines(finished.output) if line["event"] == "epoch"]
    best = max(found["top1_percent"] for line in epochs for found in line["validation"].values())
    side = json.loads((finished.output / "model.json").read_text(encoding="utf-8"))
    assert side["training"]["validation_top1_percent"] == best
    losses = [found["loss"] for line in epochs for found in line["validation"].values()]
    assert finished.best["validation_loss"] in losses
    assert finished.validation_images == len(finished.dataset.validation or ()) > 0
    assert side["training"]["weights"] in ("raw", "ema")
    assert len(finished.dataset.test) == 360  # no test image was cut off


def test_interrupted_and_resumed_equals_uninterrupted(finished: Result, tmp_path: Path) -> None:
    def interrupt_in_the_second_epoch(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 53:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        Interrupted,
        match=r"SIGINT: saved step_00000053.safetensors after step 53; go on with: ceit train --output '.*/my run'",
    ):
        train(SMALL, "digits", tmp_path / "my run", show=interrupt_in_the_second_epoch)
    resumed = train(SMALL, "digits", tmp_path / "my run", resume="auto")
    ours, theirs = (load_file(run / "model.safetensors") for run in (resumed.output, finished.output))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lines(resumed.output) == lines(finished.output)


def test_any_network_is_trained_for_so_many_steps_and_resumed(tmp_path: Path) -> None:
    class Foreign(nn.Sequential):
        """No CeiT: a convolution, BatchNorm, the mean, a head."""

    def make_model(run: ResolvedRun, say: Say) -> nn.Module:
        head = nn.Linear(8, len(run.dataset.class_names))
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return Foreign(nn.Conv2d(run.dataset.in_chans, 8, 3), nn.BatchNorm2d(8), nn.GELU(), *pooled, head)

    def stop(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 47:
            os.kill(os.getpid(), signal.SIGINT)

    def fit(output: Path, show: Show = lambda state: None) -> list[str]:
        said: list[str] = []
        options: dict[str, Any] = {"make_model": make_model, "steps": 53, "show": show, "say": said.append}
        with begun(SMALL, "digits", output, resume="auto", **options) as trainer:
            trainer.fit()
            best = trainer.learner.candidates()[trainer.progress.best["weights"]]
            best.load_state_dict(load_file(output / "model.safetensors"))
            percent = trainer.progress.best["validation_top1_percent"]
            assert trainer.validate(best).top1_percent == pytest.approx(percent, abs=1e-4)
        return said

    said = fit(tmp_path / "whole")
    assert any(line.startswith("Foreign on digits: 10 classes") for line in said)
    assert [line["step"] for line in lines(tmp_path / "whole") if line["event"] == "epoch"][-1] == 53
    with pytest.raises(Interrupted):
        fit(tmp_path / "resumed", stop)
    config = tmp_path / "resumed" / "config.yaml"
    saved = yaml.safe_load(config.read_text(encoding="utf-8"))
    as_before = {key: value for key, value in saved.items() if key not in ("mean", "std")}  # of an earlier version
    config.write_text(yaml.safe_dump(as_before, sort_keys=False), encoding="utf-8")
    fit(tmp_path / "resumed")
    ours, theirs = (load_file(tmp_path / run / "model.safetensors") for run in ("resumed", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_checkpoint(tmp_path / "whole")


def test_a_termination_saves_and_is_told_from_an_interruption(tmp_path: Path) -> None:
    def terminate(state: dict[str, Any]) -> None:
        if state.get("total_steps"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        train(SMALL, "digits", tmp_path / "run", show=terminate)
    assert stop.value.terminated
    assert (tmp_path / "run" / "checkpoints" / "step_00000001.safetensors").is_file()


def test_a_closed_terminal_saves_though_it_is_told_twice(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def close(state: dict[str, Any]) -> None:
        if state.get("total_steps"):
            os.kill(os.getpid(), signal.SIGHUP)  # the shell
            os.kill(os.getpid(), signal.SIGHUP)  # and the system

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    with pytest.raises(Interrupted, match=r"^SIGHUP: saved step_00000001\.safetensors after step 1; go on") as stop:
        train(SMALL, "digits", tmp_path / "run", show=close)
    assert stop.value.terminated
    assert (tmp_path / "run" / "checkpoints" / "step_00000001.safetensors").is_file()


def test_images_that_try_a_recipe_out_are_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in the order of their classes, as in a folder."""
    monkeypatch.setattr("ceit.train.trainer.EVALUATION_BATCH", 30)
    folder = tmp_path / "photos"
    for number in range(400):
        path = folder / f"class{number // 100}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    result = train(replace(SMALL, epochs=1, limit_batches=1), str(folder), tmp_path / "run")
    assert result.test.images == 30
    assert min(found.images for found in result.test.listed()) >= 4


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGINT in what a script starts with ``&``."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_resuming_a_finished_run_only_reports_again(finished: Result) -> None:
    before = load_file(finished.output / "model.safetensors")
    again = train(SMALL, "digits", finished.output, resume="auto")
    assert again.test == finished.test
    assert all(torch.equal(value, before[key]) for key, value in load_file(again.output / "model.safetensors").items())
    assert [line["event"] for line in lines(again.output)].count("test") == 1


def test_resuming_with_other_options_is_refused(finished: Result) -> None:
    refused = (
        r"started with peak_lr 0.01, not 0.5: a resumed run keeps its options; name another --output for a new run$"
    )
    with pytest.raises(ValueError, match=refused):
        train(replace(SMALL, peak_lr=0.5), "digits", finished.output, resume="auto")


def test_a_run_of_a_version_that_had_fewer_options_in_a_section_goes_on(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    saved = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    del saved["augmentation"]["brightness"]
    (copy / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert train(SMALL, "digits", copy, resume="auto").test == finished.test
    brighter = replace(SMALL, augmentation=replace(SMALL.augmentation, brightness=0.1))
    with pytest.raises(ValueError, match=r"started with augmentation .*'brightness': 0.0"):
        train(brighter, "digits", copy, resume="auto")


def test_a_run_of_a_version_that_had_fewer_options_goes_on_as_it_was(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    saved = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    del saved["loss"], saved["global_batch_size"]
    (copy / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert train(SMALL, "digits", copy, resume="auto").test == finished.test
    with pytest.raises(ValueError, match="started with loss cross_entropy, not bce"):
        train(replace(SMALL, loss="bce"), "digits", copy, resume="auto")


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    older, newest = sorted((copy / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    with (copy / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"event": "st')  # and the log was cut in the middle of a line
    said: list[str] = []
    again = train(SMALL, "digits", copy, resume="auto", say=said.append)
    assert any("it is damaged or no checkpoint" in line and "taking the one before" in line for line in said)
    assert any(line.startswith("resumed after step") and older.name in line for line in said)
    assert again.test == finished.test
    assert lines(copy) == lines(finished.output)
    older.unlink()
    newest.write_bytes(b"")
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be resumed from, it is damaged or no checkpoint"):
        train(SMALL, "digits", copy, resume="auto")


def test_a_checkpoint_of_another_run_is_refused(finished: Result, tmp_path: Path) -> None:
    stranger = tmp_path / "step_00000010.safetensors"
    stranger.write_bytes(b"")
    with pytest.raises(ValueError, match="is no checkpoint of the run in"):
        train(SMALL, "digits", finished.output, resume=str(stranger))


def test_results_without_checkpoints_are_never_trained_over(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "committed"
    shutil.copytree(finished.output, copy, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match="holds files but no run that can be resumed; name another"):
        train(SMALL, "digits", copy, resume="auto")
    assert lines(copy) == lines(finished.output)


def test_more_epochs_are_refused_on_resume(finished: Result) -> None:
    way_on = "name another --output for a new run, which begins with the weights of this one with --initial-checkpoint"
    with pytest.raises(ValueError, match=f"started with epochs 2, not 5: .*; {way_on} {finished.output}$"):
        train(replace(SMALL, epochs=5), "digits", finished.output, resume="auto")


def test_a_small_set_lowers_the_batch_size_and_says_and_saves_it(tmp_path: Path) -> None:
    said: list[str] = []
    config = replace(SMALL, epochs=1, global_batch_size=4096)
    train(config, "digits", tmp_path / "run", say=said.append)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["global_batch_size"]
    assert saved < 1437
    assert any(
        f"training images: global_batch_size is {saved}, not 4096; an epoch has 4 steps" in line for line in said
    )


def test_an_output_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty; name another, or go on with --resume auto"):
        train(SMALL, "digits", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_output_directory_in_use_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use by another run; name another"):
            train(SMALL, "digits", tmp_path, resume="auto")


def test_a_run_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown model 'ceit_pica_patch4_32'; did you mean"):
            train(replace(SMALL, model="ceit_pica_patch4_32"), "digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mixing_hides_the_training_accuracy_and_trains(tmp_path: Path) -> None:
    config = replace(SMALL, epochs=1, mixing=Mixing(mixup_alpha=0.8, cutmix_alpha=1.0))
    train(config, "digits", tmp_path / "run")
    epoch = next(line for line in lines(tmp_path / "run") if line["event"] == "epoch")
    assert epoch["train_top1_percent"] is None
    assert epoch["train_loss"] < 2.4


def test_a_time_budget_chooses_the_epochs_and_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    config = replace(SMALL, epochs=None, global_batch_size=512)
    train(config, "digits", tmp_path / "run", time_budget_seconds=1e-3, say=said.append)
    assert any(line.startswith("0 s are left: a step takes") and "so 1 steps, 0.5 epochs" in line for line in said)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert (saved["epochs"], saved["steps"]) == (1, 1)


@pytest.mark.parametrize("flip", [True, "alternate"])
def test_images_of_digits_are_not_mirrored_whatever_the_recipe_says(
    tmp_path: Path, flip: Literal[True, "alternate"]
) -> None:
    said: list[str] = []
    config = replace(SMALL, epochs=1, limit_batches=1, augmentation=Augmentation(flip=flip))
    train(config, "digits", tmp_path / "run", say=said.append)
    assert any("augmentation.flip is off" in line for line in said)


def test_a_cut_out_leaves_something_of_a_small_image(make_trainer: MakeTrainer) -> None:
    """The recipes' are of images of 32 pixels; the digits have 16."""
    said: list[str] = []
    for asked, taken in ((16, 8), (11, 8), (10, 10)):
        trainer = make_trainer(said, augmentation=Augmentation(flip=False, cutout=asked))
        assert trainer.run.config.augmentation.cutout == taken
    told = [line for line in said if "cut-out" in line]
    assert len(told) == 2
    assert told[0] == (
        "a cut-out of 16 pixels leaves too little of 16 x 16: augmentation.cutout is 8, half of the side"
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    config = replace(SMALL, peak_lr=1e30, warmup_epochs=0.0, clip_norm=0.0, optimizer="sgd")
    with pytest.raises(
        ValueError,
        match=r"10 steps in a row up to step 11 had no finite loss or gradient, in the last module patch_embed",
    ):
        train(config, "digits", tmp_path / "run")


class Diverging:
    """Evaluation whose loss is not finite when ``is_lost(call)`` says so, counted from 1."""

    def __init__(self, is_lost: Callable[[int], bool]) -> None:
        self.calls, self.is_lost = 0, is_lost

    def __call__(self, model: torch.nn.Module, loader: Loader, **options: Any) -> Evaluation:
        self.calls += 1
        if self.is_lost(self.calls):
            raise DivergedError("the loss of images 0 to 71 is nan: the weights have diverged")
        return evaluate(model, loader, **options)


def test_m9_weights_whose_validation_has_diverged_are_not_kept_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two epochs, each with raw and averaged weights, only the average of the first can be kept."""
    for select in ("best", "last"):
        monkeypatch.setattr(
            "ceit.train.trainer.evaluate", Diverging(lambda call: call in (1, 3, 4))
        )  # the fifth is the report
        said: list[str] = []
        result = train(replace(SMALL, select=select), "digits", tmp_path / select, say=said.append)
        assert (result.best["epoch"], result.best["weights"]) == (1, "ema")
        found = [line["validation"] for line in lines(tmp_path / select) if line["event"] == "epoch"]
        assert [(line["raw"] is None, line["ema"] is None) for line in found] == [(True, False), (True, True)]
        sentence = "raw weights are not kept: the loss of images 0 to 71 is nan: the weights have diverged"
        assert [line for line in said if sentence in line] == [f"epoch {epoch}: {sentence}" for epoch in (1, 2)]


def test_m9_a_run_that_has_nothing_to_keep_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ceit.train.trainer.evaluate", Diverging(lambda call: True))
    with pytest.raises(ValueError, match=r"no epoch ended with weights whose validation loss is finite"):
        train(replace(SMALL, epochs=1), "digits", tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("where", ["not mounted/checkpoint", "/proc/self/mem"])  # no such file, and one that gives EIO
def test_p14_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    finished: Result, tmp_path: Path, where: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    newest = max((copy / "checkpoints").iterdir())
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(where)
    with pytest.raises(OSError, match=r"step_00000084\.safetensors cannot be read \(.+\) and is left as it is: resume"):
        train(SMALL, "digits", copy, resume="auto")
    assert newest.is_symlink()
    (tmp_path / "elsewhere").rename(newest)
    assert train(SMALL, "digits", copy, resume="auto").test == finished.test


def test_going_on_from_an_older_checkpoint_names_those_that_are_dropped(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    said: list[str] = []
    older = copy / "checkpoints" / "step_00000042.safetensors"
    assert train(SMALL, "digits", copy, resume=str(older), say=said.append).test == finished.test
    assert "later checkpoints are dropped, the run writes them again: 1 (step_00000084.safetensors)" in said
    assert lines(copy) == lines(finished.output)


@pytest.mark.parametrize("names", [("model.safetensors", "model.json"), ("model.safetensors",), ("model.json",)])
def test_a_run_whose_model_was_moved_away_says_so(finished: Result, tmp_path: Path, names: tuple[str, ...]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    for name in names:
        (copy / name).rename(tmp_path / name)
    sentence = (
        rf"run lacks {' and '.join(names)} of epoch \d, the best so far: put back what was moved, or name another"
    )
    with pytest.raises(ValueError, match=sentence):
        train(SMALL, "digits", copy, resume="auto")
    for name in names:
        (tmp_path / name).rename(copy / name)
    assert train(SMALL, "digits", copy, resume="auto").test == finished.test


def test_a_finished_run_with_the_model_of_another_says_so(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.output, copy)
    side = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    side["training"]["epoch"] = 99
    (copy / "model.json").write_text(json.dumps(side), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"model\.json is not of the model that the finished run has kept, of epoch \d"
    ):
        train(SMALL, "digits", copy, resume="auto")


def failing_lock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, 524])
def test_a_file_system_without_locks_is_said_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_lock(monkeypatch, number)
    said: list[str] = []
    train(replace(SMALL, epochs=1, limit_batches=2), "digits", tmp_path / "run", say=said.append)
    sentence = f"run has no locks ({os.strerror(number)}): nothing keeps other runs out, so start no second one there"
    assert any(line.endswith(sentence) for line in said)
    assert (tmp_path / "run" / "test.json").is_file()


def test_a_lock_that_was_just_given_up_on_a_network_drive_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_lock(monkeypatch, errno.ESTALE)
    with pytest.raises(InUseError, match="is in use by another"):
        train(SMALL, "digits", tmp_path / "run")


def test_processes_that_see_other_data_do_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ceit.train.resolve.from_all", lambda value: [value, f"not {value}"])
    told = r"process 1 has other data than process 0: not (\d+ training, .*), not \1: give all machines the same files"
    with pytest.raises(ValueError, match=told):
        train(SMALL, "digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_half_a_launcher_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is 4 and LOCAL_RANK is not set: start with torchrun"):
        train(SMALL, "digits", tmp_path / "run")


def test_a_lock_that_fails_for_another_reason_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        train(SMALL, "digits", tmp_path / "run")
