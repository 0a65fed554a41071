"""``ohem report``: one page about a run, or about several side by side."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ohem.files import new_file
from ohem.opening import SILENT, Reporter
from ohem.recipes.differences import differing_fields, flat_fields
from ohem.report.accuracy import ap_rows, error_chart, error_rows, precision_recall_charts
from ohem.report.gallery import Sketch, make_gallery, spread
from ohem.report.log_charts import PARTS, cost_chart, learning_charts, mined_charts, return_chart, seconds
from ohem.report.mistakes import false_positive_sketches, missed_sketches
from ohem.report.page import write_page
from ohem.report.regions import hardest_regions, region_sketches
from ohem.report.runs import ReportedRun, open_runs
from ohem.training.run import Run

HARD, FALSE_POSITIVES, MISSED = 150, 300, 150
"""Cards of each kind on a page, shared by its runs."""


def make_report(
    folders: Sequence[Path | str] | Path | str,
    *,
    data: Sequence[str] | str = (),
    out: Path | str | None = None,
    most_images: int = 300,
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> Path:
    """Write a page about runs: learning, mining, accuracy, errors, cost, and a gallery of what is hard.

    Args:
        folders: the runs'. The first is the one that the others are compared with.
        data: what they were evaluated on, where their evaluations do not say.
        out: the new page; when omitted, the first free of ``report.html``, ``report-2.html``, ... in the run's folder,
            or beside the first of several runs.
        most_images: training images of each run that are searched for the hardest regions; 0: all.
        device: see :func:`ohem.workflow.train`.
        workers: processes that read images.
        reporter: told of what goes on.

    Returns:
        The page.

    Raises:
        OhemError: not a run, a file is there already, or detections do not fit their data.
    """
    places = [Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]
    home = places[0] if len(places) == 1 else places[0].parent if places else Path()
    for place in places:
        Run.open(place)  # before anything is made in it
    with new_file(None if out is None else Path(out), home / "report.html") as path:
        runs = open_runs(places, data, reporter)
        sketches, notes = _sketches(runs, most_images, device, workers, reporter)
        gallery = make_gallery(sketches, progress=partial(reporter.progress, "cutting out pictures"))
        notes += [f"Left out: {fault}" for fault in gallery.faults]
        values: dict[str, Any] = {
            "title": " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
            "runs": runs,
            "facts": _facts(runs),
            "learning": learning_charts(runs),
            "mined": [(run, mined_charts(run)) for run in runs],
            "returns": return_chart(runs),
            "evaluated": [run for run in runs if run.measured is not None],
            "ap": ap_rows(runs),
            "curves": precision_recall_charts(runs),
            "error_chart": error_chart(runs),
            "errors": error_rows(runs),
            "cost": cost_chart(runs),
            "gallery": gallery,
            "notes": notes,
        }
        write_page(path, "report.html.j2", values)
    return path


def _sketches(
    runs: Sequence[ReportedRun], most_images: int, device: str | None, workers: int, reporter: Reporter
) -> tuple[list[Sketch], list[str]]:
    hard: list[Sketch] = []
    false_positives: list[Sketch] = []
    missed: list[Sketch] = []
    notes = []
    for run in runs:
        name = run.name if len(runs) > 1 else ""
        regions, note = hardest_regions(run, most_images, device=device, workers=workers, reporter=reporter)
        chosen = spread([(r.label > 0, r.label or r.taken_for) for r in regions], HARD // len(runs))
        hard += region_sketches([regions[i] for i in chosen], run.classes, name)
        notes.append(f"{run.name}: {note}" if len(runs) > 1 else note)
        if run.measured is not None:
            false_positives += false_positive_sketches(run.measured, name, FALSE_POSITIVES // len(runs))
            missed += missed_sketches(run.measured, name, MISSED // len(runs))
    return [*hard, *false_positives, *missed], notes


def _facts(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """Rows of the table at the top: a name, and a cell for each run."""
    recipes = [flat_fields(run.recipe.model_dump(mode="json")) for run in runs]
    shared = set(recipes[0]).intersection(*recipes) - {"seed", "sampler.kind", "iterations"}
    changing = [field for field in differing_fields(recipes) if field in shared]
    rows = [
        ("sampler", [str(recipe.get("sampler.kind", "")) for recipe in recipes]),
        *((field, [str(recipe[field]) for recipe in recipes]) for field in changing),
        ("seed", [str(run.recipe.seed) for run in runs]),
        ("trained on", [_trained_on(run.run) for run in runs]),
        ("iterations", [_iterations(run) for run in runs]),
        ("mean AP, VOC07", [_mean_ap(run) for run in runs]),
        ("loss over all RoIs, at the end", [_last(run, "loss_all_rois") for run in runs]),
        ("seconds a step", [f"{sum(seconds(run, part) for part in PARTS[:3]):.2f}" for run in runs]),
        ("peak memory, MB", [_peak(run) for run in runs]),
        ("machine", [_machine(run) for run in runs]),
    ]
    return rows


def _trained_on(run: Run) -> str:
    name, images = run.told("data", "name"), run.told("data", "images")
    return f"{name}, {images} images" if name else "-"


def _iterations(run: ReportedRun) -> str:
    done = max((record["iteration"] for record in run.log), default=0)
    return f"{done}" if done == run.recipe.iterations else f"{done} of {run.recipe.iterations}"


def _mean_ap(run: ReportedRun) -> str:
    if run.measured is None:
        return run.why
    return f"{100 * run.measured.voc.mean_ap:.1f} on {run.measured.dataset.name}, {len(run.measured.dataset)} images"


def _last(run: ReportedRun, field: str) -> str:
    values = [record[field] for record in run.windows() if record.get(field) is not None]
    return f"{values[-1]:.3f}" if values else "-"


def _peak(run: ReportedRun) -> str:
    values = [record["peak_memory_mb"] for record in run.windows() if record.get("peak_memory_mb") is not None]
    return f"{max(values):.0f}" if values else "-"


def _machine(run: ReportedRun) -> str:
    cuda, threads, processor = (run.run.told("machine", name) for name in ("cuda", "threads", "processor"))
    return str(cuda or (f"{threads} threads, {processor}" if processor else "-"))
