"""Mean, scale and channel order travel with the weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ohem.errors import OhemError
from ohem.models.backbones import CAFFE, TORCHVISION
from ohem.models.pretrained import load_pretrained
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector, load_detector, save_detector

SMALL = HeadSpec(pool_size=6, fc=(8,), channels=4)


def spec_of(**backbone: str) -> DetectorSpec:
    return DetectorSpec(backbone=BackboneSpec(name="vgg_cnn_m_1024", **backbone), head=SMALL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    features = build_detector(spec_of(), 1).backbone.state_dict()
    save_file(features, tmp_path / "plain.safetensors")
    stated = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "scale": 255.0, "bgr": True}
    save_file(features, tmp_path / "stated.safetensors", {"preprocessing": json.dumps(stated)})
    torch.save(features, tmp_path / "plain.pth")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "setting", "mean"),
    [
        ("plain.safetensors", "default", list(CAFFE.mean)),
        ("plain.safetensors", "torchvision", list(TORCHVISION.mean)),
        ("plain.pth", "caffe", list(CAFFE.mean)),
        ("stated.safetensors", "default", [1.0, 2.0, 3.0]),
        ("stated.safetensors", "torchvision", list(TORCHVISION.mean)),
    ],
)
def test_a_weights_file_or_the_recipe_says_what_the_network_reads(
    file: str, setting: str, mean: list[float], weights: Path
) -> None:
    spec = spec_of(weights=str(weights / file), preprocessing=setting)
    detector = build_detector(spec, 1)
    load_pretrained(detector, spec.backbone)
    assert list(detector.backbone.preprocessing.mean) == mean
    save_detector(weights / "detector.safetensors", detector, spec, ("cat",))
    again = load_detector(weights / "detector.safetensors")[0]
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again.backbone(image), detector.eval().backbone(image))


def test_caffe_reads_blue_first_from_0_to_255() -> None:
    red = torch.zeros(1, 3, 1, 1)
    red[0, 0] = 1.0
    assert CAFFE(red).flatten().tolist() == pytest.approx([-102.9801, -115.9465, 255 - 122.7717])
    assert TORCHVISION(red).flatten().tolist() == pytest.approx([0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


@pytest.mark.parametrize("stated", ['{"middle": 1}', "[1]", '{"mean": 1'])
def test_metadata_that_is_no_preprocessing_is_refused(stated: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(build_detector(spec_of(), 1).backbone.state_dict(), path, {"preprocessing": stated})
    spec = spec_of(weights=str(path))
    with pytest.raises(OhemError, match=r"odd\.safetensors"):
        load_pretrained(build_detector(spec, 1), spec.backbone)
