"""Recipes: typed, overridable field by field, written out whole, and refused when anything is not known."""

from pathlib import Path

import pytest
import yaml

from ohem.errors import OhemError
from ohem.recipes.files import built_in_recipes
from ohem.recipes.recipe import Recipe, ScheduleSpec, dump_recipe, load_recipe
from ohem.reweighting import FocalLoss, GradientHarmonized, LogLoss
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.samplers import AllSampler, HardSampler, RandomSampler


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_built_in_recipe_is_whole_and_comes_back_from_its_own_text(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe


def test_the_paper_s_recipes_have_the_paper_s_numbers() -> None:
    for name, pool_size, fc in (("vgg16", 7, (4096, 4096)), ("vgg_cnn_m_1024", 6, (4096, 1024))):
        recipe = load_recipe(name)
        assert recipe.sampler == HardSampler(rois_per_image=64, nms_iou=0.7)
        assert recipe.images_per_step * recipe.sampler.rois_per_image == 128
        assert (recipe.iterations, recipe.schedule.step_every, recipe.schedule.gamma) == (80_000, 30_000, 0.1)
        optimizer = recipe.optimizer
        assert (optimizer.kind, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 1e-3, 0.9, 5e-4)
        detector = recipe.detector
        assert (detector.image.shortest, detector.image.longest) == (600, 1000)
        assert (detector.head.pool, detector.head.pool_size, detector.head.fc) == ("max", pool_size, fc)
        assert (detector.head.dropout, detector.fg_iou, detector.detection.nms_iou) == (0.5, 0.5, 0.3)
        assert not detector.ignore
    assert load_recipe("vgg16", ["sampler=random"]).sampler == RandomSampler(64, 0.25, 0.1)


def test_samplers_are_values_of_one_setting() -> None:
    assert load_recipe("lite0", ["sampler=hard"]).sampler == HardSampler()
    assert load_recipe("lite0", ["sampler=random"]).sampler == RandomSampler()
    assert load_recipe("lite0", ["sampler=all"]).sampler == AllSampler()
    assert load_recipe("lite0", ["sampler={kind: random, bg_lo: 0.0}"]).sampler == RandomSampler(bg_lo=0.0)
    assert load_recipe("lite0", ["sampler=hard", "sampler.nms_iou=null"]).sampler == HardSampler(nms_iou=None)
    assert load_recipe("lite0", ["sampler=iou_balanced", "sampler.bins=5"]).sampler == IoUBalancedSampler(bins=5)
    assert load_recipe("lite0", ["sampler={kind: rank, pressure: 10}"]).sampler == RankSampler(pressure=10)
    assert load_recipe("lite0", ["sampler={kind: stratified, strata: 2}"]).sampler == StratifiedSampler(strata=2)
    assert load_recipe("lite0", ["sampler=quota"]).sampler == QuotaSampler()


def test_losses_are_values_of_another_setting() -> None:
    assert load_recipe("lite0").loss == LogLoss()
    assert load_recipe("lite0", ["loss=log"]).loss == LogLoss()
    assert load_recipe("lite0", ["loss=focal"]).loss == FocalLoss()
    assert load_recipe("lite0", ["loss={kind: focal, gamma: 1, alpha: null}"]).loss == FocalLoss(1.0, None)
    assert load_recipe("lite0", ["loss=ghm", "loss.bins=10"]).loss == GradientHarmonized(10)


@pytest.mark.parametrize("sampler", ["hard", "random", "all", "iou_balanced", "rank", "stratified", "quota"])
@pytest.mark.parametrize("loss", ["log", "focal", "ghm"])
@pytest.mark.parametrize("mining", ["read_only", "loss_layer"])
def test_every_method_comes_back_from_its_own_text(sampler: str, loss: str, mining: str, tmp_path: Path) -> None:
    recipe = load_recipe("lite0", [f"sampler={sampler}", f"loss={loss}", f"mining={mining}"])
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe
    written = yaml.safe_load(dump_recipe(recipe))
    assert (written["sampler"]["kind"], written["loss"]["kind"], written["mining"]) == (sampler, loss, mining)


def test_recipes_from_before_there_were_losses_and_forms_of_mining_still_load(tmp_path: Path) -> None:
    recipe = load_recipe("vgg16", ["seed=3"])
    values = yaml.safe_load(dump_recipe(recipe))
    del values["loss"], values["mining"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(str(tmp_path / "old.yaml")) == recipe


def test_every_field_can_be_set_on_the_command_line() -> None:
    recipe = load_recipe(
        "lite0", ["optimizer.lr=0.5", "detector.head.fc=[8, 8]", "data.classes=[a, b]", "seed=3", "accumulate=true"]
    )
    assert (recipe.optimizer.lr, recipe.detector.head.fc, recipe.data.classes) == (0.5, (8, 8), ("a", "b"))
    assert (recipe.seed, recipe.accumulate) == (3, True)


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["iteration=5"], ["lite0: iteration: found an unknown field (did you mean iterations?); allowed: detector, "]),
        (["detector.head.fc=[]"], ["lite0: detector.head.fc: found []; allowed: "]),
        (["detector.head.fcs=[8]"], ["lite0: detector.head.fcs: found an unknown field (did you mean fc?); allowed: pool, "]),
        (["iterations=0"], ["lite0: iterations: found 0; allowed: greater than 0"]),
        (["iterations=many", "seed=-1"], ["lite0: iterations: found 'many'; ", "lite0: seed: found -1; "]),
        (["detector.head.pool=mean"], ["lite0: detector.head.pool: found 'mean'; allowed: 'max' or 'align'"]),
        (["sampler=hard", "sampler.cap=batch", "accumulate=true"], ["lite0: accumulate: found true; allowed with"]),
        (["sampler=5"], ["lite0: sampler.kind: found None; allowed: hard, random, all, iou_balanced, rank, stratified, quota"]),
        (["sampler={kind: hard, rois_per_image: 0}"], ["lite0: sampler.rois_per_image: found 0; allowed: 1 or more"]),
        (["sampler={kind: hard, nms_iou: 7}"], ["lite0: sampler.nms_iou: found 7.0; allowed: 0 to 1"]),
        (["sampler={kind: stratified, nms_iou: -1}"], ["lite0: sampler.nms_iou: found -1.0; allowed: 0 to 1"]),
        (["sampler={kind: random, bg_lo: 10}"], ["lite0: sampler.bg_lo: found 10.0; allowed: 0 to 1"]),
        (["sampler={kind: rank, pressure: high}"], ["lite0: sampler.pressure: found 'high'; "]),
        (["sampler={kind: rank, presure: 5}"], ["lite0: sampler.presure: found an unknown field (did you mean pressure?); allowed for rank: rois_per_image, "]),
        (["loss=hinge"], ["lite0: loss.kind: found 'hinge'; allowed: log, focal, ghm"]),
        (["loss={kind: log, gamma: 2}"], ["lite0: loss.gamma: found an unknown field; allowed for log: none"]),
        (["loss={kind: focal, gamma: -1}"], ["lite0: loss.gamma: found -1.0; allowed: 0 or more"]),
        (["precision=half"], ["lite0: precision: found 'half'; allowed: 'float32', 'bfloat16' or 'float16'"]),
        (["ema=1"], ["lite0: ema: found 1; allowed: "]),
        (["mining=offline"], ["lite0: mining: found 'offline'; allowed: 'read_only' or 'loss_layer'"]),
        (["sampler=hard", "sampler.cap=batch", "loss=focal"], ["lite0: loss: found focal; allowed with sampler.cap 'batch': log"]),
        (["seed.x=1"], ["seed.x: found a field inside seed"]),
        (["optimizer.lr=[1"], ["optimizer.lr: found '[1'; allowed: a YAML value"]),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_said_in_one_line_each(overrides: list[str], lines: list[str]) -> None:
    base = ["seed=0"] if overrides != ["seed.x=1"] else ["seed=4"]
    with pytest.raises(OhemError) as caught:
        load_recipe("lite0", [*base, *overrides])
    told = str(caught.value).splitlines()
    assert len(told) == len(lines)
    for line, start in zip(told, lines, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("text", ["- a list", "a: [", "a: !!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(OhemError, match=r"bad\.yaml: found "):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_the_step_schedule_is_the_paper_s() -> None:
    schedule = ScheduleSpec(kind="step", step_every=30_000, gamma=0.1)
    factors = [schedule.factor(i, 80_000) for i in (0, 29_999, 30_000, 59_999, 60_000, 79_999)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_rises_from_a_tenth_and_cosine_falls_to_nothing() -> None:
    schedule = ScheduleSpec(kind="cosine", warmup=10)
    assert schedule.factor(0, 1000) == pytest.approx(0.1)
    assert schedule.factor(10, 1000) == pytest.approx(1, abs=1e-3)
    assert schedule.factor(500, 1000) == pytest.approx(0.5)
    assert schedule.factor(999, 1000) < 1e-5


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 1  # type: ignore[misc]


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: lite0\noptimizer: {lr: 0.5}\nsampler: {kind: hard, nms_iou: 0.3}\n")
    (tmp_path / "child.yaml").write_text("base: mine.yaml\nseed: 7\n")
    lite0, child = load_recipe("lite0"), load_recipe(str(tmp_path / "child.yaml"))
    optimizer = lite0.optimizer.model_copy(update={"lr": 0.5})
    assert child == lite0.model_copy(update={"optimizer": optimizer, "sampler": HardSampler(nms_iou=0.3), "seed": 7})


def test_a_part_of_another_kind_replaces_the_base_s(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: vgg16\nsampler: {kind: random, bg_lo: 0.0}\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).sampler == RandomSampler(bg_lo=0.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [("base: mine.yaml", "circle"), ("base: [vgg16]", "name of a recipe"), ("base: vgg17", "did you mean vgg16")],
)
def test_bases_that_cannot_be(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(OhemError, match=says):
        load_recipe(str(tmp_path / "mine.yaml"))


PAPER = [name for name in built_in_recipes() if name.startswith("paper/")]


def test_the_paper_s_rows_have_their_batch_and_schedule() -> None:
    for name in PAPER:
        recipe = load_recipe(name)
        batch = recipe.images_per_step * recipe.sampler.rois_per_image  # type: ignore[attr-defined]
        assert batch == (2048 if "_all" in name else 128), name
        assert recipe.accumulate == ("vgg16" in name)
        assert recipe.images_per_step == (1 if "_n1" in name else 2)
        lr = {True: 0.004, False: 0.003}["vggm" in name] if "_all" in name else 0.001
        assert recipe.optimizer.lr == lr
        assert recipe.optimizer.bias_lr_factor == 2
        scales = (480, 576, 688, 864, 900) if name.endswith("_m") else ()
        assert recipe.detector.image.train_scales == scales
        assert recipe.detector.image.longest == 1000
        data = name.removeprefix("paper/").split("_")[0]
        steps = {"voc07": (80, 30), "voc12": (80, 30), "voc0712": (200, 40), "voc07pp12": (200, 40), "coco": (240, 160)}
        if "official" not in name and "bootstrap" not in name:
            assert (recipe.iterations // 1000, recipe.schedule.step_every // 1000) == steps[data], name


def test_a_detector_goes_by_the_name_of_a_built_in_recipe_or_of_torchvision_s(tmp_path: Path) -> None:
    lite0, faster = load_recipe("lite0"), load_recipe("fasterrcnn_lite0")
    assert load_recipe("lite0", ["detector=fasterrcnn_lite0"]).detector == faster.detector
    assert Recipe(detector="fasterrcnn_lite0").detector == faster.detector  # type: ignore[arg-type]
    assert load_recipe("fasterrcnn_lite0", ["detector=lite0"]).detector == lite0.detector
    smaller = load_recipe("lite0", ["detector=fasterrcnn_lite0", "detector.image.shortest=96"]).detector
    assert smaller.image == faster.detector.image.model_copy(update={"shortest": 96})
    assert smaller.rpn == faster.detector.rpn
    (tmp_path / "mine.yaml").write_text(
        "base: lite0\ndetector: {kind: fasterrcnn_resnet50_fpn, rpn: {min_score: 0.1}}\n"
    )
    (tmp_path / "more.yaml").write_text("base: mine.yaml\ndetector: {image: {shortest: 400}}\n")
    theirs = load_recipe(str(tmp_path / "more.yaml"))
    assert theirs.detector.kind == "fasterrcnn_resnet50_fpn"
    assert (theirs.detector.image.shortest, theirs.detector.image.longest) == (400, 1333)
    assert (theirs.detector.rpn.min_score, theirs.detector.rpn.train_proposals) == (0.1, 2000)
    (tmp_path / "copy.yaml").write_text(dump_recipe(theirs))
    assert load_recipe(str(tmp_path / "copy.yaml")) == theirs


def test_settings_that_a_detector_has_not_are_refused() -> None:
    theirs, faster = ["detector=fasterrcnn_resnet50_fpn"], ["detector=fasterrcnn_lite0"]
    for overrides, told in (
        (
            ["detector=maskrcnn_resnet50_fpn"],
            "detector.kind: found 'maskrcnn_resnet50_fpn'; allowed: fasterrcnn_.*masks",
        ),
        (
            ["detector=fasterrcnn_resnet5"],
            "detector.kind: found 'fasterrcnn_resnet5' .did you mean fasterrcnn_resnet50_fpn.*built-in recipe",
        ),
        ([*theirs, "detector.head.fc=[64]"], "detector.head: found an unknown field; allowed: kind, weights, freeze"),
        (
            [*theirs, "detector.rpn.anchor_sizes=[8]"],
            "detector.rpn.anchor_sizes: found an unknown field; allowed: train_",
        ),
        ([*theirs, "detector.freeze=half"], "detector.freeze: found 'half'; allowed: 'early'"),
        ([*theirs, "ranking=low_rank"], "ranking: found low_rank; allowed for torchvision's detectors: exact"),
        ([*faster, "detector.rpn.anchors=[8]"], r"detector.rpn.anchors: found an unknown field \(did you mean anchor_"),
        ([*faster, "detector.proposals.mode=quality"], "detector.proposals: found settings; allowed with rpn"),
        ([*faster, "detector.delta_stats=empirical"], "detector.delta_stats: found empirical; allowed with rpn"),
        ([*faster, "detector.rpn.bg_iou=0.8"], "detector.rpn.bg_iou: found 0.8; allowed: at most fg_iou, 0.7"),
        ([*faster, "rpn_sampler={kind: hard, cap: batch}"], "rpn_sampler.cap: found batch; allowed: image"),
        (["rpn_sampler=hard"], "rpn_sampler: found hard; allowed for a detector without region proposal network: null"),
        (["detector.backbone.nam=x"], r"detector.backbone.nam: found an unknown field \(did you mean name\?\)"),
    ):
        with pytest.raises(OhemError, match=told):
            load_recipe("lite0", overrides)


@pytest.mark.parametrize("field", ["shortest=330", "train_scales=[320, 330]", "test_scales=[330]"])
def test_a_shortest_side_beyond_the_longest_would_do_nothing(field: str) -> None:
    load_recipe("lite0", [f"detector.image.{field.replace('330', '320')}"])
    with pytest.raises(OhemError, match=rf"{field.split('=')[0]}: found 330; allowed: at most 320"):
        load_recipe("lite0", [f"detector.image.{field}"])


def test_a_single_override_is_not_its_letters() -> None:
    assert load_recipe("lite0", "sampler=random") == load_recipe("lite0", ["sampler=random"])


def test_options_without_a_kind_are_those_of_the_default(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("iterations: 4\n")
    assert load_recipe(str(tmp_path / "own.yaml"), ["sampler.nms_iou=0.5"]).sampler == HardSampler(nms_iou=0.5)
