"""What a network said of every image of a split, and the files that keep it: CSV of the images, figures as JSON or CSV.

Letters: n images, K classes.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ceit.atomic import replace_files
from ceit.evaluation.metrics import CONFUSION_CLASSES, Evaluation
from ceit.evaluation.scores import auroc_per_class
from ceit.inference.prediction_file import NAME_ERRORS
from ceit.json_file import json_text

WRITTEN_CLASSES = CONFUSION_CLASSES  # up to which a file of answers has a column for the probability of each class
FORMS = (".json", ".csv")  # of a file of figures


@dataclass(frozen=True)
class Answers:
    """The probabilities ``(n, K)`` that a network gave, the true classes ``(n,)``, and the cross-entropy of each."""

    probabilities_nk: np.ndarray
    labels_n: np.ndarray
    losses_n: np.ndarray

    def auroc(self) -> list[float | None]:
        """That of every class."""
        return auroc_per_class(self.probabilities_nk, self.labels_n)


class Collected:
    """Takes logits ``(B, K)`` and labels ``(B,)`` batch by batch, as ``evaluate`` tells them."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, ...]] = []

    def __call__(self, logits_bk: Tensor, labels_b: Tensor) -> None:
        losses_b = F.cross_entropy(logits_bk, labels_b, reduction="none")
        self._batches.append(tuple(found.cpu().numpy() for found in (logits_bk.softmax(1), labels_b, losses_b)))

    def answers(self) -> Answers:
        """Those of all images so far, in their order."""
        self._batches = [tuple(map(np.concatenate, zip(*self._batches, strict=True)))]  # of many images none twice
        return Answers(*self._batches[0])


def document_of(heading: Mapping[str, str], result: Evaluation, auroc: Sequence[float | None]) -> dict[str, Any]:
    """All figures, for JSON: those of the split, then a list of the classes, each with its AUROC, which has a mean."""
    known = [area for area in auroc if area is not None]
    document = {**heading, **result.as_dict(), "auroc": float(np.mean(known)) if known else None}
    for entry, area in zip(document["per_class"], auroc, strict=True):
        entry["auroc"] = area
    return document


def write_predictions(file: Path, answers: Answers, class_names: Sequence[str], name_of: Callable[[int], str]) -> None:
    """A line for every image, those first whose true class was thought least likely.

    Columns: path, label, answer, the answer's probability, loss (nats, of the true class), and the probability of each
    class, if there are at most ``WRITTEN_CLASSES``. The file appears whole or not at all.
    """
    shown = class_names if len(class_names) <= WRITTEN_CLASSES else ()
    probabilities_nk = answers.probabilities_nk

    def lines() -> Iterator[bytes]:
        yield _line(["path", "label", "answer", "probability", "loss", *(f"p({name})" for name in shown)])
        for image in np.argsort(-answers.losses_n, kind="stable").tolist():
            row = probabilities_nk[image]
            answer = int(row.argmax())
            told = [name_of(image), class_names[int(answers.labels_n[image])], class_names[answer]]
            numbers = [row[answer], answers.losses_n[image], *(row if shown else ())]
            yield _line([*told, *(f"{number:.9g}" for number in numbers)])

    replace_files({file: lines()})


def write_figures(file: Path, document: Mapping[str, Any]) -> None:
    """The document of ``document_of`` as JSON, or its classes as CSV, with their means in two rows below."""
    if file.suffix == ".json":
        replace_files({file: (json_text(document, indent=1) + "\n").encode()})
        return
    columns = ("images", "precision", "recall", "f1", "auroc")
    lines = [_line(["class", *columns])]
    for entry in document["per_class"]:
        lines.append(_line([entry["label"], *(_number(entry[column]) for column in columns)]))
    for name in ("macro", "weighted"):
        means = {"images": document["images"], "auroc": document["auroc"] if name == "macro" else None}
        means |= document[name]
        lines.append(_line([f"({name} mean)", *(_number(means[column]) for column in columns)]))
    replace_files({file: lines})


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerow(cells)  # ends in CR LF, and so quotes a name that holds either
    return (file.getvalue().removesuffix("\r\n") + "\n").encode(errors=NAME_ERRORS)
