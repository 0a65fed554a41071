"""Reading YOLO folders: what their files mean."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corruptions import make_voc, make_yolo
from ohem.data.dataset import DetectionDataset
from ohem.data.sources import YoloSource, load_dataset, locate
from ohem.errors import DataError, OhemError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_yolo(tmp_path / "data")
    return tmp_path / "data"


def config(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(text + "\nnames: {0: dog, 1: person}\n")


def labels(root: Path, text: str) -> DetectionDataset:
    """The data with other labels of its second picture, of 50 x 40 px."""
    (root / "labels" / "train" / "000002.txt").write_text(text)
    return load_dataset([str(root)])


def test_it_is_the_same_data_as_in_vocs_form(root: Path, tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    ours, voc = load_dataset([str(root)]), load_dataset([str(tmp_path / "voc")], ["dog", "person"])
    assert (ours.name, ours.format, ours.classes, ours.category_ids) == (
        "data@train",
        "yolo",
        ("dog", "person"),
        (1, 2),
    )
    assert [record.id for record in ours.records] == [f"images/train/00000{i}" for i in (1, 2, 3)]
    for mine, theirs in zip(ours.records, voc.records, strict=True):
        assert (mine.path.name, mine.width, mine.height) == (theirs.path.name, theirs.width, theirs.height)
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-6)
        assert mine.labels.tolist() == theirs.labels.tolist()
    assert ours.notes == ("took 1 picture without a label file as background",)


def test_a_polygon_is_the_box_around_it(root: Path) -> None:
    data = labels(root, "1 0.2 0.5 0.4 0.25 0.6 1.0\n")
    np.testing.assert_allclose(data.records[1].boxes, [[10, 10, 30, 40]])
    assert data.notes[0] == "took the boxes around 1 polygon"


def test_a_repeated_line_counts_once(root: Path) -> None:
    data = labels(root, "0 .5 .5 .2 .2\n0 0.5 0.50 0.2 0.2\n\n1 .5 .5 .2 .2\n")
    assert data.records[1].labels.tolist() == [1, 2]
    assert "left out 1 line that repeated another of the same file" in data.notes


def test_an_empty_label_file_is_background(root: Path) -> None:
    assert labels(root, "").records[1].boxes.shape == (0, 4)


def test_bad_boxes_and_other_classes_may_be_left_out(root: Path) -> None:
    (root / "labels" / "train" / "000002.txt").write_text("0 0.9 0.5 0.4 0.2\n")
    data = load_dataset([str(root)], ["person"], other_classes="drop", bad_boxes="drop")
    assert [record.labels.tolist() for record in data.records] == [[1], [], []]
    assert any("left out 1 box" in note for note in data.notes)
    assert any("left out 1 object of classes not in the list: dog 1" in note for note in data.notes)
    with pytest.raises(DataError, match="unknown class 'dog'"):
        load_dataset([str(root)], ["person"], bad_boxes="drop")


def test_splits_are_named_where_there_are_several(root: Path) -> None:
    assert locate(str(root)) == YoloSource(root / "data.yaml", "train")
    config(root, "train: images/train\nval: images/train")
    assert locate(f"{root}/data.yaml@val") == YoloSource(root / "data.yaml", "val")
    for source in (f"{root}", f"{root}@test"):
        with pytest.raises(OhemError, match=r"allowed: .*data\.yaml@train, .*data\.yaml@val$"):
            locate(source)


def test_lists_of_pictures(root: Path) -> None:
    (root / "a.txt").write_text("images/train/000002.png\n")
    (root / "images" / "b.txt").write_text("./train/000001.jpg\n\n")
    config(root, "train: [a.txt, images/b.txt]")
    assert [record.path.name for record in load_dataset([str(root)]).records] == ["000002.png", "000001.jpg"]
    (root / "a.txt").write_text("/etc/passwd\n../x.jpg\nimages/train/000002.png\nimages/train/000002.png\n")
    with pytest.raises(DataError) as caught:
        load_dataset([str(root)])
    assert [fault.field for fault in caught.value.faults] == ["line 1", "line 2", "line 4"]


def test_a_path_that_leads_elsewhere_and_a_download_are_left_aside_and_told(root: Path) -> None:
    config(root, "path: /datasets/coco8\ntrain: ../images/train\ndownload: import os; os.abort()")
    data = load_dataset([str(root)])
    assert len(data) == 3
    assert data.notes[:2] == (
        "did not run the file's download",
        "took the folder of data.yaml in the place of its path '/datasets/coco8'",
    )


def test_labels_stand_beside_pictures_that_are_in_no_folder_images(root: Path) -> None:
    (root / "images" / "train").rename(root / "photos")
    (root / "photos" / "000003.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    config(root, "train: photos")
    assert [record.labels.tolist() for record in load_dataset([str(root)]).records] == [[], [], [2]]


def test_two_pictures_of_one_label_file_are_a_fault(root: Path) -> None:
    Image.new("RGB", (50, 40)).save(root / "images" / "train" / "000002.bmp")
    with pytest.raises(DataError, match=r"000002\.png: found '000002\.png'; allowed: a name of its own"):
        load_dataset([str(root)])


def test_without_annotations_labels_are_not_looked_at(root: Path) -> None:
    (root / "labels" / "train" / "000001.txt").write_text("nonsense")
    data = load_dataset([str(root)], annotations="none")
    assert [len(record.boxes) for record in data.records] == [0, 0, 0]


def test_links_to_folders_are_followed_once_and_hidden_files_left(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "images" / "train" / "000002.png").rename(elsewhere / "000002.png")
    (root / "images" / "train" / "more").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root / "images")  # a circle
    for hidden in (".ipynb_checkpoints/000001-checkpoint.jpg", "._000001.jpg"):
        path = root / "images" / "train" / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    ids = [record.id for record in load_dataset([str(root)]).records]
    assert "images/train/more/000002" in ids
    assert len(ids) == len(set(ids))
    assert not [name for name in ids if "checkpoint" in name]


def test_keypoints_are_left_out_and_a_polygon_is_none_of_them(root: Path) -> None:
    pose = "train: images/train\nkpt_shape: [12, 2]"
    config(root, pose)
    row = "0 0.5 0.5 0.8 0.6" + 12 * " 0.45 0.55"  # 29 values, as many as a polygon of 14 points
    data = labels(root, row)
    np.testing.assert_allclose(data.records[1].boxes, [[5, 8, 45, 32]], atol=1e-9)
    assert "left out the keypoints of 1 object" in data.notes
    with pytest.raises(DataError, match="line 1: found 7 values; allowed: class cx cy w h, and 24 values"):
        labels(root, "0 .1 .1 .9 .1 .9 .9")
    config(root, "train: images/train\nkpt_shape: 12")
    with pytest.raises(DataError, match=r"kpt_shape: found 12; allowed: \[number of keypoints, 2 or 3\]"):
        labels(root, row)


def test_absolute_paths_into_the_folder_lead_there(root: Path) -> None:
    config(root, f"path: {root.absolute()}\ntrain: {root.absolute() / 'images/train'}")
    data = load_dataset([str(root)])
    assert len(data) == 3
    assert not [note for note in data.notes if "path" in note]
    config(root, f"train: {root.absolute()}/../elsewhere")
    with pytest.raises(DataError, match="train: found"):
        load_dataset([str(root)])


def test_absolute_paths_lead_there_however_the_folder_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(root, f"train: {root.absolute() / 'images/train'}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(root)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(load_dataset([f"../{root.name}"])) == len(load_dataset(["link"])) == 3


def test_labelled_files_of_other_kinds_are_told(root: Path) -> None:
    pictures, named = root / "images/train", ("a.heic", "b.heic", "000001.json")
    for name in named:
        (pictures / name).touch()
    (root / "labels/train/a.txt").touch()
    data = load_dataset([str(root)])
    assert len(data) == 3
    assert "left out 1 file with labels that are no picture of a kind that is read: a.heic" in data.notes


def test_names_that_are_not_utf8_are_told_before_they_are_written(root: Path) -> None:
    bad = root / "images" / "train" / os.fsdecode(b"caf\xe9.jpg")
    bad.write_bytes((root / "images" / "train" / "000001.jpg").read_bytes())
    with pytest.raises(DataError, match="found a file name that is not UTF-8") as caught:
        load_dataset([str(root)])
    assert len(caught.value.faults) == 1
