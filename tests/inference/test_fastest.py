"""The fastest backend: chosen by measurement within a budget, and remembered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ceit.inference import device
from ceit.inference import fastest as module
from ceit.inference.backend import Network
from ceit.inference.example_images import ExampleImages
from ceit.inference.fastest import optimize
from ceit.model import CeiT, config_of


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CeiT:
    """A network to make fast, with a cache of its own and backends that need no compiler."""
    monkeypatch.setenv("CEIT_DATA", str(tmp_path))
    monkeypatch.setattr(module, "BACKENDS", ("eager", "onnxruntime"))
    geometry = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return CeiT(config_of("ceit_nano_patch4_32", **geometry)).eval()


def random_images(number: int) -> Tensor:
    """As the network sees them."""
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_without_images_only_float32_is_chosen(model: CeiT) -> None:
    fast = optimize(model)
    assert fast.precision == "float32"
    assert {candidate.backend for candidate in fast.measured} == {"eager", "onnxruntime"}
    best = max(fast.measured, key=lambda candidate: candidate.images_per_second or 0)
    assert (fast.backend, fast.precision) == (best.backend, best.precision)
    assert torch.allclose(fast(random_images(3)), model(random_images(3)), atol=1e-5)


def test_the_choice_is_remembered_for_these_weights(model: CeiT, tmp_path: Path) -> None:
    first = optimize(model)
    assert len(first.measured) == 2
    again = optimize(model)
    assert (again.backend, len(again.measured)) == (first.backend, 1)
    with torch.no_grad():
        model.cls_token.add_(1)
    assert len(optimize(model).measured) == 2
    assert len(optimize(model, remember=False).measured) == 2
    assert len(list((tmp_path / "optimize").iterdir())) == 2


def test_a_choice_without_images_waits_for_the_day_when_there_are_some(model: CeiT) -> None:
    asked: list[str] = []

    def images(found: Tensor | None) -> Callable[[], ExampleImages | None]:
        def ask() -> ExampleImages | None:
            asked.append("images")
            return None if found is None else ExampleImages(found, "the test")

        return ask

    first = optimize(model, images=images(None))
    again = optimize(model, images=images(None))
    assert (len(first.measured), len(again.measured), first.judged_on) == (2, 1, "")
    judged = optimize(model, images=images(random_images(32)))
    assert judged.judged_on == "16 images (the test)"
    assert len(asked) == 3
    assert optimize(model, images=images(random_images(32))).judged_on == judged.judged_on
    assert len(asked) == 3  # it is remembered


def test_another_version_of_ceit_takes_no_graph_and_no_choice_of_this_one(
    model: CeiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module.graph_name(model, "onnxruntime")
    optimize(model)
    for place in (module, device):
        monkeypatch.setattr(place, "__version__", "9.9.9")
    assert module.graph_name(model, "onnxruntime") != name
    assert len(optimize(model).measured) == 2


def test_a_precision_that_answers_otherwise_is_not_taken(model: CeiT, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = module.prepare

    def wrong_in_bf16(network: CeiT, backend: str, precision: str, **options: Any) -> Network:
        prepared = prepare(network, backend, precision, **options)
        return (lambda images: -prepared(images)) if precision == "bf16" else prepared

    monkeypatch.setattr(module, "prepare", wrong_in_bf16)
    fast = optimize(model, "eager", images=random_images(32))
    assert fast.precision == "float32"
    monkeypatch.setattr(module, "BACKENDS", ("eager", "openvino"))
    with pytest.raises(ValueError, match="lower least_agreement"):
        optimize(model, precision="bf16", images=random_images(32), least_agreement=1.1)


def test_what_is_named_is_not_measured(model: CeiT) -> None:
    fast = optimize(model, "eager", "bf16")
    assert (fast.backend, fast.precision, fast.measured) == ("eager", "bf16", ())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "onx"}, "onnxruntime"),
        ({"precision": "int4"}, "int8"),
        ({"backend": "eager", "precision": "int8"}, "choose float32, bf16"),
        ({"images": random_images(3)}, "3 images are too few"),
        ({"precision": "int8"}, "int8 needs at least 16 images to be calibrated with"),
    ],
)
def test_bad_arguments(model: CeiT, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        optimize(model, **options)
