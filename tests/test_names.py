"""Names of files leave ``ceit predict`` as they came in, and what is printed can be printed wherever it goes."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ceit
import ceit_cli
from ceit.data.preprocessing import Preprocessing
from tests.train.conftest import SMALL

CLASSES = ("dog", "Größe", "猫")
NAMES = (
    "x 1.png",
    "x\u00a01.png",
    "x\u202f1.png",  # a screenshot of macOS
    "x\ufffd1.png",
    "x\u00e9.png",
    "xe\u0301.png",  # the same letter, in two characters
    "x\n1.png",
    "x\r1.png",
    "x\r\n1.png",
    "x\t1.png",
    " x.png",
    "x.png ",
    "-x.png",
    '"x",1.png',
    "=x.png",
    "\u202ex.png",
    "\U0001f600.png",
    os.fsdecode(b"x\xff.png"),
    os.fsdecode(b"x\xfe.png"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A network for grey images of 16 px."""
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    model = ceit.CeiT(ceit.CeiTConfig(img_size=16, in_chans=1, num_classes=3, patch_size=4, **geometry))
    (tmp_path / "run").mkdir()
    file = tmp_path / "run/model.safetensors"
    told = {"seed": 0, "validation_percent": 10.0}
    ceit.save_checkpoint(file, model, class_names=CLASSES, preprocessing=Preprocessing((0.3,), (0.4,)), training=told)
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders, 30 images each."""
    for number, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def named(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of all these names in the working directory, no two alike, as arguments."""
    (tmp_path / "named").mkdir()
    monkeypatch.chdir(tmp_path / "named")
    for source, name in zip(sorted(photos.rglob("*.png")), NAMES, strict=False):
        shutil.copy(source, name)
    return ["--", *NAMES]


def command(run: Path, *options: str) -> list[str]:
    """Whose answers are the same to the last bit in every order."""
    return ["predict", "--checkpoint", str(run), "--precision", "float32", "--batch-size", "1", *options]


def printed(arguments: list[str], encoding: str) -> bytes:
    """What a command that goes well prints on an output of this encoding."""
    out, told = io.BytesIO(), io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(out, encoding)),
        contextlib.redirect_stderr(io.TextIOWrapper(told, encoding)),
    ):
        code = ceit_cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        content = out.getvalue()
    assert code == 0, told.getvalue()
    return content


def paths_in(file: Path) -> list[str]:
    if file.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in file.read_bytes().splitlines()]
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as content:
        return [row["path"] for row in csv.DictReader(content) if row["rank"] == "1"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_p8_names_are_written_as_they_are_and_resuming_takes_none_for_another(
    suffix: str, run: Path, named: list[str]
) -> None:
    whole, part = Path(f"whole{suffix}"), Path(f"part{suffix}")
    assert ceit_cli.main([*command(run, "--output", str(whole)), *named]) == 0
    assert paths_in(whole) == list(NAMES)
    content = whole.read_bytes()
    for cut in [0, *range(content.index(b"\n") + 1, len(content), len(content) // 12), len(content)]:
        part.write_bytes(content[:cut])
        assert ceit_cli.main([*command(run, "--output", str(part), "--resume"), *named]) == 0
        assert part.read_bytes() == content
    for left_out in ("x\u202f1.png", NAMES[-1]):  # predicted later, after their neighbours
        part.unlink()
        others = [name for name in named if name != left_out]
        assert ceit_cli.main([*command(run, "--output", str(part)), *others]) == 0
        assert ceit_cli.main([*command(run, "--output", str(part), "--resume"), *named]) == 0
        assert paths_in(part) == [*others[1:], left_out]


def test_p8_so_they_are_printed(run: Path, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main([*command(run, "--json"), *named]) == 0
    assert [answer["path"] for answer in json.loads(capsys.readouterr().out)] == list(NAMES)
    assert ceit_cli.main([*command(run, "--output", "whole.csv"), *named]) == 0
    for encoding in ("utf-8", "cp1252", "ascii"):
        assert printed([*command(run, "--csv"), *named], encoding) == Path("whole.csv").read_bytes()


def test_p8_a_file_with_marks_in_place_of_characters_is_not_gone_on_with(
    run: Path, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = Path("old.csv")
    assert ceit_cli.main(command(run, "--output", "old.csv", "x 1.png", "x\ufffd1.png")) == 0
    content = old.read_bytes()
    for asked in (named, ["x\u202f1.png"]):
        assert ceit_cli.main([*command(run, "--output", "old.csv", "--resume"), *asked]) == 1
        assert capsys.readouterr().err == (
            "error: old.csv has marks in place of some characters of names, as in x\ufffd1.png, and does not tell "
            "which files these are: name another --output\n"
        )
        assert old.read_bytes() == content
    assert ceit_cli.main(command(run, "--output", "old.csv", "--resume", "x 1.png", "x\ufffd1.png", "x.png ")) == 0
    assert paths_in(old) == ["x 1.png", "x\ufffd1.png", "x.png "]


ENCODINGS = ("ascii", "cp1252", "cp437", "shift_jis", "utf-16", "utf-8")


def test_p10_what_an_output_lacks_is_printed_plainer_or_by_number() -> None:
    for encoding, expected in {
        "utf-8": "█░ ✓ … Größe 猫 \\udcff",
        "cp437": "█░ + ~ Größe \\u732b \\udcff",
        "cp1252": "#- + … Größe \\u732b \\udcff",
        "ascii": "#- + ~ Gr\\xf6\\xdfe \\u732b \\udcff",
    }.items():
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        with contextlib.redirect_stdout(stream):
            assert ceit_cli.main(["--version"]) == 0
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            stream.buffer.truncate(0)
            stream.buffer.seek(0)
            stream.write("█░ ✓ … Größe 猫 \udcff")
            stream.flush()
            assert stream.buffer.getvalue().decode(encoding) == expected


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("verb", ["predict", "evaluate", "data check", "info"])
def test_p10_tables_show_every_figure_in_every_encoding(
    verb: str, encoding: str, run: Path, photos: Path, named: list[str]
) -> None:
    arguments = {
        "predict": [*command(run), *named],
        "evaluate": ["evaluate", "--checkpoint", str(run), "--data", str(photos)],
        "data check": ["data", "check", str(photos)],
        "info": ["info", str(run)],
    }[verb]
    plain, usual = (printed(arguments, name).decode(name).splitlines() for name in (encoding, "utf-8"))
    assert len(plain) == len(usual)
    figures = re.compile(r"\d+\.\d+%|\b\d+\b(?!\.)")
    assert [figures.findall(line) for line in plain if "\\" not in line] == [
        figures.findall(line) for line, other in zip(usual, plain, strict=True) if "\\" not in other
    ]
    assert sum(map(len, map(figures.findall, plain))) > 10


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_p10_json_is_json_in_every_encoding(encoding: str, run: Path, photos: Path) -> None:
    evaluate = ["evaluate", "--checkpoint", str(run), "--data", str(photos), "--json"]
    document = json.loads(printed(evaluate, encoding).decode(encoding))
    assert [entry["label"] for entry in document["per_class"]] == list(CLASSES)
    assert json.loads(printed(["data", "check", str(photos), "--json"], encoding).decode(encoding))["images"] == 90
    answers = json.loads(printed([*command(run, "--json"), str(photos)], encoding).decode(encoding))
    assert {Path(answer["path"]).parent.name for answer in answers} == set(CLASSES)


def test_p10_training_ends_in_every_encoding(photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(f"model: ceit_pico_patch4_32\ngeometry: {json.dumps(SMALL.geometry)}\n")
    arguments = ["train", "--recipe", str(recipe), "--data", str(photos), "--output", str(tmp_path / "trained")]
    report = printed([*arguments, "--fast-dev-run"], "ascii").decode("ascii")
    assert [word for word in ("dog", "Gr\\xf6\\xdfe", "\\u732b") if word not in report] == []
    assert report.rstrip().endswith("model.safetensors")


def test_a_data_folder_whose_name_is_no_utf8_trains_and_a_run_of_such_a_name_is_refused_by_it(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    run, odd = tmp_path / "trained", tmp_path / os.fsdecode(b"run\xe9")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: ceit_pico_patch4_32\ngeometry: {json.dumps(SMALL.geometry)}\nepochs: 1\n")
    options = ["--recipe", str(recipe)]
    assert ceit_cli.main(["train", "--data", str(data), "--output", str(run), *options]) == 0
    said = json.loads((run / "model.json").read_bytes())
    assert said["training"]["data"] == data.name
    assert "# ceit_pico_patch4_32 trained on caf\\udce9" in (run / "README.md").read_text(encoding="utf-8")
    picture = str(next(data.rglob("*.png")))
    figures = tmp_path / "figures.json"
    assert ceit_cli.main(["evaluate", "--checkpoint", str(run), "--data", str(data), "--metrics", str(figures)]) == 0
    assert json.loads(figures.read_bytes())["images"] > 0
    shutil.copytree(run, odd)
    capsys.readouterr()
    for arguments in (
        ["predict", "--checkpoint", str(odd), picture],
        ["train", "--data", str(data), "--output", str(odd / "further"), *options],
    ):
        assert ceit_cli.main(arguments) == 1
        assert r"the name b'run\xe9' in" in (said := capsys.readouterr().err)
        assert said.endswith("is not UTF-8: rename it\n")
    assert not (odd / "further").exists()


def test_the_heading_of_short_names_is_whole(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos / "dog")
    Path("0.png").rename("x")
    assert ceit_cli.main(command(run, "x")) == 0
    assert capsys.readouterr().out.split()[:3] == ["image", "label", "probability"]
