"""Label errors planted in VOC's animals: how many `ohem inspect` finds, and how many cleanlab finds in the same detections.

    python benchmarks/label_errors.py DATA --seeds 5

DATA is a VOC folder with the split trainval, and its selective-search proposals in DATA/selective_search/trainval.mat.
Errors are planted in a copy of its annotations: 5 % of the boxes of six classes, a quarter each removed, given another
class, shifted by half, and invented. One detector is trained on all of them and inspects what it was trained on. Copies
and runs go into runs/label_errors; finished parts are kept, an interrupted training is resumed, so the command may be
stopped and called again. One small JSON a seed goes into benchmarks/results/label_errors. cleanlab (pip install
cleanlab; AGPL) is wanted by this benchmark alone, and left out where it is not installed.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, parse

import numpy as np
from numpy.typing import NDArray

import ohem
from ohem.console import Console
from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.sources import load_dataset
from ohem.files import atomic_writer, write_atomically
from ohem.models.weights import load_detector
from ohem.opening import open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec
from ohem.report.evidence import Evidence, gather_evidence
from ohem.report.suspects import KINDS as SUSPECT_KINDS
from ohem.report.suspects import find_suspects
from ohem.training.run import Run

CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
RESULTS = Path(__file__).parent / "results" / "label_errors"
EVIDENCE = ("probabilities", "boxes", "scores", "labels")
SHARE = 0.05
CLEANLAB = {"cleanlab": None, "cleanlab, high probability from 0.5": 0.5}
KINDS = ("removed", "class changed", "shifted", "invented")


@dataclass(frozen=True)
class Planted:
    """One error: what stands in the planted annotations, and for a removed object what stood there."""

    image: str
    kind: str
    label: str
    box: tuple[float, float, float, float]


def plant(data: Path, folder: Path, seed: int) -> list[Planted]:
    """A copy of the annotations with errors in it, the images linked; returns the errors, also in planted.json."""
    done = folder / "planted.json"
    if done.exists():
        return [Planted(**{**one, "box": tuple(one["box"])}) for one in json.loads(done.read_text())]
    dataset = load_dataset([f"{data}@trainval"], CLASSES, other_classes="drop")
    errors = draw_errors(dataset, np.random.default_rng(seed))
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "ImageSets"):
        if not (folder / name).exists():
            (folder / name).symlink_to((data / name).resolve())
    for record in dataset.records:
        tree = parse(data / "Annotations" / f"{record.id}.xml")
        for old, error in errors.get(record.id, []):
            _edit(tree, old, error)
        tree.write(folder / "Annotations" / f"{record.id}.xml")
    planted = [error for one in errors.values() for _, error in one]
    write_atomically(done, json.dumps([asdict(error) for error in planted], indent=1) + "\n")
    return planted


Edit = tuple[tuple[float, ...] | None, Planted]
"""The annotated box that changes (None: a new one), and the error."""


def draw_errors(dataset: DetectionDataset, rng: np.random.Generator) -> dict[str | int, list[Edit]]:
    """The errors of each image; no box gets two."""
    boxes = [(record, row) for record in dataset.records for row in range(len(record.labels))]
    quarter = round(SHARE * len(boxes) / len(KINDS))
    order = iter(rng.permutation(len(boxes)).tolist())
    drawn: dict[str | int, list[Edit]] = {}
    for kind in KINDS[:3]:
        count = 0
        while count < quarter:
            record, row = boxes[next(order)]
            error = _spoil(record, row, kind, rng)
            if error is not None:
                drawn.setdefault(record.id, []).append((tuple(record.boxes[row]), error))
                count += 1
    count = 0
    while count < quarter:
        record = dataset.records[rng.integers(len(dataset))]
        like, row = boxes[rng.integers(len(boxes))]
        error = _invent(record, like.boxes[row], rng)
        if error is not None:
            drawn.setdefault(record.id, []).append((None, error))
            count += 1
    return drawn


def _spoil(record: ImageRecord, row: int, kind: str, rng: np.random.Generator) -> Planted | None:
    label, box = CLASSES[record.labels[row] - 1], record.boxes[row]
    if kind == "class changed":
        label = str(rng.choice([name for name in CLASSES if name != label]))
    elif kind == "shifted":
        sides = box[2:] - box[:2]
        step = np.zeros(2)
        axis = rng.integers(2)
        step[axis] = rng.choice((-0.5, 0.5)) * sides[axis]
        box = _inside(box + np.concatenate([step, step]), record)
        if np.prod(box[2:] - box[:2]) < 0.5 * np.prod(sides):
            return None
    return Planted(str(record.id), kind, label, tuple(box.tolist()))


def _invent(record: ImageRecord, like: NDArray[np.float64], rng: np.random.Generator) -> Planted | None:
    """A box of another object's size where no object is; None where it does not fit."""
    sides = like[2:] - like[:2]
    room = (record.width, record.height) - sides
    if (room < 0).any():
        return None
    corner = np.floor(rng.random(2) * (room + 1))
    box = np.concatenate([corner, corner + sides])
    if len(record.boxes) and _iou(box, record.boxes).max() > 0.1:
        return None
    return Planted(str(record.id), "invented", str(rng.choice(CLASSES)), tuple(box.tolist()))


def _inside(box: NDArray[np.float64], record: ImageRecord) -> NDArray[np.float64]:
    inside: NDArray[np.float64] = np.round(box).clip(0, (record.width, record.height) * 2)
    return inside


def _iou(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0)
    both = sides.prod(axis=1)
    union = np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - both
    iou: NDArray[np.float64] = both / union
    return iou


def _edit(tree: ElementTree, old: tuple[float, ...] | None, error: Planted) -> None:
    root = tree.getroot()
    found = None if old is None else next(one for one in root.findall("object") if _corners(one) == old)
    if error.kind == "removed":
        root.remove(found)
        return
    if found is None:
        found = SubElement(root, "object")
        for name in ("name", "difficult", "bndbox"):
            SubElement(found, name).text = "0"
    found.find("name").text = error.label
    box = found.find("bndbox")
    box.clear()
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), np.add(error.box, (1, 1, 0, 0)), strict=True):
        SubElement(box, name).text = f"{value:g}"


def _corners(one: Element) -> tuple[float, ...]:
    """In our convention: 0-based, half-open."""
    x1, y1, x2, y2 = (float(one.find(f"bndbox/{name}").text) for name in ("xmin", "ymin", "xmax", "ymax"))
    return (x1 - 1, y1 - 1, x2, y2)


@dataclass(frozen=True, eq=False)
class Entry:
    """One suspect of a ranking: an annotation's row in its image, or a box that should be there (row None)."""

    image: str | int
    row: int | None
    box: NDArray[np.float64]
    score: float


def found_errors(
    errors: Sequence[Planted], records: dict[str | int, ImageRecord], entries: Sequence[Entry]
) -> list[bool]:
    """Which errors are among the entries: the changed annotation, or a box that overlaps a removed one by half."""
    by_image: dict[str | int, list[Entry]] = {}
    for entry in entries:
        by_image.setdefault(entry.image, []).append(entry)
    return [any(_is_about(e, error, records[error.image]) for e in by_image.get(error.image, [])) for error in errors]


def _is_about(entry: Entry, error: Planted, record: ImageRecord) -> bool:
    if error.kind == "removed":
        return entry.row is None and _iou(np.array(error.box), entry.box[None])[0] >= 0.5
    return entry.row is not None and bool(np.abs(record.boxes[entry.row] - error.box).max() < 0.5)


def shares(errors: Sequence[Planted], found: Sequence[bool]) -> dict[str, float]:
    """Found, of all and of each kind."""
    of_kind = {kind: [f for e, f in zip(errors, found, strict=True) if e.kind == kind] for kind in KINDS}
    return {"all": mean(found), **{kind: mean(of) for kind, of in of_kind.items()}}


def judge(
    errors: Sequence[Planted], records: dict[str | int, ImageRecord], lists: dict[str, list[Entry]]
) -> dict[str, dict[str, float]]:
    """Found among as many suspects as there are errors: of one list of all kinds, and of a list of each kind.

    In the one list the kinds take turns, or are sorted by score: whichever finds more.
    """
    count = len(errors)
    lists = {kind: sorted(entries, key=lambda entry: -entry.score) for kind, entries in lists.items()}
    by_score = [(-entry.score, entry) for entries in lists.values() for entry in entries]
    in_turn = [(place, entry) for entries in lists.values() for place, entry in enumerate(entries)]
    joint = [shares(errors, found_errors(errors, records, _first(ranked, count))) for ranked in (by_score, in_turn)]
    every = [found_errors(errors, records, entries[:count]) for entries in lists.values()]
    return {
        "one list": max(joint, key=lambda found: found["all"]),
        "a list of each kind": shares(errors, [any(found) for found in zip(*every, strict=True)]),
    }


def _first(ranked: Sequence[tuple[float, Entry]], count: int) -> list[Entry]:
    """The first entries by key, an annotation counting once."""
    chosen: dict[tuple[object, ...], Entry] = {}
    for _, entry in sorted(ranked, key=lambda pair: (pair[0], -pair[1].score)):
        about = entry.row if entry.row is not None else tuple(entry.box.tolist())
        chosen.setdefault((entry.image, about), entry)
    return list(chosen.values())[:count]


def our_lists(evidence: Sequence[Evidence]) -> dict[str, list[Entry]]:
    suspects = find_suspects(evidence)
    entries = [(s.kind, Entry(s.record.id, s.row, s.new_box if s.row is None else s.box, s.score)) for s in suspects]
    return {kind: [entry for of, entry in entries if of == kind] for kind in SUSPECT_KINDS}


def cleanlab_lists(evidence: Sequence[Evidence], high: float | None = None) -> dict[str, list[Entry]] | None:
    """ObjectLab's scores of boxes (Tkachenko et al., 2023), turned so that the likeliest error has the highest.

    Args:
        evidence: its detections are used, nothing else.
        high: cleanlab's high_probability_threshold; its default is 0.95.
    """
    try:
        from cleanlab.object_detection import rank
    except ImportError:
        return None
    labels = [{"bboxes": e.record.boxes, "labels": e.record.labels - 1} for e in evidence]
    given = {"labels": labels, "predictions": [_as_predictions(e) for e in evidence]}
    sure = {"high_probability_threshold": high}
    overlooked: list[Entry] = []
    for e, scores in zip(evidence, rank.compute_overlooked_box_scores(**given, **sure), strict=True):
        boxes = e.boxes[np.argsort(e.labels, kind="stable")]  # class by class, as they were given
        pairs = zip(boxes, scores, strict=True)
        overlooked += [Entry(e.record.id, None, box, 1 - score) for box, score in pairs if not np.isnan(score)]
    lists = {"overlooked": overlooked}
    of_annotations = {
        "badloc": rank.compute_badloc_box_scores(**given),
        "swap": rank.compute_swap_box_scores(**given, **sure),
    }
    for name, every in of_annotations.items():
        lists[name] = [
            Entry(e.record.id, row, e.record.boxes[row], 1 - score)
            for e, scores in zip(evidence, every, strict=True)
            for row, score in enumerate(scores)
        ]
    return lists


def _as_predictions(e: Evidence) -> NDArray[Any]:
    """(C,) arrays (M, 5) of a class's boxes and scores."""
    predictions = np.empty(len(CLASSES), dtype=object)
    for label in range(1, len(CLASSES) + 1):
        mine = e.labels == label
        predictions[label - 1] = np.column_stack([e.boxes[mine], e.scores[mine]])
    return predictions


def save_evidence(path: Path, evidence: Sequence[Evidence]) -> None:
    """Keep what took longest, so that another way of judging needs no detector."""
    columns = {name: np.concatenate([getattr(e, name) for e in evidence]) for name in EVIDENCE}
    with atomic_writer(path) as file:
        np.savez_compressed(file, counts=[len(e.labels) for e in evidence], **columns)


def load_evidence(path: Path, dataset: DetectionDataset) -> list[Evidence]:
    with np.load(path) as kept:
        found = np.cumsum(kept["counts"])[:-1]
        annotated = np.cumsum([len(record.labels) for record in dataset.records])[:-1]
        cuts = {name: annotated if name == "probabilities" else found for name in EVIDENCE}
        parts = [np.split(kept[name], cuts[name]) for name in EVIDENCE]
    return [Evidence(record, *rest) for record, *rest in zip(dataset.records, *parts, strict=True)]


def run_seed(data: Path, runs: Path, seed: int, recipe: str, workers: int, console: Console) -> dict[str, Any]:
    """Plant, train, ask and judge."""
    planted, folder = runs / f"data-{seed}", runs / f"{recipe}-{seed}"
    errors = plant(data, planted, seed)
    sources = ohem.Sources((f"{planted}@trainval",), proposals=(f"{data}/selective_search/trainval.mat",))
    if folder.exists():
        ohem.resume(folder, workers=workers, reporter=console)
    else:
        settings = [f"data.classes=[{','.join(CLASSES)}]", "data.other_classes=drop", f"seed={seed}"]
        ohem.train(ohem.load_recipe(recipe, settings), sources, folder=folder, workers=workers, reporter=console)
    run = Run.open(folder)
    _, spec, _ = load_detector(run.weights_file)
    dataset = open_dataset(sources.train, DataSpec(classes=CLASSES, other_classes="drop"), console)
    boxes = open_proposals(dataset, sources.proposals, spec.proposals, 1, console)
    kept = runs / f"evidence-{recipe}-{seed}.npz"
    if not kept.exists():
        gathered = gather_evidence([run.weights_file], dataset, boxes, device="cpu", workers=workers, reporter=console)
        save_evidence(kept, gathered)
    evidence = load_evidence(kept, dataset)
    records = {record.id: record for record in dataset.records}
    result = {
        "seed": seed,
        "recipe": recipe,
        "planted": len(errors),
        "boxes": sum(len(record.labels) for record in dataset.records),
        "ohem inspect": judge(errors, records, our_lists(evidence)),
        "machine": run.info()["machine"],
        "date": date.today().isoformat(),
    }
    for name, high in CLEANLAB.items():
        theirs = cleanlab_lists(evidence, high)
        result |= {name: judge(errors, records, theirs)} if theirs else {}
    return result


def summarise(results: Sequence[dict[str, Any]]) -> None:
    header = ("planted errors found, %", "all", *KINDS)
    for how in ("one list", "a list of each kind"):
        rows = []
        for who in ("ohem inspect", *CLEANLAB):
            have = [result[who][how] for result in results if who in result]
            if have:
                rows.append((who, *(" ".join(f"{100 * h[name]:.0f}" for h in have) for name in ("all", *KINDS))))
        count = results[0]["planted"]
        Console().table(f"{how}, the first {count} of it; seeds {[r['seed'] for r in results]}", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--runs", type=Path, default=Path("runs/label_errors"))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    results = []
    with Console() as console:
        for seed in range(arguments.seeds):
            file = RESULTS / f"{arguments.recipe}-{seed}.json"
            if not file.exists():
                result = run_seed(arguments.data, arguments.runs, seed, arguments.recipe, arguments.workers, console)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(result, indent=1) + "\n")
            results.append(json.loads(file.read_text()))
    summarise(results)


if __name__ == "__main__":
    main()
