"""Fast R-CNN with the sampler as its one seam (paper, sections 3 and 4)."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Generator, Tensor, nn
from torchvision.ops import clip_boxes_to_image

from ohem.boxes import DeltaStats, decode_deltas
from ohem.losses import RoiLosses, mean_losses, require_finite, roi_losses
from ohem.models.backbones import Backbone
from ohem.models.products import half_products
from ohem.models.roi_head import Feature, RoIHead, read_only
from ohem.ranking import (
    ExactRanking,
    HalfRanking,
    LossMemory,
    LowRankRanking,
    Ranking,
    RememberedRanking,
    ThinHead,
    precision_of,
)
from ohem.reweighting import LogLoss, Reweighting
from ohem.rois import Rois, label_rois
from ohem.samplers import HardSampler, Sampler, checked, ranks_by_box_loss, ranks_together

Target = dict[str, Tensor]
"""As torchvision's: ``boxes`` (G, 4) float32, ``labels`` (G,) int64; also ``difficult`` and ``crowd`` (G,) bool, and
``image_id``, one int64, which :class:`ohem.ranking.RememberedRanking` needs."""

Mining = Literal["read_only", "loss_layer"]
"""The two forms of section 4.2."""


@dataclass
class TrainingStep:
    """One forward pass in training, and what was seen on the way.

    Attributes:
        losses: scalars to be summed and differentiated: ``loss_cls`` and ``loss_box`` of the chosen RoIs, and what a
            detector trains beside them.
        rois: the candidates of each image.
        selected: the indices of those that trained.
        score: the read-only pass over this step's RoIs, with the losses it gave where the sampler asked for them; in
            the loss-layer form, the losses of the one pass.
    """

    losses: dict[str, Tensor]
    rois: list[Rois]
    selected: list[Tensor]
    score: "ReadOnlyPass | KnownLosses"


@dataclass
class ReadOnlyPass:
    """The lazy ``score`` that a sampler is handed.

    Attributes:
        images: numbers of the images, where targets have them.
        losses: what it gave last; None before it was called.
        seconds: time spent in it.
    """

    detector: "FastRCNN"
    features: list[Feature]
    rois: list[Rois]
    images: list[int] | None = None
    losses: list[RoiLosses] | None = None
    seconds: float = 0.0

    def __call__(self, *, dropout: bool = True) -> list[RoiLosses]:
        """See :meth:`FastRCNN.rank`."""
        start = now(self.features[0].device)
        self.losses = self.detector.rank(self.features, self.rois, dropout=dropout, images=self.images)
        self.seconds += now(self.features[0].device) - start
        return _copies(self.losses)


@dataclass
class KnownLosses:
    """A ``score`` that costs nothing: losses computed already, of the loss-layer form or of anchors, without gradient.

    Attributes:
        losses: of all RoIs or anchors.
        seconds: 0; the pass is part of training.
    """

    losses: list[RoiLosses]
    seconds: ClassVar[float] = 0.0

    @classmethod
    def of(cls, losses: Sequence[RoiLosses]) -> "KnownLosses":
        """Of losses with gradient."""
        return cls([RoiLosses(loss.cls.detach(), loss.box.detach()) for loss in losses])

    def __call__(self, *, dropout: bool = True) -> list[RoiLosses]:
        """The losses of the one pass, in which dropout is as in training whatever is asked for."""
        return _copies(self.losses)


def _copies(losses: Sequence[RoiLosses]) -> list[RoiLosses]:
    """For a sampler, which may change them: nothing trains on these, and nothing is logged of them."""
    return [RoiLosses(loss.cls.clone(), loss.box.clone()) for loss in losses]


class FastRCNN(nn.Module):
    """Backbone, RoI head, and a sampler that decides which RoIs train.

    Args:
        backbone: images to one feature map.
        head: feature map and boxes to class logits and box deltas.
        num_classes: C, without background.
        sampler: see :mod:`ohem.samplers`; may be exchanged at any time.
        stats: how box deltas are normalised. Kept in buffers; :meth:`set_delta_stats` changes them and leaves the
            function that the network computes as it is.
        fg_iou: see :func:`ohem.rois.label_rois`.
        ignore: see :func:`ohem.rois.label_rois`.
        loss_over: see :func:`ohem.losses.mean_losses`; when omitted, what the sampler's ``cap`` is over, else the image.
        reweight: what becomes of the losses of the chosen RoIs before they are averaged; see :mod:`ohem.reweighting`.
            It expects the mean over images.
        mining: section 4.2's two forms. "read_only" scores all RoIs without gradient and trains on the chosen ones.
            "loss_layer" runs all RoIs through the regular network, once, and zeroes the losses of those that were not
            chosen: the same gradients, at the cost of a backward pass and activations of all RoIs.
        smooth_l1_beta: see :func:`ohem.losses.roi_losses`.
        ranking_chunk: RoIs scored at once by the read-only pass.
    """

    delta_mean: Tensor
    delta_std: Tensor
    thin_head: ThinHead | None
    loss_memory: LossMemory | None

    def __init__(
        self,
        backbone: Backbone,
        head: RoIHead,
        num_classes: int,
        *,
        sampler: Sampler | None = None,
        stats: DeltaStats | None = None,
        fg_iou: float = 0.5,
        ignore: bool = True,
        loss_over: Literal["image", "batch"] | None = None,
        reweight: Reweighting | None = None,
        mining: Mining = "read_only",
        smooth_l1_beta: float = 1.0,
        ranking_chunk: int = 2048,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self.sampler: Sampler = sampler or HardSampler()
        self.fg_iou, self.ignore, self.loss_over = fg_iou, ignore, loss_over
        self.reweight: Reweighting = reweight or LogLoss()
        self.mining: Mining = mining
        self.smooth_l1_beta, self.ranking_chunk = smooth_l1_beta, ranking_chunk
        self.rank_by(ExactRanking())
        stats = stats or DeltaStats.fixed(num_classes)
        self.register_buffer("delta_mean", stats.mean.clone())
        self.register_buffer("delta_std", stats.std.clone())

    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        rng: Generator | None = None,
    ) -> dict[str, Tensor] | list[tuple[Tensor, Tensor]]:
        """In training mode the losses of :meth:`training_step`; in evaluation mode :meth:`score_rois` of each image.

        Args:
            images: (3, H, W) RGB, uint8 or float in [0, 1], each of its own size.
            proposals: (P, 4) xyxy for each image, in its pixels.
            targets: needed in training.
            rng: CPU generator for the sampler; torch's default one when omitted.

        Raises:
            ValueError: training mode without targets, a box without area, or a choice of the sampler's that is none.
        """
        if self.training:
            if targets is None:
                raise ValueError("targets: found None; allowed in training mode: one target for each image")
            return self.training_step(images, proposals, targets, rng).losses
        features = self.features(images)
        sizes = [cast(tuple[int, int], tuple(image.shape[-2:])) for image in images]
        return [
            self.score_rois(feature, self.propose(feature, size, boxes), size)
            for feature, boxes, size in zip(features, proposals, sizes, strict=True)
        ]

    def training_step(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        rng: Generator | None = None,
    ) -> TrainingStep:
        """The forward pass of section 4.1: label all RoIs, let the sampler choose, and compute the loss of those.

        Raises:
            ValueError: a box without area, or a choice of the sampler's that is none.
            NonFiniteLossError: a loss is NaN or infinite; nothing has been trained on it.
        """
        return self.train_rois(self.features(images), proposals, targets, rng or torch.default_generator)

    def train_rois(
        self, features: list[Feature], proposals: Sequence[Tensor], targets: Sequence[Target], rng: Generator
    ) -> TrainingStep:
        """The rest of :meth:`training_step`, from features that are there."""
        rois = [self.label(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        score: ReadOnlyPass | KnownLosses
        if self.mining == "loss_layer":
            losses, selected, score = self._mine_in_loss_layer(features, rois, rng)
        else:
            numbered = all("image_id" in target for target in targets)
            numbers = [int(target["image_id"]) for target in targets] if numbered else None
            score = ReadOnlyPass(self, features, rois, numbers)
            losses, selected = self._mine_read_only(score, rng)
        chosen = [image[index] for image, index in zip(rois, selected, strict=True)]
        require_finite(losses, chosen)
        over = self.loss_over or ("batch" if ranks_together(self.sampler) else "image")
        mean = mean_losses(self.reweight(losses, chosen), over)
        return TrainingStep({"loss_cls": mean.cls, "loss_box": mean.box}, rois, selected, score)

    def _mine_read_only(self, score: ReadOnlyPass, rng: Generator) -> tuple[list[RoiLosses], list[Tensor]]:
        """Two passes: all RoIs without gradient, where the sampler asks for it; then the chosen ones with gradient."""
        selected = checked(self.sampler(score.rois, score, rng), score.rois)
        chosen = [image[index] for image, index in zip(score.rois, selected, strict=True)]
        return self._losses(score.features, chosen), selected

    def _mine_in_loss_layer(
        self, features: list[Feature], rois: list[Rois], rng: Generator
    ) -> tuple[list[RoiLosses], list[Tensor], KnownLosses]:
        """One pass over all RoIs with gradient, which also ranks."""
        losses = self._losses(features, rois)
        require_finite(losses, rois)
        score = KnownLosses.of(losses)
        selected = checked(self.sampler(rois, score, rng), rois)
        # What is left out gets a gradient of zero, and is carried through the whole backward pass with it.
        return [loss[index] for loss, index in zip(losses, selected, strict=True)], selected, score

    @property
    def box_dtype(self) -> torch.dtype:
        """Boxes are of the detector's own type, and float32 at least."""
        return torch.promote_types(self.delta_mean.dtype, torch.float32)

    def label(self, proposals: Tensor, target: Target) -> Rois:
        """The candidates of one image: its proposals (P, 4) and annotated objects; see :func:`ohem.rois.label_rois`.

        Boxes of other types, such as numpy's float64, become :attr:`box_dtype`.
        """
        return label_rois(
            proposals.to(self.box_dtype),
            target["boxes"].to(self.box_dtype),
            target["labels"],
            DeltaStats(self.delta_mean, self.delta_std),
            difficult=target.get("difficult"),
            crowd=target.get("crowd"),
            fg_iou=self.fg_iou,
            ignore=self.ignore,
        )

    def propose(self, feature: Feature, size: tuple[int, int], given: Tensor) -> Tensor:
        """The proposals (P, 4) of one image that are scored: those that are given.

        Args:
            feature: of :meth:`features`.
            size: height and width of the network's input.
            given: (P, 4) xyxy, in its pixels.
        """
        return given

    def rank(
        self,
        features: Sequence[Feature],
        rois: Sequence[Rois],
        *,
        dropout: bool = True,
        images: Sequence[int] | None = None,
        exact: bool = False,
    ) -> list[RoiLosses]:
        """The read-only pass (section 4.2): the loss of all RoIs, in chunks, with nothing left behind.

        Where :meth:`rank_by` says that those which may be chosen are scored in half precision and in float32, the sampler is
        asked what it would choose, and dropout is off.

        Args:
            features: of :meth:`features`, one map an image.
            rois: all candidates of each image.
            dropout: as in training, or off.
            images: numbers of the images; :class:`ohem.ranking.RememberedRanking` knows them by these.
            exact: whatever :meth:`rank_by` says, which neither learns of this pass nor counts it.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
            ValueError: images are to be remembered and have no numbers.
        """
        again = isinstance(self.ranking, HalfRanking) and self.ranking.rescored is not None and not exact
        with read_only(self.head, dropout=dropout and not again):
            if exact:
                losses = self._rank_exactly(features, rois)
            elif again:
                losses = self._rank_twice(features, rois)
            else:
                with self._ranking_precision():
                    losses = self._rank(features, rois, images)
            require_finite(losses, rois)  # before anything is learned from them
            if self.thin_head is not None and not exact:
                self.thin_head.learn(self.head, cast(Sequence[Tensor], features), [image.boxes for image in rois])
            if self.loss_memory is not None and not exact:
                for number, found in zip(cast(Sequence[int], images), losses, strict=True):
                    self.loss_memory.keep(number, found.cls)
        return losses

    def _ranking_precision(self) -> AbstractContextManager[Any]:
        precision = precision_of(self.ranking)
        if precision == "float32":
            return nullcontext()
        return half_products(self.delta_mean.device, getattr(torch, precision))

    def _rank(self, features: Sequence[Feature], rois: Sequence[Rois], images: Sequence[int] | None) -> list[RoiLosses]:
        if self.thin_head is not None and not self.thin_head.is_due():
            return self._rank_thin(self.thin_head, features, rois)
        if self.loss_memory is not None:
            return self._rank_remembered(self.loss_memory, features, rois, images)
        return self._rank_exactly(features, rois)

    def _rank_exactly(self, features: Sequence[Feature], rois: Sequence[Rois]) -> list[RoiLosses]:
        return [self._score_all(feature, image) for feature, image in zip(features, rois, strict=True)]

    def _rank_twice(self, features: Sequence[Feature], rois: Sequence[Rois]) -> list[RoiLosses]:
        """Losses in half precision, but of RoIs that the sampler may choose in float32.

        The easiest RoI that it chooses says how hard one must be. Those that are not below that by more than a margin are
        scored again, until there are no others. The margin is twice the most that this changed a loss by: the choice
        is the exact one unless half precision is further off about a RoI than twice that. Changes are measured in losses,
        those above 1 as 1: a logit off by d moves the cross entropy by no more than d, and no more than d times itself.
        """
        with self._ranking_precision():
            losses = self._rank_exactly(features, rois)
        require_finite(losses, rois)
        left = [image.labels >= 0 for image in rois]
        change = 0.0
        while True:
            ranked_by = [self._ranked_by(loss) for loss in losses]
            chosen = checked(self.sampler(list(rois), KnownLosses(losses), Generator().manual_seed(0)), rois)
            easiest = [
                float(each[index].min()) if len(index) else math.inf
                for each, index in zip(ranked_by, chosen, strict=True)
            ]
            if ranks_together(self.sampler):
                easiest = [min(easiest)] * len(easiest)
            likely = [
                (there & (each >= least - 2 * change * min(1, least))).nonzero().squeeze(1)
                for there, each, least in zip(left, ranked_by, easiest, strict=True)
            ]
            if not any(len(index) for index in likely):
                return losses
            for i, index in enumerate(likely):
                if len(index):
                    own = self._score_all(features[i], rois[i][index])
                    before, after = ranked_by[i][index], self._ranked_by(own)
                    changes = (after - before).abs() / torch.maximum(before, after).clamp(1e-9, 1)
                    change = max(change, float(changes.max()))
                    losses[i].cls[index], losses[i].box[index], left[i][index] = own.cls, own.box, False

    def _ranked_by(self, losses: RoiLosses) -> Tensor:
        return losses.total if ranks_by_box_loss(self.sampler) else losses.cls

    def _rank_thin(self, thin: ThinHead, features: Sequence[Feature], rois: Sequence[Rois]) -> list[RoiLosses]:
        guesses = [self._score_all(feature, image, thin) for feature, image in zip(features, rois, strict=True)]
        return [
            self._score_likely(guess, thin.settings.share, feature, image)
            for guess, feature, image in zip(guesses, features, rois, strict=True)
        ]

    def _rank_remembered(
        self, memory: LossMemory, features: Sequence[Feature], rois: Sequence[Rois], images: Sequence[int] | None
    ) -> list[RoiLosses]:
        if images is None:
            raise ValueError("targets: found no image_id; allowed with ranking 'remembered': one number for each image")
        losses = []
        for feature, image, number in zip(features, rois, images, strict=True):
            remembered = memory.recall(number, len(image))
            if remembered is None:
                found = self._score_all(feature, image)
            else:
                guess = RoiLosses(remembered.to(image.deltas), image.deltas.new_zeros(len(image)))
                found = self._score_likely(guess, memory.settings.share, feature, image)
            losses.append(found)
        return losses

    def _score_likely(self, guess: RoiLosses, share: float, feature: Feature, rois: Rois) -> RoiLosses:
        """Put the head's own losses in place of guessed ones: of all foreground, and of the hardest share."""
        easy_first = torch.where(rois.labels > 0, torch.inf, guess.total).argsort(stable=True)
        foreground = int((rois.labels > 0).sum())
        scored = min(len(rois), foreground + math.ceil(share * len(rois)))
        likely = easy_first[len(rois) - scored :]
        own = self._score_all(feature, rois[likely])
        guess.cls[likely], guess.box[likely] = own.cls, own.box
        return guess

    def _score_all(self, feature: Feature, rois: Rois, thin: ThinHead | None = None) -> RoiLosses:
        """Scores of the different RoIs that are not ignored, box deltas of foreground ones: all that losses need.

        Args:
            feature: of the image.
            rois: of the image.
            thin: scores in place of the head's hidden layers.
        """
        cls, box = rois.deltas.new_zeros(2, len(rois))
        counted = (rois.labels >= 0).nonzero().squeeze(1)
        different, which = self.head.distinct(rois.boxes[counted])
        start = 0
        for chunk in self._chunks(different):
            boxes = rois.boxes[counted[chunk]]
            hidden = (
                thin.hidden_of_many(self.head, cast(Tensor, feature), boxes)
                if thin
                else self.head.hidden_of_many(feature, boxes)
            )
            there = ((which >= start) & (which < start + len(chunk))).nonzero().squeeze(1)
            row, members = which[there] - start, counted[there]
            part = rois[members]
            deltas = self.head.bbox_pred(hidden[row[part.labels > 0]])
            loss = roi_losses(self.head.cls_score(hidden)[row], deltas, part, beta=self.smooth_l1_beta)
            cls[members], box[members] = loss.cls, loss.box
            start += len(chunk)
        return RoiLosses(cls, box)

    def _chunks(self, indices: Tensor) -> Sequence[Tensor]:
        """As few parts as :attr:`ranking_chunk` allows, of about one length; none of nothing."""
        return torch.tensor_split(indices, -(-len(indices) // self.ranking_chunk)) if len(indices) else []

    def features(self, images: Sequence[Tensor]) -> list[Feature]:
        """One (1, C, H, W) map an image.

        Images of one size go through the backbone together; others one by one. Nothing is padded, so an image's
        features never depend on its neighbours, and a batch gives the gradients of its images accumulated.
        """
        if len({(image.shape, image.dtype) for image in images}) == 1:
            return list(torch.split(self.head.reduce(self.backbone(torch.stack(list(images)))), 1))
        return [cast(Tensor, self.head.reduce(self.backbone(image[None]))) for image in images]

    def score_rois(self, feature: Feature, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Score and move the RoIs of one image.

        Args:
            feature: (1, C, H, W) of :meth:`features`.
            boxes: (R, 4) xyxy, pixels of the network's input.
            size: height and width of the network's input; boxes are clipped to it.

        Returns:
            Class probabilities (R, C + 1), background first, and a box for each class (R, C + 1, 4).
        """
        different, which = self.head.distinct(boxes)
        scores, deltas = [], []
        for chunk in torch.split(different, self.ranking_chunk):
            hidden = self.head.hidden_of_many(feature, boxes[chunk])
            scores.append(self.head.cls_score(hidden).float().softmax(dim=1))
            deltas.append(self.head.bbox_pred(hidden).float())
        raw = torch.cat(deltas)[which].view(len(boxes), self.num_classes + 1, 4) * self.delta_std + self.delta_mean
        return torch.cat(scores)[which], clip_boxes_to_image(decode_deltas(boxes, raw), size)

    def rank_by(self, ranking: Ranking) -> None:
        """How :meth:`rank` works from now on; the exact way is the default."""
        self.ranking = ranking
        thin = ThinHead(self.head, ranking).to(self.delta_mean) if isinstance(ranking, LowRankRanking) else None
        self.thin_head = thin
        self.loss_memory = LossMemory(ranking) if isinstance(ranking, RememberedRanking) else None

    @torch.no_grad()
    def set_delta_stats(self, stats: DeltaStats) -> None:
        """Change the normalisation of box deltas and the last layer with it, so that predicted boxes stay the same.

        Mean 0 and std 1 fold the statistics into the weights, as the authors' code does when it saves a snapshot.
        """
        mean, std = stats.mean.to(self.delta_mean), stats.std.to(self.delta_std)
        layer = self.head.bbox_pred
        scale = (self.delta_std / std).flatten()
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale).add_(((self.delta_mean - mean) / std).flatten())
        self.delta_mean.copy_(mean)
        self.delta_std.copy_(std)

    def _losses(self, features: Sequence[Feature], rois: Sequence[Rois]) -> list[RoiLosses]:
        scored = self.head.score_images(features, [image.boxes for image in rois])
        return [roi_losses(*each, image, beta=self.smooth_l1_beta) for each, image in zip(scored, rois, strict=True)]


def now(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
