"""What a RoI costs, against torchvision and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import fastrcnn_loss

from ohem.losses import NonFiniteLossError, RoiLosses, mean_losses, require_finite, roi_losses
from ohem.rois import Rois

CLASSES = 3


def rois_of(labels, deltas=None):
    labels = torch.tensor(labels, dtype=torch.int64)
    boxes = torch.arange(len(labels), dtype=torch.float32)[:, None] + torch.tensor([0.0, 0, 1, 1])
    deltas = torch.zeros(len(labels), 4) if deltas is None else deltas
    return Rois(boxes, labels, torch.zeros(len(labels)), deltas)


def random_case(labels, seed=0, dtype=torch.float32, agnostic=False):
    """Logits, deltas and RoIs; both sides of smooth-L1's bend are met."""
    rng = torch.Generator().manual_seed(seed)
    count = len(labels)
    logits = 3 * torch.randn(count, CLASSES + 1, generator=rng, dtype=dtype)
    deltas = torch.randn(count, 4 if agnostic else 4 * (CLASSES + 1), generator=rng, dtype=dtype)
    return logits, deltas, rois_of(labels, torch.randn(count, 4, generator=rng, dtype=dtype))


LABELS = [0, 3, 1, 0, 2, 2, 0, 1, 0, 0, 3, 0]


def test_a_hand_worked_roi():
    logits = torch.tensor([[0.0, math.log(3)]])  # the class has probability 3/4
    deltas = torch.tensor([[9.0, 9, 9, 9, 0.5, -0.5, 3.0, 0.0]])
    losses = roi_losses(logits, deltas, rois_of([1]))
    assert losses.cls.item() == pytest.approx(-math.log(3 / 4))
    assert losses.box.item() == pytest.approx(0.125 + 0.125 + 2.5 + 0.0)  # 0.5 x^2 below 1, |x| - 0.5 above
    assert losses.total.item() == pytest.approx(-math.log(3 / 4) + 2.75)


def test_background_has_no_box_loss():
    logits, deltas, rois = random_case([0, 0, 0])
    losses = roi_losses(logits, deltas, rois)
    assert losses.box.tolist() == [0, 0, 0]
    assert torch.equal(losses.total, losses.cls)
    assert (losses.cls > 0).all()


def test_ignored_rois_cost_nothing_and_teach_nothing():
    logits, deltas, rois = random_case([-1, 2, -1])
    logits.requires_grad_()
    deltas.requires_grad_()
    losses = roi_losses(logits, deltas, rois)
    assert losses.total[[0, 2]].tolist() == [0, 0]
    assert losses.total[1] > 0
    torch.autograd.backward(losses.total.sum())
    assert (logits.grad[[0, 2]] == 0).all()
    assert (deltas.grad[[0, 2]] == 0).all()


def test_all_ignored():
    logits, deltas, rois = random_case([-1, -1])
    assert roi_losses(logits, deltas, rois).total.tolist() == [0, 0]
    assert mean_losses([roi_losses(logits, deltas, rois)]).total.item() == 0


def test_only_the_deltas_of_its_class_count():
    logits, deltas, rois = random_case([2])
    deltas.requires_grad_()
    torch.autograd.backward(roi_losses(logits, deltas, rois).box.sum())
    assert deltas.grad.view(CLASSES + 1, 4).ne(0).any(dim=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("labels", [LABELS, [0] * 5, [1, 2, 3]])
def test_parity_with_torchvision(labels):
    """Its beta is 1/9, and it too divides by the number of RoIs."""
    logits, deltas, rois = random_case(labels)
    ours = mean_losses([roi_losses(logits, deltas, rois, beta=1 / 9)])
    cls, box = fastrcnn_loss(logits, deltas, [rois.labels], [rois.deltas])
    assert ours.cls.item() == pytest.approx(cls.item(), rel=1e-5)
    assert ours.box.item() == pytest.approx(box.item(), rel=1e-5)


def test_parity_with_torchvision_over_a_batch_of_unequal_images():
    cases = [random_case(LABELS, 0), random_case(LABELS[:5], 1)]
    ours = mean_losses([roi_losses(*case, beta=1 / 9) for case in cases], over="batch")
    logits, deltas = (torch.cat([case[part] for case in cases]) for part in (0, 1))
    cls, box = fastrcnn_loss(
        logits, deltas, [rois.labels for _, _, rois in cases], [rois.deltas for _, _, rois in cases]
    )
    assert ours.cls.item() == pytest.approx(cls.item(), rel=1e-5)
    assert ours.box.item() == pytest.approx(box.item(), rel=1e-5)


def test_parity_with_the_papers_smooth_l1():
    """sigma 1: 0.5 x^2 where |x| < 1, |x| - 0.5 elsewhere, summed over the four deltas."""
    logits, deltas, rois = random_case(LABELS)
    expected = []
    for i, label in enumerate(LABELS):
        x = (deltas.view(-1, CLASSES + 1, 4)[i, label] - rois.deltas[i]).abs()
        expected.append(torch.where(x < 1, 0.5 * x**2, x - 0.5).sum().item() if label else 0.0)
    assert roi_losses(logits, deltas, rois).box.tolist() == pytest.approx(expected, rel=1e-5)


def test_class_agnostic_deltas():
    logits, deltas, rois = random_case(LABELS, agnostic=True)
    assert torch.equal(
        roi_losses(logits, deltas, rois).total, roi_losses(logits, deltas.repeat(1, CLASSES + 1), rois).total
    )


def test_no_rois():
    for deltas in (torch.zeros(0, 4), torch.zeros(0, 4 * (CLASSES + 1))):
        losses = roi_losses(torch.zeros(0, CLASSES + 1), deltas, rois_of([]))
        assert losses.cls.shape == losses.box.shape == (0,)


def test_without_foreground_the_box_layer_still_gets_a_gradient_of_zero():
    """Data-parallel training waits for a gradient of every parameter."""
    logits, deltas, rois = random_case([0, 0])
    deltas.requires_grad_()
    torch.autograd.backward(roi_losses(logits, deltas, rois).box.sum())
    assert deltas.grad is not None
    assert (deltas.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_scores_give_float32_losses(dtype):
    logits, deltas, rois = random_case(LABELS)
    low = roi_losses(logits.to(dtype), deltas.to(dtype), rois)
    assert low.cls.dtype == low.box.dtype == torch.float32
    rounded = roi_losses(logits.to(dtype).float(), deltas.to(dtype).float(), rois)
    assert torch.equal(low.total, rounded.total)  # nothing is lost but in the scores themselves


def test_double_precision_stays():
    losses = roi_losses(*random_case(LABELS, dtype=torch.float64))
    assert losses.cls.dtype == losses.box.dtype == torch.float64


@pytest.mark.parametrize("agnostic", [False, True])
def test_gradients(agnostic):
    logits, deltas, rois = random_case([*LABELS, -1], dtype=torch.float64, agnostic=agnostic)

    def parts(logits, deltas):
        losses = roi_losses(logits, deltas, rois)
        return losses.cls, losses.box

    assert torch.autograd.gradcheck(parts, (logits.requires_grad_(), deltas.requires_grad_()))


@pytest.mark.parametrize("over", ["image", "batch"])
def test_gradients_of_the_mean(over):
    """What a step minimises, of images of unequal weight; beta is torchvision's."""
    cases = [random_case([*LABELS, -1], 0, torch.float64), random_case([0, 2], 1, torch.float64)]

    def loss(*scores):
        pairs = zip(scores[::2], scores[1::2], cases, strict=True)
        return mean_losses([roi_losses(*pair, rois, beta=1 / 9) for *pair, (_, _, rois) in pairs], over).total

    assert torch.autograd.gradcheck(
        loss, [each.requires_grad_() for logits, deltas, _ in cases for each in (logits, deltas)]
    )


def test_a_huge_loss_is_a_number():
    losses = roi_losses(torch.tensor([[1e4, -1e4]]), torch.full((1, 8), 1e6), rois_of([1]))
    assert losses.cls.item() == pytest.approx(2e4)
    assert losses.box.item() == pytest.approx(4e6)


def test_some_of_the_losses_can_be_taken():
    losses = RoiLosses(torch.arange(4.0), torch.arange(4.0) * 10)
    assert losses[torch.tensor([3, 1])].total.tolist() == [33, 11]
    assert losses[1:3].cls.tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------------- mean_losses


def two_images():
    return [
        RoiLosses(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([4.0, 0.0, 0.0, 0.0])),
        RoiLosses(torch.tensor([8.0]), torch.tensor([2.0])),
    ]


def test_the_mean_over_images_of_the_mean_within_each():
    mean = mean_losses(two_images())
    assert mean.cls.item() == (12 / 4 + 8 / 1) / 2
    assert mean.box.item() == (4 / 4 + 2 / 1) / 2  # over all RoIs, not the foreground


def test_the_mean_over_the_rois_of_the_batch():
    mean = mean_losses(two_images(), over="batch")
    assert mean.cls.item() == 20 / 5
    assert mean.box.item() == pytest.approx(6 / 5)


def test_both_are_the_same_for_images_with_equally_many():
    losses = [roi_losses(*random_case(LABELS, seed)) for seed in (0, 1, 2)]
    assert mean_losses(losses).total.item() == pytest.approx(mean_losses(losses, over="batch").total.item())


@pytest.mark.parametrize("over", ["image", "batch"])
def test_an_image_without_selected_rois_adds_nothing(over):
    nothing = RoiLosses(torch.zeros(0), torch.zeros(0))
    one = RoiLosses(torch.tensor([4.0]), torch.tensor([2.0]))
    assert mean_losses([nothing, nothing], over).total.item() == 0
    assert mean_losses([nothing, one], over).cls.item() == (2 if over == "image" else 4)


# ---------------------------------------------------------------------------------------------------- require_finite


def test_the_first_loss_that_is_not_finite_is_named():
    good = RoiLosses(torch.ones(2), torch.ones(2))
    bad = RoiLosses(torch.ones(3), torch.tensor([0.0, float("inf"), float("nan")]))
    require_finite([good], [rois_of([1, 1])])
    with pytest.raises(NonFiniteLossError) as caught:
        require_finite([good, bad], [rois_of([1, 1]), rois_of([1, 1, 1])])
    assert str(caught.value) == (
        "image 1 of the batch, RoI 1 [1.0, 1.0, 2.0, 2.0]: box loss: found inf; allowed: finite numbers"
    )
    assert caught.value.image == 1
    with pytest.raises(NonFiniteLossError, match=r"image 0 .* class loss: found nan"):
        require_finite([RoiLosses(torch.tensor([float("nan")]), torch.zeros(1))], [rois_of([1])])


def test_the_softmax_log_loss_is_torchs():
    logits, deltas, rois = random_case(LABELS)
    assert torch.equal(roi_losses(logits, deltas, rois).cls, F.cross_entropy(logits, rois.labels, reduction="none"))
