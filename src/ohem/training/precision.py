"""Mixed precision: bfloat16 or float16 where they save time and memory, float32 where they would do harm."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ohem.errors import OhemError
from ohem.models.products import FloatType
from ohem.training.optimizer import clip

LEAST_SCALE = 1.0
"""Of a float16 loss. Gradients that overflow even here are not mended by another scale (DeepSpeed stops there too)."""


class Precision:
    """How one training computes: autocast in the forward passes, and for float16 a loss scale.

    Weights, gradients, losses and the optimizer's state are in float32 always. The gradients of float16 vanish below
    6e-8 and overflow above 65504, so its loss is multiplied by a scale, and its gradients divided by it, with
    ``torch.amp.GradScaler``: a step with a gradient, or a loss, that is not finite is skipped and halves the scale;
    2,000 steps without one double it. bfloat16 has float32's range and needs none of this.

    Attributes:
        skipped: steps so far that overflowed.
    """

    def __init__(self, name: FloatType, device: torch.device) -> None:
        self.skipped = 0
        self._device = device.type
        self._dtype: torch.dtype = getattr(torch, name)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @property
    def scales(self) -> bool:
        """Whether there is a loss scale: in float16."""
        return self._scaler.is_enabled()

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self._device, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, times the scale."""
        torch.autograd.backward(self._scaler.scale(loss))

    def forgives(self, detector: nn.Module) -> bool:
        """After a loss that is not finite: whether its step is to be skipped as an overflow; if so, it will be.

        Infinite gradients see to it: every process gets them with the sum of gradients.
        """
        if not self.scales or self._scaler.get_scale() <= LEAST_SCALE:
            return False
        trained = next(parameter for parameter in detector.parameters() if parameter.requires_grad)
        self.backward(trained.sum() * torch.inf)
        return True

    def step(self, optimizer: torch.optim.Optimizer, detector: nn.Module, clip_norm: float | None) -> bool:
        """Clip the gradients and change the weights.

        Returns:
            False when the step was skipped.

        Raises:
            OhemError: a gradient is not finite, in float16 at the least scale. The weights are as before, and so is the
                optimizer's state, as after a step that was skipped.
        """
        self._scaler.unscale_(optimizer)
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients.values()]).all())
        if finite:
            clip(detector, clip_norm)
            # Not called after an overflow: a fused optimizer would be too, and SGD's then keeps a momentum of
            # uninitialised memory.
            self._scaler.step(optimizer)
        elif not self.scales or self._scaler.get_scale() <= LEAST_SCALE:
            raise _not_finite(gradients)
        self._scaler.update()
        self.skipped += not finite
        return finite

    def record(self) -> dict[str, float]:
        """For the log: in float16 the steps skipped so far, and the scale."""
        return {"skipped": self.skipped, "loss_scale": self._scaler.get_scale()} if self.scales else {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self._scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def _not_finite(gradients: dict[str, Tensor]) -> OhemError:
    """Finite losses can have other gradients, which would ruin the weights, and with them the next checkpoint."""
    name, bad = next((name, g) for name, g in gradients.items() if not g.isfinite().all())
    found = bad[~bad.isfinite()][0].item()
    return OhemError(
        f"gradient of {name}: found {found}; allowed: finite numbers (a smaller optimizer.lr, or clip_norm)"
    )
