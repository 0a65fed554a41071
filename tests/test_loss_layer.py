"""Section 4.2's first form, in which all RoIs run through the regular network: same choice and gradients, other cost."""

import pytest
import torch
from torch import Generator

from ohem.models.spec import BackboneSpec, HeadSpec
from ohem.reweighting import FocalLoss, GradientHarmonized
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.samplers import AllSampler, HardSampler, RandomSampler
from test_fast_rcnn import EMPTY, gradients, image_of, in_double, new_detector, proposals_of, target

SAMPLERS = [
    HardSampler(12),
    HardSampler(12, cap="batch"),
    HardSampler(12, nms_iou=None, dropout=False),
    RandomSampler(12, bg_lo=0.0),
    AllSampler(),
    IoUBalancedSampler(12),
    RankSampler(12),
    StratifiedSampler(12),
    QuotaSampler(12),
]


def batch():
    images = [in_double(image_of(130, 140)), in_double(image_of(150, 120, seed=1))]
    proposals = [in_double(proposals_of(count, seed=i)) for i, count in enumerate((60, 30))]
    return images, proposals, [in_double(target()), in_double(target([5, 5, 40, 30], labels=[2]))]


def both_forms(detector, *, seed=3):
    """Selections, losses and gradients, of the read-only form and then of the loss layer."""
    for form in ("read_only", "loss_layer"):
        detector.mining = form
        step = detector.training_step(*batch(), Generator().manual_seed(seed))
        yield step, gradients(detector, step.losses)


def assert_same(first, second):
    (step, slopes), (other, other_slopes) = first, second
    for index, other_index in zip(step.selected, other.selected, strict=True):
        assert sorted(index.tolist()) == sorted(other_index.tolist())  # which of two equals is first is up to rounding
    for name, loss in step.losses.items():
        assert loss.item() == pytest.approx(other.losses[name].item(), rel=1e-9)
    assert slopes.keys() == other_slopes.keys()
    for name, slope in slopes.items():
        assert torch.allclose(slope, other_slopes[name], rtol=1e-7, atol=1e-10), name
    assert max(slope.abs().max() for slope in slopes.values()) > 1e-3


@pytest.mark.parametrize(
    "backbone",
    [
        BackboneSpec(name="tf_efficientnet_lite0", weights="none", strides=(16, 32)),
        BackboneSpec(name="vgg_cnn_m_1024", weights="none"),
    ],
    ids=lambda spec: spec.name,
)
def test_the_same_choice_and_the_same_gradients(backbone):
    """Dropout off, in double precision, so that the tolerance leaves no room for anything but rounding."""
    detector = new_detector(backbone=backbone).double()
    detector.sampler = HardSampler(12)
    assert_same(*both_forms(detector))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_with_every_sampler(sampler):
    detector = new_detector().double()
    detector.sampler = sampler
    detector.loss_over = getattr(sampler, "cap", "image")
    assert_same(*both_forms(detector))


@pytest.mark.parametrize("reweight", [FocalLoss(), GradientHarmonized(10)], ids=repr)
def test_with_other_losses(reweight):
    detector = new_detector().double()
    detector.sampler, detector.reweight = HardSampler(12), reweight
    assert_same(*both_forms(detector))


def test_a_batch_is_its_images_accumulated():
    detector = new_detector().double()
    detector.sampler, detector.mining = HardSampler(12), "loss_layer"
    together = gradients(detector, detector(*batch()))
    singles = [gradients(detector, detector(*([part[i]] for part in batch()))) for i in range(2)]
    for name, slope in together.items():
        assert torch.allclose(slope, (singles[0][name] + singles[1][name]) / 2, rtol=1e-7, atol=1e-10), name


def test_the_regular_network_sees_every_roi_once_and_nothing_else_runs():
    """In the read-only form it sees the chosen ones only; of all, those that differ run without gradient."""
    detector = new_detector(ranking_chunk=20).double()
    detector.sampler = HardSampler(12)
    seen = []
    last = detector.head.cls_score
    last.register_forward_hook(lambda _, inputs, __: seen.append((torch.is_grad_enabled(), len(inputs[0]))))
    candidates = [62, 31]
    detector.mining = "loss_layer"
    detector.training_step(*batch())
    assert seen == [(True, sum(candidates))]
    seen.clear()
    detector.mining = "read_only"
    step = detector.training_step(*batch())
    assert [count for with_gradient, count in seen if with_gradient] == [12 + 12]
    different = [len(detector.head.distinct(rois.boxes)[0]) for rois in step.rois]
    assert sum(count for with_gradient, count in seen if not with_gradient) == sum(different)
    assert sum(candidates) / 2 < sum(different) <= sum(candidates)


def test_the_score_is_the_detached_loss_of_that_pass():
    """With dropout: the masks that ranked are the masks that train, whether dropout was asked for or not."""
    detector = new_detector(head=HeadSpec(fc=(16, 16), pool_size=3, dropout=0.5))
    detector.mining = "loss_layer"
    for dropout in (True, False):
        detector.sampler = HardSampler(12, dropout=dropout)
        step = detector.training_step([image_of()], [proposals_of(60)], [target()])
        (losses,) = step.score.losses
        assert not losses.cls.requires_grad
        assert not losses.box.requires_grad
        assert step.losses["loss_cls"].requires_grad
        assert step.losses["loss_cls"].item() == losses.cls[step.selected[0]].mean().item()
        assert step.losses["loss_box"].item() == losses.box[step.selected[0]].mean().item()


def test_all_losses_are_there_for_the_log_whatever_the_sampler():
    detector = new_detector()
    detector.sampler, detector.mining = RandomSampler(8), "loss_layer"
    step = detector.training_step([image_of()], [proposals_of(60)], [target()])
    assert [len(losses.cls) for losses in step.score.losses] == [62]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_images_without_objects_or_candidates_train(sampler):
    detector = new_detector(head=HeadSpec(fc=(8,), pool_size=2))
    detector.sampler, detector.mining = sampler, "loss_layer"
    losses = detector([image_of(), image_of()], [proposals_of(10), torch.zeros(0, 4)], [EMPTY, EMPTY])
    torch.autograd.backward(sum(losses.values()))
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
