"""Cards of what a detector got wrong on evaluated images."""

import numpy as np
from numpy.typing import NDArray

from ohem.evaluation.error_kinds import BACKGROUND, KINDS, NO_ERROR
from ohem.report.gallery import Outline, Sketch, spread
from ohem.report.runs import Measured

NEAR = 0.1


def false_positive_sketches(measured: Measured, run: str, most: int) -> list[Sketch]:
    """False positives by falling score, the best of each class in turn until there are enough."""
    found, objects, errors = measured.found, measured.objects, measured.errors
    classes = measured.dataset.classes
    rows = np.flatnonzero(errors.kinds != NO_ERROR)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    sketches = []
    for row in rows[spread(found.labels[rows].tolist(), most)]:
        kind, near, box = int(errors.kinds[row]), int(errors.objects[row]), found.boxes[row]
        record = measured.dataset.records[found.images[row]]
        reason = "on nothing" if kind == BACKGROUND else f"on {classes[objects.labels[near] - 1]}"
        outlines = [Outline(other, "other") for other in record.boxes]
        outlines += [] if near < 0 else [Outline(objects.boxes[near], "object")]
        name = classes[found.labels[row] - 1]
        sketches.append(
            Sketch(
                record,
                box,
                (*outlines, Outline(box, "region")),
                f"false positive: {KINDS[kind]}",
                name,
                f"{name}, score {found.scores[row]:.2f}",
                f"{KINDS[kind]}: {reason}" if kind != BACKGROUND else reason,
                run,
            )
        )
    return sketches


def missed_sketches(measured: Measured, run: str, most: int) -> list[Sketch]:
    """Missed objects, those that fill most of their picture first, and each class in turn until there are enough."""
    objects, records = measured.objects, measured.dataset.records
    rows = np.flatnonzero(measured.errors.missed)
    area = np.prod(objects.boxes[rows, 2:] - objects.boxes[rows, :2], axis=1)
    whole = np.array([records[i].width * records[i].height for i in objects.images[rows]], dtype=np.float64)
    rows = rows[np.argsort(-area / whole, kind="stable")]
    sketches = []
    for row in rows[spread(objects.labels[rows].tolist(), most)]:
        record, box = records[objects.images[row]], objects.boxes[row]
        name = measured.dataset.classes[objects.labels[row] - 1]
        width, height = box[2:] - box[:2]
        detail = f"{width:.0f} x {height:.0f} px; {_nearest(measured, int(row))}"
        outlines = (Outline(box, "object"), *(Outline(near, "region") for near in _near_boxes(measured, int(row))))
        sketches.append(Sketch(record, box, outlines, "missed", name, f"{name}, missed", detail, run))
    return sketches


def _near(measured: Measured, row: int) -> NDArray[np.int64]:
    """Detections of any class that touch an object's box by more than a little, the highest score first."""
    found, objects = measured.found, measured.objects
    here = np.flatnonzero(found.images == objects.images[row])
    box, boxes = objects.boxes[row], found.boxes[here]
    sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0)
    both = sides.prod(axis=1)
    union = np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - both
    touching = here[both > NEAR * union]
    ordered: NDArray[np.int64] = touching[np.argsort(-found.scores[touching], kind="stable")]
    return ordered


def _near_boxes(measured: Measured, row: int) -> NDArray[np.float64]:
    boxes: NDArray[np.float64] = measured.found.boxes[_near(measured, row)[:1]]
    return boxes


def _nearest(measured: Measured, row: int) -> str:
    near = _near(measured, row)
    if not len(near):
        return "no detection near"
    name = measured.dataset.classes[measured.found.labels[near[0]] - 1]
    return f"best near it: {name} {measured.found.scores[near[0]]:.2f}"
