"""Why detections are wrong, and what each kind of error costs: TIDE, as pure functions on arrays.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020
(https://arxiv.org/abs/2008.08115), sections 2.2 and 2.3. Which detections are right is VOC's matter here
(:func:`ohem.evaluation.average_precision.match_detections`), so that these errors explain VOC's AP; TIDE matches as COCO
does. A detection that could be of several kinds is of the first that fits, in the order of the authors' code:
localisation, class, duplicate, background, both.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohem.evaluation.average_precision import (
    ApMethod,
    Matches,
    average_precision,
    best_overlaps,
    match_detections,
    precision_recall,
)

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
"""Near an object of another class; too far from one of its own; both at once; on an object that a higher score found;
on nothing; and an object that no detection was near enough to."""

CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NO_ERROR = -1


@dataclass(frozen=True, eq=False)
class Errors:
    """What became of every detection and object, over all classes.

    Attributes:
        kinds: (D,) int64, an index of `KINDS`; -1 where it is right, or on an ignored object.
        objects: (D,) int64, row of the object that decided on ``right`` or on the kind; -1 where there is none.
        right: (D,) bool, true positives.
        missed: (G,) bool, neither found nor near a detection of kind class or localisation.
    """

    kinds: NDArray[np.int64]
    objects: NDArray[np.int64]
    right: NDArray[np.bool_]
    missed: NDArray[np.bool_]


def find_errors(
    images: NDArray[np.int64],
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    gt_images: NDArray[np.int64],
    gt_boxes: NDArray[np.float64],
    gt_labels: NDArray[np.int64],
    gt_ignored: NDArray[np.bool_],
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
) -> Errors:
    """Sort every wrong detection into one kind, and name the objects that were missed.

    Args:
        images: (D,) the image of each detection.
        boxes: (D, 4) xyxy, 0-based half-open pixels.
        scores: (D,).
        labels: (D,) 1..C.
        gt_images: (G,) the image of each object.
        gt_boxes: (G, 4), as ``boxes``.
        gt_labels: (G,) 1..C.
        gt_ignored: (G,) objects that need not be found.
        iou_threshold: the overlap from which an object counts as found; TIDE's t_f.
        background_iou: the overlap up to which a detection is on nothing; TIDE's t_b.
    """
    kinds = np.full(len(boxes), NO_ERROR, dtype=np.int64)
    objects = np.full(len(boxes), -1, dtype=np.int64)
    right = np.zeros(len(boxes), dtype=np.bool_)
    for label in np.unique(labels):
        d, same = np.flatnonzero(labels == label), np.flatnonzero(gt_labels == label)
        own, other = same[~gt_ignored[same]], np.flatnonzero((gt_labels != label) & ~gt_ignored)
        found = match_detections(
            images[d], boxes[d], scores[d], gt_images[same], gt_boxes[same], gt_ignored[same], iou_threshold
        )
        own_iou, own_gt = best_overlaps(images[d], boxes[d], gt_images[own], gt_boxes[own])
        other_iou, other_gt = best_overlaps(images[d], boxes[d], gt_images[other], gt_boxes[other])
        right[d] = found.true_positive
        wrong = ~found.true_positive & ~found.ignored
        kinds[d] = np.where(wrong, _kinds(own_iou, other_iou, iou_threshold, background_iou), NO_ERROR)
        by_other = (kinds[d] == CLASS) | ((kinds[d] == BOTH) & (other_iou > own_iou))
        objects[d] = np.where(by_other, _rows(other, other_gt), _rows(own, own_gt))
        objects[d[found.ignored]] = _rows(same, found.gt)[found.ignored]
        objects[d[kinds[d] == BACKGROUND]] = -1
    covered = np.zeros(len(gt_boxes), dtype=np.bool_)
    covered[objects[right | (kinds == CLASS) | (kinds == LOCALISATION)]] = True
    return Errors(kinds, objects, right, ~covered & ~gt_ignored)


def _rows(chosen: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of all objects that these places among the chosen ones are; -1 stays."""
    return np.append(chosen, -1)[places]


def _kinds(
    own_iou: NDArray[np.float64], other_iou: NDArray[np.float64], iou_threshold: float, background_iou: float
) -> NDArray[np.int64]:
    """Of wrong detections, by their highest overlaps with objects to find of their class and of others."""
    choices = (
        ((own_iou > background_iou) & (own_iou < iou_threshold), LOCALISATION),
        (other_iou >= iou_threshold, CLASS),
        (own_iou >= iou_threshold, DUPLICATE),
        (np.maximum(own_iou, other_iou) <= background_iou, BACKGROUND),
    )
    return np.select([condition for condition, _ in choices], [np.int64(kind) for _, kind in choices], np.int64(BOTH))


def ap_without(
    errors: Errors,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    gt_labels: NDArray[np.int64],
    gt_ignored: NDArray[np.bool_],
    method: ApMethod = "voc07",
) -> dict[str, float]:
    """The gain in mean AP if one kind of error were mended and nothing else changed (TIDE, section 2.3).

    Of the detections with a wrong class or place near one object the highest score becomes right, unless the object was
    found already; the others go. Detections of the other kinds go. Missed objects need no longer be found. Gains do not
    add up: what one kind hides another shows.

    Args:
        errors: of :func:`find_errors`.
        scores: (D,), as it was given.
        labels: (D,).
        gt_labels: (G,).
        gt_ignored: (G,).
        method: see :data:`ohem.evaluation.average_precision.ApMethod`.

    Returns:
        each of `KINDS` -> difference of mean AP, in [-1, 1]; all nan where there is no object to find, that of missed
        ones where all are missed.
    """
    counted = errors.right | (errors.kinds != NO_ERROR)
    to_find = ~gt_ignored
    base = _mean_ap(scores, labels, errors.right, counted, gt_labels[to_find], method)
    gains = {}
    for kind, name in enumerate(KINDS):
        mended_labels, right = labels.copy(), errors.right.copy()
        if kind in (CLASS, LOCALISATION):
            best = _mendable(errors, scores, kind)
            mended_labels[best] = gt_labels[errors.objects[best]]
            right[best] = True
        kept = counted & ((errors.kinds != kind) | right)
        needed = to_find & ~errors.missed if kind == MISSED else to_find
        gains[name] = _mean_ap(scores, mended_labels, right, kept, gt_labels[needed], method) - base
    return gains


def _mendable(errors: Errors, scores: NDArray[np.float64], kind: int) -> NDArray[np.int64]:
    """Rows of the highest score of this kind near each object that nothing has found."""
    rows = np.flatnonzero((errors.kinds == kind) & ~np.isin(errors.objects, errors.objects[errors.right]))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    _, first = np.unique(errors.objects[rows], return_index=True)
    return rows[first]


def _mean_ap(
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    objects: NDArray[np.int64],
    method: ApMethod,
) -> float:
    values = []
    for label in np.unique(objects):
        d = (labels == label) & counted
        nothing = np.zeros(np.sum(d))
        matches = Matches(nothing, nothing.astype(np.int64), right[d], nothing.astype(np.bool_))
        curve = precision_recall(scores[d], matches, int(np.sum(objects == label)))
        values.append(average_precision(curve.recall, curve.precision, method))
    return float(np.mean(values)) if values else float("nan")
