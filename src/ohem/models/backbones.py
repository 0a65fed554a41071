"""Backbones: images in, one feature map out. Each carries the preprocessing that its weights were trained with."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ohem.errors import OhemError, did_you_mean
from ohem.losses import at_least_float32
from ohem.models.spec import BackboneSpec


@dataclass(frozen=True)
class Preprocessing:
    """What happens to RGB images in [0, 1] before the first layer.

    Attributes:
        mean: subtracted, per channel in the order that the network reads.
        std: divided by, after the mean.
        scale: multiplied by, before the mean; 255 for Caffe's weights.
        bgr: the network reads blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    bgr: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] to what the network reads."""
        images = images.flip(1) if self.bgr else images
        return (images * self.scale - images.new_tensor(self.mean)[:, None, None]) / images.new_tensor(self.std)[
            :, None, None
        ]


TORCHVISION = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Preprocessing((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), scale=255.0, bgr=True)


class Backbone(nn.Module, ABC):
    """A convolutional network.

    Attributes:
        out_channels: C of its maps.
        stride: input pixels per cell of its map, or of its finest.
        preprocessing: applied first.
    """

    def __init__(self, out_channels: int, stride: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.preprocessing = preprocessing

    def prepare(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or float in [0, 1], to what the first layer reads."""
        images = images.float().div(255) if images.dtype == torch.uint8 else images
        images = self.preprocessing(images)
        if images.device.type == "cpu" and not (torch.is_grad_enabled() and self.slow_channels_last):
            # oneDNN's convolutions are faster so, and pooling reads cells of all channels
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    @cached_property
    def slow_channels_last(self) -> bool:
        """Whether training is slower channels-last on this CPU.

        Without AVX-512 oneDNN takes three to five times as long so for the gradient of the weights of a dense 3 x 3
        convolution; depthwise ones and 1 x 1 are faster (``benchmarks/layouts.py``).
        """
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        dense = [layer for layer in layers if layer.groups == 1 and max(layer.kernel_size) > 1]
        share = sum(layer.weight.numel() for layer in dense) / max(1, sum(layer.weight.numel() for layer in layers))
        return share > 1 / 3 and torch.backends.cpu.get_cpu_capability() == "AVX2"

    @abstractmethod
    def early(self) -> Iterable[nn.Module | nn.Parameter]:
        """The layers up to stride 4; of the paper's networks, those that the paper does not train."""


class OneMapBackbone(Backbone):
    """A backbone with one output map."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, uint8 or float in [0, 1], to (N, C, about H / stride, about W / stride)."""
        return self.maps(self.prepare(images))

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """The network proper, on preprocessed images."""


class VGG16(OneMapBackbone):
    """VGG16 up to conv5_3, without pool5 (Simonyan & Zisserman, configuration D; paper, section 5.1).

    The layers stand in torchvision's order, so its weights load by name. Caffe's pooling rounds sizes up.
    """

    fc_inputs = (512, 7)

    def __init__(self, preprocessing: Preprocessing = TORCHVISION) -> None:
        super().__init__(512, 16, preprocessing)
        # Not vgg16() itself: its classifier is most of its weights, and would be thrown away.
        self.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])[:-1]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def maps(self, images: Tensor) -> Tensor:
        """See :meth:`OneMapBackbone.maps`."""
        return cast(Tensor, self.features(images))

    def early(self) -> Iterable[nn.Module]:
        """conv1_1 to conv2_2."""
        return list(self.features[:10])


class LocalResponseNorm(nn.Module):
    """``torch.nn.LocalResponseNorm`` with beta 0.75, in less time: no pooling in three dimensions, no powers.

    In float32 at least: it squares, and in float16 the square of 256 is infinite, and its quotient silently 0.

    Args:
        size: of the window, in channels; odd.
        alpha: times the mean of squares in the window.
        k: added to that.
    """

    def __init__(self, size: int, alpha: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.k = size, alpha, k

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) to the same, divided by the power 0.75 of ``k`` and the mean of squares around each channel."""
        values = at_least_float32(values)
        channels, beside = values.shape[1], self.size // 2
        squares = F.pad(values.square(), (0, 0, 0, 0, beside, beside))
        total = squares[:, :channels]
        for first in range(1, self.size):
            total = total + squares[:, first : first + channels]
        root = (self.k + self.alpha / self.size * total).sqrt()
        return values / (root * root.sqrt())


class VGGCNNM1024(OneMapBackbone):
    """VGG_CNN_M_1024 up to conv5 (Chatfield et al. 2014; the layers of the Fast R-CNN release).

    torch's local response normalisation divides alpha by the window, as Caffe's does. Sides of fewer than 25 pixels, of
    which unpadded convolutions leave nothing, are padded to that with zeros, at the right and the bottom.
    """

    fc_inputs = (512, 6)
    least_side = 25

    def __init__(self, preprocessing: Preprocessing = CAFFE) -> None:
        super().__init__(512, 16, preprocessing)

        def norm_and_pool() -> list[nn.Module]:
            return [LocalResponseNorm(5, alpha=5e-4, k=2.0), nn.MaxPool2d(3, 2, ceil_mode=True)]

        def conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]

        self.features = nn.Sequential(
            *conv(3, 96, 7, 2, 0),
            *norm_and_pool(),
            *conv(96, 256, 5, 2, 1),
            *norm_and_pool(),
            *conv(256, 512, 3, 1, 1),
            *conv(512, 512, 3, 1, 1),
            *conv(512, 512, 3, 1, 1),
        )

    def maps(self, images: Tensor) -> Tensor:
        """See :meth:`OneMapBackbone.maps`."""
        missing = [max(0, self.least_side - side) for side in images.shape[-2:]]
        if any(missing):
            images = F.pad(images, (0, missing[1], 0, missing[0]))
        return cast(Tensor, self.features(images))

    def early(self) -> Iterable[nn.Module]:
        """conv1."""
        return list(self.features[:1])


class TimmBackbone(OneMapBackbone):
    """Any timm model with ``features_only``: chosen maps, each divided by its scale, joined at the finest stride.

    BatchNorm layers use their stored statistics always; two images are too few to estimate them.
    """

    def __init__(self, name: str, strides: Sequence[int] = (16,), scales: Sequence[float] | None = None) -> None:
        try:
            probe: Any = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, AttributeError, ValueError) as error:
            hint = did_you_mean(name, ["vgg16", "vgg_cnn_m_1024", *timm.list_models()])
            raise OhemError(
                f"detector.backbone.name: found {name!r}{hint}; allowed: vgg16, vgg_cnn_m_1024, or a timm model with"
                f" feature maps ({error})"
            ) from error
        reductions = probe.feature_info.reduction()
        if absent := [stride for stride in strides if stride not in reductions]:
            raise OhemError(f"detector.backbone.strides: found {absent}; allowed for {name}: {sorted(set(reductions))}")
        if list(strides) != sorted(set(strides)):
            raise OhemError(f"detector.backbone.strides: found {list(strides)}; allowed: each once, the finest first")
        if scales is not None and len(scales) != len(strides):
            raise OhemError(f"detector.backbone.scales: found {len(scales)} scales; allowed: one for each of {strides}")
        levels = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)
        body: Any = timm.create_model(name, features_only=True, pretrained=False, out_indices=levels)
        default = body.default_cfg if hasattr(body, "default_cfg") else probe.default_cfg
        super().__init__(
            sum(body.feature_info.channels()),
            strides[0],
            Preprocessing(tuple(default["mean"]), tuple(default["std"])),
        )
        try:
            if torch.get_default_device().type != "meta":  # there, where only shapes are asked for, it takes a second
                with torch.no_grad():
                    body.eval()(torch.zeros(1, 3, 64, 96))  # in training mode, BatchNorm would learn from it
        except Exception as error:
            raise OhemError(
                f"detector.backbone.name: found {name!r}, which does not take images of any size; allowed: a"
                " convolutional network"
            ) from error
        self.body = body.train()
        self.scales = tuple(scales or [1.0] * len(strides))

    def maps(self, images: Tensor) -> Tensor:
        """See :meth:`OneMapBackbone.maps`."""
        maps = [each / scale for each, scale in zip(self.body(images), self.scales, strict=True)]
        size = maps[0].shape[-2:]
        return torch.cat([maps[0], *(F.interpolate(each, size, mode="nearest") for each in maps[1:])], dim=1)

    def early(self) -> Iterable[nn.Parameter]:
        """All up to the end of the layers with stride 4, in the order in which timm builds them."""
        module = [info["module"] for info in self.body.feature_info.info if info["reduction"] <= 4][-1]
        names = [name for name, _ in self.body.named_modules()]
        last = module if module in names else module.replace(".", "_")  # timm's own rule when it takes models apart
        end = max(i for i, name in enumerate(names) if name == last or name.startswith(f"{last}."))
        modules = [self.body.get_submodule(name) for name in names[: end + 1]]
        return [parameter for each in modules for parameter in each.parameters(recurse=False)]

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Training mode, with BatchNorm left in evaluation mode."""
        super().train(mode)
        freeze_batch_norm(self)
        return self


def freeze_batch_norm(network: nn.Module) -> None:
    """Leave its BatchNorm layers in evaluation mode: they use their stored statistics and do not change them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def build_backbone(spec: BackboneSpec) -> OneMapBackbone:
    """An untrained backbone with the spec's layers frozen; weights are loaded by :mod:`ohem.models.pretrained`.

    Raises:
        OhemError: the name, a stride or the scales do not fit.
    """
    if spec.name in ("vgg16", "vgg_cnn_m_1024"):
        if spec.strides != (16,) or spec.scales is not None:
            raise OhemError(
                f"detector.backbone.strides: found {spec.strides}; allowed for {spec.name}: [16], no scales"
            )
        backbone: OneMapBackbone = VGG16() if spec.name == "vgg16" else VGGCNNM1024()
    else:
        backbone = TimmBackbone(spec.name, spec.strides, spec.scales)
    frozen: Iterable[nn.Module | nn.Parameter] = ()
    if spec.freeze == "all":
        frozen = [backbone]
    elif spec.freeze == "early" or (spec.freeze == "paper" and not isinstance(backbone, TimmBackbone)):
        frozen = backbone.early()
    for part in frozen:
        part.requires_grad_(False)
    return backbone
