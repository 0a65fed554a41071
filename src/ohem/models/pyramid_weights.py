"""Weights that torchvision publishes for its Faster R-CNN: of the backbone, or of the whole detector."""

from pathlib import Path
from typing import Any, cast

import torchvision
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn

from ohem.errors import OhemError
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.pyramid import PyramidBackbone, torchvision_model
from ohem.models.spec import TorchvisionSpec
from ohem.models.tensor_files import read_state_dict
from ohem.models.weights import assemble, take_over

WHOLE: dict[str, Any] = {
    "fasterrcnn_resnet50_fpn": faster_rcnn.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "fasterrcnn_resnet50_fpn_v2": faster_rcnn.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    "fasterrcnn_mobilenet_v3_large_fpn": faster_rcnn.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    "fasterrcnn_mobilenet_v3_large_320_fpn": faster_rcnn.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
}


def load_torchvision_weights(detector: FastRCNN, spec: TorchvisionSpec, classes: tuple[str, ...]) -> None:
    """Give the detector, or its backbone, the weights that the spec names.

    Of a whole detector, the rows of classes that COCO knows by the same name come too; others stay as initialised.

    Args:
        detector: of this spec.
        spec: its ``weights``.
        classes: the detector's class names.

    Raises:
        OhemError: the weights are not to be had or do not fit.
    """
    if spec.weights == "none":
        if spec.freeze != "none":
            raise OhemError(
                f"detector.freeze: found {spec.freeze}; allowed with weights none: none, or layers stay random"
            )
        return
    state = _read(spec)
    if "roi_heads.box_predictor.cls_score.weight" in state:
        names = tuple(WHOLE[spec.kind].meta["categories"][1:])
        take_over(detector, classes, _whole(spec, state, len(names)), names)
    else:
        _load_backbone(cast(PyramidBackbone, detector.backbone), state, spec.weights)


def _read(spec: TorchvisionSpec) -> dict[str, Tensor]:
    if spec.weights not in ("imagenet", "coco"):
        return read_state_dict(Path(spec.weights))
    weights: Any = WHOLE[spec.kind]
    if spec.weights == "imagenet":
        models = torchvision.models
        mobile = "mobilenet" in spec.kind
        weights = (models.MobileNet_V3_Large_Weights if mobile else models.ResNet50_Weights).IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:
        raise OhemError(
            f"detector.weights: torchvision could not load {spec.weights!r} for {spec.kind} ({type(error).__name__});"
            f" without a network: none, a local copy of {weights.url.rpartition('/')[2]}, or detector=fasterrcnn_lite0"
        ) from error


def _whole(spec: TorchvisionSpec, state: dict[str, Tensor], num_classes: int) -> FastRCNN:
    """The detector that the weights are of, with COCO's classes."""
    model = torchvision_model(spec.kind, num_classes)
    _load(model, state, spec.weights)
    if spec.kind == "fasterrcnn_resnet50_fpn":
        # These weights are used with eps 0 (torchvision's overwrite_eps). Here eps is taken out of the variance instead,
        # so that no other file has to remember it.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                cast(Tensor, module.running_var).sub_(module.eps)
    return assemble(model, spec, num_classes)


def _load_backbone(backbone: PyramidBackbone, state: dict[str, Tensor], source: str) -> None:
    """From a whole classifier of torchvision's; its last layers are left out."""
    features = {key.removeprefix("features."): value for key, value in state.items()}
    own = backbone.body.state_dict()
    _load(backbone.body, {key: value for key, value in features.items() if key in own}, source)


def _load(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """As ``load_state_dict``, with one line for what does not fit; counters of BatchNorm may lack."""
    own = module.state_dict()
    for key in sorted({*own, *state}):
        found, wanted = (tuple(each[key].shape) if key in each else None for each in (state, own))
        if found != wanted and not key.endswith("num_batches_tracked"):
            one, other = (f"shape {shape}" if shape is not None else "nothing" for shape in (found, wanted))
            raise OhemError(f"{source}: {key}: found {one}; allowed: {other}")
    module.load_state_dict(state, strict=False)
