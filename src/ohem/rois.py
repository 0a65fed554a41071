"""Candidate regions of an image and what each is to be trained as."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from ohem.boxes import DeltaStats, encode_deltas

IGNORED = -1
BACKGROUND = 0


@dataclass
class Rois:
    """The R candidate regions of one image. ``rois[index]`` takes some of them.

    Attributes:
        boxes: (R, 4) float32 xyxy, pixels of the network's input.
        labels: (R,) int64: the class 1..C, 0 for background, -1 for ignored (on difficult or crowd objects).
        max_iou: (R,) float32, overlap with the best ground-truth box; 0 where there is none.
        deltas: (R, 4) float32, normalised box-regression targets; 0 where the label is not a class.
    """

    boxes: Tensor
    labels: Tensor
    max_iou: Tensor
    deltas: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Rois":
        return Rois(self.boxes[index], self.labels[index], self.max_iou[index], self.deltas[index])


def greatest_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """(R, 4) and (G, 4) -> (R,) the overlap of each box with the one of ``truth`` that it overlaps most; 0 of none."""
    return box_iou(boxes, truth).amax(dim=1) if len(truth) else boxes.new_zeros(len(boxes))


def label_rois(
    proposals: Tensor,
    boxes: Tensor,
    labels: Tensor,
    stats: DeltaStats,
    *,
    difficult: Tensor | None = None,
    crowd: Tensor | None = None,
    fg_iou: float = 0.5,
    ignore: bool = True,
    add_ground_truth: bool = True,
) -> Rois:
    """Give every proposal a label and a regression target (paper, section 3.1).

    A RoI is foreground of the class of the ground-truth box it overlaps most when that IoU is at least ``fg_iou``, and
    background otherwise. There is no lower bound here: bg_lo belongs to the sampler that uses it.

    Difficult and crowd objects are never ground truth. With ``ignore``, a RoI that is not foreground is ignored when
    its IoU with a difficult object is at least ``fg_iou``, or when at least that share of its own area lies in a crowd
    region (COCO's rule for crowds). Without, it is background, as in the authors' code.

    Args:
        proposals: (P, 4) xyxy, pixels of the network's input.
        boxes: (G, 4) xyxy annotated objects.
        labels: (G,) int64, 1..C.
        stats: how deltas are normalised.
        difficult: (G,) bool, none when omitted.
        crowd: (G,) bool, none when omitted.
        fg_iou: overlap from which a RoI is foreground.
        ignore: see above.
        add_ground_truth: put the ground-truth boxes behind the proposals, as the authors' code does (the paper is
            silent).

    Returns:
        P (+ number of ground-truth boxes) RoIs.

    Raises:
        ValueError: a box or proposal has no area or is not finite. One such box gives a NaN loss, which would sort as
            the hardest example there is.
    """
    no = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    difficult, crowd = (no if flag is None else flag for flag in (difficult, crowd))
    require_area("proposals", proposals)
    require_area("boxes", boxes)
    truth = ~(difficult | crowd)
    gt_boxes, gt_labels = boxes[truth], labels[truth]
    candidates = torch.cat([proposals, gt_boxes]) if add_ground_truth else proposals

    if len(gt_boxes):
        max_iou, match = box_iou(candidates, gt_boxes).max(dim=1)
    else:
        max_iou, match = candidates.new_zeros(len(candidates)), labels.new_zeros(len(candidates))
    foreground = max_iou >= fg_iou
    roi_labels = labels.new_full((len(candidates),), BACKGROUND)
    roi_labels[foreground] = gt_labels[match[foreground]]
    if ignore and not truth.all():
        roi_labels[on_ignored(candidates, boxes[difficult & ~crowd], boxes[crowd], fg_iou) & ~foreground] = IGNORED

    deltas = candidates.new_zeros(len(candidates), 4)
    raw = encode_deltas(candidates[foreground], gt_boxes[match[foreground]])
    deltas[foreground] = stats.normalize(raw, roi_labels[foreground])
    return Rois(candidates, roi_labels, max_iou, deltas)


def on_ignored(candidates: Tensor, difficult: Tensor, crowd: Tensor, share: float) -> Tensor:
    """(R,) bool: an IoU of at least ``share`` with a difficult object, or that share of its own area in a crowd region.

    Args:
        candidates: (R, 4) xyxy.
        difficult: (D, 4) boxes.
        crowd: (K, 4) regions.
        share: in (0, 1].
    """
    overlaps = torch.cat([box_iou(candidates, difficult), _share_inside(candidates, crowd)], dim=1)
    return overlaps.ge(share).any(dim=1)


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """(R, K): intersection of each box with each region, as a share of the box's area."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shares: Tensor = (high - low).clamp(min=0).prod(dim=2) / box_area(boxes)[:, None]
    return shares


def require_area(name: str, boxes: Tensor) -> None:
    """Raise ValueError for a box without area, or with a coordinate that is not finite."""
    bad = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}[{first}]: found {boxes[first].tolist()}; allowed: finite x1 < x2 and y1 < y2"
            f" ({int(bad.sum())} of {len(boxes)} are not)"
        )
