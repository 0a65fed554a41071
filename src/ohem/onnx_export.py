"""A trained detector as an ONNX file, and what onnxruntime makes of it beside PyTorch (the extra ``onnx``)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms, roi_align, roi_pool

from ohem.boxes import decode_deltas
from ohem.data.dataset import DetectionDataset, Detections, Proposals
from ohem.data.loading import Draw, Samples, load_batches
from ohem.errors import OhemError
from ohem.extras import need
from ohem.files import atomic_writer, require_new_file
from ohem.inference import candidates_of, detect_image
from ohem.models.backbones import OneMapBackbone
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.pyramid import PyramidBackbone
from ohem.models.roi_head import Feature, Pyramid
from ohem.models.roi_pooling import SAMPLES
from ohem.models.spec import DetectionSpec
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec
from ohem.training.run import Weights, find_weights

OPSET = 17
"""The first with RoIAlign that is half-pixel correct is 16."""

OUTPUTS = ("boxes", "scores", "labels")

FREE = {
    "image": {1: "height", 2: "width"},
    "proposals": {0: "proposals"},
    **{name: {0: "detections"} for name in OUTPUTS},
}
"""Dimensions of inputs and outputs that may have any size, by name."""

BOX_BAR = 1e-3
"""Pixels of the network's input."""

SCORE_BAR = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How far onnxruntime's detections are from PyTorch's.

    Attributes:
        images: compared.
        detections: of PyTorch in them.
        unmatched: detections that only one of the two has, without those of ``at_limit``.
        at_limit: such, where both have as many as the recipe allows and the score is that of the last, within
            :data:`SCORE_BAR`: rounding decides there which of two equals is cut off.
        box: the largest difference of a coordinate, in pixels of the network's input.
        score: the largest difference of a score.
    """

    images: int
    detections: int
    unmatched: int
    at_limit: int
    box: float
    score: float

    @property
    def equal(self) -> bool:
        """Nothing unmatched, boxes within :data:`BOX_BAR` and scores within :data:`SCORE_BAR`."""
        return not self.unmatched and self.box <= BOX_BAR and self.score <= SCORE_BAR


def export_onnx(source: Path, path: Path, *, weights: Weights = "best") -> Path:
    """Write a trained detector as ONNX. Sizes and the number of proposals are free, zero included.

    The graph takes ``image`` (3, H, W) uint8 RGB, resized as the recipe says (:func:`ohem.data.loading.resize`), and,
    if the detector does not make its own, ``proposals`` (P, 4) float32 xyxy in its pixels. It gives ``boxes`` (D, 4)
    float32 in the same pixels, ``scores`` (D,) float32, falling, and ``labels`` (D,) int64, 1..C, after the recipe's
    threshold, NMS of each class, and its limit. Class names are in the file's metadata, one a line.

    Args:
        source: a run's folder, or a weights file.
        path: the new file.
        weights: which of a run's weights.

    Raises:
        OhemError: the file exists, onnx is not installed, there are no such weights, or the detector looks at several
            scales or refines boxes.
    """
    onnx = need("onnx", "onnx")
    require_new_file(path)
    file = find_weights(source, weights)
    detector, spec, classes = load_detector(file)
    if len(spec.image.test_scales) > 1 or spec.detection.refine is not None:
        raise OhemError(f"{file}: found several test scales or refinement of boxes; allowed: one scale without it")
    graph = _Graph(detector.eval(), spec.detection)
    example = {
        "image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        "proposals": torch.tensor([[4.0, 4, 60, 60], [20, 10, 120, 90]]),
    }
    inputs = inputs_of(detector)
    exported = BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: what depends on sizes is an operator of the graph
        torch.onnx.export(
            graph,
            tuple(example[name] for name in inputs),
            cast(Any, exported),
            dynamo=False,  # torchvision's RoI operators have ONNX forms for this exporter only
            opset_version=OPSET,
            input_names=inputs,
            output_names=list(OUTPUTS),
            dynamic_axes={name: FREE[name] for name in (*inputs, *OUTPUTS)},
        )
    model = onnx.load_from_string(exported.getvalue())
    onnx.helper.set_model_props(model, {"classes": "\n".join(classes), "ohem": version("ohem")})
    with atomic_writer(path) as out:
        out.write(model.SerializeToString())
    return path


def check_onnx(
    source: Path,
    path: Path,
    data: Sequence[str] | str,
    proposals: Sequence[str] | str = (),
    *,
    images: int = 50,
    weights: Weights = "best",
    reporter: Reporter = SILENT,
) -> Agreement:
    """Detect in the first images of a data set with PyTorch and with onnxruntime, on the CPU.

    Args:
        source: what was exported.
        path: the ONNX file.
        data: data sources; their annotations are not looked at.
        proposals: proposal files; without, selective search.
        images: how many.
        weights: as exported.
        reporter: told of what goes on.

    Raises:
        OhemError: onnxruntime is not installed, or anything is wrong with weights, data or images.
    """
    return compare_onnx(
        source, path, *open_images(source, data, proposals, images, weights, reporter), weights, reporter
    )


def open_images(
    source: Path,
    data: Sequence[str] | str,
    proposals: Sequence[str] | str,
    images: int,
    weights: Weights,
    reporter: Reporter,
) -> tuple[DetectionDataset, Proposals]:
    """The images, with proposals, that :func:`check_onnx` detects in: what may be wrong with them is found here."""
    need("onnxruntime", "onnx")
    _, spec, classes = load_detector(find_weights(source, weights))
    spec_of_data = DataSpec(classes=classes, other_classes="drop", bad_boxes="drop")  # only images are looked at
    whole = open_dataset(data, spec_of_data, reporter)
    dataset = replace(whole, records=whole.records[:images])
    return dataset, open_proposals(dataset, proposals, spec.given_proposals, 1, reporter)


def compare_onnx(
    source: Path, path: Path, dataset: DetectionDataset, boxes: Proposals, weights: Weights, reporter: Reporter
) -> Agreement:
    """Detect in what :func:`open_images` opened; see :func:`check_onnx`."""
    onnxruntime = need("onnxruntime", "onnx")
    detector, spec, _ = load_detector(find_weights(source, weights))
    detector.eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    samples = Samples(dataset.records, boxes, spec.image, spec.max_proposals)
    ours, theirs = [], []
    for (sample,) in load_batches(samples, [[Draw(index)] for index in range(len(dataset))], workers=0):
        given = {"image": sample.image.numpy(), "proposals": sample.proposals.numpy()}
        theirs.append(Detections(*session.run(None, {name: given[name] for name in inputs_of(detector)})))
        at_input = replace(sample, scale=(1.0, 1.0))  # so that boxes stay in pixels of the network's input
        ours.append(detect_image(detector, [at_input], spec.detection))
        reporter.progress("images compared", len(ours), len(dataset))
    return agreement(ours, theirs, spec.detection.max_detections)


def agreement(ours: Sequence[Detections], theirs: Sequence[Detections], limit: int = 0) -> Agreement:
    """Compare detections image by image.

    Each of ours is matched with that of theirs of its class whose box is nearest, if it is within a pixel.

    Args:
        ours: PyTorch's, by falling score.
        theirs: onnxruntime's, likewise.
        limit: the most an image may have; 0: any number.
    """
    unmatched, at_limit, box, score = 0, 0, 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        free, lone = np.ones(len(other.labels), dtype=bool), []
        for row in range(len(one.labels)):
            apart = np.abs(other.boxes - one.boxes[row]).max(axis=1, initial=0.0)
            apart = np.where(free & (other.labels == one.labels[row]), apart, np.inf)
            if not len(apart) or apart.min() > 1:
                lone.append(float(one.scores[row]))
                continue
            nearest = int(apart.argmin())
            free[nearest] = False
            box = max(box, float(apart[nearest]))
            score = max(score, abs(float(other.scores[nearest]) - float(one.scores[row])))
        lone += other.scores[free].tolist()
        full = limit and len(one.labels) == len(other.labels) == limit
        cut = sum(each - one.scores[-1] <= SCORE_BAR for each in lone) if full else 0
        at_limit, unmatched = at_limit + cut, unmatched + len(lone) - cut
    return Agreement(len(ours), sum(len(one.labels) for one in ours), unmatched, at_limit, box, score)


def inputs_of(detector: FastRCNN) -> list[str]:
    """What the graph of a detector takes: ``image``, and ``proposals`` unless it makes its own."""
    return ["image"] if isinstance(detector, FasterRCNN) else ["image", "proposals"]


class _Graph(nn.Module):
    """What :func:`ohem.inference.detect_image` does with one scale, in operators that ONNX has."""

    def __init__(self, detector: FastRCNN, spec: DetectionSpec) -> None:
        super().__init__()
        self.detector, self.spec = detector, spec

    def forward(self, image: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        detector, head, spec = self.detector, self.detector.head, self.spec
        size = cast(tuple[int, int], image.shape[1:])
        feature = self._feature(image)
        proposals = detector.propose(feature, size, cast(Tensor, given))
        hidden = self._pooled(feature, proposals).flatten(1)
        for layer in head.fc:
            hidden = torch.relu(layer(hidden))
        scores = head.cls_score(hidden).softmax(dim=1)
        deltas = head.bbox_pred(hidden).view(-1, detector.num_classes + 1, 4) * detector.delta_std + detector.delta_mean
        moved = clip_boxes_to_image(decode_deltas(proposals, deltas), size)
        found = candidates_of(scores, moved, spec.score_threshold)
        # Classes side by side, where no box of one meets a box of another.
        width = torch.cat([found.boxes.flatten(), torch.zeros(1)]).max() + 1
        keep = nms(found.boxes + (found.labels * width)[:, None], found.scores, spec.nms_iou)
        keep = keep[: spec.max_detections] if spec.max_detections else keep
        return found.boxes[keep], found.scores[keep], found.labels[keep]

    def _feature(self, image: Tensor) -> Feature:
        backbone = self.detector.backbone
        if isinstance(backbone, PyramidBackbone):
            return backbone.pyramid(image)
        maps = cast(OneMapBackbone, backbone).maps(backbone.preprocessing(image[None].float() / 255))
        return cast(Tensor, self.detector.head.reduce(maps))

    def _pooled(self, feature: Feature, boxes: Tensor) -> Tensor:
        head = self.detector.head
        if isinstance(feature, Pyramid):
            return head.pool_rois(feature, boxes)
        side = (head.pool_size, head.pool_size)
        if head.pool == "max":
            inclusive = boxes - torch.tensor([0.0, 0.0, 1.0, 1.0])
            return cast(Tensor, roi_pool(feature, [inclusive], side, 1 / head.stride))
        return cast(Tensor, roi_align(feature, [boxes], side, 1 / head.stride, SAMPLES, aligned=True))
