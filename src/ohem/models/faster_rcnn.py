"""Faster R-CNN: Fast R-CNN with a region proposal network, and a sampler for its anchors too (arXiv 1506.01497)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ohem.losses import RoiLosses, anchor_losses, mean_losses, require_finite
from ohem.models.backbones import Backbone
from ohem.models.fast_rcnn import FastRCNN, KnownLosses, Target, TrainingStep
from ohem.models.proposal_network import ProposalNetwork, ScoredAnchors
from ohem.models.pyramid import PyramidBackbone
from ohem.models.roi_head import Feature, Pyramid, RoIHead
from ohem.rois import Rois, require_area
from ohem.samplers import RandomSampler, Sampler, checked

RANDOM_ANCHORS = RandomSampler(rois_per_image=256, fg_fraction=0.5, bg_lo=0.0)
"""Faster R-CNN's own choice, and torchvision's."""


class FasterRCNN(FastRCNN):
    """Fast R-CNN whose proposals come from the features that it has computed anyway, and are trained together.

    The RoI network is trained and ranked as ever, on the proposals of the moment; no gradient goes through their
    coordinates. Anchors are scored for the proposals, so ranking them needs no further pass.

    Args:
        backbone: see :class:`ohem.models.fast_rcnn.FastRCNN`.
        head: likewise.
        rpn: reads what the head reads.
        num_classes: C, without background.
        rpn_sampler: which anchors train.
        options: of :class:`ohem.models.fast_rcnn.FastRCNN`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: RoIHead,
        rpn: ProposalNetwork,
        num_classes: int,
        *,
        rpn_sampler: Sampler = RANDOM_ANCHORS,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, num_classes, **options)
        self.rpn, self.rpn_sampler = rpn, rpn_sampler

    def training_step(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        rng: Generator | None = None,
    ) -> TrainingStep:
        """As Fast R-CNN's, on the proposals of the moment, with ``loss_objectness`` and ``loss_rpn_box`` beside.

        Args:
            images: see :class:`ohem.models.fast_rcnn.FastRCNN`.
            proposals: not used.
            targets: see :class:`ohem.models.fast_rcnn.FastRCNN`.
            rng: of both samplers, the anchors' first.

        Raises:
            ValueError: a box without area, or a choice of a sampler's that is none.
            NonFiniteLossError: a loss is NaN or infinite; nothing has been trained on it.
        """
        rng = rng or torch.default_generator
        features = self.features(images)
        anchors = [self.score_anchors(feature) for feature in features]
        mean = self._anchors_loss(anchors, targets, rng)
        own = [self.rpn.propose(each, _size(image)) for each, image in zip(anchors, images, strict=True)]
        step = self.train_rois(features, own, targets, rng)
        return TrainingStep(
            {**step.losses, "loss_objectness": mean.cls, "loss_rpn_box": mean.box}, step.rois, step.selected, step.score
        )

    def _anchors_loss(self, anchors: Sequence[ScoredAnchors], targets: Sequence[Target], rng: Generator) -> RoiLosses:
        """The mean loss of the chosen anchors, over the images."""
        labelled = [self._label_anchors(each, target) for each, target in zip(anchors, targets, strict=True)]
        losses = [anchor_losses(a.objectness, a.deltas, rois) for a, rois in zip(anchors, labelled, strict=True)]
        require_finite(losses, labelled, "anchor")
        score = KnownLosses.of(losses)
        selected = checked(self.rpn_sampler(labelled, score, rng), labelled, "anchor")
        return mean_losses([loss[index] for loss, index in zip(losses, selected, strict=True)])

    def _label_anchors(self, anchors: ScoredAnchors, target: Target) -> Rois:
        boxes = target["boxes"].to(self.box_dtype)
        require_area("boxes", boxes)
        no = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        difficult, crowd = target.get("difficult", no), target.get("crowd", no)
        truth = boxes[~(difficult | crowd)]
        if not self.ignore:
            difficult = crowd = no
        return self.rpn.label(anchors, truth, boxes[difficult & ~crowd], boxes[crowd], self.fg_iou)

    def score_anchors(self, feature: Feature) -> ScoredAnchors:
        """All anchors of one image; ``feature`` of :meth:`features`."""
        if isinstance(feature, Pyramid):
            return self.rpn.score(list(feature.maps.values()), feature.area)
        rows, columns = feature.shape[-2:]
        return self.rpn.score([feature], (rows * self.backbone.stride, columns * self.backbone.stride))

    def propose(self, feature: Feature, size: tuple[int, int], given: Tensor) -> Tensor:
        """The proposals of one image, best first: the network's, whatever was given."""
        return self.rpn.propose(self.score_anchors(feature), size)

    def features(self, images: Sequence[Tensor]) -> list[Feature]:
        """As Fast R-CNN's; a pyramid of maps where the backbone makes one, of each image by itself."""
        if isinstance(self.backbone, PyramidBackbone):
            return [self.backbone.pyramid(image) for image in images]
        return super().features(images)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
