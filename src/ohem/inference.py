"""From images and proposals to detections."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ohem.data.dataset import Detections, ImageId, ImageRecord, Proposals
from ohem.data.loading import Draw, Sample, Samples, load_batches
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import DetectionSpec, ImageSpec


def postprocess(scores: Tensor, boxes: Tensor, spec: DetectionSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, NMS within each class, and the best of what is left (Fast R-CNN; NMS at 0.3 in the paper).

    Args:
        scores: (R, C + 1) probabilities, background first.
        boxes: (R, C + 1, 4) xyxy, one box for each class.
        spec: thresholds.

    Returns:
        Boxes (D, 4), scores (D,), labels (D,) in 1..C, by falling score.
    """
    roi, label = (scores[:, 1:] >= spec.score_threshold).nonzero(as_tuple=True)
    label = label + 1
    found, moved = scores[roi, label], boxes[roi, label]
    solid = (moved[:, 2:] > moved[:, :2]).all(dim=1)
    found, moved, label = found[solid], moved[solid], label[solid]
    keep = batched_nms(moved, found, label, spec.nms_iou)
    keep = keep[: spec.max_detections] if spec.max_detections else keep
    return moved[keep], found[keep], label[keep]


@torch.inference_mode()
def detect_sample(detector: FastRCNN, sample: Sample, spec: DetectionSpec) -> Detections:
    """Detections of one image, in pixels of the original. The detector must be in evaluation mode."""
    device = detector.delta_mean.device
    image, proposals = sample.image.to(device), sample.proposals.to(device)
    feature = detector.features([image])[0]
    scores, boxes = detector.score_rois(feature, proposals, (image.shape[1], image.shape[2]))
    boxes, scores, labels = postprocess(scores, boxes, spec)
    boxes = boxes / boxes.new_tensor([*sample.scale, *sample.scale])
    return Detections(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy())


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
        image: how images are resized.
        detection: thresholds.
        max_proposals: the first this many of each image; 0: all.
        workers: processes that read images; 0: none.
        progress: called with images done and images in all.

    Raises:
        OhemError: an image cannot be read.
    """
    was_training = detector.training
    detector.eval()
    samples = Samples(records, proposals, image, max_proposals)
    found: dict[ImageId, Detections] = {}
    for batch in load_batches(samples, [[Draw(i)] for i in range(len(records))], workers):
        found[batch[0].id] = detect_sample(detector, batch[0], detection)
        if progress:
            progress(len(found), len(records))
    detector.train(was_training)
    return found
