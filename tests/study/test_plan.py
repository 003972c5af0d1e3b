"""Studies as data: every one that ships can be laid out at each of its scales, and a wrong file says what is wrong."""

from pathlib import Path

import pytest
import yaml

from ceit.model.config import CeiTConfig
from ceit.model.variants import config_of
from ceit.study.cells import source_digest
from ceit.study.plan import TUNING, Study, joined, load_study, scale_of, scales, slug, study_names

RATES = {"CeiT": 2e-3, "DeiT": 1e-3}
PLACES = [(study, scale) for study in study_names() for scale in load_study(study).scales]


def geometry(study: str, scale: str, arm: str) -> CeiTConfig:
    cells = load_study(study).cells(scale_of(load_study(study), scale), RATES)
    config = next(cell for cell in cells if cell.arm == arm).config()
    return config_of(config.model, **config.geometry)


@pytest.mark.parametrize(("name", "scale"), PLACES)
def test_every_study_can_be_laid_out(name: str, scale: str) -> None:
    study = load_study(name)
    cells = study.cells(scale_of(study, scale), RATES)
    for cell in cells:
        config = cell.config()
        config_of(config.model, **config.geometry)
        assert config.seed == cell.seed
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({yaml.safe_dump([cell.data, cell.options]) for cell in cells}) == len(cells), "two arms are one run"


@pytest.mark.parametrize("file", ["data/batches/augment.py", "model/leff.py", "evaluation/metrics.py"])
def test_a_result_tells_which_code_it_is_of(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = source_digest.__wrapped__(), Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + (b" " if path.as_posix().endswith(f"ceit/{file}") else b"")
    )
    assert source_digest.__wrapped__() != before


def test_seeds_are_run_in_turn() -> None:
    study = load_study("modules")
    cells = study.cells(scales()["cifar10"], RATES)
    assert [cell.seed for cell in cells] == [seed for seed in range(5) for _ in study.arms]


def test_the_arms_without_the_three_changes_are_the_registered_twin() -> None:
    twin = config_of("deit_pico_patch4_32", skip_dead=True)
    ours = geometry("modules", "cifar10", "DeiT")
    unused = ("stem_channels", "stem_kernel_size", "stem_stride")
    assert {k: v for k, v in vars(ours).items() if k not in unused} == {
        k: v for k, v in vars(twin).items() if k not in unused
    }
    assert geometry("modules", "cifar10", "CeiT") == config_of("ceit_pico_patch4_32", skip_dead=True)


def test_each_family_takes_its_own_learning_rate() -> None:
    cells = load_study("modules").cells(scales()["cifar10"], RATES)
    rates = {cell.arm: cell.config().peak_lr for cell in cells}
    assert rates == {"DeiT": 1e-3, "+ I2T": 2e-3, "+ LeFF": 2e-3, "+ LCA": 1e-3, "+ I2T + LeFF": 2e-3, "CeiT": 2e-3}


def test_the_same_learning_rates_are_tried_with_both() -> None:
    cells = load_study(TUNING).cells(scales()["cifar10"], {})
    tried = {(cell.arm.split(",")[0], cell.config().peak_lr) for cell in cells}
    assert tried == {(family, rate) for family in ("CeiT", "DeiT") for rate in scales()["cifar10"].learning_rates}


def test_fewer_images_are_shown_as_often() -> None:
    cells = load_study("data_efficiency").cells(scales()["cifar10"], RATES)
    shown = {cell.config().train_percent * (cell.config().epochs or 0) for cell in cells}
    assert shown == {400.0}
    assert {cell.config().warmup_epochs / (cell.config().epochs or 1) for cell in cells} == {0.5 / 4}


def test_sections_are_joined_key_by_key() -> None:
    assert joined({"a": 1, "s": {"x": 1, "y": 2}}, {"s": {"y": 3}, "b": 4}) == {"a": 1, "s": {"x": 1, "y": 3}, "b": 4}


def test_names_of_arms_make_names_of_files() -> None:
    assert slug("+ I2T + LeFF") == "plus-i2t-plus-leff"
    assert slug("CeiT, 10 %") == "ceit-10-percent"
    assert (slug("Größe_2"), slug("宽度 2")) == ("größe-2", "宽度-2")


def write(folder: Path, **changes: object) -> str:
    file = folder / "own.yaml"
    values = {"title": "T", "question": "Q", "paper": "none", "arms": {"one": {}, "two": {}}} | changes
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return str(file)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": {}}, "study own must have arms"),
        ({"title": None}, "study own has no title"),
        ({"tittle": "T"}, "unknown key 'tittle'; did you mean 'title'"),
        ({"arms": {"one": {"option": {}}}}, "arm 'one': unknown key 'option'; did you mean 'options'"),
        ({"arms": {"one": {"times": "often"}}}, "times 'often' must be a whole number"),
        ({"compare": [["one", "tow"]]}, "unknown arm 'tow'; did you mean 'two'"),
        ({"compare": ["one"]}, "compare must hold pairs"),
        (
            {"arms": {"one": {"options": {"initial_checkpoint": {"arm": "none"}}}}},
            "needs arm 'none', which must stand before it",
        ),
        ({"arms": {"a, b": {}, "a b": {}}}, "differ in punctuation alone"),
        ({"arms": {"one": {"options": {"epoch": 3}}}}, "arm 'one': unknown recipe key 'epoch'; did you mean 'epochs'"),
        ({"arms": {"one": {"options": {"mixing": {"alpha": 1.0}}}}}, "unknown recipe key 'mixing.alpha'"),
        ({"arms": {"one": {"options": {1: 2}}}}, "options must hold 'name: value' lines"),
        ({"arms": {"one": {"options": {"seed": 3}}}}, "the seed is the cell's own"),
        ({"arms": {"one": {"options": {"peak_lr": 1.0}}}}, "peak_lr is that of CeiT: set tuned_as: null"),
        ({"arms": {"one": {"at": {"digitz": {}}}}}, "unknown scale 'digitz'; did you mean 'digits'"),
        ({"arms": {"one": {"at": {"digits": 3}}}}, "options must hold 'name: value' lines, not 3"),
        ({"arms": {"one": {"times": 0}}}, "times 0 must be at least 1"),
        (
            {"arms": {"a": {"options": {"initial_checkpoint": {"arm": "b"}}}, "b": {}}},
            "'b', which must stand before it",
        ),
        ({"arms": {"one": {"each_learning_rate": True}, "two": {}}, "compare": [["one", "two"]]}, "cannot be compared"),
        (
            {"arms": {"one": {"each_learning_rate": True}, "two": {"options": {"initial_checkpoint": {"arm": "one"}}}}},
            "needs 'one', which is one for each learning rate",
        ),
        ({"arms": {"one": {"data": "mnist"}, "two": {}}, "compare": [["one", "two"]]}, "tested on different images"),
        ({"compare": 3}, "compare must hold pairs"),
        ({"seeds": {"digits": 0}}, "seeds of digits 0 must be a whole number, at least 1"),
        ({"seeds": {"digits": "three"}}, "seeds of digits 'three' must be a whole number"),
        ({"scales": [3]}, "unknown scale '3'"),
        ({"scales": ["cifar"]}, "unknown scale 'cifar'; did you mean 'cifar10'"),
    ],
)
def test_a_wrong_file_is_answered_with_what_is_wrong(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_study(write(tmp_path, **changes))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown study 'module'; did you mean 'modules'"):
        load_study("module")
    with pytest.raises(ValueError, match="unknown scale 'imagenet'"):
        scale_of(load_study("transfer"), "imagenet")
    with pytest.raises(ValueError, match="does not exist"):
        load_study("nowhere.yaml")


def test_longer_than_no_epochs_is_refused(tmp_path: Path) -> None:
    arms = {"one": {"recipe": "demo", "times": 2, "tuned_as": None}}
    with pytest.raises(ValueError, match="arm 'one': times 2 needs epochs in the options"):
        load_study(write(tmp_path, arms=arms)).cells(scales()["digits"], RATES)


def test_a_study_of_ones_own(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert isinstance(study, Study)
    assert study.scales == list(scales())
