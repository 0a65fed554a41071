"""``ohem inspect``: which annotations of a data set are likely wrong, as a table, a page and a COCO JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ohem.data.rules import BadBoxes, OtherClasses
from ohem.errors import OhemError
from ohem.files import new_folder
from ohem.judging import beside
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec
from ohem.report.evidence import gather_evidence
from ohem.report.gallery import Outline, Sketch, make_gallery
from ohem.report.page import write_page
from ohem.report.suspect_files import save_coco, save_table
from ohem.report.suspects import KINDS, Suspect, find_suspects
from ohem.training.run import Run, find_weights


@dataclass(frozen=True, eq=False)
class Inspection:
    """What :func:`inspect_annotations` found, likeliest first, and the folder it was written to."""

    folder: Path
    suspects: tuple[Suspect, ...]


def inspect_annotations(
    source: Path | str,
    data: Sequence[str] | str,
    *,
    proposals: Sequence[str] | str = (),
    out: Path | None = None,
    shown: int = 300,
    history: bool = False,
    other_classes: OtherClasses = "drop",
    bad_boxes: BadBoxes = "error",
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> Inspection:
    """Rank annotations by how likely they are wrong, and write suspects.csv, suspects.html and suspects.json (COCO).

    Args:
        source: a run's folder, or a weights file.
        data: data sources; their classes are the detector's. The run's own training data is allowed.
        proposals: proposal files; without, selective search.
        out: a new folder; the first free of ``inspection``, ``inspection-2``, ... in the run's folder when omitted.
        shown: the likeliest this many are in the page and the COCO JSON; the table has all.
        history: ask the run's snapshots too, and not the final weights alone.
        other_classes: objects of classes that the detector does not know.
        bad_boxes: boxes that are reversed, empty or outside their image.
        device: see :func:`ohem.workflow.train`.
        workers: processes that read images.
        reporter: told of what goes on.

    Raises:
        OhemError: no such weights, no snapshots, or anything wrong with the data.
    """
    source = Path(source)
    file = find_weights(source, "last")
    _, spec, classes = load_detector(file)
    with new_folder(out, beside(source) / "inspection") as folder:
        weights = [*_snapshots(source), file] if history else [file]
        dataset = open_dataset(
            data, DataSpec(classes=classes, other_classes=other_classes, bad_boxes=bad_boxes), reporter
        )
        boxes = open_proposals(dataset, proposals, spec.given_proposals, workers, reporter)
        evidence = gather_evidence(weights, dataset, boxes, device=device, workers=workers, reporter=reporter)
        suspects = tuple(find_suspects(evidence))
        save_table(folder / "suspects.csv", suspects, classes)
        save_coco(folder / "suspects.json", suspects[:shown], dataset)
        values = {
            "title": f"Suspect annotations of {dataset.name}",
            "boxes": sum(len(record.labels) for record in dataset.records),
            "images": len(dataset),
            "kinds": [(kind, sum(one.kind == kind for one in suspects[:shown])) for kind in KINDS],
            "shown": min(shown, len(suspects)),
            "gallery": make_gallery(
                [suspect_sketch(rank, one, classes) for rank, one in enumerate(suspects[:shown], start=1)],
                progress=partial(reporter.progress, "cutting out pictures"),
            ),
            "rows": [_row(rank, one, classes) for rank, one in enumerate(suspects[:shown], start=1)],
        }
        write_page(folder / "suspects.html", "inspection.html.j2", values)
    return Inspection(folder, suspects)


def _snapshots(source: Path) -> list[Path]:
    """Weights on the way, without those after the last step."""
    run = Run(source)
    last = run.snapshot_file(run.recipe().iterations) if source.is_dir() else source
    files = [file for file in sorted(source.glob("snapshots/*.safetensors")) if file != last]
    if not files:
        raise OhemError(f"{source}: found no snapshots; allowed for a history: a run trained with snapshot_every=N")
    return files


def suspect_sketch(rank: int, one: Suspect, classes: Sequence[str]) -> Sketch:
    """A card: the annotated box, the proposed one, and the others of the image."""
    others = [Outline(box, "other") for row, box in enumerate(one.record.boxes) if row != one.row]
    annotated = [] if one.row is None else [Outline(one.box, "region")]
    moved = one.fix in ("add", "move")
    proposed = [Outline(one.new_box, "proposed")] if moved else []
    focus = one.new_box if one.row is None else one.box
    label = classes[(one.label or one.new_label) - 1]
    return Sketch(
        one.record,
        focus,
        (*others, *annotated, *proposed),
        one.kind,
        label,
        f"{rank}. {one.kind}, {one.score:.2f}",
        fix_in_words(one, classes),
    )


def fix_in_words(one: Suspect, classes: Sequence[str]) -> str:
    """What to do, if the suspicion is right."""
    if one.fix == "add":
        return f"add a {classes[one.new_label - 1]}"
    name = classes[one.label - 1]
    return {
        "relabel": f"{name} is a {classes[one.new_label - 1]}",
        "move": f"move the {name}",
        "remove": f"remove the {name}",
    }[one.fix]


def _row(rank: int, one: Suspect, classes: Sequence[str]) -> tuple[object, ...]:
    name = classes[one.label - 1] if one.label else ""
    return rank, f"{one.score:.3f}", one.kind, one.record.id, name, fix_in_words(one, classes)
