"""What a training begins with: images with their proposals, and a detector of a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.boxes import DeltaStats
from ohem.data.dataset import DetectionDataset, Proposals
from ohem.models.backbones import Preprocessing
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import RANDOM_ANCHORS, FasterRCNN
from ohem.models.pretrained import load_pretrained
from ohem.models.pyramid_weights import load_torchvision_weights
from ohem.models.spec import AnyDetectorSpec, DetectorSpec, TorchvisionSpec
from ohem.models.weights import build_detector, start_from
from ohem.recipes.recipe import Recipe
from ohem.rois import label_rois
from ohem.training.checkpoint import stream_seed
from ohem.training.run import find_weights


@dataclass(frozen=True, eq=False)
class AnnotatedImages:
    """A data set with its proposals."""

    dataset: DetectionDataset
    proposals: Proposals


def new_detector(recipe: Recipe, images: AnnotatedImages) -> FastRCNN:
    """The detector before the first step: weights random (from the recipe's seed), pre-trained, or another run's.

    Raises:
        OhemError: the recipe names a backbone or weights that are not to be had.
    """
    torch.manual_seed(stream_seed(recipe.seed, "weights"))
    classes = images.dataset.classes
    detector = build_detector(recipe.detector, len(classes))
    if recipe.init_from is None:
        start_pretrained(detector, recipe.detector, classes)
    if isinstance(recipe.detector, DetectorSpec) and recipe.detector.delta_stats == "empirical":
        stats = empirical_stats(images, recipe)
        detector.delta_mean.copy_(stats.mean)
        detector.delta_std.copy_(stats.std)
    if recipe.init_from is not None:
        start_from(detector, classes, find_weights(recipe.init_from, "best"))
    set_method(detector, recipe)
    return detector


def empty_detector(recipe: Recipe, num_classes: int, preprocessing: Preprocessing) -> FastRCNN:
    """The detector that a recipe trains, for weights that are there already: those of a checkpoint or a failed step."""
    detector = build_detector(recipe.detector, num_classes)
    detector.backbone.preprocessing = preprocessing
    set_method(detector, recipe)
    return detector


def start_pretrained(detector: FastRCNN, spec: AnyDetectorSpec, classes: tuple[str, ...]) -> None:
    """Give a new detector the published weights that its spec names.

    Raises:
        OhemError: they are not to be had or do not fit.
    """
    if isinstance(spec, TorchvisionSpec):
        load_torchvision_weights(detector, spec, classes)
    else:
        load_pretrained(detector, spec.backbone)


def set_method(detector: FastRCNN, recipe: Recipe) -> None:
    """What a recipe trains by, and weights do not know: samplers, loss and form of mining."""
    detector.sampler, detector.reweight, detector.mining = recipe.sampler, recipe.loss, recipe.mining
    detector.rank_by(recipe.ranking)
    if isinstance(detector, FasterRCNN):
        detector.rpn_sampler = recipe.rpn_sampler or RANDOM_ANCHORS


def empirical_stats(images: AnnotatedImages, recipe: Recipe) -> DeltaStats:
    """Per-class mean and std of the deltas of all foreground RoIs, mirrored ones included when training mirrors.

    Deltas do not depend on an image's scale, so no picture is read.
    """
    limit = recipe.detector.max_proposals or None

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
