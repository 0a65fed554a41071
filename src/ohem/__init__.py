"""Train region-based object detectors with online hard example mining (Shrivastava et al., CVPR 2016).

The names below are the public API; :mod:`ohem.samplers` holds the paper's idea. They are imported when first used, so
that the command line can answer ``--help`` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ohem.data.dataset import DetectionDataset, Detections
    from ohem.data.sources import load_dataset
    from ohem.errors import DataError, Fault, OhemError
    from ohem.evaluation.evaluators import CocoEvaluator, VocEvaluator
    from ohem.interchange import from_supervision, to_supervision
    from ohem.judging import evaluate
    from ohem.losses import RoiLosses, roi_losses
    from ohem.model_card import export_weights
    from ohem.models.fast_rcnn import FastRCNN
    from ohem.models.faster_rcnn import FasterRCNN
    from ohem.models.weights import load_detector
    from ohem.onnx_export import check_onnx, export_onnx
    from ohem.pictures import detect_pictures
    from ohem.recipes.recipe import Recipe, load_recipe
    from ohem.report.inspection import inspect_annotations
    from ohem.report.report import make_report
    from ohem.reweighting import FocalLoss, GradientHarmonized
    from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
    from ohem.rois import Rois, label_rois
    from ohem.samplers import AllSampler, HardSampler, RandomSampler, Sampler, hard_examples
    from ohem.torchvision_models import boxes_in_float32, remove_sampler, use_rpn_sampler, use_sampler
    from ohem.training.replay import replay
    from ohem.training.run import Sources
    from ohem.workflow import resume, train

_HOME = {
    "AllSampler": "samplers",
    "CocoEvaluator": "evaluation.evaluators",
    "DataError": "errors",
    "DetectionDataset": "data.dataset",
    "Detections": "data.dataset",
    "FastRCNN": "models.fast_rcnn",
    "FasterRCNN": "models.faster_rcnn",
    "Fault": "errors",
    "FocalLoss": "reweighting",
    "GradientHarmonized": "reweighting",
    "HardSampler": "samplers",
    "IoUBalancedSampler": "rivals",
    "OhemError": "errors",
    "QuotaSampler": "rivals",
    "RandomSampler": "samplers",
    "RankSampler": "rivals",
    "Recipe": "recipes.recipe",
    "RoiLosses": "losses",
    "Rois": "rois",
    "Sampler": "samplers",
    "Sources": "training.run",
    "StratifiedSampler": "rivals",
    "VocEvaluator": "evaluation.evaluators",
    "boxes_in_float32": "torchvision_models",
    "check_onnx": "onnx_export",
    "detect_pictures": "pictures",
    "evaluate": "judging",
    "export_onnx": "onnx_export",
    "export_weights": "model_card",
    "from_supervision": "interchange",
    "hard_examples": "samplers",
    "inspect_annotations": "report.inspection",
    "label_rois": "rois",
    "load_dataset": "data.sources",
    "load_detector": "models.weights",
    "load_recipe": "recipes.recipe",
    "make_report": "report.report",
    "remove_sampler": "torchvision_models",
    "replay": "training.replay",
    "resume": "workflow",
    "roi_losses": "losses",
    "to_supervision": "interchange",
    "train": "workflow",
    "use_rpn_sampler": "torchvision_models",
    "use_sampler": "torchvision_models",
}

__all__ = [
    "AllSampler",
    "CocoEvaluator",
    "DataError",
    "DetectionDataset",
    "Detections",
    "FastRCNN",
    "FasterRCNN",
    "Fault",
    "FocalLoss",
    "GradientHarmonized",
    "HardSampler",
    "IoUBalancedSampler",
    "OhemError",
    "QuotaSampler",
    "RandomSampler",
    "RankSampler",
    "Recipe",
    "RoiLosses",
    "Rois",
    "Sampler",
    "Sources",
    "StratifiedSampler",
    "VocEvaluator",
    "boxes_in_float32",
    "check_onnx",
    "detect_pictures",
    "evaluate",
    "export_onnx",
    "export_weights",
    "from_supervision",
    "hard_examples",
    "inspect_annotations",
    "label_rois",
    "load_dataset",
    "load_detector",
    "load_recipe",
    "make_report",
    "remove_sampler",
    "replay",
    "resume",
    "roi_losses",
    "to_supervision",
    "train",
    "use_rpn_sampler",
    "use_sampler",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ohem' has no attribute {name!r}")
    value: object = getattr(import_module(f"ohem.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
