"""Files for the servers: what they want, to the last pixel, and nothing for what they would refuse."""

import json
import shutil
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from corruptions import make_coco, make_voc
from ohem.cli import main
from ohem.data.voc import VOC_CLASSES
from ohem.errors import OhemError
from ohem.models.weights import build_detector, save_detector
from ohem.submission import COCO_CATEGORIES, Submission, submit
from shapes import small_recipe

# Far apart: no suppression. In pixels, 0-based, half-open.
BOXES = [[0.0, 0.0, 12.0, 20.0], [20.26, 24.0, 30.36, 40.0]]
IDS = ["000001", "000002", "000003"]


def weights(folder: Path, classes: tuple[str, ...], **detection: object) -> Path:
    """A detector that finds every class in every proposal, as it lies, with the score 1 / (C + 1)."""
    spec = small_recipe().detector
    spec = spec.model_copy(update={"detection": spec.detection.model_copy(update=detection)})
    detector = build_detector(spec, len(classes))
    with torch.no_grad():
        for layer in (detector.head.cls_score, detector.head.bbox_pred):
            layer.weight.zero_()
            layer.bias.zero_()
    save_detector(folder / "weights.safetensors", detector, spec, classes)
    return folder / "weights.safetensors"


def write_proposals(path: Path, ids: list[str] | list[int]) -> str:
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES]
    entries = [{"image_id": image_id, "bbox": box, "score": 1.0} for image_id in ids for box in boxes]
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2012's test set: pictures and a split, and an annotation of one image that is not for detection."""
    root = tmp_path / "VOC2012"
    make_voc(root)
    for stem in IDS[1:]:
        (root / f"Annotations/{stem}.xml").unlink()
    (root / "Annotations/000001.xml").write_text("<annotation><action>reading</action></annotation>")
    (root / "ImageSets/Main/trainval.txt").rename(root / "ImageSets/Main/test.txt")
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's test-dev: images and categories, no annotations."""
    root = tmp_path / "coco"
    make_coco(root)
    document = json.loads((root / "instances.json").read_text())
    (root / "instances.json").unlink()
    (root / "images").rename(root / "test2015")
    (root / "annotations").mkdir()
    categories = [{"id": number, "name": name} for name, number in COCO_CATEGORIES.items()]
    info = {"info": {}, "images": document["images"], "categories": categories}
    (root / "annotations/image_info_test-dev2015.json").write_text(json.dumps(info))
    return root


def send_voc(voc: Path, tmp_path: Path, **options: object) -> Submission:
    # The server's classes in an order of the run's own.
    file = weights(tmp_path, VOC_CLASSES[::-1])
    proposals = write_proposals(tmp_path / "boxes.json", IDS)
    return submit(file, "voc12", f"{voc}@test", proposals=proposals, workers=0, **options)


def test_voc_files_hold_every_detection_in_vocs_pixels(voc: Path, tmp_path: Path) -> None:
    made = send_voc(voc, tmp_path, out=tmp_path / "out", name="a-b")
    assert made == Submission(tmp_path / "out/a-b.tar.gz", "test", 3, 3 * 2 * 20)
    lines: dict[str, list[list[str]]] = defaultdict(list)
    with tarfile.open(made.archive, "r:gz") as tar:
        for member in tar.getmembers():
            assert (member.uname, member.gname, member.uid) == ("", "", 0)
            file = tar.extractfile(member)
            assert file is not None
            lines[member.name] = [line.split() for line in file.read().decode().splitlines()]
    assert set(lines) == {f"results/VOC2012/Main/comp4_det_test_{name}.txt" for name in VOC_CLASSES}
    for rows in lines.values():
        assert sorted(row[0] for row in rows) == sorted(IDS * 2)
        assert [float(row[1]) for row in rows] == pytest.approx([1 / 21] * 6)
        for stem in IDS:
            corners = sorted([float(number) for number in row[2:]] for row in rows if row[0] == stem)
            # 1-based and inclusive: 12 half-open columns from 0 are columns 1 to 12.
            assert corners[0] == pytest.approx([1, 1, 12, 20], abs=1e-4)
            assert corners[1] == pytest.approx([21.26, 25, 30.36, 40], abs=1e-4)


def test_equal_detections_are_equal_files(voc: Path, tmp_path: Path) -> None:
    first, second = (send_voc(voc, tmp_path, out=tmp_path / name, name="same") for name in "ab")
    assert first.archive.read_bytes() == second.archive.read_bytes()


def test_coco_takes_the_best_hundred_of_an_image_in_its_own_categories(coco: Path, tmp_path: Path) -> None:
    file = weights(tmp_path, tuple(COCO_CATEGORIES)[::-1])
    proposals = write_proposals(tmp_path / "boxes.json", [10, 20, 30])
    said: list[str] = []

    class Listener:
        def say(self, _: str) -> None: ...

        def warn(self, text: str) -> None:
            said.append(text)

        def progress(self, *_: object) -> None: ...

        def record(self, *_: object) -> None: ...

    made = submit(
        file, "coco", f"{coco}@test-dev2015", proposals=proposals, out=tmp_path / "out", workers=0, reporter=Listener()
    )
    stem = "detections_test-dev2015_weights_results"
    assert made == Submission(tmp_path / f"out/{stem}.zip", "test-dev2015", 3, 300)
    with zipfile.ZipFile(made.archive) as zipped:
        assert zipped.namelist() == [f"{stem}.json"]
        entries = json.loads(zipped.read(f"{stem}.json"))
    assert {entry["category_id"] for entry in entries} <= set(COCO_CATEGORIES.values())
    boxes = {tuple(entry["bbox"]) for entry in entries}
    assert boxes == {(0.0, 0.0, 12.0, 20.0), (20.3, 24.0, 10.1, 16.0)}
    # 80 classes in 2 boxes of 3 images.
    assert "left out 180 detections beyond the best 100 of their image, which do not count" in said
    assert any("has 3 images, the server's test-dev2015 20288" in sentence for sentence in said)
    results = COCO(coco / "annotations/image_info_test-dev2015.json").loadRes(str(tmp_path / f"out/{stem}.json"))
    assert len(results.getAnnIds()) == 300
    assert len(results.getAnnIds(imgIds=[20])) == 100


def test_the_best_are_kept_and_settings_of_the_use_apply(coco: Path, tmp_path: Path) -> None:
    file = weights(tmp_path, tuple(COCO_CATEGORIES))
    proposals = write_proposals(tmp_path / "boxes.json", [10, 20, 30])
    made = submit(
        file,
        "coco",
        f"{coco}@test-dev2015",
        proposals=proposals,
        test_set="test-dev2017",
        name="OHEM",
        overrides=["detection.max_detections=7"],
        workers=0,
    )
    assert made.detections == 21
    assert made.archive == tmp_path / "submission/detections_test-dev2017_OHEM_results.zip"


def test_the_command_names_the_file_to_be_sent(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights(tmp_path, VOC_CLASSES)
    proposals = write_proposals(tmp_path / "boxes.json", IDS)
    call = f"ohem submit {file} voc12 detection.max_detections=5 --data {voc}@test --proposals {proposals} --workers 0"
    monkeypatch.setattr("sys.argv", call.split())
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    told = capsys.readouterr().out.splitlines()
    archive = tmp_path / "submission/weights.tar.gz"
    assert told[-1] == f"15 detections in 3 images of test; to be sent: {archive}"
    assert archive.is_file()


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(OhemError) as caught:
        submit(*arguments, workers=0, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_must_be_the_servers(voc: Path, tmp_path: Path) -> None:
    file = weights(tmp_path, (*VOC_CLASSES[:-1], "unicorn"))
    message = refusal(file, "voc12", f"{voc}@test")
    assert message == (
        "classes: found no tvmonitor and unicorn, which it has not; allowed for voc12: its 20 classes, all of them"
    )
    file = weights(tmp_path, VOC_CLASSES)
    assert "allowed for coco: its 80 classes, all of them" in refusal(file, "coco", f"{voc}@test")
    assert not (tmp_path / "submission").exists()


def test_other_data_than_the_servers_is_refused_before_anything_is_detected(
    voc: Path, coco: Path, tmp_path: Path
) -> None:
    file = weights(tmp_path, VOC_CLASSES)
    shutil.copy(voc / "ImageSets/Main/test.txt", voc / "ImageSets/Main/trainval.txt")
    assert "found VOC2012@trainval; allowed for voc12: VOC2012@test" in refusal(file, "voc12", str(voc))
    assert "found val; allowed for voc12" in refusal(file, "voc12", f"{voc}@test", test_set="val")
    assert "found 'a_b'; allowed: letters, digits and -" in refusal(file, "voc12", f"{voc}@test", name="a_b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    assert "found something there already" in refusal(file, "voc12", f"{voc}@test", out=tmp_path / "mine")

    file = weights(tmp_path, tuple(COCO_CATEGORIES))
    assert "allowed for coco: annotations/image_info_TESTSET.json" in refusal(file, "coco", f"{voc}@test")
    assert "found 'a/b'; allowed: such as test-dev2017" in refusal(file, "coco", f"{coco}@test-dev2015", test_set="a/b")
    info = coco / "annotations/image_info_test-dev2015.json"
    document = json.loads(info.read_text())
    for category in document["categories"]:
        category["id"] += 1
    info.write_text(json.dumps(document))
    assert "categories: found other ids; allowed: those of COCO" in refusal(file, "coco", f"{coco}@test-dev2015")
    other = info.rename(info.with_name("instances_mine.json"))
    assert f"{other}: found annotations/instances_mine; allowed for coco" in refusal(
        file, "coco", f"{other}@../test2015"
    )


def test_cocos_eighty_categories() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert [COCO_CATEGORIES[name] for name in ("person", "stop sign", "cow", "tv", "toothbrush")] == [1, 13, 21, 72, 90]
