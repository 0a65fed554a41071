"""Losses that weigh RoIs instead of choosing them: the other answer to too many easy ones. Made for ``AllSampler``.

They change what is trained on, between the losses of the chosen RoIs and :func:`ohem.losses.mean_losses`. Ranking, and
the loss over all RoIs that the log tells, stay the plain loss. The softmax log loss is ``-log p_t``, so the probability
of the right class is known from the loss itself. Every image is weighed by itself: the gradient of a batch is that of
its images accumulated.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ohem.losses import RoiLosses
from ohem.rois import Rois


class Reweighting(Protocol):
    """The chosen RoIs of N images and their losses in, as many losses out, to be averaged over an image's RoIs."""

    def __call__(self, losses: list[RoiLosses], rois: list[Rois]) -> list[RoiLosses]:
        """New losses, differentiable with respect to the given ones, one entry an image."""
        ...


@dataclass(frozen=True)
class LogLoss:
    """The paper's loss, as it is."""

    def __call__(self, losses: list[RoiLosses], rois: list[Rois]) -> list[RoiLosses]:
        """The losses that were given."""
        return losses


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss (arXiv 1708.02002, equation 5): ``-alpha_t (1 - p_t) ** gamma log p_t``.

    Class and box loss of an image are divided by its number of foreground RoIs (at least 1), as in its paper. There it
    is a sigmoid for each class; here it is the softmax's ``p_t``, which is the same for one class and background. Its
    prior, a bias of the last layer with which training starts out at a foreground probability of 0.01, is not set.

    Attributes:
        gamma: how much easy RoIs are weighed down; 0: not.
        alpha: weight of foreground; background has 1 - alpha. None weighs both by 1.
    """

    gamma: float = 2.0
    alpha: float | None = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma: found {self.gamma}; allowed: 0 or more")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: found {self.alpha}; allowed: 0 to 1, or none")

    def __call__(self, losses: list[RoiLosses], rois: list[Rois]) -> list[RoiLosses]:
        """Focal losses; the box losses change in the normaliser only."""
        return [self._of_image(loss, image) for loss, image in zip(losses, rois, strict=True)]

    def _of_image(self, losses: RoiLosses, rois: Rois) -> RoiLosses:
        # The slope of x ** gamma is infinite at 0 where gamma < 1, and times a loss of 0 no number.
        wrong = (-torch.expm1(-losses.cls)).clamp(min=torch.finfo(losses.cls.dtype).tiny)
        focal = wrong**self.gamma * losses.cls
        if self.alpha is not None:
            focal = torch.where(rois.labels > 0, self.alpha * focal, (1 - self.alpha) * focal)
        scale = _mean_to_foreground_mean(rois)
        return RoiLosses(scale * focal, scale * losses.box)


@dataclass(frozen=True)
class GradientHarmonized:
    """GHM-C (arXiv 1811.05181, section 3): RoIs whose class gradients have a common size count less.

    The size of a RoI's gradient is ``g = 1 - p_t``. It is weighed by ``N / (M R)``: N RoIs, of which R have their g in
    the same one of ``bins`` equal intervals of [0, 1], and M intervals that are not empty, as in the authors' code (the
    paper has ``bins`` in place of M). Each of these intervals then counts alike, the crowd of easy RoIs as well as the
    very hard ones, which may be wrong annotations. The weights are constants to the gradient.

    Departures: the softmax's ``p_t`` in place of a sigmoid for each class; counts of one image; no moving average of
    the counts over the iterations (momentum). GHM-R, its box loss, is not implemented: box losses are the plain ones,
    divided by the number of foreground RoIs (at least 1) as in single-stage detectors.

    Attributes:
        bins: intervals of [0, 1] in which gradients are counted.
    """

    bins: int = 30

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins: found {self.bins}; allowed: 1 or more")

    def __call__(self, losses: list[RoiLosses], rois: list[Rois]) -> list[RoiLosses]:
        """Harmonized class losses, and box losses with another normaliser."""
        return [
            RoiLosses(self._weights(loss.cls.detach(), image) * loss.cls, _mean_to_foreground_mean(image) * loss.box)
            for loss, image in zip(losses, rois, strict=True)
        ]

    def _weights(self, cls: Tensor, rois: Rois) -> Tensor:
        size = -torch.expm1(-cls)
        interval = (size * self.bins).long().clamp(max=self.bins - 1)
        counted = rois.labels >= 0
        number = torch.bincount(interval[counted], minlength=self.bins)
        weights = counted.sum() / (number.count_nonzero() * number[interval])
        return torch.where(counted, weights, 0.0).to(cls.dtype)


def _mean_to_foreground_mean(rois: Rois) -> float:
    """What turns a mean over these RoIs into a sum divided by the number of foreground RoIs."""
    return len(rois) / max(int((rois.labels > 0).sum()), 1)
