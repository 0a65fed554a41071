"""Against peers, on the same network, image and RoIs: plain steps as users write them, and MMDetection's sampler.

MMDetection is no dependency. Its wheels run on a CPU with a stub in place of mmcv's compiled operators:

    python -m venv mmdet-env    # and into it: torch, torchvision, this package
    mmdet-env/bin/pip install --no-deps mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.10.7
    mmdet-env/bin/pip install addict terminaltables yapf shapely termcolor six pycocotools matplotlib
    python benchmarks/bench.py peers --mmdet-python mmdet-env/bin/python
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align, roi_pool

import ohem
from ohem.losses import RoiLosses, roi_losses
from ohem.training.optimizer import clip
from subjects import SIZES, FastRcnnSteps
from timing import line, turns

TRAINED = 64


def measure_peers(network: str, repeats: int, mmdet_python: Path | None) -> dict[str, dict[str, float]]:
    """Steps of one image against a loss layer, and FRCN's against a plain one; ranking against MMDetection's."""
    height, width, rois = SIZES[network]
    steps = FastRcnnSteps(network, rois, (height, width), images=1, batch=TRAINED)
    hard = {"ours": lambda: steps.step("OHEM"), "loss layer": lambda: plain_step(steps, loss_layer)}
    random = {"ours": lambda: steps.step("FRCN"), "plain": lambda: plain_step(steps, random_rois)}
    found = {}
    for name, peer, works in (("step", "loss layer", hard), ("FRCN step", "plain", random)):
        both = turns(works, repeats)
        found[name] = {**both.seconds(), **both.ratios(peer, "ours")}
        print(line(f"{network}, {name}", found[name]), flush=True)
    if mmdet_python is None or len({layer.out_features for layer in steps.detector.head.fc}) > 1:
        print(f"{network}: MMDetection left out; it needs --mmdet-python, and its heads have layers of one width")
        return found
    command = [str(mmdet_python), str(Path(__file__).with_name("mmdet_sampler.py")), network, str(repeats)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found["ranking"] = json.loads(said.splitlines()[-1])
    print(line(f"{network}, ranking", found["ranking"]))
    return found


def plain_step(steps: FastRcnnSteps, mine: Callable[[FastRcnnSteps, Tensor, ohem.Rois], Tensor]) -> None:
    """A step as users write it: torch's own layout of images, torchvision's operators."""
    detector = steps.detector
    ((image, proposals, target),) = steps.draw()
    steps.optimizer.zero_grad(set_to_none=True)
    backbone = detector.backbone
    feature = detector.head.reduce(backbone.maps(backbone.preprocessing(image[None].float() / 255)))
    mine(steps, feature, detector.label(proposals, target)).mean().backward()  # type: ignore[no-untyped-call]
    clip(detector, steps.recipe.optimizer.clip_norm)
    steps.optimizer.step()


def loss_layer(steps: FastRcnnSteps, feature: Tensor, rois: ohem.Rois) -> Tensor:
    """All RoIs through the regular network; the losses of the hardest after NMS."""
    losses = losses_of(steps, feature, rois)
    return losses[nms(rois.boxes, losses.detach(), 0.7)[:TRAINED]]


def random_rois(steps: FastRcnnSteps, feature: Tensor, rois: ohem.Rois) -> Tensor:
    """The losses of the heuristic sampler's RoIs."""
    steps.set_form("FRCN")

    def no_score(*, dropout: bool = True) -> list[RoiLosses]:
        raise AssertionError("the heuristic sampler asks for no losses")

    (chosen,) = steps.detector.sampler([rois], no_score, steps.rng)
    return losses_of(steps, feature, rois[chosen])


def losses_of(steps: FastRcnnSteps, feature: Tensor, rois: ohem.Rois) -> Tensor:
    """(R,) by torchvision's pooling and torch's layers."""
    head = steps.detector.head
    hidden = pool(head, feature, rois.boxes).flatten(1)
    for layer in head.fc:
        hidden = F.dropout(F.relu(layer(hidden)), head.dropout.p)
    return roi_losses(head.cls_score(hidden), head.bbox_pred(hidden), rois).total


def pool(head: Any, feature: Tensor, boxes: Tensor) -> Tensor:
    """As the head does, by torchvision."""
    size = (head.pool_size, head.pool_size)
    if head.pool == "max":
        return roi_pool(feature, [boxes - boxes.new_tensor([0, 0, 1, 1])], size, 1 / head.stride)
    return roi_align(feature, [boxes], size, 1 / head.stride, 2, aligned=True)


def choose(steps: FastRcnnSteps, features: list[Tensor], rois: ohem.Rois) -> Tensor:
    """Ours: the read-only pass and the sampler."""
    return ohem.HardSampler(TRAINED)([rois], lambda *, dropout=True: steps.detector.rank(features, [rois]), steps.rng)[
        0
    ]


def align_steps(network: str) -> FastRcnnSteps:
    """With RoIAlign: mmcv's max-pooling is one of the operators that are not there."""
    height, width, rois = SIZES[network]
    overrides = ("detector.head.pool=align", "detector.head.dropout=0")
    return FastRcnnSteps(network, rois, (height, width), images=1, batch=TRAINED, overrides=overrides)


def rois_of(steps: FastRcnnSteps) -> tuple[list[Tensor], ohem.Rois]:
    ((image, proposals, target),) = steps.draw()
    with torch.no_grad():
        return steps.detector.features([image]), steps.detector.label(proposals, target)
