"""Where a study works, and what it has finished: one small JSON for every job.

Results hold no path and no picture, so a folder of them can be committed, copied and added to on another machine.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ohem.data.dataset import DetectionDataset, Detections, ImageId, Proposals
from ohem.data.rules import one_line
from ohem.data.split import hold_out
from ohem.errors import OhemError
from ohem.files import write_atomically
from ohem.judging import run_detector
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import AnyDetectorSpec
from ohem.opening import Reporter, open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec, Recipe
from ohem.studies.plan import Study, Training

Result = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where a study works.

    Attributes:
        study: what is run.
        out: results go into ``out/results``, runs into ``out/runs``.
        reporter: told of what goes on.
        device: see :func:`ohem.workflow.train`.
        workers: see :func:`ohem.workflow.train`.
    """

    study: Study
    out: Path
    reporter: Reporter
    device: str | None = None
    workers: int = 1
    _opened: dict[tuple[str, str], tuple[DetectionDataset, Proposals]] = field(default_factory=dict)

    @cached_property
    def results(self) -> "Results":
        """What is finished."""
        return Results(self.out / "results")

    def run_folder(self, name: str) -> Path:
        """Where a run's weights and checkpoints are; not needed once its results are there."""
        return self.out / "runs" / name

    def test_images(self, training: Training, recipe: Recipe) -> tuple[DetectionDataset, Proposals]:
        """The images that a training is tested on."""
        data = self.study.data[training.data]
        if data.test:
            return self._open(training.data, "test", data.test, data.test_proposals, data.classes, recipe)
        dataset, proposals = self.train_images(training, recipe)
        return hold_out(dataset, recipe.data.holdout)[1], proposals

    def train_images(self, training: Training, recipe: Recipe) -> tuple[DetectionDataset, Proposals]:
        """All annotated training images of a training's data, held-out ones among them."""
        data = self.study.data[training.data]
        return self._open(training.data, "train", data.train, data.proposals, data.classes, recipe)

    def detect(
        self, detector: FastRCNN, spec: AnyDetectorSpec, images: DetectionDataset, proposals: Proposals
    ) -> dict[ImageId, Detections]:
        """Detections in images, with progress."""
        return run_detector(
            detector,
            spec,
            images.records,
            proposals,
            device=self.device,
            workers=self.workers,
            reporter=self.reporter,
        )

    def _open(
        self, data: str, part: str, sources: Sequence[str], files: Sequence[str], classes: Sequence[str], recipe: Recipe
    ) -> tuple[DetectionDataset, Proposals]:
        if (data, part) not in self._opened:
            dataset = open_dataset(sources, data_spec(classes), self.reporter)
            proposals = open_proposals(dataset, files, recipe.detector.given_proposals, self.workers, self.reporter)
            self._opened[data, part] = dataset, proposals
        return self._opened[data, part]


class Results:
    """A folder of results, by the name of the job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Result | None:
        """One result, or None when it is not there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise OhemError(
                f"{path}: found no readable JSON ({one_line(str(error))}); allowed: a result, or no such file"
            ) from error
        if not isinstance(value, dict):
            raise OhemError(f"{path}: found {type(value).__name__}; allowed: a result of ohem reproduce")
        return value

    def put(self, name: str, result: Result) -> None:
        """Keep a result, atomically."""
        write_atomically(self.folder / f"{name}.json", json.dumps(result, indent=1) + "\n")

    def collect(self, other: Path) -> int:
        """Copy what another folder of results has and this one lacks; returns how many.

        Raises:
            OhemError: there is no such folder, or the two differ about a result.
        """
        folder = other / "results" if (other / "results").is_dir() else other
        if not folder.is_dir():
            raise OhemError(f"{other}: found no folder; allowed: the --out of another ohem reproduce")
        others = Results(folder)
        new = {}
        tested = self._fingerprints()
        for path in sorted(folder.glob("*.json")):
            mine, theirs = self.get(path.stem), others.get(path.stem)
            if mine is None and theirs is not None:
                new[path.stem] = theirs
            elif mine != theirs:
                raise OhemError(f"{path}: found another result than {self.folder / path.name}; allowed: one of each")
        for name, fingerprint in others._fingerprints().items():
            if tested.get(name, fingerprint) != fingerprint:
                raise OhemError(
                    f"{folder}: found results of {name} on other test images or proposals; allowed: the same"
                )
        for name, result in new.items():
            self.put(name, result)
        return len(new)

    def _fingerprints(self) -> dict[str, str]:
        """Training -> the fingerprint of what it was tested on."""
        found = {path.stem: self.get(path.stem) or {} for path in sorted(self.folder.glob("*.json"))}
        return {
            name.rpartition("-s")[0]: result["test_fingerprint"]
            for name, result in found.items()
            if "test_fingerprint" in result
        }


def data_spec(classes: Sequence[str]) -> DataSpec:
    """A study's class list; objects of other classes are left out and counted."""
    return DataSpec(classes=tuple(classes) or None, other_classes="drop" if classes else "error", bad_boxes="drop")
