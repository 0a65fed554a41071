"""The detector: the RoI network, one training step, and scoring."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn
from torchvision.models.detection._utils import BoxCoder

from ohem.boxes import DeltaStats, decode_deltas
from ohem.losses import mean_losses, roi_losses
from ohem.models import roi_head
from ohem.models.roi_head import RoIHead
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector
from ohem.rois import Rois
from ohem.samplers import AllSampler, HardSampler, RandomSampler

CLASSES = 3


def new_detector(name="resnet18", seed=0, **settings):
    """Whole backbone, tiny fully connected layers without dropout, and RoIs that differ in their losses."""
    torch.manual_seed(seed)
    head = HeadSpec(fc=(16, 16), pool_size=3, dropout=0.0)
    spec = DetectorSpec(**{"backbone": BackboneSpec(name=name, weights="none"), "head": head, **settings})
    detector = build_detector(spec, CLASSES)
    torch.nn.init.normal_(detector.head.cls_score.weight, std=1.0)
    torch.nn.init.normal_(detector.head.bbox_pred.weight, std=0.3)
    return detector.train()


@pytest.fixture(scope="module")
def one():
    """A detector in evaluation mode that no test changes."""
    return new_detector().eval()


def image_of(height=80, width=100, seed=0):
    return torch.rand(3, height, width, generator=Generator().manual_seed(seed))


def proposals_of(count, seed=0):
    rng = Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 40
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=rng) * 30], dim=1)


def target(*boxes, labels=None, **flags):
    boxes = boxes or ([10, 10, 40, 40], [50, 20, 75, 60])
    labels = labels or list(range(1, len(boxes) + 1))
    flags = {name: torch.isin(torch.arange(len(boxes)), torch.tensor(places)) for name, places in flags.items()}
    return {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels), **flags}


EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


# --------------------------------------------------------------------------------------------------- the RoI network


def c_round(value):
    """C's round: halves away from zero."""
    return int(math.floor(abs(value) + np.float32(0.5)) * math.copysign(1, value))


def slow_roi_pool(feature, box, size, stride):
    """Caffe's ROIPooling for one box with inclusive corners, loop by loop, in its float32 arithmetic."""

    channels, height, width = feature.shape
    scale = np.float32(1 / stride)
    x1, y1, x2, y2 = (c_round(np.float32(corner) * scale) for corner in box)
    bin_h, bin_w = (np.float32(max(high - low + 1, 1)) / np.float32(size) for low, high in ((y1, y2), (x1, x2)))
    pooled = np.zeros((channels, size, size), dtype=np.float32)
    for row in range(size):
        for column in range(size):
            top, bottom = (
                min(max(math.floor(row * bin_h) + y1, 0), height),
                min(max(math.ceil((row + 1) * bin_h) + y1, 0), height),
            )
            left, right = (
                min(max(math.floor(column * bin_w) + x1, 0), width),
                min(max(math.ceil((column + 1) * bin_w) + x1, 0), width),
            )
            if bottom > top and right > left:
                pooled[:, row, column] = feature[:, top:bottom, left:right].max(axis=(1, 2))
    return pooled


@pytest.mark.parametrize(("size", "stride"), [(7, 16), (6, 16), (3, 8)])
def test_roi_max_pooling_is_caffes_on_inclusive_corners(size, stride):
    rng = np.random.default_rng(size)
    feature = rng.normal(size=(2, 12, 15)).astype(np.float32)
    corner = rng.integers(0, 10 * stride, (200, 2)).astype(np.float32)
    half_open = np.concatenate([corner, corner + rng.integers(1, 8 * stride, (200, 2))], axis=1).astype(np.float32)
    half_open[:50] += rng.random((50, 4), dtype=np.float32)  # corners between pixels, and outside of the image
    head = RoIHead(2, stride, 1, pool_size=size, fc=(4,))
    pooled = head.pool_rois(torch.from_numpy(feature)[None], torch.from_numpy(half_open)).numpy()
    for found, box in zip(pooled, half_open, strict=True):
        assert np.array_equal(found, slow_roi_pool(feature, box - np.float32([0, 0, 1, 1]), size, stride)), box


def test_a_roi_of_whole_cells_pools_those_cells_and_no_others():
    """Half-open [16, 48) is the inclusive 16..47: round(16/16) = 1 to round(47/16) = 3, as in Caffe."""
    feature = torch.arange(36.0).view(1, 1, 6, 6)
    head = RoIHead(1, 16, 1, pool_size=1, fc=(4,))
    boxes = torch.tensor([[16.0, 16, 48, 48], [0, 0, 1, 1], [16, 0, 24, 8]])
    assert head.pool_rois(feature, boxes).flatten().tolist() == [3 * 6 + 3, 0, 1]


def test_roi_align_reads_half_open_boxes():
    """On a map that grows by one a cell, a bin's value is where its centre lies; cell 0's centre is pixel 8."""
    feature = torch.arange(12.0).expand(1, 1, 10, 12)
    head = RoIHead(1, 16, 1, pool="align", pool_size=4, fc=(4,))
    boxes = torch.tensor([[32.0, 32, 96, 96], [40, 20, 139, 95]])
    pooled = head.pool_rois(feature, boxes)
    for box, found in zip(boxes, pooled, strict=True):
        centres = box[0] + (torch.arange(4) + 0.5) * (box[2] - box[0]) / 4
        assert torch.allclose(found[0], (centres / 16 - 0.5).expand(4, 4), atol=1e-5)


def test_new_layers_start_as_in_the_paper():
    """N(0, 0.01) for classes, N(0, 0.001) for boxes, biases 0; five standard errors of a sampled deviation."""
    torch.manual_seed(0)
    head = RoIHead(8, 16, 20, pool_size=2, fc=(4096,), channels=16)
    for layer, std in ((head.cls_score, 0.01), (head.bbox_pred, 0.001)):
        weight = layer.weight
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())
        assert layer.bias.abs().max() == 0
    assert (head.cls_score.out_features, head.bbox_pred.out_features) == (21, 84)
    for layer, inputs in ((head.fc[0], 16 * 2 * 2), (head.reduce, 8)):  # He et al.: keeps the spread of a ReLU network
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.35 if inputs == 8 else 0.01)
        assert layer.bias.abs().max() == 0


def test_dropout_follows_every_fully_connected_layer():
    torch.manual_seed(0)
    head = RoIHead(2, 16, 1, pool_size=2, fc=(500, 400), dropout=0.5).train()
    dropped = []
    head.dropout.register_forward_hook(
        lambda _, inputs, output: dropped.append((inputs[0].shape[1], ((output == 0) & (inputs[0] > 0)).float().sum()))
    )
    feature = torch.rand(1, 2, 8, 8)
    head(feature, torch.tensor([[0.0, 0, 100, 100]] * 50))
    assert [width for width, _ in dropped] == [500, 400]
    assert all(count > 0 for _, count in dropped)
    head.eval()
    dropped.clear()
    head(feature, torch.tensor([[0.0, 0, 100, 100]]))
    assert all(count == 0 for _, count in dropped)


@pytest.mark.parametrize("pool", ["max", "align"])
@pytest.mark.parametrize(
    ("channels", "in_a_block"),
    [(7, 0), (7, 2), (7, 1000), (40, 35)],  # a block for each channel, for two, for all; 35: two of 16, the rest
)
@pytest.mark.parametrize("onednn", [True, False])  # blocks of RoIs, or of channels
def test_many_rois_get_the_hidden_values_of_the_regular_pass(pool, channels, in_a_block, onednn, monkeypatch):
    if onednn:
        monkeypatch.setattr("ohem.models.products.mkl_is_at_home", lambda: False)
    else:
        monkeypatch.setattr("ohem.models.roi_head.onednn_fits", lambda *_: False)
    monkeypatch.setattr("ohem.models.roi_head.POOLED_BYTES", 30 * 9 * 4 * in_a_block)
    torch.manual_seed(0)
    head = RoIHead(channels, 16, 2, pool=pool, pool_size=3, fc=(20, 10)).eval()
    feature, boxes = torch.randn(1, channels, 8, 9), proposals_of(100 if onednn else 30)
    hidden = head.hidden_of_many(feature, boxes)
    logits, deltas = head(feature, boxes)
    assert torch.allclose(head.cls_score(hidden), logits, atol=1e-6)
    assert torch.allclose(head.bbox_pred(hidden), deltas, atol=1e-6)
    assert not hidden.requires_grad
    assert head.hidden_of_many(feature, boxes[:0]).shape == (0, 10)


@pytest.mark.parametrize("change", ["hook", "subclass", "no bias"])
def test_a_first_layer_that_is_more_than_its_weights_ranks_as_it_trains(change, monkeypatch):
    monkeypatch.setattr("ohem.models.roi_head.onednn_fits", lambda *_: False)

    class Doubled(nn.Linear):
        def forward(self, values):
            return 2 * super().forward(values)

    head = RoIHead(7, 16, 2, pool_size=3, fc=(20, 10)).eval()
    if change == "hook":
        head.fc[0].register_forward_hook(lambda _, inputs, output: 2 * output)
    else:
        head.fc[0] = Doubled(63, 20) if change == "subclass" else nn.Linear(63, 20, bias=False)
    feature, boxes = torch.randn(1, 7, 8, 9), proposals_of(30)
    assert torch.allclose(head.cls_score(head.hidden_of_many(feature, boxes)), head(feature, boxes)[0], atol=1e-6)


@pytest.mark.parametrize("normed", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_the_read_only_pass_leaves_the_vectors_of_spectral_norm_as_they_are(normed):
    detector = new_detector().train()
    normed(detector.head.fc[-1])
    features, rois = detector.features([image_of()]), [detector.label(proposals_of(30), target())]
    vectors = {name: value.clone() for name, value in detector.head.state_dict().items() if name.endswith(("_u", "_v"))}
    assert len(vectors) == 2
    detector.rank(features, rois)
    now = detector.head.state_dict()
    assert all(torch.equal(vector, now[name]) for name, vector in vectors.items())
    detector.training_step([image_of()], [proposals_of(30)], [target()])
    assert not any(torch.equal(vector, now[name]) for name, vector in vectors.items())  # as training does


@pytest.mark.parametrize("mining", ["read_only", "loss_layer"])
def test_a_sampler_may_change_the_losses_that_it_gets(mining):
    detector = new_detector().eval()

    def halves(rois, score, rng):
        for image, losses in zip(rois, score(dropout=False), strict=True):
            losses.cls[image.labels == 0] *= 0.5
            losses.box.zero_()
        return AllSampler()(rois, score, rng)

    steps = []
    for sampler in (AllSampler(), halves):
        detector.sampler, detector.mining = sampler, mining
        steps.append(detector.training_step([image_of()], [proposals_of(20)], [target()]))
    plain, halved = steps
    assert halved.losses == plain.losses
    assert [losses.cls.tolist() for losses in halved.score.losses] == [
        losses.cls.tolist() for losses in plain.score(dropout=False)
    ]


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.3, 0.5, 1.0])  # 0.3 is no whole number of 256ths
def test_dropout_for_many_rois_has_the_rate_and_the_scale_of_dropout(rate):
    """Within five standard errors, also for each eighth value: the random bytes come in words of eight."""
    torch.manual_seed(0)
    head = RoIHead(1, 16, 1, pool_size=1, fc=(4,), dropout=rate).train()
    kept = head._drop(torch.full((1000, 801), 2.0))
    assert all(value == pytest.approx(2 / (1 - rate)) for value in kept[kept > 0].unique().tolist())
    values = kept.flatten()[: 801000 // 8 * 8]
    for every in (values, *values.view(-1, 8).unbind(1)):
        assert (every > 0).double().mean().item() == pytest.approx(1 - rate, abs=5 * math.sqrt(0.25 / len(every)))
    again = head._drop(torch.full((1000, 801), 2.0))
    assert torch.equal(again, kept) == (rate in (0.0, 1.0))
    assert torch.equal(head.eval()._drop(torch.ones(2, 3)), torch.ones(2, 3))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), stride=st.sampled_from([3, 16]), spread=st.sampled_from([1.0, 20.0, 200.0]))
def test_equal_rois_pool_equal_bits_and_others_read_other_cells(seed, stride, spread):
    rng = Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=rng) * spread - spread / 4
    boxes = torch.cat([corner, corner + 1 + torch.rand(40, 2, generator=rng) * spread], dim=1)
    boxes[::4] = (boxes[::4] / stride).round() * stride + torch.tensor([0.5 * stride, 0.0, 1.0, 1.0])
    head = RoIHead(5, stride, 1, pool_size=2, fc=(4,))
    first, which = head.distinct(boxes)
    pooled = head.pool_rois(torch.randn(1, 5, 9, 9, generator=rng), boxes)
    assert torch.equal(pooled[first[which]], pooled)
    assert (first[which] <= torch.arange(40)).all()  # the first of its kind stands for it
    inclusive = (boxes - torch.tensor([0.0, 0, 1, 1])).numpy()
    assert len(first) == len({tuple(c_round(v * np.float32(1 / stride)) for v in box) for box in inclusive})


def test_a_roi_is_scored_once_and_an_ignored_one_never(one, monkeypatch):
    """The read-only pass against the regular pass over all RoIs: boxes repeated, moved within a cell, ignored."""
    detector, proposals = copy.copy(one), proposals_of(40)
    feature, rois = one.features([image_of()])[0], one.label(proposals, target(*proposals[:2].tolist(), difficult=[0]))
    moved = dataclasses.replace(rois, boxes=rois.boxes + 0.01)
    both = Rois(
        *(torch.cat([getattr(each, field.name) for each in (rois, moved)]) for field in dataclasses.fields(Rois))
    )
    assert {int(label) for label in both.labels} == {-1, 0, 2}
    scored, score = [], RoIHead.hidden_of_many
    monkeypatch.setattr(
        RoIHead, "hidden_of_many", lambda head, f, boxes: scored.append(len(boxes)) or score(head, f, boxes)
    )
    for detector.ranking_chunk in (1000, 7):
        scored.clear()
        (found,) = detector.rank([feature], [both])
        wanted = roi_losses(*one.head(feature, both.boxes), both)
        assert torch.allclose(found.cls, wanted.cls, atol=1e-5)
        assert torch.allclose(found.box, wanted.box, atol=1e-5)
        assert sum(scored) == len(one.head.distinct(both.boxes[both.labels >= 0])[0]) <= len(rois) + 2
        assert max(scored) <= detector.ranking_chunk


def test_the_map_is_reduced_once_before_pooling():
    detector = new_detector(head=HeadSpec(fc=(8,), pool_size=2, channels=5))
    assert detector.head.fc[0].in_features == 5 * 2 * 2
    (feature,) = detector.features([image_of()])
    assert feature.shape[1] == 5
    assert detector.head(feature, proposals_of(4))[1].shape == (4, 4 * (CLASSES + 1))


# --------------------------------------------------------------------------------------------------- a training step


def test_training_gives_two_losses_to_be_summed():
    detector = new_detector()
    losses = detector([image_of()], [proposals_of(20)], [target()])
    assert set(losses) == {"loss_cls", "loss_box"}
    assert all(loss.shape == () and loss.requires_grad and loss > 0 for loss in losses.values())


def test_it_needs_targets():
    with pytest.raises(ValueError, match="targets: found None"):
        new_detector()([image_of()], [proposals_of(20)])


def test_the_candidates_are_the_proposals_and_the_ground_truth():
    step = new_detector().training_step([image_of()], [proposals_of(20)], [target()])
    assert step.rois[0].boxes.tolist() == [*proposals_of(20).tolist(), [10, 10, 40, 40], [50, 20, 75, 60]]
    assert step.rois[0].labels[-2:].tolist() == [1, 2]


def test_flags_of_the_target_and_settings_of_the_detector_reach_the_labels():
    proposals = torch.tensor([[10.0, 10, 40, 40], [52, 22, 54, 24], [0, 0, 10, 6]])
    flagged = target([10, 10, 40, 40], [50, 20, 75, 60], [0, 0, 10, 10], difficult=[0], crowd=[1])
    step = new_detector().training_step([image_of()], [proposals], [flagged])
    assert step.rois[0].labels.tolist() == [-1, -1, 3, 3]
    step = new_detector(ignore=False, fg_iou=0.7).training_step([image_of()], [proposals], [flagged])
    assert step.rois[0].labels.tolist() == [0, 0, 0, 3]


def test_targets_are_normalised_by_the_detectors_statistics():
    detector = new_detector()
    proposals = torch.tensor([[10.0, 10, 40, 38]])
    before = detector.training_step([image_of()], [proposals], [target()]).rois[0].deltas[0]
    twice = DeltaStats(detector.delta_mean.clone(), 2 * detector.delta_std)
    detector.set_delta_stats(twice)
    after = detector.training_step([image_of()], [proposals], [target()]).rois[0].deltas[0]
    assert before.abs().max() > 0
    assert torch.allclose(after, before / 2)


def test_the_sampler_is_the_one_seam():
    """The same detector, images and RoIs; another sampler chooses others, and the loss is theirs."""
    detector = new_detector()
    batch = [image_of()], [proposals_of(60)], [target()]
    for sampler in (HardSampler(10), RandomSampler(10), AllSampler(), HardSampler(10, cap="batch", nms_iou=None)):
        detector.sampler = sampler
        step = detector.training_step(*batch, Generator().manual_seed(0))
        assert len(step.selected[0]) == (62 if isinstance(sampler, AllSampler) else 10)
        every = detector.rank(detector.features(batch[0]), step.rois)[0]
        mean = mean_losses([every[step.selected[0]]])
        assert step.losses["loss_cls"].item() == pytest.approx(mean.cls.item(), rel=1e-4)
        assert step.losses["loss_box"].item() == pytest.approx(mean.box.item(), rel=1e-4)


@pytest.mark.parametrize("mining", ["read_only", "loss_layer"])
def test_a_mask_is_no_choice(mining):
    detector = new_detector()
    detector.mining, detector.sampler = mining, lambda rois, score, rng: [image.labels > 0 for image in rois]
    with pytest.raises(ValueError, match=r"sampler, image 0 of the batch: found \(62,\) bool"):
        detector([image_of()], [proposals_of(60)], [target()])


def test_the_samplers_stream_is_the_one_given_or_torchs():
    detector = new_detector()
    detector.sampler = RandomSampler(10)
    batch = [image_of()], [proposals_of(60)], [target()]
    given = [detector.training_step(*batch, Generator().manual_seed(5)).selected[0].tolist() for _ in range(2)]
    assert given[0] == given[1]
    torch.manual_seed(5)
    assert detector.training_step(*batch).selected[0].tolist() == given[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_boxes_of_another_type_train_as_those_of_float32(dtype):
    detector, whole = new_detector(), proposals_of(20).round()
    detector.sampler = AllSampler()
    wanted = detector([image_of()], [whole], [target()])
    truth = target()
    given = {**truth, "boxes": truth["boxes"].to(dtype)}
    for proposals, objects in ((whole.to(dtype), given), (whole, given), (whole.to(dtype), truth)):
        assert detector([image_of()], [proposals], [objects]) == wanted


def test_a_box_without_area_stops_it():
    with pytest.raises(ValueError, match=r"proposals\[1\]"):
        new_detector()([image_of()], [torch.tensor([[0.0, 0, 5, 5], [5, 5, 5, 9]])], [target()])


@pytest.mark.parametrize("sampler", [HardSampler(8), HardSampler(8, cap="batch"), RandomSampler(8), AllSampler()])
@pytest.mark.parametrize("pool", ["max", "align"])
def test_images_without_objects_or_without_any_candidates_train(sampler, pool):
    detector = new_detector(head=HeadSpec(fc=(8,), pool_size=2, pool=pool))
    detector.sampler = sampler
    images = [image_of(), image_of(seed=1)]
    losses = detector(images, [torch.zeros(0, 4), torch.zeros(0, 4)], [EMPTY, EMPTY])
    assert sum(losses.values()).item() == 0
    torch.autograd.backward(sum(losses.values()))  # a gradient of zero
    losses = detector(images, [proposals_of(10), torch.zeros(0, 4)], [EMPTY, target()])
    torch.autograd.backward(sum(losses.values()))
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


def test_frozen_layers_get_no_gradient():
    detector = new_detector("vgg_cnn_m_1024", head=HeadSpec(fc=(8,), pool_size=2))
    torch.autograd.backward(sum(detector([image_of(130, 130)], [proposals_of(10)], [target()]).values()))
    without = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    assert without == {"backbone.features.0.weight", "backbone.features.0.bias"}


# ------------------------------------------------------------------------------ a batch is its images, accumulated


@pytest.mark.parametrize("joined", [2**27, 0])
def test_rois_of_several_images_are_scored_as_those_of_each(joined, monkeypatch):
    monkeypatch.setattr(roi_head, "JOINED_BYTES", joined)
    torch.manual_seed(0)
    head = RoIHead(8, 16, 2, pool_size=2, fc=(6,)).double().eval()
    features = [torch.rand(1, 8, 5, 4).double(), torch.rand(1, 8, 3, 6).double(), torch.rand(1, 8, 5, 5).double()]
    boxes = [torch.tensor([[0.0, 0, 30, 40], [8, 8, 60, 70]]), torch.zeros(0, 4), torch.tensor([[3.0, 3, 50, 50]])]
    rows = []
    head.cls_score.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    found = head.score_images(features, boxes)
    assert rows == ([3] if joined else [2, 0, 1])
    for each, feature, image in zip(found, features, boxes, strict=True):
        for a, b in zip(each, head(feature, image), strict=True):
            torch.testing.assert_close(a, b)


def gradients(detector, losses):
    detector.zero_grad()
    torch.autograd.backward(sum(losses.values()))
    return {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}


def in_double(value):
    return (
        {name: in_double(each) for name, each in value.items()}
        if isinstance(value, dict)
        else (value.double() if value.is_floating_point() else value)
    )


@pytest.mark.parametrize("cap", ["image", "batch"])
def test_the_mean_is_over_what_the_sampler_caps(cap):
    detector = new_detector("resnet18").double()
    detector.sampler = HardSampler(8, cap=cap)
    images = [in_double(image_of(130, 140, seed=i)) for i in range(2)]
    proposals = [in_double(proposals_of(count, seed=i)) for i, count in enumerate((60, 3))]
    targets = [in_double(target()), in_double(EMPTY)]

    def total(over):
        detector.loss_over = over
        return sum(detector.training_step(images, proposals, targets, torch.Generator()).losses.values()).item()

    assert total(None) == total(cap) != total({"image": "batch", "batch": "image"}[cap])


EQUAL, DIFFERENT = [(130, 140)] * 3, [(130, 140), (150, 120), (130, 140)]


@pytest.mark.parametrize(
    ("name", "sizes", "over"),
    [
        ("resnet18", EQUAL, "image"),
        ("resnet18", EQUAL, "batch"),
        ("resnet18", DIFFERENT, "image"),
        ("resnet18", DIFFERENT, "batch"),
        ("vgg_cnn_m_1024", DIFFERENT, "image"),
    ],
)
def test_a_batchs_gradient_is_that_of_its_images_accumulated(name, sizes, over):
    """In double precision, so that the tolerance leaves no room for anything but rounding."""
    detector = new_detector(name).double()
    detector.sampler, detector.loss_over = HardSampler(20), over
    images = [in_double(image_of(*size, seed=i)) for i, size in enumerate(sizes)]
    proposals = [in_double(proposals_of(count, seed=i)) for i, count in enumerate((60, 30, 5))]
    targets = [in_double(each) for each in (target(), EMPTY, target([5, 5, 40, 30]))]
    step = detector.training_step(images, proposals, targets)
    together = gradients(detector, step.losses)

    counts = [len(index) for index in step.selected]
    assert counts[2] < 20  # of unequal weight
    shares = [1 / 3] * 3 if over == "image" else [count / sum(counts) for count in counts]
    accumulated: dict[str, torch.Tensor] = {}
    for i, share in enumerate(shares):
        single = detector.training_step(images[i : i + 1], proposals[i : i + 1], targets[i : i + 1])
        assert single.selected[0].tolist() == step.selected[i].tolist()
        for key, gradient in gradients(detector, single.losses).items():
            accumulated[key] = accumulated.get(key, 0) + share * gradient
    assert together.keys() == accumulated.keys()
    for key, gradient in together.items():
        assert torch.allclose(gradient, accumulated[key], rtol=1e-7, atol=1e-10), key
    assert max(gradient.abs().max() for gradient in together.values()) > 1e-3


def test_features_do_not_depend_on_the_neighbours(one):
    images = [image_of(), image_of(seed=1), image_of(seed=2)]
    together = one.features(images)
    mixed = one.features([images[0], image_of(64, 64)])
    for feature, image in zip(together, images, strict=True):
        assert feature.shape[0] == 1
        assert torch.allclose(feature, one.features([image])[0], atol=1e-5)
    assert torch.allclose(mixed[0], together[0], atol=1e-5)


def test_bytes_and_floats_are_the_same_picture(one):
    image = (image_of() * 255).round()
    as_bytes, as_floats = image.to(torch.uint8), image / 255
    (expected,) = one.features([as_floats])
    for images in ([as_bytes], [as_bytes, as_bytes], [as_floats, as_bytes], [as_bytes, as_floats]):
        for feature in one.features(images):
            assert torch.allclose(feature, expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ scoring


def test_evaluation_gives_probabilities_and_a_box_for_each_class(one):
    proposals = [proposals_of(30), proposals_of(7, seed=1)]
    results = one([image_of(), image_of(60, 70)], proposals)
    for (scores, boxes), rois in zip(results, proposals, strict=True):
        assert scores.shape == (len(rois), CLASSES + 1)
        assert boxes.shape == (len(rois), CLASSES + 1, 4)
        assert torch.allclose(scores.sum(dim=1), torch.ones(len(rois)))


def test_boxes_are_the_rois_moved_and_clipped_to_the_image(one):
    rois, image = proposals_of(30), image_of()
    scores, boxes = one([image], [rois])[0]
    logits, deltas = one.head(one.features([image])[0], rois)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    moved = torch.stack([coder.decode_single(deltas[:, 4 * c : 4 * c + 4], rois) for c in range(CLASSES + 1)], dim=1)
    inside = torch.minimum(moved.clamp(min=0), torch.tensor([100.0, 80, 100, 80]))
    assert not torch.allclose(moved, inside)  # some boxes leave the image
    assert torch.allclose(boxes, inside, atol=1e-3)
    assert torch.allclose(scores, logits.softmax(dim=1), atol=1e-6)


def test_rois_are_scored_in_chunks_with_the_same_result(one):
    rois, feature = proposals_of(30), one.features([image_of()])[0]
    scores, boxes = one.score_rois(feature, rois, (80, 100))
    chunked = copy.copy(one)
    chunked.ranking_chunk = 7
    again = chunked.score_rois(feature, rois, (80, 100))
    assert torch.allclose(again[0], scores, atol=1e-5)
    assert torch.allclose(again[1], boxes, atol=1e-3)


def test_an_image_without_proposals_has_no_detections(one):
    scores, boxes = one([image_of()], [torch.zeros(0, 4)])[0]
    assert scores.shape == (0, CLASSES + 1)
    assert boxes.shape == (0, CLASSES + 1, 4)


# ------------------------------------------------------------------------------------------------ box statistics


def random_stats(seed):
    rng = Generator().manual_seed(seed)
    return DeltaStats(
        torch.randn(CLASSES + 1, 4, generator=rng) / 10, 0.05 + torch.rand(CLASSES + 1, 4, generator=rng) / 4
    )


@pytest.mark.parametrize("stats", [DeltaStats(torch.zeros(4, 4), torch.ones(4, 4)), random_stats(0)], ids=["1", "own"])
def test_statistics_fold_into_the_weights_and_leave_the_predictions(stats):
    """Mean 0 and std 1 is what the authors' code does when it saves a snapshot."""
    detector = new_detector().eval()
    detector.set_delta_stats(random_stats(1))
    rois, image = proposals_of(40), image_of()
    before = detector([image], [rois])[0]
    detector.set_delta_stats(stats)
    after = detector([image], [rois])[0]
    assert torch.equal(detector.delta_mean, stats.mean)
    assert torch.equal(detector.delta_std, stats.std)
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[1], before[1], atol=1e-3)
    assert (before[1] - rois[:, None]).abs().max() > 1


def test_with_mean_0_and_std_1_the_network_gives_plain_deltas():
    detector = new_detector().eval()
    detector.set_delta_stats(DeltaStats(torch.zeros(4, 4), torch.ones(4, 4)))
    rois, image = torch.tensor([[20.0, 20, 60, 50]]), image_of()
    deltas = detector.head(detector.features([image])[0], rois)[1].view(1, CLASSES + 1, 4) / 50
    with torch.no_grad():
        detector.head.bbox_pred.weight /= 50
    boxes = detector([image], [rois])[0][1]
    assert torch.allclose(boxes, decode_deltas(rois, deltas), atol=1e-3)


def test_statistics_do_not_change_what_a_box_loss_of_zero_means():
    """Weights that are right under one normalisation are right under another."""
    detector = new_detector()
    proposals = torch.tensor([[10.0, 10, 38, 42]])
    right = DeltaStats(torch.zeros(4, 4), torch.ones(4, 4))
    detector.set_delta_stats(right)
    step = detector.training_step([image_of()], [proposals], [target([10, 10, 40, 40])])
    with torch.no_grad():
        detector.head.bbox_pred.weight.zero_()
        detector.head.bbox_pred.bias.view(CLASSES + 1, 4)[1] = step.rois[0].deltas[0]
    detector.sampler = AllSampler()
    for stats in (right, random_stats(3)):
        detector.set_delta_stats(stats)
        step = detector.training_step([image_of()], [proposals], [target([10, 10, 40, 40])])
        box = detector.rank(detector.features([image_of()]), step.rois)[0].box
        assert box[0].item() == pytest.approx(0, abs=1e-8)
        assert box[1].item() > 1e-4  # the object itself is not where these weights would move it
