"""A loss that is no number stops training at once and leaves its step behind, which fails again as it did."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ohem
from ohem.errors import OhemError
from ohem.losses import NonFiniteLossError
from ohem.models.fast_rcnn import FastRCNN
from ohem.recipes.recipe import Recipe
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import train
from ohem.training.run import Run, Sources
from shapes import make_shapes, open_shapes, small_recipe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    return AnnotatedImages(*open_shapes(make_shapes(tmp_path_factory.mktemp("shapes") / "data"), "train"))


def failed(folder: Path, recipe: Recipe, images: AnnotatedImages, layer: str, row: int) -> tuple[Path, str, FastRCNN]:
    """Train until one bias of the head is infinite, after three steps; the file, the error and the detector."""
    detector = new_detector(recipe, images)

    def spoil(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 3:
            nn.init.constant_(getattr(detector.head, layer).bias[row : row + 1], torch.inf)

    run = Run.create(folder, recipe, Sources(("data",)), images.dataset, "fingerprint")
    with pytest.raises(OhemError) as caught:
        train(run, recipe, detector, images, workers=0, observe=spoil)
    assert not run.weights_file.exists()
    return run.failed_step_file(4), str(caught.value), detector


METHODS = [
    ("sampler.rois_per_image=16",),
    ("sampler={kind: random, rois_per_image: 16}",),
    ("sampler=all", "loss=focal"),
    ("sampler.rois_per_image=16", "mining=loss_layer"),
    ("sampler={kind: random, rois_per_image: 16}", "precision=bfloat16", "ema=0.9"),
]


CLASS, BOX = ("cls_score", 2, "class"), ("bbox_pred", 9, "box")


@pytest.mark.parametrize(
    ("method", "layer", "row", "term"),
    [*((method, *CLASS) for method in METHODS), *((method, *BOX) for method in METHODS[:2])],
)
def test_it_is_named_and_fails_again_in_the_same_way(
    method: tuple[str, ...], layer: str, row: int, term: str, images: AnnotatedImages, tmp_path: Path
) -> None:
    """With the same images, mirrored or not, the same choice of RoIs and the same units dropped."""
    recipe = small_recipe(*method, "detector.head.dropout=0.5", "iterations=9")
    file, told, detector = failed(tmp_path / "run", recipe, images, layer, row)
    found = re.fullmatch(
        rf"iteration 4: image (\w+), (RoI \d+ \[.*\]: {term} loss: found (?:inf|nan); allowed: finite numbers);"
        rf" to run this step again: ohem\.replay\('{re.escape(str(file))}'\)",
        told,
    )
    assert found
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    torch.manual_seed(99)  # it takes the run's random numbers, whatever is drawn elsewhere
    with pytest.raises(NonFiniteLossError) as again:
        ohem.replay(file)
    assert str(again.value).endswith(f"of the batch, {found[2]}")
    assert again.value.__notes__ == [f"image id: {found[1]}"]
    kept = torch.load(file, weights_only=True)["weights"]
    assert all(torch.equal(kept[key], before[key]) for key in before)  # nothing was trained on it


def test_with_accumulated_images_the_one_that_failed_is_kept_and_named(images: AnnotatedImages, tmp_path: Path) -> None:
    """An infinite box of one class fails in the first image that has an object of it."""
    recipe = small_recipe("sampler=all", "accumulate=true", "images_per_step=3", "iterations=9")
    positions = set()
    for label in (1, 2, 3):
        file, told, _ = failed(tmp_path / str(label), recipe, images, "bbox_pred", 4 * label)
        state = torch.load(file, weights_only=True)
        (sample,) = state["batch"]
        assert f"image {sample['id']}, RoI" in told
        assert label in sample["target"]["labels"]
        positions.add(state["position"])
        with pytest.raises(NonFiniteLossError, match="image 0 of the batch"):
            ohem.replay(file)
    assert positions - {0}


def test_a_step_that_was_mended_is_returned(images: AnnotatedImages, tmp_path: Path) -> None:
    file, _, _ = failed(tmp_path / "run", small_recipe("iterations=9"), images, "cls_score", 0)
    state = torch.load(file, weights_only=True)
    state["weights"]["head.cls_score.bias"][0] = 0
    torch.save(state, file)
    step = ohem.replay(file)
    assert all(loss.isfinite() for loss in step.losses.values())
    assert [len(index) for index in step.selected] == [16, 16]


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "failed-step-0000001.pt"
    file.write_bytes(b"no such thing")
    with pytest.raises(OhemError, match=r"0001\.pt: found no readable failed step"):
        ohem.replay(file)
    torch.save({"format": 2}, file)
    with pytest.raises(OhemError, match=r"format: found 2; allowed: ohem-failed-step-1"):
        ohem.replay(file)
