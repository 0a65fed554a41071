"""Detections on disk, in the results formats of COCO and VOC.

Numbers are written in full unless asked otherwise: a rounded score makes ties, a rounded box moves an overlap, and then the
file's metric is not the detector's. Every file is written whole or not at all.

Neither format can tell an image in which nothing was found from one that was never looked at: on reading, every image
of the data set gets an entry, with zero rows where the file has none.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ohem.data.dataset import DetectionDataset, Detections, ImageId
from ohem.data.rules import MAX_COORDINATE, quoted
from ohem.errors import DataError, Fault, OhemError
from ohem.evaluation.columns import DetectionColumns, detection_columns, split_by_image
from ohem.files import write_atomically

_Row = tuple[int, int, float, float, float, float, float]
"""Position of the image, label, x1, y1, x2, y2 (0-based half-open), score."""


def save_coco_results(
    path: Path,
    dataset: DetectionDataset,
    detections: Mapping[ImageId, Detections],
    box_decimals: int | None = None,
) -> None:
    """Write COCO's results JSON: a list of ``image_id``, ``category_id``, ``bbox`` (x, y, w, h) and ``score``.

    Image ids are the data set's own: integers for COCO, strings for VOC. ``box_decimals`` rounds boxes, for those who
    must send the file; None writes them in full.

    Raises:
        OhemError: the detections do not fit the data set.
    """
    detection_columns(dataset, detections)  # for its checks
    entries = (
        json.dumps(entry)
        for record in dataset.records
        for entry in _coco_entries(dataset, record.id, detections[record.id], box_decimals)
    )
    write_atomically(path, "[\n" + ",\n".join(entries) + "\n]\n")


def load_coco_results(path: Path, dataset: DetectionDataset) -> dict[ImageId, Detections]:
    """Read COCO's results JSON of one data set's images.

    Raises:
        DataError: the file cannot be read or is no list, or entries name an unknown image or category, or hold a box
            or score that is none; all faults listed.
    """
    images: dict[Any, int] = {record.id: i for i, record in enumerate(dataset.records)}
    labels: dict[Any, int] = {category: label for label, category in enumerate(dataset.category_ids, start=1)}
    rows: list[_Row] = []
    faults: list[Fault] = []
    for index, entry in enumerate(_json_list(path)):
        wrong = _coco_faults(path, index, entry, images, labels)
        if wrong:
            faults += wrong
        else:
            x, y, w, h = entry["bbox"]
            rows.append((images[entry["image_id"]], labels[entry["category_id"]], x, y, x + w, y + h, entry["score"]))
    if faults:
        raise DataError(faults)
    return _from_rows(dataset, rows)


def save_voc_results(
    folder: Path,
    dataset: DetectionDataset,
    detections: Mapping[ImageId, Detections],
    split: str,
) -> list[Path]:
    """Write the development kit's results, ``comp4_det_SPLIT_CLASS.txt`` for every class, empty ones too.

    A line is ``image_id score xmin ymin xmax ymax``, with 1-based inclusive corners: ``(x1 + 1, x2)``.

    Returns:
        the files, in the order of the classes.

    Raises:
        OhemError: the detections do not fit the data set, or a class or image has a name the format cannot hold.
    """
    columns = detection_columns(dataset, detections)
    paths = voc_result_paths(folder, dataset, split)
    ids = [str(record.id) for record in dataset.records]
    for label, path in enumerate(paths, start=1):
        mine = np.flatnonzero(columns.labels == label)
        corners = columns.boxes[mine] + (1, 1, 0, 0)
        rows = zip(columns.images[mine].tolist(), columns.scores[mine].tolist(), corners.tolist(), strict=True)
        lines = (f"{ids[image]} {score} {' '.join(map(str, box))}\n" for image, score, box in rows)
        write_atomically(path, "".join(lines))
    return paths


def _coco_entries(
    dataset: DetectionDataset, image_id: ImageId, one: Detections, box_decimals: int | None
) -> Iterator[dict[str, Any]]:
    corners = one.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    if box_decimals is not None:
        boxes = boxes.round(box_decimals)
    for box, score, label in zip(boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True):
        category = dataset.category_ids[label - 1]
        yield {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def _json_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError([Fault(path, "", f"{reason}", "a file that can be read, in UTF-8")]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([Fault(path, "", f"no readable JSON ({error})", "a JSON list of detections")]) from error
    if not isinstance(entries, list):
        raise DataError([Fault(path, "", f"a JSON {type(entries).__name__}", "a JSON list of detections")])
    return entries


def _coco_faults(
    path: Path, index: int, entry: Any, images: Mapping[Any, int], labels: Mapping[Any, int]
) -> list[Fault]:
    if not isinstance(entry, dict):
        return [Fault(path, f"[{index}]", quoted(entry), "an object: image_id, category_id, bbox, score")]
    checks = (
        ("image_id", _is_key(entry.get("image_id"), images), "the id of an image of the data set"),
        ("category_id", _is_key(entry.get("category_id"), labels), "the id of a category of the data set"),
        ("bbox", _is_xywh(entry.get("bbox")), "[x, y, width, height], numbers, the last two not negative"),
        ("score", _is_number(entry.get("score"), 0, 1), "a number from 0 to 1"),
    )
    return [
        Fault(path, f"[{index}].{field}", quoted(entry[field]) if field in entry else "nothing", allowed)
        for field, sound, allowed in checks
        if not sound
    ]


def _is_key(value: Any, known: Mapping[Any, int]) -> bool:
    return type(value) in (int, str) and value in known


def _is_xywh(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(_is_number(number, -MAX_COORDINATE, MAX_COORDINATE) for number in value)
        and value[2] >= 0
        and value[3] >= 0
    )


def _is_number(value: Any, low: float, high: float) -> bool:
    """In range, so neither nan nor infinite; True and False are no numbers."""
    return type(value) in (int, float) and low <= value <= high


def voc_result_paths(folder: Path, dataset: DetectionDataset, split: str) -> list[Path]:
    """The files that `save_voc_results` writes, in the order of the classes.

    Raises:
        OhemError: a class has a name that cannot stand in a file's name, or an image one that cannot stand in a line.
    """
    ids = [str(record.id) for record in dataset.records]
    spaced = [image_id for image_id in ids if image_id.split() != [image_id]]
    if spaced:
        raise OhemError(f"VOC results hold no image ids with white space; found {len(spaced)} (first {spaced[0]!r})")
    names = [f"comp4_det_{split}_{name}.txt" for name in dataset.classes]
    unfit = [name for name in names if "/" in name or "\\" in name or "\0" in name or names.count(name) > 1]
    if unfit:
        raise OhemError(f"VOC results go to one file per class; not to be used as file names: {unfit}")
    return [folder / name for name in names]


def _from_rows(dataset: DetectionDataset, rows: list[_Row]) -> dict[ImageId, Detections]:
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    columns = DetectionColumns(
        images=table[:, 0].astype(np.int64),
        boxes=table[:, 2:6],
        scores=table[:, 6],
        labels=table[:, 1].astype(np.int64),
    )
    return split_by_image(dataset, columns)
