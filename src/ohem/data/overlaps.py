"""How much boxes overlap: (A, 4) and (B, 4) xyxy in, each with each, (A, B) float64 out."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def areas(boxes: Floats) -> Floats:
    """(A, 4) -> (A,) square pixels."""
    sizes: Floats = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return sizes


def pairwise_iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union; 0 of two boxes without area."""
    both = _intersections(a, b)
    iou: Floats = both / np.maximum(areas(a)[:, None] + areas(b) - both, 1e-12)
    return iou


def pairwise_inside(a: Floats, b: Floats) -> Floats:
    """The share of each a's area that lies in b."""
    inside: Floats = _intersections(a, b) / np.maximum(areas(a)[:, None], 1e-12)
    return inside


def _intersections(a: Floats, b: Floats) -> Floats:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both: Floats = np.prod(np.maximum(sides, 0), axis=2)
    return both
