"""Pictures of a run as PNG: how it learned, what it confuses, what it says of single images. Needs the extra ``viz``.

All are drawn 8 inches wide at 200 pixels an inch, to be read at half of that. The colours are those of Okabe and Ito, which people with
a colour vision deficiency can tell apart; no meaning hangs on colour alone.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from ceit.weights.atomic import replace_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#00795A", "#C44E00", "#6B6B6B"
SHEET_ROWS, SHEET_COLUMNS = 4, 8

_WIDTH = 8.0  # inches
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
_WRITTEN_CELLS = 12  # classes up to which a confusion matrix has its numbers written in
_NAMED_CLASSES = 50  # and its classes named


class ClassEntry(Protocol):
    """What a confusion matrix needs to know of a class."""

    @property
    def label(self) -> str: ...


class Confusable(Protocol):
    """An ``Evaluation`` of ``ceit.train.metrics``, as far as it is drawn."""

    @property
    def images(self) -> int: ...
    @property
    def top1_percent(self) -> float: ...
    @property
    def per_class(self) -> Sequence[ClassEntry]: ...
    @property
    def confusion(self) -> list[list[int]]: ...


def draw_curves(run_dir: str | Path) -> Path:
    """Draws ``curves.png`` from ``metrics.jsonl`` of a run, and returns its path.

    Left the training loss of every recorded step, pale, and its running mean, above the learning rate; right validation accuracy by
    epoch, of the raw weights and of their moving average. Raises: ValueError if there are no steps to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    run = Path(run_dir)
    records = _records(run / "metrics.jsonl")
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    if not steps:
        raise ValueError(f"{run / 'metrics.jsonl'} has no steps to draw: the run stopped before its first line")
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
        loss = figure.add_subplot(grid[0, 0])
        rate = figure.add_subplot(grid[1, 0], sharex=loss)
        accuracy = figure.add_subplot(grid[:, 1])
        _draw_loss(loss, rate, steps)
        _draw_accuracy(accuracy, epochs)
        return _save(figure, run / "curves.png")


def draw_confusion(evaluation: Confusable, path: str | Path) -> Path:
    """Draws the confusion matrix: of each true class, a row, the percentage of its images that was taken for each class.

    Up to 12 classes the percentages are written in. Shading follows the square root, so that the confusions show beside the diagonal.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = np.asarray(evaluation.confusion, dtype=np.float64)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [_plain(entry.label, 14) for entry in evaluation.per_class]
    with rc_context(_STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(_WIDTH, 7.2), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(percent, cmap="Blues", norm="function" if False else _square_root_norm())
        axes.set_title(f"{evaluation.top1_percent:.2f}% of {evaluation.images:,} images right; rows add up to 100%")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)
        if len(labels) <= _NAMED_CLASSES:
            size = 10 if len(labels) <= 20 else 7
            axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
            axes.set_yticks(range(len(labels)), labels, fontsize=size)
        if len(labels) <= _WRITTEN_CELLS:
            _write_cells(axes, percent)
        else:
            figure.colorbar(image, shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100], format="%d%%")
        return _save(figure, Path(path))
