"""Bootstrapping: the working set is all foreground and the frozen detector's false positives, and it only grows."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import ohem
from ohem.bootstrapping import harvest, is_hard
from ohem.data.dataset import ImageRecord
from ohem.errors import OhemError
from ohem.losses import RoiLosses
from ohem.mining import ScoredImage, score_images
from ohem.models.weights import load_detector
from ohem.opening import SILENT, open_dataset, open_proposals
from ohem.proposals.imports import load_coco_proposals
from ohem.recipes.recipe import load_recipe
from ohem.rois import Rois
from ohem.training.run import Run
from shapes import make_shapes
from test_studies import SMALL


def test_what_is_hard_by_hand() -> None:
    none = np.zeros(0)
    record = ImageRecord("a", Path("a"), 9, 9, none.reshape(0, 4), none.astype(int), none > 0, none > 0, none)
    labels = torch.tensor([1, 1, 0, 0, 0, -1])
    probability = torch.tensor([0.99, 0.01, 0.9, 0.51, 0.49, 0.01])  # of the label
    rois = Rois(torch.zeros(6, 4), labels, torch.zeros(6), torch.zeros(6, 4))
    image = ScoredImage(record, rois, RoiLosses(-probability.log(), torch.zeros(6)))
    assert is_hard(image).tolist() == [True, True, False, False, True, False]
    assert is_hard(image, 0.95).tolist() == [True, True, True, True, True, False]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bootstrapping")
    shapes = make_shapes(folder / "data", train=6, test=1)
    (folder / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        recipe = load_recipe(str(folder / "small.yaml"), ["sampler=random"])
        ohem.train(recipe, ohem.Sources((f"{shapes}@train",)), folder=folder / "run", workers=0)
    return folder


def test_a_harvest_is_a_proposal_file_to_train_on(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(trained / "cache"))
    run, data = Run.open(trained / "run"), [f"{trained}/data@train"]
    kept = harvest(run.folder, data, trained / "hard.json", workers=0)
    read = load_coco_proposals(trained / "hard.json")
    dataset = open_dataset(data, run.recipe().data, SILENT)
    every = open_proposals(dataset, [], run.recipe().detector.proposals, 1, SILENT)
    detector, spec, _ = load_detector(run.weights_file)
    for image in score_images(detector, spec, dataset.records, every, workers=0):
        boxes = every[image.record.id]
        expected = boxes[is_hard(image)[: len(boxes)].numpy()]
        assert 0 < len(expected) <= len(boxes)
        assert sorted(map(tuple, kept[image.record.id].tolist())) == sorted(map(tuple, expected.tolist()))
        assert sorted(map(tuple, read[image.record.id].tolist())) == sorted(map(tuple, expected.tolist()))

    recipe = load_recipe(str(trained / "small.yaml"), ["sampler={kind: random, bg_lo: 0}", f"init_from={run.folder}"])
    sources = ohem.Sources(tuple(data), proposals=(str(trained / "hard.json"),))
    assert ohem.train(recipe, sources, folder=trained / "second", workers=0)[1]


def test_a_harvest_is_named_as_proposal_files_are(trained: Path) -> None:
    with pytest.raises(OhemError, match=r"hard\.txt: found a file name that ends in '\.txt'; allowed: \.json"):
        harvest(trained / "run", [f"{trained}/data@train"], trained / "hard.txt", workers=0)


def test_the_working_set_only_grows(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(trained / "cache"))
    data = [f"{trained}/data@train"]
    wide = harvest(trained / "run", data, trained / "wide.json", max_background=1.0, workers=0)
    narrow = harvest(trained / "run", data, trained / "narrow.json", max_background=0.0, workers=0)
    both = harvest(trained / "run", data, trained / "both.json", also=wide, max_background=0.0, workers=0)
    for image, boxes in wide.items():
        assert 1 <= len(narrow[image]) < len(boxes) == len(both[image])


def test_an_image_without_proposals_stays_in_the_file_as_a_whole(trained: Path) -> None:
    data, cache = f"{trained}/data@train", trained / "bare.sqlite"
    run = Run.open(trained / "run")
    dataset = open_dataset([data], run.recipe().data, SILENT)
    open_proposals(dataset, [], run.recipe().detector.proposals, 1, SILENT, cache)
    first = dataset.records[0]
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("UPDATE proposals SET boxes = x'' WHERE image_id = ?", (first.id,))
    kept = harvest(run.folder, data, str(trained / "bare.json"), proposals=str(cache), workers=0)
    read = load_coco_proposals(trained / "bare.json")
    assert kept.keys() == read.keys() == {record.id for record in dataset.records}
    assert read[first.id].tolist() == [[0, 0, first.width, first.height]]


def test_it_runs_where_it_is_told_to(trained: Path) -> None:
    with pytest.raises(OhemError, match="no such"):
        harvest(trained / "run", ["nowhere"], trained / "new.json", device="no such")


def test_nothing_is_written_over(trained: Path) -> None:
    (trained / "there.json").write_text("mine")
    with pytest.raises(OhemError, match="a new file"):
        harvest(trained / "run", [f"{trained}/data@train"], trained / "there.json")
    assert (trained / "there.json").read_text() == "mine"
