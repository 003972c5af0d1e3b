"""How good a classifier is on a split: loss, top-1, top-5, per class, exactly over every image and every process.

Letters: ``B`` batch, ``K`` classes.
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
from ceit.inference.cores import FreeCores

CONFUSION_CLASSES = 100  # up to which a confusion matrix is counted: it grows with their square, and is to be read
_LISTED_CLASSES = 40


class DivergedError(ValueError):
    """The loss is not finite; in every process alike."""


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: how many images it has, and the share of them that was recognised (None without images)."""

    label: str
    images: int
    top1_percent: float | None


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split.

    ``loss`` is the mean cross-entropy of the softmax in nats, whatever loss was trained with; ``top5_percent`` is None
    below five classes; ``confusion[true][predicted]`` counts images, and is None above ``CONFUSION_CLASSES``.
    """

    images: int
    loss: float
    top1_percent: float
    top5_percent: float | None
    per_class: tuple[ClassAccuracy, ...]
    confusion: list[list[int]] | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float | None]:
        """Those of the whole split, for JSON."""
        return {"top1_percent": self.top1_percent, "top5_percent": self.top5_percent, "loss": self.loss}

    def listed(self) -> tuple[ClassAccuracy, ...]:
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
    progress: Callable[[int], object] | None = None,
    observe: Callable[[Tensor, Tensor], object] | None = None,
    cores: FreeCores | None = None,
) -> Evaluation:
    """Evaluates ``model`` in eval mode on every image of ``loader``, and leaves it in the mode it was in.

    Images come in ``dtype``, the forward pass runs under autocast if ``autocast_dtype`` is given; the loss is computed
    in float32 or more. Under torch.distributed every process evaluates its own shard and all get the result of the
    whole. ``progress`` is called with the number of this process's images done so far, ``observe`` with the logits and
    labels of each of its batches; ``cores`` is followed between them. Memory and time beside the model's grow with
    images plus classes.

    Raises: ValueError if the model's classes are not as many as ``class_names``; DivergedError, in all processes
    together, if the loss of a batch is not finite.
    """
    device = torch.device(device)
    counts = _Counts(len(class_names))
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
                images, labels = images.to(device, dtype, non_blocking=True), labels.to(device, non_blocking=True)
                with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    logits = model(images)
                if (told := logits.shape[1]) != counts.classes:
                    raise ValueError(f"the model tells {told} classes apart, the data set has {counts.classes}")
                logits = logits if logits.dtype == torch.float64 else logits.float()
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
        first_batch = torch.tensor(diverged_batch, dtype=torch.float64, device=device)
        if in_several_processes:
            torch.distributed.all_reduce(first_batch, torch.distributed.ReduceOp.MIN)
        first = int(first_batch) * loader.batch_size
        last = min(first + loader.batch_size, loader.images) - 1
        raise DivergedError(f"the loss of images {first} to {last} is {counts.loss_sum}: the weights have diverged")
    return counts.result(class_names)


class _Counts:
    """What is counted over batches, and then over processes: whole numbers, so that nothing depends on the order."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.loss_sum, self.top5 = 0.0, 0
        self.images_k, self.right_k = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        side = classes if classes <= CONFUSION_CLASSES else 0
        self.confusion_kk = np.zeros((side, side), np.int64)

    def add(self, logits_bk: Tensor, labels_b: Tensor) -> bool:
        """Count a batch; whether its loss is finite."""
        self.loss_sum += F.cross_entropy(logits_bk, labels_b, reduction="sum").item()
        if not math.isfinite(self.loss_sum):
            return False
        labels, said = labels_b.cpu().numpy(), logits_bk.argmax(1).cpu().numpy()
        # not by torch, whose counting takes many times longer under deterministic algorithms
        np.add.at(self.images_k, labels, 1)
        np.add.at(self.right_k, labels[labels == said], 1)
        if self.confusion_kk.size:
            np.add.at(self.confusion_kk, (labels, said), 1)
        if self.classes >= 5:
            self.top5 += int((logits_bk.topk(5).indices == labels_b[:, None]).sum())
        return True

    def gather(self, device: torch.device) -> None:
        """Add up the counts of all processes, in each of them."""
        parts = ([self.loss_sum, self.top5], self.images_k, self.right_k, self.confusion_kk.ravel())
        totals = torch.from_numpy(np.concatenate(parts)).to(device)  # float64 holds these whole numbers exactly
        torch.distributed.all_reduce(totals)
        sums, *counted = np.split(totals.cpu().numpy(), np.cumsum([len(part) for part in parts[:-1]]))
        self.loss_sum, self.top5 = float(sums[0]), int(sums[1])
        self.images_k, self.right_k, confusion = (part.astype(np.int64) for part in counted)
        self.confusion_kk = confusion.reshape(self.confusion_kk.shape)

    def result(self, class_names: Sequence[str]) -> Evaluation:
        """The figures that follow."""
        total = int(self.images_k.sum())
        return Evaluation(
            images=total,
            loss=self.loss_sum / total,
            top1_percent=100 * int(self.right_k.sum()) / total,
            top5_percent=100 * self.top5 / total if self.classes >= 5 else None,
            per_class=tuple(
                ClassAccuracy(label, images, 100 * right / images if images else None)
                for label, images, right in zip(class_names, self.images_k.tolist(), self.right_k.tolist(), strict=True)
            ),
            confusion=self.confusion_kk.tolist() if self.confusion_kk.size else None,
        )
