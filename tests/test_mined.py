"""What the log tells of the RoIs that trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ohem.rois import Rois
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import train
from ohem.training.mined import Mined
from ohem.training.run import Run, Sources
from shapes import make_shapes, open_shapes, small_recipe

CPU = torch.device("cpu")


def rois(*rows: tuple[float, int, float]) -> Rois:
    """Squares of a side, with a label and an overlap."""
    boxes = torch.tensor([[0, 0, side, side] for side, _, _ in rows], dtype=torch.float32)
    labels, iou = torch.tensor([label for _, label, _ in rows]), torch.tensor([iou for _, _, iou in rows])
    return Rois(boxes, labels, iou, torch.zeros(len(rows), 4))


def test_the_chosen_are_counted_by_label_overlap_and_size_and_followed_images_are_listed() -> None:
    mined = Mined(2, followed=["b"])
    first = rois((20, 0, 0.0), (32, 2, 0.55), (500, 0, 0.49), (96, 1, 1.0))
    second = rois((10, 0, 0.3), (97, 2, 0.9))
    mined.add(6, ["a", "b"], [first, second], [torch.tensor([3, 1, 0]), torch.tensor([1])])
    mined.add(8, ["b"], [second], [torch.tensor([1, 0])])
    assert mined.close(CPU) == {
        "labels": [2, 1, 3],
        "iou": [1, 0, 0, 1, 0, 1, 0, 0, 0, 3],
        "sizes": [3, 1, 2],
        "followed": [["b", [1]], ["b", [0, 1]]],
    }
    assert mined.close(CPU) == {"labels": [0, 0, 0], "iou": [0] * 10, "sizes": [0, 0, 0], "followed": []}


def test_each_window_of_the_log_holds_as_many_as_trained(tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(make_shapes(tmp_path / "data", train=6, test=1), "train"))
    recipe = small_recipe("iterations=8", "log_every=3")
    run = Run.create(tmp_path / "run", recipe, Sources(("data",)), images.dataset, "fingerprint")
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)
    records: list[Mapping[str, Any]] = run.log()
    for record, steps in zip(records, (3, 3, 2), strict=True):
        mined = record["mined"]
        trained = 2 * steps * record["selected_per_image"]
        assert [sum(mined[name]) for name in ("labels", "iou", "sizes")] == [trained] * 3
        assert sum(len(rows) for _, rows in mined["followed"]) == trained
        assert 1 - mined["labels"][0] / trained == record["foreground_share"]
    names = {record.id for record in images.dataset.records}
    assert {image for record in records for image, _ in record["mined"]["followed"]} == names
