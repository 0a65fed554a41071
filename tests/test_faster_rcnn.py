"""Faster R-CNN: the region proposal network, both samplers, and one loop, one evaluation and one file with Fast R-CNN."""

import dataclasses
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

import ohem
from ohem.data.sources import load_dataset
from ohem.errors import OhemError
from ohem.inference import candidates_of, suppress
from ohem.judging import run_detector
from ohem.losses import anchor_losses
from ohem.mining import mean_loss, score_images
from ohem.models.backbones import freeze_batch_norm
from ohem.models.faster_rcnn import FasterRCNN
from ohem.models.pyramid import torchvision_model
from ohem.models.spec import TORCHVISION_KINDS, DetectorSpec, TorchvisionSpec
from ohem.models.weights import assemble, build_detector, load_detector, save_detector, start_from
from ohem.opening import SILENT, open_proposals
from ohem.recipes.recipe import Recipe, load_recipe, override_spec
from ohem.rois import Rois
from ohem.samplers import AllSampler, HardSampler, RandomSampler
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import measure, train
from ohem.training.run import Run, Sources
from shapes import PRETRAINED, make_shapes, small_faster_recipe

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
IMAGE = torch.rand(3, 70, 90, generator=Generator().manual_seed(0))
SIZE = (70, 90)
NONE = torch.zeros(0, 4)


def target(*boxes: list[float], **flags: list[int]) -> dict[str, Tensor]:
    boxes = boxes or ([10.0, 10, 40, 40], [50.0, 20, 80, 60])
    places = torch.arange(len(boxes))
    return {
        "boxes": torch.tensor(boxes),
        "labels": 1 + places % 3,
        **{name: torch.isin(places, torch.tensor(at)) for name, at in flags.items()},
    }


def torchvisions(kind: str) -> tuple[Any, FasterRCNN]:
    """One of torchvision's models and our detector of the same layers, with outputs that differ from box to box."""
    torch.manual_seed(0)
    spec = TorchvisionSpec(
        kind=kind, weights="none", freeze="none", rpn={"train_proposals": 40, "train_candidates": 40}
    )
    model = torchvision_model(kind, 3)
    for layer, std in ((model.roi_heads.box_predictor.cls_score, 0.02), (model.rpn.head.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
    model.transform.min_size, model.transform._skip_resize = (min(SIZE),), True
    detector = assemble(model, spec, 3)
    for name in ("_pre_nms_top_n", "_post_nms_top_n", "score_thresh"):
        setattr(model.rpn, name, getattr(detector.rpn, name))
    return model, detector


def own(seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    detector = build_detector(small_faster_recipe("detector.backbone.weights=none").detector, 3)
    assert isinstance(detector, FasterRCNN)
    nn.init.normal_(detector.rpn.head.bbox_pred.weight, std=0.1)
    return detector


@dataclasses.dataclass
class Watched:
    """A sampler that remembers what it was given, what it cost, and what it chose."""

    inner: Any

    def __call__(self, rois: list[Rois], score: Any, rng: Generator) -> list[Tensor]:
        self.rois, self.losses = rois, score()
        self.chosen: list[Tensor] = self.inner(rois, score, rng)
        return self.chosen


def test_in_evaluation_its_own_proposals_are_scored_and_its_anchors_have_a_setting() -> None:
    detector = torchvisions(SMALL)[1].eval()
    (scores, boxes), *_ = detector([IMAGE], [NONE])
    assert 0 < len(scores) == len(boxes)
    with pytest.raises(ValueError, match=r"a detector of ohem's; allowed: detector\.rpn_sampler = sampler"):
        ohem.use_rpn_sampler(detector, HardSampler(8))


def test_a_mask_is_no_choice_of_anchors() -> None:
    detector = own()
    detector.rpn_sampler = lambda rois, score, rng: [image.labels > 0 for image in rois]
    with pytest.raises(ValueError, match=r"image 0 of the batch: found \(\d+,\) bool; allowed: .* of anchors"):
        detector.training_step([IMAGE], [NONE], [target()])


# ------------------------------------------------------------------------------------------- against torchvision's own


@pytest.mark.parametrize("kind", TORCHVISION_KINDS)
def test_the_losses_and_gradients_are_torchvisions_own(kind: str) -> None:
    """Of all RoIs and all anchors, so that no chance is in it; the model's layers are the detector's."""
    model, detector = torchvisions(kind)
    detector.sampler = detector.rpn_sampler = AllSampler()
    step = detector.train().training_step([IMAGE], [NONE], [target()])
    torch.stack(list(step.losses.values())).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    ohem.use_sampler(model, AllSampler())
    ohem.use_rpn_sampler(model, AllSampler())
    freeze_batch_norm(model.train())
    wanted = model([IMAGE], [target()])
    sum(wanted.values()).backward()
    names = {
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
    }
    assert {name: loss.item() for name, loss in step.losses.items()} == {
        name: pytest.approx(wanted[theirs].item(), rel=1e-3) for name, theirs in names.items()
    }
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    apart = math.hypot(*((found[name] - gradients[name]).norm() for name in found))
    assert apart < 1e-2 * math.hypot(*(gradient.norm() for gradient in gradients.values()))


def test_detections_are_torchvisions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, detector = torchvisions(SMALL)
    detector.eval()
    model.roi_heads.score_thresh = 0.2
    with torch.inference_mode():
        (wanted,) = model.eval()([IMAGE])
        (feature,) = detector.features([IMAGE])
        proposals = detector.propose(feature, SIZE, NONE)
        as_used = detector.score_rois(feature, proposals, SIZE)
        # Many scores are about equal: the same ones win only where they are equal to the bit.
        monkeypatch.setattr("ohem.models.products.onednn_fits", lambda *_: False)
        scores, boxes = detector.score_rois(feature, proposals, SIZE)
    torch.testing.assert_close(as_used, (scores, boxes), rtol=1e-4, atol=1e-3)
    found = suppress(candidates_of(scores, boxes, 0.2), 0.5, 100)
    assert len(found) > 10
    torch.testing.assert_close(found.scores, wanted["scores"])
    torch.testing.assert_close(found.boxes, wanted["boxes"], rtol=0, atol=1e-3)
    assert torch.equal(found.labels, wanted["labels"])


def test_defaults_are_torchvisions_own() -> None:
    for kind in TORCHVISION_KINDS:
        with torch.device("meta"):  # without the time that random weights take
            model, spec = torchvision_model(kind, 3), TorchvisionSpec(kind=kind)
        rpn, heads = model.rpn, model.roi_heads
        assert rpn._pre_nms_top_n == {"training": spec.rpn.train_candidates, "testing": spec.rpn.test_candidates}
        assert rpn._post_nms_top_n == {"training": spec.rpn.train_proposals, "testing": spec.rpn.test_proposals}
        assert (rpn.nms_thresh, rpn.score_thresh) == (spec.rpn.nms_iou, spec.rpn.min_score)
        assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (
            spec.detection.score_threshold,
            spec.detection.nms_iou,
            spec.detection.max_detections,
        )
        assert (model.transform.min_size[-1], model.transform.max_size) == (spec.image.shortest, spec.image.longest)


# ---------------------------------------------------------------------------------------- proposals and their training


def test_proposals_lie_in_the_image_best_first_and_as_many_as_asked_for() -> None:
    detector = own()
    for mode, most in ((True, 60), (False, 30)):
        detector.train(mode)
        (feature,) = detector.features([IMAGE])
        anchors = detector.score_anchors(feature)
        assert len(anchors.boxes) == 3 * 5 * 6  # cells of 16 pixels, the last ones cut
        proposals = detector.rpn.propose(anchors, SIZE)
        assert 0 < len(proposals) <= most
        assert not proposals.requires_grad
        assert (proposals[:, 2:] > proposals[:, :2]).all()
        assert (proposals >= 0).all()
        assert (proposals <= torch.tensor([90, 70, 90, 70])).all()
    # The first is the anchor of the highest objectness, moved.
    best = int(anchors.objectness.argmax())
    moved = detector.rpn.box_coder.decode(anchors.deltas[best : best + 1].detach(), [anchors.boxes[best : best + 1]])
    torch.testing.assert_close(proposals[0], moved.view(4).clamp(min=0).minimum(torch.tensor([90.0, 70, 90, 70])))


def test_anchors_lie_at_the_cells_of_the_map() -> None:
    (feature,) = own().features([IMAGE])
    boxes = own().score_anchors(feature).boxes
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).view(5, 6, 3, 2)
    assert centres[2, 3, 1].tolist() == [3 * 16, 2 * 16]
    assert {round(box[2] - box[0]) for box in boxes.tolist()} >= {32}


@pytest.mark.parametrize("ignore", [True, False])
def test_no_anchor_and_no_roi_on_a_difficult_object_or_in_a_crowd_trains(ignore: bool) -> None:
    detector = own().train()
    detector.ignore = ignore
    nn.init.zeros_(detector.rpn.head.bbox_pred.weight)  # proposals are anchors
    detector.rpn_sampler, detector.sampler = Watched(AllSampler()), Watched(AllSampler())
    boxes = [0.0, 0, 32, 32], [32.0, 16, 64, 48], [32.0, 40, 90, 70]
    step = detector.training_step([IMAGE], [NONE], [target(*boxes, difficult=[1], crowd=[2])])
    for watched in (detector.rpn_sampler, detector.sampler):
        (rois,), (chosen,) = watched.rois, watched.chosen
        on_difficult = torch.tensor([_iou(box, boxes[1]) >= 0.5 for box in rois.boxes.tolist()]) & (rois.labels <= 0)
        assert on_difficult.any()
        assert (rois.labels[on_difficult] == (-1 if ignore else 0)).all()
        assert bool(torch.isin(on_difficult.nonzero(), chosen).any()) != ignore
        assert (rois.labels > 0).any()
    assert all(loss.isfinite() for loss in step.losses.values())


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (sum(areas) - width * height)


def test_the_hardest_anchors_train() -> None:
    detector = own().train()
    watched = detector.rpn_sampler = Watched(HardSampler(12, nms_iou=None))
    step = detector.training_step([IMAGE, IMAGE], [NONE, NONE], [target(), target([5.0, 5, 40, 40])])
    for rois, losses, index in zip(watched.rois, watched.losses, watched.chosen, strict=True):
        assert sorted(index.tolist()) == sorted(losses.total.argsort(descending=True, stable=True)[:12].tolist())
        assert (rois.labels > 0).any()
        assert not losses.total.requires_grad
    means = [
        (losses.cls[i].mean(), losses.box[i].mean()) for losses, i in zip(watched.losses, watched.chosen, strict=True)
    ]
    wanted = torch.tensor(means).mean(dim=0).tolist()
    assert [step.losses[name].item() for name in ("loss_objectness", "loss_rpn_box")] == pytest.approx(wanted)


def test_the_loss_of_an_anchor_by_hand() -> None:
    anchors = Rois(torch.zeros(4, 4), torch.tensor([1, 0, -1, 1]), torch.zeros(4), torch.zeros(4, 4))
    objectness, deltas = torch.tensor([0.0, 0.0, 9.0, 2.0]), torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0.1, 0, 0, 0]])
    losses = anchor_losses(objectness, deltas, anchors)
    assert losses.cls.tolist() == pytest.approx([math.log(2), math.log(2), 0, math.log(1 + math.exp(-2))])
    assert losses.box.tolist() == pytest.approx([1 - 1 / 18, 0, 0, 0.5 * 0.1**2 * 9])


@pytest.mark.parametrize("sampler", [HardSampler(8), RandomSampler(8), AllSampler()])
def test_images_without_objects_train_as_background(sampler: Any) -> None:
    detector = own().train()
    detector.sampler = detector.rpn_sampler = sampler
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    step = detector.training_step([IMAGE, IMAGE], [NONE, NONE], [nothing, target()])
    torch.stack(list(step.losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in step.losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.rpn.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [own, lambda: torchvisions(SMALL)[1]], ids=["own", "torchvision"])
def test_boxes_and_losses_stay_in_float32_under_autocast(make: Callable[[], FasterRCNN], dtype: torch.dtype) -> None:
    detector = make().train()
    watched, anchors = Watched(HardSampler(8)), Watched(HardSampler(8))
    detector.sampler, detector.rpn_sampler = watched, anchors
    with torch.autocast("cpu", dtype):
        step = detector.training_step([IMAGE], [NONE], [target()])
    torch.stack(list(step.losses.values())).sum().backward()
    for each in (watched, anchors):
        fields = [getattr(each.rois[0], name) for name in ("boxes", "max_iou", "deltas")]
        assert {value.dtype for value in (*fields, each.losses[0].cls, each.losses[0].box)} == {torch.float32}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in step.losses.values())
    assert {p.grad.dtype for p in detector.parameters() if p.grad is not None} == {torch.float32}


def test_a_box_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match=r"boxes\[1\]: found \[5.0, 5.0, 5.0, 9.0\]; allowed: finite x1 < x2"):
        own().train().training_step([IMAGE], [NONE], [target([0.0, 0, 9, 9], [5.0, 5, 5, 9])])


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data")


def open_split(shapes: Path, split: str) -> AnnotatedImages:
    dataset = load_dataset([f"{shapes}@{split}"])
    return AnnotatedImages(dataset, open_proposals(dataset, (), None, 0, SILENT))


def start(folder: Path, recipe: Recipe, images: AnnotatedImages) -> Run:
    return Run.create(folder, recipe, Sources(("data",)), images.dataset, "fingerprint")


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With OHEM, at two scales."""
    images = open_split(shapes, "train")
    recipe = small_faster_recipe(*PRETRAINED, "iterations=70", "detector.image.train_scales=[60, 72]")
    run = start(tmp_path_factory.mktemp("trained") / "run", recipe, images)
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)
    return run


def require_learned(run: Run, shapes: Path) -> None:
    recipe, held_out = run.recipe(), open_split(shapes, "test")
    detector, spec, _ = load_detector(run.weights_file)
    assert spec == recipe.detector.without_source()
    assert measure(new_detector(recipe, held_out), recipe, held_out, workers=0) < 0.2
    assert measure(detector, recipe, held_out, workers=0) > 0.7
    first, *_, last = (record for record in run.log() if record["kind"] == "train")
    for name in ("loss_selected_rois", "loss_objectness"):
        assert last[name] < first[name]
    assert last["loss_selected_rois"] == last["loss_cls"] + last["loss_box"]
    assert first["loss_all_rois"] > 0
    assert 0 < mean_loss(score_images(detector, spec, held_out.dataset.records, held_out.proposals, workers=0)) < 1


def test_it_learns_with_the_hard(trained: Run, shapes: Path) -> None:
    require_learned(trained, shapes)


def test_and_with_the_random(shapes: Path, tmp_path: Path) -> None:
    images = open_split(shapes, "train")
    sampler = "{kind: random, bg_lo: 0.0, rois_per_image: 16}"
    recipe = small_faster_recipe(*PRETRAINED, f"sampler={sampler}", "iterations=70")
    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)
    require_learned(run, shapes)


@pytest.mark.parametrize("join", ["average", "pool", "nearest"])
def test_several_scales_and_boxes_moved_twice_detect_too(join: str, trained: Run, shapes: Path) -> None:
    changes = ["image.test_scales=[60,72]", "detection.refine=0.05", f"detection.join={join}"]
    found = ohem.evaluate(trained.folder, [f"{shapes}@test"], overrides=changes, workers=0)
    assert found.voc07.mean_ap > 0.6


@pytest.mark.parametrize(
    ("way", "rpn_sampler"), [("interrupted", "null"), ("killed", "{kind: hard, rois_per_image: 16}")]
)
def test_stopped_training_ends_in_the_same_weights(way: str, rpn_sampler: str, shapes: Path, tmp_path: Path) -> None:
    images = open_split(shapes, "train")
    recipe = small_faster_recipe(
        "sampler={kind: random, rois_per_image: 8}", f"rpn_sampler={rpn_sampler}", "iterations=8", "checkpoint_every=3"
    )
    whole = start(tmp_path / "whole", recipe, images)
    assert train(whole, recipe, new_detector(recipe, images), images, workers=0)

    def stop(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 5:
            if way == "killed":
                raise RuntimeError
            signal.raise_signal(signal.SIGINT)

    broken = start(tmp_path / "broken", recipe, images)
    if way == "killed":
        with pytest.raises(RuntimeError):
            train(broken, recipe, new_detector(recipe, images), images, workers=0, observe=stop)
    else:
        assert not train(broken, recipe, new_detector(recipe, images), images, workers=0, observe=stop)
    assert train(broken, recipe, new_detector(recipe, images), images, workers=0)
    assert broken.weights_file.read_bytes() == whole.weights_file.read_bytes()


METHODS = [
    ("sampler=all", "rpn_sampler=all"),
    ("rpn_sampler={kind: hard, rois_per_image: 16}",),
    ("rpn_sampler=all", "mining=loss_layer"),
    ("sampler=all", "loss=focal", "rpn_sampler=all"),
]


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_accumulated_images_give_the_batch_s_weights(method: tuple[str, ...], shapes: Path, tmp_path: Path) -> None:
    images, weights = open_split(shapes, "train"), []
    for accumulate in ("true", "false"):
        settings = ("iterations=2", f"accumulate={accumulate}", "optimizer.kind=sgd", "optimizer.lr=0.001")
        recipe = small_faster_recipe(*method, *settings)
        run = start(tmp_path / accumulate, recipe, images)
        assert train(run, recipe, new_detector(recipe, images), images, workers=0)
        weights.append(load_file(run.weights_file))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-6)


def test_an_average_of_the_weights_and_an_approximate_ranking_go_with_it(shapes: Path, tmp_path: Path) -> None:
    images = open_split(shapes, "train")
    recipe = small_faster_recipe("ema=0.9", "iterations=4", "log_every=1", "ranking=low_rank")
    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, new_detector(recipe, images), images, open_split(shapes, "test"), workers=0)
    *steps, validation = run.log()
    assert all(step["loss_all_rois"] > 0 for step in steps)
    averaged = load_detector(run.weights_file)[0]
    assert measure(averaged, recipe, open_split(shapes, "test"), workers=0) == pytest.approx(
        validation["voc07"], abs=1e-6
    )


def test_lower_precision_goes_with_it(shapes: Path, tmp_path: Path) -> None:
    """Few iterations: processors without bfloat16 take many times as long."""
    images = open_split(shapes, "train")
    recipe = small_faster_recipe("precision=bfloat16", "ema=0.9", "iterations=8", "log_every=4")
    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)
    first, last = (record["loss_objectness"] for record in run.log() if record["kind"] == "train")
    assert last < first
    assert torch.bfloat16 not in {tensor.dtype for tensor in load_file(run.weights_file).values()}


def test_one_of_torchvisions_trains_in_the_same_loop(shapes: Path, tmp_path: Path) -> None:
    images = open_split(shapes, "train")
    options = "weights: none, freeze: none, image: {shortest: 72, longest: 96}, rpn: {train_proposals: 50}"
    changes = [f"detector={{kind: {SMALL}, {options}}}", "iterations=4", "log_every=1", "optimizer.lr=0.0003"]
    recipe = load_recipe("lite0", changes)
    run = start(tmp_path / "run", recipe, images)
    assert train(run, recipe, new_detector(recipe, images), images, open_split(shapes, "test"), workers=0)
    detector, spec, _ = load_detector(run.weights_file)
    assert spec == recipe.detector
    assert isinstance(detector, FasterRCNN)
    losses = [record["loss_objectness"] for record in run.log() if record["kind"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("layer", "told"), [("rpn.head.cls_logits", "anchor 0 .*class loss"), ("head.cls_score", "RoI 0 .*class loss")]
)
def test_a_loss_that_is_no_number_leaves_its_step(layer: str, told: str, shapes: Path, tmp_path: Path) -> None:
    images, recipe = open_split(shapes, "train"), small_faster_recipe("iterations=4")
    detector = new_detector(recipe, images)

    def spoil(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 2:
            nn.init.constant_(detector.get_parameter(f"{layer}.bias"), torch.nan)

    run = start(tmp_path / "run", recipe, images)
    with pytest.raises(OhemError, match=rf"iteration 3: image train_\d+, {told}: found nan") as caught:
        train(run, recipe, detector, images, workers=0, observe=spoil)
    with pytest.raises(OhemError, match=told) as again:
        ohem.replay(run.failed_step_file(3))
    assert str(again.value).partition(", ")[2] in str(caught.value)


def test_what_it_proposes_may_be_another_in_use(shapes: Path) -> None:
    detector, images = own().eval(), open_split(shapes, "test")
    spec = small_faster_recipe("detector.backbone.weights=none").detector
    (feature,) = detector.features([IMAGE])
    settings = {"test_candidates": 20, "test_proposals": 3, "nms_iou": 0.5, "min_score": 0.1}
    other = override_spec(spec, [f"rpn.{name}={value}" for name, value in settings.items()])
    assert other.model_copy(update={"rpn": spec.rpn}) == spec
    records, proposals = images.dataset.records[:1], images.proposals
    for used, count in ((other, 3), (spec, 30)):
        run_detector(detector, used, records, proposals, device=None, workers=0, reporter=SILENT)
        assert len(detector.propose(feature, SIZE, NONE)) == count
        assert (detector.rpn.nms_thresh, detector.rpn.score_thresh) == (used.rpn.nms_iou, used.rpn.min_score)
        assert detector.rpn._pre_nms_top_n["testing"] == used.rpn.test_candidates


def test_what_it_has_learned_may_not() -> None:
    spec = small_faster_recipe().detector
    for name in ("train_proposals=5", "fg_iou=0.6", "anchor_sizes=[8]"):
        with pytest.raises(
            OhemError, match=rf"rpn\.{name[:6]}.*: found a setting of training; allowed: .* rpn\.min_score"
        ):
            override_spec(spec, [f"rpn.{name}"])
    with pytest.raises(
        OhemError, match=r"rpn\.min_score=0: found .*; allowed: detection\.\*, image\.\*, proposals\.\*$"
    ):
        override_spec(DetectorSpec(), ["rpn.min_score=0"])


# ------------------------------------------------------------------------------------------------------ files, weights


@pytest.mark.parametrize(
    "make", [own, lambda: torchvisions("fasterrcnn_resnet50_fpn_v2")[1]], ids=["own", "torchvision"]
)
def test_a_weights_file_rebuilds_the_detector(make: Callable[[], FasterRCNN], tmp_path: Path) -> None:
    detector = make().eval()
    spec: Any = small_faster_recipe().detector
    if detector.backbone.stride == 4:
        spec = TorchvisionSpec(kind="fasterrcnn_resnet50_fpn_v2")
    save_detector(tmp_path / "w.safetensors", detector, spec, ("a", "b", "c"))
    loaded, found, classes = load_detector(tmp_path / "w.safetensors")
    assert found == spec.without_source()
    assert classes == ("a", "b", "c")
    outputs = []
    with torch.inference_mode():
        for each in (detector, loaded):
            (feature,) = each.features([IMAGE])
            outputs.append((proposals := each.propose(feature, SIZE, NONE), *each.score_rois(feature, proposals, SIZE)))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_fine_tuning_takes_classes_over_by_name_and_the_proposal_network_with_them(tmp_path: Path) -> None:
    before, spec = own(seed=1), small_faster_recipe().detector
    save_detector(tmp_path / "w.safetensors", before, spec, ("a", "b", "c"))
    after = build_detector(spec, 2)
    assert start_from(after, ("c", "new"), tmp_path / "w.safetensors") == 1
    assert isinstance(after, FasterRCNN)
    for name, tensor in before.rpn.state_dict().items():
        assert torch.equal(after.rpn.state_dict()[name], tensor)
    torch.testing.assert_close(after.head.cls_score.weight[:2], before.head.cls_score.weight[[0, 3]])
    without = build_detector(DetectorSpec(backbone=spec.backbone, head=spec.head), 2)
    with pytest.raises(OhemError, match=r"w\.safetensors: layers"):
        start_from(without, ("c", "new"), tmp_path / "w.safetensors")


@pytest.mark.parametrize("setting", ["anchor_sizes=[48]", "anchor_ratios=[0.4, 1.0, 2.0]"])
def test_fine_tuning_needs_the_same_anchors_not_only_as_many(setting: str, tmp_path: Path) -> None:
    save_detector(tmp_path / "w.safetensors", own(), small_faster_recipe().detector, ("a", "b", "c"))
    other = build_detector(small_faster_recipe(f"detector.rpn.{setting}").detector, 3)
    assert other.state_dict().keys() == own().state_dict().keys()
    with pytest.raises(
        OhemError, match=r"w\.safetensors: detector\.rpn: found anchors of sizes .*; allowed: anchors of"
    ):
        start_from(other, ("a", "b", "c"), tmp_path / "w.safetensors")
