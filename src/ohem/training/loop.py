"""The training loop, in one straight line."""

import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ohem.boxes import DeltaStats
from ohem.data.dataset import DetectionDataset, Proposals
from ohem.data.loading import Sample, Samples, load_batches, training_batches
from ohem.evaluation.coco import evaluate_coco
from ohem.evaluation.voc import evaluate_voc
from ohem.inference import detect
from ohem.losses import NonFiniteLossError
from ohem.models.fast_rcnn import FastRCNN, TrainingStep, now
from ohem.models.pretrained import load_pretrained
from ohem.models.weights import build_detector, save_detector, start_from
from ohem.recipes.recipe import Recipe
from ohem.rois import label_rois
from ohem.training.checkpoint import load_checkpoint, save_checkpoint, stream_seed
from ohem.training.optimizer import build_optimizer, clip, set_lr
from ohem.training.run import Run, find_weights

Observer = Callable[[Mapping[str, Any]], None]
"""Called with every log record as it is written, its ``kind`` ``train`` or ``validation``; and, not logged, with
``{"kind": "progress", "task": ..., "done": ..., "total": ...}`` after every step and every validated image."""


@dataclass(frozen=True, eq=False)
class AnnotatedImages:
    """A data set with its proposals."""

    dataset: DetectionDataset
    proposals: Proposals


def train(
    run: Run,
    recipe: Recipe,
    detector: FastRCNN,
    images: AnnotatedImages,
    validation: AnnotatedImages | None = None,
    *,
    device: torch.device | None = None,
    workers: int = 1,
    observe: Observer = lambda record: None,
) -> bool:
    """Train a detector, from the start or from the run's last checkpoint, and leave its weights in the run's folder.

    Ctrl-C (SIGINT) and SIGTERM finish the step, write a checkpoint and return.

    Args:
        run: its folder; with a checkpoint in it, training goes on from there to bit-identical weights.
        recipe: what to do.
        detector: of :func:`new_detector`; trained in place.
        images: to train on.
        validation: to measure on, every ``recipe.evaluation.every`` iterations and at the end.
        device: CPU when omitted.
        workers: processes that read images. Their number does not change the result.
        observe: told of every step and log record.

    Returns:
        True when all iterations are done, False when it was interrupted.

    Raises:
        OhemError: an image cannot be read, the checkpoint is of another detector, or a loss is not finite.
    """
    device = device or torch.device("cpu")
    detector.to(device).train()
    optimizer = build_optimizer(detector, recipe.optimizer)
    sampler_rng = Generator().manual_seed(stream_seed(recipe.seed, "sampler"))
    torch.manual_seed(stream_seed(recipe.seed, "dropout"))
    start, best = 0, None
    if run.checkpoint_file.exists():
        start, best = load_checkpoint(run.checkpoint_file, detector, optimizer, sampler_rng)
    run.forget_after(start)

    samples = Samples(
        images.dataset.records, images.proposals, recipe.detector.image, recipe.detector.proposals.max_per_image
    )
    steps = range(start, recipe.iterations)
    order = stream_seed(recipe.seed, "order")
    plan = training_batches(len(samples), recipe.images_per_step, steps, order, recipe.data.flip)
    window = LogWindow()
    clock = now(device)
    with stop_on_signals() as stopped:
        for iteration, batch in zip(steps, load_batches(samples, plan, workers), strict=True):
            loaded = now(device)
            lr = set_lr(optimizer, recipe.schedule.factor(iteration, recipe.iterations))
            optimizer.zero_grad(set_to_none=True)
            parts = [[sample] for sample in batch] if recipe.accumulate else [batch]
            for part in parts:
                step = forward(detector, part, sampler_rng, device)
                loss = torch.stack(list(step.losses.values())).sum() / len(parts)
                torch.autograd.backward(loss)
                window.add(step, 1 / len(parts))
                if step.score.losses is None and iteration % recipe.all_rois_every == 0:
                    window.add_all_rois(monitor(step))
            clip(detector, recipe.optimizer.clip_norm)
            optimizer.step()

            done = iteration + 1
            finished = now(device)
            window.end_step(loaded - clock, finished - loaded)
            observe({"kind": "progress", "task": "training", "done": done, "total": recipe.iterations})
            if done % recipe.log_every == 0 or done == recipe.iterations:
                _write(run, observe, {"kind": "train", "iteration": done, "lr": lr, **window.close(device)})
            if validation and (
                done == recipe.iterations or (recipe.evaluation.every and done % recipe.evaluation.every == 0)
            ):
                value = measure(detector, recipe, validation, workers, observe)
                _write(run, observe, {"kind": "validation", "iteration": done, recipe.evaluation.metric: value})
                if best is None or value > best:
                    best = value
                    save_detector(run.best_file, detector, recipe.detector, images.dataset.classes)
            if recipe.snapshot_every and done % recipe.snapshot_every == 0:
                save_detector(run.snapshot_file(done), detector, recipe.detector, images.dataset.classes)
            if done % recipe.checkpoint_every == 0 or done == recipe.iterations or stopped.is_set():
                save_checkpoint(run.checkpoint_file, done, best, detector, optimizer, sampler_rng)
            if stopped.is_set() and done < recipe.iterations:
                return False
            clock = now(device)
    save_detector(run.weights_file, detector, recipe.detector, images.dataset.classes)
    return True


def new_detector(recipe: Recipe, images: AnnotatedImages) -> FastRCNN:
    """The detector before the first step: weights random (from the recipe's seed), pre-trained, or another run's.

    Raises:
        OhemError: the recipe names a backbone or weights that are not to be had.
    """
    torch.manual_seed(stream_seed(recipe.seed, "weights"))
    classes = images.dataset.classes
    detector = build_detector(recipe.detector, len(classes))
    if recipe.init_from is None:
        load_pretrained(detector, recipe.detector.backbone)
    if recipe.detector.delta_stats == "empirical":
        stats = empirical_stats(images, recipe)
        detector.delta_mean.copy_(stats.mean)
        detector.delta_std.copy_(stats.std)
    if recipe.init_from is not None:
        start_from(detector, classes, find_weights(recipe.init_from, "best"))
    detector.sampler = recipe.sampler
    detector.loss_over = "batch" if getattr(recipe.sampler, "cap", "image") == "batch" else "image"
    return detector


def empirical_stats(images: AnnotatedImages, recipe: Recipe) -> DeltaStats:
    """Per-class mean and std of the deltas of all foreground RoIs, mirrored ones included when training mirrors.

    Deltas do not depend on an image's scale, so no picture is read.
    """
    limit = recipe.detector.proposals.max_per_image or None

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        count = len(images.dataset.classes)
        plain = DeltaStats(torch.zeros(count + 1, 4), torch.ones(count + 1, 4))
        for record in images.dataset.records:
            rois = label_rois(
                torch.from_numpy(images.proposals[record.id][:limit].copy()),
                torch.from_numpy(record.boxes).float(),
                torch.from_numpy(record.labels),
                plain,
                difficult=torch.from_numpy(record.difficult),
                crowd=torch.from_numpy(record.crowd),
                fg_iou=recipe.detector.fg_iou,
            )
            foreground = rois[rois.labels > 0]
            yield foreground.deltas, foreground.labels
            if recipe.data.flip:
                yield foreground.deltas * torch.tensor([-1.0, 1.0, 1.0, 1.0]), foreground.labels

    return DeltaStats.empirical(len(images.dataset.classes), examples())


def forward(detector: FastRCNN, batch: Sequence[Sample], rng: Generator, device: torch.device) -> TrainingStep:
    """One training step's forward pass; a loss that is not finite names its image."""
    try:
        return detector.training_step(
            [sample.image.to(device) for sample in batch],
            [sample.proposals.to(device) for sample in batch],
            [{name: value.to(device) for name, value in sample.target.items()} for sample in batch],
            rng,
        )
    except NonFiniteLossError as error:
        error.add_note(f"image id: {batch[error.image].id}")
        raise


def monitor(step: TrainingStep) -> list[Tensor]:
    """Losses of all RoIs for the log, where the sampler did not ask; random state is left as it was."""
    with torch.random.fork_rng():
        return [losses.total for losses in step.score()]


def measure(
    detector: FastRCNN,
    recipe: Recipe,
    images: AnnotatedImages,
    workers: int,
    observe: Observer = lambda record: None,
) -> float:
    """The recipe's metric on a data set, in [0, 1]."""
    spec = recipe.detector
    found = detect(
        detector,
        images.dataset.records,
        images.proposals,
        spec.image,
        spec.detection,
        max_proposals=spec.proposals.max_per_image,
        workers=workers,
        progress=lambda d, n: observe({"kind": "progress", "task": "validating", "done": d, "total": n}),
    )
    metric = recipe.evaluation.metric
    if metric == "coco":
        return evaluate_coco(images.dataset, found).numbers["AP"]
    return evaluate_voc(images.dataset, found, method="voc07" if metric == "voc07" else "area").mean_ap


class LogWindow:
    """Averages between two log records. The losses over the selected and over all RoIs are kept apart."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self.losses: dict[str, float] = {}
        self.seconds = {"data": 0.0, "ranking": 0.0, "training": 0.0}
        self.ranking = 0.0
        self.selected = self.foreground = self.candidates = self.images = 0
        self.all_sum, self.all_count = 0.0, 0

    def add(self, step: TrainingStep, weight: float) -> None:
        """One forward pass."""
        for name, value in step.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + weight * value.item()
        for rois, index in zip(step.rois, step.selected, strict=True):
            self.images += 1
            self.candidates += len(rois)
            self.selected += len(index)
            self.foreground += int((rois.labels[index] > 0).sum())
        self.ranking += step.score.seconds
        if step.score.losses is not None:
            self.add_all_rois([losses.total for losses in step.score.losses])

    def add_all_rois(self, totals: Sequence[Tensor]) -> None:
        """Losses of all RoIs of some images."""
        self.all_sum += sum(float(total.sum()) for total in totals)
        self.all_count += sum(len(total) for total in totals)

    def end_step(self, data: float, compute: float) -> None:
        """Seconds of a step: waiting for data, and everything else."""
        self.steps += 1
        self.seconds["data"] += data
        self.seconds["ranking"] += self.ranking
        self.seconds["training"] += compute - self.ranking
        self.ranking = 0.0

    def close(self, device: torch.device) -> dict[str, Any]:
        """The averages a step since the last call. ``loss_all_rois`` is None where it was not measured."""
        record = {
            **{name: value / self.steps for name, value in self.losses.items()},
            "loss_selected_rois": sum(self.losses.values()) / self.steps,
            "loss_all_rois": self.all_sum / self.all_count if self.all_count else None,
            "foreground_share": self.foreground / max(self.selected, 1),
            "selected_per_image": self.selected / self.images,
            "candidates_per_image": self.candidates / self.images,
            "seconds": {name: value / self.steps for name, value in self.seconds.items()},
            "peak_memory_mb": peak_memory_mb(device),
        }
        self._clear()
        return record


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use so far: of the device, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; a second SIGINT interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, _: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(run: Run, observe: Observer, record: dict[str, Any]) -> None:
    run.append(record)
    observe(record)
