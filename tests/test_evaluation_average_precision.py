"""VOC's average precision, against numbers worked by hand and a slow reference that counts inclusive pixels."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohem.evaluation.average_precision import (
    Matches,
    PrecisionRecall,
    average_precision,
    match_detections,
    precision_recall,
)


def match(detections, objects, iou_threshold=0.5) -> Matches:
    """detections: (image, box, score) each; objects: (image, box, ignored) each."""
    return match_detections(
        np.array([image for image, _, _ in detections], dtype=np.int64),
        np.array([box for _, box, _ in detections], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, _, score in detections], dtype=np.float64),
        np.array([image for image, _, _ in objects], dtype=np.int64),
        np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4),
        np.array([ignored for _, _, ignored in objects], dtype=np.bool_),
        iou_threshold,
    )


def curve(detections, objects, iou_threshold=0.5) -> PrecisionRecall:
    scores = np.array([score for _, _, score in detections], dtype=np.float64)
    num_gt = sum(not ignored for _, _, ignored in objects)
    return precision_recall(scores, match(detections, objects, iou_threshold), num_gt)


class TestByHand:
    """Two images, three objects to find, five detections."""

    OBJECTS = (
        (0, (0, 0, 10, 10), False),
        (0, (20, 0, 30, 10), False),
        (1, (0, 0, 10, 10), False),
        (1, (50, 50, 60, 60), True),
    )
    DETECTIONS = (
        (0, (0, 0, 10, 10), 0.9),  # the first object, exactly: right
        (0, (1, 0, 10, 10), 0.8),  # the first object again, at 90/100: wrong
        (1, (50, 50, 60, 60), 0.7),  # the ignored object: does not count
        (1, (0, 0, 10, 5), 0.6),  # the third object, at 50/100, just enough: right
        (0, (20, 4, 30, 20), 0.5),  # the second object, at 60/200: wrong
    )

    def test_what_became_of_each_detection(self):
        matches = match(self.DETECTIONS, self.OBJECTS)
        assert matches.true_positive.tolist() == [True, False, False, True, False]
        assert matches.ignored.tolist() == [False, False, True, False, False]
        assert matches.gt.tolist() == [0, 0, 3, 2, 1]
        assert matches.iou.tolist() == [1.0, 0.9, 1.0, 0.5, 0.3]

    def test_the_curve_has_a_point_for_every_detection_that_counts(self):
        points = curve(self.DETECTIONS, self.OBJECTS)
        assert points.scores.tolist() == [0.9, 0.8, 0.6, 0.5]
        assert points.recall.tolist() == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
        assert points.precision.tolist() == [1, 1 / 2, 2 / 3, 2 / 4]

    def test_eleven_points(self):
        # Recalls 0, .1, .2, .3 are reached at precision 1; .4, .5, .6 at 2/3; .7 and above never: (4 + 3 * 2/3) / 11.
        points = curve(self.DETECTIONS, self.OBJECTS)
        assert average_precision(points.recall, points.precision, "voc07") == pytest.approx(6 / 11, abs=1e-12)

    def test_area(self):
        # A third of the recall at precision 1, the next third at 2/3, the last at 0.
        points = curve(self.DETECTIONS, self.OBJECTS)
        assert average_precision(points.recall, points.precision, "area") == pytest.approx(5 / 9, abs=1e-12)


class TestAveragePrecision:
    @pytest.mark.parametrize("method", ["voc07", "area"])
    def test_no_detections_give_0_and_perfect_ones_1(self, method):
        assert average_precision(np.empty(0), np.empty(0), method) == 0.0
        assert average_precision(np.array([0.5, 1.0]), np.array([1.0, 1.0]), method) == 1.0

    @pytest.mark.parametrize("found", range(11))
    def test_a_recall_of_exactly_k_tenths_reaches_its_level(self, found):
        # The sum of three rounded 0.1 is above 3/10: levels made that way would not be reached here for k = 3, 6, 7.
        recall = np.arange(1, found + 1) / 10
        assert average_precision(recall, np.ones(found), "voc07") == pytest.approx(
            (found + 1) / 11 if found else 0.0, abs=1e-12
        )

    def test_precision_is_the_best_at_that_recall_or_above(self):
        recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
        assert average_precision(recall, precision, "voc07") == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-12)
        assert average_precision(recall, precision, "area") == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)

    def test_an_unknown_method_is_refused(self):
        with pytest.raises(ValueError, match="found 'voc12'; allowed: 'voc07', 'area'"):
            average_precision(np.empty(0), np.empty(0), "voc12")  # type: ignore[arg-type]


class TestMatching:
    def test_a_box_counts_as_many_pixels_as_vocs_inclusive_corners(self):
        # VOC's (1, 1, 10, 10) holds 100 pixels and (1, 1, 10, 5) fifty: an overlap of exactly a half.
        # Without the + 1 it would be 36/81.
        assert match([(0, (0, 0, 10, 5), 1)], [(0, (0, 0, 10, 10), False)]).iou.tolist() == [0.5]

    def test_an_overlap_equal_to_the_threshold_is_enough(self):
        objects = [(0, (0, 0, 10, 10), False)]
        assert match([(0, (0, 0, 10, 7), 1)], objects, iou_threshold=0.7).true_positive.tolist() == [True]
        assert match([(0, (0, 0, 10, 6.99), 1)], objects, iou_threshold=0.7).true_positive.tolist() == [False]

    def test_a_detection_may_not_turn_to_its_second_best_object(self):
        # Both detections overlap object 0 most; the second would do for object 1 as well (70/100) but is a duplicate.
        objects = [(0, (0, 0, 10, 10), False), (0, (0, 3, 10, 10), False)]
        detections = [(0, (0, 0, 10, 10), 0.9), (0, (0, 0.5, 10, 10), 0.8)]
        assert match(detections, objects).true_positive.tolist() == [True, False]

    def test_of_objects_overlapped_equally_the_first_is_taken(self):
        objects = [(0, (0, 0, 10, 10), False), (0, (0, 0, 10, 10), False)]
        assert match([(0, (0, 0, 10, 10), 0.9)], objects).gt.tolist() == [0]

    def test_of_equal_scores_the_one_given_first_wins(self):
        detections = [(0, (0, 0, 10, 9), 0.5), (0, (0, 0, 10, 10), 0.5)]
        assert match(detections, [(0, (0, 0, 10, 10), False)]).true_positive.tolist() == [True, False]

    def test_an_ignored_object_forgives_any_number_of_detections(self):
        detections = [(0, (0, 0, 10, 10), 0.9), (0, (0, 0, 10, 10), 0.8)]
        assert match(detections, [(0, (0, 0, 10, 10), True)]).ignored.tolist() == [True, True]

    def test_objects_of_other_images_are_out_of_reach(self):
        matches = match([(1, (0, 0, 10, 10), 0.9)], [(0, (0, 0, 10, 10), False), (2, (0, 0, 10, 10), False)])
        assert matches.gt.tolist() == [-1]
        assert matches.iou.tolist() == [0.0]

    def test_empty_boxes_overlap_nothing(self):
        assert match([(0, (5, 5, 5, 5), 0.9)], [(0, (5, 5, 5, 5), False)]).iou.tolist() == [0.0]


@dataclass
class SlowObject:
    image: int
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool
    detected: bool = False


def slow_average_precision(detections, objects, threshold) -> tuple[float, float]:
    """VOC's metric as its kit is written: one detection and one object after another, inclusive pixels."""
    objects = [SlowObject(image, x1 + 1, y1 + 1, x2, y2, difficult) for image, (x1, y1, x2, y2), difficult in objects]
    num_gt = sum(not one.difficult for one in objects)
    tp, fp, curve = 0, 0, []
    for image, (x1, y1, x2, y2), _ in sorted(detections, key=lambda detection: -detection[2]):
        xmin, ymin, xmax, ymax = x1 + 1, y1 + 1, x2, y2
        best, best_overlap = None, -math.inf
        for one in objects:
            width = min(xmax, one.xmax) - max(xmin, one.xmin) + 1
            height = min(ymax, one.ymax) - max(ymin, one.ymin) + 1
            if one.image == image and width > 0 and height > 0:
                both = (xmax - xmin + 1) * (ymax - ymin + 1) + (one.xmax - one.xmin + 1) * (one.ymax - one.ymin + 1)
                overlap = width * height / (both - width * height)
                if overlap > best_overlap:
                    best, best_overlap = one, overlap
        if best_overlap < threshold:
            fp += 1
        elif best.difficult:
            continue
        elif best.detected:
            fp += 1
        else:
            tp += 1
            best.detected = True
        curve.append((tp, tp / (tp + fp)))

    eleven = sum(max((p for found, p in curve if 10 * found >= k * num_gt), default=0) for k in range(11)) / 11
    area = sum(max((p for found, p in curve if found >= k), default=0) for k in range(1, num_gt + 1)) / num_gt
    return eleven, area


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(40))
def test_equal_to_the_slow_reference(seed, threshold):
    """Few coordinates and few scores: full of ties, duplicates, and overlaps equal to the threshold."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corners = rng.integers(0, 12, (count, 2)) / 2
        return np.hstack([corners, corners + rng.integers(1, 12, (count, 2)) / 2]).tolist()

    num_objects, num_detections, num_images = rng.integers(1, 60), rng.integers(0, 300), rng.integers(1, 8)
    difficult = rng.random(num_objects) < 0.3
    difficult[0] = False
    objects = list(
        zip(rng.integers(0, num_images, num_objects).tolist(), boxes(num_objects), difficult.tolist(), strict=True)
    )
    scores = rng.integers(0, 30, num_detections) / 30
    detections = list(
        zip(rng.integers(0, num_images, num_detections).tolist(), boxes(num_detections), scores.tolist(), strict=True)
    )

    points = curve(detections, objects, threshold)
    eleven, area = slow_average_precision(detections, objects, threshold)
    assert average_precision(points.recall, points.precision, "voc07") == pytest.approx(eleven, abs=1e-9)
    assert average_precision(points.recall, points.precision, "area") == pytest.approx(area, abs=1e-9)


detection_lists = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(6, 9), st.integers(6, 9)),
        st.integers(0, 10).map(lambda tenths: tenths / 10),
    ),
    max_size=20,
)
OBJECTS = ((0, (0, 0, 8, 8), False), (0, (4, 4, 9, 9), False), (1, (2, 2, 7, 7), False), (2, (0, 0, 9, 9), True))


@settings(deadline=None)
@given(detection_lists)
def test_only_the_order_of_the_scores_matters(detections):
    rescaled = [(image, box, score**2 / 2) for image, box, score in detections]
    assert curve(rescaled, OBJECTS).precision.tolist() == curve(detections, OBJECTS).precision.tolist()


@settings(deadline=None)
@given(detection_lists)
def test_a_wrong_detection_below_all_others_leaves_average_precision_alone(detections):
    points = curve(detections, OBJECTS)
    more = curve([*detections, (9, (0, 0, 5, 5), -1.0)], OBJECTS)
    for method in ("voc07", "area"):
        assert average_precision(more.recall, more.precision, method) == average_precision(
            points.recall, points.precision, method
        )


def test_half_is_the_overlap_unless_another_is_asked_for() -> None:
    image = np.zeros(1, np.int64)
    box, half = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 5]])
    found = match_detections(image, half, np.ones(1), image, box, np.zeros(1, bool))
    assert found.true_positive.tolist() == [True]
    less = match_detections(image, half - [[0, 0, 0, 0.1]], np.ones(1), image, box, np.zeros(1, bool))
    assert less.true_positive.tolist() == [False]


def test_boxes_without_area_overlap_nothing_not_even_each_other() -> None:
    image, point = np.zeros(1, np.int64), np.array([[3.0, 3, 3, 3]])
    found = match_detections(image, point, np.ones(1), image, point, np.zeros(1, bool))
    assert found.iou.tolist() == [0]
    assert found.gt.tolist() == [-1]
