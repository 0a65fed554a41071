"""What a report knows of a run: its folder, its log, and its newest evaluation with the annotations it was measured on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from ohem.data.dataset import DetectionDataset
from ohem.data.rules import as_names, quoted
from ohem.errors import OhemError
from ohem.evaluation.columns import DetectionColumns, ObjectColumns, detection_columns, object_columns
from ohem.evaluation.error_kinds import Errors, ap_without, find_errors
from ohem.evaluation.results import load_coco_results
from ohem.evaluation.voc import VocResult, evaluate_voc
from ohem.judging import read_metrics
from ohem.opening import Reporter, open_dataset
from ohem.recipes.recipe import DataSpec, Recipe
from ohem.report.svg import DISTINCT
from ohem.training.run import Run


@dataclass(frozen=True, eq=False)
class Measured:
    """An evaluation.

    Attributes:
        dataset: what was evaluated on.
        objects: its annotations.
        found: the detections.
        voc: 11-point average precision at IoU 0.5.
        errors: what became of each detection and object at IoU 0.5.
        gains: kind of error -> gain in mean AP if it were mended.
    """

    dataset: DetectionDataset
    objects: ObjectColumns
    found: DetectionColumns
    voc: VocResult
    errors: Errors
    gains: dict[str, float]


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """One run of a report.

    Attributes:
        colour: the number of its colour.
        name: for people, of this report's runs its alone.
        measured: None where there is no evaluation, and ``why`` says so.
    """

    colour: int
    name: str
    run: Run
    recipe: Recipe
    classes: tuple[str, ...]
    log: list[dict[str, Any]]
    measured: Measured | None
    why: str

    def windows(self) -> list[dict[str, Any]]:
        """The records of training steps."""
        return [record for record in self.log if record["kind"] == "train"]


def open_runs(folders: Sequence[Path], data: Sequence[str] | str, reporter: Reporter) -> list[ReportedRun]:
    """Read runs and their newest evaluations.

    Args:
        folders: the runs'.
        data: what they were evaluated on, where the evaluation does not say.
        reporter: told of what goes on.

    Raises:
        OhemError: no run, one folder twice, or data and detections that do not belong together.
    """
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise OhemError(f"report: found {', '.join(map(str, folders)) or 'no runs'}; allowed: runs, each once")
    names = _names(folders)
    opened: dict[tuple[str, ...], DetectionDataset] = {}
    found = []
    for number, (folder, name) in enumerate(zip(folders, names, strict=True)):
        run = Run.open(folder)
        measured, why = _measured(run, run.classes(), tuple(as_names(data)), opened, reporter)
        found.append(ReportedRun(number % DISTINCT, name, run, run.recipe(), run.classes(), run.log(), measured, why))
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' last parts, or as much more of them as tells them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _measured(
    run: Run,
    classes: Sequence[str],
    data: tuple[str, ...],
    opened: dict[tuple[str, ...], DetectionDataset],
    reporter: Reporter,
) -> tuple[Measured | None, str]:
    file = run.newest_evaluation()
    if file is None:
        return None, f"not evaluated: ohem evaluate {quote(str(run.folder))} --data DATA"
    told = read_metrics(file)
    sources = data or _sources(file, told)
    if not sources:
        return None, f"{file.parent.name} does not say on which data: add --data DATA"
    if sources not in opened:
        spec = DataSpec(classes=tuple(classes), other_classes="drop", bad_boxes="drop")
        try:
            opened[sources] = open_dataset(sources, spec, reporter)
        except OhemError as error:
            if data:
                raise
            return None, f"evaluated on data that cannot be read any more: {str(error).splitlines()[0]}"
    dataset = opened[sources]
    if tuple(classes) != dataset.classes:
        raise OhemError(f"{run.folder}: found other classes than in the runs before it; allowed: the same, in order")
    detections = load_coco_results(file.with_name("detections.json"), dataset)
    voc = evaluate_voc(dataset, detections)
    if not _agrees(told, dataset, voc):
        return None, f"{file.parent.name} has other numbers, so its data have changed since: ohem evaluate again"
    objects, found = object_columns(dataset), detection_columns(dataset, detections)
    ignored = objects.difficult | objects.crowd
    errors = find_errors(
        found.images, found.boxes, found.scores, found.labels, objects.images, objects.boxes, objects.labels, ignored
    )
    gains = ap_without(errors, found.scores, found.labels, objects.labels, ignored)
    return Measured(dataset, objects, found, voc, errors, gains), ""


def _agrees(told: Mapping[str, Any], dataset: DetectionDataset, voc: VocResult) -> bool:
    """Whether an evaluation says what its detections give on these data; where it says nothing, they are believed."""
    part = told.get("voc07")
    mean_ap = part.get("mean_ap") if isinstance(part, dict) else None
    if isinstance(mean_ap, int | float) and not math.isclose(mean_ap, voc.mean_ap, rel_tol=0, abs_tol=1e-6):
        return False
    return bool(told.get("images", len(dataset)) == len(dataset))


def _sources(file: Path, told: Mapping[str, Any]) -> tuple[str, ...]:
    """What an evaluation says that it was made on; empty where it does not."""
    found = told.get("sources", [])
    if not isinstance(found, list) or not all(isinstance(source, str) for source in found):
        raise OhemError(f"{file}: sources: found {quoted(found)}; allowed: a list of texts")
    return tuple(found)
