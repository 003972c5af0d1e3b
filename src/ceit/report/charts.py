"""Charts as SVG for the page. Colours come from the page's style sheet, so that they suit a dark screen and paper."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from ceit.evaluation.scores import ConfidenceBin

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 38
_POINTS = 400  # of a line at most
_TICKS = 5


class Line(NamedTuple):
    """Values over a common axis; ``style`` is one of the page's classes ``s1`` to ``s3``, ``dashed`` tells them apart
    without colour."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "s1"
    dashed: bool = False


class Frame:
    """The drawing area of a chart, with axes from the lowest to the highest value."""

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        x_label: str,
        y_label: str,
        whole: bool = False,
        most: float = math.inf,
    ) -> None:
        """``whole``: the horizontal axis counts something. ``most``: what the vertical one cannot be above."""
        self.x_low, self.x_high = _range(xs)
        self.y_ticks = [tick for tick in _ticks(*_range(ys, from_zero=True)) if tick <= most]
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]
        self.parts: list[Markup] = []
        y_numbers = _numbers(self.y_ticks)
        for tick, number in zip(self.y_ticks, y_numbers, strict=True):
            y = self.y(tick)
            self._add('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>', _LEFT, WIDTH - _RIGHT, y, y)
            self._add('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>', _LEFT - 6, y + 4, number)
        x_ticks = _ticks(self.x_low, self.x_high)
        for tick, number in zip(x_ticks, _numbers(x_ticks), strict=True):
            if self.x_low <= tick <= self.x_high and not (whole and tick % 1):
                place = self.x(tick), HEIGHT - _BOTTOM + 16
                self._add('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>', *place, number)
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        self._add('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>', middle, HEIGHT - 4, x_label)
        turned = '<text class="axis" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
        self._add(turned, (HEIGHT - _BOTTOM + _TOP) / 2, y_label)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)

    def _add(self, template: str, *values: object) -> None:
        self.parts.append(Markup(template).format(*values))

    def line(self, line: Line) -> None:
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in _thinned(line.xs, line.ys))
        self._add('<polyline class="line {}" points="{}"{}/>', line.style, points, _dash(line))
        if len(line.xs) == 1:  # which a line does not show
            place = self.x(line.xs[0]), self.y(line.ys[0])
            self._add('<circle class="line {}" cx="{:.1f}" cy="{:.1f}" r="3"/>', line.style, *place)

    def bar(self, left: float, right: float, height: float, title: str, style: str = "b1") -> None:
        """From the axis up to a height, with a title that a pointer shows."""
        x, y = self.x(left) + 1, self.y(height)
        box = x, y, max(1.0, self.x(right) - x - 1), max(0.0, self.y(self.y_low) - y)
        template = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
        self._add(template, style, *box, title)

    def svg(self, title: str) -> Markup:
        """The chart; the title is for who cannot see it."""
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
        return head + Markup("").join(self.parts) + Markup("</svg>")


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, most: float = math.inf) -> Markup:
    """Lines over an axis that counts, and what each is below them. Points that are not finite are left out.

    ``most`` is as of ``Frame``.
    """
    lines = [line for line in map(_finite, lines) if line.xs]
    xs, ys = [x for line in lines for x in line.xs], [y for line in lines for y in line.ys]
    frame = Frame(xs, ys, x_label, y_label, whole=True, most=most)
    for line in lines:
        frame.line(line)
    keys = Markup("").join(map(_key, lines))
    return frame.svg(title) + Markup("<p class='keys'>{}</p>").format(keys)


def _key(line: Line) -> Markup:
    """What a line looks like, and its name."""
    sample = Markup('<polyline class="line {}" points="0,4 24,4"{}/>').format(line.style, _dash(line))
    return Markup('<span class="key"><svg viewBox="0 0 24 8" aria-hidden="true">{}</svg>{}</span>').format(
        sample, line.name
    )


def _dash(line: Line) -> Markup:
    return Markup(' stroke-dasharray="5 4"') if line.dashed else Markup("")


def reliability_chart(title: str, bins: Sequence[ConfidenceBin]) -> Markup:
    """Bars of accuracy over confidence; the diagonal was promised."""
    frame = Frame([0.0, 1.0], [0.0, 1.0], "probability of the answer", "share of right answers")
    for one in bins:
        told = f"{one.images:,} images: {100 * one.confidence:.0f} % promised, {100 * one.accuracy:.0f} % right"
        frame.bar(one.above, one.up_to, one.accuracy, told)
    frame.line(Line("", [0.0, 1.0], [0.0, 1.0], "s2", dashed=True))
    return frame.svg(title)


def bar_chart(title: str, x_label: str, y_label: str, heights: Sequence[float]) -> Markup:
    """A bar for each number from 1 on."""
    frame = Frame([0.5, len(heights) + 0.5], [0.0, max(heights)], x_label, y_label)
    for number, height in enumerate(heights, 1):
        frame.bar(number - 0.4, number + 0.4, height, f"{number}: {height:.3f}")
    return frame.svg(title)


def _finite(line: Line) -> Line:
    kept = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return line._replace(xs=[x for x, _ in kept], ys=[y for _, y in kept])


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """At most ``_POINTS`` points: of each stretch the mean."""
    stretch = -(-len(xs) // _POINTS) or 1
    parts = range(0, len(xs), stretch)
    return [
        (sum(xs[i : i + stretch]) / len(xs[i : i + stretch]), sum(ys[i : i + stretch]) / len(ys[i : i + stretch]))
        for i in parts
    ]


def _range(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """From the lowest to the highest; one value, or equal ones, lie in the middle, which may be that from zero on."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if not math.isclose(low, high):
        return low, high
    return (0.0, 2 * low) if from_zero and low > 0 else (low - 0.5, low + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a range, some five of them."""
    rough = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _numbers(ticks: Sequence[float]) -> list[str]:
    """The ticks in as few digits as tell neighbours apart, four at least."""
    decimals = -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9) if len(ticks) > 1 else 0

    def number(value: float) -> str:
        if abs(value) >= 1000:
            return f"{value:,.{max(0, decimals)}f}"
        digits = 1 + math.floor(math.log10(abs(value))) + decimals if value else 0
        return f"{value:.{max(4, digits)}g}"

    return list(map(number, ticks))
