"""The share of objects that proposals reach, against hand-worked cases and a plain loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from ohem.data.dataset import ImageRecord
from ohem.proposals.recall import AREAS, proposal_recall


def record(image_id, boxes, difficult=(), crowd=(), area=None):
    """difficult and crowd: the positions of the objects that are."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    places = np.arange(len(boxes))
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=200,
        height=200,
        boxes=boxes,
        labels=np.ones(len(boxes), dtype=np.int64),
        difficult=np.isin(places, difficult),
        crowd=np.isin(places, crowd),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if area is None else np.array(area, dtype=np.float64),
    )


def boxes(*rows):
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def test_by_hand():
    records = [
        record("a", [[0, 0, 10, 10], [0, 0, 40, 40]]),  # small, medium
        record("b", [[0, 0, 100, 100]]),  # large
    ]
    proposals = {
        # IoU with the small object 0.8, then 1; with the medium one 1600 / 1600 only in the third.
        "a": boxes([0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 40, 40]),
        # IoU 0.6
        "b": boxes([0, 0, 100, 60]),
    }
    table = proposal_recall(records, proposals, ious=(0.5, 0.7), counts=(1, 2, None))
    assert table.objects.tolist() == [3, 1, 1, 1]
    assert table.mean_proposals.tolist() == [1, 1.5, 2]
    by_area = dict(zip(AREAS, table.recall.tolist(), strict=True))
    third = pytest.approx(1 / 3)
    assert by_area["all"] == [[2 / 3, 2 / 3, 1], [third, third, 2 / 3]]
    assert by_area["small"] == [[1, 1, 1], [1, 1, 1]]
    assert by_area["medium"] == [[0, 0, 1], [0, 0, 1]]
    assert by_area["large"] == [[1, 1, 1], [0, 0, 0]]


def test_an_overlap_equal_to_the_wanted_one_counts():
    one = [record("a", [[0, 0, 10, 10]])]
    assert proposal_recall(one, {"a": boxes([0, 0, 5, 10])}, ious=(0.5,), counts=(None,)).recall[0] == 1


def test_difficult_and_crowd_objects_do_not_count():
    one = [record("a", [[0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]], difficult=[1], crowd=[2])]
    table = proposal_recall(one, {"a": boxes([0, 0, 10, 10])})
    assert table.objects[0] == 1
    assert (table.recall[0] == 1).all()


def test_size_is_the_records_area_and_the_limits_belong_to_the_larger_size():
    square = [0, 0, 100, 100]
    one = [record("a", [square] * 4, area=[32**2 - 1, 32**2, 96**2 - 1, 96**2])]
    assert proposal_recall(one, {"a": boxes(square)}).objects.tolist() == [4, 1, 2, 1]


def test_images_without_proposals_or_objects_count_as_they_are():
    records = [record("a", [[0, 0, 10, 10]]), record("b", [])]
    table = proposal_recall(records, {"a": boxes(), "b": boxes([0, 0, 9, 9], [0, 0, 8, 8])}, counts=(None,))
    assert table.recall[0].tolist() == [[0], [0]]
    assert table.mean_proposals.tolist() == [1]


def test_recall_of_no_objects_is_no_number_and_shown_as_a_dash():
    table = proposal_recall([record("b", [])], {"b": boxes([0, 0, 9, 9])}, ious=(0.5,), counts=(10,))
    assert math.isnan(table.recall[0, 0, 0])
    assert table.rows()[1] == ("10", "1.0", "-", "-", "-", "-")


def test_rows_for_people():
    table = proposal_recall([record("a", [[0, 0, 10, 10]])], {"a": boxes([0, 0, 10, 6])}, counts=(10, None))
    heading, ten, everything, objects = table.rows()
    assert heading[:4] == ("proposals", "per image", "all @0.5", "small @0.5")
    assert ten[:4] == ("10", "1.0", "1.000", "1.000")
    assert everything[0] == "all"
    assert objects[:4] == ("objects", "", "1", "1")
    assert len({len(row) for row in table.rows()}) == 1


def test_against_a_plain_loop():
    rng = np.random.default_rng(0)

    def some(count):
        corner = rng.integers(0, 100, (count, 2))
        return np.concatenate([corner, corner + rng.integers(5, 100, (count, 2))], axis=1)

    records = [record(i, some(6), difficult=[5]) for i in range(20)]
    proposals = {i: some(30 + i).astype(np.float32) for i in range(20)}
    counts, ious = (5, 20, 1000, None), (0.3, 0.5, 0.7)
    table = proposal_recall(records, proposals, ious, counts)
    for n, count in enumerate(counts):
        for t, iou in enumerate(ious):
            found = [
                float(box_iou(torch.from_numpy(box[None]), torch.from_numpy(proposals[one.id][:count])).max()) >= iou
                for one in records
                for box in one.boxes[:5]
            ]
            assert table.recall[0, t, n] == pytest.approx(np.mean(found), abs=1e-12)
    assert 0 < table.recall[0, 1, 0] < table.recall[0, 1, 1] < 1


def test_an_image_without_an_entry_is_refused():
    with pytest.raises(KeyError):
        proposal_recall([record("a", [[0, 0, 1, 1]])], {})
