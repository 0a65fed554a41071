"""What a RoI costs. The same function ranks RoIs and trains on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ohem.errors import OhemError
from ohem.rois import Rois

TORCHVISION_BETA = 1 / 9
"""Of smooth-L1 in torchvision's ``fastrcnn_loss`` and in its region proposal network."""


class NonFiniteLossError(OhemError):
    """A RoI's loss is NaN or infinite. Training on it, or ranking by it, would ruin the weights.

    Attributes:
        image: position of the image in the batch.
        fault: the RoI, the term and what was found.
    """

    def __init__(self, image: int, roi: int, term: str, value: float, box: list[float], what: str = "RoI") -> None:
        self.image = image
        self.fault = f"{what} {roi} {box}: {term} loss: found {value}; allowed: finite numbers"
        super().__init__(f"image {image} of the batch, {self.fault}")


@dataclass
class RoiLosses:
    """One loss per RoI of one image, in its two parts. ``losses[index]`` takes some of them.

    Attributes:
        cls: (R,) softmax log loss; 0 for ignored RoIs.
        box: (R,) smooth-L1 loss summed over the four deltas; 0 for all but foreground RoIs.
        differences: (R, 4) predicted less wanted deltas; 0 for all but foreground RoIs. None where only losses are
            known.
    """

    cls: Tensor
    box: Tensor
    differences: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """(R,) the loss by which the paper ranks: class and box loss together."""
        return self.cls + self.box

    def __getitem__(self, index: Tensor | slice) -> "RoiLosses":
        differences = None if self.differences is None else self.differences[index]
        return RoiLosses(self.cls[index], self.box[index], differences)


def roi_losses(logits: Tensor, deltas: Tensor, rois: Rois, *, beta: float = 1.0) -> RoiLosses:
    """The loss of every RoI: softmax log loss, and smooth-L1 box loss where it is foreground (paper, section 3.1).

    Args:
        logits: (R, C + 1) class scores, background first.
        deltas: (R, 4 * (C + 1)) class-specific normalised deltas, or (R, 4) class-agnostic ones; or those of the
            foreground RoIs alone.
        rois: what the RoIs are to be.
        beta: where smooth-L1 turns from square to line; 1 in the paper's code (sigma 1), 1/9 in torchvision.

    Returns:
        Losses in float32 at least, whatever precision the scores came in.
    """
    logits = at_least_float32(logits)
    cls = F.cross_entropy(logits, rois.labels, ignore_index=-1, reduction="none")
    foreground = (rois.labels > 0).nonzero().squeeze(1)
    if len(deltas) == len(rois):
        deltas = deltas[foreground]
    per_class = deltas.view(len(foreground), deltas.shape[1] // 4, 4)
    row = rois.labels[foreground] if per_class.shape[1] > 1 else torch.zeros_like(foreground)
    chosen = per_class[torch.arange(len(foreground), device=row.device), row]
    wrong = chosen.to(logits.dtype) - rois.deltas[foreground].to(logits.dtype)
    differences = wrong.new_zeros(len(rois), 4).index_copy(0, foreground, wrong)
    box = F.smooth_l1_loss(differences, torch.zeros_like(differences), beta=beta, reduction="none").sum(dim=1)
    return RoiLosses(cls, box, differences)


def anchor_losses(objectness: Tensor, deltas: Tensor, anchors: Rois, *, beta: float = TORCHVISION_BETA) -> RoiLosses:
    """The loss of every anchor of a region proposal network (Faster R-CNN, arXiv 1506.01497, equation 1).

    Binary cross entropy of its objectness, and smooth-L1 of its deltas where it is on an object.

    Args:
        objectness: (A,) logits.
        deltas: (A, 4).
        anchors: what they are to be: label 1 for an object.
        beta: see :func:`roi_losses`.

    Returns:
        Losses in float32 at least.
    """
    label = anchors.labels.to(anchors.deltas.dtype)
    cls = F.binary_cross_entropy_with_logits(at_least_float32(objectness), label.clamp(min=0), reduction="none")
    box = F.smooth_l1_loss(at_least_float32(deltas), anchors.deltas, beta=beta, reduction="none").sum(dim=1)
    return RoiLosses(torch.where(label >= 0, cls, 0.0), torch.where(label > 0, box, 0.0))


def mean_losses(losses: Sequence[RoiLosses], over: Literal["image", "batch"] = "image") -> RoiLosses:
    """The training loss of the selected RoIs: both parts divided by the number of RoIs, not of foreground RoIs.

    Args:
        losses: the selected RoIs' losses, one entry an image.
        over: "image" takes the mean within each image and then over the images, as the authors' gradient
            accumulation does, so an image with few survivors weighs as much as another. "batch" takes one mean over
            all selected RoIs, for samplers that choose over the whole batch.

    Returns:
        Scalars ``cls`` and ``box``. An image without selected RoIs adds 0.
    """
    if over == "batch":
        count = max(sum(len(image.cls) for image in losses), 1)
        return RoiLosses(sum_of([i.cls.sum() for i in losses]) / count, sum_of([i.box.sum() for i in losses]) / count)
    cls = [image.cls.sum() / max(len(image.cls), 1) for image in losses]
    box = [image.box.sum() / max(len(image.box), 1) for image in losses]
    return RoiLosses(sum_of(cls) / len(losses), sum_of(box) / len(losses))


def require_finite(losses: Sequence[RoiLosses], rois: Sequence[Rois], what: str = "RoI") -> None:
    """Raise :class:`NonFiniteLossError` for the first loss that is NaN or infinite; ``what`` the RoIs are called."""
    for image, (each, boxes) in enumerate(zip(losses, rois, strict=True)):
        for term, values in (("class", each.cls), ("box", each.box)):
            if not values.isfinite().all():
                roi = int((~values.isfinite()).nonzero()[0])
                raise NonFiniteLossError(image, roi, term, values[roi].item(), boxes.boxes[roi].tolist(), what)


def at_least_float32(values: Tensor) -> Tensor:
    """The values, in float32 where automatic casting made them less."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Sum of scalar tensors."""
    return torch.stack(list(terms)).sum()
