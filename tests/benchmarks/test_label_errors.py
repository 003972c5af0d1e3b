"""The benchmark plants what it says, and a network finds most of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import label_errors
from benchmarks.label_errors import measured, planted, table
from tests.train.conftest import SMALL


def test_two_percent_of_the_labels_become_another_class() -> None:
    true = np.arange(5_000) % 10
    labels = planted(true, 10, seed=0)
    assert (labels != true).sum() == 100
    assert len(set(labels[labels != true])) == 10
    assert not np.array_equal(labels, planted(true, 10, seed=1))


def test_planted_errors_are_found_in_and_out_of_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_errors, "SHOWN", (10, 29))
    options = {"model": SMALL.model, "epochs": 8, "global_batch_size": 32, "peak_lr": 1e-2, "precision": "float32"}
    options |= {f"geometry.{key}": value for key, value in SMALL.geometry.items()} | {"augmentation.flip": False}
    result = measured(tmp_path, "digits", options, 0)
    assert (result["images"], result["planted"]) == (1437, 29)
    assert len(result["rankings"]) == 4
    for found in result["rankings"].values():
        assert found["precision"][0] >= 0.5  # by chance 0.02
        assert found["recall"][1] >= 0.4
    assert len(table(result).rows) == 4
