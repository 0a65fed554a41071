"""Ranking in half precision: what it changes, and what it leaves alone."""

import pytest
import torch

from ohem.models import products
from ohem.models.fast_rcnn import FastRCNN
from ohem.ranking import ExactRanking, HalfRanking, LowRankRanking, Ranking, RememberedRanking
from ohem.recipes.recipe import load_recipe
from ohem.samplers import AllSampler, HardSampler
from test_low_rank import WIDTH, detector, rank, scene

__all__ = ["detector"]
HALVES = [
    HalfRanking(),
    HalfRanking("float16"),
    HalfRanking(rescored="choice"),
    LowRankRanking(rank=WIDTH, share=1.0, precision="bfloat16"),
    RememberedRanking(share=1.0, precision="bfloat16"),
]


def losses_of(detector: FastRCNN, ranking: Ranking, seed: int = 0) -> torch.Tensor:
    detector.rank_by(ranking)
    (found,) = detector.rank(*scene(detector, seed), dropout=False, images=[0])
    assert found.cls.dtype == found.box.dtype == torch.float32
    return found.total


@pytest.mark.parametrize("ranking", HALVES, ids=str)
def test_losses_are_float32_ones_to_the_digits_of_its_precision(detector: FastRCNN, ranking: Ranking) -> None:
    found, wanted = losses_of(detector, ranking), losses_of(detector, ExactRanking())
    digits = torch.finfo(getattr(torch, ranking.precision)).eps
    difference = (found - wanted).abs().max() / wanted.max()
    assert 0.01 * digits < difference < 8 * digits  # another number, and not another loss


@pytest.mark.parametrize(
    "sampler",
    [
        HardSampler(40, nms_iou=None),
        HardSampler(16),
        HardSampler(16, rank_box_loss=False),
        HardSampler(8, cap="batch"),
        HardSampler(30, nms_per_label=True, fill=True),
    ],
    ids=str,
)
def test_with_those_scored_again_that_may_be_chosen_the_choice_is_the_exact_one(
    detector: FastRCNN, sampler: HardSampler
) -> None:
    detector.sampler = sampler
    (first, second), (rois, others) = zip(*(scene(detector, seed) for seed in (0, 1)), strict=True)
    features, both = [*first, *second], [*rois, *others]

    def ranked(ranking: Ranking) -> tuple[list[list[int]], torch.Tensor]:
        detector.rank_by(ranking)
        losses = detector.rank(features, both, dropout=False)
        chosen = sampler(both, lambda *, dropout=True: losses, torch.Generator())
        return [index.tolist() for index in chosen], torch.cat([each.total for each in losses])

    (wanted, exactly), (_, half), (found, again) = (
        ranked(ranking) for ranking in (ExactRanking(), HalfRanking(), HalfRanking(rescored="choice"))
    )
    assert found == wanted  # in this order
    scored = again != half
    torch.testing.assert_close(again[scored], exactly[scored])
    assert 0 < scored.sum() < 0.6 * len(half)


def test_the_order_is_not_that_of_half_precision_alone(detector: FastRCNN) -> None:
    """Else the test above could not fail."""
    orders = [losses_of(detector, ranking).argsort()[-40:] for ranking in (ExactRanking(), HalfRanking())]
    assert not torch.equal(*orders)


def test_ranking_again_is_without_dropout_and_leaves_it_on(detector: FastRCNN) -> None:
    detector.rank_by(HalfRanking(rescored="choice"))
    (with_dropout,), (without,) = (detector.rank(*scene(detector), dropout=on) for on in (True, False))
    assert torch.equal(with_dropout.total, without.total)
    assert detector.head.dropout.training


def test_a_sampler_that_takes_easy_rois_has_all_scored_again(detector: FastRCNN) -> None:
    detector.sampler = AllSampler()
    again, wanted = losses_of(detector, HalfRanking(rescored="choice")), losses_of(detector, ExactRanking())
    torch.testing.assert_close(again, wanted)


def test_what_trains_is_in_float32_and_all_weights_get_their_gradients(detector: FastRCNN) -> None:
    """Autocast keeps copies of weights that were made without a graph: training on those would leave no gradient."""
    detector.rank_by(HalfRanking())
    detector.sampler, detector.head.dropout.p = HardSampler(16), 0.0
    image = torch.rand(3, 100, 110, generator=torch.Generator().manual_seed(0))
    target = {"boxes": torch.tensor([[10.0, 10, 40, 40]]), "labels": torch.tensor([1])}
    step = detector.training_step([image], [scene(detector)[1][0].boxes], [target])
    torch.autograd.backward(sum(step.losses.values()))
    found = {name: p.grad for name, p in detector.named_parameters()}
    assert all(gradient is not None for gradient in found.values())

    detector.zero_grad()
    (own,) = detector._losses(detector.features([image]), [step.rois[0][step.selected[0]]])
    own.total.mean().backward()
    for name, parameter in detector.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def is_rounded(values: torch.Tensor) -> bool:
    return torch.equal(values.float(), values.bfloat16().float())


@pytest.mark.parametrize("own", [True, False])
def test_matrix_products_are_cast_and_pooling_is_not(
    detector: FastRCNN, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "has_arithmetic", lambda device, precision: own)
    detector.rank_by(HalfRanking())
    seen = []
    detector.head.cls_score.register_forward_hook(lambda layer, inputs, output: seen.append(is_rounded(output)))
    pool = detector.head.pool_rois
    detector.head.pool_rois = lambda *args: seen.append(is_rounded(pool(*args))) or pool(*args)  # type: ignore[method-assign]
    rank(detector, *scene(detector))
    assert (any(seen[:-1]), seen[-1]) == (False, True)


@pytest.mark.parametrize("ranking", HALVES, ids=str)
def test_a_processor_without_the_arithmetic_makes_the_same_choice(
    detector: FastRCNN, ranking: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, exact = [], losses_of(detector, ExactRanking())
    for own in (True, False):
        monkeypatch.setattr(products, "has_arithmetic", lambda device, precision, own=own: own)
        found.append(losses_of(detector, ranking))
    # Sums in another order, and now and then a last digit of an intermediate value: far less than what rounding changes.
    assert (found[1] - found[0]).abs().mean() < 0.2 * (found[0] - exact).abs().mean()


def test_layers_alone_are_rounded_and_their_numbers_stay_float32() -> None:
    torch.manual_seed(0)
    layer, values = torch.nn.Linear(40, 30), torch.randn(20, 40)
    with torch.no_grad(), products.RoundedProducts(torch.bfloat16):
        found, sums = layer(values), values @ values.t()
    wanted = values.bfloat16().double() @ layer.weight.bfloat16().double().t() + layer.bias.bfloat16().double()
    assert found.dtype == torch.float32
    assert is_rounded(found)
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-6)
    assert torch.equal(sums, values @ values.t())


def test_who_has_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    def has(**known: object) -> tuple[bool, bool]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
        cpu = torch.device("cpu")
        return tuple(products.has_arithmetic(cpu, p) for p in (torch.bfloat16, torch.float16))  # type: ignore[return-value]

    assert has(architecture="x86_64", avx512_bf16=True, avx512_fp16=False) == (True, False)
    assert has(architecture="x86_64", amx_bf16=True, amx_fp16=True) == (True, True)
    assert has(architecture="x86_64", avx2=True) == (False, False)
    assert has(architecture="aarch64") == (True, True)
    assert products.has_arithmetic(torch.device("cuda"), torch.float16)


def test_ranking_in_the_precision_of_the_run_is_the_run_s_business() -> None:
    with pytest.raises(Exception, match=r"ranking.kind: found half; allowed with precision bfloat16.*: exact"):
        load_recipe("lite0", ["ranking=half", "precision=bfloat16"])
    for kind in ("low_rank", "remembered"):
        with pytest.raises(
            Exception, match=r"ranking.precision: found bfloat16; allowed with precision float16.*: float32"
        ):
            load_recipe("lite0", [f"ranking={{kind: {kind}, precision: bfloat16}}", "precision=float16"])
        load_recipe("lite0", [f"ranking={kind}", "precision=float16"])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(Exception, match=r"ranking.precision: found 'int8'"):
        load_recipe("lite0", ["ranking={kind: half, precision: int8}"])
    with pytest.raises(Exception, match=r"ranking.rescored: found 'all'; allowed: 'choice'"):
        load_recipe("lite0", ["ranking=half", "ranking.rescored=all"])
    with pytest.raises(Exception, match="ranking: found half; allowed with mining loss_layer: exact"):
        load_recipe("lite0", ["mining=loss_layer", "ranking=half"])
