"""Detections of test sets whose annotations are secret, packed as their servers want them."""

import gzip
import re
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ohem.data.dataset import DetectionDataset, Detections, ImageId
from ohem.data.rules import listed
from ohem.data.voc import VOC_CLASSES
from ohem.errors import OhemError
from ohem.evaluation.results import save_coco_results, save_voc_results
from ohem.files import atomic_writer, new_folder
from ohem.judging import beside, run_detector
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec, override_spec
from ohem.training.run import Weights, find_weights

Server = Literal["voc12", "coco"]
"""``voc12``: host.robots.ox.ac.uk:8080, competition 4 (training data of one's own choice); ``coco``: COCO's, boxes."""

COCO_LIMIT = 100
"""Detections of an image, of all classes together, that count (cocodataset.org, Detection Evaluation, section 2).

COCO's code counts this many of each class; what is written here keeps to the rule as it is stated.
"""

COCO_DECIMALS = 1
"""Of boxes, in pixels; cocodataset.org, Results Format, recommends it for the sake of the file's size."""

_IMAGES = {"test": 10_991, "test-dev2015": 20_288, "test-dev2017": 20_288}
"""Test set -> how many images it has, of VOC2012 and COCO."""

COCO_CATEGORIES = {
    name: number
    for number, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
"""Class name -> category id, of COCO's eighty."""


@dataclass(frozen=True)
class Submission:
    """What :func:`submit` made.

    Attributes:
        archive: the file to send.
        test_set: its name at the server.
        images: how many were looked at.
        detections: how many are in the file.
    """

    archive: Path
    test_set: str
    images: int
    detections: int


def submit(
    source: Path,
    server: Server,
    data: str,
    *,
    proposals: Sequence[str] | str = (),
    out: Path | None = None,
    name: str | None = None,
    test_set: str | None = None,
    weights: Weights = "best",
    overrides: Sequence[str] | str = (),
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> Submission:
    """Detect in a test set without annotations, and write the archive that its server takes.

    Args:
        source: a run's folder, or a weights file; its classes must be the server's, in any order.
        server: see :data:`Server`.
        data: the test set, such as ``VOC2012@test`` or ``coco@test-dev2015``; annotations in it are not looked at.
        proposals: proposal files; without, selective search.
        out: a new folder; the first free of ``submission``, ``submission-2``, ... in the run's folder when omitted.
        name: of the method, which the server shows; the run's when omitted.
        test_set: COCO's name of the set, where it is another than that in the name of the data's file.
        weights: which of a run's weights.
        overrides: settings for this use, such as ``detection.refine=0.05`` or ``image.test_scales=[480, 576]``.
        device: see :func:`ohem.workflow.train`.
        workers: likewise.
        reporter: told of what goes on.

    Raises:
        OhemError: no such weights, classes or data that are not the server's, or anything wrong with the data.
    """
    detector, spec, classes = load_detector(find_weights(source, weights))
    spec = override_spec(spec, overrides)
    _require_classes(server, classes)
    name = _method(name, source)
    with new_folder(out, beside(source) / "submission") as folder:
        dataset = open_dataset([data], DataSpec(classes=classes), reporter, annotations="none")
        test_set = _test_set(server, dataset, test_set)
        if len(dataset) != _IMAGES.get(test_set, len(dataset)):
            reporter.warn(f"{dataset.name} has {len(dataset)} images, the server's {test_set} {_IMAGES[test_set]}")
        boxes = open_proposals(dataset, proposals, spec.given_proposals, workers, reporter)
        found = run_detector(detector, spec, dataset.records, boxes, device=device, workers=workers, reporter=reporter)
        if server == "voc12":
            archive = _pack_voc(folder, name, dataset, found)
        else:
            found = _best(found, COCO_LIMIT, reporter)
            archive = _pack_coco(folder, f"detections_{test_set}_{name}_results", dataset, found)
    return Submission(archive, test_set, len(dataset), sum(len(one.labels) for one in found.values()))


def _require_classes(server: Server, classes: Sequence[str]) -> None:
    wanted = VOC_CLASSES if server == "voc12" else tuple(COCO_CATEGORIES)
    missing = [name for name in wanted if name not in classes]
    strange = [name for name in classes if name not in wanted]
    if missing or strange:
        found = [f"no {listed(missing, 3)}"] * bool(missing) + [f"{listed(strange, 3)}, which it has not"] * bool(
            strange
        )
        raise OhemError(
            f"classes: found {' and '.join(found)}; allowed for {server}: its {len(wanted)} classes, all of them"
        )


def _method(name: str | None, source: Path) -> str:
    """What stands for the method in a file's name; underscores part its fields."""
    if name is None:
        stem = source.resolve().name if source.is_dir() else source.stem
        return re.sub(r"[^A-Za-z0-9-]+", "-", stem).strip("-") or "ohem"
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise OhemError(f"name: found {name!r}; allowed: letters, digits and -")
    return name


def _test_set(server: Server, dataset: DetectionDataset, wanted: str | None) -> str:
    if server == "voc12":
        split = dataset.name.rpartition("@")[2]
        if dataset.format != "voc" or split != "test" or wanted not in (None, "test"):
            raise OhemError(f"{dataset.root}: found {wanted or dataset.name}; allowed for voc12: VOC2012@test")
        return "test"
    standard = re.fullmatch(r"image_info_([A-Za-z0-9-]+)", dataset.root.stem)
    if dataset.format != "coco" or not standard:
        raise OhemError(
            f"{dataset.root}: found {dataset.name}; allowed for coco: annotations/image_info_TESTSET.json, such as of "
            "coco@test-dev2015"
        )
    if dict(zip(dataset.classes, dataset.category_ids, strict=True)) != COCO_CATEGORIES:
        raise OhemError(f"{dataset.root}: categories: found other ids; allowed: those of COCO")
    if wanted is not None and not re.fullmatch(r"[A-Za-z0-9-]+", wanted):
        raise OhemError(f"test set: found {wanted!r}; allowed: such as test-dev2017")
    return wanted or standard[1]


def _best(found: Mapping[ImageId, Detections], most: int, reporter: Reporter) -> dict[ImageId, Detections]:
    """The detections of the highest scores of each image; told how many are left out."""
    kept = {}
    for image_id, one in found.items():
        order = np.argsort(-one.scores, kind="stable")[:most]
        kept[image_id] = Detections(one.boxes[order], one.scores[order], one.labels[order])
    left_out = sum(len(one.labels) - len(kept[image_id].labels) for image_id, one in found.items())
    if left_out:
        reporter.warn(f"left out {left_out} detections beyond the best {most} of their image, which do not count")
    return kept


def _pack_voc(folder: Path, name: str, dataset: DetectionDataset, found: Mapping[ImageId, Detections]) -> Path:
    files = save_voc_results(folder / "results" / "VOC2012" / "Main", dataset, found, "test")
    archive = folder / f"{name}.tar.gz"
    with (
        atomic_writer(archive) as stream,
        gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for file in files:
            tar.add(file, str(file.relative_to(folder)), filter=_anonymous)
    return archive


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the user's name, and the same for the same detections."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _pack_coco(folder: Path, stem: str, dataset: DetectionDataset, found: Mapping[ImageId, Detections]) -> Path:
    results, archive = folder / f"{stem}.json", folder / f"{stem}.zip"
    save_coco_results(results, dataset, found, box_decimals=COCO_DECIMALS)
    # A name without folders: the server finds no other.
    member = zipfile.ZipInfo(results.name)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    with (
        atomic_writer(archive) as stream,
        zipfile.ZipFile(stream, "w") as zipped,
        results.open("rb") as source,
        zipped.open(member, "w") as target,
    ):
        shutil.copyfileobj(source, target)
    return archive
