"""Against peers, on the same network, image and RoIs: the loss layer as users write it, and MMDetection's sampler.

MMDetection is no dependency. Its wheels run on a CPU with a stub in place of mmcv's compiled operators:

    python -m venv mmdet-env    # and into it: torch, torchvision, this package
    mmdet-env/bin/pip install --no-deps mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.10.7
    mmdet-env/bin/pip install addict terminaltables yapf shapely termcolor six pycocotools matplotlib
    python benchmarks/bench.py peers --mmdet-python mmdet-env/bin/python
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align, roi_pool

import ohem
from ohem.losses import roi_losses
from subjects import SIZES, FastRcnnSteps
from timing import line, turns

TRAINED = 64


def measure_peers(network: str, repeats: int, mmdet_python: Path | None) -> dict[str, dict[str, float]]:
    """Steps of one image against a loss layer; ranking against MMDetection's."""
    height, width, rois = SIZES[network]
    steps = FastRcnnSteps(network, rois, (height, width), images=1, batch=TRAINED)
    works = {"ours": lambda: steps.step("OHEM"), "loss layer": lambda: loss_layer_step(steps)}
    both = turns(works, repeats)
    found = {"step": {**both.seconds(), **both.ratios("loss layer", "ours")}}
    print(line(f"{network}, step", found["step"]))
    if mmdet_python is None or len({layer.out_features for layer in steps.detector.head.fc}) > 1:
        print(f"{network}: MMDetection left out; it needs --mmdet-python, and its heads have layers of one width")
        return found
    command = [str(mmdet_python), str(Path(__file__).with_name("mmdet_sampler.py")), network, str(repeats)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found["ranking"] = json.loads(said.splitlines()[-1])
    print(line(f"{network}, ranking", found["ranking"]))
    return found


def loss_layer_step(steps: FastRcnnSteps) -> None:
    """All RoIs through the regular network with torchvision's operators; the hardest after NMS are trained on."""
    detector, head = steps.detector, steps.detector.head
    ((image, proposals, target),) = steps.draw()
    steps.optimizer.zero_grad(set_to_none=True)
    rois = detector.label(proposals, target)
    (feature,) = detector.features([image])
    hidden = pool(head, feature, rois.boxes).flatten(1)
    for layer in head.fc:
        hidden = F.dropout(F.relu(layer(hidden)), head.dropout.p)
    losses = roi_losses(head.cls_score(hidden), head.bbox_pred(hidden), rois).total
    kept = nms(rois.boxes, losses.detach(), 0.7)[:TRAINED]
    losses[kept].mean().backward()  # type: ignore[no-untyped-call]
    steps.optimizer.step()


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
