"""The comparison at equal compute: its plan, its networks, and a small study of digits, stopped and gone on with."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.compute import __main__ as command
from benchmarks.compute import cell as trained
from benchmarks.compute.networks import NETWORKS, WhitenedConvNet
from benchmarks.compute.pace import core_minutes
from benchmarks.compute.plan import Arm, Plan, pflop_of
from benchmarks.compute.report import Row, sentences
from ceit.bench.arms import inference_macs
from ceit.lock import locked
from ceit.study.cells import Places, path_of, read_cell

ROOT = Path(__file__).parents[2]
RUN = {"global_batch_size": 64, "img_size": [16, 16], "precision": "float32", "limit_batches": 4, "log_every_steps": 1}
PLAN: dict[str, Any] = {
    "budgets": {"digits": [4e-6]},
    "seeds": [0],
    "choice": {"data": "digits", "budget": 4e-6, "seed": 0},
    "settings": {"muon": {"optimizer": "muon", "peak_lr": 3e-3}, "adamw": {"optimizer": "adamw", "peak_lr": 3e-3}},
    "options": RUN | {"augmentation": {"translate": 1}},
    "augmentation_from_epochs": {0.5: {"cutout": 2}},
    "arms": {
        "ours": {"label": "CeiT", "kind": "attention", "recipe": "RECIPE"},
        "airbench": {"label": "CNN", "kind": "cnn", "network": "airbench", "size": {"widths": [16, 16, 16]}},
    },
    "published": [
        {"pflop": 1.0, "top1_percent": 90.0, "label": kind, "kind": kind, "tta": False, "source": "made up"}
        for kind in ("attention", "cnn")
    ],
}
RECIPE = RUN | {"model": "ceit_pico_patch4_32", "geometry": {"embed_dim": 32, "depth": 2, "stem_channels": 8}}


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., int]:
    """Starts the command on a small plan in ``tmp_path``; changes of the plan by key."""

    def start(*arguments: str, **changes: Any) -> int:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        text = json.dumps(PLAN | changes).replace('"RECIPE"', json.dumps(str(recipe)))
        plan = {**json.loads(text), "augmentation_from_epochs": PLAN["augmentation_from_epochs"]}
        (tmp_path / "studies/compute").mkdir(parents=True, exist_ok=True)
        (tmp_path / "studies/compute/plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        return command.main(["--results", str(tmp_path / "studies"), "--work", str(tmp_path / "work"), *arguments])

    return start


def cells_of(folder: Path) -> dict[str, dict[str, Any]]:
    files = (folder / "studies/compute").glob("*/*.json")
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def test_the_plan_spends_the_same_compute_on_every_network() -> None:
    plan = Plan.read(ROOT / "studies/compute/plan.yaml")
    cells = list(plan.compared(dict.fromkeys(plan.arms, "adamw 1e-3") | {"ours": "recipe"}))
    assert {cell.options["name"] for cell in cells} == set(plan.arms)
    for cell in cells:
        assert pflop_of(cell.options) == pytest.approx(cell.options["budget_pflop"], rel=2e-3)
        assert cell.options["training"]["seed"] == cell.seed
    assert len({cell.digest for cell in cells}) == len(cells)


def test_longer_runs_of_other_networks_get_more_variation_and_recipes_their_own_options() -> None:
    plan = Plan.read(ROOT / "studies/compute/plan.yaml")
    cells = list(plan.compared({"resnet": "muon 3e-3", "ours": "recipe"}))
    augmentations = {
        (cell.options["name"], cell.options["budget_pflop"]): cell.options["training"]["augmentation"]
        for cell in cells
        if cell.data == "cifar10"
    }
    assert augmentations["resnet", 0.06] == {"flip": True, "translate": 2}
    assert augmentations["resnet", 0.2] == {"flip": True, "translate": 3}  # 17 epochs
    assert augmentations["ours", 0.06] == {"flip": True, "translate": 3}
    assert augmentations["ours", 0.6] == {"flip": True, "translate": 4, "cutout": 16}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"arms": {"a": {"label": "two ways", "kind": "cnn", "recipe": "demo", "network": "cct"}}}, "must have one of"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN | change), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        Plan.read(tmp_path / "plan.yaml")


SIZES: dict[str, dict[str, Any]] = {
    "cct": {"dim": 128, "depth": 2, "heads": 2, "convolutions": 2},
    "resnet": {"width": 16, "blocks": 3},
    "airbench": {"widths": (32, 128, 128)},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_every_network_learns_in_all_its_parts(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](shape, 10, **SIZES[name])
    logits = network(torch.randn(4, *shape))
    assert logits.shape == (4, 10)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    learning = [value for value in network.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.any() for value in learning)


@pytest.mark.parametrize(("name", "giga_macs"), [("cct", 0.033), ("resnet", 0.041), ("airbench", 0.033)])
def test_networks_cost_what_their_sources_say(name: str, giga_macs: float) -> None:
    network = NETWORKS[name]((3, 32, 32), 10, **SIZES[name])
    assert inference_macs(network, (3, 32, 32)) / 1e9 == pytest.approx(giga_macs, rel=0.08)


def test_the_first_layer_whitens() -> None:
    torch.manual_seed(0)
    mixed = torch.nn.functional.avg_pool2d(torch.randn(500, 3, 18, 18), 3, 1)  # neighbours resemble each other
    images_bchw = torch.einsum("dc,bchw->bdhw", torch.randn(3, 3), mixed)
    network = WhitenedConvNet((3, 16, 16), 10, widths=(16, 16, 16))
    network.begin_with(images_bchw)
    assert not network.whiten.weight.requires_grad
    with torch.no_grad():
        found = torch.nn.functional.conv2d(images_bchw, network.whiten.weight).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[:12], -found[12:])
    moments = found[:12] @ found[:12].T / found.shape[1]
    off_diagonal = moments - torch.diag(moments.diagonal())
    assert off_diagonal.abs().max() < 1e-3
    assert moments.diagonal()[-1] == pytest.approx(1.0, abs=0.02)


def test_a_study_runs_once_through_and_reports(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started("--plan") == 0
    before = capsys.readouterr().out
    assert "ours-recipe.seed0" in before
    assert "airbench: 0 more cells when its setting is chosen" in before
    assert started() == 0
    cells = cells_of(tmp_path)
    assert set(cells) == {"ours-recipe.seed0", "airbench-muon.seed0", "airbench-adamw.seed0"}
    for record in cells.values():
        assert record["steps"] == record["options"]["steps"]
        assert record["validation"]["plain"]["top1_percent"] == pytest.approx(
            record["best"]["validation_top1_percent"], abs=1e-4
        )
        assert set(record["test"]) == {"plain"}  # mirrored digits are other digits
        assert record["machine"]["threads"] == 1
    assert cells["airbench-muon.seed0"]["options"]["training"]["augmentation"] == {"translate": 1, "cutout": 2}
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("studies/compute/*/*.json")}
    assert started() == 0
    assert {file: file.stat().st_mtime_ns for file in written} == written

    capsys.readouterr()
    assert started("--plan") == 0
    assert capsys.readouterr().out == "in all 0.0 core-hours\n"
    assert started("--report") == 0
    table = (tmp_path / "studies/compute/table.md").read_text(encoding="utf-8")
    found = {way: cells[f"airbench-{way}.seed0"]["validation"]["plain"] for way in ("muon", "adamw")}
    chosen = max(found, key=lambda way: (found[way]["top1_percent"], -found[way]["loss"]))
    assert f"| digits | 4e-06 | CNN | {chosen} |" in table
    assert table.count("|  |\n") == 2  # no core-minutes yet
    assert (tmp_path / "studies/compute/accuracy_digits.png").stat().st_size > 10_000


def test_core_minutes_are_those_of_timed_steps(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROUNDS", 2)
    assert started() == 0
    assert started("--pace") == 0
    found = json.loads((tmp_path / "studies/compute/pace.json").read_text(encoding="utf-8"))
    assert {row.partition(" steps")[0].rpartition(",")[0] for row in found["rows"]} == {
        "digits, ours",
        "digits, airbench",
    }
    for row, timed in found["rows"].items():
        steps = int(row.partition(" steps")[0].rpartition(" ")[2])
        assert timed["core_minutes"] == pytest.approx(steps * timed["seconds_per_step"]["full"] / 60, abs=0.01)
    assert (found["machine"]["threads"], found["rounds"]) == (1, 2)
    assert started("--report") == 0
    assert "in 0.0 core-minutes to 0.0." in (tmp_path / "studies/compute/table.md").read_text(encoding="utf-8")


def test_smaller_images_at_first_have_a_pace_of_their_own() -> None:
    assert core_minutes({"small": 0.6, "full": 1.1}, steps=1000, small_steps=400) == 15.0
    assert core_minutes({"full": 0.6}, steps=1000, small_steps=0) == 10.0


def test_a_stopped_cell_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, started: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_in_the_second_epoch(state: Mapping[str, Any]) -> None:
        if state["step"] == 6 and "total_steps" in state:
            os.kill(os.getpid(), signal.SIGTERM)

    only = ("--only", "ours")
    with monkeypatch.context() as patch:
        patch.setattr(trained, "begun", partial(trained.begun, show=stop_in_the_second_epoch))
        assert started(*only) == 143
    assert not cells_of(tmp_path)
    assert started(*only) == 0
    stopped = cells_of(tmp_path)["ours-recipe.seed0"]
    weights = next((tmp_path / "work").glob("compute/*/ours-recipe.seed0/model.safetensors"))
    ours = load_file(weights)
    for file in tmp_path.glob("studies/compute/*/*.json"):
        file.unlink()
    (tmp_path / "work").rename(tmp_path / "before")
    assert started(*only) == 0
    whole = cells_of(tmp_path)["ours-recipe.seed0"]
    assert whole["test"] == stopped["test"]
    theirs = load_file(weights)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_cell_that_fails_is_left_out_and_the_others_are_run(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"good": PLAN["settings"]["muon"], "bad": {"optimizer": "mouon", "peak_lr": 3e-3}}
    assert started(settings=settings) == 1
    said = capsys.readouterr().err
    assert "airbench-bad.seed0 failed and is left out: unknown optimizer 'mouon'" in said
    assert "airbench has no setting yet: run --only airbench --data digits --budget 4e-06 --seed 0" in said
    assert set(cells_of(tmp_path)) == {"ours-recipe.seed0", "airbench-good.seed0"}


def test_a_training_whose_loss_is_not_finite_is_a_result_and_not_chosen(
    tmp_path: Path, started: Callable[..., int]
) -> None:
    settings = {"wild": {"optimizer": "sgd", "peak_lr": 1e30}, "good": PLAN["settings"]["muon"]}
    changes = {"settings": settings, "options": PLAN["options"] | {"max_skipped_steps": 2}}
    assert started("--only", "airbench", **changes) == 0
    assert "lower peak_lr" in cells_of(tmp_path)["airbench-wild.seed0"]["failed"]
    assert started("--report", **changes) == 0
    table = (tmp_path / "studies/compute/table.md").read_text(encoding="utf-8")
    assert "| CNN | good |" in table
    assert "| CNN | failed | **" in table
    assert "- digits-4e-06, airbench wild, seed 0, failed: " in table


def test_a_cell_says_whether_it_was_trained_compiled(
    tmp_path: Path, started: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    assert started("--only", "ours", "--compile") == 0
    (cell,) = (tmp_path / "studies/compute").glob("*/*.json")
    assert json.loads(cell.read_text(encoding="utf-8"))["compiled"] is True
    assert len(compiled) == 1


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path, started: Callable[..., int]) -> None:
    assert started("--plan") == 0
    plan = Plan.read(tmp_path / "studies/compute/plan.yaml")
    places = Places(tmp_path / "studies", tmp_path / "work")
    places.runs.mkdir()
    cell = plan.deciding("airbench")[0]
    failed: list[str] = []
    with locked(places.lock_of(cell)):
        assert not command.run_unless_taken(cell, places, None, failed)
    assert failed == []
    assert read_cell(places.results, cell) is None


def test_a_changed_plan_or_file_is_refused(
    tmp_path: Path, started: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started("--only", "ours") == 0
    plan = Plan.read(tmp_path / "studies/compute/plan.yaml")
    cell = next(cell for cell in plan.cells(tmp_path / "studies") if cell.options["name"] == "ours")
    file = path_of(tmp_path / "studies", cell)
    file.write_text(file.read_text(encoding="utf-8").replace('"steps": ', '"steps": 1'), encoding="utf-8")
    assert started("--only", "ours") == 1
    assert "is not as it was written" in capsys.readouterr().err
    file.unlink()
    assert started("--report") == 1
    assert "there is nothing to report" in capsys.readouterr().err


def row(name: str, arm: Arm, top1: list[float], core_minutes: float | None = 10.0) -> Row:
    records = {seed: {"test": {"plain": {"top1_percent": percent}}} for seed, percent in enumerate(top1)}
    return Row("cifar10", 0.2, name, arm, records, core_minutes)


def test_it_is_said_where_cnns_are_ahead() -> None:
    ours, cnn = Arm("CeiT", "attention", recipe="demo"), Arm("a CNN", "cnn", network="resnet")
    first, second = sentences([row("ours", ours, [90.0, 90.2]), row("cnn", cnn, [92.0, 92.5])])
    assert first.startswith("cifar10, 0.2 PFLOP, against the best CNN: a CNN is ahead of CeiT by 2.15 points")
    assert first.endswith("(2 and 2 seeds), in 10.0 core-minutes to 10.0.")
    assert "overlap" not in first
    assert second == "cifar10, 0.2 PFLOP: no other network with attention is measured yet."
    first, _ = sentences([row("ours", ours, [92.1, 92.4]), row("cnn", cnn, [92.0, 92.2])])
    assert "CeiT is ahead of a CNN by 0.15 points" in first
    assert first.endswith("Their seeds overlap.")
    not_timed = row("cnn", cnn, [92.0, 92.5], core_minutes=None)
    first, _ = sentences([row("ours", ours, [90.0, 90.2]), not_timed])
    assert first.endswith("(2 and 2 seeds).")
