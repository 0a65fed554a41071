"""Detections to and from ``supervision.Detections``, for its trackers, zones and annotators (the extra ``supervision``).

supervision's boxes are xyxy in pixels, as ours; its class ids count from 0, our labels from 1, where 0 is background.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ohem.data.dataset import Detections
from ohem.data.rules import checked_classes
from ohem.errors import OhemError
from ohem.extras import need


def to_supervision(detections: Detections, classes: Sequence[str]) -> Any:
    """The detections of one image as a ``supervision.Detections``: class id = label - 1, names as ``class_name``.

    Args:
        detections: D detections of one image.
        classes: C names; label i means ``classes[i - 1]``.

    Raises:
        OhemError: supervision is not installed, the class list is unusable, or a label is not in 1..C.
    """
    names = checked_classes(classes)
    class_id = np.asarray(detections.labels, dtype=np.int64) - 1
    if class_id.size and not 0 <= class_id.min() <= class_id.max() < len(names):
        found = f"{class_id.min() + 1} to {class_id.max() + 1}"
        raise OhemError(f"labels: found {found}; allowed: 1 to {len(names)}, for as many classes")
    return need("supervision", "supervision").Detections(
        xyxy=np.array(detections.boxes, dtype=np.float32).reshape(-1, 4),
        confidence=np.array(detections.scores, dtype=np.float32),
        class_id=class_id,
        data={"class_name": np.array([names[index] for index in class_id.tolist()], dtype=str)},
    )


def from_supervision(found: Any) -> Detections:
    """A ``supervision.Detections`` as D detections of one image, in its order: label = class id + 1.

    Masks, trackers' ids and ``data`` have no place here and stay behind.

    Args:
        found: D boxes with ``confidence`` in [0, 1] and ``class_id`` from 0; or none.

    Raises:
        OhemError: it has boxes but no confidence or no class ids, or a class id below 0.
    """
    count = len(found.xyxy)
    for name, values in (("confidence", found.confidence), ("class_id", found.class_id)):
        if count and values is None:
            raise OhemError(f"supervision.Detections.{name}: found None; allowed: one for each of {count} boxes")
    class_id = np.array([] if found.class_id is None else found.class_id, dtype=np.int64)
    if class_id.size and class_id.min() < 0:
        raise OhemError(f"supervision.Detections.class_id: found {class_id.min()}; allowed: from 0")
    return Detections(
        boxes=np.array(found.xyxy, dtype=np.float32).reshape(-1, 4),
        scores=np.array([] if found.confidence is None else found.confidence, dtype=np.float32),
        labels=class_id + 1,
    )
