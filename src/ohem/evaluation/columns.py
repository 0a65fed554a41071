"""A data set's objects and its detections as parallel columns: what the metrics compute on, checked first."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, Detections, ImageId
from ohem.errors import OhemError


@dataclass(frozen=True, eq=False)
class ObjectColumns:
    """Every annotated object of a data set, in the order of its records.

    Attributes:
        images: (G,) int64, position of the image in ``dataset.records``.
        boxes: (G, 4) float64, xyxy, 0-based half-open pixels.
        labels: (G,) int64, 1..C.
        difficult: (G,) bool.
        crowd: (G,) bool.
        area: (G,) float64, square pixels.
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DetectionColumns:
    """Every detection, in the order of the data set's records and within an image as given.

    Attributes:
        images: (D,) int64, position of the image in ``dataset.records``.
        boxes: (D, 4) float64, xyxy, 0-based half-open pixels.
        scores: (D,) float64 in [0, 1].
        labels: (D,) int64, 1..C.
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


def object_columns(dataset: DetectionDataset) -> ObjectColumns:
    """Gather the objects of all images."""
    records = dataset.records
    return ObjectColumns(
        images=np.repeat(np.arange(len(records)), [len(record.labels) for record in records]),
        boxes=np.concatenate([np.empty((0, 4)), *(record.boxes for record in records)]),
        labels=np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)]),
        difficult=np.concatenate([np.empty(0, np.bool_), *(record.difficult for record in records)]),
        crowd=np.concatenate([np.empty(0, np.bool_), *(record.crowd for record in records)]),
        area=np.concatenate([np.empty(0), *(record.area for record in records)]),
    )


def detection_columns(dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> DetectionColumns:
    """Gather the detections of all images.

    Args:
        dataset: the images.
        detections: one entry for every image of the data set, with zero rows where nothing was found.

    Raises:
        OhemError: an image has no entry, an entry has no image, or rows are not what `Detections` promises. One line,
            with counts: a metric over some of the images, or some of the rows, is not the metric.
    """
    _check_images(dataset, detections)
    per_image = [detections[record.id] for record in dataset.records]
    _check_shapes(dataset, per_image)
    columns = DetectionColumns(
        images=np.repeat(np.arange(len(per_image)), [len(one.labels) for one in per_image]),
        boxes=np.concatenate([np.empty((0, 4)), *(one.boxes for one in per_image)]),
        scores=np.concatenate([np.empty(0), *(one.scores for one in per_image)]),
        labels=np.concatenate([np.empty(0, np.int64), *(one.labels for one in per_image)]),
    )
    _check_values(dataset, columns)
    return columns


def split_by_image(dataset: DetectionDataset, columns: DetectionColumns) -> dict[ImageId, Detections]:
    """The inverse of `detection_columns`; the rows may come in any order of images."""
    order = np.argsort(columns.images, kind="stable")
    cuts = np.searchsorted(columns.images[order], np.arange(len(dataset) + 1))
    boxes = columns.boxes[order].astype(np.float32)
    scores = columns.scores[order].astype(np.float32)
    labels = columns.labels[order]
    return {
        record.id: Detections(boxes[start:stop], scores[start:stop], labels[start:stop])
        for record, start, stop in zip(dataset.records, cuts[:-1], cuts[1:], strict=True)
    }


def _check_images(dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> None:
    known = {record.id for record in dataset.records}
    missing = [record.id for record in dataset.records if record.id not in detections]
    unknown = [image_id for image_id in detections if image_id not in known]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of its {len(known)} images have no entry (first {missing[0]!r})")
    if unknown:
        complaints.append(f"{len(unknown)} entries name images it does not hold (first {unknown[0]!r})")
    _refuse(dataset, complaints)


def _check_shapes(dataset: DetectionDataset, per_image: list[Detections]) -> None:
    wrong = [
        record.id
        for record, one in zip(dataset.records, per_image, strict=True)
        if one.boxes.shape != (len(one.labels), 4)
        or one.scores.shape != (len(one.labels),)
        or one.labels.ndim != 1
        or not np.issubdtype(one.labels.dtype, np.integer)
    ]
    if wrong:
        _refuse(dataset, [f"{len(wrong)} images have other shapes than D x 4, D, D integers (first {wrong[0]!r})"])


def _check_values(dataset: DetectionDataset, columns: DetectionColumns) -> None:
    boxes, scores, labels = columns.boxes, columns.scores, columns.labels
    sound_boxes = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    faults = {
        "boxes not finite or with x2 < x1 or y2 < y1": ~sound_boxes,
        "scores outside 0 to 1": ~((scores >= 0) & (scores <= 1)),
        f"labels outside 1 to {len(dataset.classes)}": (labels < 1) | (labels > len(dataset.classes)),
    }
    _refuse(
        dataset,
        [
            f"{wrong.sum()} {what} (first in image {dataset.records[columns.images[wrong.argmax()]].id!r})"
            for what, wrong in faults.items()
            if wrong.any()
        ],
    )


def _refuse(dataset: DetectionDataset, complaints: list[str]) -> None:
    if complaints:
        raise OhemError(f"detections do not fit {dataset.name}: {'; '.join(complaints)}")
