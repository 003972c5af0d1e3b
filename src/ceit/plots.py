"""Pictures of a run as PNG: how it learned, what it confuses, what it says of single images. Needs the extra ``viz``.

All are drawn 8 inches wide at 200 pixels an inch, to be read at half of that. The colours follow Okabe and Ito's, which
people with a colour vision deficiency can tell apart; no meaning hangs on colour alone.
"""

import io
import json
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unicodedata import east_asian_width

import numpy as np
from torch import Tensor

from ceit.atomic import replace_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#00795A", "#C44E00", "#6B6B6B"
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
SHEET_ROWS, SHEET_COLUMNS = 4, 8

_MARKERS = "osD^v"
_FONTS = (
    "DejaVu Sans",  # which comes with matplotlib; what it lacks is taken from the next that is installed
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Nirmala UI",
    "Leelawadee UI",
)
_WIDTH = 8.0  # inches
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # names and values may have any number of dollar signs
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
    "svg.hashsalt": "ceit",  # names inside an SVG are otherwise drawn anew every time
}
_MATRIX_STYLE: dict[Any, Any] = {**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}
_LEGEND_LETTERS = 90  # of a name below a figure
_WRITTEN_CELLS = 12  # classes up to which a confusion matrix has its numbers written in
_NAMED_CLASSES = 50  # and its classes named


@contextmanager
def new_figure(
    path: str | Path | Sequence[Path], height: float, style: Mapping[Any, Any] = STYLE, width: float = _WIDTH
) -> Iterator["Figure"]:
    """An empty figure of so many inches in the style of the package; what the block draws is saved in every path."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = fontManager.get_font_names()
    settings = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
    settings |= {"font.family": [font for font in _FONTS if font in installed], **style}  # whatever a matplotlibrc says
    with rc_context(cast(Any, settings)):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        for each in (path,) if isinstance(path, str | Path) else path:
            save_figure(figure, Path(each))


def draw_curves(run_dir: str | Path) -> Path:
    """Draws ``curves.png`` from ``metrics.jsonl`` of a run, and returns its path.

    Left the training loss of every recorded step, pale, with its running mean, above the learning rate; right the
    validation accuracy by epoch, of the weights and of their moving average.
    Raises: ValueError if there are no steps to draw.
    """
    run = Path(run_dir)
    records = _records(run / "metrics.jsonl")
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    if not steps:
        raise ValueError(f"{run / 'metrics.jsonl'} has no steps to draw: the run stopped before its first line")
    with new_figure(run / "curves.png", 3.6) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
        loss = figure.add_subplot(grid[0, 0])
        rate = figure.add_subplot(grid[1, 0], sharex=loss)
        accuracy = figure.add_subplot(grid[:, 1])
        _draw_loss(loss, rate, steps)
        _draw_accuracy(accuracy, epochs)
    return run / "curves.png"


def draw_validation(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path:
    """Draws the validation accuracy of several runs by epoch; a curve is lines as ``metrics.jsonl`` has them, short.

    Raises: ValueError if no run has finished an epoch with validation.
    """
    found = {
        name: [(line["epoch"], line["validation_top1_percent"]) for line in curve]
        for name, curve in curves.items()
        if any(line["validation_top1_percent"] is not None for line in curve)
    }
    if not found:
        raise ValueError("no run has finished an epoch with validation: there is nothing to draw")
    with new_figure(path, 3.6 + 0.2 * len(found)) as figure:
        axes = figure.add_subplot()
        curves_drawn = []
        for number, points in enumerate(found.values()):
            curves_drawn += axes.plot(*zip(*points, strict=True), markersize=4, **curve_style(number))
        label_epochs(axes)
        names = [plain(name, _LEGEND_LETTERS) for name in found]  # given, so also those that begin with "_"
        figure.legend(curves_drawn, names, loc="outside lower left", handlelength=1.6)
    return Path(path)


def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: str | Path) -> Path:
    """Draws ``confusion[true][predicted]``: a row for each true class, in percent of its images.

    Up to 12 classes the percentages are written in. Shades follow the square root: confusions show beside the diagonal.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion, dtype=np.float64)
    images, right = int(counts.sum()), counts.trace()
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [plain(name, 14) for name in class_names]
    with new_figure(path, 7.2, _MATRIX_STYLE) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
        axes.set_title(f"{100 * right / images:.2f}% of {images:,} images right; rows add up to 100%")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)
        if len(labels) <= _NAMED_CLASSES:
            size = 10 if len(labels) <= 20 else 7
            axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
            axes.set_yticks(range(len(labels)), labels, fontsize=size)
        if len(labels) <= _WRITTEN_CELLS:
            for (row, column), value in np.ndenumerate(percent):
                if value > 0:
                    text, colour = f"{value:.{0 if value >= 9.95 else 1}f}", "white" if value > 30 else "#333333"
                    axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        else:
            figure.colorbar(image, shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100], format="%d%%")
    return Path(path)


def draw_prediction_sheet(
    images: Tensor, labels: Tensor, probabilities: Tensor, class_names: Sequence[str], path: str | Path
) -> Path:
    """Draws the first 32 images in their order, nothing chosen, each with the network's answer and how sure it is.

    A wrong answer is framed and crossed, with the true class below it.
    Shape: images uint8 ``(n, C, H, W)``, labels ``(n,)``, probabilities ``(n, classes)``.
    """
    shown = min(len(images), SHEET_ROWS * SHEET_COLUMNS)
    pixels_nhwc = images[:shown].permute(0, 2, 3, 1).cpu().numpy()
    best = probabilities[:shown].max(1)
    answers = [class_names[int(i)] for i in best.indices]
    truths = [class_names[int(i)] for i in labels[:shown]]
    wrong = sum(answer != truth for answer, truth in zip(answers, truths, strict=True))
    rows = -(-shown // SHEET_COLUMNS)
    with new_figure(path, 0.35 + 1.32 * rows) as figure:
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        title = f"The first {shown} images: {shown - wrong} right, {wrong} wrong"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        grid = figure.subplots(rows, SHEET_COLUMNS, squeeze=False).ravel()
        for axes in grid[shown:]:
            axes.set_axis_off()
        for i, axes in enumerate(grid[:shown]):
            _draw_answer(axes, pixels_nhwc[i], answers[i], truths[i], float(best.values[i]))
    return Path(path)


def _draw_answer(axes: "Axes", pixels_hwc: np.ndarray, answer: str, truth: str, probability: float) -> None:
    wrong = answer != truth
    colour = RED if wrong else GREEN
    heading = f"{plain(answer, 11)} {100 * probability:.0f}%"
    axes.imshow(pixels_hwc, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=wrong, color=colour, linewidth=2.5)
    axes.set_title(f"\N{BALLOT X} {heading}" if wrong else heading, fontsize=8, color=colour, pad=3, loc="center")
    axes.set_xlabel(f"is {plain(truth, 14)}" if wrong else " ", fontsize=8, color=colour, labelpad=2)


def _draw_loss(loss: "Axes", rate: "Axes", steps: list[dict[str, Any]]) -> None:
    number = [record["step"] for record in steps]
    values = np.array([record["loss"] for record in steps], dtype=np.float64)  # None, of a loss without end, is nan
    loss.plot(number, values, color=BLUE, alpha=0.25, linewidth=1.0)
    loss.plot(number, _running_mean(values, max(1, len(values) // 20)), color=BLUE)
    loss.set_title("Training loss")
    loss.tick_params(labelbottom=False)
    rates = [record["learning_rate"] for record in steps]
    rate.plot(number, rates, color=GREY, linewidth=1.5)
    rate.set_title("Learning rate")
    rate.set_xlabel("step")
    rate.set_yticks([0, max(rates)], ["0", f"{max(rates):.2g}"])
    rate.locator_params(axis="x", nbins=6)


def _draw_accuracy(axes: "Axes", epochs: list[dict[str, Any]]) -> None:
    number = [record["epoch"] for record in epochs]
    marker = "o" if len(epochs) <= 40 else ""
    for kind, name, colour in (("raw", "weights", BLUE), ("ema", "their moving average", ORANGE)):
        found = [record["validation"].get(kind) for record in epochs]
        percent = [np.nan if entry is None else entry["top1_percent"] for entry in found]
        if not np.all(np.isnan(percent)):
            label = f"{name}, best {np.nanmax(percent):.2f}%"
            axes.plot(number, percent, color=colour, marker=marker, markersize=4, label=label)
    label_epochs(axes)
    if epochs:
        axes.legend(loc="lower right", handlelength=1.2)


def curve_style(number: int) -> dict[str, Any]:
    """Colour and marker of one of several curves: 25 pairs, the first of each colour with a marker of its own."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
    }


def label_epochs(axes: "Axes", title: str = "Validation accuracy, top-1 in %") -> None:
    """Name the axes of an accuracy by whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of ``window`` values around each, of fewer at the ends and where some are not finite."""
    kernel, is_finite = np.ones(window), np.isfinite(values)
    sums, counts = (np.convolve(each, kernel, "same") for each in (np.where(is_finite, values, 0.0), is_finite * 1.0))
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no JSON record: {error}") from error
    return records


def plain(label: str, letters: int) -> str:
    """The label, shortened in its middle, since ends tell names apart; with a mark for what cannot be set.

    ``letters`` are Latin ones, of which a Chinese one takes the room of two.
    """
    label = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in label)
    if _fitting(label, letters) == label:
        return label
    return f"{_fitting(label, letters // 2)}…{_fitting(label[::-1], letters - 1 - letters // 2)[::-1]}"


def _fitting(label: str, letters: int) -> str:
    """As much of the beginning as has room."""
    ends = list(accumulate(1 + (east_asian_width(letter) in "WF") for letter in label))
    return label[: bisect_right(ends, letters)]


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a ``.png`` or ``.svg``, whole or not at all; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    unnamed = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box, and the rest of the name tells
        warnings.filterwarnings("ignore", message="Glyph ", category=UserWarning)
        figure.savefig(buffer, format=kind, dpi=200, facecolor="white", metadata=unnamed)
    replace_files({path: buffer.getvalue()})
    return path
