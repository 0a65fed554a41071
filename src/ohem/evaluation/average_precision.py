"""Average precision as PASCAL VOC defines it, as pure functions on arrays of one class.

The order of the functions is the order of the work: `match_detections` says which detections are right,
`precision_recall` draws the curve, `average_precision` makes one number of it.

The standard followed is the MATLAB development kit of the challenge (``VOCevaldet.m``, ``VOCap.m``). VOC's boxes are
inclusive, so it counts a width as ``xmax - xmin + 1``. With ``x1 = xmin - 1`` and ``x2 = xmax`` that is ``x2 - x1``:
the half-open boxes used here give VOC's overlaps without any ``+ 1``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ApMethod = Literal["voc07", "area"]
"""``voc07``: mean of 11 points, VOC 2007 to 2009. ``area``: area under the envelope, VOC 2010 and later."""

# k/10 correctly rounded, so that a recall of exactly k/10 reaches level k. Multiples of a rounded 0.1, as in MATLAB's
# 0:0.1:1 and NumPy's arange(0, 1.1, 0.1), lie one rounding error above 3/10 (NumPy's also above 6/10 and 7/10).
RECALL_LEVELS = np.arange(11) / 10


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of each detection of one class, in the order the detections were given.

    Attributes:
        iou: (D,) float64, overlap with the object of its image that it overlaps most; 0 where it touches none.
        gt: (D,) int64, row of that object; -1 where it touches none.
        true_positive: (D,) bool, the first by score to find its object.
        ignored: (D,) bool, it found an ignored object and counts neither for nor against.
            Whatever is neither true positive nor ignored is a false positive.
    """

    iou: NDArray[np.float64]
    gt: NDArray[np.int64]
    true_positive: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """The precision-recall curve of one class: one point per counted detection, by falling score.

    Attributes:
        recall: (P,) float64, rising; nan where the class has no object to find.
        precision: (P,) float64, as measured, without the envelope.
        scores: (P,) float64, falling: the threshold at which each point is reached.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]


def match_detections(
    images: NDArray[np.int64],
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    gt_images: NDArray[np.int64],
    gt_boxes: NDArray[np.float64],
    gt_ignored: NDArray[np.bool_],
    iou_threshold: float = 0.5,
) -> Matches:
    """Match the detections of one class, over all images, with that class's objects, as ``VOCevaldet.m`` does.

    A detection goes to the object of its image that it overlaps most (the first of equals), found already or not,
    and has found it if the overlap is at least the threshold. (``>=`` is the kit's; its well-known Python port has
    ``>``.) The highest score that finds an object is its true positive, later ones are false positives; between equal
    scores the one given first wins. Finding an ignored object is neither right nor wrong, however often it happens.

    Args:
        images: (D,) the image of each detection.
        boxes: (D, 4) xyxy, 0-based half-open pixels.
        scores: (D,).
        gt_images: (G,) the image of each object.
        gt_boxes: (G, 4), as ``boxes``.
        gt_ignored: (G,) objects that need not be found: difficult ones, crowds.
        iou_threshold: in (0, 1].
    """
    iou, gt = best_overlaps(images, boxes, gt_images, gt_boxes)
    found = iou >= iou_threshold
    ignored = np.zeros(len(boxes), dtype=np.bool_)
    ignored[found] = gt_ignored[gt[found]]

    claims = _by_falling_score(scores)
    claims = claims[(found & ~ignored)[claims]]
    _, first_claims = np.unique(gt[claims], return_index=True)
    true_positive = np.zeros(len(boxes), dtype=np.bool_)
    true_positive[claims[first_claims]] = True
    return Matches(iou, gt, true_positive, ignored)


def precision_recall(scores: NDArray[np.float64], matches: Matches, num_gt: int) -> PrecisionRecall:
    """Recall and precision after each counted detection, by falling score, equal scores as given.

    Args:
        scores: (D,), those that `match_detections` was given.
        matches: its result.
        num_gt: how many objects there are to find, the ignored ones left out.
    """
    order = _by_falling_score(scores)
    counted = order[~matches.ignored[order]]
    right = np.cumsum(matches.true_positive[counted])
    recall = right / num_gt if num_gt else np.full(len(counted), np.nan)
    precision = right / np.arange(1, len(counted) + 1)
    return PrecisionRecall(recall, precision, scores[counted])


def average_precision(recall: NDArray[np.float64], precision: NDArray[np.float64], method: ApMethod = "voc07") -> float:
    """Average precision of one class, in [0, 1]; 0 for a class without detections.

    ``voc07`` is the mean, over the recalls t = 0, 0.1, ..., 1, of the highest precision at a recall of at least t.
    The levels are exact, where the development kit's are sums of a rounded 0.1: a recall of exactly 3/10 reaches 0.3
    here and misses it there. ``area`` is the area under the curve once precision is made to fall monotonically.

    Args:
        recall: (P,) rising, without nan.
        precision: (P,).
        method: see `ApMethod`.

    Raises:
        ValueError: the method is unknown.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "voc07":
        reached = np.searchsorted(recall, RECALL_LEVELS, side="left")
        return float(np.append(envelope, 0.0)[reached].mean())
    if method == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    raise ValueError(f"method: found {method!r}; allowed: 'voc07', 'area'")


def _by_falling_score(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")


def best_overlaps(
    images: NDArray[np.int64],
    boxes: NDArray[np.float64],
    gt_images: NDArray[np.int64],
    gt_boxes: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each detection, its highest overlap with an object of its image, and that object's row (-1: none)."""
    by_image = np.argsort(gt_images, kind="stable")
    first = np.searchsorted(gt_images[by_image], images, side="left")
    count = np.searchsorted(gt_images[by_image], images, side="right") - first
    best_iou = np.zeros(len(boxes))
    best_gt = np.full(len(boxes), -1, dtype=np.int64)
    # All detections meet the k-th object of their image at once: as many turns as the fullest image has objects.
    for k in range(count.max(initial=0)):
        rows = np.flatnonzero(count > k)
        candidates = by_image[first[rows] + k]
        iou = _paired_iou(boxes[rows], gt_boxes[candidates])
        better = iou > best_iou[rows]
        best_iou[rows[better]] = iou[better]
        best_gt[rows[better]] = candidates[better]
    return best_iou, best_gt


def _paired_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) and (N, 4) half-open boxes -> (N,) overlaps; 0 where both boxes are empty."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.prod(np.maximum(sides, 0.0), axis=1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)
    return iou
