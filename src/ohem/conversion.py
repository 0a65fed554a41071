"""Weights of other programs into files of ours."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from safetensors.torch import save

from ohem.data.rules import checked_classes
from ohem.data.voc import VOC_CLASSES
from ohem.errors import OhemError
from ohem.files import require_new_file, require_suffix, write_atomically
from ohem.models.backbones import CAFFE
from ohem.models.caffe_networks import CaffeWeights, read_network
from ohem.models.pretrained import load_vgg
from ohem.models.spec import DetectorSpec
from ohem.models.weights import build_detector, save_detector
from ohem.recipes.recipe import load_recipe


@dataclass(frozen=True)
class Converted:
    """What :func:`convert` found and wrote.

    Attributes:
        kind: ``backbone``, for ``detector.backbone.weights=FILE``, or a whole ``detector``.
        network: our name of the backbone, which is also the recipe's.
        shapes: of the weights of each layer that was taken over, by Caffe's name; each has as many biases as rows.
        left_out: the other layers with weights.
        classes: of a detector.
    """

    kind: Literal["backbone", "detector"]
    network: str
    shapes: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...]
    classes: tuple[str, ...]


def convert(
    source: Path,
    out: Path,
    classes: Sequence[str] | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Converted:
    """Turn a .caffemodel file of one of the paper's networks into a .safetensors file.

    Without ``cls_score`` and ``bbox_pred`` in it, the result is a backbone file in torchvision's layout, with Caffe's
    preprocessing in its metadata. With both, it is a detector that rebuilds itself, with the settings of the paper's
    recipe of that network; its box deltas are plain (mean 0, std 1), as the authors' code saves them.

    Args:
        source: the .caffemodel file.
        out: the new file.
        classes: of a detector, without background, in the order of its outputs; VOC's twenty, alphabetically as the
            authors have them, when omitted.
        progress: told of a task, how much of it is done, and how much there is.

    Raises:
        OhemError: ``source`` is damaged or another network, ``out`` is there already, or the classes do not fit.
    """
    require_suffix(out, ".safetensors")
    require_new_file(out)
    weights = read_network(source, partial(progress, "reading, MB"))
    progress("writing", 0, 1)
    if weights.predictors:
        names = _classes(source, weights, classes)
        _save_detector(out, weights, names)
        progress("writing", 1, 1)
        return Converted("detector", weights.network, weights.shapes, weights.left_out, names)
    if classes is not None:
        raise OhemError(f"{source}: found --classes and no cls_score and bbox_pred; allowed for a backbone: no classes")
    # One entry: safetensors writes several in random order, and equal weights should be equal files.
    write_atomically(out, save(weights.state, {"preprocessing": json.dumps(asdict(CAFFE))}))
    progress("writing", 1, 1)
    return Converted("backbone", weights.network, weights.shapes, weights.left_out, ())


def _classes(source: Path, weights: CaffeWeights, given: Sequence[str] | None) -> tuple[str, ...]:
    count = weights.shapes["cls_score"][0] - 1
    names = VOC_CLASSES if given is None else checked_classes(given)
    if len(names) != count:
        found = "no --classes" if given is None else f"{len(names)} names in --classes"
        raise OhemError(f"{source}: cls_score: found {count + 1} outputs and {found}; allowed: {count} names")
    return names


def _save_detector(out: Path, weights: CaffeWeights, classes: tuple[str, ...]) -> None:
    spec = load_recipe(weights.network).detector
    assert isinstance(spec, DetectorSpec)  # both built-in recipes are of parts
    spec = spec.model_copy(update={"head": spec.head.model_copy(update={"fc": weights.fc})})
    detector = build_detector(spec, len(classes))
    detector.backbone.preprocessing = CAFFE
    load_vgg(detector, weights.state, str(out))
    for name, tensor in weights.predictors.items():
        detector.head.get_parameter(name).data.copy_(tensor)
    detector.delta_mean.zero_()
    detector.delta_std.fill_(1)
    save_detector(out, detector, spec, classes)
