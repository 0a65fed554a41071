"""Samplers in torchvision's two-stage detectors."""

import copy
import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Generator
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

import ohem
from ohem.losses import NonFiniteLossError, anchor_losses
from ohem.models.products import has_arithmetic
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.rois import Rois
from ohem.samplers import AllSampler, HardSampler, RandomSampler

BUILDERS = [
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
]
SMALL, NORMALIZED, MASKS, KEYPOINTS = BUILDERS[3], BUILDERS[1], BUILDERS[4], BUILDERS[6]


@cache
def built(name):
    """A small-sighted model that no test changes. Its boxes are predicted badly and its RoIs differ in their losses."""
    torch.manual_seed(0)
    model = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_train=14,
        rpn_post_nms_top_n_test=10,
        box_batch_size_per_image=12,
        box_detections_per_img=5,
    )
    heads = model.roi_heads
    if heads.has_mask():  # small, since they are not what is tested
        heads.mask_head, heads.mask_predictor = MaskRCNNHeads(256, (32,), 1), MaskRCNNPredictor(32, 16, 4)
    if heads.has_keypoint():
        heads.keypoint_head, heads.keypoint_predictor = KeypointRCNNHeads(256, (32,)), KeypointRCNNPredictor(32, 17)
    torch.nn.init.normal_(heads.box_predictor.bbox_pred.bias, std=0.3)
    return model.train()


def new(name, frozen=True, **heads):
    """A model to train one step. Its backbone is frozen where nothing depends on it, for speed."""
    model = copy.deepcopy(built(name))
    model.backbone.requires_grad_(not frozen)
    for setting, value in heads.items():
        setattr(model.roi_heads, setting, value)
    return model


def image_of(height, width, seed=0):
    return torch.rand(3, height, width, generator=Generator().manual_seed(seed))


IMAGES = [image_of(64, 80, seed=1), image_of(64, 56, seed=2)]
TWO, ONE, NONE = [[8, 8, 40, 40], [44, 20, 75, 60]], [[10, 12, 50, 60]], []


def target(boxes, image):
    masks = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.uint8)
    keypoints = torch.ones(len(boxes), 17, 3)
    for mask, points, (x1, y1, x2, y2) in zip(masks, keypoints, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
        points[:, :2] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": masks,
        "keypoints": keypoints,
    }


def targets(*objects):
    return [target(boxes, image) for boxes, image in zip(objects, IMAGES, strict=True)]


class Watched:
    """A sampler that remembers what it was given, what the RoIs cost and what it chose."""

    def __init__(self, sampler, ask=False):
        self.sampler, self.ask = sampler, ask

    def __call__(self, rois, score, rng):
        self.rois, self.losses = rois, score() if self.ask else None
        self.chosen = self.sampler(rois, score, rng)
        return self.chosen


class TorchvisionsChoice:
    """What an unmodified model does, through our seam; ``asks`` says how often the ranking pass runs before."""

    def __init__(self, heads, asks=0):
        self.choose, self.asks = heads.fg_bg_sampler, asks

    def __call__(self, rois, score, rng):
        for _ in range(self.asks):
            score()
        foreground, background = self.choose([image.labels for image in rois])
        return [torch.where(fg | bg)[0] for fg, bg in zip(foreground, background, strict=True)]


def step(model, objects=(TWO, ONE), seed=0):
    """One step of SGD; the losses before it."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses = model(IMAGES, targets(*objects))
    sum(losses.values()).backward()
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def trained_rois(model, objects):
    """The losses of a step, without the backward pass, and how many RoIs were predicted with a gradient to come."""
    counts = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, outputs: counts.append(len(inputs[0]) if outputs[0].requires_grad else 0)
    )
    torch.manual_seed(0)
    losses = model(IMAGES, targets(*objects))
    hook.remove()
    return losses, sum(counts)


def losses_of(name):
    """The names of the losses of an unmodified model."""
    return {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"} | {
        f"loss_{part}" for part in ("mask", "keypoint") if part in name
    }


def heads_input(model, objects=(TWO, ONE)):
    """What a model's ``RoIHeads`` is called with."""
    seen = []
    hook = model.roi_heads.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        model(IMAGES, targets(*objects))
    hook.remove()
    return seen[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------- every model, every sampler, one step


def test_every_two_stage_builder_of_torchvision_is_here():
    assert sorted(BUILDERS) == [name for name in list_models(module=detection) if "rcnn" in name]


@pytest.mark.parametrize(
    ("name", "objects"),
    [*((name, (TWO, ONE)) for name in BUILDERS), (SMALL, (TWO, NONE)), (SMALL, (NONE, NONE))],
    ids=[*BUILDERS, "an image without objects", "two of them"],
)
def test_one_step(name, objects):
    model = new(name)
    keys = list(model.state_dict())
    for sampler, per_image in (
        (HardSampler(8, nms_iou=None), 8),
        (RandomSampler(8, fg_fraction=None, bg_lo=0.0), 8),
        (AllSampler(), None),
    ):
        watched = Watched(sampler)
        ohem.use_sampler(model, watched)
        losses, count = trained_rois(model, objects)
        assert losses.keys() == losses_of(name)
        assert all(loss.isfinite() for loss in losses.values())
        expected = [min(per_image or len(image), len(image)) for image in watched.rois]
        assert [len(image) for image in watched.chosen] == expected
        assert count == sum(expected) > 0
        before = model.roi_heads.box_predictor.cls_score.weight.clone()
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.roi_heads.parameters())
        torch.optim.SGD(model.roi_heads.parameters(), lr=1e-4).step()
        assert not torch.equal(model.roi_heads.box_predictor.cls_score.weight, before)
        assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", BUILDERS)
def test_evaluation_and_weights_do_not_know_of_the_sampler(name):
    model = new(name).eval()
    keys, weights = list(model.state_dict()), copy.deepcopy(model.state_dict())
    before = model(IMAGES)
    assert all(len(image["boxes"]) for image in before)
    for sampler in (HardSampler(8), RandomSampler(8), AllSampler()):
        ohem.use_sampler(model, sampler)
        after = model(IMAGES)
        assert all(same(a, b) for a, b in zip(before, after, strict=True))
        assert list(model.state_dict()) == keys
        assert same(model.state_dict(), weights)


@pytest.mark.parametrize(
    "sampler",
    [
        HardSampler(8),
        HardSampler(8, cap="batch", nms_per_label=True),
        IoUBalancedSampler(8),
        RankSampler(8),
        StratifiedSampler(8),
        QuotaSampler(8),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_rivals(sampler):
    model, watched = new(SMALL), Watched(sampler)
    ohem.use_sampler(model, watched)
    losses, count = trained_rois(model, (TWO, ONE))
    assert all(loss.isfinite() for loss in losses.values())
    assert 0 < count == sum(map(len, watched.chosen)) <= 16


@pytest.mark.parametrize("sampler", [HardSampler, "hard", None])
@pytest.mark.parametrize("use", [ohem.use_sampler, ohem.use_rpn_sampler])
def test_what_cannot_be_called_is_refused_at_once(use, sampler):
    with pytest.raises(ValueError, match=r"sampler: found .*; allowed: an object to call, such as HardSampler\(\)"):
        use(built(SMALL), sampler)


# -------------------------------------------------------------------------------------------------- what is trained on


@pytest.mark.parametrize(("name", "asks"), [(SMALL, 0), (SMALL, 2), (NORMALIZED, 2), (MASKS, 0), (KEYPOINTS, 0)])
def test_torchvisions_own_choice_gives_torchvisions_own_step_bit_by_bit(name, asks):
    """Also where RoIs are ranked first: ranking leaves nothing behind, no BatchNorm statistics and no random state."""
    plain, mined = new(name, frozen=False), new(name, frozen=False)
    ohem.use_sampler(mined, TorchvisionsChoice(mined.roi_heads, asks))
    for seed in range(2 if name == SMALL else 1):
        assert step(plain, (TWO, NONE), seed) == step(mined, (TWO, NONE), seed)
    assert same(plain.state_dict(), mined.state_dict())


@pytest.mark.parametrize("name", [SMALL, NORMALIZED, MASKS, KEYPOINTS])
def test_losses_and_gradients_are_torchvisions_own_on_the_same_rois(name):
    """An unmodified model whose random choice happens to fall on the RoIs that were hardest."""
    mined, plain = new(name), new(name)
    watched = Watched(HardSampler(8))
    ohem.use_sampler(mined, watched)
    losses, count = trained_rois(mined, (TWO, ONE))
    chosen = [
        torch.zeros(len(image), dtype=torch.bool).index_fill(0, index, True)
        for image, index in zip(watched.rois, watched.chosen, strict=True)
    ]
    plain.roi_heads.fg_bg_sampler = lambda labels: (
        [each & (label > 0) for each, label in zip(chosen, labels, strict=True)],
        [each & (label == 0) for each, label in zip(chosen, labels, strict=True)],
    )
    expected, same_count = trained_rois(plain, (TWO, ONE))
    assert 0 < count == same_count < sum(map(len, watched.rois))
    for each in (losses, expected):
        sum(each.values()).backward()
    for part, loss in expected.items():
        torch.testing.assert_close(losses[part], loss, rtol=1e-5, atol=1e-7)
    for part, weight in plain.roi_heads.named_parameters():
        torch.testing.assert_close(mined.roi_heads.get_parameter(part).grad, weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_while_ranking_is_the_samplers_choice_and_is_put_back(dropout):
    model = new(SMALL)
    on, off = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval()
    model.roi_heads.box_head = torch.nn.Sequential(model.roi_heads.box_head, on, off)
    modes = []
    for module in (on, off):
        module.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    ohem.use_sampler(model, HardSampler(8, dropout=dropout))
    step(model)
    assert modes == [dropout, False, True, False]
    assert (on.training, off.training) == (True, False)


def test_ranking_runs_with_the_running_statistics_of_batchnorm_and_trains_with_the_batchs():
    model = new(NORMALIZED)
    norm = next(m for m in model.roi_heads.box_head.modules() if isinstance(m, torch.nn.BatchNorm2d))
    modes = []
    norm.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    ohem.use_sampler(model, HardSampler(8))
    step(model)
    assert modes == [False, True]
    assert int(norm.num_batches_tracked) == 1


def test_a_rois_ranking_loss_is_torchvisions_loss_of_that_roi_alone():
    model, watched = new(SMALL), Watched(HardSampler(8, nms_iou=None), ask=True)
    heads = model.roi_heads
    ohem.use_sampler(model, watched, ranking_chunk=7)
    features, proposals, shapes, truth = heads_input(model)
    losses = heads(features, proposals, shapes, truth)[1]
    for i, (rois, costs) in enumerate(zip(watched.rois, watched.losses, strict=True)):
        boxes = torch.cat([proposals[i], truth[i]["boxes"]])
        assert torch.equal(rois.boxes, boxes)
        parts = [boxes if i == k else boxes[:0] for k in range(2)]
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, parts, shapes)))
        for r in range(len(boxes)):
            one = slice(r, r + 1)
            cls, box = fastrcnn_loss(logits[one], deltas[one], [rois.labels[one]], [rois.deltas[one]])
            assert costs.cls[r].item() == pytest.approx(cls.item(), rel=1e-4)
            assert costs.box[r].item() == pytest.approx(box.item(), rel=1e-4, abs=1e-6)
        assert set(watched.chosen[i].tolist()) == set(costs.total.argsort(descending=True)[:8].tolist())
    # torchvision divides both losses by the number of RoIs of the batch.
    chosen = [cost[index] for cost, index in zip(watched.losses, watched.chosen, strict=True)]
    assert losses["loss_classifier"].item() == pytest.approx(torch.cat([c.cls for c in chosen]).mean().item(), rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(torch.cat([c.box for c in chosen]).mean().item(), rel=1e-4)


def test_candidates_are_labelled_as_torchvision_does():
    """Annotated boxes are candidates, at IoU 1 and delta 0; what lies between the thresholds is ignored everywhere."""
    matcher = detection._utils.Matcher(0.6, 0.3, allow_low_quality_matches=False)
    model, watched = new(SMALL, proposal_matcher=matcher), Watched(AllSampler())
    heads = model.roi_heads
    ohem.use_sampler(model, watched)
    boxes = torch.tensor([[10, 12, 50, 36], [10, 12, 50, 58], [0, 0, 9, 9]], dtype=torch.float32)  # IoU 0.5, 0.96, 0
    features, _, shapes, truth = heads_input(model, (ONE, NONE))
    truth[0]["boxes"] = torch.tensor([[10, 12, 50, 60]], dtype=torch.float32)
    heads(features, [boxes, boxes], shapes, truth)
    first, second = watched.rois
    assert first.labels.tolist() == [-1, 1, 0, 1]
    torch.testing.assert_close(first.max_iou, torch.tensor([0.5, 46 / 48, 0, 1]))
    torch.testing.assert_close(first.deltas[3], torch.zeros(4))
    torch.testing.assert_close(first.deltas[1], torch.tensor([0, 10 * 1 / 46, 0, 5 * torch.tensor(48 / 46).log()]))
    assert not first.deltas[[0, 2]].any()
    assert watched.chosen[0].tolist() == [1, 2, 3]
    assert second.labels.tolist() == [0, 0, 0]
    assert not second.max_iou.any()
    assert not second.deltas.any()


@pytest.mark.parametrize("chunk", [1, 7])
def test_losses_and_pooling_scales_do_not_depend_on_the_chunks(chunk):
    """The first image is the lower one: pooling that saw it alone would take the scales from it."""
    images, truth = [image_of(24, 96), image_of(64, 96)], targets(NONE, ONE)
    losses = []
    for each in (chunk, 1000):
        model, watched = new("fasterrcnn_resnet50_fpn"), Watched(HardSampler(8), ask=True)
        ohem.use_sampler(model, watched, ranking_chunk=each)
        torch.manual_seed(0)
        model(images, truth)
        losses.append(torch.cat([costs.total for costs in watched.losses]))
        assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_fewer_rois_than_wanted():
    model, watched = new(SMALL), Watched(HardSampler(1000, nms_iou=None))
    ohem.use_sampler(model, watched)
    step(model)
    assert [len(index) for index in watched.chosen] == [len(image) for image in watched.rois]


@pytest.mark.parametrize("name", [SMALL, NORMALIZED, MASKS, KEYPOINTS])
def test_a_batch_of_which_nothing_is_chosen_costs_nothing(name):
    """Fast R-CNN's heuristic wants background that overlaps an object; without objects there is none."""
    model = new(name)
    ohem.use_sampler(model, RandomSampler(8, bg_lo=0.1))
    heads = copy.deepcopy(model.roi_heads.state_dict())
    losses, count = trained_rois(model, (NONE, NONE))
    assert count == 0
    sum(losses.values()).backward()
    assert losses.keys() == losses_of(name)
    assert {losses[each].item() for each in losses.keys() - {"loss_objectness", "loss_rpn_box_reg"}} == {0.0}
    assert same(model.roi_heads.state_dict(), heads)
    assert all(p.grad is not None and not p.grad.any() for p in model.roi_heads.parameters())


def test_frozen_parts_stay_frozen():
    model = new(SMALL)
    model.roi_heads.box_head.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    ohem.use_sampler(model, HardSampler(8))
    step(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("roi_heads.box_head", "backbone.body.0.0")) for name in changed)
    assert "roi_heads.box_predictor.cls_score.weight" in changed


def test_automatic_casting_ranks_in_float32_and_trains_everything():
    """A pass without gradient leaves cast weights in autocast's cache; training on those would train nothing."""
    model, watched = new(MASKS), Watched(HardSampler(8), ask=True)
    ohem.use_sampler(model, watched)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(IMAGES, targets(TWO, NONE))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert {each.dtype for costs in watched.losses for each in (costs.cls, costs.box)} == {torch.float32}
    assert {each.dtype for rois in watched.rois for each in (rois.boxes, rois.max_iou, rois.deltas)} == {torch.float32}
    assert all(p.grad is not None and p.grad.any() for p in model.roi_heads.box_head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.roi_heads.box_predictor.parameters())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.bfloat16) for name in (SMALL, NORMALIZED, MASKS, KEYPOINTS)] + [(SMALL, torch.float16)],
)
def test_boxes_stay_in_float32_under_automatic_casting(name, dtype):
    """Without, anchors, proposals and annotated boxes have the precision of the feature maps."""
    if name != SMALL and not has_arithmetic(torch.device("cpu"), dtype):
        pytest.skip(f"up to half a minute on processors without {dtype}; the small model's boxes are made alike")
    model, rois, anchors = new(name), Watched(HardSampler(8)), Watched(HardSampler(8))
    ohem.boxes_in_float32(model)
    ohem.use_sampler(model, rois)
    ohem.use_rpn_sampler(model, anchors)
    seen = {}
    model.roi_heads.register_forward_pre_hook(lambda _, inputs: seen.update(maps=inputs[0], proposals=inputs[1]))
    moved = [{**each, "boxes": each["boxes"] + 0.1} for each in targets(TWO, ONE)]  # no bfloat16, and no float16
    with torch.autocast("cpu", dtype):
        losses = model(IMAGES, moved)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert {each.dtype for each in seen["maps"].values()} == {dtype}
    assert {each.dtype for each in seen["proposals"]} == {torch.float32}
    for boxes in (torch.cat(seen["proposals"]), *(image.boxes[-1:] for image in rois.rois)):
        assert not torch.equal(boxes, boxes.to(dtype).float())
    plain = new(name)
    expected = Watched(HardSampler(8))
    ohem.use_rpn_sampler(plain, expected)
    plain(IMAGES, moved)
    for found, wanted in zip(anchors.rois, expected.rois, strict=True):
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.labels, wanted.labels)
        assert torch.equal(found.deltas, wanted.deltas)


def test_boxes_in_float32_leaves_a_model_that_is_in_half_precision_its_own():
    rpn, features = new(SMALL).rpn.bfloat16(), torch.rand(1, 256, 2, 2, dtype=torch.bfloat16)
    ohem.boxes_in_float32(torch.nn.Sequential(rpn))
    assert {each.dtype for part in rpn.head([features]) for each in part} == {torch.bfloat16}
    seen = []
    rpn.head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].dtype))
    with torch.no_grad(), pytest.raises(AssertionError, match="Anchors"):  # which come after the head
        rpn(ImageList(torch.rand(1, 3, 64, 64), [(64, 64)]), {"0": features})
    assert seen == [torch.bfloat16]


def test_without_automatic_casting_boxes_in_float32_changes_nothing():
    plain, changed = new(SMALL, frozen=False), new(SMALL, frozen=False)
    ohem.boxes_in_float32(changed)
    assert step(plain) == step(changed)
    assert same(plain.state_dict(), changed.state_dict())
    with pytest.raises(ValueError, match="found RoIHeads, without RegionProposalNetwork"):
        ohem.boxes_in_float32(plain.roi_heads)


@pytest.mark.parametrize("name", [SMALL, BUILDERS[0]])
def test_images_of_one_size_accumulated_give_the_batchs_gradient(name):
    """Where every image trains equally many RoIs and anchors, by which torchvision divides, and BatchNorm is frozen."""
    model = new(name, frozen=False).double()
    model.backbone.eval()
    ohem.use_sampler(model, HardSampler(8, nms_iou=None))
    ohem.use_rpn_sampler(model, HardSampler(8, nms_iou=None))
    pictures, one = [IMAGES[0].double(), IMAGES[0].flip(2).double()], target(ONE, IMAGES[0])
    truth = [{**one, "boxes": one["boxes"].double()}] * 2

    def gradients(*passes):
        model.zero_grad()
        for part in passes:
            losses = model(pictures[part], truth[part])
            (sum(losses.values()) * len(pictures[part]) / 2).backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    together, accumulated = gradients(slice(2)), gradients(slice(1), slice(1, 2))
    assert together.keys() == accumulated.keys()
    for key, gradient in together.items():
        assert torch.allclose(accumulated[key], gradient, rtol=1e-6, atol=1e-9), key


def test_near_duplicates_are_told_apart_in_float32_where_float16_overflows():
    """91 labels times 1,333 pixels, as NMS per label would shift the boxes in float16, is infinite there."""
    generator = Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * torch.tensor([1233.0, 700.0])
    boxes = torch.cat([corner, corner + 100], dim=1).half()
    near = boxes[:100] + 2  # IoU 0.92
    model, watched = new(SMALL), Watched(HardSampler(1000, nms_per_label=True), ask=True)
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(1024, 92)
    ohem.use_sampler(model, watched)
    features = {name: torch.rand(1, 256, 25, 42, generator=generator) for name in ("0", "1", "pool")}
    truth = [{"boxes": boxes[:90].float(), "labels": torch.arange(1, 91)}]
    with torch.autocast("cpu", dtype=torch.float16):
        losses = model.roi_heads(features, [torch.cat([boxes, near])], [(800, 1333)], truth)[1]
    assert all(loss.isfinite() for loss in losses.values())
    ((rois,), (cost,), (index,)) = watched.rois, watched.losses, watched.chosen
    assert rois.boxes.dtype == cost.total.dtype == torch.float32
    survivors = []
    overlap = box_iou(rois.boxes, rois.boxes)
    for candidate in cost.total.argsort(descending=True, stable=True).tolist():
        rivals = [one for one in survivors if rois.labels[one] == rois.labels[candidate]]
        if not (overlap[candidate, rivals] > 0.7).any():
            survivors.append(candidate)
    assert sorted(index.tolist()) == sorted(survivors)
    assert len(survivors) < len(rois)


def test_a_class_agnostic_predictor_may_repeat_its_boxes_for_every_class():
    """torchvision's own loss and detections take class-specific boxes only."""

    class Repeating(detection.faster_rcnn.FastRCNNPredictor):
        def __init__(self):
            super().__init__(1024, 4)
            self.bbox_pred = torch.nn.Linear(1024, 4)

        def forward(self, x):
            scores, boxes = super().forward(x)
            return scores, boxes.repeat(1, scores.shape[1])

    model = new(SMALL, box_predictor=Repeating())
    ohem.use_sampler(model, HardSampler(8))
    before = model.roi_heads.box_predictor.bbox_pred.weight.clone()
    assert torch.tensor(list(step(model).values())).isfinite().all()
    assert not torch.equal(model.roi_heads.box_predictor.bbox_pred.weight, before)
    assert all(image["boxes"].shape[1] == 4 for image in model.eval()(IMAGES))


def test_heads_with_a_loss_of_their_own_may_be_class_agnostic():
    class Agnostic(RoIHeads):
        """Trains, and detects nothing."""

        def forward(self, features, proposals, image_shapes, targets=None):
            boxes, _, labels, aims = self.select_training_samples(proposals, targets)
            scores, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
            labels, aims = torch.cat(labels), torch.cat(aims)
            box = F.smooth_l1_loss(deltas[labels > 0], aims[labels > 0], beta=1 / 9, reduction="sum") / len(labels)
            return [], {"loss_classifier": F.cross_entropy(scores, labels), "loss_box_reg": box}

    predictor = detection.faster_rcnn.FastRCNNPredictor(1024, 4)
    predictor.bbox_pred = torch.nn.Linear(1024, 4)
    model, watched = new(SMALL, box_predictor=predictor), Watched(HardSampler(8), ask=True)
    model.roi_heads.__class__ = Agnostic
    ohem.use_sampler(model, watched)
    losses = step(model)
    chosen = [cost[index] for cost, index in zip(watched.losses, watched.chosen, strict=True)]
    for name, part in (("loss_classifier", "cls"), ("loss_box_reg", "box")):
        mean = torch.cat([getattr(cost, part) for cost in chosen]).mean().item()
        assert losses[name] == pytest.approx(mean, rel=1e-4) != 0


def test_rois_chosen_from_outside_the_model_need_a_sampler_that_does_not_rank():
    """As scripts do that compute a loss on validation data."""
    model = new(SMALL)
    proposals = [torch.tensor([[4.0, 4, 30, 30], [10, 12, 52, 60]]) for _ in IMAGES]
    ohem.use_sampler(model, RandomSampler(8, bg_lo=0.0))
    assert [len(boxes) for boxes in model.roi_heads.select_training_samples(proposals, targets(TWO, ONE))[0]] == [4, 3]
    ohem.use_sampler(model, HardSampler(8))
    with pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\), or ohem\.remove_sampler") as caught:
        model.roi_heads.select_training_samples(proposals, targets(TWO, ONE))
    assert "\n" not in str(caught.value)
    step(model)


def test_a_loss_that_is_no_number_is_named_before_it_is_trained_on():
    model = new(SMALL)
    ohem.use_sampler(model, HardSampler(8))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="image 0 of the batch, RoI 0"):
        step(model)


@pytest.mark.parametrize("use", [ohem.use_sampler, ohem.use_rpn_sampler])
def test_a_mask_is_no_choice(use):
    model = new(SMALL)
    use(model, lambda rois, score, rng: [image.labels > 0 for image in rois])
    with pytest.raises(ValueError, match=r"sampler, image 0 of the batch: found \(\d+,\) bool"):
        step(model)


# ------------------------------------------------------------------------------------------------------ on, off, copied


def test_on_twice_and_off_again():
    model = new(SMALL)
    before = dict(vars(model.roi_heads))
    first, last = Watched(HardSampler(4)), Watched(HardSampler(6, nms_iou=None))
    ohem.use_sampler(model, first)
    ohem.use_sampler(model, last)
    assert isinstance(model.roi_heads, RoIHeads)
    assert trained_rois(model, (TWO, ONE))[1] == 12
    assert not hasattr(first, "chosen")
    for _ in range(2):
        ohem.remove_sampler(model)
        assert type(model.roi_heads) is RoIHeads
        assert vars(model.roi_heads).keys() == before.keys()
    assert trained_rois(model, (TWO, ONE))[1] == 24


def test_copies_and_files():
    model = new(SMALL)
    ohem.use_sampler(model, HardSampler(4, nms_iou=None))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ohem.use_sampler(model, HardSampler(6, nms_iou=None))
        assert trained_rois(other, (TWO, ONE))[1] == 8
        ohem.remove_sampler(other)
        assert type(other.roi_heads) is RoIHeads
        assert trained_rois(model, (TWO, ONE))[1] == 12
        ohem.use_sampler(model, HardSampler(4, nms_iou=None))
    plain = new(SMALL)
    assert plain.load_state_dict(model.state_dict(), strict=True)
    assert model.load_state_dict(plain.state_dict(), strict=True)


def test_a_sampler_with_weights_of_its_own_is_no_part_of_the_model():
    class Learned(torch.nn.Linear):
        def forward(self, rois, score, rng):
            return AllSampler()(rois, score, rng)

    model = new(SMALL)
    keys = list(model.state_dict())
    ohem.use_sampler(model, Learned(2, 2))
    step(model)
    assert list(model.state_dict()) == keys


def test_a_users_own_heads_keep_their_class():
    class FewerCandidates(RoIHeads):
        """Annotated boxes are no candidates."""

        def add_gt_proposals(self, proposals, gt_boxes):
            return list(proposals)

    model, watched = new(SMALL), Watched(AllSampler())
    model.roi_heads.__class__ = FewerCandidates
    ohem.use_sampler(model, watched)
    assert isinstance(model.roi_heads, FewerCandidates)
    step(model)
    assert not any((image.max_iou == 1).any() for image in watched.rois)
    ohem.remove_sampler(model)
    assert type(model.roi_heads) is FewerCandidates


def test_heads_that_choose_by_themselves_are_refused():
    class OwnChoice(RoIHeads):
        def select_training_samples(self, proposals, targets):
            return super().select_training_samples(proposals, targets)

    model = new(SMALL)
    model.roi_heads.__class__ = OwnChoice
    with pytest.raises(ValueError, match="found OwnChoice with a select_training_samples of its own"):
        ohem.use_sampler(model, HardSampler(8))
    assert type(model.roi_heads) is OwnChoice
    patched = new(SMALL)
    patched.roi_heads.select_training_samples = patched.roi_heads.select_training_samples
    with pytest.raises(ValueError, match="found RoIHeads with a select_training_samples of its own"):
        ohem.use_sampler(patched, HardSampler(8))


def test_heads_that_take_more_are_given_it():
    seen = []

    class Scaled(RoIHeads):
        def forward(self, features, proposals, image_shapes, targets=None, scale=1.0):
            seen.append(scale)
            return super().forward(features, proposals, image_shapes, targets)

    model = new(SMALL)
    model.roi_heads.__class__ = Scaled
    ohem.use_sampler(model, HardSampler(8))
    features, shapes = {"0": torch.rand(1, 256, 4, 4), "pool": torch.rand(1, 256, 2, 2)}, [(64, 64)]
    boxes = [torch.tensor([[4.0, 4, 40, 40]])]
    model.roi_heads(features, boxes, shapes, [{"boxes": boxes[0], "labels": torch.tensor([1])}], scale=2.0)
    model.eval().roi_heads(features, boxes, shapes, scale=3.0)
    assert seen == [2.0, 3.0]


def test_a_class_laid_over_the_sampler_is_taken_off_first():
    model = new(SMALL)
    ohem.use_sampler(model, HardSampler(8))
    mining = type(model.roi_heads)
    model.roi_heads.__class__ = type("Sharded", (mining,), {})  # as fully_shard does
    ohem.use_sampler(model, RandomSampler(8))
    with pytest.raises(ValueError, match="found Sharded, laid over the sampler since"):
        ohem.remove_sampler(model)
    model.roi_heads.__class__ = mining
    ohem.remove_sampler(model)
    assert type(model.roi_heads) is RoIHeads


def test_functional_dropout_of_a_head_is_off_where_a_sampler_wants_it_off():
    class Head(torch.nn.Module):
        def __init__(self, before):
            super().__init__()
            self.before = before

        def forward(self, pooled):
            return F.dropout(self.before(pooled), 0.5, self.training)

    scores = []

    def ask(rois, score, rng):
        scores.extend(score(dropout=False) for _ in range(2))
        return AllSampler()(rois, score, rng)

    model = new(SMALL)
    model.roi_heads.box_head = Head(model.roi_heads.box_head)
    ohem.use_sampler(model, ask)
    step(model)
    assert all(torch.equal(one.cls, other.cls) for one, other in zip(*scores, strict=True))
    assert model.roi_heads.box_head.training


def test_nothing_of_a_step_is_kept():
    model = new(SMALL)
    ohem.use_sampler(model, HardSampler(8))
    before = set(vars(model.roi_heads))
    step(model)
    assert vars(model.roi_heads).keys() == before
    with pytest.raises(ValueError, match="targets should not be None"):
        model.roi_heads(*heads_input(model)[:3])
    assert vars(model.roi_heads).keys() == before


CHANGES = [
    lambda model: ohem.use_sampler(model, AllSampler()),
    lambda model: ohem.use_rpn_sampler(model, AllSampler()),
    ohem.remove_sampler,
]


@pytest.mark.parametrize("change", CHANGES, ids=["rois", "anchors", "remove"])
@pytest.mark.parametrize("name", sorted(set(list_models(module=detection)) - set(BUILDERS)))
def test_one_stage_detectors_say_why_they_take_no_sampler(name, change):
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"wrapped": get_model(name, weights=None, weights_backbone=None)})
    family, reason = {
        "fcos": ("FCOS", "classifies all points, and focal loss weighs the easy ones down"),
        "retinanet": ("RetinaNet", "classifies all anchors, and focal loss weighs the easy ones down"),
    }.get(name.split("_")[0], ("SSD", "mines hard background itself, .* positive_fraction"))
    with pytest.raises(
        ValueError, match=rf"model: found {family} \(it {reason}.*\), without .*; allowed: .*fasterrcnn_\*"
    ):
        change(model)


@pytest.mark.parametrize("change", CHANGES, ids=["rois", "anchors", "remove"])
def test_a_model_of_another_kind(change):
    with pytest.raises(
        ValueError,
        match=r"model: found Linear, without (RoIHeads|RegionProposalNetwork)( or RegionProposalNetwork)?; allowed: ",
    ):
        change(torch.nn.Linear(2, 2))


def test_chunks_of_nothing():
    with pytest.raises(ValueError, match="ranking_chunk: found 0; allowed: 1 or more"):
        ohem.use_sampler(new(SMALL), AllSampler(), ranking_chunk=0)


# ----------------------------------------------------------------------------------------------------- in other wrappers


def test_compiled_heads_give_the_same_losses():
    model = new(SMALL)
    inputs = heads_input(model)
    ohem.use_sampler(model, HardSampler(8))
    expected = model.roi_heads(*inputs)[1]
    compiled = torch.compile(model.roi_heads, backend="eager")
    assert same(expected, compiled(*inputs)[1])
    ohem.use_sampler(compiled, RandomSampler(8))
    assert not sum(compiled(*inputs[:3], targets(NONE, NONE))[1].values())


def test_a_compiled_model_trains_as_the_model_does():
    plain, mined = new(SMALL), new(SMALL)
    for model in (plain, mined):
        ohem.use_sampler(model, HardSampler(8))
        ohem.use_rpn_sampler(model, HardSampler(8))
    assert step(plain) == step(torch.compile(mined, backend="eager"))
    assert same(plain.state_dict(), mined.state_dict())


def test_data_parallel_training_goes_on_after_a_batch_of_which_nothing_is_chosen(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(new(SMALL))
        ohem.use_sampler(model, RandomSampler(8, bg_lo=0.1))
        for objects in ((NONE, NONE), (TWO, ONE)):
            losses = step(model, objects)
        assert losses["loss_classifier"] > 0
    finally:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------- the anchors


def test_torchvisions_own_choice_of_anchors_gives_torchvisions_own_step_bit_by_bit():
    plain, mined = new(SMALL, frozen=False), new(SMALL, frozen=False)
    ohem.use_rpn_sampler(mined, TorchvisionsChoice(mined.rpn))
    assert step(plain, (TWO, NONE)) == step(mined, (TWO, NONE))
    assert same(plain.state_dict(), mined.state_dict())


@pytest.mark.parametrize("objects", [(TWO, ONE), (TWO, NONE), (NONE, NONE)], ids=["both", "one", "none"])
def test_the_hardest_anchors_train(objects):
    """A background anchor costs log(1 + exp(objectness)), an object's log(1 + exp(-objectness)) and its box."""
    model, watched = new(BUILDERS[0]), Watched(HardSampler(10, nms_iou=None), ask=True)
    ohem.use_rpn_sampler(model, watched)
    seen = []
    model.rpn.head.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    losses = step(model, objects)
    levels = [level.permute(0, 2, 3, 1).flatten(1) for level in seen[0][0]]
    for rois, costs, index, logits in zip(
        watched.rois, watched.losses, watched.chosen, torch.cat(levels, dim=1), strict=True
    ):
        sign = torch.where(rois.labels > 0, -1, 1)
        expected = torch.where(rois.labels >= 0, (1 + (sign * logits).exp()).log(), 0.0)
        torch.testing.assert_close(costs.cls, expected, rtol=1e-4, atol=1e-5)
        assert not costs.box[rois.labels < 1].any()
        assert bool((costs.box > 0).any()) == bool((rois.labels > 0).any())
        assert sorted(index.tolist()) == sorted(costs.total.argsort(descending=True, stable=True)[:10].tolist())
    chosen = [cost[index] for cost, index in zip(watched.losses, watched.chosen, strict=True)]
    for name, part in (("loss_objectness", "cls"), ("loss_rpn_box_reg", "box")):
        mean = torch.cat([getattr(cost, part) for cost in chosen]).mean().item()
        assert losses[name] == pytest.approx(mean, rel=1e-4, abs=1e-7)


def test_gradients_of_the_losses_of_anchors():
    labels = torch.tensor([1, 0, -1, 1, 0])
    rng = Generator().manual_seed(0)
    logits, deltas, truth = (torch.randn(5, *more, generator=rng, dtype=torch.float64) for more in ((), (4,), (4,)))
    anchors = Rois(torch.zeros(5, 4), labels, torch.zeros(5), truth)

    def parts(logits, deltas):
        losses = anchor_losses(logits, deltas, anchors)
        return losses.cls, losses.box

    assert torch.autograd.gradcheck(parts, (logits.requires_grad_(), deltas.requires_grad_()))


def test_a_batch_of_which_no_anchor_is_chosen_costs_nothing():
    model = new(SMALL)
    ohem.use_rpn_sampler(model, RandomSampler(8, bg_lo=0.1))
    losses = step(model, (NONE, NONE))
    assert losses["loss_objectness"] == losses["loss_rpn_box_reg"] == 0
    assert all(p.grad is not None for p in model.rpn.parameters())


def test_rois_and_anchors_both_on_copied_and_off():
    model = new(SMALL)
    keys, before = list(model.state_dict()), set(vars(model.rpn))
    ohem.use_sampler(model, HardSampler(8))
    ohem.use_rpn_sampler(model, HardSampler(8))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.tensor(list(step(other).values())).isfinite().all()
        assert list(other.state_dict()) == keys
        ohem.remove_sampler(other)
        assert type(other.rpn) is RegionProposalNetwork
        assert type(other.roi_heads) is RoIHeads
        assert set(vars(other.rpn)) == before


def test_anchors_of_a_model_without_rois_on_and_off():
    rpn = torch.nn.ModuleDict({"rpn": new(SMALL).rpn})
    ohem.use_rpn_sampler(rpn, HardSampler(8))
    assert type(rpn["rpn"]) is not RegionProposalNetwork
    for _ in range(2):
        ohem.remove_sampler(rpn)
        assert type(rpn["rpn"]) is RegionProposalNetwork


def test_a_model_without_anchors_to_choose():
    with pytest.raises(ValueError, match="model: found RoIHeads, without RegionProposalNetwork; allowed: "):
        ohem.use_rpn_sampler(new(SMALL).roi_heads, AllSampler())


# ------------------------------------------------------------------------- why one-stage detectors have nothing to choose


def with_gradient(scores, losses):
    """Which of the (A,) anchors of one image the class loss trains, from scores (1, A, classes)."""
    losses["classification"].backward()
    return scores.grad[0].any(dim=1)


def one_stage(count, classes, **more):
    """A target with one object; scores and boxes of that many anchors, all on the object; whose object they are."""
    boxes = torch.tensor([[10.0, 10, 50, 50]])
    outputs = {
        "cls_logits": torch.randn(1, count, classes, generator=Generator().manual_seed(0)).requires_grad_(),
        "bbox_regression": torch.zeros(1, count, 4),
    }
    return [{"boxes": boxes, "labels": torch.tensor([1])}], outputs | more, [boxes.repeat(count, 1)]


def test_ssd_mines_the_hardest_background_three_for_each_foreground_anchor():
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    truth, outputs, anchors = one_stage(40, 4)
    matches = torch.full((40,), -1).index_fill(0, torch.tensor([5, 6]), 0)
    trained = with_gradient(outputs["cls_logits"], model.compute_loss(truth, outputs, anchors, [matches]))
    background = F.cross_entropy(outputs["cls_logits"][0], torch.zeros(40, dtype=torch.long), reduction="none")
    background[[5, 6]] = -1
    hardest = background.argsort(descending=True)[:6].tolist()
    assert set(trained.nonzero().flatten().tolist()) == {5, 6, *hardest}


def test_retinanet_trains_all_anchors_but_those_between_its_thresholds():
    truth, outputs, anchors = one_stage(40, 4)
    matches = torch.full((40,), -1).index_fill(0, torch.tensor([5]), 0).index_fill(0, torch.tensor([7, 8]), -2)
    losses = RetinaNetHead(8, 1, 4).compute_loss(truth, outputs, anchors, [matches])
    trained = with_gradient(outputs["cls_logits"], losses)
    assert set((~trained).nonzero().flatten().tolist()) == {7, 8}


def test_fcos_trains_all_points():
    truth, outputs, anchors = one_stage(40, 4, bbox_ctrness=torch.zeros(1, 40, 1))
    matches = torch.full((40,), -1).index_fill(0, torch.tensor([5]), 0)
    losses = FCOSHead(32, 1, 4).compute_loss(truth, outputs, anchors, [matches])
    assert with_gradient(outputs["cls_logits"], losses).all()
