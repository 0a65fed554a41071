"""Detectors to and from safetensors files that rebuild themselves.

A file holds the detector's tensors with the box statistics folded into the last layer (so that whoever reads it gets
plain deltas) and the statistics beside them (so that losses stay comparable); in its metadata the detector's spec, its
class list and its preprocessing, as JSON.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor

from ohem.boxes import DeltaStats
from ohem.data.rules import CLASSES_ALLOWED, class_list_problem, one_line, quoted
from ohem.errors import DataError, Fault, OhemError
from ohem.files import write_atomically
from ohem.models.backbones import Preprocessing, build_backbone
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.proposal_network import build_proposal_network
from ohem.models.pyramid import take_apart, torchvision_model
from ohem.models.roi_head import RoIHead
from ohem.models.spec import DETECTORS, AnyDetectorSpec, TorchvisionSpec
from ohem.models.tensor_files import read_metadata, read_state_dict

FORMAT = "ohem-detector-1"


def build_detector(spec: AnyDetectorSpec, num_classes: int) -> FastRCNN:
    """A detector with random weights, of torch's current seed."""
    if isinstance(spec, TorchvisionSpec):
        return assemble(torchvision_model(spec.kind, num_classes), spec, num_classes)
    backbone = build_backbone(spec.backbone)
    head = RoIHead(backbone.out_channels, backbone.stride, num_classes, **spec.head.model_dump())
    if spec.rpn is None:
        return FastRCNN(backbone, head, num_classes, **_options(spec))
    rpn = build_proposal_network(spec.head.channels or backbone.out_channels, spec.rpn)
    return FasterRCNN(backbone, head, rpn, num_classes, **_options(spec))


def assemble(model: Any, spec: TorchvisionSpec, num_classes: int) -> FasterRCNN:
    """A detector of the layers of one of torchvision's models, with their weights."""
    parts = take_apart(model, spec, num_classes)
    return FasterRCNN(parts.backbone, parts.head, parts.rpn, num_classes, **_options(spec))


def _options(spec: AnyDetectorSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in ("fg_iou", "ignore", "smooth_l1_beta", "ranking_chunk")}


def save_detector(path: Path, detector: FastRCNN, spec: AnyDetectorSpec, classes: tuple[str, ...]) -> None:
    """Write a detector to one safetensors file, atomically. The detector is left as it was."""
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in detector.state_dict().items()
        if not key.startswith(("thin_head.", "loss_memory."))  # of the run
    }
    mean, std = state["delta_mean"].flatten(), state["delta_std"].flatten()
    state["head.bbox_pred.weight"] = state["head.bbox_pred.weight"] * std[:, None]
    state["head.bbox_pred.bias"] = state["head.bbox_pred.bias"] * std + mean
    meta = {
        "format": FORMAT,
        "spec": spec.without_source().model_dump(mode="json"),
        "classes": classes,
        "preprocessing": asdict(detector.backbone.preprocessing),
    }
    # One entry: safetensors writes several in random order, and equal weights should be equal files.
    write_atomically(path, save(state, {"ohem": json.dumps(meta)}))


def load_detector(path: Path | str) -> tuple[FastRCNN, AnyDetectorSpec, tuple[str, ...]]:
    """Rebuild a detector from :func:`save_detector`'s file: the detector in evaluation mode, its spec and classes.

    Args:
        path: a weights file, such as a run's ``weights.safetensors``.

    Returns:
        The detector, on the CPU; what it is made of; and its class names, where label i means the i-th, from 1.

    Raises:
        OhemError: not such a file.
    """
    path = Path(path)
    meta = _metadata(path)
    try:
        spec: AnyDetectorSpec = TypeAdapter(AnyDetectorSpec).validate_python(meta["spec"])
        classes = TypeAdapter(tuple[str, ...]).validate_python(meta["classes"])
        preprocessing = TypeAdapter(Preprocessing).validate_python(meta["preprocessing"])
    except (KeyError, ValidationError) as error:
        raise DataError([Fault(path, "metadata", f"damaged ({_first_line(error)})", FORMAT)]) from error
    problem = class_list_problem(classes)
    if problem is not None:
        raise DataError([Fault(path, "metadata.classes", problem, CLASSES_ALLOWED)])
    state = read_state_dict(path)
    with torch.device("meta"):  # shapes are compared before memory is taken for them
        _require_tensors_of(path, _build(path, spec, len(classes)), state)
    detector = _build(path, spec, len(classes))
    detector.backbone.preprocessing = preprocessing
    detector.load_state_dict(state)
    stats = DeltaStats(detector.delta_mean.clone(), detector.delta_std.clone())
    detector.delta_mean.zero_()
    detector.delta_std.fill_(1)
    detector.set_delta_stats(stats)
    return detector.eval(), spec, classes


def _build(path: Path, spec: AnyDetectorSpec, num_classes: int) -> FastRCNN:
    try:
        return build_detector(spec, num_classes)
    except (OhemError, RuntimeError) as error:
        raise DataError([Fault(path, "metadata.spec", _first_line(error), "a detector that can be built")]) from error


def _require_tensors_of(path: Path, detector: FastRCNN, state: dict[str, Tensor]) -> None:
    wanted = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted({*wanted, *found}):
        if found.get(key) != wanted.get(key):
            one, other = (
                f"shape {shape}" if shape is not None else "nothing" for shape in (found.get(key), wanted.get(key))
            )
            raise DataError([Fault(path, key, one, other)])


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in DETECTORS)
        return f"{where}: {quoted(first['input'])}; {first['msg']}"
    return one_line(str(error), 300)


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
    require_same_architecture(detector, other, path)
    return take_over(detector, classes, other, other_classes)


def require_same_architecture(detector: FastRCNN, other: FastRCNN, path: Path) -> None:
    """Raise DataError, naming the file of the other, where its weights would mean something else in the detector."""
    mine, theirs = _architecture(detector), _architecture(other)
    for name in mine:
        if mine[name] != theirs.get(name):
            raise DataError([Fault(path, name, str(theirs.get(name, "nothing")), f"{mine[name]}, as in the recipe")])


def take_over(detector: FastRCNN, classes: tuple[str, ...], other: FastRCNN, other_classes: tuple[str, ...]) -> int:
    """Copy the weights of a detector of the same architecture, class rows by name; returns how many it knew.

    Args:
        detector: changed in place.
        classes: its class names.
        other: changed too, its box statistics.
        other_classes: the other's class names.
    """
    detector.backbone.preprocessing = other.backbone.preprocessing
    other.set_delta_stats(
        DeltaStats(*(_rows(detector, other, name, classes, other_classes) for name in ("mean", "std")))
    )
    shared = [
        (0, 0),
        *((i, other_classes.index(name) + 1) for i, name in enumerate(classes, 1) if name in other_classes),
    ]
    state = other.state_dict()
    for key, tensor in detector.state_dict().items():
        if key.startswith(("head.cls_score", "head.bbox_pred")):
            width = 4 if "bbox_pred" in key else 1
            for row, source in shared:
                tensor[width * row : width * (row + 1)] = state[key][width * source : width * (source + 1)]
        elif not key.startswith("delta_"):
            tensor.copy_(state[key])
    return len(shared) - 1


def _architecture(detector: FastRCNN) -> dict[str, object]:
    """What must agree for weights to mean the same; the number of classes may differ."""
    layers = {
        key: tuple(value.shape)[1:] if key.startswith(("head.cls_score", "head.bbox_pred")) else tuple(value.shape)
        for key, value in detector.state_dict().items()
        if not key.startswith("delta_")
    }
    backbone = detector.backbone
    anchors = detector.rpn.anchor_generator if isinstance(detector, FasterRCNN) else None
    return {
        **layers,
        "layers": sorted(layers),
        "detector.rpn": anchors and f"anchors of sizes {anchors.sizes} and ratios {anchors.aspect_ratios}",
        "detector.head.pool": (detector.head.pool, detector.head.pool_size),
        "detector.backbone": (backbone.stride, getattr(backbone, "scales", None)),
    }


def _rows(
    detector: FastRCNN, other: FastRCNN, name: str, classes: tuple[str, ...], other_classes: tuple[str, ...]
) -> Tensor:
    """The detector's box statistics, in the order of the other's classes; what it does not know stays."""
    own, result = getattr(detector, f"delta_{name}"), getattr(other, f"delta_{name}").clone()
    for i, label in enumerate(other_classes):
        if label in classes:
            result[i + 1] = own[classes.index(label) + 1]
    return Tensor(result)


def _metadata(path: Path) -> dict[str, Any]:
    meta = read_metadata(path, "ohem")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise DataError([Fault(path, "metadata.format", quoted(found), FORMAT)])
    return meta
