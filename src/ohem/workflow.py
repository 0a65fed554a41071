"""The main job: data and proposals made ready, a detector trained. The command line calls these."""

import shlex
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ohem.data.dataset import DetectionDataset
from ohem.data.split import draw_fraction, hold_out
from ohem.errors import OhemError
from ohem.files import next_folder, require_free
from ohem.models.backbones import Preprocessing
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.products import has_arithmetic
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals, pick_device
from ohem.ranking import LowRankRanking, RememberedRanking, precision_of
from ohem.recipes.recipe import RANKINGS, Recipe
from ohem.samplers import ranks_together
from ohem.training.beginning import AnnotatedImages, empty_detector, new_detector
from ohem.training.loop import Observer
from ohem.training.loop import train as train_loop
from ohem.training.processes import Processes
from ohem.training.run import Run, Sources, fingerprint, newest_folder
from ohem.training.tensorboard import tensorboard_observer


def train(
    recipe: Recipe,
    sources: Sources,
    *,
    folder: Path | str | None = None,
    name: str = "run",
    device: str | None = None,
    workers: int = 1,
    tensorboard: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Path, bool]:
    """Train from the beginning, in a new run folder.

    Args:
        recipe: what to do.
        sources: the data.
        folder: the run's; the first free of ``runs/NAME``, ``runs/NAME-2``, ... when omitted.
        name: see ``folder``.
        device: such as ``cuda:1``; CUDA where there is one, when omitted.
        workers: processes that read images and make proposals.
        tensorboard: write TensorBoard files into the run's folder too.
        reporter: told of what goes on.

    Returns:
        The run's folder, and whether training came to its end.

    Raises:
        OhemError: anything wrong with the data, the recipe or the folder; found before training begins.
    """
    start = time.perf_counter()
    processes = Processes.join(pick_device(device))
    wanted = None if folder is None else Path(folder)
    begun = wanted or newest_folder(Path("runs") / name)
    if processes.restarts and _began_so(Run(begun), recipe, sources):
        return begun, resume(begun, device=device, workers=workers, tensorboard=tensorboard, reporter=reporter)
    reporter = reporter if processes.first else SILENT
    _require_together(recipe, processes)
    if wanted and processes.first:
        require_free(wanted)  # before anything long
    images, validation = _open_all(recipe, sources, workers, reporter, processes)
    detector = new_detector(recipe, images)
    made = None
    if processes.first:
        preprocessing = detector.backbone.preprocessing
        made = _create_run(wanted, Path("runs") / name, recipe, sources, images, validation, preprocessing)
    folder = Path(processes.tell(str(made.folder) if made else ""))
    reporter.say(
        f"{images.dataset.name}: {len(images.dataset)} images, {len(images.dataset.classes)} classes; run: {folder}"
    )
    run = Run(folder)
    prepared = Prepared(run, recipe, detector, images, validation, time.perf_counter() - start)
    with run.alone() if processes.first else nullcontext():
        return folder, _train(prepared, device, workers, tensorboard, reporter, processes)


def resume(
    folder: Path | str,
    *,
    moved: Sources | None = None,
    device: str | None = None,
    workers: int = 1,
    tensorboard: bool = False,
    reporter: Reporter = SILENT,
) -> bool:
    """Go on with a run from its last checkpoint; returns whether training came to its end.

    Args:
        folder: the run's, which may have moved itself.
        moved: where its data are now; what is empty in it is where it was.
        device: see :func:`train`.
        workers: see :func:`train`.
        tensorboard: see :func:`train`.
        reporter: told of what goes on.

    Raises:
        OhemError: not a run, or its data changed since it began.
    """
    start, folder = time.perf_counter(), Path(folder)
    processes = Processes.join(pick_device(device))
    reporter = reporter if processes.first else SILENT
    run = Run.open(folder)
    recipe, began_with = run.recipe(), run.data_fingerprint()
    if run.weights_file.exists():
        reporter.say(f"{folder}: already trained to the end")
        processes.leave()
        return True
    _require_together(recipe, processes)
    began_on, now = vars(run.sources()), vars(moved or Sources(()))
    if now["val"] and not began_on["val"]:
        raise OhemError(f"{folder}: found --val for a run that began without; allowed: --data, or a new run")
    sources = Sources(**{name: now[name] or began_on[name] for name in began_on})
    with run.alone() if processes.first else nullcontext():
        try:
            images, validation = _open_all(recipe, sources, workers, reporter, processes)
        except OhemError as error:
            error.add_note(f"where data moved: ohem train --resume {shlex.quote(str(folder))} --data THERE")
            raise
        _require_same(folder, "", images, began_with)
        _require_same(folder, "validation ", validation, run.told("data", "validation"))
        detector = _detector_of(run, recipe, images)
        if processes.first:
            run.sweep()
        prepared = Prepared(run, recipe, detector, images, validation, time.perf_counter() - start)
        return _train(prepared, device, workers, tensorboard, reporter, processes)


def _require_same(folder: Path, which: str, images: AnnotatedImages | None, began_with: str | None) -> None:
    if images is None or began_with is None:  # earlier versions kept no fingerprint of validation images
        return
    found = fingerprint(images.dataset, images.proposals)
    if found != began_with:
        raise OhemError(
            f"{folder}: found other {which}images, annotations or proposals than when the run began"
            f" ({found[:8]}, not {began_with[:8]}); allowed: the same data"
        )


def _detector_of(run: Run, recipe: Recipe, images: AnnotatedImages) -> FastRCNN:
    """What a run goes on with. A checkpoint holds every weight: those that the run began with may be gone or changed."""
    preprocessing = run.preprocessing()
    if preprocessing is None or not run.checkpoint_file.exists():
        return new_detector(recipe, images)
    return empty_detector(recipe, len(images.dataset.classes), preprocessing)


def _create_run(
    wanted: Path | None,
    default: Path,
    recipe: Recipe,
    sources: Sources,
    images: AnnotatedImages,
    validation: AnnotatedImages | None = None,
    preprocessing: Preprocessing | None = None,
) -> Run:
    """In the wanted folder, or the first free one, which another training may take at the same moment."""
    digest = fingerprint(images.dataset, images.proposals)
    validated_on = fingerprint(validation.dataset, validation.proposals) if validation else None
    while True:
        folder = wanted or next_folder(default)
        try:
            return Run.create(folder, recipe, sources, images.dataset, digest, validated_on, preprocessing)
        except (OhemError, OSError):
            if wanted or not folder.exists():
                raise


def _began_so(run: Run, recipe: Recipe, sources: Sources) -> bool:
    """Whether it is what this command begins: before a restart, perhaps, but surely no other training."""
    return run.info_file.exists() and run.recipe() == recipe and run.sources() == sources


def _require_together(recipe: Recipe, processes: Processes) -> None:
    processes.require_enough(recipe.images_per_step)
    if processes.count > 1 and ranks_together(recipe.sampler):
        raise OhemError(
            "sampler.cap: found batch; allowed with several processes: image, since each ranks its own images"
        )
    if processes.count > 1 and isinstance(recipe.ranking, LowRankRanking | RememberedRanking):
        kind = RANKINGS.name_of(recipe.ranking)  # each process would have a state of its own
        raise OhemError(f"ranking: found {kind}; allowed with several processes: exact, half")


def _open_all(
    recipe: Recipe, sources: Sources, workers: int, reporter: Reporter, processes: Processes
) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Open all data; the first process alone before the others, so that only one makes what is missing."""
    if not processes.first:
        processes.tell("")
    opened = _open_sets(recipe, sources, workers, reporter)
    if processes.first:
        processes.tell("")
    return opened


def trained_on(whole: DetectionDataset, recipe: Recipe, sources: Sources) -> DetectionDataset:
    """What of the images a recipe trains on: without those held out, and of these its fraction."""
    kept = hold_out(whole, recipe.data.holdout)[0] if recipe.data.holdout and not sources.val else whole
    return draw_fraction(kept, recipe.data.fraction, recipe.seed) if recipe.data.fraction < 1 else kept


def _open_sets(
    recipe: Recipe, sources: Sources, workers: int, reporter: Reporter
) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    spec = recipe.detector.given_proposals
    if sources.val_proposals and not sources.val:
        raise OhemError(f"val_proposals: found {sources.val_proposals[0]}; allowed beside validation data: --val DATA")
    whole = open_dataset(sources.train, recipe.data, reporter)
    val_set = None
    if sources.val:
        if recipe.data.holdout:
            reporter.warn(f"{whole.name}: no image is held out (data.holdout), since there are validation data")
        val_set = open_dataset(sources.val, recipe.data.model_copy(update={"classes": whole.classes}), reporter)
    proposals = open_proposals(whole, sources.proposals, spec, workers, reporter)
    if val_set is not None:
        val_proposals = open_proposals(val_set, sources.val_proposals, spec, workers, reporter)
    elif recipe.data.holdout:
        _, val_set = hold_out(whole, recipe.data.holdout)
        val_proposals = proposals
        if not len(val_set):
            raise OhemError(
                f"data.holdout: found {recipe.data.holdout}, which is none of {len(whole)} images; allowed: a larger share, or 0"
            )
        reporter.say(f"{whole.name}: {len(val_set)} of {len(whole)} images held out for validation")
    train_set = trained_on(whole, recipe, sources)
    if not len(train_set):
        raise OhemError(f"{whole.name}: found no image left to train on; allowed: a larger data.fraction")
    if not train_set.has_objects:
        raise OhemError(
            f"{train_set.name}: found no object to learn from in {len(train_set)} images; allowed: at least one that is"
            " neither difficult nor crowd (ohem check counts them)"
        )
    if val_set is not None and not val_set.has_objects:
        reporter.warn(f"{val_set.name}: found no object to find, so validation cannot tell which weights are best")
    images = AnnotatedImages(train_set, proposals)
    return images, AnnotatedImages(val_set, val_proposals) if val_set is not None else None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything checked and loaded, ready for the first step; ``seconds`` is the time that took."""

    run: Run
    recipe: Recipe
    detector: FastRCNN
    images: AnnotatedImages
    validation: AnnotatedImages | None
    seconds: float


def _train(
    prepared: Prepared, device: str | None, workers: int, tensorboard: bool, reporter: Reporter, processes: Processes
) -> bool:
    observers: list[Observer] = [reporter.record]
    if tensorboard and processes.first:
        observers.append(tensorboard_observer(prepared.run.folder / "tensorboard"))

    def observe(record: Mapping[str, Any]) -> None:
        for observer in observers:
            observer(record)

    start, own_device = time.perf_counter(), processes.own_device(pick_device(device))
    precision = precision_of(prepared.recipe.ranking)
    if precision != "float32" and not has_arithmetic(own_device, getattr(torch, precision)):
        reporter.warn(
            f"ranking.precision: this processor has no arithmetic for {precision}; float32 products of rounded numbers"
            " take its place: the same choice, in the time of float32"
        )
    finished = train_loop(
        prepared.run,
        prepared.recipe,
        prepared.detector,
        prepared.images,
        prepared.validation,
        device=own_device,
        workers=workers,
        processes=processes,
        observe=observe,
    )
    processes.leave()
    total = prepared.seconds + time.perf_counter() - start
    share = 100 * prepared.seconds / total
    reporter.say(f"{total:.0f} s in all, {share:.0f} % of it checking data and making proposals")
    return finished
