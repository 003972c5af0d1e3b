"""The learning rate of every step, and what weight decay spares."""

from itertools import pairwise
from typing import Any

import pytest

from ceit.model import CeiT, CeiTConfig, config_of
from ceit.train.config import TrainConfig, config_from
from ceit.train.optimizer import Schedule, make_optimizer
from tests.train.conftest import TINY

MODEL = CeiT(CeiTConfig(img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, stem_stride=1, num_classes=3))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_warms_up_to_the_peak_and_falls_to_the_end(schedule: str) -> None:
    values = {"peak_lr": 1e-2, "warmup_lr": 1e-4, "final_lr": 1e-5, "warmup_epochs": 0.5, "schedule": schedule}
    config = config_from(values)
    optimizer = make_optimizer(MODEL, config)
    scheduler = Schedule(optimizer, config, steps_per_epoch=20, steps=60)
    rates = []
    for step in range(60):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-4)
    assert rates[10] == pytest.approx(1e-2) == max(rates)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.03 * 1e-2


def test_head_and_network_have_a_warm_up_and_a_fall_each() -> None:
    values = {"peak_lr": 1e-2, "warmup_lr": 1e-4, "final_lr": 1e-5, "warmup_epochs": 0.5, "initial_checkpoint": "x"}

    def rates(steps: int, freeze_epochs: float) -> list[float]:
        config = config_from(values | {"freeze_epochs": freeze_epochs})
        optimizer, found = make_optimizer(MODEL, config), []
        schedule = Schedule(optimizer, config, steps_per_epoch=20, steps=steps)
        for step in range(steps):
            schedule.step_update(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    assert rates(100, freeze_epochs=2) == rates(40, 0) + rates(60, 0)
    assert rates(100, freeze_epochs=2.55)[51:] == rates(49, 0)
    for freeze_epochs in (5, 1000):
        assert rates(100, freeze_epochs) == rates(100, 0)


@pytest.mark.parametrize("steps", [8, 20, 30])
def test_a_run_as_short_as_its_warm_up_falls_all_the_same(steps: int) -> None:
    config = config_from({"peak_lr": 1e-2, "warmup_lr": 1e-4, "final_lr": 1e-5, "warmup_epochs": 1.0})
    optimizer = make_optimizer(MODEL, config)
    schedule, rates = Schedule(optimizer, config, steps_per_epoch=20, steps=steps), []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates.index(max(rates)) == steps // 4
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 0.3 * 1e-2


def test_weight_decay_spares_what_the_release_spares() -> None:
    optimizer = make_optimizer(MODEL, TrainConfig(weight_decay=0.05))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in MODEL.named_parameters() if id(p) in decayed}
    assert "lca.pos_embed" in names
    assert not {"pos_embed", "cls_token"} & names
    assert all(p.ndim > 1 for name, p in MODEL.named_parameters() if name in names)


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.5}, {"optimizer": "muon"}, {"weight_decay": 0.0}])
def test_the_head_and_batch_norms_biases_learn_at_rates_of_their_own(options: dict[str, Any]) -> None:
    scaled = {"head_lr_factor": 3.0, "batch_norm_bias_lr_factor": 64.0}
    rates: list[dict[str, float]] = []
    others: list[dict[str, dict[str, Any]]] = []
    for factors in ({}, scaled):
        config = config_from(options | factors)
        optimizer = make_optimizer(MODEL, config)
        Schedule(optimizer, config, steps_per_epoch=20, steps=60).step_update(30)
        names = {id(parameter): name for name, parameter in MODEL.named_parameters()}
        groups = [(names[id(parameter)], group) for group in optimizer.param_groups for parameter in group["params"]]
        rates.append({name: group["lr"] for name, group in groups})
        free = ("params", "lr", "lr_scale", "initial_lr")
        others.append({name: {key: group[key] for key in group if key not in free} for name, group in groups})
    ratios = {name: rates[1][name] / rates[0][name] for name in rates[0]}
    biases = {
        f"blocks.{i}.mlp.{norm}.bias" for i in (0, 1) for norm in ("expand_norm", "depthwise_norm", "project_norm")
    }
    assert {name for name, ratio in ratios.items() if ratio == pytest.approx(64)} == biases | {"patch_embed.norm.bias"}
    assert {name for name, ratio in ratios.items() if ratio == pytest.approx(3)} == {"head.weight", "head.bias"}
    assert {round(ratio, 6) for ratio in ratios.values()} == {1, 3, 64}
    assert others[0] == others[1]


def test_factors_of_one_leave_the_groups_as_timm_makes_them() -> None:
    assert len(make_optimizer(MODEL, TrainConfig()).param_groups) == 2


def test_an_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adamww'; did you mean 'adamw'"):
        make_optimizer(MODEL, TrainConfig(optimizer="adamww"))


def test_arguments_an_optimizer_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer sgd cannot be made with \{'no_such_option': 1\}: SGD"):
        make_optimizer(MODEL, TrainConfig(optimizer="sgd", optimizer_args={"no_such_option": 1}))


@pytest.mark.filterwarnings("ignore:It is highly recommended")
def test_an_optimizer_with_a_state_that_no_checkpoint_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer kron keeps rng_state, which no checkpoint of a run holds"):
        make_optimizer(CeiT(config_of("ceit_pico_patch4_32", **TINY)), TrainConfig(optimizer="kron"))
