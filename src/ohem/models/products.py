"""Matrix products of many RoIs without gradient.

torch hands float32 products on a CPU to MKL, which on processors that are not Intel's leaves half of their vector unit
idle: on an AMD EPYC of 2025 oneDNN, which torch has along for its convolutions, takes less than half the time
(``benchmarks/products.py``). Both compute in float32; their sums differ in order. The operator is one that torch's compiler
uses, and not public: where a torch does not have it, the layer is called.
"""

from typing import cast

import torch
from torch import Tensor, nn


def linear(layer: nn.Module, values: Tensor) -> Tensor:
    """``layer(values)`` under ``torch.no_grad``, by oneDNN where :func:`onednn_fits` says so.

    Args:
        layer: a fully connected layer.
        values: (R, its inputs).

    Returns:
        (R, its outputs).
    """
    if not onednn_fits(layer, values):
        return cast(Tensor, layer(values))
    product = torch.ops.mkldnn._linear_pointwise
    return cast(Tensor, product(values.contiguous(), layer.weight, layer.bias, "none", [], ""))


def onednn_fits(layer: nn.Module, values: Tensor) -> bool:
    """Whether oneDNN multiplies them: float32 on a CPU, no autocast, no graph, and nothing hooked to the layer."""
    return (
        type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and values.device.type == "cpu"
        and values.dtype == layer.weight.dtype == torch.float32
        and layer.weight.is_contiguous()
        and len(values) > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and bool(torch.backends.mkldnn.enabled)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
