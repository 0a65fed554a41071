"""VOC's and COCO's metrics, fed batch by batch from a training loop of one's own.

The arguments are those of TorchMetrics' ``MeanAveragePrecision`` and of torchvision's detectors; the numbers are those of
`evaluate_voc` and `evaluate_coco`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ohem.data.dataset import DetectionDataset, Detections, ImageId, ImageRecord
from ohem.data.rules import checked_classes, counted
from ohem.errors import OhemError
from ohem.evaluation.average_precision import ApMethod
from ohem.evaluation.coco import CocoResult, evaluate_coco
from ohem.evaluation.columns import detection_columns
from ohem.evaluation.voc import VocResult, evaluate_voc

Entry = Mapping[str, Tensor | NDArray[Any]]
"""What is known of one image: tensors on any device, or arrays."""

_Result = TypeVar("_Result")


class _Evaluator(ABC, Generic[_Result]):
    """The images seen so far."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = checked_classes(classes)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._records: list[ImageRecord] = []
        self._detections: dict[ImageId, Detections] = {}

    def update(self, preds: Sequence[Entry], target: Sequence[Entry]) -> None:
        """Add a batch of images; each image is given once, with all of its detections.

        Args:
            preds: of each image ``boxes`` (D, 4) xyxy, ``scores`` (D,) in [0, 1], ``labels`` (D,) integers 1..C; kept
                in float32. Other keys are not looked at.
            target: of each image ``boxes`` (G, 4) xyxy, ``labels`` (G,) integers 1..C; if you like ``iscrowd`` (G,)
                0 or 1, ``difficult`` (G,) 0 or 1 (VOC's flag), ``area`` (G,) square pixels, without which, and where
                it is 0, the box's counts.

        Boxes are in pixels, 0-based and half-open, of the original image: COCO's sizes are in its pixels.

        Raises:
            OhemError: the lists differ in length, a key is missing, or shapes or values are not as above. Nothing of
                the batch is added then.
        """
        if len(preds) != len(target):
            raise OhemError(f"preds and target: found {len(preds)} and {len(target)} images; allowed: as many of each")
        first = len(self._records)
        records = [_record(first + index, f"target[{index}]", entry) for index, entry in enumerate(target)]
        found: dict[ImageId, Detections] = {
            first + index: _detections(f"preds[{index}]", entry) for index, entry in enumerate(preds)
        }
        for index, record in enumerate(records):
            self._check_labels(f"target[{index}]", record.labels)
        detection_columns(self._dataset(records), found)  # for its checks: told here, not at the end
        self._records += records
        self._detections.update(found)

    def compute(self) -> _Result:
        """The metric over all images since the beginning or `reset`; more may be added afterwards.

        Raises:
            OhemError: there is no image yet.
        """
        if not self._records:
            raise OhemError("compute: found no image; allowed: after an update with at least one")
        return self._metric(self._dataset(self._records), self._detections)

    def _check_labels(self, where: str, labels: NDArray[np.int64]) -> None:
        wrong = labels[(labels < 1) | (labels > len(self._classes))]
        if len(wrong):
            raise OhemError(f"{where}.labels: found {wrong[0]}; allowed: 1 to {len(self._classes)}, 0 is background")

    def _dataset(self, records: Sequence[ImageRecord]) -> DetectionDataset:
        ids = tuple(range(1, len(self._classes) + 1))
        return DetectionDataset("the images", "coco", Path(), self._classes, ids, tuple(records))

    @abstractmethod
    def _metric(self, dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> _Result: ...


class CocoEvaluator(_Evaluator[CocoResult]):
    """COCO's twelve numbers, as those of pycocotools, over the images given to `update`.

        evaluator = ohem.CocoEvaluator(["cat", "dog"])
        for images, targets in loader:
            evaluator.update(model(images), targets)
        print(evaluator.compute().numbers["AP50"])

    Args:
        classes: C names; label i means ``classes[i - 1]``, and 0 is background and never stands in labels.

    Raises:
        OhemError: a name is empty, or stands there twice.
    """

    def _metric(self, dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> CocoResult:
        return evaluate_coco(dataset, detections)


class VocEvaluator(_Evaluator[VocResult]):
    """VOC's average precision over the images given to `update`; difficult objects and crowds are ignored.

    Use it as `CocoEvaluator`; ``compute().mean_ap`` is the mean over the classes.

    Args:
        classes: C names; label i means ``classes[i - 1]``, and 0 is background and never stands in labels.
        iou_threshold: the overlap from which an object counts as found, in (0, 1].
        method: ``voc07`` (11 points) for VOC 2007's published numbers, ``area`` for those from 2010 on.

    Raises:
        OhemError: a name is empty, or stands there twice.
    """

    def __init__(self, classes: Sequence[str], iou_threshold: float = 0.5, method: ApMethod = "voc07") -> None:
        super().__init__(classes)
        self._iou_threshold = iou_threshold
        self._method: ApMethod = method

    def _metric(self, dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> VocResult:
        return evaluate_voc(dataset, detections, self._iou_threshold, self._method)


def _array(entry: Entry, where: str, key: str) -> NDArray[Any]:
    if key not in entry:
        raise OhemError(f"{where}: found no {key}; allowed: a dictionary with it")
    value = entry[key]
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _boxes(entry: Entry, where: str) -> NDArray[np.float64]:
    boxes = _array(entry, where, "boxes")
    if boxes.size == 0:  # torch.tensor([]) and [] stand for no box
        return np.empty((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise OhemError(f"{where}.boxes: found the shape {boxes.shape}; allowed: (N, 4)")
    return boxes.astype(np.float64)


def _column(entry: Entry, where: str, key: str, rows: int) -> NDArray[Any]:
    """One value for each box."""
    values = _array(entry, where, key)
    if values.shape != (rows,):
        found = f"found the shape {values.shape}"
        raise OhemError(f"{where}.{key}: {found}; allowed: ({rows},), for {counted(rows, 'box', 'boxes')}")
    return values


def _labels(entry: Entry, where: str, rows: int) -> NDArray[np.int64]:
    labels = _column(entry, where, "labels", rows)
    if rows and labels.dtype.kind not in "iu":
        raise OhemError(f"{where}.labels: found {labels.dtype}; allowed: integers from 1")
    return labels.astype(np.int64)


def _detections(where: str, entry: Entry) -> Detections:
    boxes = _boxes(entry, where)
    scores = _column(entry, where, "scores", len(boxes))
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), _labels(entry, where, len(boxes)))


def _record(image_id: int, where: str, entry: Entry) -> ImageRecord:
    boxes = _boxes(entry, where)
    labels = _labels(entry, where, len(boxes))
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise OhemError(f"{where}.boxes: found a box not finite or with x2 < x1 or y2 < y1; allowed: xyxy")
    zeros = {key: np.zeros(len(boxes)) for key in ("iscrowd", "difficult", "area")}
    crowd, difficult, area = (_column({**zeros, **entry}, where, key, len(boxes)) for key in zeros)
    return ImageRecord(
        id=image_id,
        path=Path(str(image_id)),
        width=0,
        height=0,
        boxes=boxes,
        labels=labels,
        difficult=difficult.astype(bool),
        crowd=crowd.astype(bool),
        area=np.where(area == 0, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), area),
    )
