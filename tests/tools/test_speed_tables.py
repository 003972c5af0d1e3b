"""The tables of speed say what the files say, and the page's commands are ones that the parsers take."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ceit.bench.summary import summarise
from ceit.cli.benchmark import make_parser
from tools import speed_tables as speed
from tools.pages import PARTS, with_computed_parts

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speed.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tables look for results."""
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    return tmp_path


def benchmark() -> dict[str, Any]:
    """Two arms of one GMAC an image, measured in one round."""
    common = {"inference_macs": 10**9, "train_macs": 3 * 10**9, "errors": []}
    rows = []
    for model, kind, backend, seconds in (("plain:m", "factory", "eager", 0.8), ("m", "name", "openvino", 0.2)):
        rows.append(
            {
                **common,
                "model": model,
                "backend": backend,
                "precision": "float32",
                "subject": {"text": model, "kind": kind, "img_size": None},
                "inference": {"1": {"seconds": [[seconds / 10] * 4]}, "16": {"seconds": [[seconds]]}},
                "train": {"16": {"seconds": [[4 * seconds]], "peak_bytes": 300 * 2**20}},
                "deployment": {
                    "bytes": 24_000_000,
                    "start_seconds": [3.0, 2.0, 9.0],
                    "memory": {"1": {"batch_bytes": 1, "peak_bytes": 700 * 2**20}},
                },
            }
        )
    peak = [{"product": "oneDNN linear", "precision": "float32", "size": 1000, "seconds": [[0.01]]}]
    machine = {"processor": "P", "threads": 2, "torch": "2.14"}
    result = {"machine": machine, "settings": {"threads": 2, "rounds": 1}, "peak": peak, "arms": rows}
    summarise(result)
    return result


@pytest.mark.parametrize("part", ["throughput", "training-speed"])
def test_a_file_that_is_not_whole_makes_no_table(part: str, folder: Path) -> None:
    result = benchmark()
    (folder / "x.json").write_text(json.dumps(result | {"complete": False}))
    with pytest.raises(ValueError, match="was interrupted: measure it again"):
        PARTS[part]("x")
    result["arms"][1]["errors"] = ["killed"]
    (folder / "x.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="m failed: killed"):
        PARTS[part]("x")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("throughput", "| `m` | openvino float32 | 50.0, 4.00x | 80.0, 4.00x | 80 % |"),
        ("latency", "| `m` | openvino float32 | 20.00 | 20.00 | 20.00 | 4.00x | 4 |"),
        ("training-speed", "| `m` | openvino float32 | 16 | 20.0 | 4.00x | 60 % | 300 |"),
        ("deployment", "| `m` | openvino float32 | 3.00 | 24.0 | 700 |"),
        ("gemm-peak", "| oneDNN linear | float32 | 1000 | **200** |"),
        ("speed-summary", "| `m` | openvino float32 | 20.0 | **4.00x** | openvino float32 | 80.0 | **4.00x** | 80 % |"),
    ],
)
def test_a_table_says_what_was_measured(folder: Path, part: str, line: str) -> None:
    (folder / "run.json").write_text(json.dumps(benchmark()))
    lines = PARTS[part]("run").splitlines()
    assert line in lines
    rows = [row for row in lines if row.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_the_scaling_table_shows_exponents(folder: Path) -> None:
    fit = {"exponent": 1.234, "factor": 1.0, "r2": 0.9991}
    (folder / "run.json").write_text(json.dumps({"fits": {"tokens": {"m": {"seconds": fit}}}}))
    assert PARTS["scaling"]("run").splitlines()[-1] == "| tokens | `m` | 1.23 | 0.999 | - | - |"


def test_the_agreement_table_shows_what_is_lost(folder: Path) -> None:
    row = {"backend": "openvino", "precision": "int8", "error": None, "top1_percent": 86.5, "agreement_percent": 99.0}
    row |= {"accuracy_loss_points": 0.25, "largest_logit_error": 0.123, "file_bytes": 1_500_000}
    row |= {"file_percent_of_float32": 26.4}
    found = {"images": 10_000, "top1_percent": 86.75, "data": "cifar10", "calibration_images": 300, "rows": [row]}
    (folder / "run.json").write_text(json.dumps(found))
    lines = PARTS["agreement"]("run").splitlines()
    assert "| openvino int8 | 86.50 % | +0.25 | 99.00 % | 0.12 | 1.50 | 26 % |" in lines


def test_what_is_not_measured_says_so(folder: Path) -> None:
    assert PARTS["latency"]("nothing").startswith("*Not measured yet: ")


def test_the_page_holds_exactly_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the pages are made
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- computed: ") == text.count("<!-- end of computed part -->") > 0
    assert with_computed_parts(text) == text, "run: make results"


def test_every_command_of_the_page_is_one_that_the_parser_takes() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ceit benchmark (.*)$", text, re.MULTILINE)
    assert commands
    for words in commands:
        asked = make_parser().parse_args(shlex.split(words))
        assert asked.models or asked.against
        for against in asked.against:
            assert (ROOT / against.rpartition(":")[0]).is_file()
