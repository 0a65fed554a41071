"""Charts of a run's log: how it learned, what it mined, what a step cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ohem.report.runs import ReportedRun
from ohem.report.svg import DISTINCT, Bar, Line, bar_chart, layer_chart, line_chart

Record = Mapping[str, Any]

MOST_CLASSES = 8
BINS = 30
IOU_BANDS = (
    ("below 0.1", 0, 1),
    ("0.1 to 0.3", 1, 3),
    ("0.3 to 0.5", 3, 5),
    ("0.5 to 0.7", 5, 7),
    ("0.7 and more", 7, 10),
)
SIZES = ("small (below 32\u00b2)", "medium", "large (above 96\u00b2)")
PARTS = ("data", "ranking", "training", "measuring")
LEARNING = (
    ("mean loss over all RoIs", "loss_all_rois", 1.0),
    ("mean loss over the selected RoIs", "loss_selected_rois", 1.0),
    ("foreground among the selected, %", "foreground_share", 100.0),
    ("learning rate", "lr", 1.0),
)


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, the names of its colours, and a sentence about it."""

    title: str
    drawing: Markup
    legend: tuple[tuple[str, int], ...] = ()


def learning_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Losses, share of foreground, learning rate, and the metric on the validation split; a line for each run."""
    charts = [
        Chart(title, line_chart(_lines(runs, "train", field, factor), "iteration")) for title, field, factor in LEARNING
    ]
    for metric in sorted({run.recipe.evaluation.metric for run in runs}):
        lines = _lines(runs, "validation", metric, 100.0)
        if any(len(line.xs) > 1 for line in lines):
            charts.append(Chart(f"validation, {metric}, %", line_chart(lines, "iteration")))
    return [chart for chart in charts if chart.drawing]


def _lines(runs: Sequence[ReportedRun], kind: str, field: str, factor: float) -> list[Line]:
    lines = []
    for run in runs:
        points = [r for r in run.log if r["kind"] == kind and r.get(field) is not None]
        ys = [factor * r[field] for r in points]
        lines.append(Line(run.name, [r["iteration"] for r in points], ys, run.colour))
    return lines


def mined_charts(run: ReportedRun) -> list[Chart]:
    """Classes, overlaps and sizes of the RoIs that one run trained on, over time; none for an old run's log."""
    windows = [record for record in run.windows() if "mined" in record]
    bins = _binned(windows)
    if not bins:
        return []
    xs = [last["iteration"] for last in (group[-1] for group in bins)]
    labels, iou, sizes = ([_summed(group, name) for group in bins] for name in ("labels", "iou", "sizes"))
    classes = _frequent(labels, run.classes)
    bands = [(name, [sum(column[low:high]) for column in iou]) for name, low, high in IOU_BANDS]
    by_size = [(name, [column[i] for column in sizes]) for i, name in enumerate(SIZES)]
    return [
        _layers("classes of the foreground", xs, classes, range(len(classes))),
        _layers("overlap with an object (IoU)", xs, bands, range(DISTINCT, DISTINCT + 5)),
        _layers("size in the network's input", xs, by_size, range(DISTINCT, DISTINCT + 5, 2)),
    ]


def return_chart(runs: Sequence[ReportedRun]) -> Chart:
    """How many of an image's RoIs are the same as when it came last, over the images that the log follows."""
    lines = [Line(run.name, *returned_shares(run.windows()), run.colour) for run in runs]
    return Chart("RoIs that trained the last time too, %", line_chart(lines, "iteration"))


def returned_shares(windows: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Iterations, and the mean share, in %, of RoIs that trained the last time their image came, too."""
    last: dict[Any, set[int]] = {}
    xs, ys = [], []
    for group in _binned(windows):
        shares = []
        for image, rows in (entry for record in group for entry in record.get("mined", {}).get("followed", [])):
            if last.get(image) and rows:
                shares.append(len(last[image].intersection(rows)) / len(rows))
            last[image] = set(rows)
        if shares:
            xs.append(float(group[-1]["iteration"]))
            ys.append(100 * sum(shares) / len(shares))
    return xs, ys


def cost_chart(runs: Sequence[ReportedRun]) -> Chart:
    """Seconds of a step in their parts, a bar for each run."""
    bars = [Bar(run.name, tuple((seconds(run, part), i + 2) for i, part in enumerate(PARTS))) for run in runs]
    return Chart("seconds a step", bar_chart(bars, " s"), tuple((part, i + 2) for i, part in enumerate(PARTS)))


def seconds(run: ReportedRun, part: str) -> float:
    """The median over the log of a part of a step; 0 without a log."""
    values = sorted(record.get("seconds", {}).get(part, 0.0) for record in run.windows())
    return float(values[len(values) // 2]) if values else 0.0


def _binned(windows: Sequence[Record]) -> list[Sequence[Record]]:
    run = max(-(-len(windows) // BINS), 1)
    return [windows[i : i + run] for i in range(0, len(windows), run)]


def _summed(group: Sequence[Record], name: str) -> list[int]:
    return [sum(column) for column in zip(*(record["mined"][name] for record in group), strict=True)]


def _frequent(labels: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The classes mined most, by name, and all others together."""
    totals = {label: sum(column[label] for column in labels) for label in range(1, len(classes) + 1)}
    top = sorted(sorted(totals, key=lambda label: -totals[label])[:MOST_CLASSES])
    layers = [(classes[label - 1], [column[label] for column in labels]) for label in top]
    others = [sum(column[1:]) - sum(column[label] for label in top) for column in labels]
    return [*layers, ("others", others)] if any(others) else layers


def _layers(
    title: str, xs: Sequence[float], layers: Sequence[tuple[str, Sequence[float]]], colours: Sequence[int]
) -> Chart:
    lines = [Line(name, xs, ys, colour) for (name, ys), colour in zip(layers, colours, strict=True)]
    return Chart(title, layer_chart(lines, "iteration"), tuple((line.name, line.colour) for line in lines))
