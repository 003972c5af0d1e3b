"""The plan for machines that are not here: commands that the command line takes, and figures that add up."""

import json
import shlex

import pytest

import ceit_cli
from ceit.cli.train import parse
from ceit.study.cells import Cell, Places
from ceit.study.cluster import command_of, data_bytes, gpu_hours, plan_text, run_bytes
from ceit.study.plan import load_study, scales, study_names
from tools.recipe_tables import GPU_FLOPS, training_flops

RATES = {"CeiT": 2e-3, "DeiT": 1e-3}
STUDIES = ["imagenet", "transfer_seven", "modules", "i2t_224", "convergence_224", "data_efficiency", "leff", "lca"]


def cells_of(study: str) -> list[Cell]:
    return load_study(study).cells(scales()["imagenet"], RATES)


@pytest.mark.parametrize("study", STUDIES)
def test_every_command_is_the_run_that_the_study_means(study: str) -> None:
    places = Places()
    for cell in cells_of(study):
        words = shlex.split(command_of(cell, places))
        assert words[: words.index("train")] == ["torchrun", "--nproc-per-node", "8", "-m", "ceit"]
        config, asked = parse(words[words.index("train") + 1 :])
        assert config == cell.config(places.models_for(cell))  # as ceit reproduce goes on with it
        assert (asked.data, asked.output) == (cell.data, str(places.run_of(cell)))


def test_hours_are_the_formula_of_the_recipes() -> None:
    cell = next(cell for cell in cells_of("imagenet") if cell.arm == "CeiT-T")
    assert gpu_hours(cell) == pytest.approx(training_flops("imagenet_tiny_300") / GPU_FLOPS / 3600)


def test_disk_is_what_lies_there() -> None:
    assert data_bytes("cifar10") == 60_000 * 32 * 32 * 3
    assert data_bytes("imagenet") == (1_281_167 + 50_000) * 110_000
    cell = cells_of("imagenet")[0]
    assert run_bytes(cell) == 4 * 6_356_904 * (4 * (cell.config().keep_checkpoints + 1) + 1)


def test_the_plan_has_a_command_the_hours_and_the_published_figure_of_every_cell() -> None:
    study = load_study("imagenet")
    text = plan_text(study, cells_of("imagenet"), Places(), rates_are_chosen=False, command="the last line")
    for words in ("76.4 / 93.4, the release", "83.3 / 96.5, the release", "GPU-hours", "Disk:", "GB for imagenet"):
        assert words in text
    assert text.count("torchrun") == len(study.arms) == 4
    assert text.splitlines()[-1] == "the last line"
    assert "learning rates are not chosen" not in text  # its arms bring their own
    assert "learning rates are not chosen" in plan_text(
        load_study("modules"), cells_of("modules"), Places(), rates_are_chosen=False, command=""
    )


def test_the_command_prints_it_without_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["reproduce", "imagenet", "--scale", "imagenet", "--runs", "R", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "--output R/imagenet/imagenet/ceit-t.seed0" in printed
    assert printed.splitlines()[-1] == "ceit reproduce imagenet --scale imagenet --runs R"
    assert ceit_cli.main(["reproduce", "all", "--scale", "imagenet", "--runs", "R", "--dry-run"]) == 0
    every = capsys.readouterr().out
    assert printed in every
    assert every.count("\nceit reproduce ") == len(
        [name for name in study_names() if "imagenet" in load_study(name).scales]
    )
    assert ceit_cli.main(["reproduce", "--list"]) == 0
    assert "convergence" in capsys.readouterr().out


def test_a_file_of_weights_that_an_arm_makes_is_named_where_it_will_be() -> None:
    cell = next(cell for cell in cells_of("imagenet") if cell.arm == "CeiT-T, 384 px")
    model = "runs/studies/imagenet/imagenet/ceit-t.seed0/model.safetensors"
    assert f"--initial_checkpoint {model}" in command_of(cell, Places())
    assert json.dumps(cell.options["initial_checkpoint"]) == '{"arm": "CeiT-T"}'
