"""Published weights of torchvision's Faster R-CNN: the backbone's, the whole detector's by class names, and none at hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from ohem.errors import OhemError
from ohem.models.pyramid import torchvision_model
from ohem.models.pyramid_weights import WHOLE, load_torchvision_weights
from ohem.models.spec import TorchvisionSpec
from ohem.models.weights import build_detector

MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"
IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    """With statistics of BatchNorm that are no longer 0 and 1."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "running_mean")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.eval()


def outputs(detector: Any) -> list[Tensor]:
    with torch.inference_mode():
        (feature,) = detector.eval().features([IMAGE])
        return list(detector.score_rois(feature, torch.tensor([[4.0, 4, 40, 40], [8.0, 0, 60, 30]]), (64, 64)))


def test_classes_that_coco_knows_keep_their_rows_and_frozen_batch_norm_its_epsilon(tmp_path: Path) -> None:
    """The published weights are torchvision's ``FrozenBatchNorm2d``, and used with an epsilon of 0."""
    torch.manual_seed(0)
    model = randomised(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None))
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "coco.pth")
    spec = TorchvisionSpec(kind="fasterrcnn_resnet50_fpn", weights=str(tmp_path / "coco.pth"))
    detector = build_detector(spec, 3)
    load_torchvision_weights(detector, spec, ("zebra", "unheard of", "person"))
    names = WHOLE[spec.kind].meta["categories"]
    rows = [0, names.index("zebra"), names.index("person")]
    predictor = model.roi_heads.box_predictor
    torch.testing.assert_close(detector.head.cls_score.weight[[0, 1, 3]], predictor.cls_score.weight[rows])
    boxes = predictor.bbox_pred.weight.view(91, 4, -1)[rows]
    torch.testing.assert_close(detector.head.bbox_pred.weight.view(4, 4, -1)[[0, 1, 3]], boxes)
    # The maps are those of a model with torchvision's frozen layers and epsilon.
    frozen: Any = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=lambda width: FrozenBatchNorm2d(width, eps=0.0)
    )
    frozen.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    with torch.inference_mode():
        wanted = frozen.eval()((IMAGE - _mean()) / _std())
        (found,) = detector.eval().features([IMAGE])
    for name in wanted:
        torch.testing.assert_close(
            found.maps[name], wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].abs().max())
        )


def _mean() -> Tensor:
    return torch.tensor([[[[0.485]], [[0.456]], [[0.406]]]])


def _std() -> Tensor:
    return torch.tensor([[[[0.229]], [[0.224]], [[0.225]]]])


def test_a_classifier_s_weights_fill_the_backbone_and_leave_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = randomised(torchvision.models.mobilenet_v3_large())
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    spec = TorchvisionSpec(kind=MOBILE, weights=str(tmp_path / "mobilenet.pth"))
    detector = build_detector(spec, 3)
    before = {key: value.clone() for key, value in detector.state_dict().items() if "backbone.network.body" not in key}
    load_torchvision_weights(detector, spec, ("a", "b", "c"))
    body: Any = detector.backbone.body
    for key, value in body.state_dict().items():
        assert torch.equal(value, classifier.features.state_dict()[key])
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in before.items())


def test_the_first_layers_are_frozen_as_the_recipe_says() -> None:
    def trained(freeze: Any) -> set[str]:
        detector = build_detector(TorchvisionSpec(kind=MOBILE, freeze=freeze), 3)
        return {name for name, p in detector.named_parameters() if p.requires_grad}

    none, early, every = (trained(freeze) for freeze in ("none", "early", "all"))
    assert none > early > every
    assert {name.split(".")[3] for name in none - early} == {"0", "1", "2", "3"}
    assert not any(".body." in name for name in every)
    assert any(".fpn." in name for name in every)


def test_layers_that_would_stay_random_are_refused() -> None:
    spec = TorchvisionSpec(kind=MOBILE, weights="none", freeze="early")
    with pytest.raises(OhemError, match=r"detector\.freeze: found early; allowed with weights none: none"):
        load_torchvision_weights(build_detector(spec, 1), spec, ("a",))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    spec = TorchvisionSpec(kind=MOBILE, weights=str(file))
    detector = build_detector(spec, 3)
    for state, told in (
        (torchvision_model(MOBILE, 3).state_dict(), r"bbox_pred\.bias: found shape \(16,\); allowed: shape \(364,\)"),
        (torchvision.models.resnet18().state_dict(), "found nothing; allowed: shape"),
    ):
        torch.save(state, file)
        with pytest.raises(OhemError, match=told):
            load_torchvision_weights(detector, spec, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("weights", "copy"), [("imagenet", r"mobilenet_v3_large-\w+"), ("coco", r"fasterrcnn_\w+-\w+")]
)
def test_without_a_network_the_way_out_is_named(
    weights: str, copy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    spec = TorchvisionSpec(kind=MOBILE, weights=weights)
    with torch.device("meta"):
        detector = build_detector(spec, 3)
    with pytest.raises(
        OhemError, match=rf"could not load '{weights}' .*local copy of {copy}\.pth, or detector=fasterrcnn_lite0"
    ):
        load_torchvision_weights(detector, spec, ("a", "b", "c"))
