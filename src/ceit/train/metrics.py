"""How good a classifier is on a split: loss, top-1, top-5, per class, exactly over every image and every process."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from ceit.data.batches.loader import Loader


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: how many images it has, and the share of them that was recognised (None without images)."""

    label: str
    images: int
    top1_percent: float | None


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split.

    ``loss`` is the mean cross-entropy in nats; ``top5_percent`` is None below five classes;
    ``confusion[true][predicted]`` counts images.
    """

    images: int
    loss: float
    top1_percent: float
    top5_percent: float | None
    per_class: tuple[ClassAccuracy, ...]
    confusion: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
) -> Evaluation:
    """Evaluates ``model`` in eval mode on every image of ``loader``, and leaves it in the mode it was in.

    Images come in ``dtype``, the forward pass runs under autocast if ``autocast_dtype`` is given; the loss is computed
    in float32 or more. Under
    torch.distributed every process evaluates its own shard and all get the result of the whole. ``progress`` is called
    with the number of this process's images done so far, ``observe`` with the logits and labels of each of its batches.

    Raises: ValueError if the model's classes are not as many as ``class_names``, or the loss of a batch is not finite.
    """
    device = torch.device(device)
    classes = len(class_names)
    loss_sum = SumMetric().to(device)
    confusion = MulticlassConfusionMatrix(classes, validate_args=False).to(device)
    top5 = (
        MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False).to(device) if classes >= 5 else None
    )
    done = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch, (images, labels) in enumerate(loader.epoch(0)):
                if not len(labels):
                    continue  # the last batch had fewer images than there are processes
                images, labels = images.to(device, dtype, non_blocking=True), labels.to(device, non_blocking=True)
                with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    logits = model(images)
                if logits.shape[1] != classes:
                    raise ValueError(f"the model tells {logits.shape[1]} classes apart, the data set has {classes}")
                logits = logits if logits.dtype == torch.float64 else logits.float()
                loss = F.cross_entropy(logits, labels, reduction="sum")
                if not loss.isfinite():
                    first, last = batch * loader.batch_size, min((batch + 1) * loader.batch_size, loader.images) - 1
                    raise ValueError(
                        f"the loss of images {first} to {last} is {loss.item()}: the weights have diverged"
                    )
                loss_sum.update(loss)
                confusion.update(logits, labels)
                if top5 is not None:
                    top5.update(logits, labels)
                if observe is not None:
                    observe(logits, labels)
                done += len(labels)
                if progress is not None:
                    progress(done)
    finally:
        model.train(was_training)
    counts = confusion.compute().cpu()
    total = int(counts.sum())
    return Evaluation(
        images=total,
        loss=float(loss_sum.compute()) / total,
        top1_percent=100 * int(counts.trace()) / total,
        # back to the whole number of images: the metric divides in float32
        top5_percent=None if top5 is None else 100 * round(float(top5.compute()) * total) / total,
        per_class=tuple(map(_class_accuracy, class_names, counts.diag().tolist(), counts.sum(1).tolist())),
        confusion=counts.tolist(),
    )


def _class_accuracy(label: str, right: int, images: int) -> ClassAccuracy:
    return ClassAccuracy(label, images, 100 * right / images if images else None)
