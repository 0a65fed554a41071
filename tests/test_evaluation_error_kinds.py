"""Kinds of errors: each detection falls into the kind its place says, and mending a kind gains what a hand counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.evaluation.error_kinds import KINDS, Errors, ap_without, find_errors

CAT, DOG = 1, 2
OBJECT = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 5.0, 10.0)  # overlaps OBJECT by 0.5
THIRD = (0.0, 0.0, 3.0, 10.0)
TOUCHING = (9.0, 0.0, 19.0, 10.0)  # by 10 / 190
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)


def errors_of(
    detections: list[tuple[tuple[float, ...], float, int]], objects: list[tuple[tuple[float, ...], int, bool]]
) -> Errors:
    """All in one image."""
    d, g = len(detections), len(objects)
    return find_errors(
        np.zeros(d, np.int64),
        np.array([box for box, _, _ in detections]).reshape(-1, 4),
        np.array([score for _, score, _ in detections]),
        np.array([label for _, _, label in detections], dtype=np.int64),
        np.zeros(g, np.int64),
        np.array([box for box, _, _ in objects]).reshape(-1, 4),
        np.array([label for _, label, _ in objects], dtype=np.int64),
        np.array([ignored for _, _, ignored in objects], dtype=np.bool_),
    )


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        (HALF, CAT, None),
        (THIRD, CAT, "localisation"),
        (HALF, DOG, "class"),
        (THIRD, DOG, "both"),
        (TOUCHING, CAT, "background"),
        (ELSEWHERE, DOG, "background"),
    ],
)
def test_one_detection_falls_into_one_kind(box: tuple[float, ...], label: int, kind: str | None) -> None:
    errors = errors_of([(box, 0.9, label)], [(OBJECT, CAT, False)])
    assert errors.kinds.tolist() == [-1 if kind is None else KINDS.index(kind)]
    assert errors.right.tolist() == [kind is None]
    assert errors.missed.tolist() == [kind in ("both", "background")]
    assert errors.objects.tolist() == [-1 if kind == "background" else 0]


def test_the_second_on_an_object_is_a_duplicate_whatever_the_order() -> None:
    errors = errors_of([(HALF, 0.3, CAT), (OBJECT, 0.9, CAT)], [(OBJECT, CAT, False)])
    assert [KINDS[kind] if kind >= 0 else None for kind in errors.kinds] == ["duplicate", None]


def test_an_ignored_object_makes_no_error_and_is_not_missed() -> None:
    errors = errors_of([(OBJECT, 0.9, CAT), (OBJECT, 0.8, CAT)], [(OBJECT, CAT, True), (ELSEWHERE, CAT, True)])
    assert errors.kinds.tolist() == [-1, -1]
    assert not errors.right.any()
    assert not errors.missed.any()


def test_what_is_near_an_ignored_object_is_on_nothing_and_what_it_is_near_besides_decides() -> None:
    assert errors_of([(THIRD, 0.9, CAT)], [(OBJECT, CAT, True)]).kinds.tolist() == [KINDS.index("background")]
    objects = [(OBJECT, CAT, True), ((0.0, 0.0, 3.0, 40.0), CAT, False)]  # by 0.3, and by 0.25
    errors = errors_of([(THIRD, 0.9, CAT)], objects)
    assert errors.kinds.tolist() == [KINDS.index("localisation")]
    assert errors.objects.tolist() == [1]
    assert not errors.missed.any()


def test_localisation_goes_before_class() -> None:
    objects = [((0.0, 0.0, 30.0, 10.0), CAT, False), (OBJECT, DOG, False)]
    assert errors_of([(OBJECT, 0.9, CAT)], objects).kinds.tolist() == [KINDS.index("localisation")]


def gains(
    detections: list[tuple[tuple[float, ...], float, int]], objects: list[tuple[tuple[float, ...], int, bool]]
) -> dict[str, float]:
    return ap_without(
        errors_of(detections, objects),
        np.array([score for _, score, _ in detections]),
        np.array([label for _, _, label in detections]),
        np.array([label for _, label, _ in objects]),
        np.array([ignored for _, _, ignored in objects]),
        "area",
    )


def test_a_mended_class_finds_its_object() -> None:
    # Cats: AP 0, 1 once the dog is called a cat. Dogs: AP 1/2 behind the false alarm, 1 without it.
    detections = [(OBJECT, 0.9, DOG), (ELSEWHERE, 0.8, DOG)]
    found = gains(detections, [(OBJECT, CAT, False), (ELSEWHERE, DOG, False)])
    assert found["class"] == pytest.approx((1 + 1) / 2 - (0 + 0.5) / 2)
    assert found["localisation"] == found["duplicate"] == found["missed"] == 0


def test_of_two_that_miss_by_a_little_the_better_is_mended_and_the_other_goes() -> None:
    assert gains([(THIRD, 0.9, CAT), (THIRD, 0.8, CAT)], [(OBJECT, CAT, False)])["localisation"] == 1
    # The object is found already: both go, and what was found stands alone.
    found = gains([(THIRD, 0.9, CAT), (OBJECT, 0.8, CAT)], [(OBJECT, CAT, False)])
    assert found["localisation"] == pytest.approx(1 - 0.5)


def test_missed_objects_need_not_be_found() -> None:
    found = gains([(OBJECT, 0.9, CAT)], [(OBJECT, CAT, False), (ELSEWHERE, CAT, False)])
    assert found["missed"] == pytest.approx(0.5)
    assert found["background"] == 0
    assert gains([(TOUCHING, 0.95, CAT), (OBJECT, 0.9, CAT)], [(OBJECT, CAT, False)])["background"] == pytest.approx(
        0.5
    )


def test_mending_makes_no_true_positive_of_an_object_that_need_not_be_found() -> None:
    beside = (20.0, 0.0, 23.0, 10.0)  # by 0.3 on the second object
    objects = [(OBJECT, CAT, False), ((20.0, 0.0, 30.0, 10.0), CAT, True)]
    assert gains([(OBJECT, 0.9, CAT), (beside, 0.8, CAT)], objects)["localisation"] == 0


def test_nothing_to_find_is_no_number() -> None:
    assert all(np.isnan(value) for value in gains([(OBJECT, 0.5, CAT)], [(OBJECT, CAT, True)]).values())


@given(st.integers(0, 2**32 - 1))
def test_every_false_positive_has_one_kind_and_every_object_is_found_covered_or_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, g, corners = rng.integers(0, 30), rng.integers(0, 12), lambda n: rng.integers(0, 12, (n, 2))
    boxes, gt_boxes = (np.hstack([c, c + rng.integers(1, 9, c.shape)]).astype(float) for c in map(corners, (d, g)))
    labels, gt_labels = rng.integers(1, 4, d), rng.integers(1, 4, g)
    ignored = rng.random(g) < 0.2
    scores, images, gt_images = rng.random(d).round(1), rng.integers(0, 3, d), rng.integers(0, 3, g)
    errors = find_errors(images, boxes, scores, labels, gt_images, gt_boxes, gt_labels, ignored)
    assert not (errors.right & (errors.kinds >= 0)).any()
    assert len(np.unique(errors.objects[errors.right])) == errors.right.sum()
    assert not (errors.missed & ignored).any()
    near = errors.objects >= 0
    assert (images[near] == gt_images[errors.objects[near]]).all()
    for kind, same in (("class", False), ("localisation", True), ("duplicate", True)):
        rows = np.flatnonzero(errors.kinds == KINDS.index(kind))
        assert ((labels[rows] == gt_labels[errors.objects[rows]]) == same).all()
    gained = ap_without(errors, scores, labels, gt_labels, ignored)
    assert not ignored[errors.objects[near & (errors.kinds >= 0)]].any()
    assert not any(abs(gain) > 1 for gain in gained.values())
    for kind in ("both", "duplicate", "background", "missed"):
        assert not gained[kind] < -1e-12
