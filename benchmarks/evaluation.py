"""COCO's twelve numbers of many images: ours (hotcoco) against pycocotools, on the same random objects and detections."""

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ohem.data.dataset import DetectionDataset, Detections, ImageRecord
from ohem.evaluation.coco import COCO_NUMBERS, evaluate_coco
from timing import line

CLASSES, OBJECTS, DETECTIONS = 20, 3, 10


def measure_evaluation(images: int) -> dict[str, float]:
    """Seconds of both, once each, from objects in memory to the twelve numbers, which must agree to 6 decimals."""
    dataset, detections = problem(images)
    start, start_cpu = time.perf_counter(), time.process_time()
    ours = evaluate_coco(dataset, detections).numbers
    middle, middle_cpu = time.perf_counter(), time.process_time()
    theirs = pycocotools_numbers(dataset, detections)
    seconds = middle - start, time.perf_counter() - middle
    cpu = middle_cpu - start_cpu, time.process_time() - middle_cpu
    np.testing.assert_allclose([ours[name] for name in COCO_NUMBERS], theirs, rtol=0, atol=1e-6)
    found = {"images": images, "ours": seconds[0], "pycocotools": seconds[1], "ratio": seconds[1] / seconds[0]}
    found["CPU ratio"] = cpu[1] / cpu[0]
    print(line("seconds", found))
    return found


def problem(images: int) -> tuple[DetectionDataset, dict[int | str, Detections]]:
    """Three objects an image, and ten detections, most of them near one."""
    rng = np.random.default_rng(0)
    records, detections = [], {}
    for image in range(1, images + 1):
        corner = rng.uniform(0, 300, (OBJECTS, 2))
        boxes = np.hstack([corner, corner + np.exp(rng.uniform(np.log(8), np.log(300), (OBJECTS, 2)))])
        labels, no = rng.integers(1, CLASSES + 1, OBJECTS), np.zeros(OBJECTS, dtype=bool)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        records.append(ImageRecord(image, Path(f"{image}.jpg"), 640, 640, boxes, labels, no, no, area))
        near = rng.integers(0, OBJECTS, DETECTIONS)
        sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        found = (boxes[near] + 0.08 * sides * rng.normal(size=(DETECTIONS, 4))).clip(0, 640).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        named = np.where(rng.random(DETECTIONS) < 0.8, labels[near], rng.integers(1, CLASSES + 1, DETECTIONS))
        detections[image] = Detections(found, rng.random(DETECTIONS).astype(np.float32), named)
    names = tuple(f"class {i}" for i in range(1, CLASSES + 1))
    return DetectionDataset("random", "coco", Path(), names, tuple(range(1, CLASSES + 1)), tuple(records)), detections


def pycocotools_numbers(dataset: DetectionDataset, detections: dict[int | str, Detections]) -> list[float]:
    truth = [
        _row(record.id, box, label, {"area": float(area)})
        for record in dataset.records
        for box, label, area in zip(record.boxes, record.labels, record.area, strict=True)
    ]
    results = [
        _row(image, box, label, {"area": float(np.prod(box[2:] - box[:2])), "score": float(score)})
        for image, each in detections.items()
        for box, label, score in zip(each.boxes.astype(np.float64), each.labels, each.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(dataset, truth), _index(dataset, results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def _row(image: int | str, box: Any, label: int, other: dict[str, float]) -> dict[str, Any]:
    x, y, right, bottom = box.tolist()
    return {"image_id": image, "category_id": int(label), "bbox": [x, y, right - x, bottom - y], "iscrowd": 0, **other}


def _index(dataset: DetectionDataset, rows: list[dict[str, Any]]) -> COCO:
    index = COCO()
    index.dataset = {
        "images": [{"id": record.id} for record in dataset.records],
        "categories": [{"id": category} for category in dataset.category_ids],
        "annotations": [{**row, "id": i} for i, row in enumerate(rows, start=1)],
    }
    index.createIndex()
    return index
