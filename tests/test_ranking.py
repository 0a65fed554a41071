"""The read-only pass: it scores all RoIs, needs memory for a chunk of them, and leaves nothing behind."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ohem.losses import NonFiniteLossError, mean_losses
from ohem.models.roi_head import read_only
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector
from ohem.rois import Rois
from ohem.samplers import AllSampler, HardSampler, RandomSampler

BACKBONES = ["vgg16", "vgg_cnn_m_1024", "tf_efficientnet_lite0", "resnet18"]
HEIGHT, WIDTH = 90, 110
CLASSES = 3


def new_detector(name, dropout=0.5, seed=0):
    """Whole backbone, tiny fully connected layers, in training mode."""
    torch.manual_seed(seed)
    spec = DetectorSpec(
        backbone=BackboneSpec(name=name, weights="none"),
        head=HeadSpec(fc=(16, 16), pool_size=6 if name == "vgg_cnn_m_1024" else 7, dropout=dropout),
        ranking_chunk=100,
    )
    return build_detector(spec, CLASSES).train()


@pytest.fixture(scope="module", params=BACKBONES)
def detector(request):
    """No test takes a step with it."""
    return new_detector(request.param)


@pytest.fixture
def small():
    """A detector of one test's own, with losses that differ from RoI to RoI."""
    detector = new_detector("resnet18")
    nn.init.normal_(detector.head.cls_score.weight, std=1.0)
    nn.init.normal_(detector.head.bbox_pred.weight, std=0.3)
    return detector


def proposals_of(count, seed=0):
    rng = Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * torch.tensor([WIDTH - 40.0, HEIGHT - 40.0])
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=rng) * 36], dim=1)


def image_of(seed=0):
    return torch.rand(3, HEIGHT, WIDTH, generator=Generator().manual_seed(seed))


def target():
    return {"boxes": torch.tensor([[10.0, 10, 40, 40], [50, 20, 80, 60]]), "labels": torch.tensor([1, 3])}


def rois_of(detector, count, seed=0):
    """Labelled RoIs, as a training step makes them."""
    detector.sampler = RandomSampler(4)
    return detector.training_step([image_of()], [proposals_of(count, seed)], [target()]).rois


def features_of(detector):
    with torch.no_grad():
        return detector.features([image_of()])


# ------------------------------------------------------------------------------------------------- what it computes


def test_every_roi_is_scored_as_by_one_plain_forward_pass(detector):
    rois, features = rois_of(detector, 230), features_of(detector)
    (losses,) = detector.rank(features, rois, dropout=False)
    detector.eval()
    with torch.no_grad():
        logits, deltas = detector.head(features[0], rois[0].boxes)
    detector.train()
    assert losses.cls.shape == losses.box.shape == (232,)  # 230 proposals and 2 objects
    assert torch.allclose(losses.cls, F.cross_entropy(logits, rois[0].labels, reduction="none"), rtol=1e-4, atol=1e-5)
    for i, label in enumerate(rois[0].labels.tolist()):
        own = deltas[i, 4 * label : 4 * label + 4]
        box = F.smooth_l1_loss(own, rois[0].deltas[i], reduction="sum") if label else 0.0
        assert losses.box[i].item() == pytest.approx(float(box), rel=1e-4, abs=1e-5)
    assert (rois[0].labels > 0).sum() >= 2


@pytest.mark.parametrize("chunk", [1, 7, 60, 61, 62, 10_000])
def test_the_size_of_the_chunks_does_not_matter(small, chunk):
    rois, features = rois_of(small, 59), features_of(small)  # 61 with the objects
    (whole,) = small.rank(features, rois, dropout=False)
    small.ranking_chunk = chunk
    (chunked,) = small.rank(features, rois, dropout=False)
    assert torch.allclose(chunked.cls, whole.cls, rtol=1e-4, atol=1e-5)
    assert torch.allclose(chunked.box, whole.box, rtol=1e-4, atol=1e-5)


def test_the_loss_trained_on_is_the_mean_of_the_ranking_losses_of_the_selection(detector):
    """Dropout off. The two networks are one, so what was ranked is what is trained."""
    rate, detector.head.dropout.p = detector.head.dropout.p, 0.0
    detector.sampler = HardSampler(16)
    step = detector.training_step(
        [image_of(0), image_of(1)], [proposals_of(150, 0), proposals_of(70, 1)], [target(), target()]
    )
    detector.head.dropout.p = rate
    ranked = mean_losses([losses[index] for losses, index in zip(step.score.losses, step.selected, strict=True)])
    assert step.losses["loss_cls"].item() == pytest.approx(ranked.cls.item(), rel=1e-4)
    assert step.losses["loss_box"].item() == pytest.approx(ranked.box.item(), rel=1e-4, abs=1e-6)
    for losses, index, rois in zip(step.score.losses, step.selected, step.rois, strict=True):
        assert len(index) == 16
        assert len(losses.cls) == len(rois)
        assert losses.total[index[0]] == losses.total.max()


def test_the_gradient_is_that_of_zeroing_the_losses_of_the_easy_rois(small):
    """Section 4.2's first way, which runs all RoIs backward, gives the same gradient as the two-network form."""
    small.head.dropout.p = 0.0
    small.sampler = HardSampler(16)
    step = small.training_step([image_of()], [proposals_of(100)], [target()])
    torch.autograd.backward(sum(step.losses.values()))
    two_networks = {name: p.grad.clone() for name, p in small.named_parameters()}

    small.zero_grad()
    small.sampler = AllSampler()
    (feature,) = small.features([image_of()])
    logits, deltas = small.head(feature, step.rois[0].boxes)
    losses = F.cross_entropy(logits, step.rois[0].labels, reduction="none")
    for i, label in enumerate(step.rois[0].labels.tolist()):
        if label:
            own = deltas[i, 4 * label : 4 * label + 4]
            losses = losses.index_add(
                0, torch.tensor([i]), F.smooth_l1_loss(own, step.rois[0].deltas[i], reduction="sum")[None]
            )
    hard = torch.zeros(len(losses)).index_fill(0, step.selected[0], 1 / len(step.selected[0]))
    torch.autograd.backward((losses * hard).sum())
    for name, parameter in small.named_parameters():
        assert torch.allclose(parameter.grad, two_networks[name], rtol=1e-3, atol=1e-5), name


def test_an_image_without_rois_has_no_losses(small):
    nothing = rois_of(small, 5)[0][:0]
    (losses,) = small.rank(features_of(small), [nothing])
    assert losses.cls.shape == losses.box.shape == (0,)
    assert losses.cls.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------ what it costs


class LargestAndPeak(TorchDispatchMode):
    """Bytes of the largest tensor made inside, and the most bytes alive at once of those made inside."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):  # made before, or counted already
                self.seen.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        self.seen.add(storage)
        self.largest = max(self.largest, storage.nbytes())
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size):
        self.alive -= size


def memory_of_ranking(detector, count):
    """On a map so large that hardly two RoIs read the same cells."""
    rng = Generator().manual_seed(0)
    features = torch.rand(1, detector.head.fc[0].in_features // detector.head.pool_size**2, 60, 80, generator=rng)
    features = features.contiguous(memory_format=torch.channels_last)  # as backbones give it; else pooling copies it
    corner = torch.rand(count, 2, generator=rng) * 600
    boxes = torch.cat([corner, corner + 16 + torch.rand(count, 2, generator=rng) * 300], dim=1)
    rois = Rois(boxes, torch.arange(count) % 2, torch.zeros(count), torch.zeros(count, 4))
    with LargestAndPeak() as memory:
        losses = detector.rank([features], [rois])
    assert len(losses[0].cls) == count
    assert len(detector.head.distinct(boxes)[0]) > 0.95 * count
    return memory


def test_memory_does_not_grow_with_the_number_of_rois(detector, monkeypatch):
    monkeypatch.setattr("ohem.models.roi_head.POOLED_BYTES", 2**20)
    few, many = memory_of_ranking(detector, 500), memory_of_ranking(detector, 5000)
    # What a RoI leaves: its two losses, the cells that it reads and its place among those that read others.
    assert many.peak - few.peak <= 4500 * 256
    assert few.peak < 8 * 2**20


def test_no_more_than_a_block_of_pooled_values_exists(small, monkeypatch):
    small.ranking_chunk = 10_000
    for megabytes in (7, 14):  # blocks have 64, 128, ... RoIs
        monkeypatch.setattr("ohem.models.roi_head.POOLED_BYTES", megabytes * 2**20)
        assert 0.8 * megabytes * 2**20 < memory_of_ranking(small, 1000).largest <= megabytes * 2**20


def test_that_measurement_sees_memory_that_grows(small, monkeypatch):
    monkeypatch.setattr("ohem.models.roi_head.POOLED_BYTES", 2**40)
    small.ranking_chunk = 10_000
    few, many = memory_of_ranking(small, 100), memory_of_ranking(small, 1000)
    assert many.largest > 9 * few.largest
    assert many.peak > 5 * few.peak


def test_a_sampler_that_does_not_look_at_losses_pays_nothing_for_them(small):
    for sampler in (RandomSampler(8), AllSampler()):
        small.sampler = sampler
        step = small.training_step([image_of()], [proposals_of(50)], [target()])
        assert step.score.losses is None
        assert step.score.seconds == 0
        assert [len(losses.cls) for losses in step.score()] == [52]  # and can ask later, for the log


# -------------------------------------------------------------------------------------------------- what it leaves


def add_batch_norm(detector):
    detector.head.fc[0] = nn.Sequential(detector.head.fc[0], nn.BatchNorm1d(16))
    return detector.train()


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("dropout", [True, False])
def test_no_parameter_and_no_buffer_changes(detector, dropout):
    rois, features = rois_of(detector, 120), features_of(detector)
    before = state_of(detector)
    detector.rank(features, rois, dropout=dropout)
    assert changed(detector, before) == []


@pytest.mark.parametrize("dropout", [True, False])
def test_batch_norm_in_the_head_does_not_count_it(small, dropout):
    add_batch_norm(small)
    rois, features = rois_of(small, 120), features_of(small)
    before = state_of(small)
    small.rank(features, rois, dropout=dropout)
    assert changed(small, before) == []
    small.head(features[0], rois[0].boxes)  # the regular network does
    assert set(changed(small, before)) == {
        f"head.fc.0.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_no_graph_and_no_gradient(detector):
    """Features that carry a graph: the pass does not add to it, and does not stop the training pass from using it."""
    rois = rois_of(detector, 60)
    detector.zero_grad()
    features = detector.features([image_of()])
    graph = features[0].grad_fn
    (losses,) = detector.rank(features, rois)
    for tensor in (losses.cls, losses.box, losses.total):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    assert features[0].grad_fn is graph
    assert features[0].requires_grad
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert torch.is_grad_enabled()


def flags(module):
    return {name: each.training for name, each in module.named_modules()}


@pytest.mark.parametrize("dropout", [True, False])
def test_training_flags_are_put_back(small, dropout):
    add_batch_norm(small)
    rois, features = rois_of(small, 20), features_of(small)
    before = flags(small)
    assert before["head.dropout"]
    assert before["head.fc.0.1"]
    small.rank(features, rois, dropout=dropout)
    assert flags(small) == before


@pytest.mark.parametrize("dropout", [True, False])
def test_also_when_it_fails(small, dropout):
    add_batch_norm(small)
    rois = rois_of(small, 20)
    before = flags(small)
    with pytest.raises(RuntimeError):
        small.rank([torch.zeros(1, 5, 4, 4)], rois, dropout=dropout)  # 5 channels do not fit the first layer
    assert flags(small) == before
    assert torch.is_grad_enabled()


def test_layers_that_were_in_evaluation_mode_stay_there(small):
    add_batch_norm(small)
    rois, features = rois_of(small, 20), features_of(small)
    small.head.fc[0][1].eval()
    small.head.dropout.eval()
    small.rank(features, rois, dropout=False)
    assert not small.head.fc[0][1].training
    assert not small.head.dropout.training
    assert small.head.training


def test_what_runs_inside_and_what_is_put_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Dropout2d(0.5))
    with read_only(network, dropout=True):
        assert [layer.training for layer in network] == [True, False, True, True]
        assert not torch.is_grad_enabled()
    with read_only(network, dropout=False):
        assert not any(layer.training for layer in network)
    assert all(layer.training for layer in network)
    network.eval()
    with read_only(network, dropout=True):
        assert not any(layer.training for layer in network)
    assert not any(layer.training for layer in network)


# ------------------------------------------------------------------------------------------------------------ dropout


def test_dropout_on_draws_masks_and_off_draws_none(small):
    rois, features = rois_of(small, 30), features_of(small)
    torch.manual_seed(1)
    first, second = (small.rank(features, rois, dropout=True)[0].total for _ in range(2))
    assert not torch.equal(first, second)  # its own masks each time
    torch.manual_seed(1)
    assert torch.equal(small.rank(features, rois, dropout=True)[0].total, first)

    before = torch.get_rng_state()
    first, second = (small.rank(features, rois, dropout=False)[0].total for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [True, False])
def test_the_samplers_setting_reaches_the_network(small, dropout):
    small.sampler = HardSampler(8, dropout=dropout)
    step = small.training_step([image_of()], [proposals_of(30)], [target()])
    without = small.rank(features_of(small), step.rois, dropout=False)[0].total
    assert torch.allclose(step.score.losses[0].total, without, atol=1e-5) is not dropout


# ------------------------------------------------------------------------------------------------ losses that are not


def test_a_loss_that_is_not_finite_stops_it_and_names_the_roi(small):
    rois, features = rois_of(small, 5), features_of(small)
    with torch.no_grad():
        small.head.cls_score.bias[2] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"^image 0 of the batch, RoI 0 \[.*\]: class loss: found nan"):
        small.rank(features, rois)
    assert flags(small)["head.dropout"]


def test_the_second_image_is_named(small):
    small.sampler = HardSampler(8)
    broken = torch.full((3, HEIGHT, WIDTH), float("nan"))
    with pytest.raises(NonFiniteLossError) as caught:
        small.training_step([image_of(), broken], [proposals_of(5)] * 2, [target()] * 2)
    assert caught.value.image == 1


def test_a_sampler_without_scores_is_stopped_before_the_backward_pass_too(small):
    small.sampler = RandomSampler(8)
    with torch.no_grad():
        small.head.bbox_pred.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="box loss: found inf"):
        small.training_step([image_of()], [proposals_of(5)], [target()])
