"""Cost of full-size steps: each image has exactly 2,000 proposals, its own first."""

from pathlib import Path

import numpy as np
import pytest

from ohem.data.dataset import ImageRecord
from ohem.recipes.recipe import load_recipe
from ohem.studies.cost import FORMS, PROPOSALS, fill_up


@pytest.mark.parametrize("count", [7, 1999, 2000, 2600])
def test_proposals_are_filled_up_inside_the_image(count: int) -> None:
    none = np.zeros(0)
    record = ImageRecord("a", Path("a"), 90, 60, none.reshape(0, 4), none.astype(int), none > 0, none > 0, none)
    corner = np.random.default_rng(1).random((count, 2)) * (60, 30)
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    filled = fill_up(boxes, record)
    assert filled.shape == (PROPOSALS, 4)
    assert filled.dtype == np.float32
    assert np.array_equal(filled[:count], boxes[:PROPOSALS])
    assert (filled[:, 2:] - filled[:, :2] >= 1).all()
    assert (filled >= 0).all()
    assert (filled <= [90, 60, 90, 60]).all()


def test_the_whole_image_stands_for_proposals_that_are_not_there() -> None:
    none = np.zeros(0)
    record = ImageRecord("a", Path("a"), 90, 60, none.reshape(0, 4), none.astype(int), none > 0, none > 0, none)
    filled = fill_up(np.zeros((0, 4), np.float32), record)
    assert filled[0].tolist() == [0, 0, 90, 60]
    assert len(filled) == PROPOSALS


def test_forms_are_recipes() -> None:
    assert load_recipe("vgg16", FORMS["loss_layer"]).mining == "loss_layer"
    assert load_recipe("vgg16", FORMS["ohem"]).mining == "read_only"
