"""Finding data sets by name, and joining them."""

import json
import shutil
from pathlib import Path

import pytest

from corruptions import make_coco, make_voc, voc_object, voc_xml
from ohem.data.sources import CocoSource, VocSource, load_dataset, locate
from ohem.data.voc import VOC_CLASSES
from ohem.errors import DataError, OhemError


def complaint(*sources: Path | str) -> str:
    """The one line that refuses these sources."""
    with pytest.raises(OhemError) as caught:
        load_dataset([str(source) for source in sources])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def second_voc(folder: Path, name: str = "cat") -> Path:
    """A VOC folder with one other image."""
    make_voc(folder)
    for path in [*(folder / "Annotations").iterdir(), *(folder / "ImageSets" / "Main").iterdir()]:
        path.unlink()
    (folder / "Annotations" / "2008_1.xml").write_text(
        voc_xml("000002.png", (50, 40), voc_object(name, (0, 1, 9, 9)) + voc_object("dog", (1, 1, 9, 9)))
    )
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("2008_1\n")
    return folder


def test_voc_folders_and_their_splits(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    make_voc(root)
    main = root / "ImageSets" / "Main"
    assert locate(f"{root}@test") == VocSource(root, "test")
    assert locate(f"{root}") == VocSource(root, "trainval")
    (main / "trainval.txt").rename(main / "all.txt")
    assert locate(f"{root}") == VocSource(root, "all")
    (main / "test.txt").touch()
    assert complaint(root) == f"{root}: found 2 splits and none named; allowed: {root}@all, {root}@test"
    (main / "trainval.txt").touch()
    assert locate(f"{root}") == VocSource(root, "trainval")
    shutil.rmtree(root / "ImageSets")
    assert locate(f"{root}") == VocSource(root, None)


def test_coco_files_and_the_folders_of_their_images(tmp_path: Path) -> None:
    make_coco(tmp_path / "pets")
    file = tmp_path / "pets" / "instances.json"
    assert locate(str(file)) == CocoSource(file, (tmp_path / "pets" / "images", tmp_path / "pets"))
    assert locate(str(tmp_path / "pets")) == locate(str(file))
    (tmp_path / "pets" / "images").rename(tmp_path / "pets" / "photos")
    assert locate(f"{file}@photos") == CocoSource(file, (tmp_path / "pets" / "photos",))
    assert locate(f"{tmp_path / 'pets'}@photos") == locate(f"{file}@photos")
    assert locate(str(file)) == CocoSource(file, (tmp_path / "pets",))
    assert f"found no folder {tmp_path}/pets/foto; allowed" in complaint(f"{file}@foto")


def test_hidden_files_are_no_annotations(tmp_path: Path) -> None:
    make_coco(tmp_path)
    (tmp_path / "._instances.json").write_bytes(b"\0")
    assert len(load_dataset([str(tmp_path)])) == 3


def test_a_tilde_is_a_home_only_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_coco(tmp_path / "~root")
    make_coco(tmp_path / "home/pets")
    assert load_dataset(["~root"]).root == Path("~root/instances.json")
    assert load_dataset(["~/pets"]).root == tmp_path / "home/pets/instances.json"
    assert "~nobody-of-this-name/x: found no such file or folder" in complaint("~nobody-of-this-name/x")


def test_cocos_own_layout(tmp_path: Path) -> None:
    for folder in ("annotations", "train2017", "val2017"):
        (tmp_path / folder).mkdir()
    train, val = (tmp_path / "annotations" / f"instances_{split}.json" for split in ("train2017", "val2017"))
    train.touch()
    assert locate(str(tmp_path)) == CocoSource(train, (tmp_path / "train2017", tmp_path, tmp_path / "annotations"))
    val.touch()
    assert locate(f"{tmp_path}@val2017") == CocoSource(val, (tmp_path / "val2017", tmp_path, tmp_path / "annotations"))
    assert locate(str(val)) == locate(f"{tmp_path}@val2017")
    assert complaint(tmp_path).endswith(f"; allowed: {tmp_path}@train2017, {tmp_path}@val2017")
    assert complaint(f"{tmp_path}@val").endswith(f"; allowed: {tmp_path}@train2017, {tmp_path}@val2017")


@pytest.mark.parametrize(
    ("file", "images", "prefix", "source"),
    [
        ("result.json", "images", "images/", ""),  # Label Studio
        ("annotations/instances_default.json", "images/default", "", ""),  # CVAT
        ("annotations/instances_default.json", "images", "", "@default"),
        ("annotations/train_labels.json", "images", "", "/annotations/train_labels.json"),  # AutoGluon
        ("valid/_annotations.coco.json", "valid", "", "@valid"),  # Roboflow
        ("annotations/instances_val.json", ".", "val/", ""),  # names that start from the whole
    ],
)
def test_what_annotation_tools_export_is_found(
    file: str, images: str, prefix: str, source: str, tmp_path: Path
) -> None:
    root, made = tmp_path / "pets", tmp_path / "made"
    make_coco(made)
    document = json.loads((made / "instances.json").read_text())
    for image in document["images"]:
        image["file_name"] = prefix + image["file_name"]
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(json.dumps(document))
    (root / images / prefix.removeprefix("images/")).mkdir(parents=True, exist_ok=True)
    for picture in (made / "images").iterdir():
        picture.rename(root / images / prefix.removeprefix("images/") / picture.name)
    assert len(load_dataset([f"{root}{source}"])) == 3


def test_yolo_labels_without_their_yaml_are_told(tmp_path: Path) -> None:
    make_coco(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "instances.json").rename(tmp_path / "notes.json")
    assert "found images and labels, but no data.yaml; allowed: one with `train: images`" in complaint(tmp_path)
    (tmp_path / "notes.json").rename(tmp_path / "instances.json")
    assert len(load_dataset([str(tmp_path)])) == 3


def test_a_folder_for_each_split_is_listed(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        make_coco(tmp_path / split)
        (tmp_path / split / "instances.json").rename(tmp_path / split / "_annotations.coco.json")
    assert complaint(tmp_path).endswith(f"; allowed: {tmp_path}@train, {tmp_path}@valid")
    assert "did you mean valid?" in complaint(f"{tmp_path}@vaild")
    assert load_dataset(f"{tmp_path}@valid").name == "valid/_annotations.coco"


def test_an_at_sign_parts_only_what_is_no_path(tmp_path: Path) -> None:
    make_voc(tmp_path / "me@home")
    assert locate(f"{tmp_path}/me@home") == VocSource(tmp_path / "me@home", "trainval")
    assert locate(f"{tmp_path}/me@home@trainval") == VocSource(tmp_path / "me@home", "trainval")


def test_a_source_that_cannot_be_found_says_what_was_looked_for(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2007")
    assert complaint(tmp_path / "VOCdevkit" / "VOC207").endswith(f"; did you mean {tmp_path}/VOCdevkit/VOC2007?")
    assert complaint(f"{tmp_path}/VOCdevkitt@trainval").endswith(f"; did you mean {tmp_path}/VOCdevkit?")
    assert complaint(tmp_path / "VOCdevkit").endswith(f"; did you mean {tmp_path}/VOCdevkit/VOC2007?")
    (tmp_path / "notes.txt").touch()
    assert "a file that is not *.json" in complaint(tmp_path / "notes.txt")
    assert "an empty source" in complaint("")
    assert "found none" in complaint()


def test_several_json_files_are_a_choice(tmp_path: Path) -> None:
    make_coco(tmp_path)
    shutil.copy(tmp_path / "instances.json", tmp_path / "more.json")
    assert complaint(tmp_path).endswith(f"allowed: {tmp_path}/instances.json, {tmp_path}/more.json")


def test_joined_voc_folders(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2007")
    second_voc(tmp_path / "VOC2012")
    data = load_dataset([f"{tmp_path}/VOC2007@trainval", f"{tmp_path}/VOC2012@trainval"])
    assert data.name == "VOC2007@trainval+VOC2012@trainval"
    assert data.root == tmp_path / "VOC2007"
    assert data.classes == VOC_CLASSES
    assert [record.id for record in data.records] == ["000001", "000002", "000003", "2008_1"]
    assert data.notes == ("VOC2012@trainval: clipped 1 box that stuck out of the picture by up to 1 px",)


def test_a_class_list_that_is_not_given_is_found_over_all_sources(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    second_voc(tmp_path / "b", "zebra")
    data = load_dataset([str(tmp_path / "a"), str(tmp_path / "b")])
    assert data.classes == ("dog", "person", "zebra")
    assert [record.labels.tolist() for record in data.records] == [[2, 1], [1], [], [3, 1]]


def test_class_files_of_joined_folders_must_agree(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    second_voc(tmp_path / "b")
    (tmp_path / "a" / "classes.txt").write_text("dog\nperson\ncat\n")
    assert load_dataset([str(tmp_path / "a"), str(tmp_path / "b")]).classes == ("dog", "person", "cat")
    (tmp_path / "b" / "classes.txt").write_text("cat\nperson\ndog\n")
    assert "found different lists in" in complaint(tmp_path / "a", tmp_path / "b")


def test_ids_must_not_collide(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    make_voc(tmp_path / "b")
    assert complaint(tmp_path / "a", tmp_path / "b") == (
        f"{tmp_path}/b: found image ids that a@trainval has too: 000001, 000002, 000003; "
        "allowed: ids of its own in each of the joined data sets"
    )
    assert "each once" in complaint(tmp_path / "a", f"{tmp_path}/a@trainval")


def test_joined_coco_files_may_number_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_coco(tmp_path / name)
    file = tmp_path / "b" / "instances.json"
    document = json.loads(file.read_text())
    for entry in document["categories"]:
        entry["id"] += 100
    for entry in document["annotations"]:
        entry["category_id"] += 100
    file.write_text(json.dumps(document))
    data = load_dataset([str(tmp_path / "a"), str(tmp_path / "b")])
    assert (data.name, data.classes, data.category_ids) == ("a/instances+b/instances", ("dog", "person"), (3, 7))
    assert len({record.id for record in data.records}) == 6
    assert all(0 <= int(record.id) < 2**53 for record in data.records)
    assert [record.path.parts[-3] for record in data.records] == ["a", "a", "a", "b", "b", "b"]
    for one, other in zip(data.records[:3], data.records[3:], strict=True):
        assert (one.boxes.tolist(), one.labels.tolist()) == (other.boxes.tolist(), other.labels.tolist())
    made = "image ids made of the names of the pictures, since files of the data number alike"
    assert data.notes == (
        f"a/instances: {made}",
        f"b/instances: {made}",
        "b/instances: category ids of a/instances in place of its own",
    )
    # A file of proposals or detections means the same pictures in whatever order the sources are named.
    turned = load_dataset([str(tmp_path / "b"), str(tmp_path / "a")])
    assert {record.id: record.path for record in turned.records} == {r.id: r.path for r in data.records}
    (tmp_path / "there").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    there = load_dataset([str(tmp_path / "there/a"), str(tmp_path / "there/b")])
    assert [record.id for record in there.records] == [record.id for record in data.records]
    file = tmp_path / "there/b/instances.json"
    document["categories"][0]["name"] = "human"
    file.write_text(json.dumps(document))
    assert "classes: found dog, human; allowed: dog, person, as in a/instances" in complaint(
        tmp_path / "there/a", tmp_path / "there/b"
    )


def test_a_picture_may_not_be_in_two_joined_coco_files(tmp_path: Path) -> None:
    make_coco(tmp_path / "a")
    again, other = (tmp_path / "a" / f"{name}.json" for name in ("again", "other"))
    shutil.copy(tmp_path / "a" / "instances.json", again)
    assert "found image ids that a/instances has too: 10, 20, 30;" in complaint(tmp_path / "a/instances.json", again)
    document = json.loads(again.read_text())
    document["images"] = [{**image, "id": image["id"] + 1} for image in document["images"][1:]]
    document["annotations"] = []
    other.write_text(json.dumps(document))
    assert "found pictures that a/instances has too: 000002.png, 000003.jpg; allowed: each picture in one" in complaint(
        tmp_path / "a/instances.json", other
    )


def test_formats_do_not_mix(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    make_coco(tmp_path / "b")
    assert "found VOC and COCO" in complaint(tmp_path / "a", tmp_path / "b")


def test_the_faults_of_all_sources_are_listed_at_once(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    second_voc(tmp_path / "b")
    for path in (tmp_path / "a/Annotations/000003.xml", tmp_path / "b/Annotations/2008_1.xml"):
        path.write_text("<")
    with pytest.raises(DataError) as caught:
        load_dataset([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [fault.file.name for fault in caught.value.faults] == ["000003.xml", "2008_1.xml"]


def test_test_sets_without_annotations_are_found_when_none_are_asked_for(tmp_path: Path) -> None:
    voc = tmp_path / "VOC2012"
    make_voc(voc)
    shutil.rmtree(voc / "Annotations")
    (voc / "ImageSets/Main/trainval.txt").rename(voc / "ImageSets/Main/test.txt")
    assert "found neither Annotations" in complaint(f"{voc}@test")
    assert locate(f"{voc}@test", "none") == locate(str(voc), "none") == VocSource(voc, "test")

    coco = tmp_path / "coco"
    make_coco(coco)
    (coco / "annotations").mkdir()
    (coco / "images").rename(coco / "test2015")
    file = (coco / "instances.json").rename(coco / "annotations/image_info_test-dev2015.json")
    shutil.copy(file, coco / "annotations/image_info_test2015.json")
    assert "found neither Annotations" in complaint(f"{coco}@test-dev2015")
    assert locate(f"{coco}@test-dev2015", "none") == CocoSource(file, (coco / "test2015", coco, file.parent))
    assert (
        locate(f"{coco}@test2015", "none").image_dirs
        == locate(str(file)).image_dirs
        == (coco / "test2015", coco, file.parent)
    )
    with pytest.raises(OhemError, match=r"allowed: .*@test-dev2015, .*@test2015"):
        locate(str(coco), "none")
