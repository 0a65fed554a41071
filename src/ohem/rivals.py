"""Other published ways to choose the RoIs that train, behind the same seam as OHEM, so that they can be compared."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ohem.losses import RoiLosses
from ohem.rois import Rois
from ohem.samplers import Score, draw, hard_examples, require_count, require_share


@dataclass(frozen=True)
class IoUBalancedSampler:
    """Libra R-CNN's IoU-balanced sampling (arXiv 1904.02701, section 3.1): hard background without looking at losses.

    Random background hardly overlaps any object, while most hard background overlaps one a little. So background is
    drawn in equal numbers from ``bins`` equal intervals of IoU. An interval that holds too few gives all it has, and
    what is then missing is drawn from all remaining background alike. Foreground is drawn at random.

    MMDetection's implementation divides [0, greatest IoU of any RoI], which with the annotated boxes among the
    candidates is [0, 1]: of three intervals the last holds no background, and the second only in its lower half. Here
    the intervals end where background ends. The paper's balanced sampling of foreground over the objects is not done.

    Attributes:
        rois_per_image: how many train.
        fg_fraction: at most this share is foreground; background fills the rest.
        bins: intervals of IoU (K in the paper).
        bg_hi: where the last interval ends: the detector's ``fg_iou``. Background with a higher IoU, should there be
            any, belongs to the last interval.
    """

    rois_per_image: int = 64
    fg_fraction: float = 0.25
    bins: int = 3
    bg_hi: float = 0.5

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        require_share("fg_fraction", self.fg_fraction)
        require_count("bins", self.bins)
        if not 0 < self.bg_hi <= 1:
            raise ValueError(f"bg_hi: found {self.bg_hi}; allowed: above 0, to 1")

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """A random choice for each image; ``score`` is not called."""
        return [self._draw(image, rng) for image in rois]

    def _draw(self, rois: Rois, rng: Generator) -> Tensor:
        foreground = (rois.labels > 0).nonzero().squeeze(1)
        background = (rois.labels == 0).nonzero().squeeze(1)
        chosen_fg = draw(foreground, round(self.fg_fraction * self.rois_per_image), rng)
        wanted = self.rois_per_image - len(chosen_fg)
        # In random order the first few of an interval are a random few of it.
        shuffled = draw(background, len(background), rng)
        interval = (rois.max_iou[shuffled] / self.bg_hi * self.bins).long().clamp(max=self.bins - 1)
        return torch.cat([chosen_fg, shuffled[_by_quota(interval, self.bins, wanted)]])


@dataclass(frozen=True)
class RankSampler:
    """Online batch selection (Loshchilov and Hutter, arXiv 1511.06343): the harder, the likelier.

    RoIs are ranked by their current loss, hardest first, and drawn with a probability that falls exponentially with
    the rank: of R RoIs the one of rank r = 0 .. R - 1 has the weight ``pressure ** (-r / (R - 1))``. Every RoI can
    train, so a wrong annotation does not train in every step, and no near-duplicates need to be removed.

    Departures: the paper ranks a training set by the latest known losses, which may be old, and here all RoIs of an
    image by their losses now. It lets the pressure (its s_e) fall during training in some experiments; here it stays.
    Here nothing is drawn twice.

    Attributes:
        rois_per_image: how many train.
        pressure: the weight of the hardest RoI over that of the easiest; 1 draws all alike.
        dropout: leave dropout on in the read-only pass.
    """

    rois_per_image: int = 64
    pressure: float = 100.0
    dropout: bool = True

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        if not 1 <= self.pressure < math.inf:
            raise ValueError(f"pressure: found {self.pressure}; allowed: 1 or more")

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """A choice for each image, in the order in which it was drawn."""
        losses = score(dropout=self.dropout)
        return [self._draw(image, loss, rng) for image, loss in zip(rois, losses, strict=True)]

    def _draw(self, rois: Rois, losses: RoiLosses, rng: Generator) -> Tensor:
        ranked = _ranked(rois, losses.total, nms_iou=None)
        rank = torch.arange(len(ranked), dtype=torch.float64)
        log_weight = -math.log(self.pressure) * rank / max(len(ranked) - 1, 1)
        # Waiting times with these weights as rates: who comes first was drawn first, and those behind it are a draw
        # among themselves (Efraimidis and Spirakis 2006).
        waiting = torch.empty(len(ranked), dtype=torch.float64).exponential_(generator=rng)
        order = (waiting.log() - log_weight).argsort()
        return ranked[order[: self.rois_per_image].to(ranked.device)]


@dataclass(frozen=True)
class StratifiedSampler:
    """S-OHEM (arXiv 1705.02233) as we read it: hard examples of class and of box, each with a place of their own.

    Its idea is that OHEM's sum of class and box loss lets whichever is larger at the time decide, and that hard
    examples should instead be drawn from strata of RoIs with alike proportions of the two. **We knew its abstract
    only; what follows is our reading.** RoIs are ranked by total loss and near-duplicates dropped, as in OHEM. The
    survivors are divided into ``strata`` equal intervals of the box loss's share of the total loss. Each stratum gives
    its hardest, ``rois_per_image // strata`` of them; places left are for the hardest of the rest. The paper lets the
    distribution over the strata follow the training; here it stays equal.

    Background has no box loss and so is all in the first stratum, together with foreground of which the class is wrong
    and the box is right.

    Attributes:
        rois_per_image: how many train at most.
        strata: intervals of the share.
        nms_iou: overlap above which the easier of two RoIs is dropped; None keeps duplicates.
        dropout: leave dropout on in the read-only pass.
    """

    rois_per_image: int = 64
    strata: int = 4
    nms_iou: float | None = 0.7
    dropout: bool = True

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        require_count("strata", self.strata)
        if self.nms_iou is not None:
            require_share("nms_iou", self.nms_iou)

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """The choice of each image, hardest first; ``rng`` is not used."""
        losses = score(dropout=self.dropout)
        return [self._hardest(image, loss) for image, loss in zip(rois, losses, strict=True)]

    def _hardest(self, rois: Rois, losses: RoiLosses) -> Tensor:
        ranked = _ranked(rois, losses.total, self.nms_iou)
        box, total = losses.box[ranked], losses.total[ranked]
        share = torch.where(total > 0, box / total, torch.zeros_like(total))
        stratum = (share * self.strata).long().clamp(max=self.strata - 1)
        return ranked[_by_quota(stratum, self.strata, self.rois_per_image)]


@dataclass(frozen=True)
class QuotaSampler:
    """What MMDetection calls OHEM (its ``OHEMSampler``): hard examples under Fast R-CNN's quota.

    Ranked by the class loss alone, no NMS, and the foreground share is kept: the hardest foreground up to its share,
    and the hardest background for the rest. Compare with :class:`ohem.samplers.HardSampler` to see what the paper's
    sampler is worth beyond it. MMDetection rounds the share down, here it is rounded as in
    :class:`ohem.samplers.RandomSampler`.

    Attributes:
        rois_per_image: how many train.
        fg_fraction: at most this share is foreground; background fills the rest.
        dropout: leave dropout on in the read-only pass.
    """

    rois_per_image: int = 64
    fg_fraction: float = 0.25
    dropout: bool = True

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        require_share("fg_fraction", self.fg_fraction)

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """The choice of each image, foreground and then background, each hardest first; ``rng`` is not used."""
        losses = score(dropout=self.dropout)
        return [self._hardest(image, loss) for image, loss in zip(rois, losses, strict=True)]

    def _hardest(self, rois: Rois, losses: RoiLosses) -> Tensor:
        ranked = _ranked(rois, losses.cls, nms_iou=None)
        labels = rois.labels[ranked]
        chosen_fg = ranked[labels > 0][: round(self.fg_fraction * self.rois_per_image)]
        return torch.cat([chosen_fg, ranked[labels == 0][: self.rois_per_image - len(chosen_fg)]])


def _ranked(rois: Rois, losses: Tensor, nms_iou: float | None) -> Tensor:
    """The RoIs of an image that are not ignored, hardest first, with near-duplicates dropped unless None."""
    candidates = (rois.labels >= 0).nonzero().squeeze(1)
    return candidates[hard_examples(rois.boxes[candidates], losses[candidates], len(candidates), nms_iou)]


def _by_quota(strata: Tensor, count: int, k: int) -> Tensor:
    """Take k of a list: of each stratum the first ``k // count``, and for the places left the first of the rest.

    Args:
        strata: (C,) int64 in [0, count), in the order of the list.
        count: number of strata.
        k: how many.

    Returns:
        (min(k, C),) int64 positions in the list, rising.
    """
    place = F.one_hot(strata, count).cumsum(dim=0).gather(1, strata[:, None]).squeeze(1)  # in its stratum, from 1
    within = place <= k // count
    taken = torch.cat([within.nonzero(), (~within).nonzero()]).squeeze(1)[:k]
    return taken.sort().values
