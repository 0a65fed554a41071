"""The older road (paper, section 2): bootstrapping with a frozen detector, before mining went online.

Train for a while; with the weights frozen, run over all training images and harvest what the detector gets wrong; train
on, on that working set; repeat. Each harvest is a pass over the whole set, in which nothing is learned, and the working
set is out of date after the first steps that follow.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ohem.data.dataset import ImageId, Proposals
from ohem.errors import OhemError
from ohem.files import require_new_file, require_suffix, write_atomically
from ohem.mining import ScoredImage, score_images
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals, pick_device
from ohem.recipes.recipe import DataSpec
from ohem.training.run import Weights, find_weights

Harvest = dict[ImageId, NDArray[np.float32]]
"""Image id -> (K, 4) boxes, as :data:`ohem.data.dataset.Proposals`."""


def is_hard(image: ScoredImage, max_background: float = 0.5) -> torch.Tensor:
    """(R,) which RoIs go into the working set: all foreground, and the false positives.

    Args:
        image: scored by the frozen detector.
        max_background: a background RoI is a false positive when its probability of background is lower.
    """
    probability = torch.exp(-image.losses.cls)
    return (image.rois.labels > 0) | ((image.rois.labels == 0) & (probability < max_background))


def harvest(
    source: Path | str,
    data: Sequence[str] | str,
    out: Path | str,
    *,
    proposals: Sequence[str] | str = (),
    also: Proposals | None = None,
    max_background: float = 0.5,
    weights: Weights = "last",
    data_spec: DataSpec | None = None,
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> Harvest:
    """Write the working set of a trained detector as a proposal file, to train on with ``--proposals``.

    Args:
        source: a run's folder, or a weights file.
        data: sources of the training images; the classes are the detector's.
        out: a new JSON file, in COCO's results form; the score of a proposal is its loss.
        proposals: files; selective search when none.
        also: an earlier working set, which is kept: the set only grows.
        max_background: see :func:`is_hard`.
        weights: which of a run's.
        data_spec: how objects of other classes and bad boxes are dealt with.
        device: see :func:`ohem.workflow.train`.
        workers: processes that read images.
        reporter: told of the progress.

    Returns:
        The working set. An image without a false positive or foreground keeps its hardest RoI.

    Raises:
        OhemError: ``out`` exists or is no ``.json``, or anything is wrong with the weights or the data.
    """
    out = Path(out)
    require_new_file(out)
    require_suffix(out, ".json")
    detector, spec, classes = load_detector(find_weights(source, weights))
    if spec.given_proposals is None:
        raise OhemError(
            f"{source}: found a detector with a region proposal network, whose proposals change as it learns; allowed: one"
            " that is given its proposals"
        )
    detector.to(pick_device(device))
    wanted = (data_spec or DataSpec(other_classes="drop")).model_copy(update={"classes": classes})
    dataset = open_dataset(data, wanted, reporter)
    every = open_proposals(dataset, proposals, spec.given_proposals, workers, reporter)

    def progress(done: int, total: int) -> None:
        reporter.progress("harvesting", done, total)

    kept: Harvest = {}
    rows: list[dict[str, object]] = []
    candidates = 0
    for image in score_images(detector, spec, dataset.records, every, workers=workers, progress=progress):
        boxes = every[image.record.id][: spec.max_proposals or None]
        if not len(boxes):  # a file names images by their boxes alone
            whole = np.array([[0, 0, image.record.width, image.record.height]], np.float32)
            kept[image.record.id] = whole
            rows.append(_row(image.record.id, whole[0].tolist(), 0.0))
            continue
        losses = image.losses.total[: len(boxes)].cpu().numpy()
        chosen = is_hard(image, max_background)[: len(boxes)].cpu().numpy()
        if not chosen.any():
            chosen[losses.argmax()] = True
        if also is not None:
            chosen |= _among(boxes, also[image.record.id])
        candidates += len(boxes)
        kept[image.record.id] = boxes[chosen]
        rows += [
            _row(image.record.id, box, float(loss))
            for box, loss in zip(boxes[chosen].tolist(), losses[chosen], strict=True)
        ]
    write_atomically(out, json.dumps(rows))
    reporter.say(
        f"{out}: {len(rows)} of {candidates} proposals of {len(kept)} images are foreground or false positives"
    )
    return kept


def _row(image_id: ImageId, box: Sequence[float], loss: float) -> dict[str, object]:
    x1, y1, x2, y2 = box
    return {"image_id": image_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": round(loss, 4)}


def _among(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(P,) which boxes stand among the others, to the hundredth of a pixel that survives a file."""
    known = {tuple(box) for box in np.round(others, 2).tolist()}
    return np.array([tuple(box) in known for box in np.round(boxes, 2).tolist()], dtype=bool)
