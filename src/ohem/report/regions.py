"""The hardest regions of a run's training images under its final weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ohem.data.check import check_dataset
from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.split import draw_count
from ohem.errors import DataError, Fault, OhemError
from ohem.mining import ScoredImage, score_images
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import AnyDetectorSpec
from ohem.models.weights import load_detector
from ohem.opening import Reporter, open_dataset, open_proposals, pick_device
from ohem.report.gallery import Outline, Sketch
from ohem.report.runs import ReportedRun
from ohem.samplers import hard_examples
from ohem.training.run import find_weights
from ohem.workflow import trained_on

PER_IMAGE = 3


@dataclass(frozen=True, eq=False)
class HardRegion:
    """One RoI of a training image.

    Attributes:
        record: the image.
        box: (4,) xyxy, pixels of the image.
        label: what it is to be, 0 for background.
        max_iou: its overlap with the best annotated object.
        class_loss: its class loss.
        box_loss: its box loss.
        taken_for: the class with the highest probability, 0 for background.
        probability: of that class.
    """

    record: ImageRecord
    box: NDArray[np.float32]
    label: int
    max_iou: float
    class_loss: float
    box_loss: float
    taken_for: int
    probability: float

    @property
    def loss(self) -> float:
        """Both parts."""
        return self.class_loss + self.box_loss


def hardest_regions(
    run: ReportedRun, most_images: int, *, device: str | None, workers: int, reporter: Reporter
) -> tuple[list[HardRegion], str]:
    """The hardest RoIs, hardest first, at most three an image and without near-duplicates; and of how many images.

    Args:
        run: needs weights, and the training data where the run says they are.
        most_images: a larger training set is represented by so many images, the same ones for every run.
        device: see :func:`ohem.workflow.train`.
        workers: processes that read images.
        reporter: told of what goes on.

    Returns:
        The regions, and a sentence about the images they come from, or why there are none.
    """
    try:
        file = find_weights(run.run.folder, "last")
        detector, spec, classes = load_detector(file)
        wanted = run.recipe.data.model_copy(update={"classes": classes})
        dataset = trained_on(open_dataset(run.run.sources().train, wanted, reporter), run.recipe, run.run.sources())
        drawn = draw_count(dataset, most_images)
        detector.to(pick_device(device))
        search = partial(_search, run, detector, spec, workers=workers, reporter=reporter)
        faults: list[Fault] = []
        try:
            found = search(drawn)
        except DataError:
            faults = check_dataset(drawn)
            if not faults:
                raise
            bad = {fault.file for fault in faults}
            drawn = replace(drawn, records=tuple(record for record in drawn.records if record.path not in bad))
            found = search(drawn)
    except OhemError as error:
        return [], str(error).splitlines()[0]
    told = (
        "all training images" if len(drawn) == len(dataset) else f"{len(drawn)} of the {len(dataset)} training images"
    )
    note = f"The hardest regions of {told}, under {file.name}."
    if faults:
        note += f" Left out: {len(faults)} that cannot be read, the first {faults[0]}."
    return sorted(found, key=lambda region: -region.loss), note


def _search(
    run: ReportedRun,
    detector: FastRCNN,
    spec: AnyDetectorSpec,
    images: DetectionDataset,
    *,
    workers: int,
    reporter: Reporter,
) -> list[HardRegion]:
    proposals = open_proposals(images, run.run.sources().proposals, spec.given_proposals, workers, reporter)
    scored = score_images(
        detector,
        spec,
        images.records,
        proposals,
        workers=workers,
        progress=partial(reporter.progress, f"losses of {run.name}"),
    )
    return [region for image in scored for region in hard_regions(image, PER_IMAGE)]


def hard_regions(image: ScoredImage, most: int) -> list[HardRegion]:
    """The hardest RoIs of one image, without near-duplicates."""
    counted = (image.rois.labels >= 0).nonzero().squeeze(1)
    rois, losses = image.rois[counted], image.losses[counted]
    rows = hard_examples(rois.boxes, losses.total, most)
    rois, losses = rois[rows], losses[rows]
    if not len(rows):
        return []
    probability, taken_for = image.classify(rois.boxes).max(dim=1)
    columns = (rois.labels, rois.max_iou, losses.cls, losses.box, taken_for, probability)
    return [
        HardRegion(image.record, box.cpu().numpy(), int(label), iou, class_loss, box_loss, int(taken), p)
        for box, label, iou, class_loss, box_loss, taken, p in zip(
            rois.boxes, *(torch.as_tensor(column).tolist() for column in columns), strict=True
        )
    ]


def region_sketches(regions: Sequence[HardRegion], classes: Sequence[str], run: str) -> list[Sketch]:
    """Cards of hard regions, in their order."""
    names = ("background", *classes)
    sketches = []
    for region in regions:
        objects = [Outline(box, "other") for box in region.record.boxes]
        sketches.append(
            Sketch(
                region.record,
                region.box,
                (*objects, Outline(region.box, "region")),
                "hard: object" if region.label else "hard: background",
                names[region.label or region.taken_for],
                f"{names[region.label]}, taken for {names[region.taken_for]} ({region.probability:.2f})",
                f"loss {region.loss:.2f} = class {region.class_loss:.2f} + box {region.box_loss:.2f}; IoU {region.max_iou:.2f}",
                run,
            )
        )
    return sketches
