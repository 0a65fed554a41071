"""The bootstrap over images: a draw of every image once is the plain AP, and draws are what they would be as data."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.evaluation.average_precision import average_precision
from ohem.evaluation.resampling import draw_images, resampled_ap


def test_each_draw_has_as_many_images_as_there_are_and_the_seed_decides() -> None:
    draws = draw_images(7, 50)
    assert (draws.sum(axis=1) == 7).all()
    assert (draws == draw_images(7, 50)).all()
    assert (draws != draw_images(7, 50, seed=1)).any()


@pytest.mark.parametrize("method", ["voc07", "area"])
@given(st.integers(0, 2**32 - 1))
def test_a_draw_is_the_ap_of_the_images_repeated(method: Literal["voc07", "area"], seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt_images = rng.integers(0, 4, rng.integers(1, 9))
    images = rng.integers(0, 4, rng.integers(0, 12))
    right = np.zeros(len(images), np.bool_)
    for image in range(4):  # no more of them than objects
        right[np.flatnonzero(images == image)[: np.sum(gt_images == image)]] = True
    weights = np.vstack([np.ones(4, np.int64), draw_images(4, 5, seed)])
    found = resampled_ap(images, right, gt_images, weights, method)
    for ap, weight in zip(found, weights, strict=True):
        repeated = np.repeat(right, weight[images])
        objects = weight[gt_images].sum()
        if not objects:
            assert np.isnan(ap)
            continue
        hits = np.cumsum(repeated)
        assert ap == pytest.approx(average_precision(hits / objects, hits / np.arange(1, len(hits) + 1), method))
