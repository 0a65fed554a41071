"""What is hard: the losses of all RoIs of a data set, under one detector."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.data.dataset import ImageRecord, Proposals
from ohem.data.loading import Draw, Sample, Samples, load_batches
from ohem.losses import RoiLosses
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.roi_head import Feature
from ohem.models.spec import AnyDetectorSpec
from ohem.rois import Rois

Classify = Callable[[Tensor], Tensor]
"""(K, 4) boxes in pixels of the original image -> (K, C + 1) class probabilities, background first."""


def _forgotten(boxes: Tensor) -> Tensor:
    raise ValueError("classify: found an image without features; allowed: one that score_images yielded last")


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """All RoIs of one image and what each costs.

    Attributes:
        record: the image.
        rois: labelled; boxes in pixels of the original image, xyxy, 0-based half-open.
        losses: of each, without dropout.
        classify: what the detector takes boxes of this image for.
    """

    record: ImageRecord
    rois: Rois
    losses: RoiLosses
    classify: Classify = _forgotten


def score_images(
    detector: FastRCNN,
    spec: AnyDetectorSpec,
    records: Sequence[ImageRecord],
    proposals: Proposals,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ScoredImage]:
    """The losses of all RoIs of images as they are, not mirrored, without dropout.

    A detector with a region proposal network is measured on its own proposals, those of detection.

    This is how section 5.5 compares samplers: a loss that does not depend on which RoIs a sampler would choose.

    Args:
        detector: put in evaluation mode. Its ranking is exact here, whatever :meth:`FastRCNN.rank_by` says.
        spec: of the detector.
        records: the images.
        proposals: of each.
        workers: processes that read images.
        progress: called with images done and images in all.
    """
    detector.eval()
    device = detector.delta_mean.device
    samples = Samples(records, proposals, spec.image, spec.max_proposals)
    batches = load_batches(samples, [[Draw(i)] for i in range(len(records))], workers)
    for done, (record, (sample,)) in enumerate(zip(records, batches, strict=True), start=1):
        target = {name: value.to(device) for name, value in sample.target.items()}
        size = (sample.image.shape[1], sample.image.shape[2])
        with torch.inference_mode():
            features = detector.features([sample.image.to(device)])
            rois = detector.label(detector.propose(features[0], size, sample.proposals.to(device)), target)
            losses = detector.rank(features, [rois], dropout=False, exact=True)[0]
        rois.boxes = rois.boxes / rois.boxes.new_tensor([*sample.scale, *sample.scale])
        yield ScoredImage(record, rois, losses, _classifier(detector, features[0], sample))
        if progress:
            progress(done, len(records))


def _classifier(detector: FastRCNN, features: Feature, sample: Sample) -> Classify:
    size = (sample.image.shape[1], sample.image.shape[2])

    def classify(boxes: Tensor) -> Tensor:
        with torch.inference_mode():
            boxes = boxes.to(detector.delta_mean.device)
            return detector.score_rois(features, boxes * boxes.new_tensor([*sample.scale, *sample.scale]), size)[0]

    return classify


def mean_loss(images: Iterator[ScoredImage]) -> float:
    """Mean loss per RoI over all RoIs that are not ignored (figure 3)."""
    total, count = 0.0, 0
    for image in images:
        counted = image.rois.labels >= 0
        total += float(image.losses.total[counted].double().sum())
        count += int(counted.sum())
    return total / max(count, 1)
