"""What each candidate region is trained as: labels, overlaps and regression targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ohem.boxes import DeltaStats, encode_deltas
from ohem.rois import Rois, label_rois

PLAIN = DeltaStats(torch.zeros(4, 4), torch.ones(4, 4))  # three classes; deltas as they are
OBJECT = [0, 0, 10, 10]


def boxes_of(*boxes):
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)


def label(proposals, objects=(), labels=None, difficult=(), crowd=(), stats=PLAIN, **settings):
    """objects: boxes; labels: all 1 when omitted; difficult and crowd: the positions of those that are."""
    places = torch.arange(len(objects))
    return label_rois(
        boxes_of(*proposals),
        boxes_of(*objects),
        torch.tensor([1] * len(objects) if labels is None else labels, dtype=torch.int64),
        stats,
        difficult=torch.isin(places, torch.tensor(difficult, dtype=torch.int64)),
        crowd=torch.isin(places, torch.tensor(crowd, dtype=torch.int64)),
        **{"add_ground_truth": False, **settings},
    )


def test_foreground_from_an_overlap_of_exactly_one_half():
    rois = label([[0, 0, 10, 20], [0, 0, 10, 21], [0, 0, 10, 10], [50, 50, 60, 60]], [OBJECT], [3])
    assert rois.labels.tolist() == [3, 0, 3, 0]
    assert rois.max_iou.tolist() == [0.5, np.float32(100) / np.float32(210), 1.0, 0.0]


def test_another_threshold():
    proposals = [[0, 0, 10, 20], [0, 0, 10, 8]]
    assert label(proposals, [OBJECT], fg_iou=0.6).labels.tolist() == [0, 1]
    assert label([[0, 0, 10, 7]], [OBJECT], fg_iou=0.7).labels.tolist() == [1]  # 0.7 is not exact in binary


def test_the_object_overlapped_most_gives_label_and_target():
    objects, labels = [[0, 0, 10, 10], [2, 0, 12, 10]], [1, 2]
    rois = label([[2, 0, 11, 10], [0, 0, 9, 10]], objects, labels)
    assert rois.labels.tolist() == [2, 1]
    assert torch.equal(rois.deltas, encode_deltas(rois.boxes, boxes_of(objects[1], objects[0])))


def test_a_tie_goes_to_the_first_object():
    rois = label([[0, 0, 10, 10]], [[0, 0, 10, 8], [0, 2, 10, 10], [0, 0, 8, 10]], [3, 1, 2])
    assert rois.labels.tolist() == [3]
    assert rois.deltas.tolist() == [pytest.approx([0, -0.1, 0, np.log(0.8)], abs=1e-6)]


def test_ground_truth_stands_behind_the_proposals():
    rois = label([[50, 50, 60, 60]], [OBJECT, [20, 0, 40, 10]], [1, 2], add_ground_truth=True)
    assert rois.boxes.tolist() == [[50, 50, 60, 60], OBJECT, [20, 0, 40, 10]]
    assert rois.labels.tolist() == [0, 1, 2]
    assert rois.max_iou.tolist() == [0, 1, 1]
    assert rois.deltas.tolist() == [[0.0] * 4] * 3


def test_it_is_put_there_unless_told_otherwise():
    assert len(label_rois(boxes_of(), boxes_of(OBJECT), torch.tensor([1]), PLAIN)) == 1


def test_difficult_and_crowd_objects_are_never_ground_truth():
    rois = label([OBJECT, [20, 0, 30, 10]], [OBJECT, [20, 0, 30, 10]], difficult=[0], crowd=[1], add_ground_truth=True)
    assert rois.labels.tolist() == [-1, -1]
    assert rois.max_iou.tolist() == [0, 0]
    assert rois.deltas.tolist() == [[0.0] * 4] * 2


def test_rois_on_difficult_objects_are_ignored_by_their_overlap():
    rois = label([[0, 0, 10, 20], [0, 0, 10, 21], [2, 2, 4, 4]], [OBJECT], difficult=[0])
    assert rois.labels.tolist() == [-1, 0, 0]


def test_rois_in_crowds_are_ignored_by_the_share_of_their_own_area():
    crowd = [0, 0, 100, 100]
    inside, half_out, more_out = [2, 2, 4, 4], [90, 0, 110, 10], [90, 0, 111, 10]
    rois = label([inside, half_out, more_out], [crowd], crowd=[0])
    assert rois.labels.tolist() == [-1, -1, 0]


def test_shares_of_several_crowds_are_not_added_up():
    assert label([[0, 0, 30, 10]], [[0, 0, 10, 10], [10, 0, 20, 10]], crowd=[0, 1]).labels.tolist() == [0]


def test_foreground_is_not_ignored():
    objects = [OBJECT, OBJECT, [0, 0, 100, 100]]
    assert label([OBJECT], objects, [2, 1, 1], difficult=[1], crowd=[2]).labels.tolist() == [2]


def test_a_difficult_crowd_is_a_crowd():
    assert label([[2, 2, 4, 4]], [OBJECT], difficult=[0], crowd=[0]).labels.tolist() == [-1]


def test_the_authors_code_makes_background_of_what_others_ignore():
    rois = label(
        [OBJECT, [20, 2, 22, 4]], [OBJECT, [20, 0, 30, 10]], difficult=[0], crowd=[1], ignore=False, fg_iou=0.5
    )
    assert rois.labels.tolist() == [0, 0]
    assert rois.max_iou.tolist() == [0, 0]


def test_an_image_without_objects_is_background():
    for extra in ({}, {"add_ground_truth": True}):
        rois = label([OBJECT, [5, 5, 6, 6]], **extra)
        assert rois.labels.tolist() == [0, 0]
        assert rois.max_iou.tolist() == [0, 0]
        assert rois.deltas.tolist() == [[0.0] * 4] * 2


def test_an_image_without_proposals_has_its_ground_truth_or_nothing():
    assert label([], [OBJECT], add_ground_truth=True).labels.tolist() == [1]
    nothing = label([], [OBJECT])
    assert len(nothing) == 0
    assert nothing.boxes.shape == nothing.deltas.shape == (0, 4)
    assert len(label([])) == 0


def test_types_are_as_documented():
    rois = label([OBJECT, [50, 50, 60, 60]], [OBJECT])
    assert [rois.boxes.dtype, rois.labels.dtype, rois.max_iou.dtype, rois.deltas.dtype] == [
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
    ]


def test_targets_are_normalised_by_the_statistics_of_their_class():
    stats = DeltaStats(torch.arange(16.0).view(4, 4), torch.arange(1.0, 17.0).view(4, 4))
    proposals, objects = [[0, 0, 10, 8], [20, 0, 29, 10], [50, 50, 60, 60]], [OBJECT, [20, 0, 30, 10]]
    raw = encode_deltas(boxes_of(*proposals[:2]), boxes_of(*objects))
    rois = label(proposals, objects, [3, 1], stats=stats)
    assert torch.allclose(rois.deltas[0], (raw[0] - stats.mean[3]) / stats.std[3])
    assert torch.allclose(rois.deltas[1], (raw[1] - stats.mean[1]) / stats.std[1])
    assert rois.deltas[2].tolist() == [0.0] * 4  # background has no target, and no mean is taken from it


@pytest.mark.parametrize(
    "bad",
    [
        [5, 0, 5, 10],  # no width
        [0, 9, 10, 9],  # no height
        [10, 0, 0, 10],  # corners swapped
        [0, 0, float("nan"), 10],
        [0, 0, float("inf"), 10],
        [-float("inf"), 0, 10, 10],
    ],
)
def test_a_box_without_area_is_refused_by_name(bad):
    with pytest.raises(
        ValueError, match=r"^proposals\[1\]: found \[.*\]; allowed: finite x1 < x2.* \(2 of 3 are not\)"
    ):
        label([OBJECT, bad, bad], [OBJECT])
    with pytest.raises(ValueError, match=r"^boxes\[0\]: found \[.*\]; allowed: .* \(1 of 2 are not\)"):
        label([OBJECT], [bad, OBJECT])
    with pytest.raises(ValueError, match=r"^boxes\[0\]"):  # also where it is no ground truth
        label([OBJECT], [bad, OBJECT], difficult=[0])


def test_some_of_the_rois_can_be_taken():
    rois = label([OBJECT, [50, 50, 60, 60], [0, 0, 10, 9]], [OBJECT])
    taken = rois[torch.tensor([2, 0])]
    assert isinstance(taken, Rois)
    assert len(taken) == 2
    assert taken.boxes.tolist() == [[0, 0, 10, 9], OBJECT]
    assert torch.equal(taken.deltas, rois.deltas[[2, 0]])
    assert rois[1:].labels.tolist() == rois.labels[1:].tolist()
    assert len(rois[torch.zeros(0, dtype=torch.int64)]) == 0


def test_the_arguments_are_left_as_they_were():
    proposals, objects = boxes_of(OBJECT, [50, 50, 60, 60]), boxes_of(OBJECT)
    rois = label_rois(proposals, objects, torch.tensor([1]), PLAIN)
    rois.boxes += 1
    rois.labels += 1
    assert proposals.tolist() == [OBJECT, [50, 50, 60, 60]]
    assert objects.tolist() == [OBJECT]


def common(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def slow_label(roi, objects, ignore):
    """The rules of label_rois for one RoI in integers; objects are (box, label, difficult, crowd)."""
    truth = [(box, label) for box, label, difficult, crowd in objects if not difficult and not crowd]
    overlap, name = 0.0, 0
    for box, object_label in truth:
        iou = common(roi, box) / (area(roi) + area(box) - common(roi, box))
        if iou > overlap:
            overlap, name = iou, object_label
    if overlap >= 0.5:
        return name, overlap
    for box, _, difficult, crowd in objects:
        if ignore and crowd and 2 * common(roi, box) >= area(roi):
            return -1, overlap
        if ignore and difficult and not crowd and 3 * common(roi, box) >= area(roi) + area(box):  # IoU >= 1/2
            return -1, overlap
    return 0, overlap


small_boxes = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
annotated = st.tuples(small_boxes, st.integers(1, 3), st.booleans(), st.booleans())


@given(st.lists(small_boxes, max_size=12), st.lists(annotated, max_size=5), st.booleans())
@settings(deadline=None, max_examples=300)
def test_equal_to_the_rules_written_out_for_one_roi(proposals, objects, ignore):
    rois = label(
        proposals,
        [box for box, _, _, _ in objects],
        [object_label for _, object_label, _, _ in objects],
        difficult=[i for i, each in enumerate(objects) if each[2]],
        crowd=[i for i, each in enumerate(objects) if each[3]],
        ignore=ignore,
    )
    expected = [slow_label(roi, objects, ignore) for roi in proposals]
    assert rois.labels.tolist() == [name for name, _ in expected]
    assert rois.max_iou.tolist() == pytest.approx([overlap for _, overlap in expected], abs=1e-6)
    assert ((rois.deltas == 0).all(dim=1) | (rois.labels > 0)).all()
