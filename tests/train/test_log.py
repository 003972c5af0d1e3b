"""What a line of ``metrics.jsonl`` says of each device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ceit
from ceit.train.cost import macs
from ceit.train.log import of_each_device

PICO = ceit.create_model("ceit_pico_patch4_32", num_classes=10)
HALF = ceit.create_model("ceit_pico_patch4_32", num_classes=10, img_size=16)


def found(device: str = "cpu", **changed: Any) -> dict[str, float]:
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=2)
    usual = {"model": PICO, "accelerator": accelerator, "head_only": False, "small_hw": lambda step: None}
    learner: Any = SimpleNamespace(**usual | changed)
    return of_each_device(learner, 0, 1e6)


@pytest.mark.parametrize(
    ("changed", "operations"),
    [
        ({}, 6 * macs(PICO.config)),
        ({"head_only": True}, 2 * macs(PICO.config)),
        ({"small_hw": lambda step: (16, 16)}, 6 * macs(HALF.config)),
    ],
)
def test_operations_are_of_the_images_of_one_device(changed: dict[str, Any], operations: int) -> None:
    assert found(**changed) == {"tflops": pytest.approx(operations * 1e6 / 2 / 1e12, rel=1e-3)}


def test_of_another_network_operations_are_not_known() -> None:
    assert found(model=nn.Identity()) == {}


def test_a_cuda_device_tells_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1234)
    assert found("cuda")["peak_memory_bytes"] == 1234
