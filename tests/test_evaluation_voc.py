"""VOC's metric over a data set: which objects and images count, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ohem.data.dataset import DetectionDataset, Detections, ImageRecord
from ohem.errors import OhemError
from ohem.evaluation.voc import evaluate_voc

BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60)


def record(image_id, objects, difficult=(), crowd=()):
    """objects: (box, label) each; difficult and crowd: the positions of those that are."""
    boxes = np.array([box for box, _ in objects], dtype=np.float64).reshape(-1, 4)
    places = np.arange(len(objects))
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=100,
        height=100,
        boxes=boxes,
        labels=np.array([label for _, label in objects], dtype=np.int64),
        difficult=np.isin(places, difficult),
        crowd=np.isin(places, crowd),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
    )


def dataset_of(*records, classes=("cat", "dog")):
    return DetectionDataset("VOC2007@test", "voc", Path("VOC2007"), classes, tuple(range(1, len(classes) + 1)), records)


def found(*rows):
    """rows: (box, score, label) each."""
    return Detections(
        boxes=np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], dtype=np.float32),
        labels=np.array([label for _, _, label in rows], dtype=np.int64),
    )


def test_average_precision_per_class_and_its_mean():
    dataset = dataset_of(record("a", [(BOX, 1), (ELSEWHERE, 2)]), record("b", [(BOX, 2)]))
    result = evaluate_voc(dataset, {"a": found((BOX, 0.9, 1), (ELSEWHERE, 0.8, 2)), "b": found()}, method="area")
    assert result.classes == ("cat", "dog")
    assert result.ap.tolist() == [1.0, 0.5]  # one of the two dogs
    assert result.mean_ap == 0.75
    assert result.num_gt.tolist() == [1, 2]
    assert result.rows() == [("cat", 1.0), ("dog", 0.5), ("mean", 0.75)]
    assert result.curves[1].recall.tolist() == [0.5]


def test_voc07_is_the_method_unless_told_otherwise():
    dataset = dataset_of(record("a", [(BOX, 1), (ELSEWHERE, 1)]), classes=("cat",))
    assert evaluate_voc(dataset, {"a": found((BOX, 0.9, 1))}).mean_ap == pytest.approx(6 / 11, abs=1e-12)


def test_a_detection_of_another_class_finds_nothing():
    result = evaluate_voc(dataset_of(record("a", [(BOX, 1)])), {"a": found((BOX, 0.9, 2))})
    assert result.ap[0] == 0.0


def test_a_class_without_detections_has_0():
    result = evaluate_voc(dataset_of(record("a", [(BOX, 1), (BOX, 2)])), {"a": found((BOX, 0.9, 1))})
    assert result.ap.tolist() == [1.0, 0.0]
    assert result.mean_ap == 0.5


def test_a_class_without_objects_has_no_average_precision_and_is_named():
    detections = {"a": found((BOX, 0.9, 1), (BOX, 0.9, 2))}
    result = evaluate_voc(dataset_of(record("a", [(BOX, 1), (BOX, 2)], difficult=[1])), detections)
    assert result.ap[0] == 1.0
    assert math.isnan(result.ap[1])
    assert result.mean_ap == 1.0
    assert result.classes_without_gt == ("dog",)
    assert result.num_gt.tolist() == [1, 0]
    assert result.num_ignored.tolist() == [0, 1]


def test_without_any_object_the_mean_is_nan():
    assert math.isnan(evaluate_voc(dataset_of(record("a", [])), {"a": found((BOX, 0.9, 1))}).mean_ap)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_difficult_objects_and_crowds_need_not_be_found_and_may_be(kind):
    dataset = dataset_of(record("a", [(BOX, 1), (ELSEWHERE, 1)], **{kind: [0]}), classes=("cat",))
    missed = evaluate_voc(dataset, {"a": found((ELSEWHERE, 0.5, 1))})
    detected = evaluate_voc(dataset, {"a": found((BOX, 0.9, 1), (BOX, 0.8, 1), (ELSEWHERE, 0.5, 1))})
    assert missed.mean_ap == detected.mean_ap == 1.0


def test_between_equal_scores_the_earlier_image_comes_first():
    cat, nothing = record("a", [(BOX, 1)]), record("b", [])
    detections = {"a": found((BOX, 0.5, 1)), "b": found((BOX, 0.5, 1))}
    right_first = evaluate_voc(dataset_of(cat, nothing, classes=("cat",)), detections)
    wrong_first = evaluate_voc(dataset_of(nothing, cat, classes=("cat",)), detections)
    assert (right_first.mean_ap, wrong_first.mean_ap) == (1.0, 0.5)


def test_the_overlap_asked_for_can_be_changed():
    dataset = dataset_of(record("a", [(BOX, 1)]), classes=("cat",))
    detections = {"a": found(((0, 0, 10, 6), 0.9, 1))}
    assert evaluate_voc(dataset, detections, iou_threshold=0.6).mean_ap == 1.0
    assert evaluate_voc(dataset, detections, iou_threshold=0.75).mean_ap == 0.0


@pytest.mark.parametrize("threshold", [0.0, 1.01, math.nan])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(OhemError, match=r"iou_threshold: found .*; allowed: above 0, at most 1"):
        evaluate_voc(dataset_of(record("a", [])), {"a": found()}, iou_threshold=threshold)


def test_json_has_the_numbers_and_no_nan():
    detections = {"a": found((BOX, 0.9, 1))}
    written = json.dumps(evaluate_voc(dataset_of(record("a", [(BOX, 1)])), detections).to_json(), allow_nan=False)
    assert json.loads(written) == {
        "metric": "voc",
        "method": "voc07",
        "iou_threshold": 0.5,
        "mean_ap": 1.0,
        "classes_without_gt": ["dog"],
        "classes": [
            {"name": "cat", "ap": 1.0, "num_gt": 1, "num_ignored": 0},
            {"name": "dog", "ap": None, "num_gt": 0, "num_ignored": 0},
        ],
    }


class TestDetectionsThatDoNotFit:
    def refusal(self, detections):
        with pytest.raises(OhemError) as caught:
            evaluate_voc(dataset_of(record("a", []), record("b", []), record("c", [])), detections)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_and_unknown_images_are_counted(self):
        assert self.refusal({"c": found(), "x": found()}) == (
            "detections do not fit VOC2007@test: 2 of its 3 images have no entry (first 'a'); "
            "1 entries name images it does not hold (first 'x')"
        )

    def test_bad_rows_are_counted(self):
        nan_box, reversed_box = (0, 0, math.nan, 1), (5, 0, 4, 9)
        assert self.refusal(
            {"a": found(), "b": found((nan_box, 0.5, 1), (BOX, 1.5, 3)), "c": found((reversed_box, math.nan, 0))}
        ) == (
            "detections do not fit VOC2007@test: "
            "2 boxes not finite or with x2 < x1 or y2 < y1 (first in image 'b'); "
            "2 scores outside 0 to 1 (first in image 'b'); 2 labels outside 1 to 2 (first in image 'b')"
        )

    def test_columns_of_different_lengths(self):
        two = found((BOX, 0.5, 1), (BOX, 0.4, 1))
        uneven = Detections(two.boxes, two.scores[:1], two.labels)
        fractional = Detections(two.boxes, two.scores, two.labels + 0.5)
        assert self.refusal({"a": two, "b": uneven, "c": fractional}) == (
            "detections do not fit VOC2007@test: 2 images have other shapes than D x 4, D, D integers (first 'b')"
        )
