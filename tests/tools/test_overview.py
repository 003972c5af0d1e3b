"""Tables over several studies."""

from dataclasses import replace
from pathlib import Path

import pytest

from ceit.study.cells import Cell, pack, write_cell
from ceit.study.plan import load_study, scales
from tools import overview


def trained(root: Path, cell: Cell, accelerator: str | None, right: int) -> None:
    """A cell of which a network recognises the first ``right`` of 100 images."""
    machine = {"accelerator": accelerator, "processor": "P", "threads": 1, "torch": "2.14"}
    test = {"images": 100, "top1_percent": float(right), "right": pack([n < right for n in range(100)])}
    write_cell(root, cell, {"machine": machine, "precision": "float32", "test": test})


def test_a_cell_and_its_twin_of_another_device_stand_side_by_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(overview, "STUDIES", tmp_path)
    first, second, *_ = load_study("lca").cells(scales()["digits"], {"CeiT": 1e-3, "DeiT": 1e-3})
    for cell, here, there in ((first, 80, 83), (second, 90, 89)):
        trained(tmp_path, cell, None, here)
        trained(tmp_path / "devices", cell, "G", there)
    rows = overview.devices_table().splitlines()
    study = "Layer-wise Class-token Attention"
    # three images that one network alone recognised: p = 2 / 2^3
    assert f"| {study} | {first.arm}, seed 0 | 80.00 % | 83.00 % | +3.00 | 0.25 |" in rows
    assert f"| {study} | {second.arm}, seed 0 | 90.00 % | 89.00 % | -1.00 | 1 |" in rows
    assert "| mean of 2, ± standard deviation | | | | **+1.00** ± 2.83 | |" in rows
    assert "< 0.05 in 0 of 2. Paired t-test over the cells: p = 0.7. " in rows[-1]
    assert rows[-1].endswith("Measured on 1 thread of P, torch 2.14, float32, and G, torch 2.14, float32.")


def test_a_twin_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(overview, "STUDIES", tmp_path)
    first, *_ = load_study("lca").cells(scales()["digits"], {"CeiT": 1e-3, "DeiT": 1e-3})
    trained(tmp_path / "devices", first, "G", 80)
    with pytest.raises(ValueError, match="has no cell beside it"):
        overview.devices_table()
    trained(tmp_path, first, "G", 80)
    with pytest.raises(ValueError, match=r"is not the run of .* on another device"):
        overview.devices_table()
    trained(tmp_path, replace(first, options=first.options | {"epochs": 9}), None, 80)
    with pytest.raises(ValueError, match=r"is not the run of .* on another device"):
        overview.devices_table()


def test_one_twin_is_not_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(overview, "STUDIES", tmp_path)
    with pytest.raises(ValueError, match="holds no two cells to compare"):
        overview.devices_table()
