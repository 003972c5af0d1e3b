"""``ceit compare`` on small runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import ceit_cli
from ceit.data.batches.augment import Augmentation
from ceit.train.config import TrainConfig
from ceit.train.run import train

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("compared")
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        config = TrainConfig(
            model="ceit_pico_patch4_32",
            geometry=SMALL,
            epochs=2,
            global_batch_size=32,
            peak_lr=rate,
            precision="float32",
            augmentation=Augmentation(flip=False),
        )
        train(config, "digits", folder / name)
    return [str(folder / "slow"), str(folder / "fast")]


def test_results_and_what_differs_as_json(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["different"] == {"peak_lr": [1e-4, 1e-2]}
    for run, path in zip(found["runs"], runs, strict=True):
        report = json.loads((Path(path) / "test.json").read_text(encoding="utf-8"))
        assert run["test_top1_percent"] == report["top1_percent"]
        assert [line["epoch"] for line in run["curve"]] == [1, 2]


def test_tables_and_a_picture(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    assert ceit_cli.main(["compare", *runs, "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    for words in ("2 of 2", "peak_lr", "0.0001", "0.01", "test top-1"):
        assert words in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert ceit_cli.main(["compare", runs[0], runs[0]]) == 0
    assert "no option differs" in capsys.readouterr().out


def test_other_sizes_and_other_images_are_told(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    config = yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8"))
    changed = config | {"img_size": [24, 24], "found": "other images"}
    (other / "config.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert ceit_cli.main(["compare", runs[0], str(other)]) == 0
    printed = capsys.readouterr().out
    assert "the runs saw different images" in printed
    assert "img_size" in printed
    assert ceit_cli.main(["compare", runs[0], runs[0]]) == 0
    assert "different images" not in capsys.readouterr().out


def test_epochs_are_those_that_a_time_budget_chose_last(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replanned = tmp_path / "replanned"
    shutil.copytree(runs[0], replanned)
    log = replanned / "metrics.jsonl"
    plans = [{"event": "plan", "step": 9, "steps": 90 * n, "epochs": 2 * n} for n in (3, 2)]
    log.write_text("".join(json.dumps(plan) + "\n" for plan in plans) + log.read_text(encoding="utf-8"))
    assert ceit_cli.main(["compare", str(replanned)]) == 0
    assert "2 of 4" in capsys.readouterr().out


def test_a_run_that_is_not_finished_and_one_that_is_none(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((Path(runs[0]) / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert ceit_cli.main(["compare", str(begun), runs[0]]) == 0
    assert "0 of 2" in capsys.readouterr().out
    assert ceit_cli.main(["compare", str(begun), "--plot", str(tmp_path / "none.png")]) == 1
    assert "no run has finished an epoch" in capsys.readouterr().err
    assert ceit_cli.main(["compare", str(tmp_path)]) == 1
    assert "is no run directory: it holds no config.yaml" in capsys.readouterr().err
    assert ceit_cli.main(["compare", runs[0], "--plot", "curves.gif"]) == 2
    capsys.readouterr()
    assert ceit_cli.main(["compare", str(tmp_path / "none"), "--plot", str(tmp_path / "nodir" / "a.png")]) == 1
    assert "a.png cannot be written: there is no folder" in capsys.readouterr().err


def test_what_lies_beside_runs_is_left_out_and_told(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, notes = tmp_path / "sweep", tmp_path / "notes.txt"
    shutil.copytree(runs[0], sweep / "trials" / "ab.seed0")
    (sweep / "table.md").touch()
    notes.touch()
    assert ceit_cli.main(["compare", runs[0], str(sweep), str(notes), "--json"]) == 0
    told = capsys.readouterr()
    assert [run["run"] for run in json.loads(told.out)["runs"]] == [runs[0]]
    assert told.err == f"left out, as they are no run directories: {sweep}, {notes}\n"
    assert ceit_cli.main(["compare", str(sweep), str(notes)]) == 1
    assert f"it holds no config.yaml; runs lie in {sweep}/trials/*/" in capsys.readouterr().err
    assert ceit_cli.main(["compare", str(sweep / "trials" / "ab.seed0")]) == 0
    assert ceit_cli.main(["compare", runs[0], str(tmp_path / "misspelt")]) == 1
    assert f"{tmp_path / 'misspelt'} is no run directory" in capsys.readouterr().err


def test_a_log_that_a_crash_has_cut_and_one_that_is_damaged(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (cut / name).write_bytes((Path(runs[0]) / name).read_bytes())
    with (cut / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"event": "ep')
    assert ceit_cli.main(["compare", str(cut)]) == 0
    assert "2 of 2" in capsys.readouterr().out
    with (cut / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('\n{"event": "test"}\n')
    assert ceit_cli.main(["compare", str(cut)]) == 1
    assert "metrics.jsonl, line" in capsys.readouterr().err
    (cut / "test.json").write_text("{}", encoding="utf-8")
    (cut / "metrics.jsonl").unlink()
    assert ceit_cli.main(["compare", str(cut)]) == 1
    assert "test.json is not the report of a run" in capsys.readouterr().err


def test_an_option_that_came_later_is_as_its_default(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(runs[0], older)
    options = yaml.safe_load((older / "config.yaml").read_text(encoding="utf-8"))
    for name in ("sampling", "shard_window", "lr_scaling"):
        del options[name]
    options["mixing"] = None
    (older / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    assert ceit_cli.main(["compare", runs[0], str(older)]) == 0
    assert "no option differs" in capsys.readouterr().out
    (older / "config.yaml").write_text(yaml.safe_dump({**options, "distributed": "fsdp"}), encoding="utf-8")
    assert ceit_cli.main(["compare", runs[0], str(older), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"] == {"distributed": [None, "fsdp"]}


def test_a_narrow_terminal_shows_every_run_and_number(
    runs: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert ceit_cli.main(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert {"slow", "fast", "minutes"} <= set(printed.split())
