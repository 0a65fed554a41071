"""Selective search: which boxes, in which order, and that nothing but the picture decides it."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from torch import from_numpy
from torchvision.ops import box_iou

from ohem.errors import OhemError
from ohem.proposals.selective_search import selective_search

OBJECTS = [[20, 30, 70, 80], [90, 20, 150, 60]]


def picture(height=110, width=170, seed=0):
    """Two plain objects on noise."""
    image = np.random.default_rng(seed).integers(90, 140, (height, width, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(OBJECTS, [(220, 40, 40), (40, 60, 220)], strict=True):
        image[y1:y2, x1:x2] = colour
    return image


def digest(boxes):
    return hashlib.sha256(boxes.tobytes()).hexdigest()


def test_objects_are_among_the_first_boxes():
    boxes = selective_search(picture())[:20]
    assert box_iou(from_numpy(boxes), from_numpy(np.array(OBJECTS, np.float32))).amax(0).min() > 0.9


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_boxes_are_distinct_and_inside(mode):
    boxes = selective_search(picture(), mode)
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(np.unique(boxes, axis=0)), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [170, 110]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()


def test_quality_finds_more_than_fast():
    noise = np.random.default_rng(2).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    patches = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_NEAREST)
    assert len(selective_search(patches, "quality")) > 2 * len(selective_search(patches, "fast"))


def test_fast_boxes_are_those_of_opencv():
    image = picture()
    theirs = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    theirs.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    theirs.switchToSelectiveSearchFast()
    expected = {(x, y, x + w, y + h) for x, y, w, h in theirs.process().tolist()}
    assert {tuple(box) for box in selective_search(image, min_size=0).tolist()} == expected


def test_order_depends_on_nothing_but_the_picture():
    image = picture()
    first = digest(selective_search(image))
    selective_search(picture(seed=1))  # moves the state of the C library's random numbers on
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    again = digest(selective_search(image))
    cv2.setNumThreads(threads)
    script = (
        "from test_proposals_selective_search import *; selective_search(picture(seed=3));"
        "print(digest(selective_search(picture())))"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert first == again == elsewhere


def test_large_regions_tend_to_come_first():
    """The paper's order; OpenCV's own is the other way round."""
    patches = cv2.resize(picture()[::8, ::8], (300, 200), interpolation=cv2.INTER_NEAREST)
    boxes = selective_search(patches)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert len(boxes) > 30
    assert np.median(area[:10]) > 2 * np.median(area[10:])


def test_max_proposals_takes_the_first():
    boxes = selective_search(picture())
    assert np.array_equal(selective_search(picture(), max_proposals=3), boxes[:3])


def test_min_size_leaves_out_boxes_and_keeps_the_order_of_the_others():
    boxes = selective_search(picture(), min_size=0)
    smallest = np.min(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert smallest.min() < 40
    assert np.array_equal(selective_search(picture(), min_size=40), boxes[smallest >= 40])


def test_large_pictures_are_searched_shrunk_and_boxes_are_given_in_their_own_pixels():
    large = np.repeat(np.repeat(picture(), 4, axis=0), 4, axis=1)
    boxes = selective_search(large, long_side=170)
    assert np.array_equal(boxes, 4 * selective_search(picture()))


def test_a_shrunk_picture_is_reached_to_its_very_edge():
    uneven = np.zeros((333, 701, 3), np.uint8)
    assert selective_search(uneven, long_side=97).tolist() == [[0, 0, 701, 333]]


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 400), (400, 1), (9, 400), (40, 7), (1, 3000)])
def test_degenerate_pictures_have_at_least_one_box(shape, mode):
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    boxes = selective_search(noise, mode)
    assert [0, 0, shape[1], shape[0]] in boxes.tolist()


def test_opencv_without_its_contributed_modules_is_named_with_the_package_that_has_them(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(OhemError, match=r"without its module ximgproc; .* opencv-contrib-python-headless"):
        selective_search(picture())
