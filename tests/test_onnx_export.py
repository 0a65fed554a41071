"""The ONNX file of a detector, run by onnxruntime, finds what the detector finds."""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Generator

import ohem
from ohem.cli import main
from ohem.data.dataset import Detections
from ohem.data.loading import Sample
from ohem.errors import OhemError
from ohem.inference import detect_image
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.spec import (
    AnyDetectorSpec,
    BackboneSpec,
    DetectionSpec,
    DetectorSpec,
    HeadSpec,
    ImageSpec,
    TorchvisionSpec,
)
from ohem.models.weights import build_detector, save_detector
from ohem.onnx_export import agreement
from shapes import make_shapes, small_faster_recipe

CLASSES = ("circle", "square", "triangle")


def spec_of(name: str, pool: Any = "max", pool_size: int = 7, **detection: Any) -> DetectorSpec:
    return DetectorSpec(
        backbone=BackboneSpec(name=name, weights="none"),
        head=HeadSpec(fc=(8, 8), pool=pool, pool_size=pool_size),
        image=ImageSpec(shortest=72, longest=96),
        detection=DetectionSpec(**{"score_threshold": 0.05, **detection}),
    )


def save(folder: Path, spec: DetectorSpec, classes: tuple[str, ...] = CLASSES) -> Path:
    """A detector with weights large enough for scores and boxes of all kinds."""
    torch.manual_seed(0)
    detector = build_detector(spec, len(classes))
    torch.nn.init.normal_(detector.head.cls_score.weight, std=1.0)
    torch.nn.init.normal_(detector.head.bbox_pred.weight, std=0.3)
    save_detector(folder / "weights.safetensors", detector, spec, classes)
    return folder / "weights.safetensors"


def both(weights: Path, session: Any, height: int, width: int, count: int) -> tuple[Detections, Detections]:
    """What PyTorch and onnxruntime find in noise, with as many proposals; some lie on half a cell of the map."""
    rng = Generator().manual_seed(height)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng)
    corner = (torch.rand(count, 2, generator=rng) * 40).mul(2).round().div(2)
    proposals = torch.cat([corner, corner + 8 * torch.randint(1, 5, (count, 2), generator=rng)], dim=1)
    detector, spec, _ = ohem.load_detector(weights)
    sample = Sample(0, image, proposals, {}, (1.0, 1.0))
    ours = detect_image(detector.eval(), [sample], spec.detection)
    given = {"image": image.numpy(), "proposals": proposals.numpy()}
    theirs = Detections(*session.run(None, {each.name: given[each.name] for each in session.get_inputs()}))
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "pool", "pool_size"), [("vgg16", "max", 7), ("vgg_cnn_m_1024", "max", 6), ("resnet18", "align", 3)]
)
def test_any_size_and_number_of_proposals(tmp_path: Path, name: str, pool: str, pool_size: int) -> None:
    weights = save(tmp_path, spec_of(name, pool, pool_size))
    session = onnxruntime.InferenceSession(str(ohem.export_onnx(weights, tmp_path / "d.onnx")))
    found = 0
    for height, width, count in ((96, 128, 40), (131, 77, 7), (100, 100, 1), (96, 96, 0)):
        ours, theirs = both(weights, session, height, width, count)
        assert agreement([ours], [theirs]).equal
        assert (np.diff(theirs.scores) <= 0).all()
        found += len(ours.labels)
    assert found > 20
    assert (theirs.boxes.shape, theirs.boxes.dtype) == ((0, 4), np.float32)


def a_pyramid() -> TorchvisionSpec:
    return TorchvisionSpec(
        kind="fasterrcnn_mobilenet_v3_large_320_fpn", weights="none", image=ImageSpec(shortest=96, longest=128)
    )


def calibrate(detector: FasterRCNN) -> None:
    """BatchNorm's statistics, as training would leave them; with those of the start, all features are nearly equal."""
    norms = [layer for layer in detector.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    image = torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8, generator=Generator().manual_seed(5))
    for layer in norms:
        layer.train().momentum = 1.0
    with torch.no_grad():
        detector.features([image])
    for layer in norms:
        layer.eval()


@pytest.mark.parametrize("spec", [small_faster_recipe().detector, a_pyramid()], ids=["one map", "pyramid"])
def test_a_detector_that_makes_its_proposals_takes_the_image_alone(tmp_path: Path, spec: AnyDetectorSpec) -> None:
    torch.manual_seed(0)
    detector = cast(FasterRCNN, build_detector(spec, len(CLASSES)))
    calibrate(detector)
    torch.nn.init.normal_(detector.rpn.head.cls_logits.weight, std=0.1)
    # Small ones: random layers make of rounding more than trained ones do.
    torch.nn.init.normal_(detector.head.cls_score.weight, std=0.01)
    torch.nn.init.normal_(detector.rpn.head.bbox_pred.weight, std=0.001)
    weights = tmp_path / "weights.safetensors"
    save_detector(weights, detector, spec, CLASSES)
    session = onnxruntime.InferenceSession(str(ohem.export_onnx(weights, tmp_path / "d.onnx")))
    assert [each.name for each in session.get_inputs()] == ["image"]
    found = 0
    for height, width in ((96, 128), (131, 77), (64, 64)):
        ours, theirs = both(weights, session, height, width, 0)
        assert agreement([ours], [theirs], spec.detection.max_detections).equal
        found += len(ours.labels)
    assert found > 20


def test_no_detection_reaches_the_threshold(tmp_path: Path) -> None:
    weights = save(tmp_path, spec_of("resnet18", "align", 3, score_threshold=1.0))
    session = onnxruntime.InferenceSession(str(ohem.export_onnx(weights, tmp_path / "d.onnx")))
    ours, theirs = both(weights, session, 96, 96, 5)
    assert len(ours.labels) == len(theirs.labels) == 0


def test_the_recipe_s_limit_is_kept(tmp_path: Path) -> None:
    weights = save(tmp_path, spec_of("resnet18", "align", 3, max_detections=4))
    session = onnxruntime.InferenceSession(str(ohem.export_onnx(weights, tmp_path / "d.onnx")))
    ours, theirs = both(weights, session, 96, 96, 40)
    assert len(theirs.labels) == 4
    assert agreement([ours], [theirs]).equal


def test_the_file_is_sound_and_names_the_classes(tmp_path: Path) -> None:
    path = ohem.export_onnx(save(tmp_path, spec_of("resnet18", "align", 3)), tmp_path / "d.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"].split("\n") == list(CLASSES)


def test_what_the_agreement_counts() -> None:
    box = np.array([[10, 10, 20, 20], [30, 30, 40, 40]], np.float32)
    ours = Detections(box, np.array([0.9, 0.5], np.float32), np.array([1, 2]))
    near = Detections(box[::-1] + np.float32(0.25), np.array([0.75, 0.9], np.float32), np.array([2, 1]))
    assert agreement([ours], [ours]).equal
    found = agreement([ours], [near])
    assert (found.unmatched, found.box, found.score, found.equal) == (0, 0.25, 0.25, False)
    other_class = Detections(box, ours.scores, np.array([1, 1]))
    assert agreement([ours], [other_class]).unmatched == 2
    nothing = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    assert agreement([ours, nothing], [nothing, ours]).unmatched == 4


def test_which_of_two_equals_the_limit_cuts_off_is_counted_apart() -> None:
    box = np.array([[10, 10, 20, 20], [30, 30, 40, 40], [50, 50, 60, 60]], np.float32)
    score = np.array([0.9, 0.5, 0.5], np.float32)
    one, other = (Detections(box[rows], score[rows], np.ones(2, np.int64)) for rows in ([0, 1], [0, 2]))
    assert agreement([one], [other]).unmatched == agreement([one], [other], limit=3).unmatched == 2
    found = agreement([one], [other], limit=2)
    assert (found.unmatched, found.at_limit, found.equal) == (0, 2, True)
    high = Detections(box[[2, 1]], score[[0, 1]], np.ones(2, np.int64))
    assert agreement([one], [high], limit=2).unmatched == 2


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.onnx"
    there.write_text("a user's own")
    weights = save(tmp_path, spec_of("resnet18", "align", 3, refine=0.05))
    with pytest.raises(OhemError, match="found something there already; allowed: a new file"):
        ohem.export_onnx(weights, there)
    assert there.read_text() == "a user's own"
    with pytest.raises(OhemError, match="one scale"):
        ohem.export_onnx(weights, tmp_path / "d.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(OhemError, match=r"pip install 'ohem\[onnx\]'"):
        ohem.export_onnx(weights, tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()


def test_the_command_compares_on_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shapes(tmp_path / "data", train=1, test=3)
    weights = save(tmp_path, spec_of("resnet18", "align", 3))
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    arguments = ["export", str(weights), "--onnx", str(tmp_path / "d.onnx"), "--check", "2", "--data"]

    def run(split: str) -> object:
        monkeypatch.setattr(sys, "argv", ["ohem", *arguments, f"{data}@{split}"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert run("tset") not in (0, None)
    assert "tset" in capsys.readouterr().err
    assert not (tmp_path / "d.onnx").exists(), "it would be in the way of the second try"
    assert run("test") in (0, None)
    assert "2 images" in capsys.readouterr().out
    assert run("test") not in (0, None)
    assert "d.onnx: found something there already" in capsys.readouterr().err
