"""Trainings side by side: the table and the pictures. The pictures need the extra ``ohem[demo]``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ohem.data.dataset import DetectionDataset, Detections, ImageId, ImageRecord
from ohem.data.images import read_image
from ohem.evaluation.voc import VocResult
from ohem.extras import need
from ohem.files import atomic_writer
from ohem.mining import ScoredImage
from ohem.pictures import class_colour, draw_boxes
from ohem.samplers import hard_examples

HEADER = ("", "test mAP, %", "loss, train", "loss, test", "s/step", "peak MB")
COLOURS = ("#8a8f98", "#d1495b")
HARDEST = 12


@dataclass(frozen=True, eq=False)
class Arm:
    """One training, measured.

    Attributes:
        name: for people.
        log: records of the training log.
        voc: average precision on the test images.
        detections: on the test images.
        loss_train: mean loss over all RoIs of the training images, after training.
        loss_test: the same of the test images.
        hardest: some training images with the losses of all their RoIs, early and late in training.
    """

    name: str
    log: list[dict[str, Any]]
    voc: VocResult
    detections: dict[ImageId, Detections]
    loss_train: float
    loss_test: float
    hardest: tuple[list[ScoredImage], list[ScoredImage]]

    def row(self) -> tuple[str, ...]:
        """Name, mAP, mean losses, seconds a step, peak memory."""
        train = [record for record in self.log if record["kind"] == "train"]
        parts = ("data", "ranking", "training")
        seconds = float(np.median([sum(record["seconds"][part] for part in parts) for record in train]))
        memory = max(record["peak_memory_mb"] for record in train)
        losses = f"{self.loss_train:.3f}", f"{self.loss_test:.3f}"
        return self.name, f"{100 * self.voc.mean_ap:.1f}", *losses, f"{seconds:.2f}", f"{memory:.0f}"


def draw_curves(arms: Sequence[Arm], path: Path) -> None:
    """Loss over the selected and over all RoIs, and the share of foreground, over the iterations."""
    figure, axes = _axes(1, 3, (13, 3.8))
    panels = (
        ("mean loss over all RoIs", "loss_all_rois", 1.0),
        ("mean loss over the selected RoIs", "loss_selected_rois", 1.0),
        ("foreground among the selected, %", "foreground_share", 100.0),
    )
    for axis, (title, field, factor) in zip(axes.flat, panels, strict=True):
        for arm, colour in zip(arms, COLOURS, strict=True):
            records = [r for r in arm.log if r["kind"] == "train" and r[field] is not None]
            axis.plot(
                [r["iteration"] for r in records], [factor * r[field] for r in records], color=colour, label=arm.name
            )
        axis.set(title=title, xlabel="iteration", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    _save(figure, path)


def draw_precision_recall(arms: Sequence[Arm], path: Path) -> None:
    """A panel for each class, both arms in it."""
    classes = arms[0].voc.classes
    columns = min(5, len(classes))
    figure, axes = _axes(-(-len(classes) // columns), columns, (2.6 * columns, 2.7 * -(-len(classes) // columns)))
    for c, (axis, name) in enumerate(zip(axes.flat, classes, strict=False)):
        captions = []
        for arm, colour in zip(arms, COLOURS, strict=True):
            curve = arm.voc.curves[c]
            axis.plot(curve.recall, curve.precision, color=colour, label=arm.name)
            captions.append(f"{100 * arm.voc.ap[c]:.0f}")
        axis.set(title=f"{name} (AP {' / '.join(captions)})", xlim=(0, 1), ylim=(0, 1.02))
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.supxlabel("recall")
    figure.supylabel("precision")
    _save(figure, path)


def draw_detections(arms: Sequence[Arm], dataset: DetectionDataset, path: Path, threshold: float = 0.5) -> None:
    """Annotated objects and both arms' detections on some test images."""
    records = [record for record in dataset.records if len(record.boxes)][:4]
    figure, axes = _axes(len(records), 1 + len(arms), (4.2 * (1 + len(arms)), 3.2 * len(records)))
    for row, record in zip(axes, records, strict=True):
        _show(row[0], record, record.boxes, record.labels, [dataset.classes[i - 1] for i in record.labels])
        for axis, arm in zip(row[1:], arms, strict=True):
            found = arm.detections[record.id]
            kept = np.flatnonzero(found.scores >= threshold)[::-1]
            captions = [f"{dataset.classes[found.labels[i] - 1]} {found.scores[i]:.2f}" for i in kept]
            _show(axis, record, found.boxes[kept], found.labels[kept], captions)
    for axis, title in zip(axes[0], ("annotated", *(f"{arm.name}, score > {threshold}" for arm in arms)), strict=True):
        axis.set_title(title)
    _save(figure, path)


def draw_hardest(arms: Sequence[Arm], classes: Sequence[str], path: Path) -> None:
    """The hardest RoIs of some training images, early and late in training; captions: true label and loss."""
    count = len(arms[0].hardest[0])
    figure, axes = _axes(count, 2 * len(arms), (3.9 * 2 * len(arms), 3.1 * count))
    for a, arm in enumerate(arms):
        for moment, (when, images) in enumerate(zip(("early", "late"), arm.hardest, strict=True)):
            column = 2 * a + moment
            axes[0][column].set_title(f"{arm.name}: the {HARDEST} hardest RoIs, {when}")
            for row, image in zip(axes, images, strict=True):
                _show_hardest(row[column], image, classes)
    _save(figure, path)


def _show_hardest(axis: Any, image: ScoredImage, classes: Sequence[str]) -> None:
    candidates = (image.rois.labels >= 0).nonzero().squeeze(1)
    rois, losses = image.rois[candidates], image.losses.total[candidates]
    hardest = hard_examples(rois.boxes, losses, HARDEST).flip(0)
    labels = rois.labels[hardest].tolist()
    captions = [
        f"{classes[label - 1] if label else 'bg'} {loss:.1f}"
        for label, loss in zip(labels, losses[hardest].tolist(), strict=True)
    ]
    _show(axis, image.record, rois.boxes[hardest].numpy(), labels, captions)
    axis.set_xlabel(f"mean loss over all {len(losses)} RoIs: {losses.mean():.2f}")


def _show(axis: Any, record: ImageRecord, boxes: Any, labels: Any, captions: Sequence[str]) -> None:
    enlarged = 3
    image = read_image(record.path).repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    colours = [class_colour(label) if label else (255, 255, 255) for label in labels]
    axis.imshow(draw_boxes(image, np.asarray(boxes) * enlarged, captions, colours))


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure = need("matplotlib.figure", "demo").Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        if axis.images:
            axis.set(xticks=[], yticks=[])
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=90)
