"""Ranking by a thin copy of the head: what it leaves exact, when the copy is made, and that a run keeps it."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ohem.losses import NonFiniteLossError, RoiLosses
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector, load_detector
from ohem.ranking import LowRankRanking
from ohem.recipes.recipe import load_recipe
from ohem.rois import Rois
from shapes import small_recipe, whole_and_killed

WIDTH = 48


@pytest.fixture
def detector() -> FastRCNN:
    torch.manual_seed(0)
    head = HeadSpec(fc=(WIDTH, WIDTH), pool="align", pool_size=3, channels=8, dropout=0.5)
    detector = build_detector(DetectorSpec(backbone=BackboneSpec(name="resnet18", weights="none"), head=head), 3)
    torch.nn.init.normal_(detector.head.cls_score.weight, std=1.0)
    return detector.train()


def scene(detector: FastRCNN, seed: int = 0, count: int = 200) -> tuple[list[Tensor], list[Rois]]:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 60
    boxes = torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=rng) * 30], dim=1)
    labels, truth = torch.tensor([1, 3]), boxes[:2] + 1.0
    with torch.no_grad():
        features = detector.features([torch.rand(3, 100, 110, generator=rng)])
    return features, [detector.label(boxes, {"boxes": truth, "labels": labels})]


def rank(detector: FastRCNN, features: list[Tensor], rois: list[Rois]) -> RoiLosses:
    (losses,) = detector.rank(features, rois, dropout=False)
    return losses


def exact(detector: FastRCNN, features: list[Tensor], rois: list[Rois]) -> RoiLosses:
    thin, detector.thin_head = detector.thin_head, None
    losses = rank(detector, features, rois)
    detector.thin_head = thin
    return losses


def test_with_all_components_the_copy_is_the_head(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=WIDTH, share=0.0, refresh=1000))
    seen, other = scene(detector), scene(detector, seed=1)
    rank(detector, *seen)
    assert torch.allclose(rank(detector, *other).total, exact(detector, *other).total, atol=1e-4)


def test_foreground_and_the_share_that_looks_hardest_are_exact(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=4, share=0.25, refresh=1000))
    features, rois = scene(detector)
    rank(detector, features, rois)
    found, wanted = rank(detector, features, rois), exact(detector, features, rois)
    equal = torch.isclose(found.total, wanted.total, rtol=0, atol=1e-5)
    foreground = rois[0].labels > 0
    assert equal[foreground].all()
    assert foreground.sum() + 0.25 * len(rois[0]) <= equal.sum() + 1  # and few others: the copy is a rough one
    assert equal.sum() < 0.5 * len(rois[0])
    assert found.total[~equal].isfinite().all()


def test_every_so_many_passes_are_exact_and_make_the_copy_anew(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=4, share=0.0, refresh=3))
    features, rois = scene(detector)
    assert detector.thin_head is not None
    copies, were_exact = [], []
    for _ in range(7):
        losses = rank(detector, features, rois)
        were_exact.append(torch.allclose(losses.total, exact(detector, features, rois).total, atol=1e-5))
        copies.append(detector.thin_head.down[1].weight.clone())
        with torch.no_grad():  # training goes on
            detector.head.fc[1].weight += 0.01 * torch.randn_like(detector.head.fc[1].weight)
    assert were_exact == [True, False, False, True, False, False, True]
    assert [torch.equal(a, b) for a, b in pairwise(copies)] == [True, True, False] * 2


def test_a_pass_of_too_few_rois_to_copy_from_is_exact_and_the_next_one_is_due(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=16, share=0.0, refresh=1000))
    assert detector.thin_head is not None
    for count in (0, 5):
        features, rois = scene(detector)
        few = [rois[0][torch.arange(count)]]
        torch.testing.assert_close(rank(detector, features, few).total, exact(detector, features, few).total)
        assert detector.thin_head.is_due()
    rank(detector, *scene(detector))
    assert not detector.thin_head.is_due()
    assert rank(detector, *scene(detector)).total.isfinite().all()


def test_nothing_is_copied_from_a_loss_that_is_no_number(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=4, refresh=1000))
    assert detector.thin_head is not None
    whole = detector.head.fc[0].bias.clone()
    torch.nn.init.constant_(detector.head.fc[0].bias, torch.nan)
    with pytest.raises(NonFiniteLossError):
        rank(detector, *scene(detector))
    with torch.no_grad():
        detector.head.fc[0].bias.copy_(whole)
    assert detector.thin_head.is_due()
    torch.testing.assert_close(rank(detector, *scene(detector)).total, exact(detector, *scene(detector)).total)


def test_the_copy_is_where_the_detector_is(detector: FastRCNN) -> None:
    detector.double().rank_by(LowRankRanking(rank=4))
    features, rois = scene(detector.float())
    detector.double()
    features = [feature.double() for feature in features]
    for image in rois:
        image.boxes, image.deltas = image.boxes.double(), image.deltas.double()
    for _ in range(2):
        assert rank(detector, features, rois).total.dtype == torch.float64


def test_nothing_is_left_behind(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=4, share=0.25, refresh=2))
    features, rois = scene(detector)
    before = {name: value.clone() for name, value in detector.state_dict().items() if "thin_head" not in name}
    for _ in range(3):
        assert not rank(detector, features, rois).total.requires_grad
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_an_interrupted_run_ends_in_the_same_weights_and_saves_no_copy(tmp_path: Path) -> None:
    recipe = small_recipe("iterations=12", "checkpoint_every=5", "ranking={kind: low_rank, rank: 8, refresh: 7}")
    whole, killed = whole_and_killed(tmp_path, recipe, steps=6)
    assert killed.weights_file.read_bytes() == whole.weights_file.read_bytes()
    assert not any("thin_head" in name for name in load_file(whole.weights_file))
    assert load_detector(whole.weights_file)[0].thin_head is None


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("ranking={kind: low_rank, rank: 0}", "rank: found 0"),
        ("ranking={kind: low_rank, share: 2}", "share: found 2"),
        ("ranking={kind: low_rank, refresh: 0}", "refresh: found 0"),
        ("ranking=fast", "kind: found 'fast'; allowed: exact, half, low_rank"),
    ],
)
def test_wrong_settings_are_refused(override: str, named: str) -> None:
    with pytest.raises(Exception, match="ranking") as error:
        load_recipe("lite0", [override])
    assert named in str(error.value)


def test_the_loss_layer_has_no_pass_to_approximate() -> None:
    with pytest.raises(Exception, match="ranking: found low_rank; allowed with mining loss_layer: exact"):
        load_recipe("lite0", ["mining=loss_layer", "ranking=low_rank"])


def test_it_works_under_automatic_casting_with_a_copy_made_in_float32(detector: FastRCNN) -> None:
    detector.rank_by(LowRankRanking(rank=WIDTH, share=0.0, refresh=1000))
    features, rois = scene(detector)
    with torch.autocast("cpu", torch.bfloat16):
        rank(detector, features, rois)
        cast = rank(detector, features, rois)
    assert torch.allclose(cast.total, exact(detector, features, rois).total, atol=0.1, rtol=0.1)
    assert detector.thin_head is not None
    assert all(value.dtype == torch.float32 for value in detector.thin_head.parameters())
