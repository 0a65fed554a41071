"""Lines, layers and bars as SVG that needs nothing else.

Colours are the page's, by number: ``var(--c0)`` to ``var(--c9)`` are told apart, ``var(--c10)`` to ``var(--c14)`` are a
scale from little to much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
DISTINCT = 10
MOST_POINTS = 200
MOST_LETTERS = 16
"""Of a bar's name: more would not stand beside it."""

Place = Callable[[float, float], tuple[float, float]]
"""x and y of the data to those of the drawing."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Bar:
    """One bar: its name, and its parts from the left, each a number and a colour. Negative parts go to the left."""

    name: str
    parts: tuple[tuple[float, int], ...]


def line_chart(lines: Sequence[Line], x_label: str, *, unit_square: bool = False) -> Markup:
    """Lines over a common x, from 0 up to the largest value, or both from 0 to 1; empty without a point."""
    lines = [_thinned(line) for line in lines if len(line.xs)]
    if not lines:
        return Markup()
    least, right = min(min(line.xs) for line in lines), max(max(line.xs) for line in lines)
    top = max(max(line.ys) for line in lines)
    frame, place = _axes(0.0, 1.0, 1.0, x_label) if unit_square else _axes(least, right, top, x_label)
    paths = []
    for line in lines:
        points = " L".join(_at(*place(x, y)) for x, y in zip(line.xs, line.ys, strict=True))
        dot = _dot(*place(line.xs[0], line.ys[0]), line.colour) if len(line.xs) == 1 else ""
        title = f"<title>{escape(line.name)}</title>"
        paths.append(f'<path class="line" style="stroke:{_colour(line.colour)}" d="M{points}">{title}</path>{dot}')
    return _drawing(frame + paths, HEIGHT)


def layer_chart(layers: Sequence[Line], x_label: str) -> Markup:
    """Shares of a whole, one layer on the other, all over the same x: each point's values are divided by their sum.

    A single point fills the width.
    """
    thinned = [_thinned(layer) for layer in layers if len(layer.xs)]
    if not thinned:
        return Markup()
    points = thinned[0].xs
    totals = [max(sum(column), 1e-12) for column in zip(*(layer.ys for layer in thinned), strict=True)]
    frame, place = _axes(points[0], points[-1], 1.0, x_label)
    below, parts = [0.0] * len(points), []
    for layer in thinned:
        above = [low + y / total for low, y, total in zip(below, layer.ys, totals, strict=True)]
        upper, lower = ([place(x, y) for x, y in zip(points, ys, strict=True)] for ys in (above, below))
        if len(points) == 1:  # it has no width of its own
            upper, lower = ([start, (WIDTH - RIGHT, start[1])] for (start,) in (upper, lower))
        d = " L".join(_at(*point) for point in (*upper, *reversed(lower)))
        title = f"<title>{escape(layer.name)}</title>"
        parts.append(f'<path style="fill:{_colour(layer.colour)}" d="M{d}Z">{title}</path>')
        below = above
    return _drawing(parts + frame, HEIGHT)


def bar_chart(bars: Sequence[Bar], unit: str) -> Markup:
    """Bars from 0 to the right, names and sums beside them."""
    if not bars:
        return Markup()
    row, left, right = 22, 110, 64
    height = row * len(bars) + 6
    highest = max(max(_reach(bar, 1), 0) for bar in bars)
    lowest = min(min(_reach(bar, -1), 0) for bar in bars)
    scale = (WIDTH - left - right) / max(highest - lowest, 1e-12)
    zero = left - lowest * scale
    parts = [f'<path class="axis" d="M{zero:.1f},0V{height}"/>']
    for i, bar in enumerate(bars):
        y, plus, minus = 4 + row * i, zero, zero
        for value, colour in bar.parts:
            length = abs(value) * scale
            minus -= length if value < 0 else 0
            x = plus if value >= 0 else minus
            plus += length if value >= 0 else 0
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="15" style="fill:{_colour(colour)}"/>')
        parts.append(_text(left - 8 if lowest == 0 else minus - 6, y + 12, bar.name, "end", MOST_LETTERS))
        total = sum(value for value, _ in bar.parts)
        parts.append(_text(plus + 5, y + 12, f"{_number(total, 2)}{unit}", "start"))
    return _drawing(parts, height)


def _reach(bar: Bar, sign: int) -> float:
    return sum(value for value, _ in bar.parts if value * sign > 0)


def _axes(left: float, right: float, top: float, x_label: str) -> tuple[list[str], Place]:
    """Grid and labels, and where points of the data go."""
    step = nice_step(top / 4)
    ceiling = max(math.ceil(top / step - 1e-9), 1) * step
    span = max(right - left, 1e-12)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / span
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(y, ceiling) / ceiling

    parts = []
    for i in range(round(ceiling / step) + 1):
        _, y = place(left, i * step)
        parts.append(f'<path class="axis" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, _number(i * step, 3), "end"))
    for tick in _ticks(left, right):
        across, y = place(tick, 0)
        parts.append(_text(across, y + 14, _number(tick, 6), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
    return parts, place


def _ticks(left: float, right: float) -> list[float]:
    """Round numbers from left to right; the one number where they are the same."""
    if right <= left:
        return [left]
    step = nice_step((right - left) / 4)
    return [i * step for i in range(math.ceil(left / step - 1e-9), math.floor(right / step + 1e-9) + 1)]


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less; 1 for 0 and less."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _thinned(line: Line) -> Line:
    """Means of neighbours where there are more points than a chart can show."""
    run = -(-len(line.xs) // MOST_POINTS)
    if run <= 1:
        return line
    cuts = range(0, len(line.xs), run)
    xs, ys = ([sum(v[i : i + run]) / len(v[i : i + run]) for i in cuts] for v in (line.xs, line.ys))
    return Line(line.name, xs, ys, line.colour)


def _drawing(parts: Sequence[str], height: int) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>')


def _dot(x: float, y: float, colour: int) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{_colour(colour)}"/>'


def _colour(number: int) -> str:
    return f"var(--c{number})"


def _at(x: float, y: float) -> str:
    return f"{x:.1f},{y:.1f}"


def _number(value: float, digits: int) -> str:
    """So many digits, and of a large number all before the point: 123, not 1.2e+02."""
    text = f"{value:.{digits}g}"
    return str(round(value)) if "e+" in text else text


def _text(x: float, y: float, text: str, anchor: str, most: int | None = None) -> str:
    """A text; of one with more letters the end, where names differ, and the whole when it is pointed at."""
    shown = text if most is None or len(text) <= most else f"\u2026{text[1 - most :]}"
    title = "" if shown == text else f"<title>{escape(text)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}{title}</text>'
