"""The paper's networks in Caffe's files: which layer of theirs is which of ours."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ohem.errors import DataError, Fault
from ohem.models.backbones import VGG16, VGGCNNM1024
from ohem.models.caffe import Blob, Layer, read_caffemodel

CONVOLUTIONS: Mapping[str, tuple[str, ...]] = {
    "vgg16": tuple(f"conv{stage}_{i + 1}" for stage, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(count)),
    "vgg_cnn_m_1024": tuple(f"conv{stage}" for stage in range(1, 6)),
}
"""Caffe's names of the convolutions, in order, by our name of the backbone."""

FC = {"fc6": "classifier.0", "fc7": "classifier.3"}
PREDICTORS = ("cls_score", "bbox_pred")

Progress = Callable[[int, int], None]
"""Told how much is done, and how much there is."""


@dataclass(frozen=True, eq=False)
class CaffeWeights:
    """One of the paper's networks, read.

    Attributes:
        network: our name of the backbone.
        state: the convolutions, fc6 and fc7 under torchvision's names (``features.*``, ``classifier.0``,
            ``classifier.3``), as :mod:`ohem.models.pretrained` reads them.
        predictors: ``cls_score`` and ``bbox_pred`` (``.weight``, ``.bias``) of a detector: background first, plain
            deltas, since the authors' code folds their statistics in when it saves. Empty: a classifier of images.
        shapes: of the weights of each layer above, by Caffe's name.
        left_out: the other layers with weights.
    """

    network: str
    state: dict[str, Tensor]
    predictors: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...]

    @property
    def fc(self) -> tuple[int, int]:
        """Widths of fc6 and fc7."""
        return self.shapes["fc6"][0], self.shapes["fc7"][0]


def read_network(path: Path, progress: Progress = lambda done, total: None) -> CaffeWeights:
    """VGG16's or VGG_CNN_M_1024's weights from a .caffemodel file, or a Fast R-CNN detector's made of one of them.

    fc6 and fc7 may have any width. A detector is what has both ``cls_score`` and ``bbox_pred``. Training networks have
    further layers with weights, such as the read-only copies of fc6 and fc7 in the authors' code; they are left out.

    Args:
        path: the file.
        progress: called after each layer with the megabytes of weights that are read, and those of all.

    Raises:
        OhemError: no readable .caffemodel file, or layers that are those of neither network.
    """
    layers = _by_name(path, read_caffemodel(path))
    network = next((name for name, wanted in CONVOLUTIONS.items() if layers.keys() >= {*wanted, *FC}), None)
    if network is None:
        allowed = " or ".join(f"{', '.join((*wanted, *FC))} ({name})" for name, wanted in CONVOLUTIONS.items())
        raise DataError([Fault(path, "layers", _listed(layers), allowed)])
    own: type[VGG16 | VGGCNNM1024] = VGG16 if network == "vgg16" else VGGCNNM1024
    wanted = {*CONVOLUTIONS[network], *FC, *(PREDICTORS if layers.keys() >= set(PREDICTORS) else ())}
    taken = _Taken(path, network, {name: layer for name, layer in layers.items() if name in wanted}, progress)
    with torch.device("meta"):
        features = own().get_submodule("features")
    convolutions = [(i, layer) for i, layer in features.named_children() if isinstance(layer, nn.Conv2d)]
    for name, (index, layer) in zip(CONVOLUTIONS[network], convolutions, strict=True):
        taken.take(name, f"features.{index}", tuple(layer.weight.shape))
        taken.require_stride(name, layer.stride[0])
    channels, side = own.fc_inputs
    width = channels * side**2
    for name, ours in FC.items():
        width = taken.take(name, ours, (None, width))
    state, taken.tensors = taken.tensors, {}
    if wanted >= set(PREDICTORS):
        classes = taken.take("cls_score", "cls_score", (None, width))
        taken.take("bbox_pred", "bbox_pred", (4 * classes, width))
    left_out = tuple(name for name in layers if name not in taken.shapes)
    return CaffeWeights(network, state, taken.tensors, taken.shapes, left_out)


class _Taken:
    """The layers taken over so far, each checked against the shape that is wanted."""

    def __init__(self, path: Path, network: str, layers: Mapping[str, Layer], progress: Progress) -> None:
        self.path, self.network, self.layers, self.progress = path, network, layers, progress
        self.tensors: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, ours: str, shape: tuple[int | None, ...]) -> int:
        """Read a layer's weights, of a shape in which None is any size, and biases; returns its number of outputs."""
        blobs = self.layers[name].blobs
        if len(blobs) != 2:
            raise self.fault(name, f"{len(blobs)} arrays", "2, weights and biases,")
        weight = self._read(f"{name}.blobs[0]", blobs[0], shape)
        self.tensors[f"{ours}.weight"] = weight
        self.tensors[f"{ours}.bias"] = self._read(f"{name}.blobs[1]", blobs[1], (len(weight),))
        self.shapes[name] = tuple(weight.shape)
        self.progress(self._megabytes(self.shapes), self._megabytes(self.layers))
        return len(weight)

    def require_stride(self, name: str, stride: int) -> None:
        """VGG_CNN_S has the shapes of VGG_CNN_M and other strides."""
        found = self.layers[name].strides
        if found is not None and found != {stride}:
            raise self.fault(name, f"stride {' and '.join(map(str, sorted(found)))}", f"stride {stride}")

    def _megabytes(self, names: Iterable[str]) -> int:
        return sum(4 * math.prod(blob.shape) for name in names for blob in self.layers[name].blobs) // 10**6

    def fault(self, where: str, found: str, allowed: str) -> DataError:
        return DataError([Fault(self.path, where, found, f"{allowed} as in {self.network}")])

    def _read(self, where: str, blob: Blob, wanted: tuple[int | None, ...]) -> Tensor:
        # Caffe's rule (Blob::ShapeEquals): older files fill shapes up to four numbers with leading ones.
        filled = len(blob.shape) == 4 and blob.shape[: 4 - len(wanted)] == (1,) * (4 - len(wanted))
        shape = blob.shape[4 - len(wanted) :] if filled else blob.shape
        fits = len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in wanted)
            raise self.fault(where, f"shape {blob.shape}", f"shape ({sizes}{',' * (len(wanted) == 1)})")
        values = blob.read().view(shape)
        if not values.isfinite().all():
            raise DataError([Fault(self.path, where, "values that are not finite", "numbers")])
        return values


def _by_name(path: Path, layers: Sequence[Layer]) -> dict[str, Layer]:
    named: dict[str, Layer] = {}
    for layer in layers:
        if layer.name in named:
            raise DataError([Fault(path, "layers", f"{layer.name!r} twice", "each name once")])
        named[layer.name] = layer
    return named


def _listed(layers: Mapping[str, Layer], most: int = 20) -> str:
    shown = [f"{name} {layer.blobs[0].shape}" for name, layer in list(layers.items())[:most]]
    more = [f"and {len(layers) - most} more"] if len(layers) > most else []
    return ", ".join([*shown, *more])
