"""Finished results as the paper's tables: its number, ours, the difference."""

import shlex
from dataclasses import dataclass

from ohem.studies.book import Book, result_name
from ohem.studies.plan import Row, Study, Table
from ohem.studies.statistics import Interval, interval

METRIC_NAMES = {
    "map50": "mAP",
    "map70": "mAP at 0.7",
    "loss_test": "loss, all test RoIs",
    "loss_train": "loss, all training RoIs",
}


@dataclass(frozen=True)
class Cell:
    """One number of a row.

    Attributes:
        metric: its column.
        paper: the paper's; None where it has none.
        ours: mean and 95 % interval over seeds; None where nothing is finished.
        seeds: how many are.
        gain: ours minus the table's base or the row above, over the seeds that both have; None where there is no base,
            or it is the row.
    """

    metric: str
    paper: float | None
    ours: Interval | None
    seeds: int
    gain: Interval | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


@dataclass(frozen=True)
class FilledRow:
    """A row with its numbers, or the reason why there are none."""

    row: Row
    cells: tuple[Cell, ...]
    missing: str = ""


@dataclass(frozen=True)
class FilledTable:
    """A table with its numbers."""

    table: Table
    metrics: tuple[str, ...]
    rows: tuple[FilledRow, ...]

    @property
    def base_label(self) -> str:
        """Of the row that the others are compared with; empty where there is none."""
        if any(r.row.against_above for r in self.rows):
            return "the line above it"
        return next((r.row.label for r in self.rows if (r.row.training, r.row.use) == self.table.base), "")


def fill(table: Table, book: Book, study: Study) -> FilledTable:
    """A table from what is finished; the rest of it says so."""
    classes = next((found for row in table.rows if (found := book.classes(row.training))), [])
    metrics = tuple(
        column
        for metric in table.metrics
        for column in ([f"ap:{name}" for name in classes] if metric == "ap:*" else [metric])
    )
    rows = []
    for above, row in zip((None, *table.rows), table.rows, strict=False):
        base = (above.training, above.use) if above and row.against_above else table.base
        rows.append(_fill_row(row, metrics, base, book, study))
    return FilledTable(table, metrics, tuple(rows))


def _fill_row(row: Row, metrics: tuple[str, ...], base: tuple[str, str] | None, book: Book, study: Study) -> FilledRow:
    cells, own = [], (row.training, row.use)
    for metric in metrics:
        values = list(book.values(row.training, metric, row.use).values())
        gains = book.differences(own, base, metric) if base and base != own else []
        cells.append(
            Cell(
                metric,
                row.paper.get(metric),
                interval(values) if values else None,
                len(values),
                interval(gains) if gains else None,
            )
        )
    return FilledRow(row, tuple(cells), "" if any(cell.seeds for cell in cells) else _why_empty(row, book, study))


def _why_empty(row: Row, book: Book, study: Study) -> str:
    data = study.trainings[row.training].data
    if data not in study.data:
        return f"not run: no data given for {data!r}"
    trained = next((s for s in book.seeds if book.results.get(result_name(row.training, s))), None)
    server = study.data[data].server
    if server and trained is not None:
        run = book.results.folder.parent / "runs" / result_name(row.training, trained)
        return (
            f"judged by the server: {shlex.join(['ohem', 'submit', str(run), server, *study.uses[row.use]])} --data ..."
        )
    return "not run yet"


def metric_name(metric: str) -> str:
    """A column's heading."""
    return METRIC_NAMES.get(metric, metric.partition(":")[2] or metric)
