"""When a run is compiled, and that it is compiled once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ceit.train import resolve
from ceit.train.config import TrainConfig
from ceit.train.run import train
from ceit.train.step import train_step
from tests.train.conftest import SMALL, MakeTrainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU and all that compiling takes, as far as the choice looks at it."""
    monkeypatch.setattr(resolve, "find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return monkeypatch


def test_long_runs_on_a_gpu_are_compiled_by_themselves(equipped: pytest.MonkeyPatch) -> None:
    chosen = resolve.compiles_by_itself
    assert chosen(SMALL, GPU, 1000)
    assert not chosen(SMALL, GPU, 999)
    assert not chosen(SMALL, CPU, 1000)
    assert not chosen(replace(SMALL, grad_checkpointing=True), GPU, 1000)
    assert not chosen(replace(SMALL, deterministic=True), GPU, 1000)
    equipped.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not chosen(SMALL, GPU, 1000)


@pytest.mark.parametrize("missing", ["find_spec", "which"])
def test_what_compiling_takes_may_be_missing(equipped: pytest.MonkeyPatch, missing: str) -> None:
    where = resolve if missing == "find_spec" else resolve.shutil
    equipped.setattr(where, missing, lambda name: None)
    assert not resolve.compiles_by_itself(SMALL, GPU, 1000)


@pytest.mark.parametrize(("seconds", "said"), [(None, True), (resolve.COMPILED_SECONDS - 1, False)])
def test_the_choice_is_made_once_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None, said: bool
) -> None:
    monkeypatch.setattr(resolve, "compiles_by_itself", lambda config, device, steps: True)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    messages: list[str] = []
    config = replace(SMALL, epochs=None if seconds else 1, limit_batches=2)
    assert config.compile == "auto"
    train(config, "digits", tmp_path / "run", say=messages.append, time_budget_seconds=seconds and 5.0)
    assert ("the network is compiled in the first step, which takes a minute or two" in messages) == said
    assert f"compile: {str(said).lower()}" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "clip_norm": 1.0, "geometry": {"drop_path_rate": 0.1, "skip_dead": True}},
        {"device_batch_size": 8, "geometry": {"global_pool": "avg", "lca": False}},
    ],
)
def test_one_graph_serves_a_whole_epoch(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    compile_network = torch.compile

    def traced_only(network: Any, **given: Any) -> Any:
        return compile_network(network, backend="aot_eager", **given)

    monkeypatch.setattr(torch, "compile", traced_only)
    torch._dynamo.reset()
    counters.clear()
    trainer = make_trainer(compile=True, **options)
    batches = list(trainer.train_loader.epoch(0))
    assert len(batches) >= 30
    for step, batch in enumerate(batches):
        assert train_step(trainer.learner, *batch, step).skipped is None
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]


def test_a_run_goes_on_as_it_was_chosen_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    config = replace(SMALL, epochs=1, limit_batches=2)
    train(config, "digits", tmp_path / "run")
    monkeypatch.setattr(resolve, "compiles_by_itself", lambda config, device, steps: True)
    messages: list[str] = []
    train(config, "digits", tmp_path / "run", resume="auto", say=messages.append)
    assert not any("compile" in message for message in messages)


def test_compiling_and_saving_memory_exclude_each_other_only_where_both_are_asked_for() -> None:
    assert TrainConfig(grad_checkpointing=True).compile == "auto"
    with pytest.raises(ValueError, match="choose speed or memory"):
        TrainConfig(grad_checkpointing=True, compile=True)
