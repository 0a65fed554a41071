"""torchvision's training script as an example, with and without the line; the benchmark that compares the two."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader
from torchvision.models import detection

import ohem
from corruptions import make_coco

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def script(folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module(name)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("examples", "train_torchvision", monkeypatch)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    make_coco(tmp_path)
    return tmp_path


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_train=14,
        box_batch_size_per_image=8,
    )


def test_it_reads_what_pycocotools_reads_and_flips_boxes_with_their_image(example: ModuleType, coco: Path) -> None:
    oracle, data = COCO(str(coco / "instances.json")), example.CocoBoxes(coco / "instances.json", coco / "images")
    assert len(data) == 3
    flipped = set()
    for seed in range(6):
        for index, image_id in enumerate(oracle.getImgIds()):
            torch.manual_seed(seed)
            image, target = data[index]
            expected = oracle.loadAnns(oracle.getAnnIds(image_id, iscrowd=False))
            width = oracle.loadImgs(image_id)[0]["width"]
            torch.manual_seed(seed)
            flip = bool(torch.rand(()) < 0.5)
            flipped.add(flip)
            corners = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in expected)]
            boxes = [(width - x2, y1, width - x1, y2) if flip else (x1, y1, x2, y2) for x1, y1, x2, y2 in corners]
            assert target["boxes"].tolist() == [list(box) for box in boxes]
            names = {label: data.labels[category] for label, category in (("person", 7), ("dog", 3))}
            assert target["labels"].tolist() == [
                names[oracle.loadCats(one["category_id"])[0]["name"]] for one in expected
            ]
            assert target["boxes"].shape[1:] == (4,)
            assert (image.dtype, image.shape[0], image.shape[2]) == (torch.float32, 3, width)
            assert 0 <= image.min() < image.max() <= 1
    assert flipped == {True, False}


def test_the_learning_rate_warms_up_in_the_first_epoch_and_falls_after_the_second(
    example: ModuleType, coco: Path
) -> None:
    data = example.CocoBoxes(coco / "instances.json", coco / "images")
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    losses = list(example.train(small_model(), DataLoader(data, collate_fn=list), epochs=3, lr=0.01, lr_steps=[2]))
    hook.remove()
    assert len(losses) == 9
    assert rates == pytest.approx([1e-5, 0.005005, *[0.01] * 4, *[0.001] * 3])


def test_a_loss_that_is_no_number_ends_the_script(example: ModuleType, coco: Path) -> None:
    data, model = example.CocoBoxes(coco / "instances.json", coco / "images"), small_model()
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, float("nan"))
    with pytest.raises(SystemExit, match="loss: found nan; allowed: finite numbers"):
        next(example.train(model, DataLoader(data, collate_fn=list), epochs=1, lr=0.01, lr_steps=[1]))


@pytest.mark.parametrize("line", [[], ["--hard"]], ids=["without", "with"])
def test_the_script_trains_weights_that_torchvision_loads(
    example: ModuleType, coco: Path, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights, name = coco / "detector.pth", "fasterrcnn_mobilenet_v3_large_320_fpn"
    files = [str(coco / "instances.json"), str(coco / "images")]
    torch.manual_seed(0)
    example.main([*files, *line, "--model", name, "--epochs", "1", "--output", str(weights)])
    assert capsys.readouterr().out.startswith("0 loss_classifier ")
    small_model().load_state_dict(torch.load(weights, weights_only=True), strict=True)


def page(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "torchvision.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("mark", ["-", "+"], ids=["before", "after"])
def test_the_page_before_and_after_its_ten_lines(example: ModuleType, coco: Path, mark: str) -> None:
    """As it stands there, but with a small input and without a download."""
    (diff,) = page("diff")
    lines = diff.splitlines()
    assert 0 < sum(line.startswith(("+", "-")) for line in lines) <= 10
    code = "\n".join(line[1:] for line in lines if line[:1] in ("", " ", mark))
    small = code.replace('weights_backbone="DEFAULT"', "weights_backbone=None, min_size=64, max_size=96")
    assert small != code
    data = example.CocoBoxes(coco / "instances.json", coco / "images")
    names: dict[str, Any] = {
        "loader": DataLoader(data, batch_size=2, collate_fn=lambda batch: zip(*batch, strict=True))
    }
    exec(small, names)
    assert hasattr(names["model"].roi_heads, "mining") == (mark == "+")
    assert all(loss.isfinite() for loss in names["losses"].values())


def test_every_block_of_the_page_that_changes_a_model(example: ModuleType, coco: Path) -> None:
    blocks = [block for block in page("python") if block.startswith("ohem.")]
    data = example.CocoBoxes(coco / "instances.json", coco / "images")
    assert blocks
    for block in blocks:
        model = small_model()
        exec(block, {"model": model, "ohem": ohem})
        images, targets = zip(data[0], data[1], strict=True)
        assert all(loss.isfinite() for loss in model(images, targets).values())


def test_every_other_block_of_the_page(example: ModuleType, coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = example.CocoBoxes(coco / "instances.json", coco / "images")
    nothing = ohem.Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    names = {
        "model": small_model().eval(),
        "loader": [tuple(zip(data[i], strict=True)) for i in range(2)],
        "detections": nothing,
        "classes": ["cat", "dog"],
    }
    blocks = [block for block in page("python") if not block.startswith("ohem.")]
    for block in blocks:
        exec(block, {"ohem": ohem, **names})
    assert len(blocks) == 2
    assert 0 <= float(capsys.readouterr().out) <= 100


def test_the_line_is_all_that_differs(example: ModuleType) -> None:
    source = Path(example.__file__).read_text().splitlines()
    assert [line.strip() for line in source if "ohem." in line] == [
        "ohem.use_sampler(model, ohem.HardSampler(rois_per_image=128))"
    ]


def test_the_benchmark_compares_each_turn_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is three times as slow from the sixth turn on: medians of the turns' ratios do not see it."""
    benchmark = script("benchmarks", "torchvision_script", monkeypatch)
    pace = [1.0] * 5 + [3.0] * 15
    logs = {
        name: [{"seconds": factor * slow, "loss": float(turn)} for turn, slow in enumerate(pace)]
        for name, factor in (("without", 2.0), ("hardest 128", 5.0))
    }
    assert benchmark.summary(logs)["hardest 128"] == {
        "seconds a step, median": 15.0,
        "time / without, median of turns": 2.5,
        "loss, first ten steps": 4.5,
        "loss, last ten steps": 14.5,
    }
