"""A region proposal network, torchvision's, one image at a time, with a sampler of anchors (Faster R-CNN, 1506.01497)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    AnchorGenerator,
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)

from ohem.losses import at_least_float32
from ohem.models.spec import AnchoredRpnSpec, RpnSpec
from ohem.rois import IGNORED, Rois, greatest_iou, on_ignored


@dataclass(frozen=True, eq=False)
class ScoredAnchors:
    """All anchors of one image and what the network says of each, with gradient where there is one.

    Attributes:
        boxes: (A, 4) float32 xyxy, pixels of the network's input; some reach beyond it.
        objectness: (A,) logits, float32.
        deltas: (A, 4) float32.
        per_level: how many of them are on each feature map, in their order.
    """

    boxes: Tensor
    objectness: Tensor
    deltas: Tensor
    per_level: list[int]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """Feature maps in, proposals out.

    Args:
        anchors: sizes and ratios for each feature map.
        head: feature maps to objectness and deltas.
        spec: see :class:`ohem.models.spec.RpnSpec`.
    """

    def __init__(self, anchors: AnchorGenerator, head: nn.Module, spec: RpnSpec) -> None:
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=spec.fg_iou,
            bg_iou_thresh=spec.bg_iou,
            batch_size_per_image=0,  # of torchvision's own choice, which is not used
            positive_fraction=0.0,
            pre_nms_top_n={"training": spec.train_candidates, "testing": spec.test_candidates},
            post_nms_top_n={"training": spec.train_proposals, "testing": spec.test_proposals},
            nms_thresh=spec.nms_iou,
            score_thresh=spec.min_score,
        )

    def use(self, spec: RpnSpec) -> None:
        """Propose in evaluation mode as another spec says: what :data:`ohem.models.spec.RPN_IN_USE` names."""
        self._pre_nms_top_n["testing"], self._post_nms_top_n["testing"] = spec.test_candidates, spec.test_proposals
        self.nms_thresh, self.score_thresh = spec.nms_iou, spec.min_score

    def score(self, maps: Sequence[Tensor], area: tuple[int, int]) -> ScoredAnchors:
        """All anchors of one image.

        Args:
            maps: (1, C, H, W), the finest first.
            area: height and width in pixels that the maps cover, the image and what it was padded with.
        """
        # Anchors take their precision from the maps, and bfloat16 knows pixels beyond 512 in fours.
        wide = [at_least_float32(each) for each in maps]
        objectness, deltas = (list(map(at_least_float32, each)) for each in self.head(wide))
        (boxes,) = self.anchor_generator(ImageList(wide[0].new_empty(1, 0, *area), [area]), wide)
        per_level = [each.shape[1] * each.shape[2] * each.shape[3] for each in objectness]  # ONNX has no numel()
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        return ScoredAnchors(boxes, flat_objectness.flatten(), flat_deltas, per_level)

    @torch.no_grad()
    def propose(self, anchors: ScoredAnchors, size: tuple[int, int]) -> Tensor:
        """The proposals of one image, best first: anchors moved, clipped, the best kept after NMS within each map.

        Args:
            anchors: of :meth:`score`.
            size: height and width of the image.

        Returns:
            (P, 4) float32 xyxy with positive width and height.
        """
        boxes = self.box_coder.decode(anchors.deltas.detach(), [anchors.boxes]).view(1, -1, 4)
        proposals: list[Tensor] = self.filter_proposals(boxes, anchors.objectness, [size], anchors.per_level)[0]
        return proposals[0]

    def label(
        self, anchors: ScoredAnchors, truth: Tensor, difficult: Tensor, crowd: Tensor, ignored_iou: float
    ) -> Rois:
        """What the anchors of one image are to be: 1 on an object, 0 background, -1 between the two thresholds.

        Background anchors on difficult or crowd objects are ignored; see :func:`ohem.rois.on_ignored`.

        Args:
            anchors: of :meth:`score`.
            truth: (G, 4) annotated objects.
            difficult: (D, 4) objects that are neither truth nor background.
            crowd: (K, 4) regions of such.
            ignored_iou: overlap with those from which an anchor is ignored.
        """
        boxes = anchors.boxes
        found: Any = self.assign_targets_to_anchors([boxes], [{"boxes": truth}])
        labels, matched = found[0][0].long(), found[1][0].to(boxes)
        labels[on_ignored(boxes, difficult, crowd, ignored_iou) & (labels == 0)] = IGNORED
        max_iou = greatest_iou(boxes, truth)
        deltas, foreground = torch.zeros_like(boxes), labels > 0
        deltas[foreground] = self.box_coder.encode_single(matched[foreground], boxes[foreground])
        return Rois(boxes, labels, max_iou, deltas)


def build_proposal_network(channels: int, spec: AnchoredRpnSpec) -> ProposalNetwork:
    """An untrained network on one feature map of so many channels."""
    anchors = AnchorGenerator((spec.anchor_sizes,), (spec.anchor_ratios,))
    return ProposalNetwork(anchors, RPNHead(channels, anchors.num_anchors_per_location()[0]), spec)
