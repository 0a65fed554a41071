"""Exponential moving average of the weights: smoother than the weights themselves, and often better."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model, to follow it: call ``update_parameters(model)`` after each step of the optimizer.

    The first update copies the weights. From then on, the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself,
    with t updates before, so that the first weights are soon forgotten: TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``. Buffers are averaged like parameters, as in torchvision's reference training.

    Args:
        model: on its device.
        decay: in (0, 1).

    Returns:
        The averaged model is its ``module``.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))
        get_ema_multi_avg_fn(kept)(averages, weights, updates)  # type: ignore[no-untyped-call]

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
