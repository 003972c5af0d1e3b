"""Parity: the network computes what the released implementation computed, in eval and in training, gradients included.

The rule for two tensors is ``max|a - b| <= 1e-5 * max|b|``. Gradients that are zero but for rounding are compared
against the largest gradient instead; which ones these are follows from the network's structure, and is itself tested.
``pytest -rP`` prints the largest errors.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ceit import CeiT, CeiTConfig, convert_released_state_dict
from ceit.model import config_of

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = ["released_k3_bn", "released_k5_nobn"]
TOLERANCE = 1e-5
PARAMETERS = {
    "ceit_tiny_patch16_224": 6_356_904,
    "ceit_small_patch16_224": 24_204_840,
    "ceit_base_patch16_224": 94_405_416,
    "ceit_tiny_patch16_384": 6_429_864,
    "ceit_small_patch16_384": 24_350_760,
}


@dataclass
class Run:
    """What the released implementation computed, and what this network computes from the same weights and images."""

    config: CeiTConfig
    golden: dict[str, Tensor]
    ours: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Golden tensors of one kind, by our keys and in our shapes."""
        return convert_released_state_dict(_under(self.golden, prefix))


@pytest.fixture(params=FILES)
def run(request: pytest.FixtureRequest) -> Run:
    return _run(request.param)


@pytest.mark.parametrize("name", ["eval.features", "eval.logits", "train.logits", "train.loss"])
def test_outputs_are_the_released_ones(run: Run, name: str) -> None:
    _require_small({name: _relative_error(run.ours[name], run.golden[name])})


def test_patch_tokens_left_out_in_eval_do_not_reach_the_logits(run: Run) -> None:
    name = "eval.logits from all tokens"
    _require_small({name: _relative_error(run.ours[name], run.golden["eval.logits"])})


def test_every_gradient_is_the_released_one(run: Run) -> None:
    golden = run.under("train.grad.")
    ours = _under(run.ours, "train.grad.")
    assert golden.keys() == ours.keys()
    largest = max(gradient.abs().max().item() for gradient in golden.values())
    relative, absolute = {}, {}
    for key, part, alive in _parts(golden, run.config):
        a, b = ours[key][part], golden[key][part]
        if alive:
            relative[key] = max(relative.get(key, 0.0), _relative_error(a, b))
        else:
            absolute[key] = (a - b).abs().max().item() / largest
    _require_small(relative)
    _require_small(absolute)


def test_the_gradients_compared_absolutely_are_zero_but_for_rounding_and_no_others_are(run: Run) -> None:
    golden = run.under("train.grad.")
    largest = max(gradient.abs().max().item() for gradient in golden.values())
    for key, part, alive in _parts(golden, run.config):
        is_zero = golden[key][part].abs().max().item() <= 1e-6 * largest
        assert is_zero != alive, key


def test_the_dead_layer_has_gradients_and_they_are_exact_zeros(run: Run) -> None:
    last = f"train.grad.blocks.{run.config.depth - 1}.mlp."
    dead = [gradient for key, gradient in run.ours.items() if key.startswith(last)]
    assert dead
    assert not any(gradient.count_nonzero() for gradient in dead)


def test_batch_norm_statistics_after_training_are_the_released_ones(run: Run) -> None:
    golden = run.under("train.after.")
    assert golden.keys() == {key for key in _under(run.ours, "train.after.") if key.endswith(("mean", "var"))}
    _require_small({key: _relative_error(run.ours[f"train.after.{key}"], value) for key, value in golden.items()})


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_tables_convert_completely(name: str) -> None:
    shapes = json.loads((GOLDEN / "released_state_dict_shapes.json").read_text())[name]
    released = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert_released_state_dict(released)
    with torch.device("meta"):
        network = CeiT(config_of(name))
    ours = network.state_dict()
    assert len(converted) == len(released)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    network.load_state_dict(converted, strict=True, assign=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@cache
def _run(name: str) -> Run:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        geometry = json.loads(file.metadata()["config"])
        keys = file.keys()
        golden = {key: file.get_tensor(key) for key in keys}
    config = CeiTConfig(
        **{key: geometry[key] for key in geometry if key not in ("name", "leff_batchnorm", "patch_size")},
        patch_size=4 * geometry["patch_size"],  # there the side of patches cut from the stem's map
        leff_norm="batch" if geometry["leff_batchnorm"] else "none",
    )
    network = CeiT(config)
    network.load_state_dict(convert_released_state_dict(_under(golden, "state.")), strict=True)
    images, labels = golden["input"], golden["target"]
    ours: dict[str, Tensor] = {}

    network.eval()
    with torch.no_grad():
        tokens = network.forward_features(images)
        ours["eval.features"] = network.forward_head(tokens, pre_logits=True)
        ours["eval.logits from all tokens"] = network.forward_head(tokens)
        ours["eval.logits"] = network(images)

    network.train()
    ours["train.logits"] = network(images)
    ours["train.loss"] = F.cross_entropy(ours["train.logits"], labels)
    ours["train.loss"].backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        ours[f"train.grad.{key}"] = parameter.grad
    ours |= {f"train.after.{key}": buffer for key, buffer in network.named_buffers()}
    return Run(config, golden, ours)


def _parts(gradients: dict[str, Tensor], config: CeiTConfig) -> Iterator[tuple[str, slice, bool]]:
    """Every gradient as ``(key, rows, whether it is alive)``; the bias of queries, keys and values in three parts."""
    dim = config.embed_dim
    before_norm = ("mlp.expand.bias", "mlp.depthwise.bias", "mlp.project.bias")
    for key in gradients:
        if key.endswith("attn.qkv.bias"):
            # a key bias adds the same to all of a query's logits, and softmax is blind to that
            yield from ((key, slice(i * dim, (i + 1) * dim), i != 1) for i in range(3))
            continue
        shifted_away = config.leff_norm == "batch" and key.endswith(before_norm)
        cannot_reach_the_logits = key.startswith(f"blocks.{config.depth - 1}.mlp.")
        yield key, slice(None), not (shifted_away or cannot_reach_the_logits)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _relative_error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def _require_small(errors: dict[str, float]) -> None:
    worst = max(errors, key=lambda key: errors[key])
    print(f"largest error of {len(errors)}: {errors[worst]:.1e} at {worst}")
    assert errors[worst] <= TOLERANCE, worst
