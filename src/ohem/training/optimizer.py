"""The optimizer and its learning rates."""

import torch
from torch import nn

from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import FasterRCNN
from ohem.recipes.recipe import OptimizerSpec


def build_optimizer(detector: FastRCNN, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters, in groups that carry their own ``base_lr``.

    Biases (and all other parameters with one dimension) have ``bias_lr_factor`` times the rate and no weight decay. In
    the authors' code the biases of VGG16's convolutions do decay, by Caffe's default; those of its other layers do not.
    """
    parts = [(detector.backbone, spec.backbone_lr_factor), (detector.head, 1.0)]
    parts += [(detector.rpn, 1.0)] if isinstance(detector, FasterRCNN) else []
    groups = []
    for part, part_factor in parts:
        parameters = [p for p in part.parameters() if p.requires_grad]
        for is_bias in (False, True):
            members = [p for p in parameters if (p.dim() == 1) == is_bias]
            lr = spec.lr * part_factor * (spec.bias_lr_factor if is_bias else 1.0)
            decay = 0.0 if is_bias else spec.weight_decay
            if members:
                groups.append({"params": members, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if spec.kind == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=spec.lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Multiply every group's base rate; returns the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(max(group["lr"] for group in optimizer.param_groups))


def clip(module: nn.Module, max_norm: float | None) -> None:
    """Scale all gradients down together when their norm is larger."""
    if max_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), max_norm)
