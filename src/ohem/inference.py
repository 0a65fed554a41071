"""From images and proposals to detections: over several scales, with boxes moved twice and voted on, where asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area, box_iou

from ohem.data.dataset import Detections, ImageId, ImageRecord, Proposals
from ohem.data.loading import Draw, Sample, Samples, load_batches
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.spec import DetectionSpec, ImageSpec

CANONICAL_AREA = 224.0**2
"""SPPnet's: a RoI is seen best at the scale where it has about the size that the network was pre-trained on."""


@dataclass(frozen=True)
class Candidates:
    """Scored boxes, each of one class. ``candidates[index]`` takes some of them.

    Attributes:
        boxes: (K, 4) float32 xyxy.
        scores: (K,) float32.
        labels: (K,) int64, 1..C.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Candidates":
        return Candidates(self.boxes[index], self.scores[index], self.labels[index])

    def __add__(self, other: "Candidates") -> "Candidates":
        return Candidates(
            torch.cat([self.boxes, other.boxes]),
            torch.cat([self.scores, other.scores]),
            torch.cat([self.labels, other.labels]),
        )


def candidates_of(scores: Tensor, boxes: Tensor, threshold: float) -> Candidates:
    """Every class of every RoI that reaches the threshold.

    Args:
        scores: (R, C + 1) probabilities, background first.
        boxes: (R, C + 1, 4) xyxy, one box for each class.
        threshold: lowest score. Boxes that were clipped to nothing are left out too.
    """
    roi, label = (scores[:, 1:] >= threshold).nonzero(as_tuple=True)
    found = Candidates(boxes[roi, label + 1], scores[roi, label + 1], label + 1)
    return found[(found.boxes[:, 2:] > found.boxes[:, :2]).all(dim=1)]


def suppress(candidates: Candidates, nms_iou: float, most: int = 0) -> Candidates:
    """NMS within each class; the best ``most`` of what is left (0: all), by falling score."""
    keep = batched_nms(candidates.boxes, candidates.scores, candidates.labels, nms_iou)
    return candidates[keep[:most] if most else keep]


def vote(kept: Candidates, voters: Candidates, min_iou: float = 0.5) -> Candidates:
    """Box voting (Gidaris & Komodakis, MR-CNN, section 4; the paper, section 7).

    Each kept box becomes the mean of the voters of its class that overlap it by at least ``min_iou``, weighted by
    their scores. Scores and labels stay.

    Args:
        kept: boxes after NMS.
        voters: boxes before NMS; those that are kept are among them.
        min_iou: overlap.
    """
    weight = (box_iou(kept.boxes, voters.boxes) >= min_iou) & (kept.labels[:, None] == voters.labels)
    weighted = weight * voters.scores
    total = weighted.sum(dim=1, keepdim=True)
    mean = weighted @ voters.boxes / total.clamp(min=torch.finfo(total.dtype).tiny)
    return Candidates(torch.where(total > 0, mean, kept.boxes), kept.scores, kept.labels)


class Scorer:
    """The detector on one image, at one scale or several: boxes in, scores and moved boxes out.

    Args:
        detector: in evaluation mode.
        views: the image at each scale.
        join: see :class:`ohem.models.spec.DetectionSpec`.
    """

    def __init__(self, detector: FastRCNN, views: Sequence[Sample], join: str = "average") -> None:
        device = detector.delta_mean.device
        self.detector, self.join = detector, join
        self.sizes = [(view.image.shape[1], view.image.shape[2]) for view in views]
        self.factors = [torch.tensor([*view.scale, *view.scale], device=device) for view in views]
        self.features = [detector.features([view.image.to(device)])[0] for view in views]

    def __call__(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score and move boxes (R, 4), in pixels of the original image.

        Returns:
            Probabilities (R', C + 1), moved boxes (R', C + 1, 4) in the same pixels, and for each of the R' rows the
            index (R',) of the box it came from. R' is R, and S times R when S scales are pooled.
        """
        every = torch.arange(len(boxes), device=boxes.device)
        if self.join == "nearest":
            chosen = self._nearest(boxes)
            rows = [self._at(scale, boxes[index]) for scale, index in enumerate(chosen)]
            return torch.cat([s for s, _ in rows]), torch.cat([b for _, b in rows]), torch.cat(chosen)
        rows = [self._at(scale, boxes) for scale in range(len(self.features))]
        if self.join == "pool":
            return torch.cat([s for s, _ in rows]), torch.cat([b for _, b in rows]), every.repeat(len(rows))
        return torch.stack([s for s, _ in rows]).mean(dim=0), torch.stack([b for _, b in rows]).mean(dim=0), every

    def propose(self, given: Tensor) -> Tensor:
        """The boxes (P, 4) to begin with, in pixels of the original image.

        Args:
            given: at the first scale, in pixels of its view. A region proposal network makes its own instead, at each
                scale.
        """
        scales = range(len(self.factors)) if isinstance(self.detector, FasterRCNN) else (0,)
        found = [self.detector.propose(self.features[s], self.sizes[s], given) / self.factors[s] for s in scales]
        return torch.cat(found)

    def _at(self, scale: int, boxes: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.factors[scale]
        scores, moved = self.detector.score_rois(self.features[scale], boxes * factor, self.sizes[scale])
        return scores, moved / factor

    def _nearest(self, boxes: Tensor) -> list[Tensor]:
        """For each scale, the indices of the boxes whose area there is nearest to 224 x 224."""
        areas = torch.stack([box_area(boxes * factor) for factor in self.factors])
        nearest = (areas.clamp(min=1e-6).log() - torch.tensor(CANONICAL_AREA).log()).abs().argmin(dim=0)
        return [(nearest == scale).nonzero().squeeze(1) for scale in range(len(self.factors))]


Score = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""See :meth:`Scorer.__call__`."""


def score_and_refine(score: Score, proposals: Tensor, spec: DetectionSpec) -> Candidates:
    """All candidates of an image: R1, and with ``spec.refine`` also R2 (the paper, section 7).

    R1 are the proposals, scored and moved. Those of R1 with a score of at least ``spec.refine`` are scored and moved
    once more, each by its own class: R2. The result is their union.
    """
    scores, boxes, _ = score(proposals)
    first = candidates_of(scores, boxes, spec.score_threshold)
    if spec.refine is None:
        return first
    high = first[first.scores >= spec.refine]
    scores, boxes, source = score(high.boxes)
    label = high.labels[source]
    row = torch.arange(len(label), device=label.device)
    second = Candidates(boxes[row, label], scores[row, label], label)
    solid = (second.boxes[:, 2:] > second.boxes[:, :2]).all(dim=1)
    return first + second[solid & (second.scores >= spec.score_threshold)]


@torch.inference_mode()
def detect_image(detector: FastRCNN, views: Sequence[Sample], spec: DetectionSpec) -> Detections:
    """Detections of one image, seen at one scale or several, in pixels of the original.

    Args:
        detector: in evaluation mode.
        views: the image at each scale, not mirrored.
        spec: thresholds, and how scales are joined and boxes refined.
    """
    scorer = Scorer(detector, views, spec.join)
    proposals = scorer.propose(views[0].proposals.to(detector.delta_mean.device))
    found = score_and_refine(scorer, proposals, spec)
    kept = suppress(found, spec.nms_iou, spec.max_detections)
    if spec.refine is not None and spec.vote_iou is not None:
        kept = vote(kept, found, spec.vote_iou)
    return Detections(kept.boxes.cpu().numpy(), kept.scores.cpu().numpy(), kept.labels.cpu().numpy())


def detect(
    detector: FastRCNN,
    records: Sequence[ImageRecord],
    proposals: Proposals,
    image: ImageSpec,
    detection: DetectionSpec,
    *,
    max_proposals: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[ImageId, Detections]:
    """Run a detector over images.

    Args:
        detector: put in evaluation mode while this runs.
        records: images; their annotations are not looked at.
        proposals: of each image, in its pixels.
        image: how images are resized; all of its test scales are used.
        detection: thresholds, and how scales are joined and boxes refined.
        max_proposals: the first this many of each image; 0: all.
        workers: processes that read images; 0: none.
        progress: called with images done and images in all.

    Raises:
        OhemError: an image cannot be read.
    """
    was_training = detector.training
    samples = Samples(records, proposals, image, max_proposals)
    scales = image.test_scales or (image.shortest,)
    draws = [[Draw(i, shortest=s) for s in scales] for i in range(len(records))]
    found: dict[ImageId, Detections] = {}
    detector.eval()
    try:
        for views in load_batches(samples, draws, workers):
            found[views[0].id] = detect_image(detector, views, detection)
            if progress:
                progress(len(found), len(records))
    finally:
        detector.train(was_training)
    return found
