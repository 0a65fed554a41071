"""What a study found, as text, JSON and one HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ohem.files import write_atomically
from ohem.studies.book import Book, same_machine
from ohem.studies.chart import line_chart
from ohem.studies.claims import LEVEL, Judgement, judge_all
from ohem.studies.cost import FORMS
from ohem.studies.paper import TABLE2
from ohem.studies.runner import FIGURE3
from ohem.studies.tables import Cell, FilledTable, fill, metric_name
from ohem.studies.workshop import Workshop

CURVE_NAMES = {"frcn_bg0": "bg_lo = 0", "frcn": "bg_lo = 0.1", "all": "all RoIs", "ohem": "OHEM"}
RULE = (
    f"A verdict needs p below {LEVEL:g} after Holm's correction for the number of claims, for the claim or for its"
    " opposite; otherwise the evidence is not enough. Differences are paired by seed; p as printed is not corrected."
)
TEXT_HEADER = ("", "paper", "ours", "95 % interval", "seeds", "difference")
COST_HEADER = ("", "s/iteration", "ranking", "time ratio", "paper's", "peak GB", "ratio", "paper's")


@dataclass(frozen=True)
class Report:
    """Everything that a page shows."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[FilledTable, ...]
    judgements: tuple[Judgement, ...]
    costs: tuple[tuple[str, ...], ...]
    curves: Mapping[str, Sequence[tuple[int, list[float]]]]
    not_run: tuple[tuple[str, str], ...]


def make_report(workshop: Workshop, target: str, seeds: int, not_run: Mapping[str, str]) -> Report:
    """Read what is finished of a target."""
    study, book = workshop.study, Book(workshop.results, range(seeds))
    everything = target == "claims"
    tables = [t for t in study.tables.values() if t.name == target or (everything and t.name.startswith("table"))]
    curves = {CURVE_NAMES[name]: book.curve(name) for name in FIGURE3} if everything or target == "figure3" else {}
    return Report(
        f"{target.capitalize()} of the OHEM paper, scale {study.scale}",
        _facts(book, workshop),
        tuple(fill(table, book, study) for table in tables),
        tuple(judge_all(book)) if everything else (),
        tuple(cost_rows(book, study.networks)) if everything or target == "table2" else (),
        {name: points for name, points in curves.items() if points},
        tuple(not_run.items()),
    )


def _facts(book: Book, workshop: Workshop) -> tuple[tuple[str, str], ...]:
    files = sorted(workshop.results.folder.glob("*.json"))
    results = [r for path in files if (r := workshop.results.get(path.stem))]
    dates = sorted({r["date"] for r in results})
    machines = sorted({f"{r['machine']['cpu_count']} x {r['machine']['processor']}" for r in results})
    hours = sum(r.get("job_seconds", 0) for r in results) / 3600
    return (
        ("seeds", str(len(book.seeds))),
        ("finished jobs", f"{len(results)}, {hours:.1f} process hours"),
        ("machines", ", ".join(machines) or "-"),
        ("dates", f"{dates[0]} to {dates[-1]}" if dates else "-"),
    )


def cost_rows(book: Book, networks: Sequence[str]) -> list[tuple[str, ...]]:
    """Table 2: one line for each network and form that was measured, with the ratio to FRCN and the paper's."""
    rows: list[tuple[str, ...]] = []
    for network in networks:
        base = book.results.get(f"cost-{network}-frcn")
        for form in FORMS:
            found, paper = book.results.get(f"cost-{network}-{form}"), TABLE2[network]
            if found is None:
                continue
            paired = base is not None and same_machine(found, base)
            ratios = [f"{found[k] / base[k]:.2f}" if base and paired else "-" for k in ("seconds", "memory_gb")]
            theirs = [f"{paper[form][i] / paper['frcn'][i]:.2f}" if form in paper else "-" for i in (0, 1)]
            rows.append(
                (
                    f"{network}, {form}",
                    f"{found['seconds']:.2f}",
                    f"{found['ranking']:.2f}",
                    ratios[0],
                    theirs[0],
                    f"{found['memory_gb']:.2f}",
                    ratios[1],
                    theirs[1],
                )
            )
    return rows


def text_rows(filled: FilledTable) -> list[tuple[str, ...]]:
    """A table for the terminal: one line for each row and metric."""
    rows: list[tuple[str, ...]] = []
    for row in filled.rows:
        if row.missing:
            rows.append((row.row.label, "", row.missing, "", "", ""))
        for cell in row.cells if not row.missing else ():
            label = row.row.label if len(filled.metrics) == 1 else f"{row.row.label}: {metric_name(cell.metric)}"
            rows.append((label, *_text_cells(cell)))
    return rows


def _text_cells(cell: Cell) -> tuple[str, ...]:
    paper = "-" if cell.paper is None else f"{cell.paper:g}"
    if cell.ours is None:
        return paper, "-", "-", "0", "-"
    ours = cell.ours
    spread = f"{number(ours.low, cell.metric)} to {number(ours.high, cell.metric)}" if cell.seeds > 1 else "-"
    difference = "-" if cell.difference is None else f"{cell.difference:+.1f}"
    if cell.gain is not None:
        difference = str(cell.gain)
    return paper, number(ours.mean, cell.metric), spread, str(cell.seeds), difference


def number(value: float, metric: str) -> str:
    """Percent with one decimal, losses with four."""
    return f"{value:.4f}" if metric.startswith("loss") else f"{value:.1f}"


def write_report(report: Report, folder: Path, target: str) -> Path:
    """Write ``TARGET.json`` and ``TARGET.html``; both are made anew from the results each time."""
    write_atomically(folder / f"{target}.json", json.dumps(to_json(report), indent=1) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    figure = line_chart(report.curves, "iterations", "mean loss per RoI") if report.curves else ""
    page = environment.get_template("page.html.j2").render(
        **{name: value for name, value in vars(report).items() if name != "curves"},
        figure=Markup(figure),
        rule=RULE,
        name=metric_name,
        number=number,
    )
    write_atomically(folder / f"{target}.html", page)
    return folder / f"{target}.html"


def to_json(report: Report) -> dict[str, Any]:
    """The numbers."""
    return {
        "title": report.title,
        "facts": dict(report.facts),
        "claims": [
            {
                "id": each.claim.id,
                "statement": each.claim.statement,
                "test": each.claim.test,
                "verdict": each.verdict,
                "p_holds": each.evidence.p_holds,
                "p_fails": each.evidence.p_fails,
                "measured": dict(each.evidence.measured),
            }
            for each in report.judgements
        ],
        "tables": {
            filled.table.name: [
                {
                    "label": row.row.label,
                    "training": row.row.training,
                    "use": row.row.use,
                    "missing": row.missing or None,
                    "cells": [_cell_json(cell) for cell in row.cells],
                }
                for row in filled.rows
            ]
            for filled in report.tables
        },
        "costs": [
            dict(zip(("form", *COST_HEADER[1:5], "peak GB", "memory ratio", "paper's memory ratio"), row, strict=True))
            for row in report.costs
        ],
        "figure3": {name: [list(point) for point in points] for name, points in report.curves.items()},
        "not_run": dict(report.not_run),
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    both = {"ours": cell.ours, "gain": cell.gain}
    numbers = {
        name: None if each is None else {k: None if v != v else round(v, 4) for k, v in asdict(each).items()}
        for name, each in both.items()
    }
    return {"metric": cell.metric, "paper": cell.paper, **numbers, "seeds": cell.seeds}
