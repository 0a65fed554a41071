"""Ranking and choosing by MMDetection's OHEMSampler and by ours, with one head's weights, on one image's RoIs.

Run by peers.py, in an environment that has MMDetection: python benchmarks/mmdet_sampler.py NETWORK REPEATS
"""

import json
import sys
import types
from typing import Any

import torch


class NotCompiled(types.ModuleType):
    """In place of mmcv's compiled operators: mmcv imports their names, and none of them is called here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


sys.modules["mmcv._ext"] = NotCompiled("mmcv._ext")

from mmdet.models.roi_heads import StandardRoIHead  # noqa: E402
from mmdet.models.task_modules.assigners import AssignResult  # noqa: E402
from mmdet.models.task_modules.samplers import OHEMSampler  # noqa: E402
from mmdet.structures.bbox import bbox2roi  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

import ohem.ranking  # noqa: E402
from ohem.models.roi_head import RoIHead  # noqa: E402
from peers import TRAINED, align_steps, choose, rois_of  # noqa: E402
from timing import turns  # noqa: E402


def their_head(head: RoIHead, classes: int) -> StandardRoIHead:
    """MMDetection's head with our weights; its background is the last class."""
    align = {"type": "RoIAlign", "output_size": head.pool_size, "sampling_ratio": 2, "use_torchvision": True}
    first = head.fc[0]
    channels = first.in_features // head.pool_size**2
    theirs = StandardRoIHead(
        bbox_roi_extractor=ConfigDict(
            type="SingleRoIExtractor", roi_layer=align, out_channels=channels, featmap_strides=[head.stride]
        ),
        bbox_head=ConfigDict(
            type="ConvFCBBoxHead",
            num_shared_fcs=len(head.fc),
            in_channels=channels,
            fc_out_channels=first.out_features,
            roi_feat_size=head.pool_size,
            num_classes=classes,
        ),
    ).train()
    own = theirs.bbox_head
    for mine, layer in zip(own.shared_fcs, head.fc, strict=True):
        mine.weight, mine.bias = layer.weight, layer.bias
    rolled = [torch.roll(p.detach(), -1, 0) for p in (head.cls_score.weight, head.cls_score.bias)]
    own.fc_cls.weight.data, own.fc_cls.bias.data = rolled
    return theirs


def main() -> None:
    network, repeats = sys.argv[1], int(sys.argv[2])
    steps = align_steps(network)
    features, rois = rois_of(steps)
    head, classes = steps.detector.head, steps.detector.num_classes
    theirs = their_head(head, classes)
    sampler = OHEMSampler(num=TRAINED, pos_fraction=0.25, context=theirs, add_gt_as_proposals=False)
    assigned = AssignResult(4, (rois.labels > 0).long(), rois.max_iou, labels=(rois.labels - 1).clamp(min=-1))
    priors, truth = InstanceData(priors=rois.boxes), InstanceData(bboxes=rois.boxes[:4], labels=torch.arange(4))

    with torch.no_grad():
        scores = theirs._bbox_forward(features, bbox2roi([rois.boxes]))["cls_score"]
        same = head(features[0], rois.boxes)[0]
    torch.testing.assert_close(scores.roll(1, 1), same, rtol=1e-3, atol=1e-4)

    works = {
        "MMDetection": lambda: sampler.sample(assigned, priors, truth, feats=features),
        "ours": lambda: choose(steps, features, rois),
    }
    both = turns(works, repeats)
    found = {**both.seconds(), **both.ratios("MMDetection", "ours")}
    rankings = {
        "bfloat16": ohem.ranking.HalfRanking(),
        "bfloat16, choice again": ohem.ranking.HalfRanking(rescored="choice"),
    }
    for what, ranking in rankings.items():
        steps.detector.rank_by(ranking)
        half = turns(works, repeats).ratios("MMDetection", "ours")
        found |= {f"{name}, ours in {what}": value for name, value in half.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
