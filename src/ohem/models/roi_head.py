"""The RoI network: pooling, fully connected layers, class scores and class-specific boxes (paper, figure 1)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from ohem.models.products import blocks, linear, onednn_fits
from ohem.models.roi_pooling import align_rois, max_pool_cells, max_pool_rois

POOLED_BYTES = 2**25
"""Of pooled values in :meth:`RoIHead.hidden_of_many`."""
ALIGNED = 16
"""Channels in a block of :meth:`RoIHead.pooled_products` are a multiple of it, where they are that many."""
JOINED_BYTES = 2**27
"""Of pooled values that :meth:`RoIHead.score_images` joins: a copy of them, to read and update the weights once."""


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The feature maps of one image at several strides.

    Attributes:
        maps: (1, C, H, W) by torchvision's names, the finest first.
        area: height and width in pixels that they cover: the image and what it was padded with.
    """

    maps: dict[str, Tensor]
    area: tuple[int, int]

    @property
    def device(self) -> torch.device:
        """Of the maps."""
        return next(iter(self.maps.values())).device


Feature = Tensor | Pyramid
"""What a RoI network reads of one image: a map (1, C, H, W), or several."""


class RoIHead(nn.Module):
    """Features and boxes in, class logits and normalised box deltas out.

    Args:
        in_channels: of the feature map.
        stride: input pixels per cell of the feature map.
        num_classes: C, without background.
        pool: RoI max-pooling or RoIAlign.
        pool_size: side of the pooled map.
        channels: channels after a 1x1 convolution before pooling; None: no convolution.
        fc: widths of the fully connected layers.
        dropout: after each of them.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int,
        num_classes: int,
        *,
        pool: Literal["max", "align"] = "max",
        pool_size: int = 7,
        channels: int | None = None,
        fc: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.stride, self.pool, self.pool_size = stride, pool, pool_size
        self.reduce = nn.Identity() if channels is None else nn.Conv2d(in_channels, channels, 1)
        widths = [(channels or in_channels) * pool_size**2, *fc]
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.cls_score = nn.Linear(widths[-1], num_classes + 1)
        self.bbox_pred = nn.Linear(widths[-1], 4 * (num_classes + 1))
        for layer in [*self.fc, *([self.reduce] if channels else [])]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Feature, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Score the RoIs of one image.

        Args:
            features: (1, C, H, W), already through :attr:`reduce`.
            boxes: (R, 4) xyxy, pixels of the network's input.

        Returns:
            Logits (R, C + 1), background first, and normalised deltas (R, 4 * (C + 1)).
        """
        return self._score(self.pool_rois(features, boxes))

    def score_images(self, features: Sequence[Feature], boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """:meth:`forward` of several images. Where their RoIs are few, the layers take all of them at once."""
        pooled = [self.pool_rois(*image) for image in zip(features, boxes, strict=True)]
        if sum(each.nbytes for each in pooled) > JOINED_BYTES:
            return [self._score(each) for each in pooled]
        counts = [len(each) for each in boxes]
        scores, deltas = self._score(torch.cat(pooled))
        return list(zip(torch.split(scores, counts), torch.split(deltas, counts), strict=True))

    def _score(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = pooled.flatten(1)
        for layer in self.fc:
            hidden = self.dropout(torch.relu(layer(hidden)))
        return self.cls_score(hidden), self.bbox_pred(hidden)

    def pool_rois(self, features: Feature, boxes: Tensor) -> Tensor:
        """(R, C, S, S)."""
        pool = max_pool_rois if self.pool == "max" else align_rois
        return pool(cast(Tensor, features), boxes, self.pool_size, 1 / self.stride)

    @torch.no_grad()
    def hidden_of_many(self, features: Feature, boxes: Tensor) -> Tensor:
        """What :attr:`cls_score` and :attr:`bbox_pred` get, for many RoIs at little cost and without gradient.

        The first layer takes block after block, so that no more than :data:`POOLED_BYTES` of pooled values exist, or those
        of 64 RoIs. Up to the rounding of sums, and the random numbers of dropout, it is what the regular pass computes.

        Args:
            features: (1, C, H, W), already through :attr:`reduce`.
            boxes: (R, 4) xyxy, pixels of the network's input.

        Returns:
            (R, width of the last layer).
        """
        first, *others = self.fc
        if _is_plain(first):
            hidden = self.pooled_products(features, boxes, cast(nn.Linear, first))
        else:
            hidden = first(self.pool_rois(features, boxes).flatten(1))
        hidden = self._drop(hidden.relu_())
        for layer in others:
            hidden = self._drop(linear(layer, hidden).relu_())
        return hidden

    @torch.no_grad()
    def pooled_products(self, features: Feature, boxes: Tensor, layer: nn.Linear) -> Tensor:
        """``layer`` of the pooled values of RoIs, (R, its width), block by block: of RoIs, or a sum over channels."""
        features, cells = cast(Tensor, features), self.pool_size**2
        if onednn_fits(layer, features):  # which is as fast with few RoIs at once, but slow with a part of the weights
            rois = POOLED_BYTES // (layer.in_features * features.element_size())
            result = features.new_empty(len(boxes), layer.out_features)
            for first, last in blocks(len(boxes), rois):
                result[first:last] = linear(layer, self.pool_rois(features, boxes[first:last]).flatten(1))
            return result
        channels = POOLED_BYTES // max(1, len(boxes) * cells * features.element_size())
        if channels > ALIGNED:  # else products in half precision take a third longer
            channels -= channels % ALIGNED
        result = layer.bias.expand(len(boxes), -1).clone()
        start = 0
        for block in torch.split(features, max(1, channels), dim=1):
            end = start + block.shape[1] * cells
            result += F.linear(self.pool_rois(block, boxes).flatten(1), layer.weight[:, start:end])
            start = end
        return result

    def distinct(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """RoIs that pool the same cells, and so have the same scores whatever the weights.

        Selective search gives many boxes that differ by less than a cell of the feature map; Fast R-CNN's own code
        leaves them out at test time (``DEDUP_BOXES``). RoIAlign reads between the cells, so all of its RoIs differ.

        Args:
            boxes: (R, 4) xyxy, pixels of the network's input.

        Returns:
            The indices of U different RoIs, and for each of the R RoIs which of those it equals; int64.
        """
        if self.pool == "align":
            every = torch.arange(len(boxes), device=boxes.device)
            return every, every
        cells, which = torch.unique(max_pool_cells(boxes, 1 / self.stride), dim=0, return_inverse=True)
        first = torch.full((len(cells),), len(boxes), device=boxes.device)
        return first.scatter_reduce(0, which, torch.arange(len(boxes), device=boxes.device), "amin"), which

    def _drop(self, hidden: Tensor) -> Tensor:
        """Dropout; on a CPU from eight random bits a value, where the rate allows it, at a tenth of the time."""
        steps = self.dropout.p * 256
        if not self.dropout.training or hidden.device.type != "cpu" or steps != int(steps) or steps in (0, 256):
            return cast(Tensor, self.dropout(hidden))
        words = torch.empty(-(-hidden.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: hidden.numel()].view(hidden.shape) >= steps
        return hidden.mul_(kept).div_(1 - self.dropout.p)


def _is_plain(layer: nn.Module) -> bool:
    """Whether weight and bias are all there is to a layer; not with adapters, hooks or a forward of its own."""
    return (
        type(layer) is nn.Linear and layer.bias is not None and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _is_updated(module: nn.Module) -> bool:
    """Whether a forward pass in training mode changes what the module knows."""
    return isinstance(module, nn.modules.batchnorm._NormBase | _SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()
    )


@contextmanager
def read_only(network: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Run ``network`` so that nothing of it is left behind: no gradient, and no statistics of its norms updated, spectral
    norm's vectors among them.

    Args:
        network: put back as it was on leaving.
        dropout: True leaves dropout as it is, False switches it off: all of the network is in evaluation mode.
    """
    quiet = _is_updated if dropout else lambda _: True
    changed = [module for module in network.modules() if module.training and quiet(module)]
    for module in changed:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in changed:
            module.training = True
        # Else an older torch hands autocast's copies of the weights, made without a graph, to the training pass, and
        # the weights get no gradient: github.com/pytorch/pytorch/issues/112583.
        torch.clear_autocast_cache()
