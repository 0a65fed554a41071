"""Detections to and from the real supervision."""

import sys

import numpy as np
import pytest
import supervision

import ohem

FOUND = ohem.Detections(
    np.array([[1, 2, 30, 40], [5.5, 6, 7, 8]], np.float32), np.array([0.9, 0.25], np.float32), np.array([2, 1])
)
CLASSES = ("cat", "dog")


def test_supervision_sees_the_same_boxes_scores_and_names() -> None:
    theirs = ohem.to_supervision(FOUND, CLASSES)
    assert isinstance(theirs, supervision.Detections)
    assert theirs.xyxy.tolist() == FOUND.boxes.tolist()
    assert theirs.class_id.tolist() == [1, 0]
    assert theirs["class_name"].tolist() == ["dog", "cat"]
    assert theirs[theirs.confidence > 0.5]["class_name"].tolist() == ["dog"]


@pytest.mark.parametrize("rows", [2, 0])
def test_there_and_back_is_the_same(rows: int) -> None:
    one = ohem.Detections(FOUND.boxes[:rows], FOUND.scores[:rows], FOUND.labels[:rows])
    back = ohem.from_supervision(ohem.to_supervision(one, CLASSES))
    for name in ("boxes", "scores", "labels"):
        ours, theirs = getattr(one, name), getattr(back, name)
        assert (ours.dtype, ours.shape, ours.tolist()) == (theirs.dtype, theirs.shape, theirs.tolist())


def test_supervisions_own_empty_detections() -> None:
    back = ohem.from_supervision(supervision.Detections.empty())
    assert (back.boxes.shape, back.scores.shape, back.labels.shape) == ((0, 4), (0,), (0,))


def test_what_cannot_be_carried_over_is_refused() -> None:
    with pytest.raises(ohem.OhemError, match="labels: found 1 to 2; allowed: 1 to 1"):
        ohem.to_supervision(FOUND, ["cat"])
    with pytest.raises(ohem.OhemError, match="confidence: found None"):
        ohem.from_supervision(supervision.Detections(xyxy=FOUND.boxes, class_id=np.array([0, 1])))


def test_without_supervision_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ohem.OhemError, match=r"pip install 'ohem\[supervision\]'"):
        ohem.to_supervision(FOUND, CLASSES)
