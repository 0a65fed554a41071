"""What a study runs: tuning, trainings, other uses of what was trained, and two measurements of the paper's text."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

from ohem.bootstrapping import harvest
from ohem.data.dataset import DetectionDataset, Detections, ImageId, Proposals
from ohem.data.split import draw_count, hold_out
from ohem.errors import OhemError
from ohem.evaluation.coco import evaluate_coco
from ohem.evaluation.voc import evaluate_voc
from ohem.mining import mean_loss, score_images
from ohem.models.weights import load_detector
from ohem.opening import pick_device
from ohem.proposals.imports import load_proposals
from ohem.recipes.recipe import Recipe, load_recipe, override_spec
from ohem.studies.neglect import neglect, trained_labels
from ohem.studies.plan import Data, Training
from ohem.studies.workshop import Result, Workshop, data_spec
from ohem.training.run import Run, Sources, fingerprint, machine
from ohem.workflow import resume, train, trained_on

TUNING_SEED = 1000
TUNING_HOLDOUT = 0.2
CURVE_POINTS = 4


@dataclass(frozen=True)
class TuneJob:
    """One learning rate of one training, tried on held-out training images, never on test images."""

    training: Training
    rate: float

    @property
    def name(self) -> str:
        """Of its result."""
        return f"tune-{self.training.name}-{self.rate:g}"

    @property
    def group(self) -> str:
        """Jobs of one group depend on each other and run on one machine."""
        return self.training.name

    def missing(self, workshop: Workshop) -> list[str]:
        """Results that it waits for."""
        return []

    def recipe(self, workshop: Workshop) -> Recipe:
        """With this rate, and a part of the training images held out."""
        changes = f"optimizer.lr={self.rate}", f"seed={TUNING_SEED}", f"data.holdout={TUNING_HOLDOUT}"
        return _recipe(self.training, workshop.study.data[self.training.data], *changes)

    def run(self, workshop: Workshop) -> Result:
        """Train and return the validation metric."""
        recipe = self.recipe(workshop)
        run = _train(self.name, recipe, workshop.study.data[self.training.data], workshop)
        last = [record for record in run.log() if record["kind"] == "validation"][-1]
        return {
            "rate": self.rate,
            "validation": last[recipe.evaluation.metric],
            "settings": settings_digest(recipe),
            **_provenance(run),
        }


@dataclass(frozen=True)
class TrainJob:
    """One training with one seed, and everything that is measured on its detector as it is."""

    training: Training
    seed: int
    group: str
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of its result."""
        return f"{self.training.name}-s{self.seed}"

    def missing(self, workshop: Workshop) -> list[str]:
        """Results of tuning that it waits for."""
        names = [f"tune-{self.group}-{rate:g}" for rate in self.rates]
        return [name for name in names if workshop.results.get(name) is None]

    def recipe(self, workshop: Workshop) -> Recipe:
        """With the learning rate that was best on held-out images; between equals, the smaller."""
        rate = []
        if self.rates:
            tried = [workshop.results.get(f"tune-{self.group}-{rate:g}") for rate in self.rates]
            best = max((t for t in tried if t), key=lambda t: (t["validation"] or 0.0, -t["rate"]))
            rate = [f"optimizer.lr={best['rate']}"]
        recipe = _recipe(self.training, workshop.study.data[self.training.data], *rate, f"seed={self.seed}")
        every = recipe.iterations // CURVE_POINTS if self.training.curve else 0
        return recipe.model_copy(update={"snapshot_every": every})

    def trained(self, workshop: Workshop) -> Run:
        """The finished run: found, or made; after the last round where there are several."""
        data, recipe, rounds = workshop.study.data[self.training.data], self.recipe(workshop), self.training.rounds
        if rounds == 1:
            only = _train(self.name, recipe, data, workshop)
            moved = (only.sources().train, only.sources().proposals) != (data.train, data.proposals)
            if moved and only.data_fingerprint() != self.data_fingerprint(workshop):
                raise OhemError(
                    f"{only.folder}: found a run on other data; allowed: another --out, or the folder removed"
                )
            return only
        run, files, kept = None, data.proposals, None
        for number in range(1, rounds + 1):
            part = _round(recipe, rounds, run.weights_file if run else None)
            name = f"{self.name}-round{number}"
            run = _train(name, part, replace(data, proposals=files), workshop)
            if number < rounds:
                file = workshop.run_folder(name) / "harvest.json"
                if not file.exists():
                    _harvest(run, data, file, kept, workshop)
                files, kept = (str(file),), load_proposals([file])[0]
        assert run is not None
        return run

    def data_fingerprint(self, workshop: Workshop) -> str:
        """Of the training data that are given; see :func:`ohem.training.run.fingerprint`."""
        recipe, sources = self.recipe(workshop), Sources(workshop.study.data[self.training.data].train)
        images, proposals = workshop.train_images(self.training, recipe)
        return fingerprint(trained_on(images, recipe, sources), proposals)

    def run(self, workshop: Workshop) -> Result:
        """Train, detect in the test images, and take the mean loss over all RoIs."""
        study, recipe = workshop.study, self.recipe(workshop)
        if server := study.data[self.training.data].server:
            run = self.trained(workshop)
            return {"seed": self.seed, "server": server, "settings": settings_digest(recipe), **_provenance(run)}
        test, proposals = workshop.test_images(self.training, recipe)  # before hours are spent on the training
        run = self.trained(workshop)
        detector, spec, _ = load_detector(run.weights_file)
        found = workshop.detect(detector, spec, test, proposals)
        part = draw_count(test, study.use_images)
        log = [record for record in run.log() if record["kind"] == "train"]
        parts = ("data", "ranking", "training")
        return {
            "seed": self.seed,
            "lr": recipe.optimizer.lr,
            "iterations": recipe.iterations,
            "plain": average_precisions(test, found),
            "plain_part": average_precisions(part, {r.id: found[r.id] for r in part.records}),
            "loss_test": self._loss(run.weights_file, test, proposals, workshop),
            "loss_train": self._losses(run, recipe, workshop),
            "seconds_a_step": {name: sum(r["seconds"][name] for r in log) / len(log) for name in parts},
            "settings": settings_digest(recipe),
            "test_fingerprint": fingerprint(test, proposals),
            **_provenance(run),
        }

    def _losses(self, run: Run, recipe: Recipe, workshop: Workshop) -> list[tuple[int, float]]:
        """(iteration, mean loss over all RoIs of training images), at the end or along the curve."""
        images, proposals = workshop.train_images(self.training, recipe)
        if recipe.data.holdout:
            images, _ = hold_out(images, recipe.data.holdout)
        every = recipe.snapshot_every
        points = [(i, run.snapshot_file(i)) for i in range(every, recipe.iterations, every)] if every else []
        points.append((recipe.iterations, run.weights_file))
        return [(i, self._loss(file, images, proposals, workshop)) for i, file in points]

    def _loss(self, weights: Path, images: DetectionDataset, proposals: Proposals, workshop: Workshop) -> float:
        detector, spec, _ = load_detector(weights)
        detector.to(pick_device(workshop.device))
        records = draw_count(images, workshop.study.loss_images).records
        scored = score_images(
            detector,
            spec,
            records,
            proposals,
            workers=workshop.workers,
            progress=partial(workshop.reporter.progress, "loss over all RoIs"),
        )
        return mean_loss(scored)


@dataclass(frozen=True)
class _AfterTraining:
    """A job that needs a trained detector."""

    train: TrainJob

    @property
    def group(self) -> str:
        """See :attr:`TuneJob.group`."""
        return self.train.group

    def missing(self, workshop: Workshop) -> list[str]:
        """The result of the training."""
        return [self.train.name] if workshop.results.get(self.train.name) is None else []


@dataclass(frozen=True)
class UseJob(_AfterTraining):
    """A trained detector, used in another way on a part of the test images. No training, as long as its run is there."""

    use: str

    @property
    def name(self) -> str:
        """Of its result."""
        return f"{self.train.name}-{self.use}"

    def run(self, workshop: Workshop) -> Result:
        """Detect and measure; trained again, to the same weights, when the run is not on this machine."""
        study, recipe = workshop.study, self.train.recipe(workshop)
        run = self.train.trained(workshop)
        test, proposals = workshop.test_images(self.train.training, recipe)
        part = draw_count(test, study.use_images)
        detector, spec, _ = load_detector(run.weights_file)
        spec = override_spec(spec, study.uses[self.use])
        found = workshop.detect(detector, spec, part, proposals)
        return {"seed": self.train.seed, self.use: average_precisions(part, found), **_provenance(run)}


@dataclass(frozen=True)
class NeglectJob(_AfterTraining):
    """Claim C13: leave one class out of a trained detector's mini-batches, then let it be chosen again."""

    steps: int = 120

    @property
    def name(self) -> str:
        """Of its result."""
        return f"neglect-s{self.train.seed}"

    def run(self, workshop: Workshop) -> Result:
        """See :func:`ohem.studies.neglect.neglect`."""
        recipe = self.train.recipe(workshop)
        run = self.train.trained(workshop)
        images, proposals = workshop.train_images(self.train.training, recipe)
        detector, spec, _ = load_detector(run.weights_file)
        detector.to(pick_device(workshop.device))
        left_out = left_out_class(images, self.train.seed)
        seen = neglect(detector, spec, recipe, images, proposals, left_out, self.steps, workshop.reporter)
        return {"seed": self.train.seed, "class": images.classes[left_out - 1], **seen, **_provenance(run)}


def left_out_class(images: DetectionDataset, seed: int) -> int:
    """The label, from 1, that a seed leaves out: each in turn that has objects which train, so no difficult ones or crowds."""
    there = sorted({int(label) for record in images.records for label in trained_labels(record)})
    if not there:
        raise OhemError(f"{images.name}: found no object to train on; allowed: data of which a class can be left out")
    return there[seed % len(there)]


@dataclass(frozen=True)
class CostJob:
    """Time and memory of full-size training steps (table 2), in a process of its own."""

    network: str
    form: str
    steps: int = 10

    @property
    def name(self) -> str:
        """Of its result."""
        return f"cost-{self.network}-{self.form}"

    @property
    def group(self) -> str:
        """All on one machine, so that ratios mean something."""
        return "cost"

    def missing(self, workshop: Workshop) -> list[str]:
        """Nothing."""
        return []

    def run(self, workshop: Workshop) -> Result:
        """See :mod:`ohem.studies.cost`."""
        data = workshop.study.data["main"]
        sources = [word for source in data.train for word in ("--data", source)]
        files = [word for file in data.proposals for word in ("--proposals", file)]
        device = ["--device", workshop.device] if workshop.device else []
        classes = [word for name in data.classes for word in ("--class", name)]
        measured = ["ohem.studies.cost", self.network, self.form, "--steps", str(self.steps)]
        command = ["-m", *measured, *device, *sources, *files, *classes]
        done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OhemError(f"{self.name}: stopped with exit code {done.returncode}: {last}")
        return {**json.loads(done.stdout.splitlines()[-1]), "machine": machine(), "date": date.today().isoformat()}


Job = TuneJob | TrainJob | UseJob | NeglectJob | CostJob


def average_precisions(images: DetectionDataset, found: Mapping[ImageId, Detections]) -> dict[str, float | None]:
    """In percent: ``map50`` and ``map70`` (VOC07's 11 points), ``ap:CLASS`` at 0.5, and ``coco:AP`` and so on."""
    voc, coco = evaluate_voc(images, found), evaluate_coco(images, found)
    values = {"map50": voc.mean_ap, "map70": evaluate_voc(images, found, iou_threshold=0.7).mean_ap}
    values |= {f"ap:{name}": float(ap) for name, ap in zip(voc.classes, voc.ap, strict=True)}
    values |= {f"coco:{name}": value for name, value in coco.numbers.items()}
    return {name: None if value != value else round(100 * value, 4) for name, value in values.items()}


def settings_digest(recipe: Recipe) -> str:
    """Twelve digits that differ when anything in the recipe does; fields added to recipes later leave them as they are.

    Of weights files the names count, not the folders: results are collected from machines that keep them elsewhere.
    """
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    detector = values.get("detector", {})
    for part, field in ((values, "init_from"), (detector, "weights"), (detector.get("backbone", {}), "weights")):
        if part.get(field):
            part[field] = Path(part[field]).name
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _recipe(training: Training, data: Data, *overrides: str) -> Recipe:
    spec = data_spec(data.classes)
    named = [f"data.classes={json.dumps(spec.classes)}"] if spec.classes else []
    rules = [f"data.other_classes={spec.other_classes}", f"data.bad_boxes={spec.bad_boxes}"]
    return load_recipe(training.recipe, [*named, *rules, *training.overrides, *overrides])


def _harvest(run: Run, data: Data, file: Path, also: Proposals | None, workshop: Workshop) -> None:
    harvest(
        run.folder,
        data.train,
        file,
        proposals=data.proposals,
        also=also,
        data_spec=data_spec(data.classes),
        device=workshop.device,
        workers=workshop.workers,
        reporter=workshop.reporter,
    )


def _round(recipe: Recipe, rounds: int, init_from: Path | None) -> Recipe:
    """One of several rounds of bootstrapping: a training of its own, with the whole schedule in its share of the steps."""
    every = max(1, recipe.schedule.step_every // rounds)
    changes = {"iterations": recipe.iterations // rounds, "init_from": init_from}
    return recipe.model_copy(update={**changes, "schedule": recipe.schedule.model_copy(update={"step_every": every})})


def _train(name: str, recipe: Recipe, data: Data, workshop: Workshop) -> Run:
    """The finished run of that name: begun, gone on with, or found."""
    folder, say = workshop.run_folder(name), workshop.reporter
    sources = Sources(data.train, proposals=data.proposals)
    if folder.exists() and settings_digest(Run.open(folder).recipe()) != settings_digest(recipe):
        raise OhemError(f"{folder}: found a run of another recipe; allowed: another --out, or the folder removed")
    if folder.exists():
        finished = resume(folder, moved=sources, device=workshop.device, workers=workshop.workers, reporter=say)
    else:
        _, finished = train(
            recipe, sources, folder=folder, device=workshop.device, workers=workshop.workers, reporter=say
        )
    if not finished:
        raise KeyboardInterrupt
    return Run.open(folder)


def _provenance(run: Run) -> Result:
    info = run.info()
    return {"fingerprint": info["data"]["fingerprint"], "machine": info["machine"], "date": date.today().isoformat()}


def run_job(job: Job, workshop: Workshop) -> None:
    """Run a job and keep its result with the time it took; a tuning run's folder is removed then, being of no more use."""
    start = time.perf_counter()
    result = job.run(workshop)
    workshop.results.put(job.name, {**result, "job_seconds": round(time.perf_counter() - start, 1)})
    if isinstance(job, TuneJob):
        shutil.rmtree(workshop.run_folder(job.name))
