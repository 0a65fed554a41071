"""Automatic casting and the average of the weights: what stays in float32, what an overflow costs, and what is kept."""

import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ohem.errors import OhemError
from ohem.losses import at_least_float32, mean_losses, roi_losses
from ohem.models.backbones import LocalResponseNorm
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.products import has_arithmetic
from ohem.models.weights import load_detector
from ohem.recipes.recipe import Recipe
from ohem.samplers import AllSampler, HardSampler
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import measure, train
from ohem.training.precision import Precision
from ohem.training.run import Run, Sources
from shapes import PRETRAINED, make_shapes, open_shapes, small_recipe
from test_ranking import BACKBONES, image_of, proposals_of, target
from test_ranking import new_detector as new_random_detector

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="module")
def images(shapes: Path) -> AnnotatedImages:
    return AnnotatedImages(*open_shapes(shapes, "train"))


def start(folder: Path, recipe: Recipe, images: AnnotatedImages) -> Run:
    return Run.create(folder, recipe, Sources(("data",)), images.dataset, "fingerprint")


def half_size(*overrides: str) -> Recipe:
    """Pictures of half their size: processors without half precision take long for each pixel."""
    return small_recipe("detector.image.shortest=36", "detector.image.longest=48", *overrides)


def trained(folder: Path, recipe: Recipe, images: AnnotatedImages, detector: FastRCNN | None = None) -> Run:
    run = start(folder, recipe, images)
    assert train(run, recipe, detector or new_detector(recipe, images), images, workers=0)
    return run


def overflowing(recipe: Recipe, images: AnnotatedImages) -> FastRCNN:
    """A detector whose losses are finite, and whose gradients pass float16's 65504 at first, being scaled by 65536."""
    detector = new_detector(recipe, images)
    nn.init.normal_(detector.head.cls_score.weight, std=0.3)
    return detector


# ---------------------------------------------------------------------------------------------------- a forward pass


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_detector_ranks_and_trains_under_autocast_and_accumulates(name: str, dtype: torch.dtype) -> None:
    """Losses and gradients are float32; those of two images one by one, with half the weight, are the batch's."""
    if name == "vgg16" and not has_arithmetic(CPU, dtype):
        pytest.skip(f"half a minute on processors without {dtype}; its layers are the other backbones' too")
    detector = new_random_detector(name, dropout=0.0)
    detector.sampler = AllSampler()
    batch = [image_of(0), image_of(1)], [proposals_of(40, 0), proposals_of(30, 1)], [target(), target()]

    def gradients(passes: list[slice], cast: bool = True) -> dict[str, torch.Tensor]:
        detector.zero_grad(set_to_none=True)
        for part in passes:
            with torch.autocast("cpu", dtype, enabled=cast):
                step = detector.training_step(*(values[part] for values in batch))
                ranked = step.score()
            assert {loss.dtype for losses in ranked for loss in (losses.cls, losses.box)} == {torch.float32}
            assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in step.losses.values())
            mean = mean_losses(ranked)
            assert step.losses["loss_cls"].item() == pytest.approx(mean.cls.item(), rel=1e-2)
            torch.autograd.backward(sum(step.losses.values()) * (len(step.rois) / 2))
        return {key: p.grad.clone() for key, p in detector.named_parameters() if p.grad is not None}

    whole, one_by_one = [slice(2)], [slice(1), slice(1, 2)]
    exact, together, accumulated = gradients(whole, cast=False), gradients(whole), gradients(one_by_one)
    assert exact.keys() == together.keys() == accumulated.keys()
    for found, wanted in ((together, exact), (accumulated, together)):
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        assert [bool(gradient.any()) for gradient in found.values()] == [bool(g.any()) for g in wanted.values()]
        apart = math.hypot(*((found[key] - wanted[key]).norm() for key in wanted))
        assert apart < 0.1 * math.hypot(*(gradient.norm() for gradient in wanted.values()))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_hardest_under_autocast_are_the_hardest_by_the_float32_losses_of_its_scores(dtype: torch.dtype) -> None:
    detector = new_random_detector("resnet18", dropout=0.0)
    nn.init.normal_(detector.head.cls_score.weight, std=0.3)
    detector.sampler = HardSampler(16, nms_iou=None)
    with torch.autocast("cpu", dtype):
        step = detector.training_step([image_of()], [proposals_of(90)], [target()])
        with torch.no_grad():
            logits, deltas = detector.head(detector.features([image_of()])[0], step.rois[0].boxes)
    assert logits.dtype == dtype
    wanted = roi_losses(logits.float(), deltas.float(), step.rois[0]).total
    assert step.score.losses is not None
    torch.testing.assert_close(step.score.losses[0].total, wanted, rtol=1e-2, atol=1e-2)
    order = step.score.losses[0].total.argsort(descending=True, stable=True)[:16]
    assert sorted(step.selected[0].tolist()) == sorted(order.tolist())


def test_local_response_normalisation_does_not_overflow_in_float16() -> None:
    """300 squared is infinite in float16."""
    values, norm = torch.full((1, 8, 2, 2), 300.0), LocalResponseNorm(5, 5e-4, 2.0)
    assert norm(values).min() > 1
    assert torch.equal(norm(values.half()), norm(values))


@pytest.mark.parametrize("channels", [1, 4, 96])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalisation_is_torchs(channels: int, size: int) -> None:
    values = 40 * torch.randn(2, channels, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, wanted = (
        norm(values) for norm in (LocalResponseNorm(size, 5e-4, 2.0), nn.LocalResponseNorm(size, 5e-4, 0.75, 2.0))
    )
    torch.testing.assert_close(found, wanted)


def test_float64_is_left_alone() -> None:
    assert [at_least_float32(torch.zeros(1, dtype=dtype)).dtype for dtype in (*HALVES, torch.float64)] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]


# ------------------------------------------------------------------------------------------------------------ training


def test_bfloat16_learns_and_keeps_its_weights_and_their_average_in_float32(
    shapes: Path, images: AnnotatedImages, tmp_path: Path
) -> None:
    held_out = AnnotatedImages(*open_shapes(shapes, "test"))
    steps, learned = (80, 0.7) if has_arithmetic(CPU, torch.bfloat16) else (25, 0.5)  # else it takes minutes
    recipe = small_recipe(
        *PRETRAINED, "precision=bfloat16", "ema=0.9", f"iterations={steps}", f"evaluation.every={steps}"
    )
    run = start(tmp_path / "run", recipe, images)
    detector = new_detector(recipe, images)
    assert train(run, recipe, detector, images, held_out, workers=0)
    assert {p.dtype for p in detector.parameters()} == {torch.float32}
    assert not {t.dtype for t in load_file(run.weights_file).values()} & {*HALVES}
    first, *_, validation = run.log()
    assert measure(new_detector(recipe, held_out), recipe, held_out, workers=0) < 0.2
    assert validation["voc07"] > learned
    # What was validated is what was kept: the average.
    averaged = load_detector(run.weights_file)[0]
    assert measure(averaged, recipe, held_out, workers=0) == pytest.approx(validation["voc07"], abs=1e-6)
    assert not torch.equal(averaged.head.cls_score.weight, detector.head.cls_score.weight)
    assert "skipped" not in first


@pytest.mark.parametrize(
    "settings",
    [
        ("precision=bfloat16", "ema=0.9", "accumulate=true"),
        ("precision=float16", "ema=0.9", "accumulate=false"),
        ("precision=float32", "ema=0.5", "accumulate=true"),
    ],
    ids=" ".join,
)
def test_interrupted_training_ends_in_the_same_weights(
    settings: tuple[str, ...], images: AnnotatedImages, tmp_path: Path
) -> None:
    """Also the loss scale, which has fallen by the interruption, and the count of skipped steps."""
    recipe = half_size(*settings, "iterations=6", "detector.head.dropout=0.5")
    whole = trained(tmp_path / "whole", recipe, images, overflowing(recipe, images))

    def interrupt(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 4:
            signal.raise_signal(signal.SIGINT)

    broken = start(tmp_path / "broken", recipe, images)
    assert not train(broken, recipe, overflowing(recipe, images), images, workers=0, observe=interrupt)
    assert train(broken, recipe, new_detector(recipe, images), images, workers=0)
    assert broken.weights_file.read_bytes() == whole.weights_file.read_bytes()
    kept = [{k: v for k, v in record.items() if k in ("skipped", "loss_scale")} for record in whole.log()]
    assert [{k: v for k, v in r.items() if k in ("skipped", "loss_scale")} for r in broken.log()] == kept
    assert ("precision=float16" in settings) == (kept[0].get("skipped", 0) > 0)


def test_an_overflow_in_float16_is_skipped_and_counted(images: AnnotatedImages, tmp_path: Path) -> None:
    recipe = half_size("precision=float16", "iterations=8", "log_every=1")
    detector = overflowing(recipe, images)
    weights = []

    def look(record: Mapping[str, Any] | None = None) -> None:
        if record is None or record["kind"] == "train":
            weights.append(torch.cat([parameter.detach().flatten() for parameter in detector.parameters()]))

    look()
    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, detector, images, workers=0, observe=look)
    log = run.log()
    skipped = [0, *(record["skipped"] for record in log)]
    assert 0 < skipped[-1] < 8
    for done, record in enumerate(log):
        assert torch.equal(weights[done], weights[done + 1]) == (skipped[done + 1] == skipped[done] + 1)
        assert record["loss_scale"] == 2.0 ** (16 - record["skipped"])
        assert math.isfinite(record["loss_selected_rois"])
    assert weights[-1].isfinite().all()


def test_a_loss_that_overflows_is_skipped_too_and_its_step_is_left_out_of_the_log(
    images: AnnotatedImages, tmp_path: Path
) -> None:
    """The first step of all, before anything has been scaled."""
    recipe = half_size("precision=float16", "iterations=2", "log_every=1", "ema=0.9")
    detector = new_detector(recipe, images)
    bias = detector.head.cls_score.bias.detach()
    bias[0] = 1e5  # finite in float32, infinite in float16

    def mend(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 1:
            bias[0] = 0

    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, detector, images, workers=0, observe=mend)
    first, second = run.log()
    assert (first["skipped"], second["skipped"]) == (1, 1)
    assert first["loss_selected_rois"] is None
    assert 0 < second["loss_selected_rois"] < 10
    assert all(tensor.isfinite().all() for tensor in load_file(run.weights_file).values())


def test_a_loss_that_no_scale_mends_stops_float16_and_leaves_its_step(images: AnnotatedImages, tmp_path: Path) -> None:
    recipe = half_size("precision=float16", "iterations=40")
    detector = new_detector(recipe, images)
    nn.init.constant_(detector.head.cls_score.bias[:1], torch.nan)
    run = start(tmp_path / "run", recipe, images)
    with pytest.raises(OhemError, match=r"iteration 17: image train_\d+, RoI 0 .* class loss: found nan"):
        train(run, recipe, detector, images, workers=0)
    assert run.failed_step_file(17).is_file()
    assert run.log()[-1]["skipped"] == 15


# --------------------------------------------------------------------------------------------------- a step of its own


class Slope(nn.Module):
    """Its gradient is what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def loss(self, slope: float) -> torch.Tensor:
        return (self.weight * slope).sum()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(
    name: Any, clip_norm: float | None
) -> None:
    module, precision = Slope(), Precision(name, CPU)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    precision.backward(module.loss(math.inf))
    with pytest.raises(OhemError, match="gradient of weight: found inf; allowed: finite numbers"):
        precision.step(optimizer, module, clip_norm)
    assert module.weight.tolist() == [1, 1, 1]
    assert precision.record() == {}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_float16_takes_the_steps_of_float32_and_none_of_an_overflow(optimizer: Any) -> None:
    slopes = [1.0, math.inf, 3.0, math.nan, -2.0]
    weights = []
    for name, given in (("float16", slopes), ("float32", [s for s in slopes if math.isfinite(s)])):
        module, precision = Slope(), Precision(name, CPU)
        own = optimizer(module.parameters(), lr=0.1, **({"fused": True} if optimizer is torch.optim.AdamW else {}))
        done = []
        for slope in given:
            own.zero_grad()
            precision.backward(module.loss(slope))
            done.append(precision.step(own, module, clip_norm=2.0))
        assert done == [math.isfinite(slope) for slope in given]
        weights.append(module.weight.detach())
        if name == "float16":
            assert precision.record() == {"skipped": 2, "loss_scale": 2.0**14}
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_skipped_first_step_leaves_the_optimizer_as_it_was(optimizer: Any) -> None:
    """Also where only one parameter had a gradient, as after a loss that is forgiven."""
    module, precision = nn.Sequential(Slope(), Slope()), Precision("float16", CPU)
    momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    own = optimizer(module.parameters(), lr=0.1, fused=True, **momentum)
    assert precision.forgives(module)
    assert not precision.step(own, module, None)
    assert not own.state
    own.zero_grad()
    precision.backward(module[0].loss(1.0) + module[1].loss(2.0))
    assert precision.step(own, module, None)
    assert len(own.state) == 2
    if momentum:
        assert [own.state[p]["momentum_buffer"].tolist() for p in module.parameters()] == [[1.0] * 3, [2.0] * 3]


def test_float16_gives_up_where_no_smaller_scale_helps() -> None:
    module, precision = Slope(), Precision("float16", CPU)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(16):
        optimizer.zero_grad()
        assert precision.forgives(module)
        assert not precision.step(optimizer, module, None)
    assert not precision.forgives(module)
    precision.backward(module.loss(math.nan))
    with pytest.raises(OhemError, match="gradient of weight: found nan"):
        precision.step(optimizer, module, None)
    assert precision.skipped == 16
    assert module.weight.tolist() == [1, 1, 1]


# ---------------------------------------------------------------------------------------------- average of the weights


def test_the_average_is_the_slow_reference_s_and_training_does_not_know_of_it(
    images: AnnotatedImages, tmp_path: Path
) -> None:
    settings = ("iterations=12", "snapshot_every=1", "checkpoint_every=12")
    plain = trained(tmp_path / "plain", half_size(*settings), images)
    averaged = trained(tmp_path / "averaged", half_size("ema=0.5", *settings), images)
    weights = [load_file(plain.snapshot_file(done)) for done in range(1, 13)]
    wanted = {key: tensor.double() for key, tensor in weights[0].items()}
    for updates, now in enumerate(weights):
        if updates:
            kept = min(0.5, (1 + updates) / (10 + updates))  # reaches 0.5 at the eighth
            wanted = {key: kept * wanted[key] + (1 - kept) * now[key].double() for key in wanted}
        found = load_file(averaged.snapshot_file(updates + 1))
        for key in wanted:
            torch.testing.assert_close(found[key].double(), wanted[key], rtol=1e-5, atol=1e-7)
    assert averaged.weights_file.read_bytes() == averaged.snapshot_file(12).read_bytes()
    states = [torch.load(run.checkpoint_file, weights_only=True)["detector"] for run in (plain, averaged)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_skipped_steps_are_not_averaged(images: AnnotatedImages, tmp_path: Path) -> None:
    recipe = half_size("precision=float16", "ema=0.9", "iterations=6", "log_every=6")
    run = trained(tmp_path / "run", recipe, images, overflowing(recipe, images))
    state = torch.load(run.checkpoint_file, weights_only=True)
    assert 0 < run.log()[-1]["skipped"] < 6
    assert int(state["average"]["n_averaged"]) == 6 - run.log()[-1]["skipped"]
