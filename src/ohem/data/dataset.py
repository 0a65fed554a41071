"""What a data set is, whatever format it was read from.

Boxes are xyxy, float, in pixels, 0-based and *half-open*: ``x2 - x1`` is the width. A VOC box, 1-based with inclusive
corners ``(a, b)``, becomes ``(a - 1, b)``; a COCO box ``(x, y, w, h)`` becomes ``(x, y, x + w, y + h)``. In this
convention the paper's ``x2 - x1 + 1`` widths are plain differences, so VOC's overlaps need no ``+ 1`` anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageId = str | int
"""VOC's file stem, COCO's integer image id, or the path of a YOLO picture in its folder, without its suffix."""

Proposals = Mapping[ImageId, NDArray[np.float32]]
"""Image id -> (P, 4) boxes, xyxy, 0-based half-open pixels of the original image."""


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its annotations, in pixels of the image as displayed (EXIF orientation applied).

    Attributes:
        id: unique within the data set.
        path: the image file.
        width: in pixels.
        height: in pixels.
        boxes: (G, 4) float64, xyxy, 0-based half-open.
        labels: (G,) int64, 1..C; 0 is background and never stands here.
        difficult: (G,) bool, VOC's flag; all False for COCO and YOLO.
        crowd: (G,) bool, COCO's ``iscrowd``; all False for VOC and YOLO.
        area: (G,) float64, COCO's ``area`` (of the segmentation where there is one), else the box's area.
    """

    id: ImageId
    path: Path
    width: int
    height: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Annotated images with one class list.

    Attributes:
        name: for people, such as ``VOC2007@trainval``.
        format: the format it was read from.
        root: the folder (or COCO JSON file) it was read from; the first one of several joined.
        classes: class names; label i means ``classes[i - 1]``.
        category_ids: the id of each class in COCO's files (sparse there); 1..C for VOC and YOLO.
        records: the images, in the order of the split file or JSON.
        notes: what was left out while reading, counted, one sentence each, for the user to be told.
    """

    name: str
    format: Literal["voc", "coco", "yolo"]
    root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[ImageRecord, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def has_objects(self) -> bool:
        """Whether there is anything to learn or to find: an object that is neither difficult nor in a crowd."""
        return any((~record.difficult & ~record.crowd).any() for record in self.records)


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, in pixels of the original image.

    Attributes:
        boxes: (D, 4) float32, xyxy, 0-based half-open.
        scores: (D,) float32 in [0, 1].
        labels: (D,) int64, 1..C.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
