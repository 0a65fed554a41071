"""COCO's numbers, against pycocotools and by hand."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ohem.data.dataset import DetectionDataset, Detections, ImageRecord
from ohem.errors import OhemError
from ohem.evaluation.coco import COCO_NUMBERS, evaluate_coco


def dataset_of(records, classes=("cat", "dog"), category_ids=None):
    return DetectionDataset(
        "val", "coco", Path("val.json"), classes, category_ids or tuple(range(1, len(classes) + 1)), tuple(records)
    )


def record(image_id, boxes, labels, area=None, crowd=None, difficult=None):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    none = np.zeros(len(boxes), dtype=np.bool_)
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=640,
        height=480,
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        difficult=none if difficult is None else np.array(difficult, dtype=np.bool_),
        crowd=none if crowd is None else np.array(crowd, dtype=np.bool_),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if area is None else np.array(area, dtype=np.float64),
    )


def found(boxes=(), scores=(), labels=()):
    return Detections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
    )


def xywh(boxes):
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).astype(np.float64).tolist()


def pycocotools_numbers(dataset, detections):
    """The twelve numbers, and (C,) AP and AP50, of the reference, which never saw our arrays: -1 for none."""
    ids = {one.id: one.id if isinstance(one.id, int) else i for i, one in enumerate(dataset.records)}
    annotations = [
        {"image_id": ids[one.id], "category_id": dataset.category_ids[label - 1], "bbox": box}
        | {"area": -1.0 if difficult else area, "iscrowd": int(crowd)}
        for one in dataset.records
        for box, label, area, crowd, difficult in zip(
            xywh(one.boxes), one.labels, one.area, one.crowd, one.difficult, strict=True
        )
    ]
    results = [
        {"image_id": ids[image_id], "category_id": dataset.category_ids[label - 1], "bbox": box, "score": score}
        | {"area": box[2] * box[3], "iscrowd": 0}
        for image_id, one in detections.items()
        for box, score, label in zip(xywh(one.boxes), one.scores.tolist(), one.labels, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for rows in (annotations, results):
            side = COCO()
            side.dataset = {
                "images": [{"id": image_id} for image_id in ids.values()],
                "categories": [{"id": category} for category in dataset.category_ids],
                "annotations": [row | {"id": i} for i, row in enumerate(rows, start=1)],
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    columns = np.argsort(np.argsort(dataset.category_ids))  # pycocotools orders classes by category id
    precision = evaluation.eval["precision"][:, :, columns, 0, 2]
    return evaluation.stats, precision.mean(axis=(0, 1)), precision[0].mean(axis=0)


def assert_equal_to_pycocotools(dataset, detections):
    result = evaluate_coco(dataset, detections)
    ours = (np.array([result.numbers[name] for name in COCO_NUMBERS]), result.class_ap, result.class_ap50)
    for mine, theirs in zip(ours, pycocotools_numbers(dataset, detections), strict=True):
        np.testing.assert_allclose(mine, np.where(theirs == -1, np.nan, theirs), rtol=0, atol=1e-6)


def random_boxes(rng, count):
    """From 4 to 250 pixels, so of every area range."""
    corners = rng.integers(0, 300, (count, 2)).astype(np.float64)
    return np.hstack([corners, corners + np.exp(rng.uniform(np.log(4), np.log(250), (count, 2))).round()])


def random_problem(seed, string_ids=False, detections_per_image=60):
    """Objects and detections near them: crowds, ties, duplicates, areas on the bounds, empty images, sparse ids."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10_000)[: rng.integers(1, 15)].tolist()
    records, detections = [], {}
    for image_id in ids:
        image_id = f"img{image_id}" if string_ids else image_id
        boxes = random_boxes(rng, rng.integers(0, 12))
        labels = rng.integers(1, 5, len(boxes))
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.3, 1.0, len(boxes))
        area = np.where(rng.random(len(boxes)) < 0.2, rng.choice([32.0**2, 96.0**2], len(boxes)), area)
        crowd = rng.random(len(boxes)) < 0.15
        difficult = (rng.random(len(boxes)) < 0.2) & string_ids
        records.append(record(image_id, boxes, labels, area, crowd, difficult))

        noise = random_boxes(rng, rng.integers(0, detections_per_image))
        near = np.repeat(boxes, 3, axis=0) + rng.integers(-6, 7, (3 * len(boxes), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        order = rng.permutation(len(near) + len(noise))
        labels = np.concatenate([np.repeat(labels, 3), rng.integers(1, 6, len(noise))])
        scores = rng.integers(0, 20, len(order)) / 20
        detections[image_id] = found(np.concatenate([near, noise])[order], scores, labels[order])
    # Five classes: nothing is ever a "boat", but detections may be.
    dataset = dataset_of(records, ("cat", "dog", "cow", "car", "boat"), (17, 3, 90, 4, 61))
    return dataset, detections


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_pycocotools(seed):
    assert_equal_to_pycocotools(*random_problem(seed))


@pytest.mark.parametrize("seed", range(100, 105))
def test_equal_to_pycocotools_with_more_detections_than_the_100_that_count(seed):
    assert_equal_to_pycocotools(*random_problem(seed, detections_per_image=1200))


@pytest.mark.parametrize("seed", range(200, 220))
def test_equal_to_pycocotools_with_string_ids_and_difficult_objects_outside_every_area_range(seed):
    dataset, detections = random_problem(seed, string_ids=True)
    in_order = sorted(dataset.records, key=lambda one: one.id)
    assert_equal_to_pycocotools(dataset_of(in_order, dataset.classes, dataset.category_ids), detections)


def test_neither_found_nor_to_be_found():
    dataset, detections = random_problem(0)
    assert_equal_to_pycocotools(dataset, {image_id: found() for image_id in detections})
    without_objects = dataset_of(
        [record(one.id, [], []) for one in dataset.records], dataset.classes, (17, 3, 90, 4, 61)
    )
    assert_equal_to_pycocotools(without_objects, detections)
    assert_equal_to_pycocotools(without_objects, {image_id: found() for image_id in detections})


def test_by_hand():
    # A cat of 100 x 100 found at an overlap of 0.72: right at 0.50, 0.55, 0.60, 0.65 and 0.70, five thresholds of ten.
    # A dog of 20 x 20 found exactly. AP is (0.5 + 1) / 2.
    dataset = dataset_of([record(7, [(0, 0, 100, 100), (200, 200, 220, 220)], [1, 2])])
    result = evaluate_coco(dataset, {7: found([(0, 0, 100, 72), (200, 200, 220, 220)], [0.9, 0.8], [1, 2])})
    assert result.class_ap.tolist() == pytest.approx([0.5, 1.0])
    assert result.class_ap50.tolist() == pytest.approx([1.0, 1.0])
    assert result.numbers["AP"] == pytest.approx(0.75)
    assert result.numbers["AP50"] == pytest.approx(1.0)
    assert result.numbers["AP75"] == pytest.approx(0.5)
    assert result.numbers["APs"] == pytest.approx(1.0)
    assert math.isnan(result.numbers["APm"])
    assert result.numbers["APl"] == pytest.approx(0.5)
    assert result.class_ap.tolist() == [pytest.approx(0.5), pytest.approx(1.0)]
    assert len(result.numbers) == 12


class TestDifficultObjects:
    BOX, OTHER = (0, 0, 50, 50), (100, 100, 150, 150)

    def average_precision(self, *rows):
        """AP50 of (box, score) rows, where BOX is difficult and OTHER is to be found."""
        dataset = dataset_of([record("a", [self.BOX, self.OTHER], [1, 1], difficult=[True, False])], ("cat",))
        boxes, scores = zip(*rows, strict=True)
        return evaluate_coco(dataset, {"a": found(boxes, scores, [1] * len(rows))}).numbers["AP50"]

    def test_may_be_missed(self):
        assert self.average_precision((self.OTHER, 0.5)) == pytest.approx(1.0)

    def test_may_be_found(self):
        assert self.average_precision((self.BOX, 0.9), (self.OTHER, 0.5)) == pytest.approx(1.0)

    def test_forgive_no_second_detection(self):
        assert self.average_precision((self.BOX, 0.9), (self.BOX, 0.8), (self.OTHER, 0.5)) == pytest.approx(0.5)

    def test_forgive_no_fragment_of_themselves(self):
        assert self.average_precision(((0, 0, 10, 10), 0.9), (self.OTHER, 0.5)) == pytest.approx(0.5)


def test_a_class_without_objects_is_named_and_null_in_json():
    dataset = dataset_of([record(1, [(0, 0, 10, 10)], [1])])
    result = evaluate_coco(dataset, {1: found([(0, 0, 10, 10)], [0.9], [1])})
    assert result.classes_without_gt == ("dog",)
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert written["metric"] == "coco"
    assert written["AP"] == pytest.approx(1.0)
    assert written["APl"] is None
    assert written["classes_without_gt"] == ["dog"]
    assert written["classes"][1] == {"name": "dog", "AP": None, "AP50": None}


def test_nothing_is_printed(capfd):
    evaluate_coco(*random_problem(1))
    assert capfd.readouterr() == ("", "")


def test_detections_of_other_images_are_refused():
    with pytest.raises(OhemError, match="1 of its 1 images have no entry"):
        evaluate_coco(dataset_of([record(1, [], [])]), {2: found()})


def test_a_data_set_without_images():
    assert all(math.isnan(number) for number in evaluate_coco(dataset_of([]), {}).numbers.values())
