"""One sheet for an image: what was answered, which parts speak for it, which layers decided. Needs the extra ``viz``.

Maps lie on the image in grey. Their colours are told apart with any colour vision: pale to dark for amounts, orange
against purple for what speaks against and for a class.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from ceit.explain.explanation import Explanation, PatchMap
from ceit.inference.predictor import Score
from ceit.plots import BLUE, GREY, ORANGE, STYLE, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: dict[Any, Any] = {**STYLE, "axes.grid": False, "axes.titlesize": 9, "font.size": 9}
_AMOUNTS, _FOR_AND_AGAINST = "cividis", "PuOr"
_LEAST_PANELS = 4  # so that a picture with few maps is as large as one with three
_LETTERS = 88  # side by side above all panels
_USUAL_BARS = 5  # of answers, up to which the sheet keeps its height
MOST_BARS = 20  # and more are not drawn
_BAR = 0.2  # inches
_MOST_BLOCKS = 12  # up to which each one's attention is drawn, else that of so many


def draw_sheet(found: Explanation, title: str, paths: Sequence[Path]) -> None:
    """Draws the sheet into every path, PNG or SVG.

    Above the image and its maps, the largest value of each named below it; then the probabilities of the answers and,
    where a class token is classified, LCA's weights of the blocks and the attention in each of them.
    """
    has_layers, scores = found.block_maps_lhw is not None, _drawn_answers(found)
    higher = _BAR * max(0, len(scores) - _USUAL_BARS)
    heights = (2.2, 1.4 + higher, *((1.2,) if has_layers else ()))
    with new_figure(paths, higher + (4.9 if has_layers else 3.9), _STYLE) as figure:
        rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        rows[0].suptitle(plain(title, 90), x=0.01, ha="left", fontsize=11)
        panels = rows[0].subplots(1, max(_LEAST_PANELS, 1 + len(found.maps)))
        letters = _LETTERS // len(panels)
        _show(panels[0], found.pixels_hwc, fill("what the network sees", letters))
        for axes, entry in zip(panels[1 : 1 + len(found.maps)], found.maps, strict=True):
            _draw_map(axes, found.pixels_hwc, entry, letters)
        for axes in panels[1 + len(found.maps) :]:
            axes.set_axis_off()
        bars, layers = rows[1].subplots(1, 2)
        _draw_answers(bars, scores, found.about)
        if found.layer_weights_kl is None:
            layers.set_axis_off()
        else:
            _draw_layer_weights(layers, found.layer_weights_kl)
        if found.block_maps_lhw is not None:
            _draw_blocks(rows[2], found)


def _show(axes: "Axes", pixels_hwc: np.ndarray, title: str) -> None:
    axes.imshow(pixels_hwc.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_title(title)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_map(axes: "Axes", pixels_hwc: np.ndarray, entry: PatchMap, letters: int) -> None:
    _show(axes, _grey(pixels_hwc), f"{fill(entry.kind, letters)}\n{plain(entry.about, letters)}".rstrip())
    values, (height, width) = entry.values_hw, pixels_hwc.shape[:2]
    most = float(np.abs(values).max())
    largest = most or 1.0
    colours = {"cmap": _FOR_AND_AGAINST, "vmin": -largest} if entry.signed else {"cmap": _AMOUNTS, "vmin": 0.0}
    axes.imshow(
        values,
        **colours,
        vmax=largest,
        alpha=0.6,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
    ends = f"orange -{most:.2g}, purple +{most:.2g}" if entry.signed else f"dark 0, yellow {most:.2g}"
    axes.set_xlabel(ends if most else "0 everywhere", fontsize=8, color=GREY)


def _drawn_answers(found: Explanation) -> list[Score]:
    """The most probable classes, and the one that the maps speak of."""
    most = found.answers[:MOST_BARS]
    return [*most, *([] if found.about in most else [found.about])]


def _draw_answers(axes: "Axes", scores: Sequence[Score], about: Score) -> None:
    scores = scores[::-1]
    names = [plain(score.label, 22) for score in scores]
    percent = [100 * score.probability for score in scores]
    colours = [ORANGE if score == about else BLUE for score in scores]
    bars = axes.barh(range(len(names)), percent, color=colours)
    axes.bar_label(bars, [f"{value:.1f}%" for value in percent], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.margins(y=0.5 / len(names))
    axes.set(xlim=(0, 118), xticks=[], title="probability")
    axes.spines["bottom"].set_visible(False)


def _draw_layer_weights(axes: "Axes", weights_kl: np.ndarray) -> None:
    blocks = np.arange(1, weights_kl.shape[1] + 1)
    axes.bar(blocks, 100 * weights_kl.mean(0), color=BLUE)
    for head in weights_kl:
        axes.plot(blocks, 100 * head, linestyle="", marker="o", markersize=3, color=ORANGE)
    axes.set(title="which blocks LCA listens to, in %", xticks=blocks, ylim=(0, None))
    axes.set_xlabel("block (dots: each head)")


def _draw_blocks(part: Any, found: Explanation) -> None:
    maps_lhw = found.block_maps_lhw
    assert maps_lhw is not None
    chosen = np.unique(np.linspace(0, len(maps_lhw) - 1, min(len(maps_lhw), _MOST_BLOCKS)).round().astype(int))
    for axes, block in zip(np.atleast_1d(part.subplots(1, len(chosen))), chosen, strict=True):
        axes.imshow(maps_lhw[block], cmap=_AMOUNTS, vmin=0)
        axes.set_title(f"{block + 1}" if block else "block 1", loc="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _grey(pixels_hwc: np.ndarray) -> np.ndarray:
    return pixels_hwc.mean(2) if pixels_hwc.shape[2] == 3 else pixels_hwc[..., 0]
