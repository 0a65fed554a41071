"""Claim C13 (section 4.1): a class that is left out of the mini-batches gains loss until it is chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ohem.data.dataset import DetectionDataset, ImageRecord, Proposals
from ohem.data.loading import Sample, Samples, load_batches, training_batches
from ohem.data.split import draw_count
from ohem.mining import score_images
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import AnyDetectorSpec
from ohem.opening import Reporter
from ohem.recipes.recipe import Recipe
from ohem.rois import IGNORED, Rois
from ohem.samplers import Sampler, Score
from ohem.training.checkpoint import stream_seed
from ohem.training.loop import forward
from ohem.training.optimizer import build_optimizer, clip, set_lr

LOOKS = 3
MEASURED_IMAGES = 100
RATE = 0.2
"""Of the recipe's learning rate, held constant: the detector is trained already."""


@dataclass
class Watched:
    """A sampler that never chooses one label, where one is given, and notes what its inner sampler chose.

    Attributes:
        inner: the sampler.
        label: what is watched.
        left_out: never choose it.
        shares: of each image, the share of the watched label among the chosen.
        foreground: of each image, the share of foreground among the chosen.
    """

    inner: Sampler
    label: int
    left_out: bool
    shares: list[float] = field(default_factory=list)
    foreground: list[float] = field(default_factory=list)

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """The inner sampler's choice."""
        seen = rois
        if self.left_out:
            seen = [replace(r, labels=r.labels.masked_fill(r.labels == self.label, IGNORED)) for r in rois]
        chosen = self.inner(seen, score, rng)
        for image, index in zip(rois, chosen, strict=True):
            if len(index):
                self.shares.append(float((image.labels[index] == self.label).float().mean()))
                self.foreground.append(float((image.labels[index] > 0).float().mean()))
        return chosen


def neglect(
    detector: FastRCNN,
    spec: AnyDetectorSpec,
    recipe: Recipe,
    images: DetectionDataset,
    proposals: Proposals,
    label: int,
    steps: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train on without a class for some steps, then with it for as many, and watch its loss.

    Args:
        detector: trained; changed.
        spec: of the detector.
        recipe: it was trained with; its learning rate times :data:`RATE`, constant.
        images: training images.
        proposals: of each.
        label: 1..C.
        steps: of each of the two parts.
        reporter: told of the progress.

    Returns:
        ``loss_left_out`` and ``loss_chosen``: the class's mean loss over its RoIs in some training images, before each
        part's first step and at equal distances to its last; ``share_chosen``: the class's share of the chosen RoIs
        over the first and the last quarter of the second part; ``all_foreground``, ``all_background``, ``images``:
        how many images of the second part had only the one or the other chosen, and how many there were.
    """
    fixed = draw_count(_with(images, label), MEASURED_IMAGES)
    optimizer = build_optimizer(detector, recipe.optimizer)
    set_lr(optimizer, RATE)
    rng = Generator().manual_seed(stream_seed(recipe.seed, "neglect"))
    torch.manual_seed(stream_seed(recipe.seed, "neglect dropout"))
    samples = Samples(images.records, proposals, spec.image, spec.max_proposals)
    order = stream_seed(recipe.seed, "neglect order")
    plan = training_batches(len(samples), recipe.images_per_step, range(2 * steps), order, recipe.data.flip)
    batches = load_batches(samples, plan, 0)
    watched = [Watched(recipe.sampler, label, left_out) for left_out in (True, False)]
    losses: list[list[float]] = []
    for part, sampler in enumerate(watched):
        detector.sampler = sampler
        losses.append([_class_loss(detector, spec, fixed, proposals, label)])
        for look in range(LOOKS):
            count = steps * (look + 1) // LOOKS - steps * look // LOOKS
            _train_on(detector, optimizer, recipe, batches, count, rng)
            losses[part].append(_class_loss(detector, spec, fixed, proposals, label))
            reporter.progress("a class left out", part * LOOKS + look + 1, 2 * LOOKS)
    chosen = watched[1]
    quarter = max(len(chosen.shares) // 4, 1)
    return {
        "loss_left_out": losses[0],
        "loss_chosen": losses[1],
        "share_chosen": [_mean(chosen.shares[:quarter]), _mean(chosen.shares[-quarter:])],
        "all_foreground": sum(share == 1 for share in chosen.foreground),
        "all_background": sum(share == 0 for share in chosen.foreground),
        "images": len(chosen.foreground),
    }


def _train_on(
    detector: FastRCNN,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batches: Iterator[Sequence[Sample]],
    steps: int,
    rng: Generator,
) -> None:
    detector.train()
    device = detector.delta_mean.device
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses = forward(detector, next(batches), rng, device).losses
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        clip(detector, recipe.optimizer.clip_norm)
        optimizer.step()


def _class_loss(
    detector: FastRCNN, spec: AnyDetectorSpec, images: DetectionDataset, proposals: Proposals, label: int
) -> float:
    scored = list(score_images(detector, spec, images.records, proposals, workers=0))
    return float(torch.cat([image.losses.total[image.rois.labels == label] for image in scored]).mean())


def _with(images: DetectionDataset, label: int) -> DetectionDataset:
    return replace(images, records=tuple(r for r in images.records if (trained_labels(r) == label).any()))


def trained_labels(record: ImageRecord) -> NDArray[np.int64]:
    """Labels, from 1, of an image's objects but difficult ones and crowds, which no RoI is to be."""
    labels: NDArray[np.int64] = record.labels[~(record.difficult | record.crowd)]
    return labels


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
