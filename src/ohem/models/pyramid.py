"""torchvision's Faster R-CNN with a feature pyramid, taken apart into what Fast R-CNN is made of here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
import torchvision.models.detection as torchvision_detectors
from torch import Tensor, nn

from ohem.losses import at_least_float32
from ohem.models.backbones import TORCHVISION, Backbone, freeze_batch_norm
from ohem.models.products import linear
from ohem.models.proposal_network import ProposalNetwork
from ohem.models.roi_head import Feature, Pyramid, RoIHead
from ohem.models.spec import TorchvisionSpec

PADDED_TO = 32
"""Images are padded to multiples of this, as torchvision does, so that each map has half the cells of the one before."""

EARLY: Mapping[str, tuple[str, ...]] = {
    "resnet": ("conv1", "bn1", "layer1"),
    "mobilenet": ("0", "1", "2", "3"),
}
"""The layers up to stride 4."""


class PyramidBackbone(Backbone):
    """A backbone with a feature pyramid.

    BatchNorm layers use their stored statistics always; an image or two are too few to estimate them.

    Args:
        network: torchvision's, images to maps by name.
        early: names of the layers of its body up to stride 4.
    """

    def __init__(self, network: nn.Module, early: Iterable[str]) -> None:
        super().__init__(cast(int, network.out_channels), 4, TORCHVISION)
        self.network, self._early = network, tuple(early)

    def pyramid(self, image: Tensor) -> Pyramid:
        """(3, H, W) RGB, uint8 or float in [0, 1], to maps in float32 at least."""
        height, width = image.shape[-2:]
        padded = F.pad(self.prepare(image[None]), (0, -width % PADDED_TO, 0, -height % PADDED_TO))
        maps = self.network(padded)
        return Pyramid(
            {name: at_least_float32(each) for name, each in maps.items()}, (padded.shape[-2], padded.shape[-1])
        )

    @property
    def body(self) -> nn.Module:
        """The convolutional network below the pyramid."""
        return cast(nn.Module, self.network.body)

    def early(self) -> Iterable[nn.Module]:
        """The layers up to stride 4."""
        return [self.body.get_submodule(name) for name in self._early]

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Training mode, with BatchNorm left in evaluation mode."""
        super().train(mode)
        freeze_batch_norm(self)
        return self


class PyramidHead(RoIHead):
    """torchvision's box head and predictor.

    Args:
        heads: torchvision's ``RoIHeads``; its layers become this head's.
        channels: of the maps.
        num_classes: C, without background.
    """

    def __init__(self, heads: Any, channels: int, num_classes: int) -> None:
        super().__init__(channels, 4, num_classes, pool="align", pool_size=7, fc=(), dropout=0.0)
        layers = list(heads.box_head.children())
        self.pooling = heads.box_roi_pool
        self.convs = nn.Sequential(*(each for each in layers if isinstance(each, nn.Sequential)))
        self.fc = nn.ModuleList(each for each in layers if isinstance(each, nn.Linear))
        self.cls_score, self.bbox_pred = heads.box_predictor.cls_score, heads.box_predictor.bbox_pred

    def pool_rois(self, features: Feature, boxes: Tensor) -> Tensor:
        """(R, C, 7, 7): each RoI from the map that suits its size, and through the convolutions where there are any."""
        assert isinstance(features, Pyramid)
        return cast(Tensor, self.convs(self.pooling(features.maps, [boxes], [features.area])))

    def pooled_products(self, features: Feature, boxes: Tensor, layer: nn.Linear) -> Tensor:
        """See :meth:`ohem.models.roi_head.RoIHead.pooled_products`; all channels at once."""
        return linear(layer, self.pool_rois(features, boxes).flatten(1))

    def train(self, mode: bool = True) -> "PyramidHead":
        """Training mode, with BatchNorm left in evaluation mode."""
        super().train(mode)
        freeze_batch_norm(self)
        return self


@dataclass(frozen=True)
class Parts:
    """What a detector is put together from."""

    backbone: PyramidBackbone
    head: PyramidHead
    rpn: ProposalNetwork


def torchvision_model(kind: str, num_classes: int) -> Any:
    """torchvision's own model with random weights; BatchNorm is ``BatchNorm2d`` whatever weights will be loaded."""
    builder: Callable[..., nn.Module] = getattr(torchvision_detectors, kind)
    return builder(weights=None, weights_backbone=None, num_classes=num_classes + 1)


def take_apart(model: Any, spec: TorchvisionSpec, num_classes: int) -> Parts:
    """The parts of one of torchvision's models, with its layers, not copies; the spec's layers are frozen."""
    early = EARLY["mobilenet" if "mobilenet" in spec.kind else "resnet"]
    backbone = PyramidBackbone(model.backbone, early)
    head = PyramidHead(model.roi_heads, backbone.out_channels, num_classes)
    rpn = ProposalNetwork(model.rpn.anchor_generator, model.rpn.head, spec.rpn)
    frozen = {"early": backbone.early(), "all": [backbone.body], "none": []}[spec.freeze]
    for part in frozen:
        part.requires_grad_(False)
    return Parts(backbone, head, rpn)
