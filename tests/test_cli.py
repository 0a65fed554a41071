"""The command line, whole: from a folder of annotated images to detections; and everything that can be wrong with it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corruptions import CORRUPTIONS, Corruption, make_coco, make_voc, make_yolo
from ohem.cli import main
from shapes import PRETRAINED, make_shapes

SMALL = [
    "detector.backbone={name: lcnet_035, weights: none, strides: [16], scales: [0.01]}",
    "detector.image.shortest=72",
    "detector.image.longest=96",
    "detector.head.channels=32",
    "detector.head.pool_size=3",
    "detector.head.fc=[64]",
    "optimizer.backbone_lr_factor=0.1",
    "checkpoint_every=10",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def ohem(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    before = sys.argv
    sys.argv = ["ohem", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of two steps on it."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_shapes(folder / "data", train=6, test=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        settings = [*SMALL, "iterations=2", "--workers", 0, "--data", f"{data}@train", "--run", folder / "run"]
        assert ohem("train", "lite0", *settings) == 0
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_main_job_from_annotated_images_to_boxes_on_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shapes(tmp_path / "data")
    before = contents(data)
    assert ohem("check", f"{data}@train") == 0
    assert "no faults" in capsys.readouterr().out

    assert ohem("propose", f"{data}@train", "--workers", 1) == 0
    recall = capsys.readouterr().out
    assert "recall of" in recall
    assert "proposals of 24 images made" in recall

    train = ["train", "lite0", *SMALL, *PRETRAINED, "iterations=60", "schedule.warmup=5", "--workers", 0]
    assert ohem(*train, "--data", f"{data}@train", "--val", f"{data}@test", "--run", "run") == 0
    told = capsys.readouterr().out
    assert "validation voc07 mAP" in told
    assert "% of it checking data and making proposals" in told
    assert {"recipe.yaml", "run.json", "log.jsonl", "weights.safetensors", "best.safetensors"} <= {
        path.name for path in Path("run").iterdir()
    }

    assert ohem("evaluate", "run", "--data", f"{data}@test", "--workers", 0) == 0
    assert "VOC AP at IoU 0.5" in capsys.readouterr().out
    metrics = json.loads(Path("run/evaluation/metrics.json").read_text())
    assert metrics["voc07"]["mean_ap"] > 0.5
    assert {path.name for path in Path("run/evaluation/voc").iterdir()} == {
        f"comp4_det_test_{name}.txt" for name in ("disc", "square", "triangle")
    }
    assert isinstance(json.loads(Path("run/evaluation/detections.json").read_text()), list)

    assert ohem("report", "run", "--workers", 0) == 0
    assert '<h2 id="accuracy">' in Path("run/report.html").read_text()
    assert ohem("inspect", "run", "--data", f"{data}@train", "--shown", 5, "--workers", 0) == 0
    assert {path.name for path in Path("run/inspection").iterdir()} == {
        f"suspects.{kind}" for kind in ("csv", "html", "json")
    }

    assert (
        ohem("detect", "run", data / "JPEGImages/test_000.png", f"{data}/JPEGImages/test_00[12].png", "--workers", 0)
        == 0
    )
    listing = json.loads(Path("detections/detections.json").read_text())["images"]
    assert [Path(one["image"]).name for one in listing] == ["test_000.png", "test_001.png", "test_002.png"]
    assert sum(len(one["objects"]) for one in listing) > 0
    for one in listing:
        with Image.open(Path("detections") / one["picture"]) as drawn:
            assert drawn.size == (96, 72)
    assert ohem("detect", "run/weights.safetensors", data / "JPEGImages", "--workers", 0) == 0
    assert len(json.loads(Path("detections-2/detections.json").read_text())["images"]) == 36
    assert contents(data) == before


def test_a_detector_that_makes_its_proposals_goes_the_same_road_without_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shapes(tmp_path / "data")
    small = [*SMALL, "detector.rpn={anchor_sizes: [32], train_proposals: 60, test_proposals: 30}"]
    train = ["train", "fasterrcnn_lite0", *small, "iterations=4", "sampler.rois_per_image=16"]
    given = ["--data", f"{data}@train", "--workers", 0]
    assert ohem(*train, *given, "--proposals", "boxes.json") == 2
    assert "proposals: found boxes.json; allowed for a detector with a region proposal network: none" in (
        capsys.readouterr().err
    )
    assert ohem(*train, *given, "--val", f"{data}@test", "--run", "run") == 0
    assert "proposals of" not in capsys.readouterr().out  # no selective search
    assert not (tmp_path / "cache").exists()

    assert ohem("evaluate", "run", "--data", f"{data}@test", "--workers", 0) == 0
    metrics = json.loads(Path("run/evaluation/metrics.json").read_text())
    validation = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    assert metrics["voc07"]["mean_ap"] == pytest.approx(validation["voc07"], abs=1e-6)
    assert metrics["settings"].keys() == {"image", "detection", "rpn"}
    assert ohem("detect", "run", data / "JPEGImages", "--threshold", 0, "--workers", 0) == 0
    found = json.loads(Path("detections/detections.json").read_text())["images"]
    assert sum(len(one["objects"]) for one in found) > 0
    assert ohem("harvest", "run", "hard.json", *given) == 2
    assert "run: found a detector with a region proposal network, whose proposals change" in capsys.readouterr().err


def test_coco_data_and_published_proposals_go_the_same_road(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco")
    images = json.loads(next((tmp_path / "coco").glob("*.json")).read_text())["images"]
    proposals = [
        {"image_id": image["id"], "bbox": [x, y, 12, 12], "score": 1.0}
        for image in images
        for x in range(0, 16, 4)
        for y in range(0, 16, 4)
    ]
    Path("boxes.json").write_text(json.dumps(proposals))
    common = ["--data", tmp_path / "coco", "--proposals", "boxes.json", "--workers", 0]
    settings = [*SMALL, "iterations=2", "evaluation.metric=coco"]
    validation = ["--val", tmp_path / "coco", "--val-proposals", "boxes.json"]
    assert ohem("train", "lite0", *settings, *common, *validation, "--run", "run") == 0
    assert ohem("evaluate", "run", *common) == 0
    numbers = json.loads(Path("run/evaluation/metrics.json").read_text())["coco"]
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(numbers)


# One of each format and each way to be found; test_data_corruptions has all of them.
SOME = {(case.format, case.found_by): case for case in CORRUPTIONS}.values()


@pytest.mark.parametrize("case", SOME, ids=lambda case: f"{case.format}: {case.name}")
def test_corrupted_data_ends_with_one_line_a_fault_and_exit_code_2(
    case: Corruption, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    {"voc": make_voc, "coco": make_coco, "yolo": make_yolo}[case.format](tmp_path / "data")
    case.corrupt(tmp_path / "data")
    before = contents(tmp_path / "data")
    assert ohem("check", tmp_path / "data") == 2
    complaint = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(complaint)
    assert len(complaint) == case.faults + (case.faults > 1)
    assert any(case.file in line and case.expect in line for line in complaint)
    if case.found_by != "decoding":
        assert ohem("train", "lite0", "--data", tmp_path / "data", "--run", "run") == 2
        assert not Path("run").exists()
    assert contents(tmp_path / "data") == before


def test_faults_of_annotations_and_pictures_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for make, name in ((make_voc, "voc"), (make_coco, "coco")):
        make(tmp_path / name)
        picture = next(path for path in sorted((tmp_path / name).rglob("*.jpg")))
        picture.write_bytes(picture.read_bytes()[:400])
    annotation = tmp_path / "voc/Annotations/000002.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>", "<xmin>9"))
    file = next((tmp_path / "coco").glob("*.json"))
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = -5
    file.write_text(json.dumps(content))
    for name, annotated in (("voc", "000002.xml"), ("coco", file.name)):
        assert ohem("check", tmp_path / name) == 2
        complaint = capsys.readouterr().err.splitlines()
        assert complaint[-1] == "2 faults"
        assert annotated in complaint[0]
        assert ".jpg" in complaint[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "found no recipe or no --data"),
        (["train", "lite0"], "found no recipe or no --data"),
        (["train", "lite", "--data", "data"], "did you mean lite0?"),
        (["train", "mine.yaml", "--data", "data"], "mine.yaml: found no such file"),
        (["train", "lite0", "optimzer.lr=1", "--data", "data"], "optimzer: found an unknown field (did you mean optimizer?)"),
        (["train", "lite0", "optimizer.lr=-1", "--data", "data"], "optimizer.lr: found -1; allowed: greater than 0"),
        (["train", "lite0", "optimizer.kind=adam", "--data", "data"], "optimizer.kind: found 'adam' (did you mean adamw?); allowed: 'sgd' or 'adamw'"),
        (["train", "lite0", "sampler=hardest", "--data", "data"], "found 'hardest' (did you mean hard?); allowed: hard, random, all"),
        (["train", "lite0", "sampler.bg_lo=0.1", "--data", "data"], "bg_lo: found an unknown field; allowed for hard: rois_per_image"),
        (["train", "lite0", "sampler.nms_iou=high", "--data", "data"], "nms_iou: found 'high'"),
        (["train", "lite0", "iterations", "--data", "data"], "found no field=value"),
        (["train", "lite0", "--data", "dtaa"], "did you mean data?"),
        (["train", "lite0", "--data", "data@trian"], "trian"),
        (["train", "lite0", "--data", "data", "--device", "tpu9"], "device: found 'tpu9'"),
        (["train", "lite0", "--data", "data", "--proposals", "p.mat"], "p.mat"),
        (["train", "lite0", "--resume", "run"], "found --resume with other settings"),
        (["train", "--resume", "nowhere"], "nowhere: found no run.json and recipe.yaml"),
        (["train", "lite0", "detector.backbone.name=lite9", "--data", "data"], "detector.backbone.name: found 'lite9'"),
        (["train", "lite0", "detector.backbone.strides=[7]", "detector.backbone.scales=[1]", "--data", "data"], "found [7]"),
        (["train", "lite0", "data.classes=[cat]", "--data", "data"], "allowed: cat"),
        (["reproduce", "table1", "--plan", "--collect", "data"], "found --collect beside --plan, which writes nothing"),
        (["data", "voc7"], "found 'voc7' (did you mean voc07?); allowed: voc07, voc12"),
        (["data", "voc07"], "found no folder; allowed: ohem data voc07 DIR"),
        (["evaluate", "nowhere", "--data", "data"], "nowhere: found no such file"),
        (["report", "nowhere"], "nowhere: found no run.json and recipe.yaml"),
        (["inspect", "nowhere", "--data", "data"], "nowhere: found no such file"),
        (["submit", "nowhere", "voc12", "--data", "data"], "nowhere: found no such file"),
        (["detect", "data", "x.jpg"], "data: found no run.json"),
        (["export", "run", "--safetensors", "card", "--data", "data"], "found --data without --onnx; allowed: both"),
        (["propose", "data", "--out", "boxes"], "boxes: found a file name that ends in ''; allowed: .sqlite"),
        (["propose", "data", "--mode", "quality", "--proposals", "p.mat"], "found --proposals and --mode; allowed: one"),
        (["check", "data", "--classes", ""], "classes: found an empty list or name; allowed: at least one class name"),
        (["export", "run", "--onnx", "a.onnx", "--proposals", "p.mat"], "found --proposals without --data; allowed: both"),
    ],
)  # fmt: skip
def test_wrong_calls_end_with_one_line_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_voc(tmp_path / "data")
    assert ohem(*arguments) == 2
    complaint = capsys.readouterr().err
    assert expected in complaint
    assert "Traceback" not in complaint
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "cache"}


def test_a_new_user_is_told_what_to_do_next() -> None:
    told = subprocess.run([sys.executable, "-m", "ohem"], capture_output=True, text=True, check=True).stdout
    assert "ohem demo" in told
    assert "ohem train" in told


def test_what_data_there_is_is_listed_and_without_a_network_the_user_told_what_to_put_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ohem("data") == 0
    listed = capsys.readouterr().out
    for name in ("voc07", "voc12", "coco14", "coco-test", "selective-search", "imagenet-models", "ohem-models"):
        assert f"\n{name} " in f"\n{listed}"
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens there
    assert ohem("data", "selective-search", "boxes") == 2
    complaint = capsys.readouterr().err.splitlines()
    assert "found no way there" in complaint[0]
    assert "/selective_search_data.tgz to boxes/selective_search_data.tgz (500 MB, md5:7078c1db" in complaint[1]
    assert len(complaint) == 2
    assert list((tmp_path / "boxes").iterdir()) == []


def test_help_does_not_load_torch() -> None:
    script = "import sys; sys.argv = ['ohem', 'train', '--help']\nfrom ohem.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.rstrip().endswith("False")


def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", train=6, test=2)
    command = [sys.executable, "-m", "ohem", "train"]
    start = [*command, "lite0", *SMALL, "iterations=40", "log_every=1", "--data", f"{data}@train", "--run", "run"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("iteration      5"):
                running.send_signal(signal.SIGINT)
                break
        rest = running.stdout.read()
        assert running.wait() == 130
    assert "go on with: ohem train --resume run" in rest
    assert Path("run/checkpoints/last.pt").exists()
    assert not Path("run/weights.safetensors").exists()
    resumed = subprocess.run([*command, "--resume", "run"], capture_output=True, text=True, check=True)
    assert Path("run/weights.safetensors").exists(), resumed.stderr
    iterations = [json.loads(line)["iteration"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert iterations == list(range(1, 41))


def test_a_run_is_not_resumed_on_changed_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shapes(tmp_path / "data", train=6, test=2)
    settings = [*SMALL, "iterations=4", "--workers", 0, "--data", f"{data}@train", "--run", "run"]
    assert ohem("train", "lite0", *settings) == 0
    Path("run/weights.safetensors").unlink()
    annotation = data / "Annotations/train_000.xml"
    annotation.write_text(annotation.read_text().replace("square", "disc").replace("triangle", "disc"))
    assert ohem("train", "--resume", "run") == 2
    assert "found other images, annotations or proposals" in capsys.readouterr().err


def test_nothing_that_exists_is_written_over(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(shutil.copytree(trained / "data", "data"))
    shutil.copytree(trained / "run", "run")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    for command in (
        ["train", "lite0", "--data", f"{data}@train", "--run", "mine"],
        ["evaluate", "run", "--data", f"{data}@test", "--out", "mine"],
        ["detect", "run", data / "JPEGImages", "--out", "mine"],
    ):
        capsys.readouterr()
        assert ohem(*command) == 2
        assert "mine: found something there already" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_pictures_of_every_kind_are_detected_in(trained: Path) -> None:
    shutil.copytree(trained / "run", "run")
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for mode, name in (
        ("L", "grey.png"),
        ("P", "palette.png"),
        ("RGBA", "alpha.png"),
        ("CMYK", "cmyk.jpg"),
        ("1", "bits.png"),
    ):
        picture.convert(mode).save(Path("photos") / name)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save("photos/deep.png")
    Image.fromarray(pixels[:1]).save("photos/line.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save("photos/turned.jpg", exif=turned)
    assert ohem("detect", "run", "photos", "--threshold", 0, "--workers", 0) == 0
    listing = {
        Path(one["image"]).name: one for one in json.loads(Path("detections/detections.json").read_text())["images"]
    }
    assert len(listing) == 8
    with Image.open(Path("detections") / listing["turned.jpg"]["picture"]) as drawn:
        assert drawn.size == (40, 60)
    boxes = np.array([found["box"] for found in listing["turned.jpg"]["objects"]])
    assert (boxes >= 0).all()
    assert (boxes <= [40, 60, 40, 60]).all()


def test_one_broken_picture_is_named_before_anything_is_written(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", "run")
    Path("photos").mkdir()
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    Path("photos/empty.png").write_bytes(b"")
    capsys.readouterr()
    assert ohem("detect", "run", "photos") == 2
    complaint = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in complaint[:2]] == ["photos/broken.jpg", "photos/empty.png"]
    assert not Path("detections").exists()


@pytest.mark.parametrize("name", [b"two\nlines.jpg", b"red\x1b[31m.jpg", b"no text\xff\xfe.jpg", b"<b>bold[red].jpg"])
def test_names_of_files_cannot_write_on_the_terminal(
    name: bytes, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    make_voc(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/ImageSets")  # all annotations, and pictures without one are told of
    picture = tmp_path / "data/JPEGImages" / os.fsdecode(name)
    picture.write_bytes(b"no picture")
    annotation = tmp_path / "data/Annotations" / os.fsdecode(name.replace(b".jpg", b".xml"))
    assert ohem("check", tmp_path / "data") == 0
    annotation.write_text("<annotation/>")
    assert ohem("check", tmp_path / "data") == 2
    told, complaint = capfdbinary.readouterr()
    for text in (told, complaint):
        assert not text.translate(None, bytes(set(range(32, 256)) | {10}))  # nothing but text and ends of lines
    assert complaint.count(b"\n") == 1
