"""RoI pooling of one image: torchvision's operators, or on a CPU the compiled ones of :mod:`ohem.models.roi_kernels`.

The two give the same bits, forward and backward. Both pool in float32 at least: boxes have the precision of the map, and
bfloat16 knows pixels beyond 512 in fours.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from ohem.losses import at_least_float32

SAMPLES = 2
"""RoIAlign's points a bin in each direction."""


def max_pool_rois(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """RoI max-pooling (Fast R-CNN, section 2.1).

    Args:
        features: (1, C, H, W).
        boxes: (R, 4) xyxy, pixels of the network's input, half-open.
        size: S, side of the result.
        scale: cells of the map per pixel.

    Returns:
        (R, C, S, S) in the precision of ``features``, float32 at least.
    """
    features = at_least_float32(features)
    inclusive = _inclusive(boxes, features.dtype)
    if _compiled_fits(features):
        # A function of one's own is told that features need a gradient also where none is made.
        features = features if torch.is_grad_enabled() else features.detach()
        return cast(Tensor, _MaxPool.apply(features, inclusive, size, scale))
    return cast(Tensor, roi_pool(features, [inclusive], (size, size), scale))


def max_pool_cells(boxes: Tensor, scale: float) -> Tensor:
    """The cells that RoI max-pooling of float32 maps reads: (R, 4) int64, inclusive; arguments as there."""
    cells = (_inclusive(boxes, torch.float32) * scale).double()
    return (cells.abs() + 0.5).floor().copysign(cells).long()  # as C's round: halves away from zero


def align_rois(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3), half-pixel correct, :data:`SAMPLES` squared points a bin.

    Arguments and result as in :func:`max_pool_rois`.
    """
    features = at_least_float32(features)
    boxes = boxes.to(features.dtype)
    if _compiled_fits(features):
        return cast(Tensor, _Align.apply(features, boxes, size, scale))
    return cast(Tensor, roi_align(features, [boxes], (size, size), scale, SAMPLES, aligned=True))


@cache
def compiled_is_installed() -> bool:
    """Whether numba is there (``pip install 'ohem[fast]'``)."""
    return find_spec("numba") is not None


def _inclusive(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """With corners as Caffe and torchvision read them."""
    return boxes.to(dtype) - boxes.new_tensor([0, 0, 1, 1], dtype=dtype)


def _compiled_fits(features: Tensor) -> bool:
    plain = features.device.type == "cpu" and features.dtype == torch.float32 and not torch.compiler.is_compiling()
    return plain and compiled_is_installed()


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
        from ohem.models import roi_kernels

        out = features.new_empty(len(boxes), features.shape[1], size, size)
        common = _channels_last(features), boxes.numpy(), np.float32(scale)
        if not ctx.needs_input_grad[0]:
            _share(lambda a, b: roi_kernels.max_pool(*common, a, b, out.numpy()), len(boxes))
            return out
        places = torch.empty(out.shape, dtype=torch.int32)
        _share(lambda a, b: roi_kernels.max_pool_with_places(*common, a, b, out.numpy(), places.numpy()), len(boxes))
        ctx.save_for_backward(places)
        ctx.shape = features.shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        from ohem.models import roi_kernels

        (places,) = ctx.saved_tensors
        arrays = gradient.contiguous().numpy(), places.numpy()
        return _map_gradient(ctx.shape, lambda a, b, out: roi_kernels.max_pool_backward(*arrays, a, b, out))


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
        from ohem.models import roi_kernels

        out = features.new_empty(len(boxes), features.shape[1], size, size)
        common = _channels_last(features), boxes.numpy(), np.float32(scale), SAMPLES
        _share(lambda a, b: roi_kernels.align(*common, a, b, out.numpy()), len(boxes))
        ctx.save_for_backward(boxes)
        ctx.shape, ctx.scale = features.shape, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        from ohem.models import roi_kernels

        (boxes,) = ctx.saved_tensors
        common = gradient.contiguous().numpy(), boxes.numpy(), np.float32(ctx.scale), SAMPLES
        return _map_gradient(ctx.shape, lambda a, b, out: roi_kernels.align_backward(*common, a, b, out))


def _channels_last(features: Tensor) -> NDArray[np.float32]:
    """(H, W, C), contiguous."""
    return cast(NDArray[np.float32], features.detach()[0].permute(1, 2, 0).contiguous().numpy())


def _map_gradient(
    shape: torch.Size, add: Callable[[int, int, NDArray[np.float32]], None]
) -> tuple[Tensor, None, None, None]:
    """The gradient of a (1, C, H, W) map. Threads have channels of their own, so each cell's sum has one order."""
    _, channels, height, width = shape
    out = np.zeros((height, width, channels), np.float32)
    _share(lambda first, last: add(first, last, out), channels)
    return torch.from_numpy(out).permute(2, 0, 1)[None], None, None, None


def _share(work: Callable[[int, int], None], count: int) -> None:
    """Call ``work(first, last)`` for parts of ``range(count)``, in as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), count))
    parts = list(pairwise(round(count * i / threads) for i in range(threads + 1)))
    if threads == 1:
        work(*parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: work(*part), parts))
