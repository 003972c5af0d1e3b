"""The scaling study: its points are those measured, its exponents those of the points, and it can be drawn."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from ceit.bench.arms import Arm
from ceit.bench.measure import Settings
from ceit.bench.summary import summarise

MODELS = ["ceit_tiny_patch16_224", "deit_tiny_patch16_224"]


def pretend(arms: list[Arm], settings: Settings, _say: Any, _save: Any) -> dict[str, Any]:
    """Seconds that grow with tokens squared (by 1.5 for the second model) and with the batch; memory with both."""
    rows = []
    for arm in arms:
        side = arm.model.img_size
        assert isinstance(side, int)
        tokens = (side // 16) ** 2
        power = 2.0 if arm.model.text == MODELS[0] else 1.5
        rows.append(
            {
                "model": arm.model.label,
                "backend": arm.backend,
                "precision": arm.precision,
                "subject": arm.as_dict()["subject"],
                "image_shape": (3, side, side),
                "inference_macs": 10**9,
                "inference": {str(b): {"seconds": [[1e-6 * b * tokens**power]]} for b in settings.batch_sizes},
                "train": {},
                "deployment": {
                    "memory": {
                        str(b): {"peak_bytes": 10**9, "batch_bytes": 64 * b * tokens} for b in settings.batch_sizes
                    }
                },
                "errors": [],
            }
        )
    result = {"machine": {"threads": 1}, "peak": [], "arms": rows}
    summarise(result)
    return result


def test_exponents_are_those_of_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "measure", pretend)
    output, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    words = ["--output", str(output), "--plot", str(plot), "--sides", "64", "32", "128", "--batch-sizes", "2", "1", "4"]
    monkeypatch.setattr(sys, "argv", ["scaling", *words])
    scaling.main()
    result = json.loads(output.read_text())
    assert [p["tokens"] for p in result["points"]["tokens"] if p["model"] == MODELS[0]] == [4, 16, 64]
    assert [p["batch"] for p in result["points"]["batch"] if p["model"] == MODELS[1]] == [1, 2, 4]
    fits = result["fits"]
    for model, power in zip(MODELS, (2.0, 1.5), strict=True):
        assert fits["tokens"][model]["seconds"]["exponent"] == pytest.approx(power, abs=1e-3)
        assert fits["tokens"][model]["bytes"]["exponent"] == pytest.approx(1.0, abs=1e-3)
        assert fits["batch"][model]["seconds"]["exponent"] == pytest.approx(1.0, abs=1e-3)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sides", "100", "112"], "image side 100 must be a multiple of 16"),
        (["--sides", "112"], "a line needs two points"),
        (["--precision", "int8"], "--precision int8: eager has"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", "--output", "out.json", *words])
    with pytest.raises(SystemExit, match="2"):
        scaling.main()
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_an_arm_that_failed_ends_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(*given: Any) -> dict[str, Any]:
        result = pretend(*given)
        result["arms"][0]["errors"].append("no luck")
        return result

    monkeypatch.setattr(scaling, "measure", failing)
    monkeypatch.setattr(sys, "argv", ["scaling", "--output", str(tmp_path / "out.json")])
    with pytest.raises(ValueError, match="ceit_tiny_patch16_224 at 112 px: no luck"):
        scaling.main()
