"""Ranking the RoIs that were hard when last seen: what stays exact, what is remembered, and that a run keeps it."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ohem.errors import OhemError
from ohem.losses import NonFiniteLossError, RoiLosses
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.weights import load_detector
from ohem.ranking import ExactRanking, LossMemory, RememberedRanking
from ohem.recipes.recipe import load_recipe
from ohem.rois import Rois
from ohem.training.processes import Processes
from ohem.workflow import _require_together
from shapes import small_recipe, whole_and_killed
from test_low_rank import detector, scene

__all__ = ["detector"]


def rank(detector: FastRCNN, features: list[Tensor], rois: list[Rois], image: int = 0) -> RoiLosses:
    (losses,) = detector.rank(features, rois, dropout=False, images=[image])
    return losses


def exact(detector: FastRCNN, features: list[Tensor], rois: list[Rois]) -> RoiLosses:
    memory, ranking = detector.loss_memory, detector.ranking
    detector.rank_by(ExactRanking())
    losses = rank(detector, features, rois)
    detector.loss_memory, detector.ranking = memory, ranking
    return losses


def train_on(detector: FastRCNN) -> None:
    with torch.no_grad():
        detector.head.fc[1].weight += 0.05 * torch.randn_like(detector.head.fc[1].weight)


def test_an_image_that_was_not_seen_is_ranked_exactly(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking(share=0.0))
    for image in range(2):
        here = scene(detector, seed=image)
        torch.testing.assert_close(rank(detector, *here, image).total, exact(detector, *here).total)


def test_foreground_and_the_share_that_was_hardest_are_exact_and_the_others_as_they_were(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking(share=0.25))
    features, rois = scene(detector)
    before = rank(detector, features, rois)
    train_on(detector)
    found, wanted = rank(detector, features, rois), exact(detector, features, rois)

    background = (rois[0].labels == 0).nonzero().squeeze(1)
    hardest = background[before.cls[background].argsort(descending=True)[: math.ceil(len(rois[0]) / 4)]]
    scored = torch.zeros(len(rois[0]), dtype=torch.bool)
    scored[hardest], scored[rois[0].labels > 0] = True, True
    torch.testing.assert_close(found.total[scored], wanted.total[scored])
    torch.testing.assert_close(found.total[~scored], before.total[~scored], rtol=1e-3, atol=1e-6)  # kept in float16
    assert not torch.isclose(found.total[~scored], wanted.total[~scored], rtol=1e-2).all()


def test_a_roi_whose_loss_fell_makes_room_for_the_next(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking(share=0.1, refresh=1000))
    features, rois = scene(detector)
    rank(detector, features, rois)
    with torch.no_grad():  # from now on all background is easy
        detector.head.cls_score.bias[0] += 100.0
    background = rois[0].labels == 0
    left = [int((rank(detector, features, rois).cls[background] > 1e-3).sum()) for _ in range(12)]
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.5 * len(rois[0])
    assert left[-1] == 0


def test_every_so_many_times_an_image_is_seen_it_is_ranked_exactly(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking(share=0.0, refresh=3))
    features, rois = scene(detector)
    were_exact = []
    for _ in range(7):
        found = rank(detector, features, rois)
        were_exact.append(torch.allclose(found.total, exact(detector, features, rois).total, atol=1e-5))
        rank(detector, *scene(detector, seed=1), image=1)  # another image's times are its own
        train_on(detector)
    assert were_exact == [True, False, False, True, False, False, True]


def test_a_loss_that_is_no_number_is_not_remembered(detector: FastRCNN) -> None:
    """float16 forgives a step that overflows, and goes on."""
    detector.rank_by(RememberedRanking(share=0.0))
    here, bias = scene(detector), detector.head.fc[0].bias.clone()
    for seen in range(2):
        torch.nn.init.constant_(detector.head.fc[0].bias, torch.nan)
        with pytest.raises(NonFiniteLossError):
            rank(detector, *here)
        with torch.no_grad():
            detector.head.fc[0].bias.copy_(bias)
        found = rank(detector, *here).total
        torch.testing.assert_close(found, exact(detector, *here).total, rtol=1e-3, atol=1e-6)  # kept in float16
        assert detector.loss_memory is not None
        assert detector.loss_memory.get_extra_state()["seen"].tolist() == [seen + 1]


def test_another_number_of_rois_is_another_image(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking(share=0.0))
    rank(detector, *scene(detector))
    fewer = scene(detector, count=150)
    train_on(detector)
    torch.testing.assert_close(rank(detector, *fewer).total, exact(detector, *fewer).total)


def test_images_without_numbers_are_refused(detector: FastRCNN) -> None:
    detector.rank_by(RememberedRanking())
    target = {"boxes": torch.tensor([[10.0, 10, 40, 40]]), "labels": torch.tensor([1])}
    with pytest.raises(ValueError, match="targets: found no image_id; allowed with ranking 'remembered'"):
        detector.training_step([torch.rand(3, 100, 110)], [torch.tensor([[0.0, 0, 30, 30]])], [target])


def test_memory_comes_back_from_its_state() -> None:
    memory, other = LossMemory(RememberedRanking()), LossMemory(RememberedRanking())
    other.load_state_dict(memory.state_dict())  # of nothing
    for image, losses in ((7, torch.tensor([0.5, 1e6])), (3, torch.tensor([2.0]))):
        assert memory.recall(image, len(losses)) is None
        memory.keep(image, losses)
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        torch.testing.assert_close(each.recall(7, 2), torch.tensor([0.5, 65504.0]))
        torch.testing.assert_close(each.recall(3, 1), torch.tensor([2.0]))


def test_an_interrupted_run_ends_in_the_same_weights_and_saves_no_memory_with_them(tmp_path: Path) -> None:
    recipe = small_recipe("iterations=12", "checkpoint_every=5", "ranking={kind: remembered, share: 0.3, refresh: 3}")
    whole, killed = whole_and_killed(tmp_path, recipe, steps=6)
    assert killed.weights_file.read_bytes() == whole.weights_file.read_bytes()
    assert not any("loss_memory" in name for name in load_file(whole.weights_file))
    assert load_detector(whole.weights_file)[0].loss_memory is None


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("ranking={kind: remembered, share: 2}", "share: found 2"),
        ("ranking={kind: remembered, refresh: 0}", "refresh: found 0"),
        ("ranking={kind: remembered, rank: 4}", "rank: found an unknown field; allowed for remembered: share, refresh"),
    ],
)
def test_wrong_settings_are_refused(override: str, named: str) -> None:
    with pytest.raises(Exception, match="ranking") as error:
        load_recipe("lite0", [override])
    assert named in str(error.value)


def test_several_processes_would_each_have_a_memory_of_their_own() -> None:
    with pytest.raises(OhemError, match="ranking: found remembered; allowed with several processes: exact, half"):
        _require_together(load_recipe("lite0", ["ranking=remembered"]), Processes(count=2))
    _require_together(load_recipe("lite0", ["ranking=half"]), Processes(count=2))
