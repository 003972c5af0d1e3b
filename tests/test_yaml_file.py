"""YAML as people write it: numbers as they stand, and files as Windows saves them."""

import codecs
from pathlib import Path
from typing import Any

import pytest

import ceit_cli
from ceit.cli.train import parse
from ceit.yaml_file import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("-012", -12),
        ("0", 0),
        ("0100", 100),
        ("0x10", 16),
        ("1_000", 1000),
        ("1e-3", 1e-3),
        ("1.5", 1.5),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
    ],
)
def test_numbers_are_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml("a text", text)
    assert (found, type(found)) == (value, type(value))
    assert parse_yaml("a text", text, as_written=True) == text


def test_padded_numbers_of_a_shell_are_no_octal_ones() -> None:
    config, _ = parse(["--data", "digits", "--output", "x", "--recipe", "none", "--seed", "010", "--epochs", "012"])
    assert (config.seed, config.epochs) == (10, 12)


def test_a_time_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert ceit_cli.main(["train", "--data", "digits", "--output", "x", "--epochs", "1:30"]) == 2
    assert "--epochs" in capsys.readouterr().err


def test_a_list_may_stand_without_its_brackets_in_any_section() -> None:
    place = ["--data", "digits", "--output", "x", "--recipe", "none"]
    config, _ = parse([*place, "--optimizer", "adamw", "--optimizer-args.betas", "0.9,0.99"])
    assert config.optimizer_args == {"betas": [0.9, 0.99]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_files_are_read_as_windows_saves_them(tmp_path: Path, encoding: str) -> None:
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    file = tmp_path / "mine.yaml"
    file.write_bytes(marks.get(encoding, b"") + "name: café\r\nepochs: 3\r\n".encode(encoding))
    assert read_yaml("recipe", str(file)) == {"name": "café", "epochs": 3}


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_yaml("recipe", str(tmp_path / "mine.yaml"))
