"""Open every image of a data set before hours are spent on it, and say what the data set holds."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ohem.data.dataset import DetectionDataset
from ohem.data.images import image_size, read_image
from ohem.data.rules import AnnotationError, Picture
from ohem.errors import DataError, Fault


def check_dataset(
    dataset: DetectionDataset,
    *,
    decode: bool = True,
    workers: int = min(8, os.cpu_count() or 1),
    progress: Callable[[int, int], None] | None = None,
) -> list[Fault]:
    """Look at every image of a data set; see :func:`check_pictures`."""
    pictures = [Picture(record.path, record.width, record.height) for record in dataset.records]
    return check_pictures(pictures, decode=decode, workers=workers, progress=progress)


def check_pictures(
    pictures: Sequence[Picture],
    *,
    decode: bool = True,
    workers: int = min(8, os.cpu_count() or 1),
    progress: Callable[[int, int], None] | None = None,
) -> list[Fault]:
    """Look at images for what reading the annotations cannot tell.

    That is: a picture that cannot be read, and a declared size other than the picture's as displayed.

    Args:
        pictures: the files, with their declared sizes.
        decode: whether to decode all pixels, which finds truncated pictures too; otherwise only headers are read.
        workers: threads that read and decode.
        progress: called after each image with the number done and the number there are.

    Returns:
        All faults, in the order of the pictures.
    """
    faults: list[Fault] = []
    with ThreadPoolExecutor(workers) as pool:
        checks = pool.map(lambda picture: _check_picture(picture, decode), pictures)
        for done, found in enumerate(checks, start=1):
            faults += found
            if progress is not None:
                progress(done, len(pictures))
    return faults


def load_checked(
    load: Callable[[], DetectionDataset], *, decode: bool, progress: Callable[[int, int], None] | None = None
) -> DetectionDataset:
    """Read a data set and look at all its images, also where the annotations have faults.

    Args:
        load: reads it, such as a call of :func:`ohem.data.sources.load_dataset`.
        decode: see :func:`check_pictures`.
        progress: likewise.

    Raises:
        DataError: with the faults of annotations and pictures together.
    """
    try:
        dataset = load()
    except AnnotationError as error:
        raise DataError([*error.faults, *check_pictures(error.pictures, decode=decode, progress=progress)]) from error
    faults = check_dataset(dataset, decode=decode, progress=progress)
    if faults:
        raise DataError(faults)
    return dataset


def _check_picture(picture: Picture, decode: bool) -> tuple[Fault, ...]:
    declared = picture.width, picture.height
    try:
        if decode:
            height, width, _ = read_image(picture.path).shape
        else:
            width, height = image_size(picture.path)
        if (width, height) == declared:
            return ()
        found = f"{width} x {height} pixels, but {declared[0]} x {declared[1]} declared"
        if image_size(picture.path, as_displayed=False) == declared:
            found += ", which is its size without the EXIF rotation that it is displayed with"
    except DataError as error:
        return error.faults
    return (Fault(picture.path, "size", found, "the declared size, for the picture as displayed"),)


@dataclass(frozen=True)
class DatasetSummary:
    """What a data set holds, in numbers.

    Attributes:
        images: how many.
        images_without_boxes: those of them that are all background.
        boxes: how many in all.
        boxes_per_class: class name -> boxes, in the order of the class list.
        difficult: boxes with VOC's flag.
        crowd: boxes with COCO's flag.
        widths: the smallest and largest width of an image, in pixels.
        heights: likewise.
        box_sides: the shortest and longest side of a box, in pixels; (0, 0) without boxes.
        notes: what was left out while reading.
    """

    images: int
    images_without_boxes: int
    boxes: int
    boxes_per_class: dict[str, int]
    difficult: int
    crowd: int
    widths: tuple[int, int]
    heights: tuple[int, int]
    box_sides: tuple[float, float]
    notes: tuple[str, ...]


def summary(dataset: DetectionDataset) -> DatasetSummary:
    """Count what a data set of at least one image holds."""
    records = dataset.records
    boxes = np.concatenate([record.boxes for record in records])
    sides = boxes[:, 2:] - boxes[:, :2]
    labels = np.concatenate([record.labels for record in records])
    per_class = np.bincount(labels, minlength=len(dataset.classes) + 1)[1:].tolist()
    widths, heights = [record.width for record in records], [record.height for record in records]
    return DatasetSummary(
        images=len(records),
        images_without_boxes=sum(len(record.boxes) == 0 for record in records),
        boxes=len(boxes),
        boxes_per_class=dict(zip(dataset.classes, per_class, strict=True)),
        difficult=int(sum(record.difficult.sum() for record in records)),
        crowd=int(sum(record.crowd.sum() for record in records)),
        widths=(min(widths), max(widths)),
        heights=(min(heights), max(heights)),
        box_sides=(float(sides.min(initial=np.inf)), float(sides.max())) if len(boxes) else (0.0, 0.0),
        notes=dataset.notes,
    )
