"""What the options of a run do to it, seen from its directory."""

import errno
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ceit
import ceit_cli
from ceit.data.batches.augment import Augmentation
from ceit.data.preprocessing import Preprocessing
from ceit.data.sources.choose import load_dataset
from ceit.train.config import Mixing, TrainConfig, WeightAverage
from ceit.train.interruption import Interrupted
from ceit.train.recipe import read_recipe
from ceit.train.run import train
from ceit.train.run_directory import RunDirectory
from ceit.train.step import train_step
from tests.train.conftest import TINY, MakeTrainer


def config(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "model": "ceit_pico_patch4_32",
        "geometry": TINY,
        "epochs": 2,
        "global_batch_size": 64,
        "peak_lr": 1e-2,
        "precision": "float32",
        "augmentation": Augmentation(flip=False),
        "log_every_steps": 1,
        "limit_batches": 4,
    }
    return TrainConfig(**{**defaults, **options})


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["event"] == event]


def test_a_run_of_a_version_that_knew_fsdp_goes_on_with_ddp_and_no_other(tmp_path: Path) -> None:
    train(config(), "digits", tmp_path / "run")
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    recipe = tmp_path / "old.yaml"

    def was_started_with(way: str) -> None:
        recipe.write_text(f"distributed: {way}\nepochs: 3\n", encoding="utf-8")
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({**saved, "distributed": way}), encoding="utf-8")

    was_started_with("ddp")
    assert read_recipe(str(recipe)) == {"epochs": 3}
    train(config(), "digits", tmp_path / "run", resume="auto")
    was_started_with("fsdp")
    gone = "distributed fsdp is gone: several processes train with DDP"
    with pytest.raises(ValueError, match=gone):
        read_recipe(str(recipe))
    with pytest.raises(ValueError, match=gone):
        train(config(), "digits", tmp_path / "run", resume="auto")


def test_a_run_stops_when_validation_no_longer_improves_and_resuming_does_not_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    # a learning rate at which nothing changes: the first epoch stays the best
    still = config(epochs=50, peak_lr=1e-12, warmup_lr=0.0, final_lr=0.0, early_stopping_epochs=3, batch_norm="frozen")
    result = train(still, "digits", tmp_path / "run", say=said.append)
    assert len(lines(tmp_path / "run", "epoch")) == result.best["epoch"] + 3 < 20
    assert any("3 epochs without a better validation accuracy" in line for line in said)
    again = train(still, "digits", tmp_path / "run", resume="auto")
    assert again.test == result.test
    assert len(lines(tmp_path / "run", "epoch")) == result.best["epoch"] + 3


@pytest.mark.usefixtures("level")
def test_early_stopping_counts_from_the_last_rise_of_the_accuracy_whatever_the_loss_does(tmp_path: Path) -> None:
    def interrupt(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    options = config(epochs=9, early_stopping_epochs=3, limit_batches=1)
    with pytest.raises(Interrupted):
        train(options, "digits", tmp_path / "run", show=interrupt)
    result = train(options, "digits", tmp_path / "run", resume="auto")
    assert [line["epoch"] for line in lines(tmp_path / "run", "epoch")] == [1, 2, 3, 4]
    assert result.best["epoch"] == 4  # of equal accuracies the lower loss wins


@pytest.mark.usefixtures("level")
def test_early_stopping_counts_on_from_an_older_checkpoint_although_its_best_model_is_gone(tmp_path: Path) -> None:
    options, said = config(epochs=9, early_stopping_epochs=3, limit_batches=1, keep_checkpoints=9), list[str]()
    train(options, "digits", tmp_path / "run")
    older = tmp_path / "run/checkpoints/step_00000002.safetensors"
    result = train(options, "digits", tmp_path / "run", resume=str(older), say=said.append)
    assert [line["epoch"] for line in lines(tmp_path / "run", "epoch")] == [1, 2, 3, 4]
    assert result.best["epoch"] == 4
    assert any(one.startswith("the model of epoch 2, the best at that step, is gone") for one in said)


@pytest.mark.usefixtures("level")
def test_a_report_goes_with_the_model_that_it_is_of(tmp_path: Path) -> None:
    def interrupt(state: dict[str, Any]) -> None:
        if state.get("total_steps") and state["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    def of_report() -> set[str]:
        return {"test.json", "README.md"} & {path.name for path in (tmp_path / "run").iterdir()}

    options = config(epochs=5, limit_batches=1, keep_checkpoints=9)
    train(options, "digits", tmp_path / "run")
    assert len(of_report()) == 2
    older = tmp_path / "run/checkpoints/step_00000002.safetensors"
    with pytest.raises(Interrupted):
        train(options, "digits", tmp_path / "run", resume=str(older), show=interrupt)
    assert not of_report()
    train(options, "digits", tmp_path / "run", resume="auto")
    assert len(of_report()) == 2


@pytest.mark.usefixtures("level")
def test_a_checkpoint_of_before_goes_on_and_counts_from_the_epoch_that_is_kept(tmp_path: Path) -> None:
    options = config(epochs=9, early_stopping_epochs=3, limit_batches=1)
    train(options, "digits", tmp_path / "run")
    path = tmp_path / "run/checkpoints/step_00000004.safetensors"
    with safe_open(path, framework="pt") as file:
        state = json.loads((file.metadata() or {})["state"])
    assert state["progress"].pop("last_rise") == 1
    del state["progress"]["highest_percent"], state["seal"]
    save_file(load_file(path), path, metadata={"state": json.dumps(state)})
    train(options, "digits", tmp_path / "run", resume="auto")
    assert len(lines(tmp_path / "run", "epoch")) == 4 + 3


@pytest.mark.parametrize(("decay", "kind"), [(0.0, "raw"), (0.5, "ema")])
def test_the_last_weights_or_their_average_are_kept_without_a_validation_split(
    decay: float, kind: str, tmp_path: Path
) -> None:
    options = config(select="last", validation_percent=0.0, ema=WeightAverage(decay=decay))
    result = train(options, "digits", tmp_path / "run")
    assert result.best == {"epoch": 2, "weights": kind, "validation_top1_percent": None, "validation_loss": None}
    assert [line["validation"] for line in lines(tmp_path / "run", "epoch")] == [{"raw": None, "ema": None}] * 2
    last = load_file(tmp_path / "run" / "checkpoints" / "step_00000008.safetensors")
    kept = load_file(tmp_path / "run" / "model.safetensors")
    name = "model" if kind == "raw" else kind
    assert all(torch.equal(kept[key], last[f"{name}.{key}"]) for key in kept)


def test_without_validation_a_full_disk_at_the_first_epoch_leaves_a_run_that_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = config(select="last", validation_percent=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_state", full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            train(options, "digits", tmp_path / "run")
    assert train(options, "digits", tmp_path / "run", resume="auto").best["epoch"] == 2


def test_a_share_of_the_training_images_is_of_every_class_and_leaves_validation_alone(
    make_trainer: MakeTrainer,
) -> None:
    whole, tenth = make_trainer(), make_trainer(train_percent=10.0)
    assert whole.validation_loader is not None
    assert tenth.validation_loader is not None
    assert tenth.validation_loader.images == whole.validation_loader.images
    labels = torch.cat([labels for _, labels in tenth.train_loader.epoch(0)])
    counts = torch.bincount(labels, minlength=10)
    assert 128 <= len(labels) <= 137  # of 1,365, in whole batches
    assert counts.min() >= 10
    few = make_trainer(train_percent=0.3, global_batch_size=2)  # 4 of 1,365
    assert set(torch.cat([labels for _, labels in few.train_loader.epoch(0)]).tolist()) == set(range(10))


def test_a_share_that_leaves_nothing_is_named(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"train_percent 0.01 leaves 0 of 1365 images"):
        make_trainer(train_percent=0.01)


def test_whoever_asks_sees_every_answer_on_the_test_split_once(tmp_path: Path) -> None:
    right: list[bool] = []
    result = train(
        config(epochs=1, limit_batches=None),
        "digits",
        tmp_path / "run",
        observe_test=lambda logits, labels: right.extend((logits.argmax(1) == labels).tolist()),
    )
    assert len(right) == result.test.images == 360
    assert 100 * sum(right) / len(right) == pytest.approx(result.test.top1_percent)


def test_checkpoints_within_an_epoch_and_how_many_stay(tmp_path: Path) -> None:
    train(config(epochs=1, limit_batches=7, checkpoint_every_steps=2, keep_checkpoints=3), "digits", tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}.safetensors" for step in (4, 6, 7)]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(epochs=1), "digits", run)
    rests = [run / ".model.safetensors.17.tmp", run / "checkpoints" / ".step_00000004.safetensors.17.tmp"]
    for rest in rests:
        rest.write_bytes(b"half")
    train(config(epochs=1), "digits", run, resume="auto")
    assert not any(rest.exists() for rest in rests)


def test_a_few_batches_can_be_learnt_by_heart(tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {
        "overfit_batches": 1,
        "epochs": 60,
        "limit_batches": None,
        "mixing": Mixing(mixup_alpha=0.8),
        "augmentation": Augmentation(translate=3),
        "geometry": TINY | {"drop_path_rate": 0.5},
    }
    train(config(**options), "digits", tmp_path / "run", say=said.append)
    assert any("overfitting at most 1 batches: no augmentation" in line for line in said)
    last = lines(tmp_path / "run", "epoch")[-1]
    assert last["train_top1_percent"] > 95
    assert last["validation"]["raw"]["top1_percent"] > 95  # of the same images
    assert last["step"] == 60


def test_the_learning_rate_follows_the_batch_and_the_depth(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peak_lr=5e-4, lr_base_size=512, global_batch_size=1024, layer_decay=0.5)
    assert trainer.learner.config.scaled_lr == pytest.approx(1e-3)
    trainer.learner.schedule.step_update(0)
    assert trainer.learner.learning_rate() == pytest.approx(1e-3)
    rates = {}
    names = {id(parameter): name for name, parameter in trainer.learner.model.named_parameters()}
    for group in trainer.learner.optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
    assert rates["head.weight"] == pytest.approx(1e-3)
    assert rates["blocks.0.attn.qkv.weight"] / rates["blocks.1.attn.qkv.weight"] == pytest.approx(0.5)
    assert rates["patch_embed.conv.weight"] / rates["blocks.0.attn.qkv.weight"] == pytest.approx(0.5)
    assert rates["blocks.1.attn.qkv.weight"] < rates["head.weight"]


def test_two_deterministic_runs_are_equal_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"deterministic": True, "mixing": Mixing(mixup_alpha=0.8), "ema": WeightAverage(0.9)}
    weights = []
    modes: set[bool] = set()

    def note(state: dict[str, Any]) -> None:
        modes.add(torch.are_deterministic_algorithms_enabled())

    for name in ("a", "b"):
        train(config(**options), "digits", tmp_path / name, show=note)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert modes == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_small_batch_for_batch_norm_is_warned_of_with_its_number(tmp_path: Path) -> None:
    for options, number in (
        ({"global_batch_size": 8}, 8),
        ({"device_batch_size": 15}, 13),  # five parts of a batch of 64, as even as can be
        ({"device_batch_size": 16}, None),
        ({"global_batch_size": 8, "batch_norm": "frozen"}, None),
    ):
        said: list[str] = []
        train(
            config(epochs=1, limit_batches=1, **options),
            "digits",
            tmp_path / str(len(list(tmp_path.iterdir()))),
            say=said.append,
        )
        found = [line for line in said if line.startswith("BatchNorm sees ")]
        assert [line.split()[2] for line in found] == ([] if number is None else [str(number)])


def test_imbalance_can_be_weighed_or_sampled_away(make_trainer: MakeTrainer) -> None:
    weighed = make_trainer(class_weights="balanced")
    labels = torch.cat([labels for _, labels in make_trainer(global_batch_size=2).train_loader.epoch(0)])
    assert weighed.learner.objective.weights_k is not None
    totals = torch.bincount(labels, weighed.learner.objective.weights_k[labels].double())
    assert totals.tolist() == pytest.approx([len(labels) / 10] * 10, rel=0.02)  # the last image may be left out
    sampled = make_trainer(sampling="balanced", seed=1)
    counts = torch.bincount(torch.cat([labels for _, labels in sampled.train_loader.epoch(0)]))
    assert sampled.learner.objective.weights_k is None
    assert counts.max() - counts.min() <= 2  # an epoch ends before its last round does


def test_rare_classes_can_be_weighed_with_mixed_labels_and_any_loss(tmp_path: Path) -> None:
    """Class 0 has 1 image for 20 of each other."""
    photos = tmp_path / "photos"
    split = load_dataset("digits").train
    for index, label in enumerate(split.labels.tolist()):
        if label < 3 and (label > 0 or index % 20 == 0):
            (photos / str(label)).mkdir(parents=True, exist_ok=True)
            split.read(index, 1, None).save(photos / str(label) / f"{index}.png")
    for loss in ("cross_entropy", "bce"):
        options = config(mixing=Mixing(mixup_alpha=0.8), class_weights="balanced", loss=loss, global_batch_size=32)
        train(options, str(photos), tmp_path / loss)
        steps = [line["loss"] for line in lines(tmp_path / loss, "step")]
        assert all(0 < value < 5 for value in steps)
        assert steps != sorted(steps)


def test_bce_begins_like_cross_entropy_and_is_tested_as_every_other_run(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """ln 10 with the softmax; ln 10 and nearly one more with a sigmoid for each of ten classes, at chance 1 / 10."""
    trainer = make_trainer(loss="bce", label_smoothing=0.0)
    first = train_step(trainer.learner, *next(trainer.train_loader.epoch(0)), 0).loss
    assert first == pytest.approx(math.log(10) + 9 * math.log(10 / 9), abs=0.4)
    found: list[torch.Tensor] = []
    result = train(
        config(loss="bce", limit_batches=None),
        "digits",
        tmp_path / "run",
        observe_test=lambda logits, labels: found.append(F.cross_entropy(logits, labels, reduction="none")),
    )
    assert result.test.top1_percent > 20  # chance is 10
    assert result.test.loss == pytest.approx(torch.cat(found).mean().item(), rel=1e-5)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A run on six classes at 16 px."""
    chosen = config(classes=tuple("012345"), limit_batches=None, epochs=3, ema=WeightAverage())
    train(chosen, "digits", tmp_path / "six")
    return tmp_path / "six"


def test_fine_tuning_to_other_classes_and_another_size(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    options: dict[str, Any] = {
        "classes": tuple("6789"),
        "img_size": 24,
        "initial_checkpoint": str(pretrained),
        "geometry": TINY | {"drop_path_rate": 0.1},
        "epochs": 1,
        "limit_batches": None,
    }
    result = train(config(**options), "digits", tmp_path / "four", say=said.append)
    assert any(line.startswith(f"starting from the weights of {pretrained}, at 24 x 24 pixels") for line in said)
    assert result.dataset.class_names == tuple("6789")
    assert result.model.config.image_hw == (24, 24)
    assert result.model.config.drop_path_rate == 0.1
    resolved = yaml.safe_load((tmp_path / "four" / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["initial_checkpoint"] == str(pretrained)
    before, after = (
        json.loads((run / "model.json").read_text(encoding="utf-8")) for run in (pretrained, tmp_path / "four")
    )
    words = ["--checkpoint", str(result.output), "--data", "digits", "--precision", "float32", "--json"]
    assert ceit_cli.main(["evaluate", *words]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert (evaluated["images"], evaluated["top1_percent"]) == (result.test.images, result.test.top1_percent)
    assert before["preprocessing"] == after["preprocessing"]  # what the weights have learnt to expect


def test_fine_tuning_starts_from_the_weights_and_keeps_a_head_only_for_the_same_classes(
    pretrained: Path, make_trainer: MakeTrainer
) -> None:
    stored = load_file(pretrained / "model.safetensors")
    same = make_trainer(initial_checkpoint=str(pretrained), classes=tuple("012345"))
    assert all(torch.equal(value, stored[key]) for key, value in same.learner.model.state_dict().items())
    other = make_trainer(initial_checkpoint=str(pretrained), classes=tuple("456789"))
    differ = {key for key, value in other.learner.model.state_dict().items() if not torch.equal(value, stored[key])}
    assert "head.weight" in differ <= {"head.weight", "head.bias"}
    assert other.learner.model.training
    assert torch.equal(other.learner.model.get_parameter("head.bias"), torch.zeros(6))
    same, other = (
        make_trainer(initial_checkpoint=str(pretrained), classes=tuple(names), loss="bce")
        for names in ("012345", "456789")
    )
    assert torch.equal(same.learner.model.get_parameter("head.bias"), stored["head.bias"])
    assert torch.equal(other.learner.model.get_parameter("head.bias"), torch.full((6,), -math.log(5)))


def test_a_checkpoint_of_another_geometry_is_refused(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    path = tmp_path / "wide.safetensors"
    ceit.save_checkpoint(
        path, ceit.create_model("ceit_pico_patch4_32"), preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3)
    )
    with pytest.raises(ValueError, match="embed_dim"):
        make_trainer(initial_checkpoint=str(path))


@pytest.mark.parametrize("optimizer", ["lamb", "adafactorbv", "sgd", "lion", "muon"])
def test_the_state_of_any_optimizer_is_saved_and_taken_up(optimizer: str, tmp_path: Path) -> None:
    """The second run takes up the state after the first epoch and does the second one anew."""
    options: dict[str, Any] = {"optimizer": optimizer, "peak_lr": 1e-3, "clip_norm": 1.0, "keep_checkpoints": 3}
    options |= {"head_lr_factor": 2.0, "batch_norm_bias_lr_factor": 8.0}
    run = tmp_path / "run"
    train(config(**options), "digits", run)
    whole = load_file(run / "checkpoints" / "step_00000008.safetensors")
    (run / "checkpoints" / "step_00000008.safetensors").unlink()
    train(config(**options), "digits", run, resume="auto")
    again = load_file(run / "checkpoints" / "step_00000008.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2]


def test_second_derivatives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer adahessian needs second derivatives"):
        train(config(optimizer="adahessian"), "digits", tmp_path / "run")


def test_damage_inside_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(), "digits", run)
    newest = run / "checkpoints" / "step_00000008.safetensors"
    content = bytearray(newest.read_bytes())
    content[-4000:-3000] = bytes(1000)
    newest.write_bytes(content)
    said: list[str] = []
    train(config(), "digits", run, resume="auto", say=said.append)
    assert any("its tensors are not those that were saved; taking the one before" in line for line in said)


def test_a_resumed_run_may_change_what_belongs_to_the_machine_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(epochs=1), "digits", run)
    said: list[str] = []
    train(config(epochs=1, device_batch_size=32, workers=1), "digits", run, resume="auto", say=said.append)
    changed = "resumed with another option: device_batch_size was None, now 32: unless it is frozen, BatchNorm takes"
    assert any(line.startswith(changed) for line in said)
    assert "resumed with another option: workers was None, now 1" in said


def test_a_compiled_run_may_go_on_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    run = tmp_path / "run"
    train(config(epochs=1, compile=True), "digits", run)
    assert len(compiled) == 1
    said: list[str] = []
    train(config(epochs=1, compile=False), "digits", run, resume="auto", say=said.append)
    assert len(compiled) == 1
    assert "resumed with another option: compile was True, now False" in said


def test_other_data_are_noticed_on_resume(tmp_path: Path) -> None:
    from PIL import Image

    def add(name: str, count: int) -> None:
        for number in range(count):
            path = tmp_path / "photos" / name / f"{len(list(tmp_path.rglob('*.png')))}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 10 * number, 90)).save(path)

    add("cat", 12)
    add("dog", 12)
    options: dict[str, Any] = {"global_batch_size": 4, "epochs": 1, "batch_norm": "frozen"}
    train(config(**options), str(tmp_path / "photos"), tmp_path / "run")
    add("dog", 1)
    said: list[str] = []
    train(config(**options), str(tmp_path / "photos"), tmp_path / "run", resume="auto", say=said.append)
    assert any("1 came; the run goes on with the images that it was started with" in line for line in said)
    (tmp_path / "photos/cat/3.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 24 images that this run was started with are gone, changed or of"):
        train(config(**options), str(tmp_path / "photos"), tmp_path / "run", resume="auto")


def test_a_model_kept_after_the_state_that_is_resumed_is_kept_anew(tmp_path: Path) -> None:
    """Stopped between keeping the model of an epoch and saving the state: file and report must agree afterwards."""
    run = tmp_path / "run"
    # nothing changes from epoch to epoch, so no later one is better than the first
    still = config(epochs=3, optimizer="sgd", peak_lr=1e-30, final_lr=0.0, batch_norm="frozen", keep_checkpoints=5)
    assert train(still, "digits", run).best["epoch"] == 1
    for step in (8, 12):
        (run / "checkpoints" / f"step_{step:08d}.safetensors").unlink()
    side = json.loads((run / "model.json").read_text(encoding="utf-8"))
    side["training"]["epoch"] = 99  # the model of an epoch that the resumed run knows nothing of
    (run / "model.json").write_text(json.dumps(side), encoding="utf-8")
    result = train(still, "digits", run, resume="auto")
    kept = json.loads((run / "model.json").read_text(encoding="utf-8"))["training"]
    assert kept["epoch"] == result.best["epoch"] == 2
