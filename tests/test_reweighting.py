"""Losses that weigh instead of choosing: focal loss against torchvision's, GHM against slow references."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator
from torchvision.ops import sigmoid_focal_loss

from ohem.losses import RoiLosses, mean_losses
from ohem.reweighting import FocalLoss, GradientHarmonized, LogLoss
from ohem.samplers import AllSampler, HardSampler
from test_fast_rcnn import gradients, image_of, in_double, new_detector, proposals_of, target
from test_samplers import losses_of, rois_of


def normal(*shape, seed=0, spread=1.0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64) * spread


def two_classes(foreground_logits, labels):
    """The softmax log loss of one class beside background, whose logit is 0: the sigmoid's."""
    logits = torch.stack([torch.zeros_like(foreground_logits), foreground_logits], dim=1)
    cls = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
    return RoiLosses(cls, torch.zeros_like(cls))


def trained_on(reweight, losses, rois):
    """What a step would minimise, of one image."""
    return mean_losses(reweight([losses], [rois]))


# --------------------------------------------------------------------------------------------------------- focal loss


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.6])
def test_with_one_class_it_is_torchvisions_sigmoid_focal_loss_with_its_gradient(gamma, alpha):
    labels = [1, 0, 0, 1, 1] * 8
    z = normal(40, spread=4).requires_grad_()
    ours = trained_on(FocalLoss(gamma, alpha), two_classes(z, labels), rois_of(labels)).cls
    truth = torch.tensor(labels, dtype=torch.float64)
    theirs = sigmoid_focal_loss(z, truth, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="sum") / 24
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    ours_slope, theirs_slope = (torch.autograd.grad(loss, z)[0] for loss in (ours, theirs))
    assert torch.allclose(ours_slope, theirs_slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_its_gradient_goes_through_the_probability(gamma):
    labels = [1, 0, 2, 0, 3, 0]
    rois, logits = rois_of(labels), normal(6, 4, spread=2).requires_grad_()

    def loss(scores):
        cls = F.cross_entropy(scores, torch.tensor(labels), reduction="none")
        return trained_on(FocalLoss(gamma), RoiLosses(cls, torch.zeros_like(cls)), rois).cls

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_nothing_and_huge_losses_are_safe(gamma, dtype):
    """At -log p_t = 0 the derivative is that of c ** (gamma + 1); far out p_t vanishes and the loss is the plain one."""
    cls = torch.tensor([0.0, 1e-45, 1e-30, 1e-8, 50.0, 1e4, 1e30], dtype=dtype, requires_grad=True)
    rois = rois_of([1, 0, 1, 0, 1, 0, 1])
    (focal,) = FocalLoss(gamma, alpha=None)([RoiLosses(cls, torch.zeros_like(cls))], [rois])
    (slope,) = torch.autograd.grad(focal.cls.sum(), cls)
    plain = focal.cls / (7 / 4)
    assert focal.cls.isfinite().all()
    assert slope.isfinite().all()
    assert plain[0] == 0
    assert torch.allclose(plain[4:], cls[4:])
    assert torch.allclose(slope[4:] / (7 / 4), torch.ones(3, dtype=dtype))
    if gamma > 0:
        assert slope[0] == pytest.approx(0, abs=1e-10)


def test_easy_rois_lose_weight_hard_ones_keep_it():
    losses = losses_of([-math.log(0.9), -math.log(0.1)])
    (focal,) = FocalLoss(2.0, alpha=None)([losses], [rois_of([1, 1])])
    assert (focal.cls / losses.cls).tolist() == pytest.approx([0.1**2, 0.9**2], rel=1e-5)


def test_alpha_weighs_foreground_and_the_rest_background():
    losses = losses_of([1.0, 1.0, 1.0])
    (balanced,), (plain,) = (FocalLoss(2.0, alpha)([losses], [rois_of([2, 0, 0])]) for alpha in (0.25, None))
    assert (balanced.cls / plain.cls).tolist() == pytest.approx([0.25, 0.75, 0.75])


def test_class_and_box_loss_are_sums_divided_by_the_number_of_foreground_rois():
    losses = losses_of([1.0, 2.0, 3.0, 4.0, 5.0], box=[0.0, 0.5, 0.0, 1.5, 0.0])
    mean = trained_on(FocalLoss(gamma=0, alpha=None), losses, rois_of([0, 1, 0, 2, 0]))
    assert mean.cls.item() == pytest.approx(15 / 2)
    assert mean.box.item() == pytest.approx(2 / 2)
    none = trained_on(FocalLoss(gamma=0, alpha=None), losses_of([1.0, 2.0]), rois_of([0, 0]))
    assert none.cls.item() == pytest.approx(3 / 1)


# -------------------------------------------------------------------------------------------------------------- GHM-C

GHM_C = GradientHarmonized(10, box_bins=None)


def slow_ghm_weights(cls, bins):
    size = [1 - math.exp(-loss) for loss in cls]
    interval = [min(int(g * bins), bins - 1) for g in size]
    full = len(set(interval))
    return [len(cls) / (interval.count(n) * full) for n in interval]


@given(st.lists(st.integers(0, 63).map(lambda n: n / 64), max_size=40), st.sampled_from([1, 3, 10, 30]))
@settings(deadline=None)
def test_harmonized_weights_equal_the_slow_reference(sizes, bins):
    """Sizes of gradients in 64ths, a little up so that rounding moves none over the end of an interval."""
    cls = [-math.log(1 - g) + 1e-4 for g in sizes]
    losses = RoiLosses(torch.tensor(cls, dtype=torch.float64), torch.zeros(len(cls), dtype=torch.float64))
    (found,) = GradientHarmonized(bins, box_bins=None)([losses], [rois_of([0] * len(cls))])
    weights = slow_ghm_weights(cls, bins)
    assert found.cls.tolist() == pytest.approx([weight * loss for weight, loss in zip(weights, cls, strict=True)])
    assert sum(weights) == pytest.approx(len(cls))


def test_the_crowd_of_easy_rois_and_the_few_very_hard_ones_count_like_any_other_interval():
    easy, medium, very_hard = [0.01] * 90, [0.7] * 8, [9.0] * 2
    losses = losses_of(easy + medium + very_hard)
    (found,) = GHM_C([losses], [rois_of([0] * 100)])
    weights = found.cls / losses.cls
    for part in (weights[:90], weights[90:98], weights[98:]):
        assert part.sum().item() == pytest.approx(100 / 3, rel=1e-4)


def test_the_size_of_the_gradient_is_the_sigmoids_with_one_class():
    """g = |p - p*|: RoIs of equal |p - p*| share their weight, whatever their label."""
    z = torch.tensor([3.0, -3.0, -3.0, 0.1, 3.0], dtype=torch.float64)
    labels = [0, 1, 0, 1, 1]
    size = (z.sigmoid() - torch.tensor(labels)).abs()
    losses = two_classes(z, labels)
    (found,) = GHM_C([losses], [rois_of(labels)])
    interval = (size * 10).long().tolist()
    assert interval == [9, 9, 0, 4, 0]
    assert (found.cls / losses.cls).tolist() == pytest.approx([5 / (3 * n) for n in (2, 2, 2, 1, 2)])


def test_the_weights_are_constants_to_the_gradient():
    cls = normal(30, spread=2).abs().requires_grad_()
    (found,) = GHM_C([RoiLosses(cls, torch.zeros_like(cls))], [rois_of([0] * 30)])
    (slope,) = torch.autograd.grad(found.cls.sum(), cls)
    assert torch.allclose(slope, (found.cls / cls).detach())


def test_losses_of_nothing_and_huge_losses_are_in_the_first_and_last_interval():
    losses = losses_of([0.0, 0.0, 200.0, 1e30])
    (found,) = GHM_C([losses], [rois_of([0, 0, 1, 1])])
    assert found.cls.tolist() == pytest.approx([0, 0, 200, 1e30])


def test_box_losses_are_divided_by_the_number_of_foreground_rois():
    losses = losses_of([1.0] * 5, box=[0.0, 0.5, 0.0, 1.5, 0.0])
    mean = trained_on(GHM_C, losses, rois_of([0, 1, 0, 2, 0]))
    assert (mean.cls.item(), mean.box.item()) == pytest.approx((1.0, 2 / 2))


def test_ignored_rois_are_not_counted():
    cls = [0.1, 0.1, 3.0]
    (plain,) = GHM_C([losses_of(cls)], [rois_of([0, 1, 2])])
    (with_ignored,) = GHM_C([losses_of([*cls, 0.0, 0.0])], [rois_of([0, 1, 2, -1, -1])])
    assert with_ignored.cls.tolist() == pytest.approx([*plain.cls.tolist(), 0, 0])


@pytest.mark.parametrize(
    "reweight",
    [LogLoss(), FocalLoss(0.0, None), FocalLoss(0.5), FocalLoss(2.0, 0.6), GradientHarmonized(4, box_bins=None)],
    ids=repr,
)
def test_gradients(reweight):
    """Of class and box losses, an ignored RoI among them; a small step moves no RoI into another of GHM's intervals."""
    rois = rois_of([1, 0, 2, 0, 3, 0, -1])
    counted = (rois.labels >= 0).double()
    cls, box = ((normal(7, seed=seed).abs() * counted).requires_grad_() for seed in (1, 2))

    def parts(cls, box):
        (losses,) = reweight([RoiLosses(cls * counted, box)], [rois])
        return losses.cls, losses.box

    assert torch.autograd.gradcheck(parts, (cls, box))


# -------------------------------------------------------------------------------------------------------------- GHM-R


def wrong_by(differences, labels):
    """The losses of RoIs whose deltas are wrong by that much, and whose classes are right."""
    rois = rois_of(labels)
    given = torch.as_tensor(differences, dtype=torch.float64).reshape(len(labels), 4)
    given = torch.where((rois.labels > 0)[:, None], given, 0.0)
    box = F.smooth_l1_loss(given, torch.zeros_like(given), reduction="none").sum(dim=1)
    return RoiLosses(torch.zeros_like(box), box, given), rois


def slow_box_loss(differences, bins, mu):
    """Of the deltas of foreground RoIs: the weighted mean of each delta, times the four deltas of a RoI."""
    size = [abs(d) / math.sqrt(d * d + mu * mu) for d in differences]
    interval = [min(int(g * bins), bins - 1) for g in size]
    full = len(set(interval))
    each = [math.sqrt(d * d + mu * mu) - mu for d in differences]
    weights = [len(differences) / (interval.count(n) * full) for n in interval]
    return 4 * sum(w * loss for w, loss in zip(weights, each, strict=True)) / len(differences)


@given(
    st.lists(st.tuples(*[st.floats(-3, 3)] * 4), min_size=1, max_size=10),
    st.integers(0, 5),
    st.sampled_from([1, 2, 10]),
    st.sampled_from([0.02, 0.2, 1.0]),
)
@settings(deadline=None)
def test_the_harmonized_box_loss_equals_the_slow_reference(differences, backgrounds, bins, mu):
    rows = [*differences, *[(9.0,) * 4] * backgrounds]
    losses, rois = wrong_by(rows, [1] * len(differences) + [0] * backgrounds)
    mean = trained_on(GradientHarmonized(box_bins=bins, mu=mu), losses, rois)
    assert mean.box.item() == pytest.approx(slow_box_loss([d for row in differences for d in row], bins, mu))


def test_a_lone_outlier_counts_like_the_crowd_of_good_deltas():
    """Of two RoIs' eight deltas seven are right and one is far off: two intervals, each with half of the weight."""
    losses, rois = wrong_by([[0, 0, 0, 0], [0, 0, 0, 30.0]], [1, 2])
    (found,) = GradientHarmonized(box_bins=10, mu=0.2)([losses], [rois])
    assert found.box.tolist() == pytest.approx([0, 8 / (2 * 1) * (math.hypot(30, 0.2) - 0.2)])


def test_the_slope_of_a_far_delta_is_that_of_smooth_l1_and_of_a_near_one_square():
    losses, rois = wrong_by([[1e-3, 0.2, 50.0, -50.0]], [1])
    losses.differences.requires_grad_()
    (found,) = GradientHarmonized(box_bins=1, mu=0.2)([losses], [rois])
    (slope,) = torch.autograd.grad(found.box.sum(), losses.differences)
    assert slope[0].tolist() == pytest.approx([1e-3 / 0.2, 1 / math.sqrt(2), 1, -1], rel=1e-4)


def test_without_intervals_of_deltas_the_box_loss_is_the_plain_one():
    losses, rois = wrong_by([[0.1, 2.0, 0.0, -0.5]] * 3, [1, 0, 2])
    (found,) = GHM_C([losses], [rois])
    assert found.box.tolist() == pytest.approx((losses.box * 3 / 2).tolist())


def test_losses_alone_are_too_little_for_it():
    with pytest.raises(ValueError, match="GHM-R needs the differences of the deltas; found losses alone"):
        GradientHarmonized()([losses_of([1.0], box=[1.0])], [rois_of([1])])


# ---------------------------------------------------------------------------------------------------------- in a step

ALL = [LogLoss(), FocalLoss(), GradientHarmonized(10)]


@pytest.mark.parametrize("reweight", ALL, ids=repr)
def test_images_without_rois_cost_nothing(reweight):
    empty = RoiLosses(torch.zeros(0), torch.zeros(0), torch.zeros(0, 4))
    mean = mean_losses(reweight([empty, empty], [rois_of([]), rois_of([])]))
    assert mean.total.item() == 0


@pytest.mark.parametrize("reweight", ALL, ids=repr)
def test_only_what_is_trained_on_changes(reweight):
    """The choice, its ranking and the losses over all RoIs are those of the plain loss."""
    plain, weighed = new_detector(), new_detector()
    weighed.reweight = reweight
    steps = []
    for detector in (plain, weighed):
        detector.sampler = HardSampler(10)
        steps.append(detector.training_step([image_of()], [proposals_of(60)], [target()]))
    assert torch.equal(steps[0].selected[0], steps[1].selected[0])
    assert torch.equal(steps[0].score.losses[0].total, steps[1].score.losses[0].total)
    chosen = [image[index] for image, index in zip(steps[0].rois, steps[0].selected, strict=True)]
    mean = mean_losses(reweight(plain._losses(steps[0].score.features, chosen), chosen))
    assert steps[1].losses["loss_cls"].item() == pytest.approx(mean.cls.item(), rel=1e-4)
    assert steps[1].losses["loss_box"].item() == pytest.approx(mean.box.item(), rel=1e-4)
    assert (steps[0].losses == steps[1].losses) is (reweight == LogLoss())


@pytest.mark.parametrize("reweight", ALL, ids=repr)
def test_a_batchs_gradient_is_that_of_its_images_accumulated(reweight):
    detector = new_detector().double()
    detector.sampler, detector.reweight = AllSampler(), reweight
    images = [in_double(image_of(seed=i)) for i in range(2)]
    proposals = [in_double(proposals_of(count, seed=i)) for i, count in enumerate((60, 20))]
    targets = [in_double(each) for each in (target(), target([5, 5, 40, 30]))]
    together = gradients(detector, detector(images, proposals, targets))
    singles = [
        gradients(detector, detector(images[i : i + 1], proposals[i : i + 1], targets[i : i + 1])) for i in range(2)
    ]
    for key, gradient in together.items():
        assert torch.allclose(gradient, (singles[0][key] + singles[1][key]) / 2, rtol=1e-7, atol=1e-10), key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FocalLoss(gamma=-1), "gamma: found -1; allowed: 0 or more"),
        (lambda: FocalLoss(gamma=np.nan), "gamma: found nan; allowed: 0 or more"),
        (lambda: FocalLoss(alpha=1.5), "alpha: found 1.5; allowed: 0 to 1, or none"),
        (lambda: GradientHarmonized(0), "bins: found 0; allowed: 1 or more"),
        (lambda: GradientHarmonized(box_bins=0), "box_bins: found 0; allowed: 1 or more"),
        (lambda: GradientHarmonized(mu=0), "mu: found 0; allowed: more than 0"),
        (lambda: GradientHarmonized(mu=math.nan), "mu: found nan; allowed: more than 0"),
    ],
)
def test_settings_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_defaults_are_those_of_the_papers():
    """But for mu, 0.02 of deltas that are not normalised; a normalised delta in x is ten times as large."""
    assert (FocalLoss().gamma, FocalLoss().alpha) == (2.0, 0.25)
    ghm = GradientHarmonized()
    assert (ghm.bins, ghm.box_bins, ghm.mu) == (30, 10, pytest.approx(0.02 / 0.1))


def test_what_focal_loss_may_be_set_to():
    for alpha in (0, 1, None):
        assert FocalLoss(alpha=alpha).alpha == alpha
    for gamma in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"gamma: found .*; allowed: 0 or more"):
            FocalLoss(gamma)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha: found .*; allowed: 0 to 1, or none"):
            FocalLoss(alpha=alpha)


def test_the_largest_gradients_share_the_last_interval():
    """A probability of 0 makes g = 1, the end of the last interval and not the beginning of another."""
    cls = torch.tensor([200.0, -math.log(0.05), 0.01])  # g = 1, 0.95, 0.01, of four intervals
    (found,) = GradientHarmonized(4, box_bins=None)([RoiLosses(cls, torch.zeros(3))], [rois_of([1, 1, 0])])
    assert (found.cls / cls).tolist() == pytest.approx([3 / (2 * 2), 3 / (2 * 2), 3 / (2 * 1)])


def test_ignored_rois_weigh_nothing_in_the_harmonized_loss():
    cls = torch.tensor([1.0, 1.0])
    (found,) = GHM_C([RoiLosses(cls, torch.zeros(2))], [rois_of([1, -1])])
    assert found.cls.tolist() == pytest.approx([1, 0])
