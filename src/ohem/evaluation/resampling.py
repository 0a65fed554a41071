"""How sure an average precision is, given the test images: the bootstrap over images (Efron, 1979).

Drawing the same images for two detectors gives the interval of their difference. It knows nothing of the chance in
training: for that there are seeds.
"""

import numpy as np
from numpy.typing import NDArray

from ohem.evaluation.average_precision import RECALL_LEVELS, ApMethod


def draw_images(images: int, draws: int, seed: int = 0) -> NDArray[np.int64]:
    """(draws, images) how often each image is in each draw of as many images, with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def resampled_ap(
    images: NDArray[np.int64],
    right: NDArray[np.bool_],
    gt_images: NDArray[np.int64],
    weights: NDArray[np.int64],
    method: ApMethod = "voc07",
) -> NDArray[np.float64]:
    """Average precision of one class in each draw.

    Args:
        images: (D,) the image of each counted detection (right or a false positive), by falling score.
        right: (D,) true positives.
        gt_images: (G,) the image of each object to find.
        weights: (B, N) of :func:`draw_images`.
        method: see :data:`ohem.evaluation.average_precision.ApMethod`.

    Returns:
        (B,) float64 in [0, 1], nan in a draw without an object to find.
    """
    objects = weights[:, gt_images].sum(axis=1, keepdims=True).astype(np.float64)
    objects[objects == 0] = np.nan
    each = weights[:, images]
    found = np.cumsum(each * right, axis=1)
    precision = found / np.maximum(np.cumsum(each, axis=1), 1)
    recall = found / objects
    if method == "area":
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        ap: NDArray[np.float64] = np.sum(np.diff(recall, axis=1, prepend=0.0) * envelope, axis=1)
    else:
        best = [np.where(recall >= level, precision, 0.0).max(axis=1, initial=0.0) for level in RECALL_LEVELS]
        ap = np.mean(best, axis=0)
    return np.where(np.isnan(objects[:, 0]), np.nan, ap)
