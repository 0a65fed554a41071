"""ohem inspect, whole: four errors planted in clean annotations head the list, and annotation tools can open it."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

import ohem
from ohem.data.coco import read_coco
from ohem.data.sources import load_dataset
from ohem.errors import OhemError
from ohem.report.inspection import Inspection, inspect_annotations
from ohem.report.suspect_files import save_coco
from shapes import PRETRAINED, make_shapes, small_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector trained on clean annotations."""
    folder = tmp_path_factory.mktemp("inspect")
    data = make_shapes(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        recipe = small_recipe(*PRETRAINED, "iterations=80", "snapshot_every=70")
        ohem.train(recipe, ohem.Sources((f"{data}@train",)), folder=folder / "run", workers=0)
    return folder / "run"


ERRORS = {
    "test_000": ("missing box", "add"),
    "test_001": ("wrong class", "relabel"),
    "test_002": ("badly placed", "move"),
    "test_003": ("spurious box", "remove"),
}


def plant(data: Path) -> None:
    """One error in each of four images."""
    for stem, (kind, _) in ERRORS.items():
        file = data / "Annotations" / f"{stem}.xml"
        text = file.read_text()
        start = text.index("<object>")
        one = text[start : text.index("</object>") + len("</object>")]
        name = one.partition("<name>")[2].partition("<")[0]
        x1, x2 = (int(one.partition(f"<{side}>")[2].partition("<")[0]) for side in ("xmin", "xmax"))
        step = (x2 - x1) // 2
        changed = {
            "missing box": "",
            "wrong class": one.replace(name, "disc" if name == "square" else "square"),
            "badly placed": one.replace(f"<xmin>{x1}<", f"<xmin>{x1 + step}<").replace(
                f"<xmax>{x2}<", f"<xmax>{x2 + step}<"
            ),
            "spurious box": one + spurious(text),
        }
        file.write_text(text.replace(one, changed[kind], 1))


def spurious(text: str) -> str:
    """A box of noise above or below both objects, whichever has more room."""
    tops, bottoms = ([int(part.partition("<")[0]) for part in text.split(f"<{side}>")[1:]] for side in ("ymin", "ymax"))
    y1, y2 = (1, min(tops) - 1) if min(tops) > 72 - max(bottoms) else (max(bottoms) + 1, 72)
    return (
        "<object><name>disc</name><difficult>0</difficult><bndbox><xmin>30</xmin>"
        f"<ymin>{y1}</ymin><xmax>66</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


@pytest.fixture(scope="module")
def found(run: Path) -> Inspection:
    data = run.parent / "planted"
    shutil.copytree(run.parent / "data", data)
    plant(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(run.parent / "cache"))
        return inspect_annotations(run, [f"{data}@test"], shown=6, workers=0)


def test_planted_errors_come_first_with_their_kind_and_fix(found: Inspection) -> None:
    first = {one.record.id: (one.kind, one.fix) for one in found.suspects[:4]}
    assert first == ERRORS


def test_fixes_are_what_was_spoiled(found: Inspection, run: Path) -> None:
    clean = {record.id: record for record in load_dataset([f"{run.parent / 'data'}@test"]).records}
    for one in found.suspects[:4]:
        truth = clean[one.record.id]
        if one.fix != "remove":
            assert one.new_label == truth.labels[0]
            assert np.abs(one.new_box - truth.boxes[0]).max() < (6 if one.fix in ("add", "move") else 1)


def test_every_annotation_is_in_the_table_once(found: Inspection, run: Path) -> None:
    rows = list(csv.DictReader((found.folder / "suspects.csv").read_text().splitlines()))
    annotated = [(row["image"], int(row["annotation"])) for row in rows if row["annotation"]]
    records = load_dataset([f"{run.parent / 'planted'}@test"]).records
    assert sorted(annotated) == sorted((record.id, i) for record in records for i in range(len(record.labels)))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    for kind, _ in ERRORS.values():
        scores = [float(row["score"]) for row in rows if row["kind"] == kind]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
    assert {row["kind"] for row in rows if not row["annotation"]} <= {"missing box"}


def test_the_coco_file_opens_and_holds_annotations_and_proposals(found: Inspection, run: Path) -> None:
    file = found.folder / "suspects.json"
    coco = COCO(str(file))
    annotations = coco.loadAnns(coco.getAnnIds())
    proposed = [one for one in annotations if one["attributes"].get("proposed")]
    shown = found.suspects[:6]
    assert len(proposed) == sum(one.fix != "remove" for one in shown)
    assert len(annotations) - len(proposed) == sum(
        len(r.labels) for r in {one.record.id: one.record for one in shown}.values()
    )
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    added = next(one for one in proposed if one["attributes"]["fix"] == "add")
    assert names[added["category_id"]] in ("disc", "square", "triangle")
    assert [one["suspect"] for one in (a["attributes"] for a in annotations) if one.get("suspect")]
    assert all((run.parent / "planted/JPEGImages" / image["file_name"]).is_file() for image in coco.dataset["images"])
    assert len(read_coco(file, run.parent / "planted" / "JPEGImages")) == len({one.record.id for one in shown})


def test_integer_ids_of_images_are_kept(found: Inspection, run: Path, tmp_path: Path) -> None:
    dataset = load_dataset([f"{run.parent / 'planted'}@test"])
    ids = {record.id: 900 - number for number, record in enumerate(dataset.records)}
    suspects = [replace(one, record=replace(one.record, id=ids[one.record.id])) for one in found.suspects[:6]]
    save_coco(tmp_path / "suspects.json", suspects, dataset)
    content = json.loads((tmp_path / "suspects.json").read_text())
    assert {image["id"] for image in content["images"]} == {one.record.id for one in suspects}
    assert {one["image_id"] for one in content["annotations"]} == {one.record.id for one in suspects}


def test_difficult_objects_and_areas_of_segmentations_are_kept(found: Inspection, run: Path, tmp_path: Path) -> None:
    dataset = load_dataset([f"{run.parent / 'planted'}@test"])
    one = next(suspect for suspect in found.suspects if suspect.row is not None)
    count = len(one.record.labels)
    record = replace(one.record, difficult=np.arange(count) == 0, area=np.arange(count) + 0.5)
    save_coco(tmp_path / "suspects.json", [replace(one, record=record)], dataset)
    written = json.loads((tmp_path / "suspects.json").read_text())["annotations"][:count]
    assert [entry["area"] for entry in written] == record.area.tolist()
    assert [entry["attributes"].get("difficult", False) for entry in written] == record.difficult.tolist()


def test_the_page_shows_each_with_its_fix(found: Inspection) -> None:
    html = (found.folder / "suspects.html").read_text()
    assert html.count('<figure class="card"') == 6
    for kind, _ in ERRORS.values():
        assert f'data-kind="{kind}"' in html
    assert "add a " in html
    assert "http" not in html


def test_a_history_asks_the_snapshots_and_a_run_without_any_is_refused(
    found: Inspection, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(run.parent / "cache"))
    data = [f"{run.parent / 'planted'}@test"]
    asked = inspect_annotations(run, data, history=True, out=tmp_path / "asked", workers=0)
    assert [one.score for one in asked.suspects] != [one.score for one in found.suspects]
    with pytest.raises(OhemError, match="found no snapshots"):
        inspect_annotations(run / "weights.safetensors", data, history=True, out=tmp_path / "other")
    with pytest.raises(OhemError, match="found something there already"):
        inspect_annotations(run, data, out=tmp_path / "asked")
    assert json.loads((tmp_path / "asked/suspects.json").read_text())["annotations"]
