"""Losses against their definitions, and mixing by its properties."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ceit.train.config import Distillation, Mixing, TrainConfig
from ceit.train.objective import Objective, Targets, balanced_weights, image_weights, mix, seed_of, start_rare
from ceit.train.teacher import divergence

BATCH, CLASSES = 16, 5
BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)


@pytest.fixture
def images() -> Tensor:
    """Every image has one value of its own."""
    return torch.arange(1.0, BATCH + 1).view(-1, 1, 1, 1).expand(-1, 3, 24, 24).clone()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(BATCH) % CLASSES


def mixed(mixing: Mixing, images: Tensor, labels: Tensor, seed: int, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    return mix(mixing, smoothing, CLASSES, images.clone(), labels, seed)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**63 - 1), smoothing=st.sampled_from([0.0, 0.1]))
def test_mixed_labels_have_mass_one_and_say_what_the_images_show(seed: int, smoothing: float) -> None:
    images = torch.arange(1.0, BATCH + 1).view(-1, 1, 1, 1).expand(-1, 3, 24, 24).clone()
    labels = torch.arange(BATCH) % CLASSES
    pictures, targets = mixed(BOTH, images, labels, seed, smoothing)
    torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))
    assert (targets >= 0).all()
    # the share of the other image, read off the pixels: image i is mixed with image B - 1 - i
    own, other = torch.arange(1.0, BATCH + 1), torch.arange(float(BATCH), 0, -1)
    share = ((pictures.mean((1, 2, 3)) - own) / (other - own)).clamp(0, 1)
    told = 1 - (targets.gather(1, labels[:, None])[:, 0] - smoothing / CLASSES) / (1 - smoothing)
    differs = labels != labels.flip(0)
    torch.testing.assert_close(told[differs], share[differs], rtol=0, atol=1e-4)


def test_mixup_shares_follow_their_beta_distribution(images: Tensor, labels: Tensor) -> None:
    shares = []
    for seed in range(600):
        pictures, _ = mixed(Mixing(mixup_alpha=0.8), images, labels, seed)
        shares.append(float((BATCH - pictures[0, 0, 0, 0]) / (BATCH - 1)))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.015)  # of Beta(a, a)


def test_half_of_the_batches_take_cutmix_and_some_none(images: Tensor, labels: Tensor) -> None:
    def kind(seed: int, mixing: Mixing) -> str:
        values = mixed(mixing, images, labels, seed)[0][0].unique()
        if len(values) == 2:
            return "cutmix"
        return "none" if values[0] in (1.0, float(BATCH)) else "mixup"

    kinds = [kind(seed, BOTH) for seed in range(400)]
    assert kinds.count("mixup") == pytest.approx(200, abs=40)
    seldom = [kind(seed, Mixing(mixup_alpha=0.8, probability=0.25)) for seed in range(400)]
    assert seldom.count("mixup") == pytest.approx(100, abs=35)


def test_mixing_is_a_function_of_its_seed_and_leaves_the_global_generator(images: Tensor, labels: Tensor) -> None:
    np.random.seed(5)
    expected = np.random.RandomState(5).uniform()
    first = mixed(BOTH, images, labels, seed_of(0, 3, 0))
    assert np.random.uniform() == expected
    again, later, elsewhere = (mixed(BOTH, images, labels, seed_of(*at)) for at in ((0, 3, 0), (0, 4, 0), (0, 3, 1)))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], elsewhere[0])


def test_balanced_weights_average_to_one_and_level_the_classes() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [3])
    weights = balanced_weights(labels, 4)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights[2] == 0
    totals = torch.bincount(labels, weights[labels].double())
    assert totals[[0, 1, 3]].tolist() == pytest.approx([100 / 3] * 3)


def test_a_weighed_loss_is_the_mean_of_each_images_times_its_weight() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    weights = torch.tensor([0.5, 2.0, 3.0])
    loss = Objective(TrainConfig(label_smoothing=0.1), 3, weights).loss(logits, Targets(labels, None))
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    each = -(smooth * logits.log_softmax(1)).sum(1)
    assert loss.item() == pytest.approx((each * weights[labels]).mean().item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_image_mixed_of_two_gets_their_weights_mixed(images: Tensor, labels: Tensor, smoothing: float) -> None:
    weights = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])
    mixing = Mixing(mixup_alpha=0.8)
    pictures, targets = mixed(mixing, images, labels, 3, smoothing)
    own, other = images[:, 0, 0, 0], images.flip(0)[:, 0, 0, 0]
    share = (pictures[:, 0, 0, 0] - other) / (own - other)  # of the image's own pixels
    expected = share * weights[labels] + (1 - share) * weights[labels.flip(0)]
    torch.testing.assert_close(image_weights(targets, weights, smoothing), expected, rtol=0, atol=1e-5)

    logits = torch.randn(BATCH, CLASSES)
    config = TrainConfig(mixing=mixing, class_weights="balanced", label_smoothing=smoothing)
    loss = Objective(config, CLASSES, weights).loss(logits, Targets(targets, None))
    each = -(targets * logits.log_softmax(1)).sum(1)
    assert loss.item() == pytest.approx((expected * each).mean().item(), rel=1e-4)


def test_labels_that_happen_to_stay_unmixed_are_weighed_as_labels_are(images: Tensor, labels: Tensor) -> None:
    weights, logits = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0]), torch.randn(BATCH, CLASSES)
    objective = Objective(TrainConfig(label_smoothing=0.1), CLASSES, weights)
    never = Mixing(mixup_alpha=0.8, probability=0.0)
    soft, hard = mixed(never, images, labels, 0, 0.1)[1], labels
    assert soft.dim() == 2
    found = [objective.loss(logits, Targets(of, None)).item() for of in (soft, hard)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_terms_of_a_loss(
    kind: Literal["cross_entropy", "bce"], is_mixed: bool, images: Tensor, labels: Tensor
) -> None:
    """Smoothing, mixing, class weights and a teacher at once, in float64, against the equations."""
    mixing = BOTH if is_mixed else Mixing()
    weights = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0]).double()
    logits, theirs = torch.randn(2, BATCH, CLASSES).double()
    config = TrainConfig(loss=kind, mixing=mixing, label_smoothing=0.2, distillation=Distillation(weight=0.25))
    targets = mixed(mixing, images, labels, 1, 0.2)[1] if is_mixed else labels
    sharp = mixed(mixing, images, labels, 1, 0.0)[1] if is_mixed else F.one_hot(labels, CLASSES)

    def term(of: Tensor) -> Tensor:
        if kind == "cross_entropy":
            return -(of * logits.log_softmax(1)).sum(1)
        p = logits.sigmoid()
        return -(of * p.log() + (1 - of) * (1 - p).log()).sum(1)

    own = (sharp.double() @ weights) * term(0.8 * sharp.double() + 0.2 / CLASSES)
    taught = term(F.one_hot(theirs.argmax(1), CLASSES).double())
    loss = Objective(config, CLASSES, weights).loss(logits, Targets(targets, theirs))
    assert loss.item() == pytest.approx((0.75 * own + 0.25 * taught).mean().item(), rel=1e-5)


def test_a_head_of_bce_begins_with_one_chance_in_all_classes() -> None:
    head = torch.nn.Linear(8, 100)
    torch.nn.init.zeros_(head.bias)
    start_rare(head)
    probabilities = torch.sigmoid(head(torch.zeros(1, 8)))
    torch.testing.assert_close(probabilities, torch.full((1, 100), 0.01))
    trained = torch.nn.Linear(8, 100)
    before = trained.bias.clone()
    start_rare(trained)
    assert torch.equal(trained.bias, before)


def test_soft_distillation_is_the_divergence_at_a_temperature() -> None:
    ours, theirs = torch.randn(4, 6), torch.randn(4, 6)
    p = (theirs / 2).softmax(1)
    expected = 4 * (p * (p.log() - (ours / 2).log_softmax(1))).sum(1).mean()
    assert divergence(ours, theirs, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert divergence(ours, ours, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_hard_distillation_takes_the_teachers_decision_and_its_share() -> None:
    logits, theirs, labels = torch.randn(4, 6), torch.randn(4, 6), torch.arange(4)
    config = TrainConfig(label_smoothing=0.0, distillation=Distillation(weight=0.25))
    loss = Objective(config, 6).loss(logits, Targets(labels, theirs))
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * F.cross_entropy(logits, theirs.argmax(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert math.isfinite(loss.item())
