"""A detector used on a data set: its detections, and what they are worth."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ohem.data.dataset import Detections, ImageId, ImageRecord, Proposals
from ohem.data.rules import BadBoxes, OtherClasses, as_names, one_line
from ohem.errors import OhemError
from ohem.evaluation.coco import CocoResult, evaluate_coco
from ohem.evaluation.results import save_coco_results, save_voc_results, voc_result_paths
from ohem.evaluation.voc import VocResult, evaluate_voc
from ohem.files import new_folder, write_atomically
from ohem.inference import detect
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.spec import AnyDetectorSpec
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals, pick_device
from ohem.recipes.recipe import DataSpec, override_spec
from ohem.training.run import Weights, find_weights, fingerprint


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What :func:`evaluate` measured, and the folder it was written to; ``metrics`` is what ``metrics.json`` holds."""

    folder: Path
    metrics: Mapping[str, Any]
    detections: Mapping[ImageId, Detections]
    voc07: VocResult
    voc12: VocResult
    coco: CocoResult


def evaluate(
    source: Path | str,
    data: Sequence[str] | str,
    *,
    proposals: Sequence[str] | str = (),
    out: Path | None = None,
    weights: Weights = "best",
    overrides: Sequence[str] | str = (),
    other_classes: OtherClasses = "drop",
    bad_boxes: BadBoxes = "error",
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Measure a detector on a data set, and write ``metrics.json`` and its detections.

    Detections go into ``detections.json`` (COCO's results format), and for VOC data into ``voc/comp4_det_*.txt`` too.

    Args:
        source: a run's folder, or a weights file.
        data: data sources; the classes are the detector's.
        proposals: proposal files; without, selective search.
        out: a new folder; the first free of ``evaluation``, ``evaluation-2``, ... in the run's folder when omitted.
        weights: which of a run's weights.
        overrides: settings for this use, such as ``detection.refine=0.05`` or ``image.test_scales=[480, 576]``.
        other_classes: objects of classes that the detector does not know.
        bad_boxes: boxes that are reversed, empty or outside their image.
        device: see :func:`ohem.workflow.train`.
        workers: see :func:`ohem.workflow.train`.
        reporter: told of what goes on.

    Raises:
        OhemError: no such weights, or anything wrong with the data.
    """
    file = find_weights(source, weights)
    detector, spec, classes = load_detector(file)
    spec = override_spec(spec, overrides)
    data = as_names(data)
    with new_folder(out, beside(source) / "evaluation") as folder:
        wanted = DataSpec(classes=classes, other_classes=other_classes, bad_boxes=bad_boxes)
        dataset = open_dataset(data, wanted, reporter)
        split = dataset.name.rpartition("@")[2] if len(data) == 1 and "@" in dataset.name else "all"
        in_voc_format = dataset.format == "voc"
        if in_voc_format:
            try:
                voc_result_paths(folder / "voc", dataset, split)
            except OhemError as error:  # the numbers need no such files
                in_voc_format = False
                reporter.warn(f"{error}; none are written")
        boxes = open_proposals(dataset, proposals, spec.given_proposals, workers, reporter)
        found = run_detector(detector, spec, dataset.records, boxes, device=device, workers=workers, reporter=reporter)
        voc07 = evaluate_voc(dataset, found, method="voc07")
        voc12 = evaluate_voc(dataset, found, method="area")
        coco = evaluate_coco(dataset, found)
        save_coco_results(folder / "detections.json", dataset, found)
        if in_voc_format:
            save_voc_results(folder / "voc", dataset, found, split)
        metrics = {
            "data": dataset.name,
            "sources": list(data),
            "images": len(dataset),
            "fingerprint": fingerprint(dataset, boxes),
            "weights": file.name,
            "settings": spec.model_dump(
                mode="json", include={"image", "detection", "proposals" if spec.given_proposals else "rpn"}
            ),
            "voc07": voc07.to_json(),
            "voc12": voc12.to_json(),
            "coco": coco.to_json(),
        }
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return Evaluation(folder, metrics, found, voc07, voc12, coco)


def read_metrics(file: Path) -> dict[str, Any]:
    """What an evaluation's ``metrics.json`` holds.

    Raises:
        OhemError: it is damaged.
    """
    allowed = "an evaluation (evaluate again)"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OhemError(f"{file}: found no readable JSON ({one_line(str(error))}); allowed: {allowed}") from error
    if not isinstance(metrics, dict):
        raise OhemError(f"{file}: found {type(metrics).__name__}; allowed: {allowed}")
    return metrics


def run_detector(
    detector: FastRCNN,
    spec: AnyDetectorSpec,
    records: Sequence[ImageRecord],
    proposals: Proposals,
    *,
    device: str | None,
    workers: int,
    reporter: Reporter,
) -> dict[ImageId, Detections]:
    """Detections of images, with progress, by the spec's settings of use; see :func:`ohem.inference.detect`."""
    if isinstance(detector, FasterRCNN) and spec.rpn is not None:
        detector.rpn.use(spec.rpn)
    return detect(
        detector.to(pick_device(device)),
        records,
        proposals,
        spec.image,
        spec.detection,
        max_proposals=spec.max_proposals,
        workers=workers,
        progress=partial(reporter.progress, "detecting"),
    )


def beside(source: Path | str) -> Path:
    """Where what is made of a run, or of a weights file, goes by default: into the run, or beside the file."""
    source = Path(source)
    return source if source.is_dir() else source.parent
