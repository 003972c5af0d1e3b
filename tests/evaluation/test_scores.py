"""Figures of a classifier are scikit-learn's, and those that it does not have are worked out by hand."""

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.preprocessing import Preprocessing
from ceit.data.splits import ArraySplit
from ceit.evaluation.answers import Collected
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.evaluation.scores import Calibration, accuracy_interval, auroc_per_class, bin_of, most_confused


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Logits and labels: of some seeds a class has no images, one is never answered, or answers are tied."""
    generator = torch.Generator().manual_seed(seed)
    classes, images = 3 + seed % 6, 40 + 17 * seed
    logits = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    if seed % 2:
        labels[labels == 1] = 0  # a class without images
    if seed % 3 == 0:
        logits[:, 2] = -9.0  # one that is never answered
    if seed % 4 == 0:
        logits = logits.round()  # ties within an image and between images
    return logits, labels


class Table(torch.nn.Module):
    """Answers the image that has the number i in its pixels with row i."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        first, second = (images[:, 0, 0, :2] * 255).round().long().unbind(1)
        return self.logits[first + 256 * second]


def measured(logits: Tensor, labels: Tensor, temperature: float | None = None) -> tuple[Evaluation, Collected]:
    number = torch.arange(len(labels))
    pixels = torch.stack([number % 256, number // 256], dim=-1).to(torch.uint8)[:, None, None].expand(-1, 1, 2, 2)
    split, collected = ArraySplit(pixels.contiguous(), labels), Collected()
    loader = make_loader(split, batch_size=32, img_size=(2, 2), preprocessing=Preprocessing((0.0,), (1.0,)))
    names = [str(number) for number in range(logits.shape[1])]
    result = evaluate(
        Table(logits), loader, class_names=names, device="cpu", temperature=temperature, observe=collected
    )
    return result, collected


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(20))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    logits, labels = case(seed)
    result, collected = measured(logits, labels)
    answers, truth = collected.answers(), labels.numpy()
    probabilities = logits.double().softmax(1).numpy()
    said, classes = logits.argmax(1).numpy(), range(logits.shape[1])

    definition: Any = metrics.precision_recall_fscore_support
    wanted = definition(truth, said, labels=classes, zero_division=np.nan)
    for of_class, precision, recall, f1, images in zip(result.per_class, *wanted, strict=True):
        found = of_class.precision, of_class.recall, of_class.f1
        for ours, theirs in zip(found, (precision, recall, f1), strict=True):
            assert ours == pytest.approx(theirs) if ours is not None else math.isnan(theirs)
        assert of_class.images == images
    for average in ("macro", "weighted"):
        ours = getattr(result, average)
        theirs = definition(truth, said, average=average, zero_division=0)
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(theirs[:3])
    assert result.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(truth, said))
    assert result.top1_percent == pytest.approx(100 * metrics.accuracy_score(truth, said))
    assert result.loss == pytest.approx(metrics.log_loss(truth, probabilities, labels=classes), rel=1e-5)
    brier_score: Any = metrics.brier_score_loss
    brier = brier_score(truth, probabilities, labels=classes, scale_by_half=False)
    assert result.calibration.brier == pytest.approx(brier, rel=1e-5)
    assert answers.losses_n.mean() == pytest.approx(result.loss, rel=1e-5)
    for number, area in enumerate(answers.auroc()):
        is_of_class = truth == number
        if is_of_class.any() and not is_of_class.all():
            assert area == pytest.approx(metrics.roc_auc_score(is_of_class, answers.probabilities_nk[:, number]))
        else:
            assert area is None


def test_cases_hold_what_is_hard() -> None:
    """Or the test above would compare less than it says."""
    cases = [case(seed) for seed in range(20)]
    assert sum(len(labels.unique()) < logits.shape[1] for logits, labels in cases) >= 10
    assert sum(len(logits.argmax(1).unique()) < logits.shape[1] for logits, _ in cases) >= 7
    assert sum(bool((logits.topk(2).values.diff() == 0).any()) for logits, _ in cases) >= 5
    with pytest.warns(UndefinedMetricWarning):
        metrics.precision_score(cases[0][1], cases[0][0].argmax(1), average="macro")


def test_calibration_error_of_a_case_worked_out_by_hand() -> None:
    """Of four answers two are right.

    Two of 0.9 (one right) and one of 0.8 (right) lie in bins of their own, one of 0.6 (wrong) too: fifteen bins, so
    (0.8667, 0.9333], (0.7333, 0.8] and (0.5333, 0.6]. ECE = 2/4 |0.5 - 0.9| + 1/4 |1 - 0.8| + 1/4 |0 - 0.6| = 0.4.
    Brier = (2 * 0.1^2 + 2 * 0.9^2 + 2 * 0.2^2 + 2 * 0.6^2) / 4 = 0.61.
    """
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    result, _ = measured(probabilities.log().float(), torch.tensor([0, 1, 1, 1]))
    found = result.calibration
    assert found.ece == pytest.approx(0.4, abs=1e-6)
    assert found.brier == pytest.approx(0.61, abs=1e-6)
    bins = [(round(entry.above, 4), round(entry.up_to, 4), entry.images, entry.accuracy) for entry in found.reliability]
    assert bins == [(0.5333, 0.6, 1, 0.0), (0.7333, 0.8, 1, 1.0), (0.8667, 0.9333, 2, 0.5)]
    assert [entry.confidence for entry in found.reliability] == pytest.approx([0.6, 0.8, 0.9])
    assert (found.temperature, result.uncalibrated) == (None, None)


@pytest.mark.parametrize(("images", "points"), [(100, 9.0), (1000, 2.9), (10_000, 0.9)])
def test_the_calibration_error_that_chance_makes_is_that_of_perfect_models(images: int, points: float) -> None:
    """Of answers that are right as often as they say, drawn many times; the points are those of such a drawing."""
    random = np.random.default_rng(0)
    errors, by_chance = [], []
    for _ in range(40):
        confidence = torch.from_numpy(random.beta(2.0, 0.8, images) / 2 + 0.5)
        labels = torch.from_numpy((random.random(images) > confidence.numpy()).astype(np.int64))
        found = measured(torch.stack([confidence, 1 - confidence], 1).log().float(), labels)[0].calibration
        errors.append(100 * found.ece)
        by_chance.append(100 * found.ece_by_chance)
    assert np.mean(by_chance) == pytest.approx(np.mean(errors), rel=0.15)
    assert np.mean(by_chance) == pytest.approx(points, rel=0.4)


def test_chance_is_named_where_it_makes_much_of_the_calibration_error() -> None:
    """Ten answers of 0.9, nine of them right: chance makes about sqrt(2 / pi * 10 * 0.9 * 0.1) / 10 = 7.6 points."""
    as_sure_as_right, too_sure = (Calibration.of_counts(*bins, 0.0, 0.0, None) for bins in (bins_of(9), bins_of(5)))
    assert as_sure_as_right.of_chance() == "chance alone makes about 7.6 with 10 images"
    assert too_sure.of_chance() == "", "40 points are not chance"
    assert Calibration.from_json(json.loads(json.dumps(asdict(too_sure)))) == too_sure


def bins_of(right: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten answers of 0.9: how many there are, how many are right and the sum of their probabilities."""
    return np.array([0, 10]), np.array([0, right]), np.array([0.0, 9.0])


def test_bins_hold_their_upper_edge_and_the_ends() -> None:
    assert bin_of(np.array([0.0, 1e-9, 0.2, 0.2001, 1.0]), bins=5).tolist() == [0, 0, 0, 1, 4]


@pytest.mark.parametrize(("right", "images"), [(90, 100), (9_000, 10_000), (9_290, 10_000)])
def test_of_many_images_the_interval_of_the_accuracy_is_the_bootstrap_s(right: int, images: int) -> None:
    is_right = np.arange(images) < right
    drawn = np.random.default_rng(1).integers(images, size=(2_000, images))
    wanted = np.percentile(100 * is_right[drawn].mean(1), [2.5, 97.5])
    assert accuracy_interval(right, images) == pytest.approx(tuple(wanted), abs=15 / images**0.5)


def test_the_interval_of_few_images_without_a_mistake_or_without_a_hit_has_a_width() -> None:
    """As in Brown, Cai and DasGupta: n / (n + z^2) and z^2 / (n + z^2)."""
    assert accuracy_interval(5, 5) == pytest.approx((100 * 5 / (5 + 1.959964**2), 100))
    assert accuracy_interval(0, 1) == pytest.approx((0, 100 * 1.959964**2 / (1 + 1.959964**2)))


def test_area_under_the_curve_counts_ties_half() -> None:
    """Of class 1 the images score 0.5 and 0.7, of the others 0.5 and 0.1: 0.5 against 0.5 is half a win."""
    scores = np.array([[0.5, 0.5], [0.3, 0.7], [0.5, 0.5], [0.9, 0.1]])
    assert auroc_per_class(scores, np.array([1, 1, 0, 0])) == [3.5 / 4, 3.5 / 4]
    assert auroc_per_class(scores, np.array([1, 1, 1, 1])) == [None, None]


def test_most_confused_are_the_largest_counts_off_the_diagonal() -> None:
    assert most_confused([[9, 3, 0], [1, 9, 0], [0, 7, 9]], most=2) == [(2, 1, 7), (0, 1, 3)]
    assert most_confused([[9, 0], [0, 9]]) == []
