"""Reading MS COCO: what its files mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from corruptions import make_coco
from ohem.data.coco import read_coco
from ohem.data.dataset import DetectionDataset
from ohem.errors import DataError, OhemError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_coco(tmp_path / "data")
    return tmp_path / "data"


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((root / "instances.json").read_text())
    change(document)
    (root / "instances.json").write_text(json.dumps(document))


def read(root: Path, *args: Any, **options: Any) -> DetectionDataset:
    return read_coco(root / "instances.json", root / "images", *args, **options)


def test_a_data_set_as_it_is_read(root: Path) -> None:
    data = read(root)
    assert (data.name, data.format, data.root) == ("data/instances", "coco", root / "instances.json")
    # Sparse ids become labels in the order of the ids, not of the file.
    assert (data.classes, data.category_ids) == (("dog", "person"), (3, 7))
    assert [record.id for record in data.records] == [10, 20, 30]
    first, second, third = data.records
    assert (first.path, first.width, first.height) == (root / "images" / "000001.jpg", 64, 48)
    assert first.boxes.tolist() == [[10, 4, 30, 44], [0, 0, 64, 48]]
    assert first.labels.tolist() == [2, 1]
    assert first.crowd.tolist() == [False, True]
    assert first.difficult.tolist() == [False, False]
    assert first.area.tolist() == [500.5, 3072]
    assert second.boxes.tolist() == [[20.5, 10, 40, 20]]
    assert third.boxes.shape == (0, 4)
    for record in data.records:
        arrays = (record.boxes, record.labels, record.difficult, record.crowd, record.area)
        assert [array.dtype for array in arrays] == [np.float64, np.int64, np.bool_, np.bool_, np.float64]
        assert {len(array) for array in arrays} == {len(record.boxes)}


def test_it_agrees_with_pycocotools(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(root)
    oracle = COCO(str(root / "instances.json"))
    capsys.readouterr()
    for record in data.records:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[record.id]))
        xywh = np.concatenate([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]], axis=1)
        assert xywh.tolist() == [annotation["bbox"] for annotation in annotations]
        assert [data.category_ids[label - 1] for label in record.labels] == [a["category_id"] for a in annotations]
        assert record.crowd.tolist() == [a["iscrowd"] for a in annotations]
        assert record.area.tolist() == [a["area"] for a in annotations]


def test_a_missing_iscrowd_is_0_and_a_missing_area_the_boxs(root: Path) -> None:
    edit(root, lambda document: [document["annotations"][2].pop(key) for key in ("iscrowd", "area")])
    first = read(root).records[0]
    assert first.crowd.tolist() == [False, False]
    assert first.area.tolist() == [500.5, 3072]


@pytest.mark.parametrize("segmentation", [[[1, 2, 3, 4, 5, 6]], {"counts": [0, 9], "size": [48, 64]}, "anything", None])
def test_segmentations_are_ignored(root: Path, segmentation: object) -> None:
    edit(root, lambda document: document["annotations"][0].update(segmentation=segmentation))
    assert read(root).records[0].area.tolist() == [500.5, 3072]


def test_a_file_without_annotations_holds_background(root: Path) -> None:
    edit(root, lambda document: document.update(annotations=[]))
    data = read(root)
    assert [record.boxes.shape for record in data.records] == [(0, 4)] * 3
    assert data.notes == ()


def test_images_may_be_in_folders_inside(root: Path) -> None:
    (root / "images" / "inner").mkdir()
    (root / "images" / "000003.jpg").rename(root / "images" / "inner" / "3.jpg")
    edit(root, lambda document: document["images"][2].update(file_name="inner/3.jpg"))
    assert read(root).records[2].path == root / "images" / "inner" / "3.jpg"


def test_boxes_out_by_up_to_a_pixel_are_clipped_and_counted(root: Path) -> None:
    edit(root, lambda document: document["annotations"][1].update(bbox=[-0.25, 39, 51, 1.5]))
    data = read(root)
    assert data.records[1].boxes.tolist() == [[0, 39, 50, 40]]
    assert data.notes == ("clipped 1 box that stuck out of the picture by up to 1 px",)


def test_bad_boxes_can_be_left_out_and_counted(root: Path) -> None:
    # Two such boxes are in COCO's own instances_train2017.json.
    edit(root, lambda document: document["annotations"][0].update(bbox=[9.98, 18.5, 5.54, 0.0]))
    with pytest.raises(DataError, match=r"annotations\[0\]\.bbox: found \[9\.98, 18\.5, 5\.54, 0\.0\]: empty"):
        read(root)
    data = read(root, bad_boxes="drop")
    assert data.records[0].labels.tolist() == [1]
    assert data.notes == ("left out 1 box: reversed, empty or outside the picture",)


def test_a_class_list_chooses_and_orders(root: Path) -> None:
    data = read(root, ["person", "dog"])
    assert (data.classes, data.category_ids) == (("person", "dog"), (7, 3))
    assert data.records[0].labels.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["animals", "dog"])
def test_a_category_that_groups_others_is_no_class(name: str, root: Path) -> None:
    def export(document: dict[str, Any]) -> None:  # as Roboflow does
        for category in document["categories"]:
            category["supercategory"] = name
        document["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})

    edit(root, export)
    data = read(root)
    assert (data.classes, data.category_ids) == (("dog", "person"), (3, 7))
    assert data.notes == (f"left out categories that group others and have no box: {name}",)
    assert read(root, ["person", "dog"]).category_ids == (7, 3)
    if name == "animals":
        assert read(root, ["animals", "person", "dog"]).category_ids == (0, 7, 3)
    edit(root, lambda document: document["annotations"][0].update(category_id=0))
    if name == "dog":
        with pytest.raises(DataError, match=r"categories\[2\]\.name: found 'dog'"):
            read(root)
    else:
        assert read(root).classes == ("animals", "dog", "person")


def test_other_classes_are_faults_or_left_out_and_counted(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(root, ["person"])
    assert str(caught.value) == (
        f"{root}/instances.json: annotations: found unknown class 'dog' on 2 boxes; "
        "allowed: person (or other_classes: drop)"
    )
    data = read(root, ["person"], other_classes="drop")
    assert [record.labels.tolist() for record in data.records] == [[1], [], []]
    assert data.category_ids == (7,)
    assert data.notes == ("left out 2 objects of classes not in the list: dog 2",)


@pytest.mark.parametrize("name", ["hot\ndog", "hot\x1b[31mdog", "hot\u202edog"])
def test_a_name_that_would_move_the_cursor_is_told_on_one_line(name: str, root: Path) -> None:
    edit(root, lambda document: document["categories"][1].update(name=name))
    with pytest.raises(DataError) as caught:
        read(root, ["person"], other_classes="drop")
    assert str(caught.value).isprintable()
    assert f"categories[1].name: found {name!r}; allowed: a printable name of its own" in str(caught.value)


def test_a_class_that_the_file_lacks_may_have_no_objects_where_lists_may_differ(root: Path) -> None:
    data = read(root, ["cat", "person", "yak"], other_classes="drop")
    assert data.classes == ("cat", "person", "yak")
    assert len(set(data.category_ids)) == 3
    assert data.category_ids[1] == 7
    assert data.records[0].labels.tolist() == [2]
    assert "classes that are no category of the file: cat, yak" in data.notes
    with pytest.raises(DataError, match="no category 'yak', which is in the class list"):
        read(root, ["yak"], other_classes="drop")


def test_a_class_of_the_list_must_be_a_category(root: Path) -> None:
    with pytest.raises(DataError, match="found no category 'cat', which is in the class list; allowed: dog, person"):
        read(root, ["person", "dog", "cat"])


def test_a_class_list_must_be_usable(root: Path) -> None:
    with pytest.raises(OhemError, match="dog more than once"):
        read(root, ["dog", "dog"])


def test_boxes_keep_the_order_of_the_file_within_their_image(root: Path) -> None:
    rng = np.random.default_rng(0)
    places = rng.choice([10, 20, 30], size=200).tolist()
    annotations = [
        {"id": index, "image_id": place, "category_id": 3, "bbox": [1, 1, 1 + index / 10, 5]}
        for index, place in enumerate(places)
    ]
    edit(root, lambda document: document.update(annotations=annotations))
    for record in read(root).records:
        expected = [2 + index / 10 for index, place in enumerate(places) if place == record.id]
        np.testing.assert_allclose(record.boxes[:, 2], expected)


def test_images_alone_need_no_annotations_and_those_there_are_not_looked_at(root: Path) -> None:
    edit(root, lambda document: document["annotations"].append("no annotation"))
    with pytest.raises(DataError, match=r"annotations\[3\]"):
        read(root)
    for _ in range(2):
        data = read(root, annotations="none", classes=["person", "dog"])
        assert (data.classes, data.category_ids) == (("person", "dog"), (7, 3))
        assert [record.id for record in data.records] == [10, 20, 30]
        assert (data.records[0].boxes.shape, data.records[0].labels.dtype) == ((0, 4), np.int64)
        assert sum(len(record.boxes) for record in data.records) == 0
        edit(root, lambda document: document.pop("annotations", None))
    with pytest.raises(DataError, match="annotations: found nothing; allowed: a list"):
        read(root)
    edit(root, lambda document: document.pop("categories"))
    with pytest.raises(DataError, match="categories: found nothing; allowed: a list"):
        read(root, annotations="none")
