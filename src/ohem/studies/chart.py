"""Lines on axes, as SVG that needs nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from ohem.report.svg import nice_step

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 170, 16, 44
COLOURS = ("#8a8f98", "#3f7fbf", "#d9822b", "#c2364f")

Point = tuple[float, Sequence[float]]
"""x, and the values of all seeds there."""

Place = Callable[[float, float], str]
"""x and y of the data to ``x,y`` of the drawing."""


def line_chart(lines: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """One line a name through the means, with the range over seeds behind it.

    Raises:
        ValueError: nothing to draw.
    """
    points = [(x, value) for line in lines.values() for x, values in line for value in values]
    if not points:
        raise ValueError("lines: found no points; allowed: at least one")
    right = max(x for x, _ in points)
    top = max(y for _, y in points)
    step = nice_step(top / 5)
    ceiling = math.ceil(top / step) * step

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / right
        return f"{across:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / ceiling:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="12">']
    for i in range(round(ceiling / step) + 1):
        (x0, y), (x1, _) = place(0, i * step).split(","), place(right, i * step).split(",")
        parts.append(f'<path d="M{x0},{y}H{x1}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(_text(LEFT - 6, float(y) + 4, f"{i * step:.3g}", "end"))
    ticks = [(float(place(x, 0).split(",")[0]), f"{x:g}") for x in sorted({x for x, _ in points})]
    parts += [_text(across, HEIGHT - BOTTOM + 18, text, "middle") for across, text in ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    parts.append(f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, y_label, "middle")}</g>')
    for i, (name, line) in enumerate(lines.items()):
        if line:
            parts += _line(name, line, COLOURS[i % len(COLOURS)], i, place)
    return "".join([*parts, "</svg>"])


def _line(name: str, line: Sequence[Point], colour: str, row: int, place: Place) -> list[str]:
    mean = [place(x, sum(values) / len(values)) for x, values in line]
    band = [place(x, max(v)) for x, v in line] + [place(x, min(v)) for x, v in reversed(line)]
    y = TOP + 14 + 20 * row
    dots = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in mean)
    return [
        f'<path d="M{" L".join(band)}Z" fill="{colour}" fill-opacity=".15"/>',
        f'<path d="M{" L".join(mean)}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}',
        f'<path d="M{WIDTH - RIGHT + 12},{y - 4}h20" stroke="{colour}" stroke-width="2"/>',
        _text(WIDTH - RIGHT + 38, y, name, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'
