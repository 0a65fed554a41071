"""The rivals' samplers: each against a slow reference or its closed form, and the rules of its publication."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ohem
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.samplers import HardSampler, RandomSampler
from test_samplers import (
    Scored,
    choose,
    counts,
    losses_of,
    random_case,
    refuse_to_score,
    rois_of,
    seeded,
    slow_hard_examples,
)


def five_deviations(probability, times):
    return 5 * (probability * (1 - probability) / times) ** 0.5


# ------------------------------------------------------------------------------------------------ IoUBalancedSampler


def interval_counts(chosen, rois, bins=3, bg_hi=0.5):
    """How many of the chosen background RoIs lie in each interval, by comparison with its ends."""
    iou = [rois.max_iou[i].item() for i in chosen if rois.labels[i] == 0]
    ends = [bg_hi * (n + 1) / bins for n in range(bins - 1)]
    found = [0] * bins
    for value in iou:
        found[sum(value >= end for end in ends)] += 1
    return found


def spread(*sizes, foreground=0):
    """RoIs with so many in the middle of each of as many intervals of [0, 0.5), behind the foreground."""
    middles = [0.5 * (n + 0.5) / len(sizes) for n, size in enumerate(sizes) for _ in range(size)]
    return rois_of([1] * foreground + [0] * len(middles), max_iou=[0.8] * foreground + middles)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((500, 100, 50), [16, 16, 16]),  # a third each, however many there are
        ((500, 0, 50), [None, 0, None]),  # the 16 of the empty one come from the others
        ((500, 3, 7), [38, 3, 7]),
        ((5, 3, 7), [5, 3, 7]),  # too few in all
        ((5, 100, 3), [5, 40, 3]),
    ],
)
def test_background_comes_equally_from_intervals_and_an_interval_without_enough_gives_all(sizes, expected):
    rois = spread(*sizes, foreground=100)
    (chosen,) = choose(IoUBalancedSampler(), rois)
    found = interval_counts(chosen, rois)
    assert counts(chosen, rois) == (16, min(48, sum(sizes)))
    assert all(wanted in (None, number) for wanted, number in zip(expected, found, strict=True))
    assert all(number >= min(16, size) for number, size in zip(found, sizes, strict=True))


def test_foreground_missing_is_made_up_for_by_background():
    rois = spread(100, 100, 100, foreground=4)
    (chosen,) = choose(IoUBalancedSampler(64), rois)
    assert counts(chosen, rois) == (4, 60)
    assert interval_counts(chosen, rois) == [20, 20, 20]


def test_ends_of_intervals_belong_to_the_upper_one_and_bg_hi_and_more_to_the_last():
    rois = rois_of([0] * 6, max_iou=[0.0, 0.19, 0.2, 0.39, 0.4, 0.6])
    sampler = IoUBalancedSampler(2, fg_fraction=0.0, bins=2, bg_hi=0.4)
    pairs = {tuple(sorted(choose(sampler, rois, seed=seed)[0])) for seed in range(100)}
    assert pairs == set(itertools.product([0, 1], [2, 3, 4, 5]))


def test_one_interval_is_the_heuristic_without_bg_lo():
    rois = spread(50, 20, 10, foreground=30)
    times = torch.zeros(2, len(rois))
    for seed in range(1000):
        for row, sampler in enumerate((IoUBalancedSampler(8, bins=1), RandomSampler(8, bg_lo=0.0))):
            times[row, choose(sampler, rois, seed=seed)[0]] += 1
    assert torch.allclose(times[0] / 1000, times[1] / 1000, atol=math.sqrt(2) * five_deviations(0.075, 1000), rtol=0)


def test_within_an_interval_and_in_the_filling_all_are_alike():
    """5 of background: quota 2 each, so 1 of the interval of one, 2 of the eight, and 2 of what is left of the eight."""
    rois = spread(8, 1, foreground=0)
    times = torch.zeros(9)
    for seed in range(2000):
        times[choose(IoUBalancedSampler(5, bins=2), rois, seed=seed)[0]] += 1
    assert times[8] == 2000
    assert torch.allclose(times[:8] / 2000, torch.tensor(4 / 8), atol=five_deviations(0.5, 2000), rtol=0)


labelled = st.lists(st.tuples(st.sampled_from([-1, 0, 0, 1, 2]), st.integers(0, 31).map(lambda n: n / 64)), max_size=40)


@given(labelled, st.integers(1, 20), st.floats(0, 1), st.integers(1, 5), st.integers(0, 9))
@settings(deadline=None)
def test_the_rules_of_iou_balance_hold(case, size, share, bins, seed):
    rois = rois_of([label for label, _ in case], max_iou=[0.7 if label > 0 else iou for label, iou in case])
    (chosen,) = choose(IoUBalancedSampler(size, share, bins), rois, seed=seed)  # which does not score
    foreground, background = counts(chosen, rois)
    everything = range(len(rois))
    assert foreground == min(round(share * size), counts(everything, rois)[0])
    assert background == min(size - foreground, counts(everything, rois)[1])
    quota = (size - foreground) // bins
    held = interval_counts(everything, rois, bins)
    for taken, all_there in zip(interval_counts(chosen, rois, bins), held, strict=True):
        assert taken >= min(quota, all_there)


# ------------------------------------------------------------------------------------------------------- RankSampler


def inclusion_probabilities(weights, k):
    """Of being among k draws without replacement, each with a probability in proportion to the weights left."""
    included = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), k):
        left, probability = sum(weights), 1.0
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        included[list(order)] += probability
    return included


@pytest.mark.parametrize(("pressure", "k"), [(100.0, 1), (100.0, 2), (5.0, 3), (1.0, 2), (1e6, 2)])
def test_the_probability_falls_exponentially_with_the_rank(pressure, k):
    """An ignored RoI has no rank. p_first / p_last is the pressure, and neighbours' ratios are equal."""
    labels, losses = [0, 1, -1, 0, 2, 0], [0.1, 3.0, 99.0, 0.2, 1.5, 0.0]
    rank = {1: 0, 4: 1, 3: 2, 0: 3, 5: 4}
    weights = [pressure ** (-r / 4) for r in range(5)]
    expected = inclusion_probabilities(weights, k)
    assert weights[0] / weights[-1] == pytest.approx(pressure)

    rng, draws = seeded(), 4000
    times = np.zeros(6)
    for _ in range(draws):
        times[RankSampler(k, pressure)([rois_of(labels)], Scored(losses_of(losses)), rng)[0]] += 1
    assert times[2] == 0
    for i, r in rank.items():
        assert times[i] / draws == pytest.approx(expected[r], abs=five_deviations(expected[r], draws) + 1e-4)


def test_the_order_is_that_of_the_draws():
    """The first of the draws has the probabilities of a single draw."""
    rng, firsts = seeded(), 0
    for _ in range(2000):
        firsts += RankSampler(3, 16.0)([rois_of([0] * 3)], Scored(losses_of([3.0, 2.0, 1.0])), rng)[0][0].item() == 0
    probability = 1 / (1 + 1 / 4 + 1 / 16)
    assert firsts / 2000 == pytest.approx(probability, abs=five_deviations(probability, 2000))


def test_only_the_ranks_matter_not_the_losses():
    rois = rois_of([0, 1] * 20)
    losses = torch.rand(40, generator=seeded()).tolist()
    exaggerated = [math.exp(10 * loss) for loss in losses]
    assert choose(RankSampler(8), rois, losses_of(losses)) == choose(RankSampler(8), rois, losses_of(exaggerated))


def test_the_hardest_are_nearly_certain_under_the_greatest_pressure():
    losses = list(range(50))
    (chosen,) = choose(RankSampler(5, pressure=1e300), rois_of([0] * 50), losses_of(losses))
    assert sorted(chosen) == [45, 46, 47, 48, 49]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65])
def test_as_many_as_there_are(count):
    losses = losses_of(torch.rand(count, generator=seeded()).tolist())
    assert len(choose(RankSampler(), rois_of([0] * count), losses)[0]) == min(count, 64)


def test_the_rank_is_of_class_and_box_loss_together():
    sampler = RankSampler(1, pressure=1e300)
    assert choose(sampler, rois_of([1, 0]), losses_of([1.0, 2.0], box=[2.0, 0.0])) == [[0]]


# ------------------------------------------------------------------------------------------------- StratifiedSampler


def slow_stratified(boxes, labels, cls, box, k, strata, nms_iou):
    """As its docstring tells it, one RoI after the other."""
    kept = [i for i, label in enumerate(labels) if label >= 0]
    total = [np.float32(cls[i]) + np.float32(box[i]) for i in range(len(labels))]
    survivors = slow_hard_examples(boxes[kept], [total[i] for i in kept], len(kept), nms_iou)
    ranked = [kept[i] for i in survivors]
    members = {n: [] for n in range(strata)}
    for i in ranked:
        share = np.float32(box[i]) / total[i] if total[i] > 0 else np.float32(0)
        members[min(int(share * np.float32(strata)), strata - 1)].append(i)
    taken = [i for each in members.values() for i in each[: k // strata]]
    taken += [i for i in ranked if i not in taken][: k - len(taken)]
    return [i for i in ranked if i in taken]


def test_box_errors_have_their_own_places_beside_class_errors():
    """Five hard class errors would fill OHEM's mini-batch of four."""
    rois = rois_of([0, 0, 0, 0, 1, 2, 2])
    losses = losses_of([9.0, 8.0, 7.0, 6.0, 5.0, 0.1, 0.5], box=[0, 0, 0, 0, 0, 0.3, 0.6])
    assert choose(HardSampler(4), rois, losses) == [[0, 1, 2, 3]]
    assert choose(StratifiedSampler(4, strata=2), rois, losses) == [[0, 1, 6, 5]]


def test_places_a_stratum_cannot_fill_are_for_the_hardest_of_the_rest():
    rois, losses = rois_of([0, 0, 0, 1, 0]), losses_of([5.0, 4.0, 3.0, 0.1, 2.0], box=[0, 0, 0, 0.4, 0])
    assert choose(StratifiedSampler(4, strata=2), rois, losses) == [[0, 1, 2, 3]]
    assert choose(StratifiedSampler(4, strata=4), rois, losses) == [[0, 1, 2, 3]]
    assert choose(StratifiedSampler(2, strata=4), rois, losses) == [[0, 1]]  # a quota of none


def test_near_duplicates_are_dropped_across_strata_as_in_ohem():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]]
    rois, losses = rois_of([1, 1, 0], boxes=boxes), losses_of([3.0, 0.1, 1.0], box=[0.0, 2.0, 0.0])
    assert choose(StratifiedSampler(3), rois, losses) == [[0, 2]]
    assert choose(StratifiedSampler(3, nms_iou=None), rois, losses) == [[0, 1, 2]]


def test_losses_of_nothing_but_zero_are_in_the_first_stratum():
    assert choose(StratifiedSampler(2), rois_of([1, 0, 0]), losses_of([0.0, 0.0, 0.0])) == [[0, 1]]


def test_equal_to_the_slow_reference_on_1000_random_cases():
    rng = np.random.default_rng(0)
    not_the_hardest = 0
    for _ in range(1000):
        count = int(rng.integers(0, 25))
        boxes, cls = random_case(rng, count)
        labels = rng.integers(-1, 3, count)
        box = np.where(labels > 0, rng.exponential(size=count) * rng.integers(0, 3, count), 0).astype(np.float32)
        k, strata, nms_iou = int(rng.integers(1, 20)), int(rng.integers(1, 6)), [0.7, 0.3, None][rng.integers(3)]
        rois, losses = rois_of(labels.tolist(), boxes=boxes.tolist()), losses_of(cls, box)
        (found,) = choose(StratifiedSampler(k, strata, nms_iou), rois, losses)
        assert found == slow_stratified(boxes, labels, cls, box, k, strata, nms_iou)
        not_the_hardest += found != choose(HardSampler(k, nms_iou), rois, losses)[0]
    assert not_the_hardest > 50


def test_one_stratum_is_ohem():
    rng = np.random.default_rng(1)
    boxes, cls = random_case(rng, 60)
    rois, losses = rois_of(rng.integers(-1, 3, 60).tolist(), boxes=boxes.tolist()), losses_of(cls)
    assert choose(StratifiedSampler(8, strata=1), rois, losses) == choose(HardSampler(8), rois, losses)


# ------------------------------------------------------------------------------------------------------ QuotaSampler


@given(
    st.lists(
        st.tuples(st.sampled_from([-1, 0, 0, 1, 2]), st.floats(0, 9, width=32), st.floats(0, 9, width=32)), max_size=40
    ),
    st.integers(1, 20),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_the_hardest_of_foreground_up_to_its_share_and_the_hardest_of_background(case, size, share):
    labels, cls, box = ([each[n] for each in case] for n in range(3))
    rois, losses = (
        rois_of(labels),
        losses_of(cls, [loss if label > 0 else 0 for label, loss in zip(labels, box, strict=True)]),
    )
    (found,) = choose(QuotaSampler(size, share), rois, losses)
    hardest = sorted(range(len(labels)), key=lambda i: -cls[i])  # stable, and by the class loss alone
    foreground = [i for i in hardest if labels[i] > 0][: round(share * size)]
    background = [i for i in hardest if labels[i] == 0][: size - len(foreground)]
    assert found == foreground + background


def test_near_duplicates_stay_and_foreground_does_not_fill_up_for_background():
    same = [[0, 0, 10, 10]] * 5
    rois = rois_of([0, 1, 1, 1, 1], boxes=same)
    assert choose(QuotaSampler(4), rois, losses_of([0.1, 3.0, 4.0, 2.0, 5.0])) == [[4, 0]]
    rois = rois_of([0, 0, 0, 0, 1], boxes=same)
    assert choose(QuotaSampler(4), rois, losses_of([0.1, 3.0, 4.0, 2.0, 5.0])) == [[4, 2, 1, 3]]


# ------------------------------------------------------------------------------------------------------- all of them

RANKING = [RankSampler, StratifiedSampler, QuotaSampler]


@pytest.mark.parametrize("sampler", [IoUBalancedSampler, *RANKING])
@given(
    case=st.lists(
        st.tuples(st.sampled_from([-1, 0, 0, 1, 2]), st.floats(0, 9, width=32), st.floats(0, 9, width=32)), max_size=40
    ),
    size=st.integers(1, 20),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=50)
def test_at_most_so_many_not_ignored_none_twice_and_the_same_from_the_same_stream(sampler, case, size, seed):
    labels = [label for label, _, _ in case]
    rois = [rois_of(labels), rois_of(labels[::-1])]
    losses = losses_of([cls for _, cls, _ in case], [box if label > 0 else 0 for label, _, box in case])
    losses = [losses, losses[torch.arange(len(labels)).flip(0)]]
    first = choose(sampler(size), rois, *losses, seed=seed)  # which looks for ignored ones and for repetition
    assert first == choose(sampler(size), rois, *losses, seed=seed)
    candidates = sum(label >= 0 for label in labels)
    for chosen in first:
        assert len(chosen) <= min(size, candidates)
        if sampler in (RankSampler, StratifiedSampler):  # without quotas or near-duplicates nothing else is missing
            assert len(chosen) == min(size, candidates)


@pytest.mark.parametrize("sampler", RANKING)
@pytest.mark.parametrize("dropout", [True, False])
def test_the_read_only_pass_runs_once_with_the_dropout_asked_for(sampler, dropout):
    score = Scored(losses_of([1.0]), losses_of([1.0]))
    sampler(dropout=dropout)([rois_of([0]), rois_of([0])], score, seeded())
    assert score.calls == [dropout]


@pytest.mark.parametrize("sampler", RANKING)
def test_a_loss_that_is_not_finite_is_refused(sampler):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"losses\[1\]: found (nan|inf); allowed: finite"):
            choose(sampler(), rois_of([0, 1]), losses_of([1.0, bad]))


@pytest.mark.parametrize("sampler", [StratifiedSampler(2), QuotaSampler(2)])
def test_a_sampler_without_chance_takes_nothing_from_the_random_stream(sampler):
    rng = seeded()
    before = rng.get_state()
    sampler([rois_of([0, 1, 0])], Scored(losses_of([1.0, 2.0, 3.0])), rng)
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize(
    ("sampler", "losses"), [(IoUBalancedSampler(4), ()), (RankSampler(4), (losses_of(list(range(40))),))]
)
def test_a_sampler_of_chance_moves_its_own_stream_and_no_other(sampler, losses):
    before = torch.get_rng_state()
    rng, score = seeded(), Scored(*losses) if losses else refuse_to_score
    rois = rois_of([0, 1] * 20)
    assert sampler([rois], score, rng)[0].tolist() != sampler([rois], score, rng)[0].tolist()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IoUBalancedSampler(0), "rois_per_image: found 0; allowed: 1 or more"),
        (lambda: IoUBalancedSampler(fg_fraction=1.5), "fg_fraction: found 1.5; allowed: 0 to 1"),
        (lambda: IoUBalancedSampler(bins=0), "bins: found 0; allowed: 1 or more"),
        (lambda: IoUBalancedSampler(bg_hi=0.0), "bg_hi: found 0.0; allowed: above 0, to 1"),
        (lambda: RankSampler(pressure=0.5), "pressure: found 0.5; allowed: 1 or more"),
        (lambda: RankSampler(pressure=math.inf), "pressure: found inf; allowed: 1 or more"),
        (lambda: StratifiedSampler(strata=0), "strata: found 0; allowed: 1 or more"),
        (lambda: QuotaSampler(fg_fraction=-0.1), "fg_fraction: found -0.1; allowed: 0 to 1"),
        (lambda: RandomSampler(fg_fraction=math.nan), "fg_fraction: found nan; allowed: 0 to 1"),
    ],
)
def test_settings_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_they_are_part_of_the_public_interface():
    for name in ("IoUBalancedSampler", "RankSampler", "StratifiedSampler", "QuotaSampler"):
        assert name in ohem.__all__
        assert callable(getattr(ohem, name)())
