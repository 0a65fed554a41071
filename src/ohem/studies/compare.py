"""``ohem compare``: paired statistics of any runs of a user."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ohem.data.rules import quoted
from ohem.errors import OhemError
from ohem.judging import read_metrics
from ohem.recipes.differences import differing_fields, flat_fields
from ohem.recipes.recipe import Recipe
from ohem.studies.statistics import Interval, interval
from ohem.training.run import Run

METRICS = ("mAP, VOC07", "mAP, VOC12", "COCO AP", "COCO AP50")


class _MeanAP(BaseModel):
    mean_ap: float | None


class _Coco(BaseModel):
    AP: float | None
    AP50: float | None


class _Evaluation(BaseModel):
    """What is read of an evaluation's ``metrics.json``."""

    fingerprint: str
    settings: dict[str, dict[str, Any] | None]
    weights: str | None = None
    voc07: _MeanAP
    voc12: _MeanAP
    coco: _Coco


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: what distinguishes it from the other arms, such as ``sampler.kind=hard``.
        values: seed -> metric -> percent.
    """

    label: str
    values: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Arms and their differences to the first.

    Attributes:
        arms: in the order of their first run.
        differences: of each arm but the first, for each metric: the mean difference over the seeds that both have, with
            its 95 % interval, and how many they are; None where there are none.
        warnings: what makes the runs less comparable.
    """

    arms: tuple[Arm, ...]
    differences: tuple[Mapping[str, tuple[Interval, int] | None], ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare evaluated runs, the first one's arm being the baseline.

    Each run's newest evaluation counts.

    Raises:
        OhemError: fewer than two arms; a run that is not finished or not evaluated; runs trained or evaluated on
            different data; or two runs of one arm and seed.
    """
    runs = [Run.open(folder) for folder in folders]
    measured = [_evaluation(run) for run in runs]
    specs = [run.recipe() for run in runs]
    _require_same_data(folders, runs, specs)
    _require_equal("evaluated on", folders, [each.fingerprint for each in measured])
    _require_same_settings(folders, measured)
    recipes = [flat_fields(spec.model_dump(mode="json")) for spec in specs]
    changing = [key for key in differing_fields(recipes) if key != "seed"]
    arms: dict[str, dict[int, Mapping[str, float]]] = {}
    for folder, seed, recipe, metrics in zip(folders, (spec.seed for spec in specs), recipes, measured, strict=True):
        label = ", ".join(f"{key}={recipe[key]}" for key in changing if key in recipe) or "all alike"
        if seed in arms.setdefault(label, {}):
            raise OhemError(f"{folder}: found a second run of seed {seed} of {label}; allowed: one for each seed")
        arms[label][seed] = _numbers(metrics)
    if len(arms) < 2:
        raise OhemError(
            f"compare: found runs that differ in their seed alone ({len(runs)}); allowed: two recipes or more"
        )
    listed = tuple(Arm(label, values) for label, values in arms.items())
    return Comparison(listed, tuple(_differences(arm, listed[0]) for arm in listed[1:]), _warnings(runs))


def _require_same_data(folders: Sequence[Path], runs: Sequence[Run], recipes: Sequence[Recipe]) -> None:
    """All of one data set, or all of parts of one: those of one seed are the same, those of another are others."""
    in_parts = all(recipe.data.fraction < 1 for recipe in recipes)
    of_seed: dict[int | None, list[tuple[Path, str]]] = {}
    for folder, run, recipe in zip(folders, runs, recipes, strict=True):
        of_seed.setdefault(recipe.seed if in_parts else None, []).append((folder, run.data_fingerprint()))
    for same in of_seed.values():
        _require_equal("trained on", *zip(*same, strict=True))


def _require_same_settings(folders: Sequence[Path], measured: Sequence[_Evaluation]) -> None:
    """What decides how a detector was used; the scales that it was trained at do not."""
    used = [flat_fields({"weights": found.weights, **found.settings}) for found in measured]
    for folder, its in zip(folders, used, strict=True):
        differing = [key for key in differing_fields([used[0], its]) if key != "image.train_scales"]
        if differing:
            key = differing[0]
            found, first = (json.dumps(each.get(key)) for each in (its, used[0]))
            raise OhemError(
                f"{folder}: {key}: found a run evaluated with {found}; allowed: {first}, as {folders[0]} was"
                f" (ohem evaluate {shlex.quote(str(folder))} with that setting)"
            )


def _evaluation(run: Run) -> _Evaluation:
    name = shlex.quote(str(run.folder))
    if not run.weights_file.is_file():
        raise OhemError(f"{run.folder}: found a training that is not finished; allowed: ohem train --resume {name}")
    file = run.newest_evaluation()
    if file is None:
        raise OhemError(f"{run.folder}: found no evaluation; allowed after: ohem evaluate {name} --data DATA")
    try:
        return _Evaluation.model_validate(read_metrics(file))
    except ValidationError as error:
        first = error.errors()[0]
        where, found = ".".join(map(str, first["loc"])), quoted(first["input"])
        raise OhemError(
            f"{file}: {where}: found {'nothing' if first['type'] == 'missing' else found}; "
            "allowed: an evaluation of this version (evaluate again)"
        ) from error


def _require_equal(what: str, folders: Sequence[Path], values: Sequence[str]) -> None:
    for folder, value in zip(folders, values, strict=True):
        if value != values[0]:
            raise OhemError(f"{folder}: found a run {what} other data than {folders[0]}; allowed: the same")


def _numbers(found: _Evaluation) -> Mapping[str, float]:
    values = (found.voc07.mean_ap, found.voc12.mean_ap, found.coco.AP, found.coco.AP50)
    return {name: 100 * value for name, value in zip(METRICS, values, strict=True) if value is not None}


def _differences(arm: Arm, base: Arm) -> Mapping[str, tuple[Interval, int] | None]:
    seeds = sorted(set(arm.values) & set(base.values))
    found: dict[str, tuple[Interval, int] | None] = {}
    for metric in METRICS:
        values = [
            arm.values[s][metric] - base.values[s][metric]
            for s in seeds
            if metric in arm.values[s] and metric in base.values[s]
        ]
        found[metric] = (interval(values), len(values)) if values else None
    return found


def _warnings(runs: Sequence[Run]) -> tuple[str, ...]:
    machines = [run.info().get("machine") or {} for run in runs]
    differing = sorted({key for m in machines for key in m if m[key] != machines[0].get(key)})
    return (
        (f"the runs' machines differ in {', '.join(differing)}: differences may come from that",) if differing else ()
    )
