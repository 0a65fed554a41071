"""Parts of a data set: drawn by id, disjoint, nested, and the same wherever they are drawn."""

from pathlib import Path

import numpy as np
import pytest

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.split import draw_count, draw_fraction, hold_out


def images(count: int, backwards: bool = False) -> DetectionDataset:
    empty = np.zeros(0)
    ids = [f"{i:03d}" for i in range(count)]
    records = [
        ImageRecord(i, Path(i), 9, 9, empty.reshape(0, 4), empty.astype(int), empty > 0, empty > 0, empty)
        for i in (reversed(ids) if backwards else ids)
    ]
    return DetectionDataset("made", "voc", Path(), ("a",), (1,), tuple(records))


def ids(dataset: DetectionDataset) -> set[object]:
    return {record.id for record in dataset.records}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_held_out_images_and_the_rest_are_the_whole(share: float) -> None:
    rest, held = hold_out(images(40), share)
    assert len(held) == round(40 * share)
    assert ids(rest) | ids(held) == ids(images(40))
    assert not ids(rest) & ids(held)


def test_the_order_of_reading_does_not_matter() -> None:
    assert ids(hold_out(images(40), 0.25)[1]) == ids(hold_out(images(40, backwards=True), 0.25)[1])
    assert ids(draw_fraction(images(40), 0.25, 3)) == ids(draw_fraction(images(40, backwards=True), 0.25, 3))


def test_smaller_fractions_are_parts_of_larger_ones_and_seeds_differ() -> None:
    small, large = (draw_fraction(images(40), share, seed=1) for share in (0.25, 0.5))
    assert (len(small), len(large)) == (10, 20)
    assert ids(small) < ids(large)
    assert ids(small) != ids(draw_fraction(images(40), 0.25, seed=2))


def test_at_most_so_many_are_drawn_in_the_data_sets_order() -> None:
    drawn = draw_count(images(40), 7)
    assert len(drawn) == 7
    assert ids(drawn) == ids(draw_count(images(40, backwards=True), 7))
    assert [record.id for record in drawn.records] == sorted(record.id for record in drawn.records)
    for count, of in ((0, 40), (40, 40), (50, 40), (5, 0)):
        assert len(draw_count(images(of), count)) == of
