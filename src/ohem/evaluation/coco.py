"""COCO's metric over a data set. The counting is hotcoco's; nothing outside this file knows that.

COCO gives -1 to a number that nothing in the data set bears on, such as AP of small objects where there are none.
Here that is nan, as everywhere in this package: -1 spoils a mean unseen, nan does not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, Detections, ImageId
from ohem.evaluation.columns import DetectionColumns, detection_columns, object_columns

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers, in COCO's order.

AP: average precision, the mean over the overlaps 0.50, 0.55, ..., 0.95 and the classes. AP50, AP75: at one overlap.
APs, APm, APl: of objects whose area is up to 32^2, 32^2 to 96^2, from 96^2 pixels. AR1, AR10, AR100: average recall
with so many detections per image and class. ARs, ARm, ARl: AR100 of those areas. All but AR1 and AR10 count the 100
best detections per image and class.
"""

# No area range of COCO's reaches below 0, and an object outside the range is ignored.
_OUTSIDE_EVERY_RANGE = -1.0


@dataclass(frozen=True, eq=False)
class CocoResult:
    """COCO's twelve numbers, and average precision per class; the arrays follow ``classes``.

    Attributes:
        numbers: `COCO_NUMBERS` -> value in [0, 1], or nan where the data set has no object that it is about.
        classes: class names.
        class_ap: (C,) float64, AP of each class; nan for one without objects to find.
        class_ap50: (C,) float64, AP50 of each class.
    """

    numbers: dict[str, float]
    classes: tuple[str, ...]
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]

    @property
    def classes_without_gt(self) -> tuple[str, ...]:
        """The classes left out of the means."""
        return tuple(name for name, ap in zip(self.classes, self.class_ap, strict=True) if np.isnan(ap))

    def to_json(self) -> dict[str, Any]:
        """The numbers as JSON holds them; nan becomes None."""
        per_class = zip(self.classes, self.class_ap.tolist(), self.class_ap50.tolist(), strict=True)
        return {
            "metric": "coco",
            **{name: _none_for_nan(value) for name, value in self.numbers.items()},
            "classes_without_gt": list(self.classes_without_gt),
            "classes": [
                {"name": name, "AP": _none_for_nan(ap), "AP50": _none_for_nan(ap50)} for name, ap, ap50 in per_class
            ],
        }


def evaluate_coco(dataset: DetectionDataset, detections: Mapping[ImageId, Detections]) -> CocoResult:
    """COCO's bounding-box numbers, equal to those of pycocotools, for data sets of any format.

    Crowds are ignored and matched by the share of the *detection* they cover, any number of detections each.
    COCO has no difficult objects; they are ignored in the way COCO ignores an object outside the area range: matched
    by ordinary overlap, one detection each. So a second detection of a difficult object is a false positive, where
    VOC's own metric forgives it. (Marked as crowds instead, they would forgive any fragment of themselves.)
    Between equal scores the order is that of the image ids, and within an image that of its rows, as in pycocotools.

    Args:
        dataset: the images and their objects, whose ``area`` decides on small, medium and large.
        detections: one entry for every image, with zero rows where nothing was found.

    Raises:
        OhemError: the detections do not fit the data set.
    """
    found = detection_columns(dataset, detections)
    image_ids = _ids_in_order(dataset)
    truth = _ground_truth(dataset, image_ids)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(_result_rows(found, image_ids)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # summarize() without its print to stdout
    numbers = (float(number) if number > -1 else math.nan for number in evaluation.stats)
    class_ap, class_ap50 = _per_class(evaluation, len(dataset.classes))
    return CocoResult(dict(zip(COCO_NUMBERS, numbers, strict=True)), dataset.classes, class_ap, class_ap50)


def _ids_in_order(dataset: DetectionDataset) -> NDArray[np.int64]:
    """(N,) 1..N for the records, rising with the image id: integers for any kind of id, ties as in pycocotools."""
    by_id = sorted(range(len(dataset)), key=lambda i: dataset.records[i].id)
    ids = np.empty(len(dataset), dtype=np.int64)
    ids[by_id] = np.arange(1, len(dataset) + 1)
    return ids


def _ground_truth(dataset: DetectionDataset, image_ids: NDArray[np.int64]) -> hotcoco.COCO:
    objects = object_columns(dataset)
    return hotcoco.COCO.from_arrays(
        images=[{"id": image_id} for image_id in image_ids.tolist()],
        categories=[{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)],
        image_ids=image_ids[objects.images],
        category_ids=objects.labels,
        boxes=_xywh(objects.boxes),
        area=np.where(objects.difficult, _OUTSIDE_EVERY_RANGE, objects.area),
        iscrowd=objects.crowd,
    )


def _result_rows(found: DetectionColumns, image_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """(D, 7) image id, x, y, w, h, score, category id."""
    return np.column_stack([image_ids[found.images], _xywh(found.boxes), found.scores, found.labels])


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _per_class(evaluation: hotcoco.COCOeval, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(C,) AP and (C,) AP50 for all areas and 100 detections."""
    assert evaluation.eval is not None
    # (overlaps 0.50..0.95, recall levels, classes, areas, detection caps), -1 throughout for a class without objects
    precision = evaluation.eval["precision"][:, :, :num_classes, 0, -1]
    precision = np.where(precision > -1, precision, np.nan)
    return precision.mean(axis=(0, 1)), precision[0].mean(axis=0)


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
