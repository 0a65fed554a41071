"""Looking at every image, and counting what a data set holds. What is found is in test_data_corruptions.py."""

from pathlib import Path

import pytest

from corruptions import make_coco, make_voc
from ohem.data.check import check_dataset, summary
from ohem.data.sources import load_dataset


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("decode", [True, False])
def test_faults_come_in_the_order_of_the_images_and_progress_is_told(
    tmp_path: Path, workers: int, decode: bool
) -> None:
    make_voc(tmp_path / "data")
    data = load_dataset([str(tmp_path / "data")])
    for record in data.records[::2]:
        record.path.write_bytes(b"")
    told: list[tuple[int, int]] = []
    faults = check_dataset(data, decode=decode, workers=workers, progress=lambda *step: told.append(step))
    assert [fault.file.name for fault in faults] == ["000001.jpg", "000003.jpg"]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_summary_of_voc(tmp_path: Path) -> None:
    make_voc(tmp_path / "data")
    found = summary(load_dataset([str(tmp_path / "data")], ["person", "cat", "dog"]))
    assert (found.images, found.images_without_boxes, found.boxes) == (3, 1, 3)
    assert found.boxes_per_class == {"person": 1, "cat": 0, "dog": 2}
    assert (found.difficult, found.crowd) == (1, 0)
    assert (found.widths, found.heights, found.box_sides) == ((32, 64), (40, 48), (10, 64))
    assert found.notes == ()


def test_summary_of_coco(tmp_path: Path) -> None:
    make_coco(tmp_path / "data")
    found = summary(load_dataset([str(tmp_path / "data")], ["person"], other_classes="drop"))
    assert (found.images, found.images_without_boxes, found.boxes, found.crowd) == (3, 2, 1, 0)
    assert found.notes == ("left out 2 objects of classes not in the list: dog 2",)


def test_summary_without_a_box(tmp_path: Path) -> None:
    make_coco(tmp_path / "data")
    file = tmp_path / "data" / "instances.json"
    file.write_text(
        file.read_text().replace('"annotations"', '"others"').replace('{\n "images"', '{"annotations": [], "images"')
    )
    found = summary(load_dataset([str(file)]))
    assert (found.boxes, found.box_sides, found.boxes_per_class) == (0, (0, 0), {"dog": 0, "person": 0})
