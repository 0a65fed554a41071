"""The benchmarks compare like with like; what they print is not tested."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ohem

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from evaluation import measure_evaluation
from peers import loss_layer, plain_step, random_rois, rois_of
from subjects import APPROXIMATIONS, FastRcnnSteps
from timing import Turns, operations, turns


def small_steps(*overrides: str) -> FastRcnnSteps:
    small = ("detector.head={pool: max, pool_size: 3, channels: 16, fc: [32], dropout: 0.0}", *overrides)
    return FastRcnnSteps("lite0", 120, (96, 128), images=1, batch=64, overrides=small)


def gradients(steps: FastRcnnSteps) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in steps.detector.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("form", "mine"), [("OHEM", loss_layer), ("FRCN", random_rois)])
@pytest.mark.parametrize("pool", ["max", "align"])
def test_plain_steps_as_users_write_them_train_on_what_ours_do(
    pool: str, form: str, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (small_steps(f"detector.head.pool={pool}") for _ in range(2))
    for steps in (ours, theirs):
        monkeypatch.setattr(steps.optimizer, "step", lambda: None)
        monkeypatch.setattr("subjects.clip", lambda detector, norm: None)
        monkeypatch.setattr("peers.clip", lambda detector, norm: None)
    ours.step(form)
    plain_step(theirs, mine)
    wanted = gradients(theirs)
    assert wanted.keys() == gradients(ours).keys()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5)


def test_approximate_steps_keep_their_state_and_leave_the_detector_exact() -> None:
    steps = small_steps()
    works = steps.approximate_steps()
    assert list(works) == list(APPROXIMATIONS)
    rankings = []
    steps.detector.head.cls_score.register_forward_hook(lambda *_: rankings.append(steps.detector.ranking))
    for name, work in works.items():
        rankings.clear()
        work()
        assert set(rankings) == {APPROXIMATIONS[name]}
        assert steps.detector.ranking == ohem.ranking.ExactRanking()


def test_operations_are_those_of_the_matrix_products() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7
    steps = small_steps()
    head, (features, rois) = steps.detector.head, rois_of(steps)
    with torch.no_grad():
        assert operations(lambda: head(features[0], rois.boxes)) == steps.head_operations()


def test_works_take_turns_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    found = turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == list("ababab")
    assert [len(each) for each in (*found.clock.values(), *found.cpu.values())] == [2, 2, 2, 2]
    seconds = {"x": [2.0, 9.0, 4.0], "y": [1.0, 3.0, 4.0]}
    assert Turns(seconds, {"x": [1.0], "y": [4.0]}).ratios("x", "y") == {"ratio": 2.0, "CPU ratio": 0.25}


def test_both_evaluations_agree() -> None:
    assert measure_evaluation(40)["images"] == 40  # it raises where they do not
