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
from ohem.samplers import require_count


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
    """GHM (arXiv 1811.05181, section 3): RoIs whose gradients have a common size count less.

    GHM-C, the class loss: the size of a RoI's gradient is ``g = 1 - p_t``. It is weighed by ``N / (M R)``: N RoIs, of
    which R have their g in the same one of ``bins`` equal intervals of [0, 1], and M intervals that are not empty, as
    in the authors' code (the paper has ``bins`` in place of M). Each of these intervals then counts alike, the crowd of
    easy RoIs as well as the very hard ones, which may be wrong annotations. The weights are constants to the gradient.

    GHM-R, the box loss: each delta that is wrong by d costs ``sqrt(d^2 + mu^2) - mu`` ("authentic smooth-L1"), whose
    gradient has the size ``|d| / sqrt(d^2 + mu^2)`` in [0, 1), so that far outliers are in one interval with each other
    alone. The deltas of an image's foreground RoIs are weighed as the RoIs are for the classes.

    Departures: the softmax's ``p_t`` in place of a sigmoid for each class; counts of one image; no moving average of
    the counts over the iterations (momentum). The box loss is summed over the four deltas and divided by the number of
    foreground RoIs (at least 1), as in single-stage detectors; the authors' weight of it (10) is left out and ``mu``
    is ten times theirs, since deltas here are normalised, which makes them ten times as large in x and y.

    Attributes:
        bins: intervals of [0, 1] in which gradients of classes are counted.
        box_bins: intervals in which gradients of deltas are counted; None: GHM-C beside the plain box loss.
        mu: where the box loss turns from square to line, in normalised deltas.
    """

    bins: int = 30
    box_bins: int | None = 10
    mu: float = 0.2

    def __post_init__(self) -> None:
        require_count("bins", self.bins)
        if self.box_bins is not None:
            require_count("box_bins", self.box_bins)
        if not 0 < self.mu < float("inf"):
            raise ValueError(f"mu: found {self.mu}; allowed: more than 0")

    def __call__(self, losses: list[RoiLosses], rois: list[Rois]) -> list[RoiLosses]:
        """Harmonized losses.

        Raises:
            ValueError: GHM-R, and the losses do not say by how much the deltas are wrong.
        """
        return [self._of_image(loss, image) for loss, image in zip(losses, rois, strict=True)]

    def _of_image(self, losses: RoiLosses, rois: Rois) -> RoiLosses:
        size = -torch.expm1(-losses.cls.detach())
        cls = _harmonized(size, rois.labels >= 0, self.bins) * losses.cls
        box = losses.box if self.box_bins is None else self._box(losses.differences, rois, self.box_bins)
        return RoiLosses(cls, _mean_to_foreground_mean(rois) * box)

    def _box(self, differences: Tensor | None, rois: Rois, bins: int) -> Tensor:
        if differences is None:
            raise ValueError("GHM-R needs the differences of the deltas; found losses alone")
        length = (differences**2 + self.mu**2).sqrt()
        size = (differences.detach() / length.detach()).abs()
        foreground = (rois.labels > 0)[:, None].expand_as(size)
        return (_harmonized(size, foreground, bins) * (length - self.mu)).sum(dim=1)


def _harmonized(size: Tensor, counted: Tensor, bins: int) -> Tensor:
    """The weight of each gradient of that size in [0, 1]; 0 for what is not counted."""
    interval = (size * bins).long().clamp(max=bins - 1)
    number = torch.bincount(interval[counted], minlength=bins)
    weights = counted.sum() / (number.count_nonzero() * number[interval])
    return torch.where(counted, weights, 0.0).to(size.dtype)


def _mean_to_foreground_mean(rois: Rois) -> float:
    """What turns a mean over these RoIs into a sum divided by the number of foreground RoIs."""
    return len(rois) / max(int((rois.labels > 0).sum()), 1)
