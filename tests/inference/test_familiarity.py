"""How familiar an image is: a p-value that keeps its promise on known images, and is small for others."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ceit.inference.backend import prepare
from ceit.inference.familiarity import Familiarity, KeptFeatures, fit_familiarity, with_features
from ceit.inference.predictor import Predictor
from ceit.model import CeiT, CeiTConfig

CLASSES, FEATURES = 4, 12
GENERATOR = np.random.default_rng(5)
MIX = GENERATOR.normal(size=(FEATURES, FEATURES)) * np.geomspace(1, 0.01, FEATURES)  # far from round
CENTERS = 3 * GENERATOR.normal(size=(CLASSES, FEATURES))


def drawn(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features around the centers of their classes, and the classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    features = CENTERS[labels] + generator.normal(size=(images, FEATURES)) @ MIX
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def fitted(images: int, seed: int = 0) -> Familiarity:
    found = fit_familiarity(*drawn(images, seed), CLASSES)
    assert found is not None
    return found


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_of_known_images_it_calls_unknown_the_share_that_was_asked_for(share: float) -> None:
    rejected = [(fitted(500, seed).of(drawn(2_000, 100 + seed)[0]) < share).float().mean().item() for seed in range(10)]
    assert np.mean(rejected) == pytest.approx(share, abs=0.15 * share)


@pytest.mark.parametrize("images", [20, 40, 80])
def test_few_validation_images_reject_few_known_ones_too(images: int) -> None:
    """What an image has helped to place looks near; were it judged by that, half of all others would be too far."""
    rejected = [(fitted(images, s).of(drawn(500, 100 + s)[0]) < 0.1).float().mean().item() for s in range(20)]
    assert 0.05 <= np.mean(rejected) <= 0.12


def test_it_falls_with_the_distance_from_the_nearest_class_and_ends_at_the_least_that_can_be_told() -> None:
    found = fitted(400)
    center, direction = torch.from_numpy(CENTERS[2]).float(), torch.ones(FEATURES)
    shares = found.of(torch.stack([center + step * direction for step in (0.0, 0.05, 0.1, 0.2, 100.0)])).tolist()
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.99
    assert shares[-1] == pytest.approx(found.least) == pytest.approx(1 / 401)


def test_distances_are_those_of_mahalanobis_with_a_covariance_that_is_shrunk_towards_a_round_one() -> None:
    features, labels = drawn(300, 0)
    found = fitted(300)
    deviations = (features - torch.stack([features[labels == k].mean(0) for k in range(CLASSES)])[labels]).double()
    covariance = (deviations.T @ deviations / (300 - CLASSES)).numpy()
    used = np.linalg.inv((found.factor_dd @ found.factor_dd.T).double().numpy())
    assert np.trace(used) == pytest.approx(np.trace(covariance), rel=1e-2)
    off = ~np.eye(FEATURES, dtype=bool)
    (kept,) = np.linalg.lstsq(covariance[off][:, None], used[off], rcond=None)[0]
    assert 0.9 < kept < 1
    assert used[off] == pytest.approx(kept * covariance[off], abs=2e-3)

    strange = torch.from_numpy(np.random.default_rng(9).normal(size=(7, FEATURES))).float()
    to_all = (strange[:, None] - found.centers_kd).double().numpy()
    squared = np.einsum("bkd,de,bke->bk", to_all, np.linalg.inv(used), to_all)
    assert found.distances(strange).numpy() == pytest.approx(np.sqrt(squared.min(1)), rel=1e-2)


def test_it_survives_json_to_the_bit() -> None:
    found = fitted(2_500)
    again = Familiarity.from_dict(json.loads(json.dumps(found.as_dict())))
    features = drawn(50, 1)[0]
    assert torch.equal(again.of(features), found.of(features))
    assert (again.images, again.least, len(again.distances_m)) == (2_500, found.least, 1_000)


@pytest.mark.parametrize(
    "damage",
    [
        {"data": "no base64!"},
        {"data": ""},
        {"data": None},
        {"images": 0},
        {"features": 60},
        {"classes": "many"},
        {"classes": -1},
        "a text",
    ],
)
def test_what_is_damaged_is_refused(damage: Any) -> None:
    whole = fitted(50).as_dict()
    with pytest.raises(ValueError, match="what is said of known images is damaged"):
        Familiarity.from_dict(damage if isinstance(damage, str) else whole | damage)


def test_where_images_are_too_few_or_all_alike_nothing_is_told() -> None:
    features, labels = drawn(40, 0)
    assert fit_familiarity(features[:19], labels[:19], CLASSES) is None
    assert fit_familiarity(features, labels, CLASSES + 1) is None
    assert fit_familiarity(torch.ones(40, FEATURES), labels, CLASSES) is None
    assert fit_familiarity(features[:0], labels[:0], CLASSES) is None


def network(global_pool: str) -> CeiT:
    torch.manual_seed(2)
    geometry: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "stem_channels": 8, "stem_stride": 1}
    geometry |= {"img_size": (16, 24), "in_chans": 3, "num_classes": 3, "patch_size": 4}
    geometry |= {"global_pool": global_pool, "lca": global_pool != "avg"}
    return CeiT(CeiTConfig(**geometry)).eval()


@pytest.mark.parametrize("global_pool", ["token", "avg", "sum"])
@pytest.mark.parametrize(("backend", "precision"), [("eager", "float32"), ("eager", "bf16"), ("openvino", "float32")])
def test_features_come_behind_the_logits_whatever_computes(global_pool: str, backend: str, precision: str) -> None:
    model, images = network(global_pool), torch.randn(5, 3, 16, 24)
    before = copy.deepcopy(model.state_dict())
    outputs = prepare(with_features(model), backend, precision, image_shape=(3, 16, 24))(images)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        wanted = torch.cat([model(images), features], dim=1)
    assert torch.allclose(outputs, wanted, atol=1e-4 if precision == "float32" else 0.05)
    assert isinstance(model.head, nn.Linear)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_features_are_kept_while_the_logits_pass() -> None:
    model, images = network("avg"), torch.randn(5, 3, 16, 24)
    kept = KeptFeatures(with_features(model), 3)
    assert kept.joined(16).shape == (0, 16)
    with torch.no_grad():
        assert torch.equal(
            torch.cat([kept(images[:2]), kept(images[2:])]), torch.cat([model(images[:2]), model(images[2:])])
        )
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(kept.joined(16), features, atol=1e-6)


def known_model() -> tuple[CeiT, np.ndarray]:
    """A network that was told what its features of dark images are like, and such images."""
    model, classes = network("avg"), torch.arange(60) % 3
    dark = np.random.default_rng(0).integers(0, 60, (60, 16, 24, 3), dtype=np.uint8)
    kept = KeptFeatures(with_features(model), 3)
    with torch.no_grad():
        kept(Predictor(model).preprocessing.normalise(dark).permute(0, 3, 1, 2))
    found = fit_familiarity(kept.joined(16), classes, 3)
    assert found is not None
    model.familiarity = found.as_dict()
    return model, dark


@pytest.mark.parametrize("backend", [None, "eager", "openvino"])
def test_a_predictor_calls_unknown_what_is_strange(backend: str | None) -> None:
    model, dark = known_model()
    bright = 255 - dark[:8]
    predictor = Predictor(model, backend=backend, unknown_below=0.05)
    plain = Predictor(model, backend=backend)
    for found, same in zip(predictor.predict(list(dark)), plain.predict(list(dark)), strict=True):
        assert [score.label for score in found.predictions] == [score.label for score in same.predictions]
        assert found.as_dict().keys() == {"path", "predictions", "familiarity", "unknown"}
        assert same.as_dict().keys() == {"path", "predictions"}
    assert sum(found.unknown is True for found in predictor.predict(list(dark))) <= 6
    for found in predictor.predict(list(bright)):
        assert found.unknown is True
        assert found.familiarity == pytest.approx(1 / 61)
        assert len(found.predictions) == 3


def test_a_model_that_cannot_tell_says_so() -> None:
    model, _ = known_model()
    for share in (1 / 61, 0.0, -1.0, 1.0, float("nan")):
        with pytest.raises(
            ValueError, match=r"must be more than 0\.01639 and less than 1: the model knows the distances of 60"
        ):
            Predictor(model, unknown_below=share)
    model.familiarity = fitted(60).as_dict()
    with pytest.raises(ValueError, match="of 4 classes and 12 features, the model has 3 and 16"):
        Predictor(model, unknown_below=0.05)
    model.familiarity = None
    with pytest.raises(ValueError, match="this model cannot tell unknown images"):
        Predictor(model, unknown_below=0.05)
