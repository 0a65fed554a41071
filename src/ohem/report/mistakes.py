"""Cards of what a detector got wrong on evaluated images."""

import numpy as np

from ohem.data.overlaps import pairwise_iou
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
    found, objects, records = measured.found, measured.objects, measured.dataset.records
    rows = np.flatnonzero(measured.errors.missed)
    area = np.prod(objects.boxes[rows, 2:] - objects.boxes[rows, :2], axis=1)
    whole = np.array([records[i].width * records[i].height for i in objects.images[rows]], dtype=np.float64)
    rows = rows[np.argsort(-area / whole, kind="stable")]
    sketches = []
    for row in rows[spread(objects.labels[rows].tolist(), most)]:
        record, box = records[objects.images[row]], objects.boxes[row]
        name = measured.dataset.classes[objects.labels[row] - 1]
        width, height = box[2:] - box[:2]
        outlines, near = [Outline(box, "object")], "no detection near"
        nearest = _nearest(measured, int(row))
        if nearest is not None:
            outlines.append(Outline(found.boxes[nearest], "region"))
            near = f"best near it: {measured.dataset.classes[found.labels[nearest] - 1]} {found.scores[nearest]:.2f}"
        detail = f"{width:.0f} x {height:.0f} px; {near}"
        sketches.append(Sketch(record, box, tuple(outlines), "missed", name, f"{name}, missed", detail, run))
    return sketches


def _nearest(measured: Measured, row: int) -> int | None:
    """The detection of any class with the highest score of those that touch an object's box by more than a little."""
    found, objects = measured.found, measured.objects
    here = np.flatnonzero(found.images == objects.images[row])
    touching = here[pairwise_iou(objects.boxes[[row]], found.boxes[here])[0] > NEAR]
    return int(touching[np.argmax(found.scores[touching])]) if len(touching) else None
