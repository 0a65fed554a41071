"""Box geometry: the regression targets of R-CNN and their normalisation.

Boxes are xyxy, float, in pixels, 0-based and half-open (``x2 - x1`` is the width). On VOC's inclusive boxes the paper's
code writes ``x2 - x1 + 1``; after the conversion of :mod:`ohem.data.dataset` that is the same number.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest log size ratio that decoding believes, so that an untrained network cannot overflow ``exp``."""


def encode_deltas(boxes: Tensor, targets: Tensor) -> Tensor:
    """Regression targets that move ``boxes`` onto ``targets`` (Fast R-CNN, section 2.3).

    Args:
        boxes: (R, 4) xyxy with positive width and height.
        targets: (R, 4) xyxy with positive width and height.

    Returns:
        (R, 4): shift of the centre in units of the box's size (dx, dy), log ratio of the sizes (dw, dh).
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre, target_centre = boxes[:, :2] + size / 2, targets[:, :2] + target_size / 2
    return torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], dim=1)


def decode_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Move boxes by deltas; the inverse of :func:`encode_deltas`.

    Args:
        boxes: (R, 4) xyxy.
        deltas: (R, 4), or (R, K, 4) to move each box in K ways. Log ratios above log(1000/16) are cut there.

    Returns:
        Boxes xyxy in the shape of ``deltas``.
    """
    boxes = boxes.view(-1, *[1] * (deltas.dim() - 2), 4)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + deltas[..., :2] * size
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO)) * size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


@dataclass(frozen=True)
class DeltaStats:
    """Mean and standard deviation by which deltas are normalised, class by class.

    Attributes:
        mean: (C + 1, 4) float32; row 0 (background) is never used.
        std: (C + 1, 4) float32, positive.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fixed(cls, num_classes: int, std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)) -> "DeltaStats":
        """The same for every class: mean 0, ``std`` 0.1, 0.1, 0.2, 0.2 as later detectors fixed it."""
        return cls(torch.zeros(num_classes + 1, 4), torch.tensor(std).repeat(num_classes + 1, 1))

    @classmethod
    def empirical(cls, num_classes: int, examples: Iterable[tuple[Tensor, Tensor]]) -> "DeltaStats":
        """Per-class statistics over the foreground RoIs of a training set, as the paper's code takes them.

        Args:
            num_classes: C, without background.
            examples: per image, raw deltas (F, 4) and labels (F,) of its foreground RoIs.

        Returns:
            The statistics; a class with fewer than two RoIs, or without spread in a coordinate, keeps :meth:`fixed`.
        """
        count = torch.zeros(num_classes + 1, 1, dtype=torch.float64)
        total = torch.zeros(num_classes + 1, 4, dtype=torch.float64)
        squares = torch.zeros(num_classes + 1, 4, dtype=torch.float64)
        for deltas, labels in examples:
            deltas = deltas.double()
            count.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
            total.index_add_(0, labels, deltas)
            squares.index_add_(0, labels, deltas**2)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        fixed = cls.fixed(num_classes)
        known = (count >= 2) & (std > 1e-6).all(1, keepdim=True)
        return cls(torch.where(known, mean.float(), fixed.mean), torch.where(known, std.float(), fixed.std))

    def normalize(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Deltas (R, 4) of classes ``labels`` (R,) in units of their class's statistics."""
        return (deltas - self.mean.to(deltas)[labels]) / self.std.to(deltas)[labels]
