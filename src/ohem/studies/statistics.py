"""Statistics of paired runs: two arms, the same seeds.

A seed decides the initial weights, the order of the images and their mirroring for both arms alike, so each seed gives
one difference, and the differences are what is tested: Student's t on their mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; ``low`` and ``high`` are NaN where there is a single value."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.text()

    def text(self, *, signed: bool = True) -> str:
        """Mean and ends; a difference has a sign, a ratio has not."""
        ends = [self.low, self.high] if not math.isnan(self.low) else []
        digits = 2 if max(map(abs, [self.mean, *ends])) >= 0.1 else 4  # mAP in points, or losses
        mean, *others = (f"{value:{'+' if signed else ''}.{digits}f}" for value in [self.mean, *ends])
        return f"{mean} [{', '.join(others)}]" if others else mean


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of K values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values: found none; allowed: one or more")
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def p_greater(values: Sequence[float], than: float = 0.0) -> float:
    """One-sided p-value of the hypothesis that the mean of the values is greater.

    1 where there are fewer than two, or all are equal: they do not say how much chance is in them.
    """
    if len(values) < 2:
        return 1.0
    spread = stdev(values) / math.sqrt(len(values))
    if spread == 0:
        return 1.0
    return float(stats.t.sf((mean(values) - than) / spread, len(values) - 1))


def p_less(values: Sequence[float], than: float = 0.0) -> float:
    """One-sided p-value of the hypothesis that the mean of the values is less."""
    return p_greater([-value for value in values], -than)


def p_within(values: Sequence[float], margin: float) -> float:
    """Equivalence, by two one-sided tests: p-value of the hypothesis that the mean lies within +-margin of 0."""
    return max(p_greater(values, -margin), p_less(values, margin))


def p_outside(values: Sequence[float], margin: float) -> float:
    """p-value of the hypothesis that the mean lies outside +-margin; twice the smaller of two one-sided tests."""
    return min(1.0, 2 * min(p_greater(values, margin), p_less(values, -margin)))


def p_columns_differ(rows: Sequence[Sequence[float]]) -> float:
    """Whether the columns' means differ, each row being one seed: the F test of a two-way layout without replication.

    Args:
        rows: K seeds of C values each.
    """
    count, width = len(rows), len(rows[0]) if rows else 0
    if count < 2 or width < 2:
        return 1.0
    grand = mean(value for row in rows for value in row)
    columns = [mean(row[c] for row in rows) for c in range(width)]
    lines = [mean(row) for row in rows]
    between = count * sum((column - grand) ** 2 for column in columns) / (width - 1)
    residual = sum((rows[r][c] - lines[r] - columns[c] + grand) ** 2 for r in range(count) for c in range(width))
    freedom = (count - 1) * (width - 1)
    if residual == 0:
        return 1.0
    return float(stats.f.sf(between / (residual / freedom), width - 1, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: comparing each with a level keeps the chance of any false claim below that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
