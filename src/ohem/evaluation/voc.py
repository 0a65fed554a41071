"""VOC's metric over a data set: average precision per class, and its mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, Detections, ImageId
from ohem.errors import OhemError
from ohem.evaluation.average_precision import (
    ApMethod,
    PrecisionRecall,
    average_precision,
    match_detections,
    precision_recall,
)
from ohem.evaluation.columns import DetectionColumns, ObjectColumns, detection_columns, object_columns


@dataclass(frozen=True, eq=False)
class VocResult:
    """Average precision per class; the arrays follow ``classes``.

    Attributes:
        classes: class names.
        method: how a curve became a number.
        iou_threshold: the overlap from which an object counts as found.
        ap: (C,) float64 in [0, 1]: 0 for a class without detections, nan for one without objects to find.
        num_gt: (C,) int64, objects to find.
        num_ignored: (C,) int64, difficult objects and crowds, which need not be found.
        curves: one precision-recall curve per class.
    """

    classes: tuple[str, ...]
    method: ApMethod
    iou_threshold: float
    ap: NDArray[np.float64]
    num_gt: NDArray[np.int64]
    num_ignored: NDArray[np.int64]
    curves: tuple[PrecisionRecall, ...]

    @property
    def mean_ap(self) -> float:
        """Mean over the classes that have objects to find; nan if none has."""
        measured = self.ap[self.num_gt > 0]
        return float(measured.mean()) if len(measured) else math.nan

    @property
    def classes_without_gt(self) -> tuple[str, ...]:
        """The classes left out of the mean."""
        return tuple(name for name, count in zip(self.classes, self.num_gt, strict=True) if count == 0)

    def rows(self) -> list[tuple[str, float]]:
        """(name, value) for a printed table: every class, then ``mean``."""
        return [*zip(self.classes, self.ap.tolist(), strict=True), ("mean", self.mean_ap)]

    def to_json(self) -> dict[str, Any]:
        """The numbers, without the curves, as JSON holds them; nan becomes None."""
        per_class = zip(self.classes, self.ap, self.num_gt, self.num_ignored, strict=True)
        return {
            "metric": "voc",
            "method": self.method,
            "iou_threshold": self.iou_threshold,
            "mean_ap": None if math.isnan(self.mean_ap) else self.mean_ap,
            "classes_without_gt": list(self.classes_without_gt),
            "classes": [
                {
                    "name": name,
                    "ap": None if np.isnan(ap) else float(ap),
                    "num_gt": int(num_gt),
                    "num_ignored": int(num_ignored),
                }
                for name, ap, num_gt, num_ignored in per_class
            ],
        }


def evaluate_voc(
    dataset: DetectionDataset,
    detections: Mapping[ImageId, Detections],
    iou_threshold: float = 0.5,
    method: ApMethod = "voc07",
) -> VocResult:
    """Average precision of every class, in float64.

    Difficult objects and crowds are ignored: they need not be found and finding them is no error. A class without any
    other object has no average precision (nan), is left out of the mean and is named in ``classes_without_gt``.
    Between equal scores the order is that of ``dataset.records``, and within an image that of its rows.

    Args:
        dataset: the images and their objects.
        detections: one entry for every image, with zero rows where nothing was found.
        iou_threshold: in (0, 1].
        method: ``voc07`` for VOC 2007's published numbers, ``area`` for those from 2010 on.

    Raises:
        OhemError: the detections do not fit the data set, or the threshold is out of range.
    """
    if not 0 < iou_threshold <= 1:
        raise OhemError(f"iou_threshold: found {iou_threshold}; allowed: above 0, at most 1")
    objects = object_columns(dataset)
    found = detection_columns(dataset, detections)
    ignored = objects.difficult | objects.crowd
    labels = range(1, len(dataset.classes) + 1)
    num_gt = np.array([np.sum((objects.labels == label) & ~ignored) for label in labels], dtype=np.int64)
    num_ignored = np.array([np.sum((objects.labels == label) & ignored) for label in labels], dtype=np.int64)
    curves = [_class_curve(label, objects, ignored, found, iou_threshold) for label in labels]
    ap = [
        average_precision(curve.recall, curve.precision, method) if count else math.nan
        for curve, count in zip(curves, num_gt, strict=True)
    ]
    return VocResult(
        dataset.classes, method, iou_threshold, np.array(ap, np.float64), num_gt, num_ignored, tuple(curves)
    )


def _class_curve(
    label: int,
    objects: ObjectColumns,
    ignored: NDArray[np.bool_],
    found: DetectionColumns,
    iou_threshold: float,
) -> PrecisionRecall:
    d, g = found.labels == label, objects.labels == label
    matches = match_detections(
        found.images[d],
        found.boxes[d],
        found.scores[d],
        objects.images[g],
        objects.boxes[g],
        ignored[g],
        iou_threshold,
    )
    return precision_recall(found.scores[d], matches, num_gt=int(np.sum(g & ~ignored)))
