"""Labels that look wrong, and images that look like none of the classes: what a trained model says of a data set.

Letters: n images, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ceit.data.batches.loader import make_loader
from ceit.data.held_out import trained_in, with_labels_of
from ceit.data.labelled import LabelledSet
from ceit.data.record import TRAIN, ImageRecord
from ceit.data.sources.class_names import class_name
from ceit.data.splits import JoinedSplit, Split
from ceit.evaluation.answers import Answers, Collected
from ceit.evaluation.metrics import Evaluation, evaluate
from ceit.inference.backend import AsModule
from ceit.inference.computing import Work, computing
from ceit.inference.device import default_device
from ceit.inference.familiarity import Familiarity, KeptFeatures, with_features
from ceit.inference.predictor import preprocessing_of
from ceit.model import CeiT

STRANGE = 0.01
"""Images are listed as unlike all classes if they are no more familiar than this, or than can be told."""
CONVINCING = 0.8
"""A probability that is always enough to suspect a label."""
_BATCH = 250
_ROWS = 1 << 12


class Suspected(NamedTuple):
    """Images, by number, and the class that each looks like, int64 ``(m,)``; the most striking first."""

    images_m: np.ndarray
    classes_m: np.ndarray


@dataclass(frozen=True)
class Suspect:
    """An image whose label looks wrong: what the model thinks of the label, and of the class it looks like."""

    split: str
    path: str
    label: str
    answer: str
    label_probability: float
    answer_probability: float
    trained_on: bool | None


@dataclass(frozen=True)
class Stranger:
    """An image that looks like none of the classes."""

    split: str
    path: str
    label: str
    familiarity: float


@dataclass(frozen=True)
class ClassDifficulty:
    """How hard a class is: the share of its images answered as labelled, and the mean probability of its label."""

    label: str
    images: int
    answered: float
    label_probability: float
    suspects: int


@dataclass(frozen=True)
class SecondLook:
    """What a model says of labelled images. Suspects and strangers begin with the most striking.

    ``trained_on`` is how many of the images the model was trained on, None if nothing tells. ``strangers`` is None for
    a model that does not know what its images are like.
    """

    images: int
    trained_on: int | None
    suspects: tuple[Suspect, ...]
    strangers: tuple[Stranger, ...] | None
    classes: tuple[ClassDifficulty, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def likely_label_errors(probabilities_nk: np.ndarray, labels_n: np.ndarray) -> Suspected:
    """The images whose label is likely to be wrong.

        t_k = mean of p_k over the images labelled k, at most 0.8
        image i looks like  c = argmax of p_ik over the classes with p_ik >= t_k
        it is suspected if  p_ic > p of its label;  order: p of its label, ascending

    A class without images has no threshold, and no image looks like it.
    Source: confident learning, Northcutt et al. (arXiv 1911.00068). Differs: there is no upper bound there, and of a
    class that is always answered with the same probability half of the errors lie below its mean.
    """
    classes = probabilities_nk.shape[1]
    own_n = probabilities_nk[np.arange(len(labels_n)), labels_n]
    counts_k = np.bincount(labels_n, minlength=classes)
    sums_k = np.bincount(labels_n, weights=own_n, minlength=classes)
    thresholds_k = np.where(counts_k > 0, np.minimum(sums_k / np.maximum(counts_k, 1), CONVINCING), np.inf)
    classes_n, margins_n = np.empty(len(labels_n), np.int64), np.empty_like(own_n)
    for start in range(0, len(labels_n), _ROWS):  # of many images no copy is made
        block = slice(start, start + _ROWS)
        confident_bk = np.where(probabilities_nk[block] >= thresholds_k, probabilities_nk[block], -1.0)
        classes_n[block] = confident_bk.argmax(1)
        margins_n[block] = own_n[block] - confident_bk.max(1)
    suspects = np.flatnonzero(margins_n < 0)
    suspects = suspects[np.argsort(own_n[suspects], kind="stable")]
    return Suspected(suspects, classes_n[suspects])


def second_look(
    model: CeiT,
    found: LabelledSet,
    record: ImageRecord | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> SecondLook:
    """Asks a trained model about every image of a set. ``progress`` is called with the images done so far.

    ``record`` is that of the model's run. ``training`` is what its file tells, if it was trained on this very set,
    known by name. Raises: ValueError if the set has classes that the model does not know.
    """
    parts, device = found.parts, default_device()
    names = list(map(class_name, model.class_names or found.class_names))
    split = with_labels_of(names, found, JoinedSplit.of(list(parts.values())))
    familiarity = None if model.familiarity is None else Familiarity.from_dict(model.familiarity)
    _, answers, features_nd = ask(model, split, names, device, progress)
    part_of = [part for part, images in parts.items() for _ in range(len(images))]
    trained_n = _trained_on(found, record, training)

    def suspect(index: int, answer: int) -> Suspect:
        row, own = answers.probabilities_nk[index], int(answers.labels_n[index])
        trained = None if trained_n is None else bool(trained_n[index])
        known = names[own], names[answer], float(row[own]), float(row[answer])
        return Suspect(part_of[index], split.name(index), *known, trained)

    suspects = likely_label_errors(answers.probabilities_nk, answers.labels_n)
    strangers: tuple[Stranger, ...] | None = None
    if familiarity is not None:
        distances_n, shares_n = familiarity.distances(features_nd), familiarity.of(features_nd)
        limit = max(STRANGE, familiarity.least)
        far = [index for index in distances_n.argsort(descending=True).tolist() if shares_n[index] <= limit]
        labels = [names[int(answers.labels_n[index])] for index in far]
        strangers = tuple(
            Stranger(part_of[index], split.name(index), label, shares_n[index].item())
            for index, label in zip(far, labels, strict=True)
        )
    return SecondLook(
        images=len(split),
        trained_on=None if trained_n is None else int(trained_n.sum()),
        suspects=tuple(map(suspect, suspects.images_m.tolist(), suspects.classes_m.tolist())),
        strangers=strangers,
        classes=_difficulties(answers, names, suspects.images_m),
    )


def ask(
    model: CeiT,
    split: Split,
    class_names: Sequence[str],
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> tuple[Evaluation, Answers, Tensor]:
    """What a model says of every image, calibrated if it can be: figures, answers, and its features ``(n, D)``."""
    config = model.config
    loader = make_loader(split, batch_size=_BATCH, img_size=config.image_hw, preprocessing=preprocessing_of(model))
    computed = computing(with_features(model), "eager", "auto", [device], Work(_BATCH)).networks[0]
    network, collected = KeptFeatures(AsModule(computed), model.num_classes), Collected()
    options: dict[str, Any] = {"temperature": model.temperature, "observe": collected, "progress": progress}
    result = evaluate(network, loader, class_names=class_names, device=device, **options)
    return result, collected.answers(), network.joined(model.embed_dim)


def _trained_on(
    found: LabelledSet, record: ImageRecord | None, training: Mapping[str, Any] | None
) -> np.ndarray | None:
    """Of each image, in the order of the parts, whether the model was trained on it; None if nothing tells."""
    if record is not None and not found.is_fixed:
        used, _ = record.parts_in(found)
        return np.concatenate([used[part] == TRAIN for part in found.parts])
    return None if training is None else trained_in(found, training)


def _difficulties(answers: Answers, names: Sequence[str], suspects: np.ndarray) -> tuple[ClassDifficulty, ...]:
    """Of every class that has images, the hardest first."""
    labels_n, answered_n = answers.labels_n, answers.probabilities_nk.argmax(1)
    own_n = answers.probabilities_nk[np.arange(len(labels_n)), labels_n]
    found = []
    for number, name in enumerate(names):
        if (of_class := labels_n == number).any():
            share, mean = float((answered_n[of_class] == number).mean()), float(own_n[of_class].mean())
            found.append(
                ClassDifficulty(name, int(of_class.sum()), share, mean, int((labels_n[suspects] == number).sum()))
            )
    return tuple(sorted(found, key=lambda one: one.answered))
