"""What a sampler chose, in counts small enough for the log."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_area

from ohem.data.dataset import ImageId
from ohem.rois import Rois
from ohem.training.processes import ALONE, Processes

FOLLOWED = 100
"""Images whose chosen RoIs are logged one by one: enough to see whether they come back, few enough for any log."""

MOST_ROWS = 512
"""An image that more RoIs train on is not listed: the sampler hardly chose."""

SIDES = (32, 96)
"""Where COCO's small, medium and large objects part: the square roots of their areas, in pixels."""


class Mined:
    """Counts of the RoIs that trained, since the last record.

    Args:
        classes: how many, background not among them.
        followed: the images whose chosen RoIs are listed. A RoI is told by its row: the image's proposals in their
            order, then its annotated objects, which is the same each time an image comes.
    """

    def __init__(self, classes: int, followed: Collection[ImageId] = ()) -> None:
        self.classes, self.followed = classes, frozenset(followed)
        self._clear()

    def _clear(self) -> None:
        self.labels = torch.zeros(self.classes + 1, dtype=torch.int64)
        self.iou = torch.zeros(10, dtype=torch.int64)
        self.sizes = torch.zeros(len(SIDES) + 1, dtype=torch.int64)
        self.chosen: dict[tuple[int, ImageId], list[int]] = {}

    def add(self, first: int, images: Sequence[ImageId], rois: Sequence[Rois], selected: Sequence[Tensor]) -> None:
        """One forward pass; ``first`` is the position of its first image in the whole training."""
        for position, (image, every, index) in enumerate(zip(images, rois, selected, strict=True), start=first):
            chosen = every[index]
            self.labels += _count(chosen.labels, self.classes + 1)
            self.iou += _count((chosen.max_iou * 10).long().clamp(max=9), 10)
            bounds = chosen.boxes.new_tensor([side**2 for side in SIDES])
            self.sizes += _count(torch.bucketize(box_area(chosen.boxes), bounds), len(SIDES) + 1)
            if image in self.followed and len(index) <= MOST_ROWS:
                self.chosen[position, image] = sorted(index.tolist())

    def close(self, device: torch.device, processes: Processes = ALONE) -> dict[str, Any]:
        """The counts since the last call, over all processes.

        Returns:
            ``labels`` (background first), ``iou`` (with the best annotated box, in tenths) and ``sizes`` (small,
            medium, large, in pixels of the network's input), and ``followed``: image id and rows of the RoIs that
            trained, each time a followed image came.
        """
        parts = {"labels": self.labels, "iou": self.iou, "sizes": self.sizes}
        counts = {name: [int(n) for n in processes.sum(part.tolist(), device)] for name, part in parts.items()}
        followed = [[image, rows] for (_, image), rows in sorted(processes.gather(self.chosen).items(), key=_position)]
        self._clear()
        return {**counts, "followed": followed}


def _position(item: tuple[tuple[int, ImageId], list[int]]) -> int:
    return item[0][0]


def _count(values: Tensor, length: int) -> Tensor:
    return torch.bincount(values, minlength=length).cpu()
