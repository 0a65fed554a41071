"""Which RoIs of a mini-batch train. The sampler is the experiment: everything else stays the same.

A sampler takes the candidate RoIs of each image and returns, for each image, the indices of those that train. It owns
no network. Losses come from ``score``, which runs the read-only RoI network over all RoIs when it is called, so a
sampler that does not look at losses pays nothing for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.ops import nms

from ohem.losses import RoiLosses
from ohem.rois import IGNORED, Rois


class Score(Protocol):
    """The read-only pass: one loss for every RoI of every image, without gradient."""

    def __call__(self, *, dropout: bool = True) -> list[RoiLosses]:
        """Losses of all RoIs, with dropout as in training or without."""
        ...


class Sampler(Protocol):
    """Chooses RoIs: candidate RoIs of N images in, N tensors of int64 indices out. Ignored RoIs are never chosen."""

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """The indices of the RoIs of each image that train; ``rng`` is a CPU generator."""
        ...


def checked(chosen: Sequence[Tensor], rois: Sequence[Rois], what: str = "RoI") -> list[Tensor]:
    """What a sampler chose, on the device of the RoIs, once it is known to be a choice.

    Args:
        chosen: what it returned.
        rois: what it was given.
        what: is chosen, for the message.

    Raises:
        ValueError: not one tensor (K,) of int64 indices for each image, or one of no RoI or of an ignored one.
    """
    if not isinstance(chosen, Sequence | Tensor):
        raise ValueError(f"sampler: found a {type(chosen).__name__}; allowed: a list, of one tensor for each image")
    if len(chosen) != len(rois):
        raise ValueError(f"sampler: found {len(chosen)} entries; allowed: {len(rois)}, one for each image")
    allowed, chooses_no_candidate = f"one tensor (K,) of int64 indices of {what}s that are not ignored", []
    for i, (index, image) in enumerate(zip(chosen, rois, strict=True)):
        if not isinstance(index, Tensor):
            raise ValueError(f"sampler, image {i} of the batch: found a {type(index).__name__}; allowed: {allowed}")
        if index.dtype != torch.int64 or index.dim() != 1:
            found = f"{tuple(index.shape)} {str(index.dtype).removeprefix('torch.')}"
            raise ValueError(f"sampler, image {i} of the batch: found {found}; allowed: {allowed}")
        chooses_no_candidate.append(_labels(image, index) < 0)
    if chooses_no_candidate and torch.cat(chooses_no_candidate).any():
        i = next(i for i, bad in enumerate(chooses_no_candidate) if bad.any())
        first = int(chosen[i][chooses_no_candidate[i].to(chosen[i].device)][0])
        ignored = ", which is ignored" if 0 <= first < len(rois[i]) else f" of {len(rois[i])}"
        raise ValueError(f"sampler, image {i} of the batch: found {what} {first}{ignored}; allowed: {allowed}")
    return [index.to(image.labels.device) for index, image in zip(chosen, rois, strict=True)]


def _labels(rois: Rois, index: Tensor) -> Tensor:
    """The labels of these RoIs; that of ignored ones where there is no such RoI."""
    there = (index >= 0) & (index < len(rois))
    return F.pad(rois.labels, (0, 1), value=IGNORED)[index.where(there, len(rois))]


def hard_examples(
    boxes: Tensor,
    losses: Tensor,
    k: int,
    nms_iou: float | None = 0.7,
    groups: Tensor | None = None,
    fill: bool = False,
) -> Tensor:
    """The hardest RoIs, without near-duplicates (paper, section 4.1).

    RoIs are taken in the order of falling loss; one that overlaps a harder survivor by more than ``nms_iou`` is
    dropped; the first k survivors are the mini-batch. Equal losses keep the order in which they were given.

    Args:
        boxes: (R, 4) xyxy.
        losses: (R,) one loss per RoI.
        k: how many to return at most (B/N in the paper).
        nms_iou: overlap above which the easier of two RoIs is dropped; None keeps duplicates.
        groups: (R,) int64; RoIs of different groups never drop each other. None: one group.
        fill: where fewer than k survive, add the hardest of the dropped ones. The paper trains on fewer instead.

    Returns:
        (min(k, survivors),) int64 indices into ``boxes``, hardest first.

    Raises:
        ValueError: a loss is NaN or infinite: it would sort as the hardest example and train the network on nonsense.
            Or k is negative, or there is not one loss for each box.
    """
    if k < 0 or len(losses) != len(boxes):
        raise ValueError(
            f"found k {k} and {len(losses)} losses of {len(boxes)} boxes; allowed: k from 0, as many losses"
        )
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        raise ValueError(f"losses[{first}]: found {float(losses[first])}; allowed: finite numbers")
    order = losses.argsort(descending=True, stable=True)
    if nms_iou is None:
        return order[:k]
    # Only a harder RoI drops another, so the survivors among the hardest few are those few's survivors among all. Few
    # are enough as a rule, and NMS of all, which takes time with the square of their number, is not needed.
    hardest = order[: 4 * k]
    survives = _survives(boxes, hardest, groups, nms_iou)
    while len(hardest) < len(order) and int(survives.sum()) < k:
        hardest = order[: 4 * len(hardest)]
        survives = _survives(boxes, hardest, groups, nms_iou)
    survivors = hardest[survives]
    return torch.cat([survivors, hardest[~survives]])[:k] if fill else survivors[:k]


def _survives(boxes: Tensor, order: Tensor, groups: Tensor | None, nms_iou: float) -> Tensor:
    """Which of the RoIs in ``order`` no earlier survivor of their group overlaps by more than ``nms_iou``; (O,) bool."""
    boxes, groups = boxes[order].float(), None if groups is None else groups[order]
    # Ranks in place of losses: nms works in float32, where two losses of higher precision may be equal.
    hardness = -torch.arange(len(order), dtype=torch.float32, device=order.device)
    survives = torch.zeros_like(order, dtype=torch.bool)
    for members in _split(groups, len(order), order.device):
        survives[members[nms(boxes[members], hardness[members], nms_iou)]] = True
    return survives


def _split(groups: Tensor | None, count: int, device: torch.device) -> list[Tensor]:
    if groups is None:
        return [torch.arange(count, device=device)]
    return [(groups == group).nonzero().squeeze(1) for group in torch.unique(groups)]


@dataclass(frozen=True)
class HardSampler:
    """Online hard example mining: rank all RoIs by their current loss, train on the hardest.

    The defaults are the paper's (section 4). No foreground share and no bg_lo: a class that is neglected gains loss
    until it is chosen.

    Attributes:
        rois_per_image: how many train at most (B/N in the paper).
        nms_iou: overlap above which the easier of two RoIs is dropped; None keeps duplicates.
        nms_per_label: let only RoIs of the same label drop each other, as the authors' code does; the paper ranks all
            RoIs of an image together.
        cap: ``image`` takes rois_per_image from each image (section 4.1); ``batch`` takes N times as many from all images
            together (section 4.2).
        rank_box_loss: rank by class and box loss; False ranks by the class loss alone.
        dropout: leave dropout on in the read-only pass, as the authors' code does.
        fill: where fewer than ``rois_per_image`` survive NMS, add the hardest of the dropped ones; the paper trains on
            fewer.
    """

    rois_per_image: int = 64
    nms_iou: float | None = 0.7
    nms_per_label: bool = False
    cap: Literal["image", "batch"] = "image"
    rank_box_loss: bool = True
    dropout: bool = True
    fill: bool = False

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        if self.nms_iou is not None:
            require_share("nms_iou", self.nms_iou)
        if self.cap not in ("image", "batch"):
            raise ValueError(f"cap: found {self.cap!r}; allowed: image, batch")

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """The hardest RoIs of each image, hardest first; ``rng`` is not used."""
        losses = score(dropout=self.dropout)
        if self.cap == "batch":
            return self._hardest(rois, losses)
        return [self._hardest([image], [loss])[0] for image, loss in zip(rois, losses, strict=True)]

    def _hardest(self, rois: Sequence[Rois], losses: Sequence[RoiLosses]) -> list[Tensor]:
        """Rank the RoIs of these images together; boxes of different images never drop each other."""
        labels = torch.cat([image.labels for image in rois])
        image = torch.cat([torch.full_like(each.labels, i) for i, each in enumerate(rois)])
        index = torch.cat([torch.arange(len(each), device=labels.device) for each in rois])
        candidates = (labels >= 0).nonzero().squeeze(1)
        groups = image * (int(labels.max()) + 1) + labels if self.nms_per_label and len(labels) else image
        ranked_by = torch.cat([loss.total if self.rank_box_loss else loss.cls for loss in losses])
        chosen = candidates[
            hard_examples(
                torch.cat([each.boxes for each in rois])[candidates],
                ranked_by[candidates],
                self.rois_per_image * len(rois),
                self.nms_iou,
                groups[candidates],
                self.fill,
            )
        ]
        return [index[chosen[image[chosen] == i]] for i in range(len(rois))]


@dataclass(frozen=True)
class RandomSampler:
    """Fast R-CNN's heuristic: a fixed share of foreground, the rest background that overlaps an object a little.

    Attributes:
        rois_per_image: how many train (B/N in the paper).
        fg_fraction: at most this share is foreground; background fills the rest. None draws from both alike, the
            ablation of section 3.1.
        bg_lo: background has IoU in [bg_lo, fg threshold).
    """

    rois_per_image: int = 64
    fg_fraction: float | None = 0.25
    bg_lo: float = 0.1

    def __post_init__(self) -> None:
        require_count("rois_per_image", self.rois_per_image)
        if self.fg_fraction is not None:
            require_share("fg_fraction", self.fg_fraction)
        require_share("bg_lo", self.bg_lo)

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """A random choice for each image; ``score`` is not called."""
        return [self._draw(image, rng) for image in rois]

    def _draw(self, rois: Rois, rng: Generator) -> Tensor:
        foreground = (rois.labels > 0).nonzero().squeeze(1)
        background = ((rois.labels == 0) & (rois.max_iou >= self.bg_lo)).nonzero().squeeze(1)
        if self.fg_fraction is None:
            return draw(torch.cat([foreground, background]), self.rois_per_image, rng)
        chosen_fg = draw(foreground, round(self.fg_fraction * self.rois_per_image), rng)
        chosen_bg = draw(background, self.rois_per_image - len(chosen_fg), rng)
        return torch.cat([chosen_fg, chosen_bg])


@dataclass(frozen=True)
class AllSampler:
    """Every RoI trains (section 5.4): the easy ones have little loss and should not matter."""

    def __call__(self, rois: list[Rois], score: Score, rng: Generator) -> list[Tensor]:
        """All RoIs that are not ignored; neither ``score`` nor ``rng`` is used."""
        return [(image.labels >= 0).nonzero().squeeze(1) for image in rois]


def ranks_together(sampler: Sampler | None) -> bool:
    """Whether the sampler takes the hardest of a batch, wherever they are, and not so many of each image."""
    return getattr(sampler, "cap", "image") == "batch"


def ranks_by_box_loss(sampler: Sampler) -> bool:
    """Whether the sampler ranks by class and box loss together, and not by the class loss alone."""
    return bool(getattr(sampler, "rank_box_loss", True))


def require_count(name: str, value: int) -> None:
    """Raise ValueError for a setting that is no whole number from 1."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name}: found {value!r}; allowed: a whole number, 1 or more")
    if value < 1:
        raise ValueError(f"{name}: found {value}; allowed: 1 or more")


def require_share(name: str, value: float) -> None:
    """Raise ValueError for a setting that is no share of a whole."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: found {value}; allowed: 0 to 1")


def draw(indices: Tensor, k: int, rng: Generator) -> Tensor:
    """At most k of the indices, at random and without repetition."""
    return indices[torch.randperm(len(indices), generator=rng)[:k].to(indices.device)]
