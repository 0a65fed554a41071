"""Matrix products of many RoIs without gradient, in float32 and in half precision.

torch hands float32 products on a CPU to MKL, which leaves half of the vector unit of AMD's processors with AVX-512 idle:
oneDNN, which torch has along for its convolutions, takes less than half the time there, about the same on one with
AVX2, and more on Intel's (``benchmarks/products.py``). Both compute in float32; their sums differ in order. The operator is one
that torch's compiler uses, and not public: where a torch does not have it, the layer is called.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ohem.processor import processor_name

STEP = 64
"""Rows of a product are a multiple of it: oneDNN keeps up to 2 MB for every number of rows that it has met."""
MOST = 512
"""Rows of a product."""

FloatType = Literal["float32", "bfloat16", "float16"]
"""What numbers are multiplied in, by the name that torch gives it."""


def linear(layer: nn.Module, values: Tensor) -> Tensor:
    """``layer(values)`` under ``torch.no_grad``, by oneDNN where :func:`onednn_fits` says so and there are enough rows.

    Args:
        layer: a fully connected layer.
        values: (R, its inputs).

    Returns:
        (R, its outputs).
    """
    if len(values) < STEP or not onednn_fits(layer, values):
        return cast(Tensor, layer(values))
    result = values.new_empty(len(values), cast(nn.Linear, layer).out_features)
    for first, last in blocks(len(values), MOST):
        part = values[first:last].contiguous()
        result[first:last] = torch.ops.mkldnn._linear_pointwise(part, layer.weight, layer.bias, "none", [], "")
    return result


def blocks(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of blocks that cover all rows, of few lengths: multiples of :data:`STEP`, about ``most``.

    Some rows are in two blocks, so that the last needs no other length. Fewer rows than a step are one block.
    """
    length = max(STEP, most // STEP * STEP)
    first = 0
    while rows - first > length:
        yield first, first + length
        first += length
    rest = -(-(rows - first) // STEP) * STEP
    if rest <= rows:
        yield rows - rest, rows
    elif rows < STEP:
        yield 0, rows
    else:
        yield 0, rest - STEP
        yield rows - STEP, rows


def onednn_fits(layer: nn.Module, values: Tensor) -> bool:
    """Whether oneDNN multiplies them: float32 on a CPU where MKL is not at home, no autocast, no graph, no hooks."""
    return (
        type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and values.device.type == "cpu"
        and values.dtype == layer.weight.dtype == torch.float32
        and layer.weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and bool(torch.backends.mkldnn.enabled)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not mkl_is_at_home()
    )


def mkl_is_at_home() -> bool:
    """Whether MKL multiplies float32 here, on a processor of those who make it: faster than oneDNN on these alone."""
    return bool(torch.backends.mkl.is_available()) and "Intel" in processor_name()  # type: ignore[no-untyped-call]


def half_products(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Layers in half precision: by autocast, or by :class:`RoundedProducts` where :func:`has_arithmetic` says no."""
    if has_arithmetic(device, precision):
        return torch.autocast(device.type, precision)
    return RoundedProducts(precision)


def has_arithmetic(device: torch.device, precision: torch.dtype) -> bool:
    """Whether a device multiplies bfloat16 or float16 itself. Asked of x86 processors; of others it is taken for granted."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if device.type != "cpu" or known.get("architecture") != "x86_64":
        return True
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[precision]
    return bool(known.get(f"avx512_{name}") or known.get(f"amx_{name}"))


class RoundedProducts(TorchFunctionMode):
    """What autocast computes, where it would be many times slower than float32: rounded numbers, multiplied in float32.

    Inputs, weights and outputs of fully connected and convolutional layers are rounded to the precision and stay float32.
    Up to the order of sums these are the numbers of a device with arithmetic for it, in the time of float32.

    Args:
        precision: rounded to.
    """

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()
        self.precision = precision

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Layers are rounded; everything else is left as it is."""
        if func not in (F.linear, F.conv2d, getattr(torch.ops.mkldnn, "_linear_pointwise", None)):
            return func(*args, **(kwargs or {}))
        rounded = [self._round(value) if isinstance(value, Tensor) else value for value in args]
        return self._round(func(*rounded, **(kwargs or {})))

    def _round(self, values: Tensor) -> Tensor:
        return values.to(self.precision).to(values.dtype)
