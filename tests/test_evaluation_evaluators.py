"""Evaluators fed batch by batch: the numbers of pycocotools and of `ohem evaluate`, whatever the batches."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import ohem
from ohem.errors import OhemError
from ohem.evaluation.coco import COCO_NUMBERS

CLASSES = ("cat", "dog", "hen")


def batch(seed: int, images: int = 12) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Objects of all sizes, some of them crowds; detections near them and elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    preds, target = [], []
    for index in range(images):
        count = index % 4
        corner, size = torch.rand((count, 2), generator=rng) * 300, 5 + torch.rand((count, 2), generator=rng) * 150
        boxes = torch.cat([corner, corner + size], dim=1).round()
        labels = torch.randint(1, 4, (count,), generator=rng)
        crowd = (torch.rand(count, generator=rng) < 0.2).long()
        target.append({"boxes": boxes, "labels": labels, "iscrowd": crowd})
        near = (boxes + torch.randn(boxes.shape, generator=rng) * 4).round()
        far = torch.tensor([[1.0, 2, 40, 60]])
        found = torch.cat([near, far, near + 1])
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        found_labels = torch.cat([labels, torch.tensor([2]), labels])
        preds.append({"boxes": found, "scores": torch.rand(len(found), generator=rng), "labels": found_labels})
    return preds, target


def pycocotools_stats(preds: list[dict[str, torch.Tensor]], target: list[dict[str, torch.Tensor]]) -> list[float]:
    def rows(entries: list[dict[str, torch.Tensor]]) -> list[dict[str, object]]:
        out = []
        for image_id, entry in enumerate(entries):
            for row, (x1, y1, x2, y2) in enumerate(entry["boxes"].double().tolist()):
                one = {
                    "image_id": image_id,
                    "category_id": int(entry["labels"][row]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                if "scores" in entry:
                    one["score"] = float(entry["scores"][row])
                else:
                    one |= {"iscrowd": int(entry["iscrowd"][row]), "area": (x2 - x1) * (y2 - y1)}
                out.append({"id": len(out) + 1, **one})
        return out

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image_id} for image_id in range(len(target))],
            "categories": [{"id": label} for label in range(1, len(CLASSES) + 1)],
            "annotations": rows(target),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(preds)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else float(value) for value in evaluation.stats]


def test_cocos_numbers_are_those_of_pycocotools_in_any_batches() -> None:
    preds, target = batch(0)
    evaluator = ohem.CocoEvaluator(CLASSES)
    for start in range(0, len(preds), 5):
        evaluator.update(preds[start : start + 5], target[start : start + 5])
    numbers = evaluator.compute().numbers
    assert 0.05 < numbers["AP"] < 0.95
    np.testing.assert_allclose([numbers[name] for name in COCO_NUMBERS], pycocotools_stats(preds, target), atol=1e-6)


def test_half_precision_of_either_kind_is_taken() -> None:
    preds, target = batch(0)
    for kind in (torch.float16, torch.bfloat16):
        narrow = [
            {key: value.to(kind) if value.is_floating_point() else value for key, value in p.items()} for p in preds
        ]
        wide = [
            {key: value.float() if value.is_floating_point() else value for key, value in p.items()} for p in narrow
        ]
        found = []
        for given in (narrow, wide):
            evaluator = ohem.CocoEvaluator(CLASSES)
            evaluator.update(given, target)
            found.append(evaluator.compute().numbers)
        assert found[0] == found[1]


def test_arrays_and_tensors_are_the_same_and_reset_forgets() -> None:
    preds, target = batch(1)
    evaluator = ohem.VocEvaluator(CLASSES, method="area")
    evaluator.update(preds, target)
    whole = evaluator.compute()
    evaluator.reset()
    with pytest.raises(ohem.OhemError, match="no image"):
        evaluator.compute()
    as_arrays = [[{key: value.numpy() for key, value in entry.items()} for entry in side] for side in (preds, target)]
    evaluator.update(*as_arrays)
    assert evaluator.compute().ap.tolist() == whole.ap.tolist()
    assert 0 < whole.mean_ap < 1


def test_vocs_number_by_hand_with_a_difficult_object() -> None:
    evaluator = ohem.VocEvaluator(["cat"], method="area")
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = {"boxes": boxes, "scores": np.array([0.9, 0.8]), "labels": np.array([1, 1])}
    evaluator.update([found], [{"boxes": boxes[1:], "labels": np.array([1])}])
    assert evaluator.compute().mean_ap == 0.5  # the better score is a false positive
    evaluator.reset()
    evaluator.update([found], [{"boxes": boxes, "labels": np.array([1, 1]), "difficult": np.array([1, 0])}])
    assert evaluator.compute().mean_ap == 1.0


ONE = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        ([ONE], [], "found 1 and 0 images"),
        ([{"boxes": ONE["boxes"], "labels": ONE["labels"]}], [ONE], r"preds\[0\]: found no scores"),
        ([ONE], [{**ONE, "labels": torch.tensor([0])}], r"target\[0\]\.labels: found 0; allowed: 1 to 3"),
        ([ONE], [{**ONE, "labels": torch.tensor([1.0])}], r"target\[0\]\.labels: found float32"),
        ([{**ONE, "labels": torch.tensor([4])}], [ONE], "labels outside 1 to 3"),
        ([{**ONE, "scores": torch.tensor([1.5])}], [ONE], "scores outside 0 to 1"),
        ([{**ONE, "scores": torch.tensor([0.5, 0.5])}], [ONE], r"preds\[0\]\.scores: found the shape \(2,\)"),
        ([ONE], [{**ONE, "boxes": torch.tensor([0.0, 0, 9, 9])}], r"target\[0\]\.boxes: found the shape \(4,\)"),
        ([ONE], [{**ONE, "boxes": torch.tensor([[9.0, 0, 0, 9]])}], r"target\[0\]\.boxes: found a box not finite or"),
    ],
)
def test_a_bad_batch_is_refused_and_leaves_nothing_behind(preds: list, target: list, message: str) -> None:
    evaluator = ohem.CocoEvaluator(CLASSES)
    with pytest.raises(ohem.OhemError, match=message):
        evaluator.update(preds, target)
    with pytest.raises(ohem.OhemError, match="no image"):
        evaluator.compute()


def test_a_text_is_no_list_of_classes() -> None:
    with pytest.raises(OhemError, match="classes: found the text 'cat'; allowed: "):
        ohem.CocoEvaluator("cat")
