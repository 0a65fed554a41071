"""Average precision and errors of evaluated runs, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohem.evaluation.error_kinds import KINDS, NO_ERROR
from ohem.evaluation.resampling import draw_images, resampled_ap
from ohem.report.log_charts import Chart
from ohem.report.runs import Measured, ReportedRun
from ohem.report.svg import Bar, Line, bar_chart, line_chart

DRAWS = 200


@dataclass(frozen=True)
class Difference:
    """To the first run, in AP points, with its 95 % interval over the test images."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ApRow:
    """AP of one class, or the mean, in points.

    Attributes:
        name: of the class.
        objects: to be found, of each run's data.
        ap: of each evaluated run; nan where there was nothing to find.
        differences: of each evaluated run; None for the first and for runs evaluated on other images.
    """

    name: str
    objects: int
    ap: tuple[float, ...]
    differences: tuple[Difference | None, ...]


def ap_rows(runs: Sequence[ReportedRun]) -> list[ApRow]:
    """A row for each class, and the mean first; 11-point AP at IoU 0.5."""
    measured = [run.measured for run in runs if run.measured is not None]
    if not measured:
        return []
    base = measured[0]
    draws = [_draws(one) if _alike(one, base) and len(measured) > 1 else None for one in measured]
    rows = []
    for i, name in enumerate(("mean", *base.voc.classes)):
        ap = [100 * (one.voc.mean_ap if i == 0 else float(one.voc.ap[i - 1])) for one in measured]
        objects = int(base.voc.num_gt.sum() if i == 0 else base.voc.num_gt[i - 1])
        differences = [_difference(ap, draws, i, place) for place in range(len(measured))]
        rows.append(ApRow(name, objects, tuple(ap), tuple(differences)))
    return rows


def _difference(
    ap: Sequence[float], draws: Sequence[NDArray[np.float64] | None], row: int, place: int
) -> Difference | None:
    mine, base = draws[place], draws[0]
    if place == 0 or mine is None or base is None or np.isnan(ap[place] - ap[0]):
        return None
    low, high = np.nanpercentile(100 * (mine[row] - base[row]), [2.5, 97.5])
    return Difference(ap[place] - ap[0], float(low), float(high))


def _alike(one: Measured, base: Measured) -> bool:
    return [record.id for record in one.dataset.records] == [record.id for record in base.dataset.records]


def _draws(measured: Measured) -> NDArray[np.float64]:
    """(1 + C, draws): mean AP and AP of each class in each draw of test images."""
    found, objects, errors = measured.found, measured.objects, measured.errors
    weights = draw_images(len(measured.dataset), DRAWS)
    to_find = ~(objects.difficult | objects.crowd)
    order = np.argsort(-found.scores, kind="stable")
    counted = order[(errors.right | (errors.kinds != NO_ERROR))[order]]
    rows = []
    for label in range(1, len(measured.dataset.classes) + 1):
        d, g = counted[found.labels[counted] == label], (objects.labels == label) & to_find
        rows.append(resampled_ap(found.images[d], errors.right[d], objects.images[g], weights))
    ap = np.array(rows)
    has = ~np.isnan(ap)
    mean = np.where(has, ap, 0.0).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
    return np.vstack([mean, ap])


def precision_recall_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A chart for each class that has objects to find, a line for each run."""
    measured = [(run, run.measured) for run in runs if run.measured is not None]
    charts = []
    for c, name in enumerate(measured[0][1].voc.classes if measured else ()):
        lines = [
            Line(run.name, one.voc.curves[c].recall.tolist(), one.voc.curves[c].precision.tolist(), run.colour)
            for run, one in measured
            if one.voc.num_gt[c]
        ]
        values = " / ".join(f"{100 * one.voc.ap[c]:.1f}" for _, one in measured if one.voc.num_gt[c])
        charts.append(Chart(f"{name}: {values}", line_chart(lines, "recall", unit_square=True)))
    return [chart for chart in charts if chart.drawing]


def error_chart(runs: Sequence[ReportedRun]) -> Chart:
    """What each kind of error costs in mean AP; a bar for each kind and run, the first of a kind with its name."""
    bars = []
    for kind in KINDS:
        gains = [(run.measured.gains[kind], run.colour) for run in runs if run.measured is not None]
        known = [(100 * gain, colour) for gain, colour in gains if not np.isnan(gain)]
        bars += [Bar("" if i else kind, (part,)) for i, part in enumerate(known)]
    return Chart("gain in mean AP if it were mended, points", bar_chart(bars, ""))


def error_rows(runs: Sequence[ReportedRun]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Kind, and for each evaluated run how many there are and the gain in mean AP points."""
    rows = []
    for kind, name in enumerate(KINDS):
        cells = []
        for run in runs:
            if run.measured is not None:
                errors = run.measured.errors
                count = errors.missed.sum() if name == "missed" else np.sum(errors.kinds == kind)
                cells.append((int(count), 100 * run.measured.gains[name]))
        rows.append((name, cells))
    return rows
