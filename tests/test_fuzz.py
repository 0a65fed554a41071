"""Whatever a file holds, its reader returns something whole or raises one of ours; and NMS and voting against slow ones."""

import json
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from corruptions import make_coco, make_voc
from ohem.data.dataset import DetectionDataset
from ohem.data.sources import load_dataset
from ohem.errors import OhemError
from ohem.inference import Candidates, vote
from ohem.inference import suppress as nms
from ohem.models.tensor_files import read_metadata, read_state_dict
from ohem.proposals.cache import ProposalCache
from ohem.proposals.imports import load_coco_proposals, validate_proposals
from ohem.recipes.recipe import Recipe, dump_recipe, load_recipe

FEW = settings(max_examples=40, derandomize=True, deadline=None)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from([0, 1, 3, 7, 10, 20, -1, 1e308, "000001.jpg", "..", "nan", "1e3", 2**63, 2**64]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    make_coco(root / "coco")
    make_voc(root / "voc")
    return root


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here] * bool(here) + [place for key, each in inner for place in places(each, (*here, key))]


def with_another(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    changed = json.loads(json.dumps(value))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return changed


def require_whole(dataset: DetectionDataset) -> None:
    """What every reader promises of a data set that it returns."""
    for record in dataset.records:
        assert record.boxes.shape == (len(record.labels), 4)
        assert np.isfinite(record.boxes).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert (record.boxes >= 0).all()
        assert (record.boxes <= [record.width, record.height] * 2).all()
        assert ((record.labels >= 1) & (record.labels <= len(dataset.classes))).all()
        assert record.path.is_file()


@FEW
@given(data=st.data())
def test_any_value_anywhere_in_a_coco_file(folder: Path, data: st.DataObject) -> None:
    path = folder / "coco/instances.json"
    whole = path.read_text()
    content = json.loads(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        content = with_another(content, data.draw(st.sampled_from(places(content))), data.draw(VALUES))
    try:
        path.write_text(json.dumps(content))
        with suppress(OhemError):
            require_whole(load_dataset([str(folder / "coco")]))
    finally:
        path.write_text(whole)


@FEW
@given(data=st.data())
def test_any_text_anywhere_in_a_voc_file(folder: Path, data: st.DataObject) -> None:
    path = folder / "voc/Annotations/000001.xml"
    whole = path.read_text()
    parts = whole.split("\n")
    number = data.draw(st.integers(0, len(parts) - 1))
    tag = parts[number].partition(">")[0].strip("<")
    new = data.draw(st.one_of(SCALARS.map(lambda value: f"<{tag}>{value}</{tag}>"), st.text(max_size=20), st.just("")))
    parts[number : number + data.draw(st.integers(0, 2))] = [new]
    try:
        path.write_text("\n".join(parts), errors="replace")
        with suppress(OhemError):
            require_whole(load_dataset([str(folder / "voc")]))
    finally:
        path.write_text(whole)


RECIPE = yaml.safe_load(dump_recipe(load_recipe("lite0")))


@FEW
@given(place=st.sampled_from(places(RECIPE)), value=VALUES)
def test_any_value_anywhere_in_a_recipe(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(with_another(RECIPE, place, value)))
    with suppress(OhemError):
        recipe = load_recipe(str(path))
        assert isinstance(recipe, Recipe)
        path.write_text(dump_recipe(recipe))
        assert load_recipe(str(path)) == recipe


@FEW
@given(text=st.text(st.characters(max_codepoint=126), max_size=60))
def test_any_text_for_a_recipe(folder: Path, text: str) -> None:
    path = folder / "t.yaml"
    path.write_text(text)
    with suppress(OhemError):
        load_recipe(str(path))
    with suppress(OhemError):
        load_recipe("lite0", [text])


@FEW
@given(data=st.data())
def test_any_value_anywhere_in_proposals(folder: Path, data: st.DataObject) -> None:
    entries = [
        {"image_id": "000001", "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 7, "bbox": [0, 0, 1, 1], "score": 1},
    ]
    path = folder / "p.json"
    path.write_text(json.dumps(with_another(entries, data.draw(st.sampled_from(places(entries))), data.draw(VALUES))))
    with suppress(OhemError):
        found = load_coco_proposals(path)
        assert all(boxes.shape[1:] == (4,) and boxes.dtype == np.float32 for boxes in found.values())
        validate_proposals(found, load_dataset([str(folder / "voc")]).records)


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))])


@FEW
@given(data=st.data())
def test_any_damage_of_a_cache(folder: Path, data: st.DataObject) -> None:
    whole, path = folder / "whole.sqlite", folder / "damaged.sqlite"
    if not whole.exists():
        with closing(sqlite3.connect(whole)) as connection, connection:
            connection.executescript(
                "CREATE TABLE meta (key, value); CREATE TABLE proposals (image_id, size, mtime_ns, sha256, boxes);"
                "INSERT INTO meta VALUES ('kind', 'ohem proposals'), ('format', '1');"
            )
            rows = [(f"{i:06d}", 0, 0, "", bytes(160)) for i in range(30)]
            connection.executemany("INSERT INTO proposals VALUES (?, ?, ?, ?, ?)", rows)
    path.write_bytes(damaged(data, whole.read_bytes()))
    with suppress(OhemError):
        cache = ProposalCache(path)
        for image in cache:
            with suppress(KeyError):
                assert cache[image].shape[1:] == (4,)


@FEW
@given(data=st.data(), name=st.sampled_from(["w.safetensors", "w.pth"]))
def test_any_damage_of_weights(folder: Path, data: st.DataObject, name: str) -> None:
    from safetensors.torch import save_file

    whole = folder / f"whole-{name}"
    if not whole.exists():
        tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
        save_file(tensors, whole, {"ohem": "{}"}) if name.endswith("tensors") else torch.save(tensors, whole)
    path = folder / name
    path.write_bytes(damaged(data, whole.read_bytes()))
    with suppress(OhemError):
        assert all(isinstance(value, torch.Tensor) for value in read_state_dict(path).values())
    with suppress(OhemError):
        read_metadata(path, "ohem")


BOXES = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, st.integers(1, 99), st.integers(1, 3)),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each[4],
)


def candidates(rows: list[tuple[int, ...]]) -> Candidates:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _, _ in rows], dtype=torch.float32)
    return Candidates(boxes, torch.tensor([row[4] / 100 for row in rows]), torch.tensor([row[5] for row in rows]))


@FEW
@given(rows=BOXES, threshold=st.sampled_from([0.3, 0.5, 0.7]), most=st.integers(0, 4))
def test_nms_keeps_what_a_slow_one_keeps(rows: list[tuple[int, ...]], threshold: float, most: int) -> None:
    all_of_them = candidates(rows)
    overlap = box_iou(all_of_them.boxes, all_of_them.boxes)
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][4]):
        if all(rows[i][5] != rows[j][5] or overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    found = nms(all_of_them, threshold, most)
    wanted = kept[:most] if most else kept
    assert found.boxes.tolist() == all_of_them.boxes[wanted].tolist()
    assert found.labels.tolist() == all_of_them.labels[wanted].tolist()


@FEW
@given(rows=BOXES, min_iou=st.sampled_from([0.3, 0.5, 0.9]))
def test_voting_is_the_mean_of_a_slow_one_inside_all_boxes(rows: list[tuple[int, ...]], min_iou: float) -> None:
    voters = candidates(rows)
    kept = nms(voters, 0.5)
    voted = vote(kept, voters, min_iou)
    assert torch.equal(voted.scores, kept.scores)
    assert torch.equal(voted.labels, kept.labels)
    overlap = box_iou(kept.boxes, voters.boxes)
    for k, box in enumerate(voted.boxes):
        mine = [i for i in range(len(rows)) if voters.labels[i] == kept.labels[k] and overlap[k, i] >= min_iou]
        weights = voters.scores[mine]
        torch.testing.assert_close(box, (weights @ voters.boxes[mine]) / weights.sum())


def test_nothing_was_left_behind(folder: Path) -> None:
    require_whole(load_dataset([str(folder / "coco")]))
    require_whole(load_dataset([str(folder / "voc")]))
    shutil.rmtree(folder)
