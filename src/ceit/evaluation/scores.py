"""How good answers are beside their accuracy: per class, over classes, and whether their confidence is earned.

Undefined figures are None here where scikit-learn warns and gives 0: the precision of a class that was never answered,
the recall of a class without images. In means of precision, recall and F1 they count as 0, as there; the mean AUROC
leaves them out.

Letters: n images, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

CONFIDENCE_BINS = 15  # as in Guo et al., of equal width
_MUCH = 0.5  # of the ECE: when chance makes more than so much of it, that is said


@dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised; all but ``top1_percent`` in 0..1, and None where undefined.

        precision = TP / (TP + FP)      of the images that were taken for this class, the share that is of it
        recall    = TP / (TP + FN)      of the images of this class, the share that was recognised: the class's top-1
        F1        = 2 TP / (2 TP + FP + FN)
        AUROC     = P(p(x) > p(y)) + P(p(x) = p(y)) / 2
                                        for an image x of this class, another y, and p the probability of this class

    AUROC is None where only counts were kept.
    """

    label: str
    images: int
    top1_percent: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None = None

    @classmethod
    def of_counts(cls, label: str, images: int, right: int, answered: int) -> Self:
        """Of a class's images, those of them that were recognised, and all images that were taken for this class."""
        return cls(
            label,
            images,
            top1_percent=100 * right / images if images else None,
            precision=right / answered if answered else None,
            recall=right / images if images else None,
            f1=2 * right / (images + answered) if images + answered else None,
        )


@dataclass(frozen=True)
class ClassMeans:
    """Precision, recall and F1 as means over classes, in 0..1."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def macro(cls, per_class: Sequence[ClassScores]) -> Self:
        """Every class counts the same, but for those that have no image and were never answered."""
        return cls._weighted(per_class, [float(entry.f1 is not None) for entry in per_class])

    @classmethod
    def weighted(cls, per_class: Sequence[ClassScores]) -> Self:
        """Every class counts by its images."""
        return cls._weighted(per_class, [float(entry.images) for entry in per_class])

    @classmethod
    def _weighted(cls, per_class: Sequence[ClassScores], weights: Sequence[float]) -> Self:
        scores = [[entry.precision or 0.0, entry.recall or 0.0, entry.f1 or 0.0] for entry in per_class]
        return cls(*np.average(scores, axis=0, weights=weights).tolist())


def balanced_accuracy(per_class: Sequence[ClassScores]) -> float:
    """The mean recall of the classes that have images, in 0..1."""
    return float(np.mean([entry.recall for entry in per_class if entry.recall is not None]))


@dataclass(frozen=True)
class ConfidenceBin:
    """The answers whose probability lies in ``(above, up_to]``: how many, its mean, and the share that is right."""

    above: float
    up_to: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether an answer of 90 % is right nine times in ten.

        ECE   = sum over bins of  n_bin / n * |accuracy - confidence|
        Brier = mean over images of  sum over classes (p_k - y_k)^2,  in 0..2
        loss  = mean over images of  -log p_y, in nats

    ``temperature`` is what the logits were divided by, None if by nothing. ``reliability`` are the bins of the expected
    calibration error (ECE) that hold answers.
    Sources: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599); Brier 1950.
    """

    temperature: float | None
    ece: float
    brier: float
    loss: float
    reliability: tuple[ConfidenceBin, ...]

    @property
    def ece_by_chance(self) -> float:
        """About what the ECE of so many answers would be if each were right as often as it says:

        sum over bins of  sqrt(2 / pi * n_bin * confidence * (1 - confidence)) / n
        """
        variances = [one.images * one.confidence * (1 - one.confidence) for one in self.reliability]
        images = sum(one.images for one in self.reliability)
        return sum(math.sqrt(2 / math.pi * max(0.0, variance)) for variance in variances) / max(1, images)

    def of_chance(self) -> str:
        """Words on what chance alone makes of the ECE, where that is much of it; empty where it is not."""
        if self.ece_by_chance <= _MUCH * self.ece:
            return ""
        images = sum(one.images for one in self.reliability)
        return f"chance alone makes about {100 * self.ece_by_chance:.1f} with {images:,} images"

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made of one."""
        return cls(**{**entry, "reliability": tuple(ConfidenceBin(**one) for one in entry["reliability"])})

    @classmethod
    def of_counts(
        cls,
        images_m: np.ndarray,
        right_m: np.ndarray,
        confidence_sum_m: np.ndarray,
        brier_sum: float,
        loss_sum: float,
        temperature: float | None,
    ) -> Self:
        """Of each bin its images, those that were right, and the sum of their confidence."""
        edges, total = np.linspace(0, 1, len(images_m) + 1).tolist(), int(images_m.sum())
        bins = [
            ConfidenceBin(above, up_to, images, confidence / images, right / images)
            for above, up_to, images, right, confidence in zip(
                edges, edges[1:], images_m.tolist(), right_m.tolist(), confidence_sum_m.tolist(), strict=False
            )
            if images
        ]
        ece = sum(entry.images * abs(entry.accuracy - entry.confidence) for entry in bins) / total
        return cls(temperature, ece, brier_sum / total, loss_sum / total, tuple(bins))


def bin_of(confidence_n: np.ndarray, bins: int = CONFIDENCE_BINS) -> np.ndarray:
    """The number of the bin of each probability in 0..1."""
    return np.clip(np.ceil(confidence_n * bins).astype(np.int64) - 1, 0, bins - 1)


def accuracy_interval(right: int, images: int) -> tuple[float, float]:
    """Between which accuracies in percent the true one lies, 95 times in 100, as far as so many images tell.

    Wilson's score interval. It holds for few images and without a mistake, where the bootstrap gives a range of zero;
    of thousands of images both give the same. Source: Brown, Cai and DasGupta, Interval estimation for a binomial
    proportion, 2001.
    """
    share, z = right / images, 1.959964
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2) / (1 + z * z / images)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def auroc_per_class(probabilities_nk: np.ndarray, labels_n: np.ndarray) -> list[float | None]:
    """The area under the ROC curve of each class against all others; None for a class with no image, or with all.

    The rank sum of Mann and Whitney: ties count half.
    """
    areas: list[float | None] = []
    for k, scores_n in enumerate(probabilities_nk.T):
        is_of_class = labels_n == k
        positives = int(is_of_class.sum())
        negatives = len(labels_n) - positives
        if not positives or not negatives:
            areas.append(None)
            continue
        ordered, own = np.sort(scores_n[~is_of_class]), scores_n[is_of_class]
        below, up_to = (np.searchsorted(ordered, own, side).sum() for side in ("left", "right"))
        areas.append(float(below + up_to) / (2 * positives * negatives))
    return areas


def most_confused(confusion: Sequence[Sequence[int]], most: int = 5) -> list[tuple[int, int, int]]:
    """The pairs of classes that are taken for one another most often: ``(true, answered, images)``."""
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [(int(true), int(said)) for true, said in zip(*np.unravel_index(order, counts.shape), strict=True)]
    return [(true, said, int(counts[true, said])) for true, said in pairs if counts[true, said]]
