"""Which boxes fit their picture, and which names stay in their folder."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.data.rules import box_problem, fit_boxes, path_inside

WIDTH, HEIGHT = 8.0, 5.0
# Quarters around the picture, so that edges, the one pixel of slack and empty boxes all come up often.
quarters = st.integers(-12, 44).map(lambda number: number / 4)


def fitted_by_hand(box: list[float]) -> list[float] | None:
    """The box cut to the picture, or None when it is bad."""
    x1, y1, x2, y2 = box
    if x1 < -1 or y1 < -1 or x2 > WIDTH + 1 or y2 > HEIGHT + 1:
        return None
    cut = [max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)]
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None


def test_a_sliver_that_would_lose_its_area_as_float32_is_bad() -> None:
    slivers = [[639.99999, 10, 640.8, 60], [0, 100, 0.00001, 150], [5, 20, 60, 20.009]]
    fitted = fit_boxes(np.array([*slivers, [5, 20, 60, 20.011]]), np.array([640.0, 480.0]))
    assert fitted.bad.tolist() == [True, True, True, False]
    assert box_problem(np.array(slivers[2]), 640, 480) == "0.009 px wide or high"


@given(st.lists(st.lists(quarters, min_size=4, max_size=4), max_size=20))
def test_boxes_are_cut_or_called_bad_as_by_hand(boxes: list[list[float]]) -> None:
    fitted = fit_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array([WIDTH, HEIGHT]))
    for index, box in enumerate(boxes):
        by_hand = fitted_by_hand(box)
        assert fitted.bad[index] == (by_hand is None)
        assert fitted.clipped[index] == (by_hand is not None and by_hand != box)
        assert fitted.boxes[index].tolist() == (box if by_hand is None else by_hand)


def test_every_box_has_its_own_picture() -> None:
    fitted = fit_boxes(np.array([[0, 0, 9, 9], [0, 0, 9, 9.0]]), np.array([[9, 9], [8.5, 7.0]]))
    assert fitted.bad.tolist() == [False, True]


@pytest.mark.parametrize("name", ["a.jpg", "inner/a.jpg", "./a.jpg", "..a.jpg", "a..jpg"])
def test_names_that_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    assert path_inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["../a.jpg", "inner/../../a.jpg", "inner/../a.jpg", "/a.jpg", ".."])
def test_names_that_may_leave_it(name: str, tmp_path: Path) -> None:
    assert path_inside(tmp_path, name) is None
