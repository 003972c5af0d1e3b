"""Bars of what ``ceit benchmark`` measured, as a PNG. Needs the extra ``viz``.

Colours follow Okabe and Ito's; no meaning hangs on colour alone, since every bar is labelled with its backend and
precision.
"""

from pathlib import Path
from typing import Any

from ceit.plots import STYLE as PLOT_STYLE
from ceit.plots import new_figure

COLOURS = {"float32": "#6B6B6B", "bf16": "#0072B2", "int8": "#E69F00", "int8+bf16": "#00795A"}
TITLES = {"inference": "Inference", "train": "Training step"}
_BAR = 0.27  # inches a bar
STYLE: dict[Any, Any] = {**PLOT_STYLE, "font.size": 9, "axes.grid": False, "ytick.color": "#333333"}


def draw_bars(result: dict[str, Any], path: Path) -> Path:
    """Draws images a second at the batch size nearest to 16, models apart, the fastest arm of each first; beside each
    bar the figure and how many times the baseline it is, on the bar the quartiles. Training steps have a panel below.

    Raises: ValueError if nothing was measured that could be drawn.
    """
    panels = [(kind, *_bars(result, kind)) for kind in TITLES]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise ValueError("nothing to draw: no arm has an inference or training figure")
    rows = [sum(len(bars) + 1 for _, bars in groups) for _, _, groups in panels]
    with new_figure(path, _BAR * sum(rows) + 0.9 * len(panels), STYLE) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=rows)[:, 0]
        for axis, (kind, title, groups) in zip(axes, panels, strict=True):
            _draw_panel(axis, groups)
            axis.set_title(f"{TITLES[kind]}, {title}: images a second")
        threads, processor = result["machine"]["threads"], result["machine"]["processor"]
        axes[-1].set_xlabel(
            f"{threads} thread{'s' if threads > 1 else ''} of {processor}; medians, the line goes from the first to "
            f"the third quartile\nx: times as fast as {result['baseline']}",
            fontsize=8,
        )
    return path


def has_bars(result: dict[str, Any]) -> bool:
    """Whether anything was measured that can be drawn."""
    return any(_bars(result, kind)[1] for kind in TITLES)


def _bars(result: dict[str, Any], kind: str) -> tuple[str, list[tuple[str, list[dict[str, Any]]]]]:
    """The panel's batch, in words, and for every model its arms, the fastest first."""
    models: dict[str, list[dict[str, Any]]] = {}
    batches: set[str] = set()
    for row in result["arms"]:
        measured = {batch: found for batch, found in row[kind].items() if "images_per_second" in found}
        if not measured:
            continue
        batch = min(measured, key=lambda size: abs(int(size) - 16))
        batches.add(batch)
        models.setdefault(row["model"], []).append({"row": row, "found": measured[batch], "batch": int(batch)})
    for arms in models.values():
        arms.sort(key=lambda arm: -arm["found"]["images_per_second"])
    return f"batch {' or '.join(sorted(batches, key=int))}", list(models.items())


def _draw_panel(axis: Any, groups: list[tuple[str, list[dict[str, Any]]]]) -> None:
    most = max(1000 * arm["batch"] / arm["found"]["milliseconds"]["p25"] for _, arms in groups for arm in arms)
    place, places, labels = 0, [], []
    for model, arms in groups:
        axis.text(0, place, f" {model}", va="center", ha="left", fontweight="bold", fontsize=9, clip_on=False)
        place += 1
        for arm in arms:
            row, found = arm["row"], arm["found"]
            rate, spread = found["images_per_second"], found["milliseconds"]
            axis.barh(place, rate, height=0.72, color=COLOURS.get(row["precision"], "#333333"))
            quartiles = [1000 * arm["batch"] / spread[name] for name in ("p75", "p25")]
            axis.plot(quartiles, [place, place], color="black", linewidth=1.2, solid_capstyle="butt")
            times = found["times_baseline"]
            text = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}") + (f"   {times['median']:.2f}x" if times else "")
            axis.text(max(rate, quartiles[1]) + 0.01 * most, place, text, va="center", ha="left", fontsize=8.5)
            places.append(place)
            labels.append(f"{row['backend']} {row['precision']}")
            place += 1
    axis.set_yticks(places, labels)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.set_xlim(0, 1.18 * most)
    axis.set_ylim(place - 0.4, -0.6)
