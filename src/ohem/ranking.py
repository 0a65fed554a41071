"""How the read-only pass finds the hard RoIs: exactly, or at a fraction of the cost.

The exact pass runs all RoIs through the head. :class:`HalfRanking` runs it in half precision and, where it is told to,
those that may be chosen once more in full. The others run a share of the RoIs alone, those that may be hard:
:class:`LowRankRanking` lets a cheap copy of the head find them, :class:`RememberedRanking` the losses that they had when
their image was last seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ohem.models.products import FloatType, linear
from ohem.models.roi_head import RoIHead
from ohem.samplers import require_count, require_share

FITTED_ROIS = 1024
"""RoIs from which a copy of the head is made."""


@dataclass(frozen=True)
class ExactRanking:
    """The loss of every RoI, as in the paper."""


@dataclass(frozen=True)
class HalfRanking:
    """The loss of every RoI, by matrix products in half precision; RoI pooling and losses stay in float32.

    Attributes:
        precision: bfloat16 for GPUs since Ampere and CPUs that know it (AVX512-BF16, AMX); float16 for other GPUs. An x86
            CPU without it computes the same in the time of float32.
        rescored: ``choice``: all RoIs that the sampler may choose are then scored in float32, so that the choice is the exact
            one without dropout, see :meth:`ohem.models.fast_rcnn.FastRCNN.rank`. None: none.
    """

    precision: Literal["bfloat16", "float16"] = "bfloat16"
    rescored: Literal["choice"] | None = None


@dataclass(frozen=True)
class LowRankRanking:
    """Rank by a copy of the head with thin layers, then the share that looks hardest by the head itself.

    The outputs of each fully connected layer are projected on their principal components over some RoIs, as truncated
    SVD does for Fast R-CNN's detection (its section 3.1). The copy is made anew every so many passes, in a pass that is
    exact. All foreground RoIs are ranked exactly. The losses of the others are those of the copy, which is also
    what the log then tells as the loss over all RoIs.

    Attributes:
        rank: principal components kept of each layer.
        share: of an image's RoIs that the head itself scores, besides foreground.
        refresh: passes after which the copy is made anew; a step is one, or with ``accumulate`` one an image.
        precision: of the matrix products, as in :class:`HalfRanking`; the copy is made in float32.
    """

    rank: int = 256
    share: float = 0.2
    refresh: int = 50
    precision: FloatType = "float32"

    def __post_init__(self) -> None:
        require_count("rank", self.rank)
        require_share("share", self.share)
        require_count("refresh", self.refresh)


@dataclass(frozen=True)
class RememberedRanking:
    """Rank the share of an image's RoIs that had the greatest class losses when last seen, and all foreground.

    The losses of the others are the remembered ones. A RoI whose loss falls makes room for the next, so a loss that is
    out of date does not stay so. The first time an image is seen, and every ``refresh`` times from then on, all its
    RoIs are scored: worth it for trainings of many epochs. Memory holds 2 bytes a RoI of the data set.

    Attributes:
        share: of an image's RoIs that the head scores, besides foreground.
        refresh: times that an image is seen until all of its RoIs are scored again.
        precision: of the matrix products, as in :class:`HalfRanking`.
    """

    share: float = 0.25
    refresh: int = 8
    precision: FloatType = "float32"

    def __post_init__(self) -> None:
        require_share("share", self.share)
        require_count("refresh", self.refresh)


Ranking = ExactRanking | HalfRanking | LowRankRanking | RememberedRanking


def precision_of(ranking: Ranking) -> FloatType:
    """The type of the matrix products that rank."""
    return "float32" if isinstance(ranking, ExactRanking) else ranking.precision


class ThinHead(nn.Module):
    """The copy. Its state belongs to a run, like the optimizer's, and to no detector.

    Args:
        head: copied by :meth:`fit`.
        settings: see :class:`LowRankRanking`.
    """

    passes: Tensor

    def __init__(self, head: RoIHead, settings: LowRankRanking) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for layer in (cast(nn.Linear, layer) for layer in head.fc):
            rank = min(settings.rank, layer.out_features)
            self.down.append(nn.Linear(layer.in_features, rank))
            self.up.append(nn.Linear(rank, layer.out_features))
        self.requires_grad_(False)

    def is_due(self) -> bool:
        """Whether this pass is to be exact, for the copy to be made anew of it."""
        return int(self.passes) % self.settings.refresh == 0

    @torch.no_grad()
    def learn(self, head: RoIHead, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> None:
        """Count a pass; where it was due, copy the head as it is now, dropout aside, from what it makes of some RoIs.

        A pass with fewer RoIs than components tells too little: it is not counted, and the next is due.

        Args:
            head: with the layers that this was made for.
            features: (1, C, H, W), one map an image.
            boxes: (R, 4) of each image.
        """
        if self.is_due():
            if sum(len(image) for image in boxes) < max(down.out_features for down in self._downs()):
                return
            with torch.autocast(features[0].device.type, enabled=False):
                self._fit(head, features, boxes)
        self.passes += 1

    def _downs(self) -> list[nn.Linear]:
        return [cast(nn.Linear, down) for down in self.down]

    def _fit(self, head: RoIHead, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> None:
        wanted = max(FITTED_ROIS, *(down.out_features for down in self._downs()))
        some = [image[:: max(1, len(boxes) * len(image) // wanted)] for image in boxes]
        pooled = [head.pool_rois(feature, image).flatten(1) for feature, image in zip(features, some, strict=True)]
        values = torch.cat(pooled)
        for layer, down, up in zip(head.fc, self.down, self.up, strict=True):
            layer, down, up = cast(nn.Linear, layer), cast(nn.Linear, down), cast(nn.Linear, up)
            outputs = linear(layer, values)
            mean = outputs.mean(dim=0)
            kept = min(down.out_features, len(outputs))
            axes = torch.zeros_like(up.weight)
            axes[:, :kept] = torch.pca_lowrank(outputs, kept)[2]
            torch.mm(axes.t(), layer.weight, out=down.weight)
            down.bias.copy_(axes.t() @ (layer.bias - mean))
            up.weight.copy_(axes)
            up.bias.copy_(mean)
            values = outputs.relu_()

    def hidden_of_many(self, head: RoIHead, features: Tensor, boxes: Tensor) -> Tensor:
        """About what :meth:`ohem.models.roi_head.RoIHead.hidden_of_many` gives without dropout; arguments as there."""
        hidden = head.pooled_products(features, boxes, cast(nn.Linear, self.down[0]))
        for i, up in enumerate(self.up):
            hidden = linear(up, hidden if i == 0 else linear(self.down[i], hidden)).relu_()
        return hidden


class LossMemory(nn.Module):
    """What the RoIs of each image cost when last seen. Its state belongs to a run, and to no detector.

    Args:
        settings: see :class:`RememberedRanking`.
    """

    def __init__(self, settings: RememberedRanking) -> None:
        super().__init__()
        self.settings = settings
        self._seen: dict[int, int] = {}
        self._losses: dict[int, Tensor] = {}

    def recall(self, image: int, count: int) -> Tensor | None:
        """Class losses (R,) float32 of the image's RoIs; None where all are to be scored.

        Args:
            image: its number.
            count: R.
        """
        losses = self._losses.get(image)
        due = losses is None or len(losses) != count or self._seen[image] % self.settings.refresh == 0
        return None if due else cast(Tensor, losses).float()

    def keep(self, image: int, losses: Tensor) -> None:
        """Remember class losses (R,) in float16, what is larger than its numbers as the largest; count the image as seen."""
        self._seen[image] = self._seen.get(image, 0) + 1
        self._losses[image] = losses.cpu().clamp(max=torch.finfo(torch.float16).max).half()

    def get_extra_state(self) -> dict[str, Tensor]:
        """For ``state_dict``: images, times seen, and losses one behind the other."""
        losses = list(self._losses.values())
        return {
            "images": torch.tensor(list(self._losses), dtype=torch.int64),
            "seen": torch.tensor([self._seen[image] for image in self._losses], dtype=torch.int64),
            "counts": torch.tensor([len(each) for each in losses], dtype=torch.int64),
            "losses": torch.cat(losses) if losses else torch.zeros(0, dtype=torch.float16),
        }

    def set_extra_state(self, state: Any) -> None:
        """For ``load_state_dict``."""
        images = state["images"].tolist()
        self._seen = dict(zip(images, state["seen"].tolist(), strict=True))
        parts = torch.split(state["losses"], state["counts"].tolist())
        self._losses = {image: part.clone() for image, part in zip(images, parts, strict=True)}
