"""Scores of suspects: small scenes whose numbers a hand can check."""

from pathlib import Path

import numpy as np
import pytest

from ohem.data.dataset import ImageRecord
from ohem.report.evidence import Evidence
from ohem.report.suspects import (
    _annotated,
    class_scores,
    find_suspects,
    missing_scores,
    pairwise_inside,
    pairwise_iou,
    place_scores,
    size_likeness,
    spurious_scores,
)

CAT, DOG = 1, 2


def test_a_detection_is_missing_as_far_as_no_annotation_explains_it() -> None:
    iou = np.array([[0.0, 0.0], [0.1, 0.2], [0.0, 0.6], [0.1, 0.0]])
    inside = np.array([[0.0, 0.0], [0.3, 0.0], [0.0, 0.0], [1.0, 0.0]])  # the last is a head within an annotated body
    assert missing_scores(iou, inside, np.array([0.9, 0.5, 0.8, 0.7])) == pytest.approx([0.9, 0.3, 0, 0])
    assert missing_scores(np.zeros((2, 0)), np.zeros((2, 0)), np.array([0.9, 0.8])).tolist() == [0.9, 0.8]


def test_a_class_is_wrong_as_far_as_another_is_likely_and_likelier() -> None:
    probabilities = np.array([[0.1, 0.7, 0.2], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.4, 0.02, 0.58]])
    labels, alone = np.array([CAT, CAT, DOG, CAT]), np.zeros((4, 3))
    scores, best = class_scores(probabilities, labels, alone)
    odds = [0.2 * 0.2 / 0.701, 0.7 * 0.7 / 0.201, 0.1 * 0.1 / 0.101, 0.58 * 0.58 / 0.021]
    assert scores == pytest.approx([x / (1 + x) for x in odds])
    assert best.tolist() == [DOG, DOG, CAT, DOG]
    assert scores[3] > scores[1]  # less sure of the dog, but the cat is out of the question
    beside_a_dog = class_scores(probabilities, labels, np.tile([0, 0, 0.8], (4, 1)))[0]
    x = (0.6 * 0.7) ** 2 / 0.201
    assert beside_a_dog[1] == pytest.approx(x / (1 + x))
    assert class_scores(np.array([[0.4, 0.6]]), np.array([CAT]), np.zeros((1, 2)))[0].tolist() == [0]  # no other class


def test_boxes_are_alike_in_size_wherever_they_are() -> None:
    boxes = np.array([[0.0, 0, 10, 20], [50, 50, 60, 70], [0, 0, 20, 20], [0, 0, 5, 40]])
    assert size_likeness(boxes[:1], boxes) == pytest.approx(np.array([[1, 1, 0.5, 0.25]]))


@pytest.mark.parametrize(
    ("iou", "alike", "score", "rival"),
    [
        ([0.35], [1.0], 0.36, 0),  # its class and size, beside it
        ([0.35], [0.5], 0.18, 0),  # half as high
        ([0.35, 0.35], [0.5, 1.0], 0.36, 1),
        ([0.35], [0.0], 0, -1),  # another class
        ([0.55], [1.0], 0, -1),  # its own
        ([0.05], [1.0], 0, -1),  # does not touch
    ],
)
def test_a_place_is_wrong_as_far_as_a_detection_beside_it_is_right(
    iou: list[float], alike: list[float], score: float, rival: int
) -> None:
    found = np.full(len(iou), 0.9)
    scores, best = place_scores(np.array([iou]), np.array([alike]), found, np.array([0.8]), np.array([0.5]))
    assert scores == pytest.approx([score])
    assert best.tolist() == [rival]


def test_a_detection_of_one_annotation_is_no_rival_of_its_neighbour() -> None:
    iou = np.array([[0.35], [0.8]])
    scores, best = place_scores(iou, np.ones((2, 1)), np.array([0.9]), np.ones(2), np.zeros(2))
    assert scores.tolist() == [0, 0]
    assert best.tolist() == [-1, -1]
    assert place_scores(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(0), np.ones(2), np.zeros(2))[1].tolist() == [
        -1,
        -1,
    ]


def test_nothing_is_where_the_class_loss_is_large_and_no_detection_near() -> None:
    probabilities = np.array([[0.99, 0.01, 0.0], [0.9999, 0.0001, 0.0], [0.9999, 0.0001, 0.0], [0.1, 0.9, 0.0]])
    scores = spurious_scores(probabilities, np.array([CAT] * 4), np.array([0.0, 0.0, 0.5, 0.0]), np.ones(4))
    assert scores[:3] == pytest.approx([0.99 * (1 - 0.01**0.2), 0.9999 * (1 - 1e-4**0.2), 0.9999 * (1 - 1e-4**0.2) / 2])
    assert scores[3] < 0.01
    small = spurious_scores(probabilities, np.array([CAT] * 4), np.zeros(4), np.full(4, 0.01))
    assert small[0] / scores[0] == pytest.approx(0.794, abs=1e-3)


def test_overlaps_and_shares() -> None:
    a, b = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), np.array([[0.0, 0, 20, 10], [0, 0, 5, 5]])
    assert pairwise_iou(a, b) == pytest.approx(np.array([[0.5, 0.25], [0, 0]]))
    assert pairwise_inside(a, b) == pytest.approx(np.array([[1, 0.25], [0, 0]]))


def scene(
    annotated: list[tuple[tuple[float, ...], int, list[float]]], found: list[tuple[tuple[float, ...], float, int]]
) -> Evidence:
    g, nothing = len(annotated), np.zeros(len(annotated), np.bool_)
    boxes = np.array([box for box, _, _ in annotated], dtype=np.float64).reshape(-1, 4)
    labels = np.array([label for _, label, _ in annotated], dtype=np.int64)
    record = ImageRecord("a", Path("a.jpg"), 100, 100, boxes, labels, nothing, nothing, np.zeros(g))
    return Evidence(
        record,
        np.array([p for _, _, p in annotated], dtype=np.float64).reshape(-1, 3),
        np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in found]),
        np.array([label for _, _, label in found], dtype=np.int64),
    )


def test_each_annotation_and_each_object_without_one_stands_in_the_list_once() -> None:
    evidence = scene(
        [((0, 0, 20, 20), CAT, [0.1, 0.1, 0.8])],
        [((50, 50, 70, 70), 0.9, CAT), ((51, 51, 70, 70), 0.6, DOG), ((0, 0, 20, 20), 0.8, DOG)],
    )
    first, second = find_suspects([evidence])
    assert (first.kind, first.fix, first.new_label, first.row) == ("missing box", "add", CAT, None)
    assert (second.kind, second.fix, second.new_label, second.row) == ("wrong class", "relabel", DOG, 0)
    assert second.score == pytest.approx(0.64 / (0.64 + 0.101))


def test_kinds_take_turns_whatever_their_scores() -> None:
    sure = [((0, 0, 20, 20), CAT, [0.0, 0.1 + k / 100, 0.9 - k / 100]) for k in range(3)]
    unsure = [((30, 30, 50, 50), 0.2, CAT), ((60, 60, 80, 80), 0.1, CAT)]
    found = find_suspects([scene(sure, []), scene([], unsure)])
    assert [one.kind for one in found] == ["wrong class", "missing box"] * 2 + ["wrong class"]
    assert [one.row for one in found] == [0, None, 1, None, 2]
    assert [one.score for one in found[1::2]] == pytest.approx([0.2, 0.1])
    assert min(one.score for one in found[::2]) > 0.8


def test_no_images_or_nothing_in_them_is_no_suspect() -> None:
    assert find_suspects([]) == []
    assert find_suspects([scene([], [])]) == []


SURE_CAT, SURE_DOG, NOTHING = [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]


def kinds(evidence: Evidence) -> list[str]:
    return [one.kind for one in find_suspects([evidence])]


def test_a_part_of_a_missing_object_is_not_missing_too() -> None:
    whole = ((0.0, 0.0, 40.0, 40.0), 0.9, CAT)
    assert kinds(scene([], [whole, ((0, 0, 15, 15), 0.5, CAT)])) == ["missing box"]
    assert kinds(scene([], [whole, ((0, 0, 15, 15), 0.5, DOG)])) == ["missing box"] * 2  # a dog before the cat
    assert kinds(scene([], [whole, ((35, 0, 50, 15), 0.5, CAT)])) == ["missing box"] * 2


def test_the_right_place_of_a_misplaced_box_is_no_missing_object() -> None:
    annotated = ((10.0, 0.0, 30.0, 20.0), CAT, NOTHING)
    (only,) = find_suspects([scene([annotated], [((0, 0, 20, 20), 0.9, CAT)])])
    assert (only.kind, only.new_box.tolist()) == ("badly placed", [0, 0, 20, 20])
    two = kinds(scene([((10, 0, 30, 20), CAT, SURE_CAT)], [((0, 0, 20, 20), 0.9, CAT)]))
    assert "missing box" in two  # the annotated one is right where it is


def test_a_detection_around_two_neighbours_says_less_against_either() -> None:
    around = [((0.0, 0.0, 42.0, 20.0), 0.9, CAT)]
    lonely = [((0.0, 0.0, 20.0, 20.0), CAT, NOTHING)]
    pair = [*lonely, ((22.0, 0.0, 42.0, 20.0), CAT, NOTHING)]
    score = {len(given): find_place(scene(given, around)) for given in (lonely, pair)}
    assert score[2] == pytest.approx(score[1] / 2)


def find_place(evidence: Evidence) -> float:
    """The score of the first annotation as a badly placed one."""
    return next(one.score for one in _annotated(evidence)[0] if one.kind == "badly placed")


def test_a_pet_on_a_lap_does_not_make_its_owner_one() -> None:
    owner = ((0.0, 0.0, 50.0, 50.0), CAT, SURE_DOG)
    alone, held = (
        _annotated(scene(given, []))[0][2].score for given in ([owner], [owner, ((10, 10, 30, 30), DOG, SURE_DOG)])
    )
    assert held < alone
