"""Which RoIs train: the paper's section 4.1 against a slow reference, and each sampler's rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from ohem.losses import RoiLosses, mean_losses, roi_losses
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.rois import Rois
from ohem.samplers import AllSampler, HardSampler, RandomSampler, checked, hard_examples

NO_SCORE = "this sampler does not look at losses"


# ---------------------------------------------------------------------------------------------------- hard_examples


def iou_with(boxes, i):
    """IoU of every box with box i, in the float32 arithmetic of the operator, which compares in double precision."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    width = np.minimum(boxes[:, 2], boxes[i, 2]) - np.maximum(boxes[:, 0], boxes[i, 0])
    height = np.minimum(boxes[:, 3], boxes[i, 3]) - np.maximum(boxes[:, 1], boxes[i, 1])
    common = np.maximum(width, np.float32(0)) * np.maximum(height, np.float32(0))
    return (common / (area[i] + area - common)).astype(np.float64)


def slow_hard_examples(boxes, losses, k, nms_iou, groups=None, fill=False):
    """Section 4.1 as the paper tells it: take the RoI of highest loss, remove those that overlap it, again."""
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    groups = [0] * len(boxes) if groups is None else [int(group) for group in groups]
    waiting = sorted(range(len(boxes)), key=lambda i: (-float(losses[i]), i))
    survivors, dropped = [], []
    removed = [False] * len(boxes)
    for i in waiting:
        if removed[i]:
            dropped.append(i)
            continue
        survivors.append(i)
        if nms_iou is not None:
            for j in np.flatnonzero(iou_with(boxes, i) > nms_iou):
                removed[j] |= j != i and groups[j] == groups[i]
    return (survivors + dropped if fill else survivors)[:k]


def random_case(rng, count):
    """Boxes and losses of one image, full of what goes wrong: duplicates, near-duplicates and equal losses."""
    corner = rng.integers(0, 12, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 9, (count, 2))], axis=1).astype(np.float32)
    if rng.random() < 0.5:
        boxes[:, 2:] += rng.random((count, 2), dtype=np.float32)
    if count and rng.random() < 0.5:
        twins = rng.integers(0, count, count // 2 + 1)
        boxes[twins] = boxes[rng.integers(0, count, len(twins))]
    few_values = rng.integers(0, 4, count).astype(np.float32)
    losses = few_values if rng.random() < 0.4 else rng.exponential(size=count).astype(np.float32)
    return boxes, losses


def as_indices(result):
    assert result.dtype == torch.int64
    return result.tolist()


@pytest.mark.parametrize("count", [64.0, "64", 1.5])
def test_a_count_is_a_whole_number(count):
    for make in (HardSampler, RandomSampler):
        with pytest.raises(ValueError, match=r"rois_per_image: found .*; allowed: a whole number, 1 or more"):
            make(rois_per_image=count)


def test_the_hardest_is_taken_and_its_near_duplicate_dropped():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10]], dtype=torch.float32)
    losses = torch.tensor([2.0, 3.0, 1.0, 5.0])
    assert as_indices(hard_examples(boxes, losses, 4)) == [3, 1, 2]  # 0 overlaps the harder 1 by 0.9
    assert as_indices(hard_examples(boxes, losses, 2)) == [3, 1]
    assert as_indices(hard_examples(boxes, losses, 4, nms_iou=None)) == [3, 1, 0, 2]
    assert as_indices(hard_examples(boxes, losses, 4, fill=True)) == [3, 1, 2, 0]
    assert as_indices(hard_examples(boxes, losses, 4, groups=torch.tensor([0, 1, 0, 0]))) == [3, 1, 0, 2]


def test_an_overlap_of_exactly_the_threshold_is_kept():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 7]], dtype=torch.float32)  # IoU 0.7
    losses = torch.tensor([2.0, 1.0])
    assert as_indices(hard_examples(boxes, losses, 2, nms_iou=0.7)) == [0, 1]
    assert as_indices(hard_examples(boxes, losses, 2, nms_iou=0.69)) == [0]


def test_what_a_dropped_roi_overlaps_is_not_dropped_with_it():
    """1 falls to 0; 2 overlaps only 1, so it survives."""
    boxes = torch.tensor([[0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]], dtype=torch.float32)
    assert as_indices(hard_examples(boxes, torch.tensor([3.0, 2.0, 1.0]), 3, nms_iou=0.6)) == [0, 2]


@pytest.mark.parametrize("copies", [7, 8, 9, 40])
def test_however_many_duplicates_stand_before_it_the_next_survivor_is_found(copies):
    boxes = torch.tensor([[0, 0, 10, 10]] * copies + [[20, 0, 30, 10]] * copies + [[40, 0, 50, 10]])
    losses = torch.linspace(1, 0, len(boxes))
    assert as_indices(hard_examples(boxes, losses, 2)) == [0, copies]
    assert as_indices(hard_examples(boxes, losses, 3)) == [0, copies, 2 * copies]


def test_equal_losses_keep_their_order():
    apart = torch.arange(50, dtype=torch.float32)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    assert as_indices(hard_examples(apart, torch.ones(50), 20)) == list(range(20))
    together = torch.tensor([[0.0, 0, 10, 10]]).repeat(50, 1)
    assert as_indices(hard_examples(together, torch.ones(50), 20)) == [0]
    assert as_indices(hard_examples(together, torch.ones(50), 20, fill=True)) == list(range(20))


def test_no_rois_and_one_roi():
    none, one = torch.zeros(0, 4), torch.tensor([[0.0, 0, 1, 1]])
    for fill in (False, True):
        for nms_iou in (0.7, None):
            for count, boxes in ((0, none), (1, one)):
                groups = torch.zeros(count, dtype=torch.int64)
                losses = torch.ones(count)
                assert as_indices(hard_examples(boxes, losses, 64, nms_iou, groups, fill)) == list(range(count))
                assert as_indices(hard_examples(boxes, losses, 0, nms_iou, groups, fill)) == []


def test_equal_to_the_slow_reference_on_4000_random_cases():
    rng = np.random.default_rng(0)
    fewer_than_k = 0
    for _ in range(4000):
        count = int(rng.integers(0, 25))
        boxes, losses = random_case(rng, count)
        k = int(rng.integers(0, count + 4))
        nms_iou = [0.7, 0.7, 0.5, 0.3, 0.0, 1.0, None][rng.integers(7)]
        groups = None if rng.random() < 0.4 else rng.integers(-1, 3, count)
        fill = bool(rng.random() < 0.3)
        found = hard_examples(
            torch.from_numpy(boxes),
            torch.from_numpy(losses),
            k,
            nms_iou,
            None if groups is None else torch.from_numpy(groups),
            fill,
        )
        expected = slow_hard_examples(boxes, losses, k, nms_iou, groups, fill)
        assert as_indices(found) == expected, (boxes, losses, k, nms_iou, groups, fill)
        fewer_than_k += len(expected) < min(k, count)
    assert fewer_than_k > 400  # the cases are hard enough to have fewer survivors than asked for


@pytest.mark.parametrize(
    ("k", "groups", "fill"), [(64, False, False), (10_000, False, False), (10_000, True, False), (9_000, False, True)]
)
def test_equal_to_the_slow_reference_on_10_000_rois(k, groups, fill):
    rng = np.random.default_rng(k + groups + fill)
    corner = rng.random((10_000, 2), dtype=np.float32) * 150
    boxes = np.concatenate([corner, corner + 20 + 60 * rng.random((10_000, 2), dtype=np.float32)], axis=1)
    losses = rng.exponential(size=10_000).astype(np.float32).round(3)
    group = rng.integers(0, 21, 10_000) if groups else None
    found = hard_examples(
        torch.from_numpy(boxes),
        torch.from_numpy(losses),
        k,
        groups=None if group is None else torch.from_numpy(group),
        fill=fill,
    )
    expected = slow_hard_examples(boxes, losses, k, 0.7, group, fill)
    assert as_indices(found) == expected
    assert fill or len(expected) < 10_000


@pytest.mark.parametrize("nms_iou", [0.7, None])
def test_settings_that_no_recipe_would_take_are_refused(nms_iou):
    with pytest.raises(ValueError, match="cap: found 'Batch'; allowed: image, batch"):
        HardSampler(cap="Batch")
    with pytest.raises(ValueError, match="allowed: k from 0"):
        hard_examples(torch.rand(4, 4), torch.rand(4), -1, nms_iou)
    with pytest.raises(ValueError, match="3 losses of 4 boxes"):
        hard_examples(torch.rand(4, 4), torch.rand(3), 2, nms_iou)
    with pytest.raises(ValueError, match="sampler: found a NoneType; allowed: a list"):
        checked(None, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("nms_iou", [0.7, None])
def test_a_loss_that_is_not_finite_is_refused_and_named(bad, nms_iou):
    losses = torch.tensor([1.0, 2.0, bad, bad])
    with pytest.raises(ValueError, match=r"losses\[2\]: found -?(nan|inf); allowed: finite"):
        hard_examples(torch.rand(4, 4), losses, 2, nms_iou)


def test_double_precision_losses_are_ranked_in_double_precision():
    """The two losses are equal in float32; the harder one is the second."""
    twins = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]], dtype=torch.float64)
    losses = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert as_indices(hard_examples(twins, losses, 1)) == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_ranks(dtype):
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    assert as_indices(hard_examples(boxes.to(dtype), torch.tensor([1, 2, 3], dtype=dtype), 3)) == [2, 1]


boxes_and_losses = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8)),
        st.floats(0, 10, width=32),
    ),
    max_size=25,
)


@given(boxes_and_losses, st.integers(0, 30), st.sampled_from([0.3, 0.5, 0.7]))
@settings(deadline=None)
def test_the_rules_of_section_4_1_hold(case, k, nms_iou):
    boxes = np.array([(x, y, x + w, y + h) for (x, y, w, h), _ in case], dtype=np.float32).reshape(-1, 4)
    losses = np.array([loss for _, loss in case], dtype=np.float32)
    found = as_indices(hard_examples(torch.from_numpy(boxes), torch.from_numpy(losses), k, nms_iou))

    assert len(found) <= k
    assert len(set(found)) == len(found)
    assert [losses[i] for i in found] == sorted((losses[i] for i in found), reverse=True)
    assert not found or losses[found[0]] == losses.max()
    overlap = np.stack([iou_with(boxes, i) for i in range(len(boxes))]) if len(boxes) else np.zeros((0, 0))
    for n, i in enumerate(found):
        assert all(overlap[i, j] <= nms_iou for j in found[:n])
    for i in set(range(len(boxes))) - set(found):
        easier_than_all = len(found) == k and all(losses[i] <= losses[j] for j in found)
        assert easier_than_all or any(overlap[i, j] > nms_iou and losses[j] >= losses[i] for j in found)


@given(boxes_and_losses, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_rois_does_not_matter_when_losses_differ(case, random):
    boxes = torch.tensor([(x, y, x + w, y + h) for (x, y, w, h), _ in case], dtype=torch.float32).view(-1, 4)
    losses = torch.arange(len(case), dtype=torch.float32)
    order = list(range(len(case)))
    random.shuffle(order)
    shuffled = hard_examples(boxes[order], losses[order], 10)
    assert [order[i] for i in shuffled] == as_indices(hard_examples(boxes, losses, 10))


# ------------------------------------------------------------------------------------------------ RoIs for samplers


def apart(count, start=0):
    """Boxes that do not touch."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])


def rois_of(labels, max_iou=None, boxes=None):
    labels = torch.tensor(labels, dtype=torch.int64)
    iou = torch.where(labels > 0, 0.8, 0.2) if max_iou is None else torch.tensor(max_iou, dtype=torch.float32)
    boxes = apart(len(labels)) if boxes is None else torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Rois(boxes, labels, iou, torch.zeros(len(labels), 4))


def losses_of(cls, box=None):
    cls = torch.tensor(cls, dtype=torch.float32)
    return RoiLosses(cls, torch.zeros_like(cls) if box is None else torch.tensor(box, dtype=torch.float32))


class Scored:
    """A read-only pass with known losses that remembers how it was called."""

    def __init__(self, *losses):
        self.losses, self.calls = list(losses), []

    def __call__(self, *, dropout=True):
        self.calls.append(dropout)
        return self.losses


def refuse_to_score(*, dropout=True):
    raise AssertionError(NO_SCORE)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def choose(sampler, rois, *losses, seed=0):
    """The choice as lists, one an image."""
    rois = rois if isinstance(rois, list) else [rois]
    chosen = sampler(rois, Scored(*losses) if losses else refuse_to_score, seeded(seed))
    assert len(chosen) == len(rois)
    for index, image in zip(chosen, rois, strict=True):
        assert index.dtype == torch.int64
        assert len(set(index.tolist())) == len(index)
        assert (image.labels[index] >= 0).all()
    return [index.tolist() for index in chosen]


# ------------------------------------------------------------------------------------------------- what is a choice


def test_a_choice_is_taken_as_it_is():
    rois = [rois_of([0, 1, -1]), rois_of([]), rois_of([2])]
    chosen = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64), torch.tensor([0])]
    assert all(map(torch.equal, checked(chosen, rois), chosen))
    assert checked([], []) == []


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (torch.tensor([True, False, True]), r"\(3,\) bool"),
        (torch.zeros(3, dtype=torch.bool), r"\(3,\) bool"),
        (torch.tensor([0.0]), r"\(1,\) float32"),
        (torch.tensor([0], dtype=torch.int32), r"\(1,\) int32"),
        (torch.tensor(0), r"\(\) int64"),
        (torch.tensor([[0]]), r"\(1, 1\) int64"),
        ([0], "a list"),
        (torch.tensor([0, 3]), "RoI 3 of 3"),
        (torch.tensor([0, -1]), "RoI -1 of 3"),
        (torch.tensor([0, 2]), "RoI 2, which is ignored"),
    ],
)
def test_what_is_no_choice_is_refused_and_named(second, found):
    message = f"^sampler, image 1 of the batch: found {found}; allowed: one tensor .K,. of int64 indices of RoIs that"
    with pytest.raises(ValueError, match=message):
        checked([torch.tensor([0]), second], [rois_of([0]), rois_of([0, 1, -1])])


def test_no_roi_of_an_image_without_any_and_an_entry_for_each_image():
    with pytest.raises(ValueError, match=r"image 0 of the batch: found anchor 0 of 0; allowed: .* of anchors that"):
        checked([torch.tensor([0])], [rois_of([])], "anchor")
    with pytest.raises(ValueError, match=r"^sampler: found 1 entries; allowed: 2, one for each image"):
        checked([torch.tensor([0])], [rois_of([0]), rois_of([0])])


# ------------------------------------------------------------------------------------------------------ HardSampler


def test_the_defaults_are_the_papers():
    sampler = HardSampler()
    assert sampler.rois_per_image == 64  # B / N = 128 / 2
    assert sampler.nms_iou == 0.7
    assert not sampler.nms_per_label
    assert sampler.cap == "image"
    assert sampler.rank_box_loss
    assert sampler.dropout
    assert not sampler.fill


def test_class_and_box_loss_rank_together():
    rois, losses = rois_of([1, 0, 2]), losses_of([1.0, 2.0, 0.5], box=[2.0, 0.0, 0.0])
    assert choose(HardSampler(2), rois, losses) == [[0, 1]]
    assert choose(HardSampler(2, rank_box_loss=False), rois, losses) == [[1, 0]]


def test_near_duplicates_of_different_labels_drop_each_other_unless_nms_is_per_label():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 10]]
    rois, losses = rois_of([1, 2, 0, 0], boxes=boxes), losses_of([4.0, 3.0, 2.0, 1.0])
    assert choose(HardSampler(), rois, losses) == [[0]]
    assert choose(HardSampler(nms_per_label=True), rois, losses) == [[0, 1, 2]]  # background is one group


def test_nms_per_label_is_that_of_the_authors_code():
    """For each label NMS among its RoIs; then the survivors of all labels sorted by loss, and the first B/N."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        boxes, losses = random_case(rng, 30)
        losses = rng.permutation(30).astype(np.float32)
        labels = rng.integers(0, 4, 30)
        survivors = []
        for label in range(4):
            members = np.flatnonzero(labels == label)
            survivors += members[slow_hard_examples(boxes[members], losses[members], 30, 0.7)].tolist()
        survivors.sort(key=lambda i: -losses[i])
        sampler = HardSampler(8, nms_per_label=True)
        assert choose(sampler, rois_of(labels.tolist(), boxes=boxes.tolist()), losses_of(losses)) == [survivors[:8]]


def test_a_cap_on_each_image_and_a_cap_on_the_batch():
    rois = [rois_of([0] * 4), rois_of([0] * 4)]
    losses = losses_of([9.0, 8.0, 7.0, 6.0]), losses_of([1.0, 2.0, 3.0, 10.0])
    assert choose(HardSampler(2), rois, *losses) == [[0, 1], [3, 2]]  # section 4.1
    assert choose(HardSampler(2, cap="batch"), rois, *losses) == [[0, 1, 2], [3]]  # section 4.2: B over all R


@pytest.mark.parametrize("nms_per_label", [False, True])
def test_boxes_of_different_images_never_drop_each_other(nms_per_label):
    """Also when image 1's background and image 0's highest label could be mistaken for one group."""
    same = [[0, 0, 10, 10]]
    rois = [rois_of([label], boxes=same) for label in (3, 0, 3)]
    sampler = HardSampler(1, cap="batch", nms_per_label=nms_per_label)
    assert choose(sampler, rois, *[losses_of([1.0])] * 3) == [[0], [0], [0]]


def test_a_cap_on_each_image_makes_an_images_choice_independent_of_the_others():
    rng = np.random.default_rng(2)
    rois, losses = [], []
    for _ in range(3):
        boxes, loss = random_case(rng, 20)
        rois.append(rois_of(rng.integers(-1, 3, 20).tolist(), boxes=boxes.tolist()))
        losses.append(losses_of(loss))
    together = choose(HardSampler(5), rois, *losses)
    alone = [choose(HardSampler(5), [image], loss)[0] for image, loss in zip(rois, losses, strict=True)]
    assert together == alone


def test_a_cap_on_the_batch_equals_the_slow_reference_over_all_images():
    rng = np.random.default_rng(3)
    for _ in range(200):
        counts = rng.integers(0, 12, 3)
        cases = [random_case(rng, int(count)) for count in counts]
        image = np.repeat(np.arange(3), counts)
        offset = np.concatenate([[0], np.cumsum(counts)])
        expected = slow_hard_examples(
            np.concatenate([boxes for boxes, _ in cases]), np.concatenate([loss for _, loss in cases]), 9, 0.7, image
        )
        rois = [rois_of([0] * len(boxes), boxes=boxes.tolist()) for boxes, _ in cases]
        found = choose(HardSampler(3, cap="batch"), rois, *(losses_of(loss) for _, loss in cases))
        assert found == [[i - offset[n] for i in expected if image[i] == n] for n in range(3)]


def test_fewer_survivors_than_asked_for_make_a_smaller_mini_batch_unless_filled():
    rois = rois_of([0, 0, 1], boxes=[[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]])
    losses = losses_of([3.0, 2.0, 1.0])
    assert choose(HardSampler(3), rois, losses) == [[0, 2]]
    assert choose(HardSampler(3, fill=True), rois, losses) == [[0, 2, 1]]
    assert choose(HardSampler(3, nms_iou=None), rois, losses) == [[0, 1, 2]]


@pytest.mark.parametrize("cap", ["image", "batch"])
@pytest.mark.parametrize("fill", [False, True])
def test_ignored_rois_are_neither_chosen_nor_drop_others(cap, fill):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]]
    rois, losses = rois_of([-1, 0, 1], boxes=boxes), losses_of([100.0, 2.0, 1.0])
    assert choose(HardSampler(3, cap=cap, fill=fill), rois, losses) == [[1, 2]]


@pytest.mark.parametrize("dropout", [True, False])
def test_the_dropout_setting_is_handed_to_the_read_only_pass_which_runs_once(dropout):
    score = Scored(losses_of([1.0]), losses_of([1.0]))
    HardSampler(dropout=dropout)([rois_of([0]), rois_of([0])], score, seeded())
    assert score.calls == [dropout]


def test_the_choice_takes_nothing_from_the_random_stream():
    rng = seeded()
    before = rng.get_state()
    HardSampler(1)([rois_of([0, 1])], Scored(losses_of([1.0, 2.0])), rng)
    assert torch.equal(rng.get_state(), before)


def test_no_foreground_at_all():
    assert choose(HardSampler(2), rois_of([0, 0, 0]), losses_of([1.0, 3.0, 2.0])) == [[1, 2]]


# --------------------------------------------------------------------- C13: nothing is neglected, no share is kept


def test_a_mini_batch_may_be_all_background_or_all_foreground():
    """Section 4.1: bg only where the car is easy, fg only where there is just sky and grass."""
    labels = [1] * 4 + [0] * 4
    easy_foreground, easy_background = losses_of([0.1] * 4 + [3.0] * 4), losses_of([3.0] * 4 + [0.1] * 4)
    assert choose(HardSampler(4), rois_of(labels), easy_foreground) == [[4, 5, 6, 7]]
    assert choose(HardSampler(4), rois_of(labels), easy_background) == [[0, 1, 2, 3]]


def test_a_neglected_class_gains_loss_until_it_is_chosen():
    """A network of biases only, which starts sure of class 2. Mining starts with the others, whose gain is its loss."""
    labels = [0] * 30 + [1] * 30 + [2] * 30
    rois = rois_of(labels)
    bias = torch.tensor([0.0, 0.0, 3.0], requires_grad=True)
    optimizer = torch.optim.SGD([bias], lr=0.5)
    neglected = []
    for _ in range(100):
        logits, deltas = bias.expand(90, 3), torch.zeros(90, 12)
        losses = roi_losses(logits, deltas, rois)
        chosen = HardSampler(20)([rois], Scored(losses), seeded())[0]
        if (rois.labels[chosen] == 2).any():
            break
        neglected.append(losses.cls[60].item())
        optimizer.zero_grad()
        torch.autograd.backward(mean_losses([losses[chosen]]).total)
        optimizer.step()
    assert 3 < len(neglected) < 100  # it was left out for a while, then chosen
    assert neglected == sorted(neglected)
    assert len(set(neglected)) == len(neglected)


# ---------------------------------------------------------------------------------------------------- RandomSampler


def counts(chosen, rois):
    labels = rois.labels[chosen]
    return int((labels > 0).sum()), int((labels == 0).sum())


def test_a_quarter_is_foreground():
    rois = rois_of([1] * 100 + [0] * 900)
    assert counts(choose(RandomSampler(), rois)[0], rois) == (16, 48)


def test_too_few_foreground_rois_are_made_up_for_by_background():
    rois = rois_of([1] * 3 + [0] * 900)
    assert counts(choose(RandomSampler(), rois)[0], rois) == (3, 61)


def test_too_few_background_rois_make_a_smaller_mini_batch():
    rois = rois_of([1] * 100 + [0] * 5)
    assert counts(choose(RandomSampler(), rois)[0], rois) == (16, 5)


def test_no_foreground_or_no_background():
    assert counts(choose(RandomSampler(), rois_of([0] * 100))[0], rois_of([0] * 100)) == (0, 64)
    assert counts(choose(RandomSampler(), rois_of([1] * 100))[0], rois_of([1] * 100)) == (16, 0)


@pytest.mark.parametrize(("size", "foreground"), [(6, 2), (10, 2), (14, 4), (64, 16), (1, 0)])
def test_the_share_is_rounded_as_numpy_rounds_it_in_the_authors_code(size, foreground):
    rois = rois_of([1] * 50 + [0] * 50)
    assert foreground == np.round(0.25 * size)
    assert counts(choose(RandomSampler(size), rois)[0], rois) == (foreground, size - foreground)


def test_background_has_iou_in_bg_lo_up_to_but_not_at_the_foreground_threshold():
    tenth = np.float32(0.1)
    below = np.nextafter(tenth, np.float32(0))
    rois = rois_of([0, 0, 0, 0, 1], max_iou=[0.0, below, tenth, np.nextafter(np.float32(0.5), np.float32(0)), 0.5])
    assert sorted(choose(RandomSampler(5, fg_fraction=0.0), rois)[0]) == [2, 3]
    assert sorted(choose(RandomSampler(8, fg_fraction=0.25, bg_lo=0.0), rois)[0]) == [0, 1, 2, 3, 4]
    assert sorted(choose(RandomSampler(5, fg_fraction=None), rois)[0]) == [2, 3, 4]
    assert sorted(choose(RandomSampler(5, fg_fraction=None, bg_lo=0.0), rois)[0]) == [0, 1, 2, 3, 4]


def test_without_a_share_foreground_comes_as_often_as_it_stands_among_the_candidates():
    rois = rois_of([1] * 30 + [0] * 270)
    rng = seeded()
    sampler = RandomSampler(60, fg_fraction=None)
    foreground = sum(counts(sampler([rois], refuse_to_score, rng)[0], rois)[0] for _ in range(500))
    # 500 draws of 60 without repetition from 300: mean 6 each, variance 60 * 0.1 * 0.9 * 240 / 299
    assert foreground / 500 == pytest.approx(6, abs=5 * (4.33 / 500) ** 0.5)


def test_every_candidate_is_as_likely_as_another():
    rois = rois_of([1] * 8 + [0] * 16)
    rng = seeded()
    times = torch.zeros(24)
    for _ in range(2000):
        times[RandomSampler(8)([rois], refuse_to_score, rng)[0]] += 1
    # foreground 2 of 8, background 6 of 16; five standard deviations
    assert torch.allclose(times[:8] / 2000, torch.tensor(2 / 8), atol=5 * (0.25 * 0.75 / 2000) ** 0.5, rtol=0)
    assert torch.allclose(times[8:] / 2000, torch.tensor(6 / 16), atol=5 * (0.375 * 0.625 / 2000) ** 0.5, rtol=0)


def test_the_choice_is_the_random_streams_and_nothing_elses():
    rois = rois_of([1] * 100 + [0] * 900)
    before = torch.get_rng_state()
    first, again, other = (choose(RandomSampler(), rois, seed=seed)[0] for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)
    rng = seeded(7)
    assert choose_with(rng, rois) == first
    assert choose_with(rng, rois) != first  # the stream moves on


def choose_with(rng, rois):
    return RandomSampler()([rois], refuse_to_score, rng)[0].tolist()


@given(
    st.lists(st.sampled_from([-1, 0, 1, 2]), max_size=40),
    st.integers(1, 20),
    st.one_of(st.none(), st.floats(0, 1)),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_the_rules_of_the_heuristic_hold(labels, size, share, bg_lo, random):
    iou = [random.uniform(0.5, 1) if label > 0 else random.uniform(0, 0.4) for label in labels]
    rois = rois_of(labels, max_iou=iou)
    (chosen,) = choose(RandomSampler(size, share, bg_lo), rois)
    foreground, background = counts(chosen, rois)
    all_foreground = sum(label > 0 for label in labels)
    all_background = int(((rois.labels == 0) & (rois.max_iou >= bg_lo)).sum())
    assert all(rois.labels[i] > 0 or rois.max_iou[i] >= bg_lo for i in chosen)
    if share is None:
        assert foreground + background == min(size, all_foreground + all_background)
    else:
        assert foreground == min(round(share * size), all_foreground)
        assert background == min(size - foreground, all_background)


# --------------------------------------------------------------------------------------------------------------- all


def test_all_sampler_takes_everything_that_is_not_ignored():
    assert choose(AllSampler(), [rois_of([1, -1, 0, 2]), rois_of([-1, 0])]) == [[0, 2, 3], [1]]


SAMPLERS = [
    HardSampler(2),
    HardSampler(2, cap="batch"),
    HardSampler(2, nms_per_label=True),
    HardSampler(2, cap="batch", nms_per_label=True, fill=True),
    HardSampler(2, nms_iou=None),
    RandomSampler(2, fg_fraction=0.5),
    RandomSampler(2, fg_fraction=None),
    AllSampler(),
    IoUBalancedSampler(2, fg_fraction=0.5),
    RankSampler(2),
    StratifiedSampler(2),
    QuotaSampler(2, fg_fraction=0.5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_images_without_candidates_choose_nothing_and_do_not_disturb_others(sampler):
    rois = [rois_of([]), rois_of([0, 1]), rois_of([-1, -1])]
    losses = [losses_of([]), losses_of([1.0, 2.0]), losses_of([5.0, 5.0])]
    chosen = sampler(rois, Scored(*losses), seeded())
    assert [sorted(index.tolist()) for index in chosen] == [[], [0, 1], []]
    nothing: list[Tensor] = sampler([rois_of([])], Scored(losses_of([])), seeded())
    assert [(index.dtype, index.tolist()) for index in nothing] == [(torch.int64, [])]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_is_a_value(sampler):
    """It keeps no state: the same RoIs and the same stream give the same choice, and equal settings are equal."""
    rois = [rois_of([0, 1, 0, 2, 0, 1])]
    losses = losses_of([1.0, 5.0, 3.0, 2.0, 4.0, 6.0])
    first, second = (sampler(rois, Scored(losses), seeded())[0].tolist() for _ in range(2))
    assert first == second
    assert sampler == type(sampler)(**vars(sampler))


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"rois_per_image": 0}, "1 or more"),
        ({"rois_per_image": float("inf")}, "a whole number, 1 or more"),
        ({"fg_fraction": 1.01}, "0 to 1"),
        ({"fg_fraction": -0.01}, "0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, allowed):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}: found {value}; allowed: {allowed}"):
        RandomSampler(**setting)
    assert RandomSampler(rois_per_image=1, fg_fraction=1.0).fg_fraction == 1.0
