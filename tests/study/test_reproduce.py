"""A study of four cells on the digits: killed, resumed, written anew, and tampered with."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

import ceit_cli
from ceit.cli import _cells
from ceit.study import reproduce as runner
from ceit.study.cells import Cell, Places, path_of, read_record, same_elsewhere, unpack, write_cell
from ceit.study.plan import TUNING, load_study, scales, study_names
from ceit.study.report import comparison_of, records_of, tables, write_report
from ceit.study.reproduce import OF_THE_CELL, chosen_rates, reproduce
from ceit.train.run_directory import lines_of
from tools.overview import write_reports

SMALL = {
    "geometry": {"embed_dim": 32, "depth": 2, "num_heads": 2, "stem_channels": 8},
    "epochs": 2,
    "peak_lr": 1e-2,
    "log_every_steps": 1,
    "checkpoint_every_steps": 5,
}
OWN = {
    "title": "Two small networks",
    "question": "Is one as good as the other?",
    "paper": "none",
    "scales": ["digits"],
    "arms": {
        "with LCA": {"tuned_as": None, "options": SMALL},
        "without": {"tuned_as": None, "options": SMALL | {"geometry": SMALL["geometry"] | {"lca": False}}},
    },
    "compare": [["with LCA", "without"]],
}
CELLS = ["with-lca.seed0", "without.seed0", "with-lca.seed1", "without.seed1"]
REPORT = ["figure.png", "figure.svg", "table.md"]


@dataclass(frozen=True)
class Finished:
    """A study that was killed in its third cell and run again."""

    file: Path
    places: Places
    cells_when_killed: list[str]
    steps_when_killed: int
    said_afterwards: str

    @property
    def arguments(self) -> list[str]:
        return [str(self.file), "--results", str(self.places.results), "--runs", str(self.places.runs)]

    @property
    def folder(self) -> Path:
        return self.places.results / "own" / "digits"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("studies")
    file, places = root / "own.yaml", Places(root / "results", root / "runs")
    file.write_text(yaml.safe_dump(OWN, sort_keys=False))
    study = Finished(file, places, [], 0, "")
    command = [sys.executable, "-m", "ceit", "reproduce", *study.arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = places.runs / "own" / "digits" / CELLS[2] / "metrics.jsonl"
    until = time.monotonic() + 120
    while sum('"event": "step"' in line for line in lines_of(metrics)) < 12:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    cells = sorted(path.stem for path in study.folder.glob("*.json"))
    steps = sum('"event": "step"' in line for line in lines_of(metrics))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return Finished(file, places, cells, steps, again.stderr)


def test_a_cell_is_no_twin_of_itself(finished: Finished) -> None:
    """As it would be where another process finishes it between two looks."""
    cells = load_study(str(finished.file)).cells(scales()["digits"], {})
    assert path_of(finished.places.results, cells[0]).is_file()
    assert same_elsewhere(finished.places.results, cells[0]) is None
    twin = replace(cells[0], study="another")
    assert same_elsewhere(finished.places.results, twin) == path_of(finished.places.results, cells[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_killed_study_goes_on_where_it_was(finished: Finished) -> None:
    assert finished.cells_when_killed == sorted(CELLS[:2])
    assert "cell 1 of 4" not in finished.said_afterwards
    assert "cell 3 of 4: with-lca.seed1" in finished.said_afterwards
    assert "resumed after step" in finished.said_afterwards
    assert sorted(contents(finished.folder)) == sorted([*REPORT, *(f"{cell}.json" for cell in CELLS)])


def test_a_cell_says_what_was_done_and_found(finished: Finished) -> None:
    record = read_record(finished.folder / f"{CELLS[2]}.json")
    assert (record["seed"], record["epochs"], record["options"]["peak_lr"]) == (1, 2, 1e-2)
    assert [line["epoch"] for line in record["curve"]] == [1, 2]
    right = unpack(record)
    assert len(right) == record["test"]["images"] == 360
    assert 100 * right.mean() == pytest.approx(record["test"]["top1_percent"])
    assert len(record["locality"]["attention_distance"]) == 1  # of two blocks; the last one's patches reach nothing
    assert set(record["locality"]["shift_consistency_percent"]) == {"1", "2", "3", "4"}
    assert not list(finished.places.runs.glob("own/digits/*/checkpoints"))


def test_a_second_run_does_nothing_and_tables_are_the_same_bytes(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished.folder)
    for name in REPORT:
        (finished.folder / name).unlink()
    assert ceit_cli.main(["reproduce", *finished.arguments]) == 0
    assert contents(finished.folder) == before
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"all 4 cells of \S+ are finished in .*, nothing is trained: another --results measures them", said
    )


def test_the_table_has_every_arm_and_the_test_between_them(finished: Finished) -> None:
    text = (finished.folder / "table.md").read_text(encoding="utf-8")
    study = load_study(str(finished.file))
    records = records_of(finished.places.results, study, "digits")
    found = comparison_of(records, "with LCA", "without")
    assert found is not None
    assert len(found.gains) == 2
    for words in (
        "| with LCA |",
        "| without |",
        f"with LCA against without | {sum(found.gains) / 2:+.2f}",
        found.verdict,
    ):
        assert words in text
    assert tables(study, "digits", records) in text


def test_the_committed_tables_are_those_of_the_committed_cells(tmp_path: Path) -> None:
    studies = Path(__file__).parents[2] / "studies"
    committed = [path for path in sorted(studies.glob("*/*/table.md")) if path.parent.parent.name in study_names()]
    for path in committed:
        shutil.copytree(path.parent, tmp_path / path.parent.relative_to(studies))
        (tmp_path / path.relative_to(studies)).unlink()
    written = write_reports(tmp_path)
    for path in committed:
        copy = tmp_path / path.relative_to(studies)
        assert copy in written
        assert copy.read_bytes() == path.read_bytes(), "run: make results"
    assert committed


def test_a_cell_edited_by_hand_is_detected(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished.folder / f"{CELLS[0]}.json"
    sealed = path.read_text(encoding="utf-8")
    record = json.loads(sealed)
    record["test"]["top1_percent"] = 99.9
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    try:
        assert ceit_cli.main(["reproduce", *finished.arguments]) == 1
        assert f"{path} is not as it was written" in capsys.readouterr().err
    finally:
        path.write_text(sealed, encoding="utf-8")


def test_a_study_that_asks_for_something_else_by_now_is_told(finished: Finished, tmp_path: Path) -> None:
    options = OWN["arms"]["without"]["options"] | {"peak_lr": 0.5}
    changed = OWN | {"arms": {**OWN["arms"], "without": {"tuned_as": None, "options": options}}}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(ValueError, match=r"without.seed0.json was measured with peak_lr 0.01, the study has 0.5 now"):
        run(str(file), finished.places)


def test_a_run_of_another_study_is_not_run_again(finished: Finished, tmp_path: Path) -> None:
    file = tmp_path / "twin.yaml"
    file.write_text(yaml.safe_dump(OWN | {"arms": {"the same": OWN["arms"]["without"]}, "compare": []}))
    said: list[str] = []
    run(str(file), finished.places, said)
    assert [line.split(":")[0] for line in said] == ["cell 1 of 2", "cell 2 of 2"]
    assert all("is the same run as" in line for line in said)
    twin = read_record(finished.places.results / "twin" / "digits" / "the-same.seed1.json")
    assert twin["measured_as"] == "own/digits/without.seed1.json"


def test_a_copied_result_keeps_the_code_that_measured_it(finished: Finished, tmp_path: Path) -> None:
    path = finished.folder / f"{CELLS[0]}.json"
    sealed = path.read_text(encoding="utf-8")
    study = load_study(str(finished.file))
    cell = study.cells(scales()["digits"], {})[0]
    found = {key: value for key, value in read_record(path).items() if key not in runner.OF_THE_CELL}
    write_cell(finished.places.results, cell, found | {"code": {"ceit": "0.0.9", "source": "an older one"}})
    file = tmp_path / "older.yaml"
    file.write_text(yaml.safe_dump(OWN | {"arms": {"the same": OWN["arms"]["with LCA"]}, "compare": []}))
    try:
        run(str(file), finished.places)
    finally:
        path.write_text(sealed, encoding="utf-8")
    twin = read_record(finished.places.results / "older" / "digits" / "the-same.seed0.json")
    assert twin["code"]["source"] == "an older one"


def test_a_copy_of_a_file_is_no_further_seed(finished: Finished) -> None:
    study, copy = load_study(str(finished.file)), finished.folder / "without.seed1 (copy).seed1.json"
    copy.write_bytes((finished.folder / f"{CELLS[3]}.json").read_bytes())
    try:
        assert [len(cells) for cells in records_of(finished.places.results, study, "digits").values()] == [2, 2]
    finally:
        copy.unlink()


def test_a_finished_model_is_never_thrown_away(finished: Finished, tmp_path: Path) -> None:
    before = contents(finished.places.runs / "own" / "digits" / CELLS[0])
    with pytest.raises(ValueError, match=r"holds a finished model, and its cell's file .* is missing"):
        run(str(finished.file), Places(tmp_path / "elsewhere", finished.places.runs))
    assert contents(finished.places.runs / "own" / "digits" / CELLS[0]) == before


def test_processes_share_the_cells_and_take_over_what_one_leaves(finished: Finished, tmp_path: Path) -> None:
    """Two processes and a third that holds a cell and gives it up: every cell is trained once."""
    places = Places(tmp_path / "results", tmp_path / "runs")
    cell = load_study(str(finished.file)).cells(scales()["digits"], {})[0]
    places.runs.mkdir()
    command = [sys.executable, "-m", "ceit", "reproduce", str(finished.file)]
    command += ["--results", str(places.results), "--runs", str(places.runs)]
    with places.lock_of(cell).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = [
            subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        folder = places.results / "own" / "digits"
        until = time.monotonic() + 120
        while len(list(folder.glob("*.json"))) < 3:
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not places.run_of(cell).exists()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for number, cell in enumerate(CELLS, start=1):
        assert sum(f"cell {number} of 4: {cell}\n" in text for text in said) == 1
    assert "waiting: other processes are running the cells that are left" in "".join(said)
    assert sorted(contents(folder)) == sorted([*REPORT, *(f"{cell}.json" for cell in CELLS)])
    assert not list(places.runs.rglob("*.lock"))


def test_what_another_process_runs_is_not_waited_for_unless_asked(finished: Finished, tmp_path: Path) -> None:
    """Nor run a second time for another study that has the same run."""
    places = Places(tmp_path / "results", tmp_path / "runs")
    shutil.copytree(finished.places.results, places.results)
    study, scale = load_study(str(finished.file)), scales()["digits"]
    cell = study.cells(scale, {})[1]
    path_of(places.results, cell).unlink()
    file = tmp_path / "busy.yaml"
    file.write_text(yaml.safe_dump(OWN | {"arms": {"the same": OWN["arms"][cell.arm]}, "compare": []}))
    twin = load_study(str(file))
    places.runs.mkdir()
    with places.lock_of(cell).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for either in (study, twin):
            reproduce(either, scale, places, lambda message: None, lambda state: None, wait=False)
    assert list(contents(places.results / "busy" / "digits")) == ["the-same.seed1.json"]  # copied from without.seed1
    assert list(places.runs.iterdir()) == [places.lock_of(cell)]


def test_a_cell_that_fails_is_recorded_and_those_that_need_its_model_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SMALL | {"optimizer": "sgd", "epochs": 1, "max_skipped_steps": 2}
    arms = {
        "good": {"tuned_as": None, "options": options},
        "bad": {"tuned_as": None, "options": options | {"peak_lr": 1e30, "clip_norm": 0.0}},
        "tuned": {"tuned_as": None, "options": options | {"initial_checkpoint": {"arm": "bad"}}},
    }
    file, results = tmp_path / "failing.yaml", tmp_path / "results"
    study = OWN | {"arms": arms, "compare": [["good", "bad"]], "seeds": {"digits": 1}}
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    command = ["reproduce", str(file), "--results", str(results), "--runs", str(tmp_path / "runs")]
    said = ""
    for _ in range(2):  # it is not tried again
        assert ceit_cli.main(command) == 1
        said = capsys.readouterr().err
        assert "error: 2 of the cells were not trained to their end; the first: bad, seed 0, failed: " in said
    assert "bad.seed0 failed" not in said
    table = (results / "failing" / "digits" / "table.md").read_text(encoding="utf-8")
    assert table.count("*not measured yet*") == 3  # two arms and their comparison
    assert "tuned, seed 0, failed: it needs the model of bad, which failed." in table
    assert ceit_cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(" failed") == 2

    arms.pop("good")
    file.write_text(yaml.safe_dump(study | {"compare": []}, sort_keys=False))
    fine = tmp_path / "fine.yaml"
    fine.write_text(yaml.safe_dump(OWN | {"arms": {"good": {"tuned_as": None, "options": options}}, "compare": []}))
    places = ["--results", str(results), "--runs", str(tmp_path / "runs")]
    assert ceit_cli.main(["reproduce", str(file), str(fine), *places]) == 1
    assert (results / "fine" / "digits" / "table.md").is_file()  # whatever became of the study before it


def test_cells_are_not_compared_that_saw_other_images(finished: Finished, tmp_path: Path) -> None:
    for path in finished.folder.glob("*.json"):
        record = read_record(path)
        cell = Cell("own", "digits", record["arm"], record["seed"], record["data"], record["options"])
        seen = "one" if record["seed"] == 0 else "another"
        found = {key: value for key, value in record.items() if key not in OF_THE_CELL}
        write_cell(tmp_path, cell, found | {"images": seen})
    with pytest.raises(ValueError, match=r"images of digits have changed between cells.*: 2 \(.*\) and 2 \(.*\) saw"):
        write_report(tmp_path, load_study(str(finished.file)), "digits")


def test_seeds_of_two_plans_are_not_averaged(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "own" / "digits")
    study = load_study(str(finished.file))
    cell = next(cell for cell in study.cells(scales()["digits"], {}) if cell.name == CELLS[1])
    found = {key: value for key, value in read_record(path_of(tmp_path, cell)).items() if key not in OF_THE_CELL}
    write_cell(tmp_path, replace(cell, options=cell.options | {"peak_lr": 0.5}), found)
    told = r"without\.seed0\.json and .*without\.seed1\.json are of different plans, with peak_lr 0\.5 and 0\.01"
    with pytest.raises(ValueError, match=told):
        write_report(tmp_path, study, "digits")


def test_results_that_cannot_be_written_are_told_before_anything_is_trained(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = [str(finished.file), "--results", str(tmp_path / "file"), "--runs", str(tmp_path / "runs")]
    assert ceit_cli.main(["reproduce", *words]) == 1
    assert "file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_cells_and_their_time(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished.folder)
    nowhere = [str(finished.file), "--results", str(finished.places.results / "other"), "--dry-run"]
    assert ceit_cli.main(["reproduce", *nowhere]) == 0
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in CELLS)
    assert "to run" in printed
    assert "4 cells" in printed
    assert ceit_cli.main(["reproduce", *nowhere, "--seeds", "1"]) == 0
    assert "2 cells" in capsys.readouterr().out
    twin = finished.file.with_name("planned.yaml")
    twin.write_text(yaml.safe_dump(OWN | {"arms": {"the same": OWN["arms"]["without"]}, "compare": []}))
    assert ceit_cli.main(["reproduce", str(twin), *nowhere, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("to run"), printed.count(" shared")) == (4, 2)
    assert "hours left for all studies" in printed
    assert ceit_cli.main(["reproduce", *nowhere, "--seeds", "0"]) == 2
    assert "--seeds 0 must be at least 1" in capsys.readouterr().err
    assert ceit_cli.main(["reproduce"]) == 2
    assert "name a study, or all" in capsys.readouterr().err
    assert ceit_cli.main(["reproduce", "all", "--scale", "digit"]) == 1
    assert "unknown scale 'digit'; did you mean 'digits'" in capsys.readouterr().err
    assert ceit_cli.main(["reproduce", *finished.arguments, "--dry-run"]) == 0
    assert "to run" not in capsys.readouterr().out
    assert contents(finished.folder) == before


def test_minutes_of_another_machine_are_not_taken(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.places.results, tmp_path / "results")
    command = ["reproduce", str(finished.file), "--results", str(tmp_path / "results"), "--seeds", "3", "--dry-run"]
    timed: list[str] = []
    monkeypatch.setattr(_cells, "seconds_needed", lambda cell: timed.append(cell.arm) or 60.0)
    assert ceit_cli.main(command) == 0
    assert timed == []
    monkeypatch.setattr(_cells, "machine", lambda _: {"processor": "another"})
    assert ceit_cli.main(command) == 0
    assert len(timed) == len(set(timed)) > 0


def test_the_learning_rate_is_that_of_the_best_validation_accuracy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scale, places = scales()["digits"], Places(tmp_path / "results", tmp_path / "runs")
    study = load_study("lca")
    assert chosen_rates(scale, places) is None
    accuracy = {("DeiT", 1e-3): 50.0, ("DeiT", 2e-3): 60.0, ("DeiT", 4e-3): 40.0, ("CeiT", 4e-3): 90.0}
    ran: list[str] = []

    def pretend(cell: runner.Cell, places: Places, *rest: object) -> None:
        ran.append(f"{cell.study} {cell.arm} {cell.options['peak_lr']}")
        best = {"validation_top1_percent": accuracy.get((cell.arm.split(",")[0], cell.options["peak_lr"]), 10.0)}
        runner.write_cell(places.results, cell, {"best": best})

    monkeypatch.setattr(runner, "run_cell", pretend)
    reproduce(study, scale, places, lambda message: None, lambda state: None)
    assert chosen_rates(scale, places) == {"DeiT": 2e-3, "CeiT": 4e-3}
    assert [line.split()[0] for line in ran] == [TUNING] * 8 + ["lca"] * 9  # the tenth is a run that chose the rate
    assert all(line.endswith(" 0.004") for line in ran[8:])


def run(name: str, places: Places, said: list[str] | None = None) -> None:
    study = load_study(name)
    say = (lambda message: None) if said is None else said.append
    reproduce(study, scales()["digits"], places, say, lambda state: None)
