"""A data set that can be learned in seconds: red squares, green discs and blue triangles on noise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from corruptions import voc_object, voc_xml
from ohem.data.dataset import DetectionDataset, Proposals
from ohem.data.sources import load_dataset
from ohem.recipes.recipe import Recipe, load_recipe
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import train
from ohem.training.run import Run, Sources

CLASSES = ("disc", "square", "triangle")
COLOURS = {"square": (220, 40, 40), "disc": (40, 200, 60), "triangle": (50, 80, 230)}
SIZE = (96, 72)


def make_shapes(folder: Path, train: int = 24, test: int = 12, seed: int = 0) -> Path:
    """Write a VOC folder with the splits train and test."""
    rng = np.random.default_rng(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, count in (("train", train), ("test", test)):
        stems = [f"{split}_{i:03d}" for i in range(count)]
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            _write_image(folder, stem, rng)
    return folder


def _write_image(folder: Path, stem: str, rng: np.random.Generator) -> None:
    picture = Image.fromarray(rng.integers(90, 170, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    pen = ImageDraw.Draw(picture)
    objects = ""
    for column in range(2):
        name = CLASSES[int(rng.integers(3))]
        side = int(rng.integers(24, 40))
        x, y = column * 48 + int(rng.integers(0, 48 - side + 1)), int(rng.integers(0, SIZE[1] - side + 1))
        corners = (x, y, x + side - 1, y + side - 1)
        if name == "square":
            pen.rectangle(corners, fill=COLOURS[name])
        elif name == "disc":
            pen.ellipse(corners, fill=COLOURS[name])
        else:
            pen.polygon([(x, corners[3]), (corners[2], corners[3]), (x + side // 2, y)], fill=COLOURS[name])
        objects += voc_object(name, (x + 1, y + 1, corners[2] + 1, corners[3] + 1))
    picture.save(folder / "JPEGImages" / f"{stem}.png")
    (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.png", SIZE, objects))


def random_proposals(dataset: DetectionDataset, count: int = 60, seed: int = 1) -> Proposals:
    """Boxes near the objects, and boxes anywhere."""
    rng = np.random.default_rng(seed)
    return {record.id: _boxes(record.boxes, count, rng) for record in dataset.records}


def _boxes(objects: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    near = objects[rng.integers(len(objects), size=count // 2)] + rng.normal(0, 5, (count // 2, 4))
    corner = rng.random((count, 2)) * (60, 40)
    anywhere = np.concatenate([corner, corner + 10 + rng.random((count, 2)) * 26], axis=1)
    boxes = np.concatenate([near, anywhere]).clip(0, (*SIZE, *SIZE))
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[(sides > 6).all(axis=1)][:count].astype(np.float32)


def open_shapes(folder: Path, split: str) -> tuple[DetectionDataset, Proposals]:
    """One split of :func:`make_shapes` with random proposals."""
    dataset = load_dataset([f"{folder}@{split}"])
    return dataset, random_proposals(dataset)


PRETRAINED = ("detector.backbone={name: tf_efficientnet_lite0, weights: imagenet, strides: [16], scales: [6.0]}",)
"""For what is to be learned in seconds."""


def small_recipe(*overrides: str) -> Recipe:
    """A small network of random weights, for the pictures as they are."""
    settings = (
        "detector.backbone={name: lcnet_035, weights: none, strides: [16], scales: [0.01]}",
        "detector.image.shortest=72",
        "detector.image.longest=96",
        "detector.head.channels=32",
        "detector.head.pool_size=3",
        "detector.head.fc=[64]",
        "sampler.rois_per_image=16",
        "schedule.warmup=5",
        "log_every=5",
        "checkpoint_every=5",
        "optimizer.backbone_lr_factor=0.1",
    )
    return load_recipe("lite0", [*settings, *overrides])


def whole_and_killed(folder: Path, recipe: Recipe, steps: int) -> tuple[Run, Run]:
    """Two trainings by a recipe on shapes: one in one go, one killed after so many steps and resumed."""
    images = AnnotatedImages(*open_shapes(make_shapes(folder / "data", train=4), "train"))
    runs = [
        Run.create(folder / name, recipe, Sources(("data",)), images.dataset, "fingerprint")
        for name in ("whole", "killed")
    ]

    def die(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == steps:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(runs[1], recipe, new_detector(recipe, images), images, workers=0, observe=die)
    for run in runs:
        train(run, recipe, new_detector(recipe, images), images, workers=0)
    return runs[0], runs[1]


def small_faster_recipe(*overrides: str) -> Recipe:
    """:func:`small_recipe` with a region proposal network in the place of proposals."""
    rpn = "detector.rpn={anchor_sizes: [32], train_proposals: 60, test_proposals: 30}"
    return small_recipe("detector.proposals={}", rpn, "sampler.rois_per_image=16", *overrides)
