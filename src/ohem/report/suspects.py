"""How likely annotations are wrong, from what a detector makes of them. Scores are functions of arrays; see each.

The ideas are those of ObjectLab (Tkachenko et al., 2023, https://arxiv.org/abs/2309.00832), with the detector asked about the
annotated boxes themselves, which detections after NMS do not tell: the class loss of an annotation is what mining would
rank it by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import ImageRecord
from ohem.data.overlaps import areas, pairwise_inside, pairwise_iou
from ohem.report.evidence import Evidence

KINDS = ("missing box", "wrong class", "badly placed", "spurious box")

Fix = Literal["add", "relabel", "move", "remove"]

FOUND = 0.5
"""Overlap from which a detection is of an annotated object; if it is of its class too, it belongs to the annotation."""

TOUCHING = 0.1
"""Overlap from which a detection has to do with an annotated box."""

PART = 0.8
"""Share of a box inside another from which it is taken for a part of that object."""

LEAST = 1e-3
"""Added to the probability of the annotated class: below it, how impossible the class looks makes no difference."""

LOSS_SCALE = 5.0
"""A class loss of so many nats makes an annotation 63 % incredible: one in 150 for its class."""

SIZE_POWER = 0.05
"""Of a box's share of the image, in the score of a spurious box."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Suspect:
    """An annotation that may be wrong, or a box that may be missing.

    Attributes:
        record: its image.
        kind: one of `KINDS`.
        score: how likely, in [0, 1], among suspects of its kind.
        row: the annotation's row in the record; None for a missing box.
        box: (4,) the annotated box, or the missing one.
        label: the annotated class, 0 for a missing box.
        fix: what to do if the suspicion is right.
        new_box: (4,) where it should be; ``box`` where that does not change.
        new_label: what it should be.
    """

    record: ImageRecord
    kind: str
    score: float
    row: int | None
    box: Floats
    label: int
    fix: Fix
    new_box: Floats
    new_label: int


def missing_scores(iou: Floats, inside: Floats, scores: Floats) -> Floats:
    """How likely each detection is an object without a box: its score, as far as no annotation explains it.

    Args:
        iou: (D, G) overlaps with the annotated boxes.
        inside: (D, G) the share of each detection's area in annotated boxes of its own class, 0 in others: a head in
            an annotated dog is no dog of its own.
        scores: (D,).
    """
    explained = np.maximum(iou / FOUND, inside).max(axis=1, initial=0.0).clip(max=1)
    missing: Floats = scores * (1 - explained)
    return missing


def class_scores(
    probabilities: Floats, labels: NDArray[np.int64], explained: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """How likely each annotation has the wrong class, and the right one.

    With p of the likeliest other class and q of the annotated one: p, times how many times likelier it is, p / q. Their
    product x becomes a score as x / (1 + x). Of a class that a neighbour explains, half is taken away: there is a cat in
    the box of a person who holds one.

    Args:
        probabilities: (G, C + 1) of the annotated boxes, background first.
        labels: (G,) 1..C.
        explained: (G, C + 1) how far another annotation of each class shares the box: the larger of the two shares of
            each other's area.
    """
    rows = np.arange(len(labels))
    others = probabilities * (1 - explained / 2)
    others[:, 0] = others[rows, labels] = 0
    best = others.argmax(axis=1)
    squared = others[rows, best] ** 2
    wrong: Floats = squared / (squared + probabilities[rows, labels] + LEAST)
    return wrong, best


def place_scores(
    iou: Floats, alike: Floats, scores: Floats, background: Floats, support: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """How likely each annotated box is in the wrong place, and the detection that is in the right one (-1: none).

    It looks like background, and beside it is a detection of its class and about its size that belongs to no annotation,
    while none belongs to the annotated box: the product of these. A detection that holds a neighbour of the same class
    too counts half: it may be of both.

    Args:
        iou: (G, D) overlaps of annotated boxes and detections.
        alike: (G, D) how alike their sizes are, less for those that hold a neighbour, and 0 for those of another class.
        scores: (D,) of the detections.
        background: (G,) probability that there is nothing in the annotated boxes.
        support: (G,) the highest score of a detection that belongs to the annotation.
    """
    taken = ((alike > 0) & (iou >= FOUND)).any(axis=0)
    rivals = np.where(~taken & (iou >= TOUCHING), scores * alike, 0)
    if not rivals.shape[1]:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    best = rivals.argmax(axis=1)
    place = rivals[np.arange(len(iou)), best] * (1 - support) * background
    return place, np.where(place > 0, best, -1)


def spurious_scores(probabilities: Floats, labels: NDArray[np.int64], touching: Floats, area: Floats) -> Floats:
    """How likely there is nothing in each annotated box: background with a large class loss, and no detection.

    The loss tells more than the probability of background, which is near 1 for small objects too: training has seen
    to it that an object, however hard, is not as incredible as nothing. Small objects are the hardest all the same, so a
    box of a hundredth of the image counts a fifth less than one that fills it.

    Args:
        probabilities: (G, C + 1) of the annotated boxes, background first.
        labels: (G,) 1..C.
        touching: (G,) the highest score of a detection of any class that touches the box.
        area: (G,) share of the image.
    """
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
    spurious: Floats = probabilities[:, 0] * (1 - np.exp(-loss / LOSS_SCALE)) * (1 - touching) * area**SIZE_POWER
    return spurious


def find_suspects(evidence: Sequence[Evidence]) -> list[Suspect]:
    """Every annotation that counts, with its likeliest error, and every object without one, likeliest first.

    Scores of one kind do not compare with those of another, so the kinds take turns: the likeliest of each, the second
    of each. An annotation is of the kind in which it comes first, and stands in the list once.
    """
    ranked: list[tuple[int, Suspect]] = []
    annotated = [one for e in evidence for one in _annotated(e)]
    missing = [one for e in evidence for one in _missing(e)]
    ranks = np.array([_ranks([choices[k].score for choices in annotated]) for k in range(len(KINDS) - 1)]).T
    for row, choices in zip(ranks.reshape(-1, len(KINDS) - 1).tolist(), annotated, strict=True):
        ranked.append(min(zip(row, choices, strict=True), key=_likelier))
    ranked += zip(_ranks([one.score for one in missing]), missing, strict=True)
    return [one for _, one in sorted(ranked, key=_likelier)]


def _likelier(ranked: tuple[int, Suspect]) -> tuple[int, float]:
    return ranked[0], -ranked[1].score


def _ranks(scores: Sequence[float]) -> list[int]:
    """Place of each by falling score, from 0; those of score 0 come behind every list."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    places = np.empty(len(scores), dtype=np.int64)
    places[order] = np.arange(len(scores))
    places[np.asarray(scores) == 0] = np.iinfo(np.int64).max
    return [int(place) for place in places]


def _annotated(e: Evidence) -> list[tuple[Suspect, ...]]:
    """For each annotation that counts, what it would be as a suspect of each kind but the first."""
    record, labels = e.record, e.record.labels
    iou = pairwise_iou(record.boxes, e.boxes)
    touching = np.where(iou >= TOUCHING, e.scores, 0).max(axis=1, initial=0.0)
    by_class, other = class_scores(e.probabilities, labels, _explained(record, e.probabilities.shape[1]))
    by_place, rival = _placed(e)
    area = areas(record.boxes) / (record.width * record.height)
    spurious = spurious_scores(e.probabilities, labels, touching, area)
    suspects: list[tuple[Suspect, ...]] = []
    for row in np.flatnonzero(~(record.difficult | record.crowd)).tolist():
        box, label = record.boxes[row], int(labels[row])
        moved = e.boxes[rival[row]] if rival[row] >= 0 else box
        suspects.append(
            (
                Suspect(record, KINDS[3], float(spurious[row]), row, box, label, "remove", box, label),
                Suspect(record, KINDS[2], float(by_place[row]), row, box, label, "move", moved, label),
                Suspect(record, KINDS[1], float(by_class[row]), row, box, label, "relabel", box, int(other[row])),
            )
        )
    return suspects


def _missing(e: Evidence) -> list[Suspect]:
    iou = pairwise_iou(e.boxes, e.record.boxes)
    own = pairwise_inside(e.boxes, e.record.boxes) * (e.labels[:, None] == e.record.labels)
    scores = missing_scores(iou, own, e.scores) * ~_belongs_to_a_misplaced(e)
    suspects: list[Suspect] = []
    for row in np.argsort(-scores, kind="stable"):
        box, label = e.boxes[row], int(e.labels[row])
        known = np.array([one.box for one in suspects]).reshape(-1, 4)
        alike = np.array([one.new_label == label for one in suspects], dtype=bool)
        seen = (pairwise_iou(box[None], known)[0] >= FOUND).any()  # perhaps as another class
        part = (alike & (pairwise_inside(box[None], known)[0] >= PART)).any()
        if scores[row] > 0 and not seen and not part:
            suspects.append(Suspect(e.record, KINDS[0], float(scores[row]), None, box, 0, "add", box, label))
    return suspects


def _belongs_to_a_misplaced(e: Evidence) -> NDArray[np.bool_]:
    """(D,) Detections that are sooner where an annotated box should be than objects without one."""
    place, rival = _placed(e)
    moved = np.zeros(len(e.scores), dtype=bool)
    for row in np.flatnonzero(rival >= 0):
        moved[rival[row]] |= place[row] >= 0.5 * e.scores[rival[row]]
    return moved


def _placed(e: Evidence) -> tuple[Floats, NDArray[np.int64]]:
    """:func:`place_scores` of an image."""
    iou = pairwise_iou(e.record.boxes, e.boxes)
    same = e.record.labels[:, None] == e.labels
    support: Floats = np.where(same & (iou >= FOUND), e.scores, 0).max(axis=1, initial=0.0)
    mates = (e.record.labels[:, None] == e.record.labels) & ~np.eye(len(iou), dtype=bool)
    inside = pairwise_inside(e.record.boxes, e.boxes)
    neighbours = (mates[:, :, None] * inside).max(axis=1, initial=0.0)
    alike = same * size_likeness(e.record.boxes, e.boxes) * (1 - neighbours / 2)
    return place_scores(iou, alike, e.scores, e.probabilities[:, 0], support)


def _explained(record: ImageRecord, classes: int) -> Floats:
    """See :func:`class_scores`."""
    inside = pairwise_inside(record.boxes, record.boxes)
    shared = np.maximum(inside, inside.T) * ~np.eye(len(inside), dtype=bool)
    of_class = [(shared * (record.labels == label)).max(axis=1, initial=0.0) for label in range(classes)]
    return np.stack(of_class, axis=1)


def size_likeness(a: Floats, b: Floats) -> Floats:
    """(A, 4) and (B, 4) -> (A, B) how alike the boxes are in size: the ratio of widths times that of heights, at most 1."""
    sides = np.maximum(a[:, None, 2:] - a[:, None, :2], 1e-12), np.maximum(b[None, :, 2:] - b[None, :, :2], 1e-12)
    alike: Floats = np.prod(np.minimum(*sides) / np.maximum(*sides), axis=2)
    return alike
