"""Suspects as files: a table for programs and spreadsheets, and a COCO JSON that annotation tools open."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.files import write_atomically
from ohem.report.suspects import Suspect

HEADER = ("rank", "score", "kind", "image", "file", "annotation", "class", "x1", "y1", "x2", "y2", "fix", "new_class")
NEW_BOX = ("new_x1", "new_y1", "new_x2", "new_y2")


def save_table(path: Path, suspects: Sequence[Suspect], classes: Sequence[str]) -> None:
    """A CSV line for each suspect, the likeliest first. ``annotation`` is its place in the image, from 0; empty for a
    missing box. Boxes are xyxy, 0-based half-open pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*HEADER, *NEW_BOX))
    for rank, one in enumerate(suspects, start=1):
        annotated = (
            ("", "", "", "", "", "") if one.row is None else (one.row, classes[one.label - 1], *_numbers(one.box))
        )
        new = ("", "", "", "", "") if one.fix == "remove" else (classes[one.new_label - 1], *_numbers(one.new_box))
        where = (one.record.id, one.record.path.name)
        writer.writerow((rank, f"{one.score:.4f}", one.kind, *where, *annotated, one.fix, *new))
    write_atomically(path, text.getvalue())


def save_coco(path: Path, suspects: Sequence[Suspect], dataset: DetectionDataset) -> None:
    """A COCO JSON of the images with suspects, with all of their annotations.

    An annotation that is suspect, and a box that is proposed in its place, say so in ``attributes``: ``suspect`` (the
    kind), ``score``, ``fix`` and ``proposed``; VOC's difficult ones say ``difficult``. Deleting the wrong one of each
    pair in an annotation tool leaves mended annotations. Images keep ids that are integers, as COCO's are; other images, and all annotations, are numbered from 1,
    since tools want integers. File names are relative to the folder that all of the data set's images lie in.
    """
    home = os.path.commonpath([record.path.parent.absolute() for record in dataset.records])
    records = list({one.record.id: one.record for one in suspects}.values())
    of_image: dict[Any, list[Suspect]] = {record.id: [] for record in records}
    for one in suspects:
        of_image[one.record.id].append(one)
    whole = all(isinstance(record.id, int) for record in records)
    numbered = [(record.id if whole else number, record) for number, record in enumerate(records, start=1)]
    annotations: list[dict[str, Any]] = []
    for number, record in numbered:
        for entry in _entries(record, of_image[record.id], dataset.category_ids):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    images = [
        {"id": number, "file_name": _within(home, record.path), "width": record.width, "height": record.height}
        for number, record in numbered
    ]
    categories = [{"id": i, "name": name} for i, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _entries(record: ImageRecord, suspects: Sequence[Suspect], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    suspect_rows = {one.row: one for one in suspects if one.row is not None}
    entries = []
    for row, (box, label) in enumerate(zip(record.boxes, record.labels.tolist(), strict=True)):
        about = _attributes(suspect_rows[row], proposed=False) if row in suspect_rows else {}
        about |= {"difficult": True} if record.difficult[row] else {}
        entry = _entry(box, category_ids[label - 1], bool(record.crowd[row]), about)
        entries.append(entry | {"area": float(record.area[row])})
    for one in suspects:
        if one.fix != "remove":
            about = _attributes(one, proposed=True)
            entries.append(_entry(one.new_box, category_ids[one.new_label - 1], False, about))
    return entries


def _attributes(one: Suspect, *, proposed: bool) -> dict[str, Any]:
    return {"suspect": one.kind, "score": round(one.score, 4), "fix": one.fix, "proposed": proposed}


def _entry(box: Any, category: int, crowd: bool, attributes: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    area = (x2 - x1) * (y2 - y1)
    return {"category_id": category, "bbox": bbox, "area": area, "iscrowd": int(crowd), "attributes": attributes}


def _within(home: str, path: Path) -> str:
    return path.absolute().relative_to(home).as_posix()


def _numbers(box: Any) -> tuple[str, ...]:
    return tuple(f"{float(value):.1f}" for value in box)
