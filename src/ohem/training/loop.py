"""The training loop, in one straight line."""

import math
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator

from ohem.data.loading import Sample, Samples, load_batches, training_batches
from ohem.data.split import draw_count
from ohem.errors import OhemError
from ohem.evaluation.coco import evaluate_coco
from ohem.evaluation.voc import evaluate_voc
from ohem.inference import detect
from ohem.losses import NonFiniteLossError
from ohem.models.fast_rcnn import FastRCNN, TrainingStep, now
from ohem.models.weights import save_detector
from ohem.recipes.recipe import Recipe
from ohem.training.averaging import weight_average
from ohem.training.beginning import AnnotatedImages
from ohem.training.checkpoint import (
    Stateful,
    load_checkpoint,
    save_checkpoint,
    save_failed_step,
    start_streams,
    stream_seed,
)
from ohem.training.mined import FOLLOWED, Mined
from ohem.training.optimizer import build_optimizer, set_lr
from ohem.training.precision import Precision
from ohem.training.processes import ALONE, Processes
from ohem.training.run import Run

Observer = Callable[[Mapping[str, Any]], None]
"""Called with every log record as it is written, its ``kind`` ``train`` or ``validation``; and, not logged, with
``{"kind": "progress", "task": ..., "done": ..., "total": ...}`` after every step and every validated image."""


def train(
    run: Run,
    recipe: Recipe,
    detector: FastRCNN,
    images: AnnotatedImages,
    validation: AnnotatedImages | None = None,
    *,
    device: torch.device | None = None,
    workers: int = 1,
    processes: Processes = ALONE,
    observe: Observer = lambda record: None,
) -> bool:
    """Train a detector, from the start or from the run's last checkpoint, and leave its weights in the run's folder.

    Ctrl-C (SIGINT) and SIGTERM finish the step, and the validation where one is due, write a checkpoint and return.

    Args:
        run: its folder; with a checkpoint in it, training goes on from there to bit-identical weights.
        recipe: what to do.
        detector: of :func:`ohem.training.beginning.new_detector`; trained in place. With ``recipe.ema``, an average of
            it is what is measured and left.
        images: to train on.
        validation: to measure on, every ``recipe.evaluation.every`` iterations and at the end.
        device: CPU when omitted.
        workers: processes that read images. Their number does not change the result.
        processes: that train together, of which this is one; each takes part of the images of every step.
        observe: told of every step and log record.

    Returns:
        True when all iterations are done, False when it was interrupted.

    Raises:
        OhemError: an image cannot be read, the checkpoint is of another detector, or a loss or gradient is not finite
            (but see :class:`ohem.training.precision.Precision` for float16). A step with such a loss is kept in the
            run's folder for :func:`ohem.training.replay.replay`.
    """
    device = device or torch.device("cpu")
    detector.to(device).train()
    optimizer = build_optimizer(detector, recipe.optimizer)
    precision = Precision(recipe.precision, device)
    average = weight_average(detector, recipe.ema) if recipe.ema else None
    result = cast(FastRCNN, average.module) if average else detector
    parts: dict[str, Stateful] = {"detector": detector, "optimizer": optimizer}
    parts |= {"average": average} if average else {}
    parts |= {"precision": precision} if precision.scales else {}
    start, best = 0, None
    if run.checkpoint_file.exists():
        start, best = load_checkpoint(run.checkpoint_file, parts)
    if processes.first:
        run.forget_after(start)

    def write(record: dict[str, Any]) -> None:
        if processes.first:
            run.append(record)
            observe(record)

    def save(path: Path) -> None:
        if processes.first:
            save_detector(path, result, recipe.detector, images.dataset.classes)

    samples = Samples(images.dataset.records, images.proposals, recipe.detector.image, recipe.detector.max_proposals)
    steps = range(start, recipe.iterations)
    order = stream_seed(recipe.seed, "order")
    scales = recipe.detector.image.train_scales
    whole = training_batches(len(samples), recipe.images_per_step, steps, order, recipe.data.flip, scales)
    plan = [processes.share(batch) for batch in whole]
    offset = processes.offset(recipe.images_per_step)
    window = LogWindow(device)
    # Rows of proposals mean the same image after image only where the proposals do.
    followed = draw_count(images.dataset, FOLLOWED).records if recipe.detector.given_proposals else []
    mined = Mined(len(images.dataset.classes), [record.id for record in followed])
    with stop_on_signals(told=processes.first) as stopped:
        for iteration, batch in zip(steps, load_batches(samples, plan, workers), strict=True):
            lr = set_lr(optimizer, recipe.schedule.factor(iteration, recipe.iterations))
            window.start_step()
            optimizer.zero_grad(set_to_none=True)
            passes = [[sample] for sample in batch] if recipe.accumulate else [batch]
            for position, part in enumerate(passes, start=offset):
                rng = start_streams(recipe.seed, iteration, position)
                try:
                    with precision.autocast():
                        step = forward(detector, part, rng, device)
                    weight = len(part) / recipe.images_per_step
                    precision.backward(torch.stack(list(step.losses.values())).sum() * weight)
                    with precision.autocast():
                        window.add(step, measure_all_rois=iteration % recipe.all_rois_every == 0)
                    place = iteration * recipe.images_per_step + position
                    mined.add(place, [sample.id for sample in part], step.rois, step.selected)
                except NonFiniteLossError as error:
                    if not precision.forgives(detector):
                        raise keep_failed_step(run, recipe, detector, part, iteration, position, error) from error
            processes.sum_gradients(detector)
            trained = precision.step(optimizer, detector, recipe.optimizer.clip_norm)
            if average and trained:
                average.update_parameters(detector)
            window.end_step()

            done, last = iteration + 1, iteration + 1 == recipe.iterations
            observe({"kind": "progress", "task": "training", "done": done, "total": recipe.iterations})
            if last or done % recipe.log_every == 0:
                averages = {**window.close(processes), **precision.record(), "mined": mined.close(device, processes)}
                write({"kind": "train", "iteration": done, "lr": lr, **averages})
            if validation and (last or _is_due(done, recipe.evaluation.every)):
                value = measure(result, recipe, validation, workers, processes, observe)
                known = not math.isnan(value)  # it is not where there is no object to find
                write({"kind": "validation", "iteration": done, recipe.evaluation.metric: value if known else None})
                if known and (best is None or value > best):
                    best = value
                    save(run.best_file)
            if _is_due(done, recipe.snapshot_every):
                save(run.snapshot_file(done))
            stop = processes.any(stopped.is_set(), device)
            if processes.first and (last or stop or _is_due(done, recipe.checkpoint_every)):
                save_checkpoint(run.checkpoint_file, done, best, parts)
            if stop and not last:
                return False
            window.wait_for_data()
    save(run.weights_file)
    return True


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


def keep_failed_step(
    run: Run,
    recipe: Recipe,
    detector: FastRCNN,
    batch: list[Sample],
    iteration: int,
    position: int,
    error: NonFiniteLossError,
) -> OhemError:
    """Keep a forward pass in the run's folder; returns what stops the training and names image, RoI, term and file."""
    file = run.failed_step_file(iteration + 1)
    save_failed_step(file, recipe, detector, batch, iteration, position)
    where = f"iteration {iteration + 1}: image {batch[error.image].id}"
    return OhemError(f"{where}, {error.fault}; to run this step again: ohem.replay({str(file)!r})")


def measure(
    detector: FastRCNN,
    recipe: Recipe,
    images: AnnotatedImages,
    workers: int,
    processes: Processes = ALONE,
    observe: Observer = lambda record: None,
) -> float:
    """The recipe's metric on a data set, in [0, 1]; each process detects in its part of the images."""
    spec = recipe.detector
    found = detect(
        detector,
        processes.share(images.dataset.records),
        images.proposals,
        spec.image,
        spec.detection,
        max_proposals=spec.max_proposals,
        workers=workers,
        progress=lambda d, n: observe({"kind": "progress", "task": "validating", "done": d, "total": n}),
    )
    found = processes.gather(found)
    metric = recipe.evaluation.metric
    if metric == "coco":
        return evaluate_coco(images.dataset, found).numbers["AP"]
    return evaluate_voc(images.dataset, found, method="voc07" if metric == "voc07" else "area").mean_ap


class LogWindow:
    """Averages between two log records. The losses over the selected and over all RoIs are kept apart."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()
        self.wait_for_data()

    def _clear(self) -> None:
        self.steps = 0
        self.losses: dict[str, float] = {}
        self.seconds = {"data": 0.0, "ranking": 0.0, "training": 0.0, "measuring": 0.0}
        self.selected = self.foreground = self.candidates = self.images = 0
        self.all_sum, self.all_count = 0.0, 0

    def wait_for_data(self) -> None:
        """From now on time is spent on waiting for images."""
        self.clock = now(self.device)

    def start_step(self) -> None:
        """The images are there."""
        begin = now(self.device)
        self.seconds["data"] += begin - self.clock
        self.clock = begin
        self.other = 0.0

    def add(self, step: TrainingStep, *, measure_all_rois: bool) -> None:
        """One forward pass.

        Args:
            step: what came of it.
            measure_all_rois: have the loss over all RoIs measured where the sampler did not ask for it. The time is
                not counted as training.
        """
        for name, value in step.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + len(step.rois) * value.item()
        for rois, index in zip(step.rois, step.selected, strict=True):
            self.images += 1
            self.candidates += len(rois)
            self.selected += len(index)
            self.foreground += int((rois.labels[index] > 0).sum())
        kind = "ranking"
        if step.score.losses is None and measure_all_rois:
            kind = "measuring"
            step.score()
        self.seconds[kind] += step.score.seconds
        self.other += step.score.seconds
        for rois, losses in zip(step.rois, step.score.losses or [], strict=False):
            counted = rois.labels >= 0
            self.all_sum += float(losses.total[counted].sum())
            self.all_count += int(counted.sum())

    def end_step(self) -> None:
        """The weights have changed."""
        self.steps += 1
        self.seconds["training"] += now(self.device) - self.clock - self.other

    def close(self, processes: Processes = ALONE) -> dict[str, Any]:
        """The averages since the last call, over all processes; seconds and memory are this one's.

        Losses are averages over the images whose loss was finite, None where there was none; ``loss_all_rois`` is None
        where it was not measured.
        """
        names = sorted(processes.gather(self.losses))
        counts = (self.selected, self.foreground, self.candidates, self.images, self.all_sum, self.all_count)
        sums = processes.sum([*(self.losses.get(name, 0.0) for name in names), *counts], self.device)
        selected, foreground, candidates, images, all_sum, all_count = sums[len(names) :]
        losses = {name: value / images for name, value in zip(names, sums, strict=False)}
        record = {
            **losses,
            "loss_selected_rois": losses["loss_cls"] + losses["loss_box"] if losses else None,
            "loss_all_rois": all_sum / all_count if all_count else None,
            "foreground_share": foreground / max(selected, 1),
            "selected_per_image": selected / max(images, 1),
            "candidates_per_image": candidates / max(images, 1),
            "seconds": {name: value / self.steps for name, value in self.seconds.items()},
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        self._clear()
        return record


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use so far: of the device, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


STOPPING = b"\nstopping after this step, and its validation where one is due, to save; again: at once, unsaved\n"


@contextmanager
def stop_on_signals(*, told: bool = True) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, and say so on stderr if ``told``; a second one interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, _: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        if told:
            os.write(2, STOPPING)  # printing from here could meet a print that is under way

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
