"""What a detector makes of annotated images: what it takes the annotated boxes for, and what it finds itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, Detections, ImageRecord, Proposals
from ohem.judging import run_detector
from ohem.mining import score_images
from ohem.models.spec import DetectionSpec
from ohem.models.weights import load_detector
from ohem.opening import Reporter, pick_device

SHOWN = DetectionSpec(score_threshold=0.05, nms_iou=0.4, max_detections=100)
"""What counts as found: enough to see a weak second opinion, too little to be noise."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """One image.

    Attributes:
        record: the image and its annotations.
        probabilities: (G, C + 1) class probabilities of each annotated box, background first.
        boxes: (D, 4) detections, xyxy pixels of the image.
        scores: (D,).
        labels: (D,) 1..C.
    """

    record: ImageRecord
    probabilities: NDArray[np.float64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


def gather_evidence(
    weights: Sequence[Path],
    dataset: DetectionDataset,
    proposals: Proposals,
    *,
    device: str | None,
    workers: int,
    reporter: Reporter,
) -> list[Evidence]:
    """Ask a detector, and its earlier selves where there are any, about every image.

    Args:
        weights: of one run; the last is the final detector, whose detections count. Probabilities are means over all.
        dataset: its classes are the detector's.
        proposals: of each image.
        device: see :func:`ohem.workflow.train`.
        workers: processes that read images.
        reporter: told of what goes on.
    """
    detector, spec, _ = load_detector(weights[-1])
    spec = spec.model_copy(update={"detection": SHOWN})
    found = run_detector(detector, spec, dataset.records, proposals, device=device, workers=workers, reporter=reporter)
    annotated = [record for record in dataset.records if len(record.labels)]
    nothing = {
        record.id: np.zeros((0, 4), np.float32) for record in annotated
    }  # the annotated boxes alone are asked about
    sums = {record.id: np.zeros((len(record.labels), len(dataset.classes) + 1)) for record in dataset.records}
    for file in weights:
        earlier, spec, _ = load_detector(file)
        progress = partial(reporter.progress, f"annotations under {file.name}")
        earlier = earlier.to(pick_device(device))
        for image in score_images(earlier, spec, annotated, nothing, workers=workers, progress=progress):
            probabilities = image.classify(torch.from_numpy(image.record.boxes).float())
            sums[image.record.id] += probabilities.double().cpu().numpy() / len(weights)
    return [_evidence(record, sums[record.id], found[record.id]) for record in dataset.records]


def _evidence(record: ImageRecord, probabilities: NDArray[np.float64], found: Detections) -> Evidence:
    return Evidence(
        record, probabilities, found.boxes.astype(np.float64), found.scores.astype(np.float64), found.labels
    )
