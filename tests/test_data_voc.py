"""Reading PASCAL VOC: what its files mean."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corruptions import make_voc, voc_object, voc_xml
from ohem.data.dataset import DetectionDataset
from ohem.data.rules import Annotations, BadBoxes, OtherClasses
from ohem.data.voc import VOC_CLASSES, label_voc, scan_voc, voc_class_list, voc_splits
from ohem.errors import DataError, OhemError

TRUNCATED = "<truncated>1</truncated>\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_voc(tmp_path / "VOC")
    return tmp_path / "VOC"


def annotate(root: Path, image_id: str, objects: str, size: tuple[int, int] = (50, 40)) -> None:
    (root / "Annotations" / f"{image_id}.xml").write_text(voc_xml("", size, objects))


def read_voc(
    root: Path,
    split: str | None,
    classes: list[str] | None = None,
    *,
    other_classes: OtherClasses = "error",
    bad_boxes: BadBoxes = "error",
    annotations: Annotations = "required",
) -> DetectionDataset:
    """One split of one folder; several together are in test_data_sources."""
    scan = scan_voc(root, split, bad_boxes=bad_boxes, annotations=annotations)
    return label_voc(scan, voc_class_list([scan], classes), other_classes=other_classes)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_data_set_as_it_is_read(root: Path) -> None:
    data = read_voc(root, "trainval")
    assert (data.name, data.format, data.root, data.notes) == ("VOC@trainval", "voc", root, ())
    assert data.classes == VOC_CLASSES
    assert data.category_ids == tuple(range(1, 21))
    first, second, third = data.records
    assert [record.id for record in data.records] == ["000001", "000002", "000003"]
    assert (first.path, first.width, first.height) == (root / "JPEGImages" / "000001.jpg", 64, 48)
    assert second.path == root / "JPEGImages" / "000002.png"
    # VOC's (11, 5, 30, 44) includes both corner pixels: 20 wide, 40 high. The part's box is not an object's.
    assert first.boxes.tolist() == [[10, 4, 30, 44], [0, 0, 64, 48]]
    assert [data.classes[label - 1] for label in first.labels] == ["person", "dog"]
    assert first.difficult.tolist() == [False, True]
    assert first.crowd.tolist() == [False, False]
    assert first.area.tolist() == [800, 3072]
    assert third.boxes.shape == (0, 4)
    for record in data.records:
        arrays = (record.boxes, record.labels, record.difficult, record.crowd, record.area)
        assert [array.dtype for array in arrays] == [np.float64, np.int64, np.bool_, np.bool_, np.float64]
        assert {len(array) for array in arrays} == {len(record.boxes)}


def test_a_missing_difficult_is_0_and_other_tags_are_ignored(root: Path) -> None:
    annotate(root, "000002", voc_object("cat", (1, 1, 2, 2), TRUNCATED))
    assert read_voc(root, "trainval").records[1].difficult.tolist() == [False]


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        (("45.70", "2.5e1", "4.9E+01", " 40 "), [44.7, 24, 49, 40]),
        ((1, 1, 1, 1), [0, 0, 1, 1]),
        ((50, 40, 50, 40), [49, 39, 50, 40]),
    ],
)
def test_numbers(root: Path, corners: tuple[object, object, object, object], box: list[float]) -> None:
    annotate(root, "000002", voc_object("cat", corners))
    np.testing.assert_allclose(read_voc(root, "trainval").records[1].boxes, [box])


def test_boxes_out_by_up_to_a_pixel_are_clipped_and_counted(root: Path) -> None:
    annotate(root, "000002", voc_object("cat", (0, 1, 51, 40)) + voc_object("cat", (1, 1, 50, 40.5)))
    data = read_voc(root, "trainval")
    assert data.records[1].boxes.tolist() == [[0, 0, 50, 40], [0, 0, 50, 40]]
    assert data.notes == ("clipped 2 boxes that stuck out of the picture by up to 1 px",)


def test_bad_boxes_can_be_left_out_and_counted(root: Path) -> None:
    bad = voc_object("dog", (9, 1, 3, 5)) + voc_object("dog", (1, 1, 0, 5)) + voc_object("dog", (1, 1, 60, 5))
    annotate(root, "000002", bad + voc_object("cat", (1, 1, 50, 40)))
    with pytest.raises(DataError) as caught:
        read_voc(root, "trainval")
    assert [fault.field for fault in caught.value.faults] == [f"object[{index}].bndbox" for index in range(3)]
    data = read_voc(root, "trainval", bad_boxes="drop")
    assert [data.classes[label - 1] for label in data.records[1].labels] == ["cat"]
    assert data.notes == ("left out 3 boxes: reversed, empty or outside the picture",)


def test_a_missing_size_is_taken_from_the_image_as_displayed(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(root / "JPEGImages" / "000002.png", exif=exif)
    xml = root / "Annotations" / "000002.xml"
    xml.write_text("<annotation>" + voc_object("cat", (1, 1, 40, 50)) + "</annotation>")
    record = read_voc(root, "trainval").records[1]
    assert (record.width, record.height) == (40, 50)


@pytest.mark.parametrize("text", ["000001\r\n000003\r\n", "\ufeff000001\n\n 000003 \n", "000001  1\n000003 -1\n"])
def test_split_files(root: Path, text: str) -> None:
    (root / "ImageSets" / "Main" / "odd.txt").write_text(text, encoding="utf-8", newline="")
    assert [record.id for record in read_voc(root, "odd").records] == ["000001", "000003"]


def test_an_id_may_hold_spaces(root: Path) -> None:
    (root / "Annotations" / "my cat 1.xml").write_text(voc_xml("000002.png", (50, 40), ""))
    (root / "ImageSets" / "Main" / "odd.txt").write_text("my cat 1 -1\n")
    assert [record.id for record in read_voc(root, "odd").records] == ["my cat 1"]
    (root / "ImageSets" / "Main" / "odd.txt").write_text("my cat 1\n")
    assert [record.id for record in read_voc(root, "odd").records] == ["my cat 1"]


def test_without_a_split_all_annotations_are_read_and_other_pictures_counted(root: Path) -> None:
    (root / "Annotations" / "000002.xml").unlink()
    data = read_voc(root, None)
    assert [record.id for record in data.records] == ["000001", "000003"]
    assert (data.name, data.notes) == ("VOC", ("left out 1 picture without annotation: 000002.png",))


def test_the_splits_do_not_list_those_of_single_classes(root: Path) -> None:
    for name in ("train", "my_own", "cat_train", "cat_trainval"):
        (root / "ImageSets" / "Main" / f"{name}.txt").touch()
    assert voc_splits(root) == ("my_own", "train", "trainval")


def test_an_unknown_split_lists_those_there_are(root: Path) -> None:
    with pytest.raises(OhemError, match=r"tset\.txt: found no such split; allowed: trainval$"):
        read_voc(root, "tset")


def test_the_image_is_found_by_the_files_own_name_or_else_by_its_name_in_the_file(root: Path) -> None:
    pictures = root / "JPEGImages"
    (pictures / "000001.jpg").rename(pictures / "deep.jpg")
    edit(root / "Annotations" / "000001.xml", "000001.jpg", "deep.jpg")
    (pictures / "000002.png").rename(pictures / "000002.PNG")
    edit(root / "Annotations" / "000003.xml", "<filename>000003.jpg</filename>", "")
    names = [record.path.name for record in read_voc(root, "trainval").records]
    assert names == ["deep.jpg", "000002.PNG", "000003.jpg"]


def test_a_picture_of_the_annotations_own_name_goes_before_another_that_the_file_names(root: Path) -> None:
    edit(root / "Annotations" / "000002.xml", "000002.png", "000001.jpg")  # a copy that kept the tag
    edit(root / "Annotations" / "000003.xml", "000003.jpg", "/home/me/pictures/000003.jpg")
    data = read_voc(root, "trainval")
    assert [record.path.name for record in data.records] == ["000001.jpg", "000002.png", "000003.jpg"]
    found = "1 annotation with another picture in <filename> than that of the file's own name: took the latter"
    assert data.notes == (found,)


def test_hidden_files_are_nobodys(root: Path) -> None:
    (root / "Annotations" / "._000001.xml").write_bytes(b"\0\5\26\7")
    (root / "JPEGImages" / "._000001.jpg").write_bytes(b"\0\5\26\7")
    assert [record.id for record in read_voc(root, None).records] == ["000001", "000002", "000003"]


def test_class_lists_from_the_names_the_file_and_the_caller(root: Path) -> None:
    assert read_voc(root, "trainval").classes == VOC_CLASSES
    edit(root / "Annotations" / "000002.xml", ">dog<", ">zebra<")
    assert read_voc(root, "trainval").classes == ("dog", "person", "zebra")
    (root / "classes.txt").write_text("zebra\nperson\n\ndog\n")
    assert read_voc(root, "trainval").classes == ("zebra", "person", "dog")
    data = read_voc(root, "trainval", ["person", "zebra", "dog", "yak"])
    assert data.classes == ("person", "zebra", "dog", "yak")
    assert [record.labels.tolist() for record in data.records] == [[1, 3], [2], []]


def test_other_classes_are_faults_or_left_out_and_counted(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_voc(root, "trainval", ["person"])
    assert [str(fault) for fault in caught.value.faults] == [
        f"{root}/Annotations/00000{number}.xml: object[{index}].name: found unknown class 'dog'; "
        "allowed: person (or other_classes: drop)"
        for number, index in [(1, 1), (2, 0)]
    ]
    data = read_voc(root, "trainval", ["person"], other_classes="drop")
    assert [record.boxes.tolist() for record in data.records] == [[[10, 4, 30, 44]], [], []]
    assert [record.difficult.tolist() for record in data.records] == [[False], [], []]
    assert data.notes == ("left out 2 objects of classes not in the list: dog 2",)


@pytest.mark.parametrize("classes", [[], ["dog", "dog"], ["dog", ""]])
def test_a_class_list_must_be_usable(root: Path, classes: list[str]) -> None:
    with pytest.raises(OhemError, match="at least one class name, each once"):
        read_voc(root, "trainval", classes)


def test_a_folder_must_be_a_voc_folder(tmp_path: Path) -> None:
    with pytest.raises(OhemError, match="found no folder Annotations"):
        read_voc(tmp_path, "train")


def test_images_alone_need_no_annotations_and_those_there_are_not_looked_at(root: Path) -> None:
    (root / "Annotations/000001.xml").unlink()
    (root / "Annotations/000002.xml").write_text("no XML")
    (root / "ImageSets/Main/test.txt").write_text("000003\n000001 1\n")
    with pytest.raises(DataError, match="'000001', which has no file in Annotations"):
        read_voc(root, "test")
    for split, ids in (("test", ["000003", "000001"]), (None, ["000001", "000002", "000003"])):
        data = read_voc(root, split, annotations="none")
        assert [record.id for record in data.records] == ids
        assert data.classes == VOC_CLASSES
        assert data.notes == ()
    first = data.records[0]
    assert (first.path, first.width, first.height) == (root / "JPEGImages/000001.jpg", 64, 48)
    whole = read_voc(root, "trainval", annotations="none").records[1]
    assert (whole.boxes.shape, whole.boxes.dtype, len(whole.labels)) == ((0, 4), np.float64, 0)
    shutil.rmtree(root / "Annotations")
    assert len(read_voc(root, "test", annotations="none")) == 2


def test_faults_of_images_alone_are_listed_at_once(root: Path) -> None:
    (root / "JPEGImages/000001.png").write_bytes((root / "JPEGImages/000002.png").read_bytes())
    (root / "JPEGImages/000003.jpg").write_bytes(b"no picture")
    (root / "ImageSets/Main/test.txt").write_text("000001\n000003\n000003\n../x\n")
    with pytest.raises(DataError) as caught:
        read_voc(root, "test", annotations="none")
    split = root / "ImageSets/Main/test.txt"
    assert [(fault.file, fault.field) for fault in caught.value.faults] == [
        (split, "line 3"),
        (split, "line 4"),
        (root / "JPEGImages", "000001"),
        (root / "JPEGImages/000003.jpg", ""),
    ]
    assert "'../x', which has no file in JPEGImages; allowed: the ID of a file JPEGImages/ID.jpg" in str(caught.value)
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(OhemError, match="JPEGImages: found no picture"):
        read_voc(root, None, annotations="none")
