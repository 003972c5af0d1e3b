"""How good a classifier is on a split: loss, top-1, top-5, per class, exactly over every image and every process.

Letters: ``B`` batch, ``K`` classes, ``M`` bins of confidence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ceit.data.batches.loader import Loader
from ceit.evaluation.scores import (
    CONFIDENCE_BINS,
    Calibration,
    ClassMeans,
    ClassScores,
    accuracy_interval,
    balanced_accuracy,
    bin_of,
)
from ceit.inference.cores import FreeCores

CONFUSION_CLASSES = 100  # up to which a confusion matrix is counted: it grows with their square, and is to be read
_LISTED_CLASSES = 40


class DivergedError(ValueError):
    """The loss is not finite; in every process alike."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split.

    ``loss`` is the mean cross-entropy of the softmax in nats (the negative log-likelihood), whatever loss was trained
    with; ``top1_interval_percent`` is that of ``accuracy_interval``; ``top5_percent`` is None below five classes;
    ``balanced_accuracy`` and the means over classes are in 0..1; ``confusion[true][answered]`` counts images, and is
    None above ``CONFUSION_CLASSES``. With a temperature, loss and ``calibration`` are of the calibrated answers, and
    ``uncalibrated`` tells what they would be without it.
    """

    images: int
    loss: float
    top1_percent: float
    top1_interval_percent: tuple[float, float]
    top5_percent: float | None
    balanced_accuracy: float
    macro: ClassMeans
    weighted: ClassMeans
    calibration: Calibration
    uncalibrated: Calibration | None
    per_class: tuple[ClassScores, ...]
    confusion: list[list[int]] | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float | None]:
        """Those of the whole split, for JSON."""
        return {"top1_percent": self.top1_percent, "top5_percent": self.top5_percent, "loss": self.loss}

    def listed(self) -> tuple[ClassScores, ...]:
        """The classes that fit on a screen: all of them, or of many the least recognised."""
        if len(self.per_class) <= _LISTED_CLASSES:
            return self.per_class
        measured = [entry for entry in self.per_class if entry.top1_percent is not None]
        return tuple(sorted(measured, key=lambda entry: entry.top1_percent or 0.0)[:_LISTED_CLASSES])


def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    class_names: Sequence[str],
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    temperature: float | None = None,
    progress: Callable[[int], object] | None = None,
    observe: Callable[[Tensor, Tensor], object] | None = None,
    cores: FreeCores | None = None,
) -> Evaluation:
    """Evaluates ``model`` in eval mode on every image of ``loader``, and leaves it in the mode it was in.

    Images come in ``dtype``, the forward pass runs under autocast if ``autocast_dtype`` is given; the loss is computed
    in float32 or more. Under torch.distributed every process evaluates its own shard and all get the result of the
    whole. ``temperature`` divides the logits, see ``ceit.evaluation.temperature``. ``progress`` is called with the
    number of this process's images done so far, ``observe`` with the logits and labels of each of its batches;
    ``cores`` is followed between them. Memory and time beside the model's grow with images plus classes.

    Raises: ValueError if the model's classes are not as many as ``class_names``; DivergedError, in all processes
    together, if the loss of a batch is not finite.
    """
    device = torch.device(device)
    is_cuda = device.type == "cuda"  # see ``Varied.to``
    counts = _Counts(len(class_names), temperature)
    done, diverged_batch = 0, math.inf
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch, (images, labels) in enumerate(loader.epoch(0)):
                if not len(labels):
                    continue  # the last batch had fewer images than there are processes
                if cores is not None:
                    cores.follow()
                images = images.to(device, dtype, non_blocking=is_cuda)
                labels = labels.to(device, non_blocking=is_cuda)
                with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    logits = model(images)
                if (told := logits.shape[1]) != counts.classes:
                    raise ValueError(f"the model tells {told} classes apart, the data set has {counts.classes}")
                logits = logits if logits.dtype == torch.float64 else logits.float()
                logits = logits if temperature is None else logits / temperature
                if not counts.add(logits, labels):
                    diverged_batch = batch
                    break  # the other processes are told below, where they wait
                if observe is not None:
                    observe(logits, labels)
                done += len(labels)
                if progress is not None:
                    progress(done)
    finally:
        model.train(was_training)
    in_several_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    if in_several_processes:
        counts.gather(device)
    if not math.isfinite(counts.loss_sum):
        if in_several_processes:  # else a device may have no float64
            first_batch = torch.tensor(diverged_batch, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(first_batch, torch.distributed.ReduceOp.MIN)
            diverged_batch = first_batch.item()
        first = int(diverged_batch) * loader.batch_size
        last = min(first + loader.batch_size, loader.images) - 1
        raise DivergedError(f"the loss of images {first} to {last} is {counts.loss_sum}: the weights have diverged")
    return counts.result(class_names)


class _Counts:
    """What is counted over batches, and then over processes: of whole numbers nothing depends on the order."""

    def __init__(self, classes: int, temperature: float | None) -> None:
        self.classes, self.temperature = classes, temperature
        self.images_k, self.right_k, self.answered_k = (np.zeros(classes, np.int64) for _ in range(3))
        self.top5 = np.zeros(1, np.int64)
        side = classes if classes <= CONFUSION_CLASSES else 0
        self.confusion_kk = np.zeros((side, side), np.int64)
        self.confidence, self.raw = _Confidence(), _Confidence()

    @property
    def loss_sum(self) -> float:
        return float(self.confidence.loss_sum[0])

    def add(self, logits_bk: Tensor, labels_b: Tensor) -> bool:
        """Count a batch; whether its loss is finite. The temperature is taken off these logits already."""
        answers, labels = logits_bk.argmax(1), labels_b.cpu().numpy()
        if not self.confidence.add(logits_bk, labels_b, answers):
            return False
        if self.temperature is not None:
            self.raw.add(logits_bk * self.temperature, labels_b, answers)
        said = answers.cpu().numpy()
        # not by torch, whose counting takes many times longer under deterministic algorithms
        np.add.at(self.images_k, labels, 1)
        np.add.at(self.answered_k, said, 1)
        np.add.at(self.right_k, labels[labels == said], 1)
        if self.confusion_kk.size:
            np.add.at(self.confusion_kk, (labels, said), 1)
        if self.classes >= 5:
            self.top5 += int((logits_bk.topk(5).indices == labels_b[:, None]).sum())
        return True

    def gather(self, device: torch.device) -> None:
        """Add up the counts of all processes, in each of them."""
        counts = [self.images_k, self.right_k, self.answered_k, self.top5, self.confusion_kk]
        counts += [*vars(self.confidence).values(), *vars(self.raw).values()]
        totals = torch.from_numpy(np.concatenate([count.ravel() for count in counts])).to(device)
        torch.distributed.all_reduce(totals)  # float64 holds these whole numbers exactly
        found = np.split(totals.cpu().numpy(), np.cumsum([count.size for count in counts[:-1]]))
        for count, total in zip(counts, found, strict=True):
            count[...] = total.reshape(count.shape)

    def result(self, class_names: Sequence[str]) -> Evaluation:
        """The figures that follow."""
        total, right = int(self.images_k.sum()), int(self.right_k.sum())
        counted = (counts.tolist() for counts in (self.images_k, self.right_k, self.answered_k))
        per_class = tuple(map(ClassScores.of_counts, class_names, *counted))
        calibration = self.confidence.result(self.temperature)
        return Evaluation(
            images=total,
            loss=calibration.loss,
            top1_percent=100 * right / total,
            top1_interval_percent=accuracy_interval(right, total),
            top5_percent=100 * int(self.top5[0]) / total if self.classes >= 5 else None,
            balanced_accuracy=balanced_accuracy(per_class),
            macro=ClassMeans.macro(per_class),
            weighted=ClassMeans.weighted(per_class),
            calibration=calibration,
            uncalibrated=None if self.temperature is None else self.raw.result(None),
            per_class=per_class,
            confusion=self.confusion_kk.tolist() if self.confusion_kk.size else None,
        )


class _Confidence:
    """Sums over images of what their probabilities tell."""

    def __init__(self) -> None:
        self.loss_sum, self.brier_sum, self.confidence_sum_m = np.zeros(1), np.zeros(1), np.zeros(CONFIDENCE_BINS)
        self.images_m, self.right_m = (np.zeros(CONFIDENCE_BINS, np.int64) for _ in range(2))

    def add(self, logits_bk: Tensor, labels_b: Tensor, answers_b: Tensor) -> bool:
        """Whether the loss is finite."""
        self.loss_sum += F.cross_entropy(logits_bk, labels_b, reduction="sum").item()
        if not np.isfinite(self.loss_sum):
            return False
        probabilities_bk = logits_bk.softmax(1)
        confidence, of_label = (probabilities_bk.gather(1, of[:, None])[:, 0] for of in (answers_b, labels_b))
        self.brier_sum += (probabilities_bk.square().sum(1) - 2 * of_label + 1).sum().item()
        bins = bin_of(confidence.cpu().numpy())
        np.add.at(self.images_m, bins, 1)
        np.add.at(self.right_m, bins[(answers_b == labels_b).cpu().numpy()], 1)
        np.add.at(self.confidence_sum_m, bins, confidence.cpu().numpy())
        return True

    def result(self, temperature: float | None) -> Calibration:
        """The means that follow."""
        sums = self.confidence_sum_m, float(self.brier_sum[0]), float(self.loss_sum[0])
        return Calibration.of_counts(self.images_m, self.right_m, *sums, temperature)
