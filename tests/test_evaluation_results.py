"""Detections written to disk and read back, in COCO's and VOC's results formats."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ohem.data.dataset import DetectionDataset, Detections, ImageRecord
from ohem.errors import DataError, OhemError
from ohem.evaluation.columns import DetectionColumns, detection_columns, split_by_image
from ohem.evaluation.results import load_coco_results, save_coco_results, save_voc_results


def dataset_of(*image_ids, classes=("cat", "dog"), category_ids=(90, 3)):
    records = [
        ImageRecord(
            id=image_id,
            path=Path(f"{image_id}.jpg"),
            width=100,
            height=100,
            boxes=np.empty((0, 4)),
            labels=np.empty(0, np.int64),
            difficult=np.empty(0, np.bool_),
            crowd=np.empty(0, np.bool_),
            area=np.empty(0),
        )
        for image_id in image_ids
    ]
    return DetectionDataset("mine", "coco", Path("mine.json"), classes, category_ids, tuple(records))


def found(*rows):
    """rows: (box, score, label) each."""
    return Detections(
        boxes=np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], dtype=np.float32),
        labels=np.array([label for _, _, label in rows], dtype=np.int64),
    )


def assert_equal(left, right):
    assert list(left) == list(right)
    for image_id, one in left.items():
        other = right[image_id]
        for name in ("boxes", "scores", "labels"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@st.composite
def any_detections(draw):
    """Of three images; boxes and scores with all the digits that float32 has."""
    detections = {}
    for image_id in (30, 10, 20):
        count = draw(st.integers(0, 4))
        corners = arrays(np.float32, (count, 2), elements=st.floats(0, 500, width=32))
        start, stop = draw(corners), draw(corners)
        detections[image_id] = Detections(
            boxes=np.hstack([np.minimum(start, stop), np.maximum(start, stop)]),
            scores=draw(arrays(np.float32, count, elements=st.floats(0, 1, width=32))),
            labels=draw(arrays(np.int64, count, elements=st.integers(1, 2))),
        )
    return detections


def voc_results(folder, dataset, split):
    """The files of all classes, as the development kit reads them: fields between white space, 1-based inclusive."""
    rows = {record.id: [] for record in dataset.records}
    for label, name in enumerate(dataset.classes, start=1):
        for line in (folder / f"comp4_det_{split}_{name}.txt").read_text().splitlines():
            image_id, *numbers = line.split()
            score, xmin, ymin, xmax, ymax = map(float, numbers)
            rows[int(image_id)].append(((xmin - 1, ymin - 1, xmax, ymax), score, label))
    return {image_id: found(*its) for image_id, its in rows.items()}


def by_class(detections):
    """VOC's files hold the detections of one class each: this is the order they come back in."""
    orders = {image_id: np.argsort(one.labels, kind="stable") for image_id, one in detections.items()}
    return {
        image_id: Detections(one.boxes[orders[image_id]], one.scores[orders[image_id]], one.labels[orders[image_id]])
        for image_id, one in detections.items()
    }


@settings(deadline=None)
@given(detections=any_detections())
def test_coco_results_come_back_to_the_bit(tmp_path_factory, detections):
    path, dataset = tmp_path_factory.mktemp("coco") / "detections.json", dataset_of(30, 10, 20)
    save_coco_results(path, dataset, detections)
    assert_equal(load_coco_results(path, dataset), detections)


@settings(deadline=None)
@given(detections=any_detections())
def test_voc_results_come_back_by_class_with_their_scores_to_the_bit(tmp_path_factory, detections):
    folder, dataset = tmp_path_factory.mktemp("voc"), dataset_of(30, 10, 20)
    save_voc_results(folder, dataset, detections, "test")
    read, expected = voc_results(folder, dataset, "test"), by_class(detections)
    for image_id, one in expected.items():
        np.testing.assert_array_equal(read[image_id].scores, one.scores)
        np.testing.assert_array_equal(read[image_id].labels, one.labels)
        # x1 + 1 holds x1 only to the last digit of 1.
        np.testing.assert_allclose(read[image_id].boxes, one.boxes, rtol=1e-7, atol=1e-15)


@settings(deadline=None)
@given(detections=any_detections(), seed=st.integers(0, 9))
def test_columns_come_apart_again_in_any_order_of_images(detections, seed):
    dataset = dataset_of(30, 10, 20)
    columns = detection_columns(dataset, detections)
    order = np.argsort(np.random.default_rng(seed).permutation(3)[columns.images], kind="stable")
    shuffled = DetectionColumns(
        columns.images[order], columns.boxes[order], columns.scores[order], columns.labels[order]
    )
    assert_equal(split_by_image(dataset, shuffled), detections)


def test_what_coco_results_look_like(tmp_path):
    path, dataset = tmp_path / "run" / "detections.json", dataset_of(7, 8)
    save_coco_results(path, dataset, {7: found(((1, 2, 11, 22), 0.5, 1), ((0, 0, 1, 1), 0.25, 2)), 8: found()})
    assert json.loads(path.read_text()) == [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "score": 0.5},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.25},
    ]


def test_what_voc_results_look_like(tmp_path):
    dataset = dataset_of("000005", "000007")
    detections = {"000005": found(((0, 0, 11, 22), 0.5, 1)), "000007": found(((9.5, 1, 20, 20), 0.25, 1))}
    paths = save_voc_results(tmp_path / "results", dataset, detections, "test")
    assert [path.name for path in paths] == ["comp4_det_test_cat.txt", "comp4_det_test_dog.txt"]
    # 1-based and inclusive: the first pixel is (1, 1).
    assert paths[0].read_text() == "000005 0.5 1.0 1.0 11.0 22.0\n000007 0.25 10.5 2.0 20.0 20.0\n"
    assert paths[1].read_text() == ""


def test_no_detection_at_all(tmp_path):
    dataset = dataset_of(7)
    save_coco_results(tmp_path / "detections.json", dataset, {7: found()})
    save_voc_results(tmp_path, dataset, {7: found()}, "val")
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert_equal(load_coco_results(tmp_path / "detections.json", dataset), {7: found()})
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "comp4_det_val_cat.txt": "",
        "comp4_det_val_dog.txt": "",
    }


def test_detections_that_do_not_fit_are_not_written(tmp_path):
    dataset, detections = dataset_of(7), {7: found(((0, 0, 1, 1), 0.5, 3))}
    with pytest.raises(OhemError, match="1 labels outside 1 to 2"):
        save_coco_results(tmp_path / "detections.json", dataset, detections)
    with pytest.raises(OhemError, match="1 labels outside 1 to 2"):
        save_voc_results(tmp_path, dataset, detections, "test")
    assert list(tmp_path.iterdir()) == []


def faults_of(load, *args):
    with pytest.raises(DataError) as caught:
        load(*args)
    return [(fault.file.name, fault.field, fault.found) for fault in caught.value.faults]


def test_every_fault_of_a_coco_file_is_listed(tmp_path):
    path = tmp_path / "detections.json"
    good = {"image_id": 7, "category_id": 90, "bbox": [0, 0, 1, 1], "score": 0.5}
    entries = [
        good,
        good | {"image_id": 9, "category_id": 3},
        good | {"image_id": "7"},
        good | {"image_id": [7]},
        good | {"category_id": True},
        good | {"bbox": [0, 0, -1, 1]},
        good | {"bbox": [0, 0, 1, -1]},
        good | {"bbox": [0, 0, 1]},
        good | {"bbox": [0, 0, float("inf"), 10**400]},
        good | {"score": float("nan")},
        good | {"score": 1.5},
        {"image_id": 7, "category_id": 90},
        "cat",
    ]
    path.write_text(json.dumps(entries))
    faults = faults_of(load_coco_results, path, dataset_of(7, category_ids=(90, 1)))
    assert [(field, found) for _, field, found in faults] == [
        ("[1].image_id", "9"),
        ("[1].category_id", "3"),
        ("[2].image_id", "'7'"),
        ("[3].image_id", "[7]"),
        ("[4].category_id", "True"),
        ("[5].bbox", "[0, 0, -1, 1]"),
        ("[6].bbox", "[0, 0, 1, -1]"),
        ("[7].bbox", "[0, 0, 1]"),
        ("[8].bbox", "[0, 0, inf, 1" + "0" * 84 + "..."),
        ("[9].score", "nan"),
        ("[10].score", "1.5"),
        ("[11].bbox", "nothing"),
        ("[11].score", "nothing"),
        ("[12]", "'cat'"),
    ]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"{}", b"[" * 100_000, b"[" + b"1" * 5_000 + b"]"])
def test_a_file_that_is_no_json_list_is_one_fault(tmp_path, content):
    path = tmp_path / "detections.json"
    path.write_bytes(content)
    assert len(faults_of(load_coco_results, path, dataset_of(7))) == 1


def test_a_missing_file_is_a_fault(tmp_path):
    faults = faults_of(load_coco_results, tmp_path / "none.json", dataset_of(7))
    assert faults == [("none.json", "", "No such file or directory")]


def test_image_ids_with_white_space_have_no_place_in_voc_results(tmp_path):
    with pytest.raises(OhemError, match=r"found 1 \(first 'my cat'\)"):
        save_voc_results(tmp_path, dataset_of("my cat"), {"my cat": found()}, "test")


@pytest.mark.parametrize("classes", [("cat", "../../dog"), ("cat", "a\\b"), ("cat", "cat")])
def test_class_names_that_are_no_file_names_are_refused(tmp_path, classes):
    dataset = dataset_of(7, classes=classes)
    with pytest.raises(OhemError, match="one file per class"):
        save_voc_results(tmp_path, dataset, {7: found()}, "test")
    assert list(tmp_path.iterdir()) == []
