"""How many of a data set's objects the proposals reach at all: the ceiling of a detector that classifies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import ImageRecord, Proposals
from ohem.data.overlaps import pairwise_iou

AREAS = ("all", "small", "medium", "large")
"""COCO's sizes: small below 32 x 32 square pixels, large from 96 x 96."""

_SMALL, _LARGE = 32.0**2, 96.0**2


@dataclass(frozen=True, eq=False)
class RecallTable:
    """Share of the objects that some proposal overlaps enough, by number of proposals and size of the object.

    Attributes:
        ious: the T overlaps that are asked for.
        counts: the N numbers of proposals that are looked at in each image, the first ones; None for all.
        recall: (A, T, N) float64, by size as in `AREAS`; NaN where there are no objects.
        objects: (A,) int64, how many are counted; difficult and crowd objects are not.
        mean_proposals: (N,) float64, proposals looked at in an image, on average.
    """

    ious: tuple[float, ...]
    counts: tuple[int | None, ...]
    recall: NDArray[np.float64]
    objects: NDArray[np.int64]
    mean_proposals: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """The fields as nested lists, in the order of the axes; recall is NaN where there are no objects."""
        return {
            "ious": list(self.ious),
            "counts": list(self.counts),
            "areas": list(AREAS),
            "recall": self.recall.tolist(),
            "objects": self.objects.tolist(),
            "mean_proposals": self.mean_proposals.tolist(),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The table for people: a heading, a row for each number of proposals, then the numbers of objects."""
        columns = [(t, a) for t in range(len(self.ious)) for a in range(len(AREAS))]
        heading = ("proposals", "per image", *(f"{AREAS[a]} @{self.ious[t]:g}" for t, a in columns))
        body = [
            (
                "all" if count is None else str(count),
                f"{self.mean_proposals[n]:.1f}",
                *(f"{self.recall[a, t, n]:.3f}" if self.objects[a] else "-" for t, a in columns),
            )
            for n, count in enumerate(self.counts)
        ]
        return [heading, *body, ("objects", "", *(str(self.objects[a]) for _, a in columns))]


def proposal_recall(
    records: Sequence[ImageRecord],
    proposals: Proposals,
    ious: Sequence[float] = (0.5, 0.7),
    counts: Sequence[int | None] = (10, 100, 300, 1000, 2000, None),
) -> RecallTable:
    """Recall of the objects that are neither difficult nor crowd.

    An object is found when one of the proposals overlaps it by at least the wanted IoU; two objects may be found by
    the same proposal. An object's size is its record's ``area``: the segmentation's, where COCO has one.

    Raises:
        KeyError: an image has no entry in the proposals; see `ohem.proposals.imports.validate_proposals`.
    """
    best, area, used = [], [], []
    for record in records:
        counted = ~(record.difficult | record.crowd)
        boxes = proposals[record.id]
        limits = [len(boxes) if count is None else min(count, len(boxes)) for count in counts]
        best.append(_best_overlaps(boxes.astype(np.float64), record.boxes[counted], limits))
        area.append(record.area[counted])
        used.append(limits)
    overlaps = np.concatenate([np.empty((len(counts), 0)), *best], axis=1)
    found = overlaps >= np.array(ious)[:, None, None]
    in_size = _in_size(np.concatenate([np.empty(0), *area]))
    hits = np.array([found[:, :, member].sum(axis=2) for member in in_size])
    objects = in_size.sum(axis=1)
    recall = np.divide(hits, objects[:, None, None], out=np.full(hits.shape, np.nan), where=objects[:, None, None] > 0)
    mean_proposals = np.mean(used, axis=0) if used else np.zeros(len(counts))
    return RecallTable(tuple(ious), tuple(counts), recall, objects, mean_proposals)


def _in_size(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(A, G): which objects are of which size of `AREAS`."""
    small, large = area < _SMALL, area >= _LARGE
    return np.stack([np.ones_like(small), small, ~small & ~large, large])


def _best_overlaps(
    boxes: NDArray[np.float64], objects: NDArray[np.float64], limits: Sequence[int]
) -> NDArray[np.float64]:
    """(N, G): the best IoU of each object with the first ``limit`` boxes, for each of the N limits; 0 with none."""
    overlaps = np.concatenate([np.zeros((1, len(objects))), pairwise_iou(boxes, objects)])
    best = np.maximum.accumulate(overlaps, axis=0)
    return np.asarray(best[list(limits)])
