"""Read data sets in YOLO's form, as Ultralytics describes it: ``data.yaml``, pictures, and a text file for each.

A line of a label file is ``class cx cy w h``, class from 0, the rest in shares of the picture's width and height; or
``class x1 y1 x2 y2 x3 y3 ...``, a polygon, whose bounding box is taken. The label file of ``images/train/a.jpg`` is
``labels/train/a.txt`` (the last folder ``images`` is exchanged); without such a folder it stands beside the picture. A
picture without a label file, or with an empty one, shows no object (docs.ultralytics.com/datasets/detect).
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.images import image_size, is_picture
from ohem.data.rules import (
    BOX_ALLOWED,
    CLASSES_ALLOWED,
    AnnotationError,
    Annotations,
    BadBoxes,
    OtherClasses,
    Picture,
    Report,
    box_notes,
    box_problem,
    checked_classes,
    class_list_problem,
    counted,
    fit_boxes,
    is_file,
    is_folder,
    listed,
    one_line,
    other_class_notes,
    path_inside,
    quoted,
    read_text,
)
from ohem.errors import DataError, Fault, OhemError

SPLITS = ("train", "val", "test")
"""The keys of ``data.yaml`` that name pictures."""

MAX_BYTES = 10_000_000
"""The most that a label file, a list of pictures or ``data.yaml`` may hold; a crowded picture's has some 100 kB."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, eq=False)
class _Objects:
    """The objects of one label file: line numbers, classes from 0, and (G, 4) xyxy in shares of the picture."""

    lines: tuple[int, ...]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]


@dataclass
class _Counts:
    """What was done to lines, for the user to be told."""

    polygons: int = 0
    keypoints: int = 0
    repeated: int = 0
    clipped: int = 0
    dropped: int = 0
    unlabelled: int = 0
    other: Counter[str] = field(default_factory=Counter)

    def notes(self) -> Iterator[str]:
        if self.polygons:
            yield f"took the boxes around {counted(self.polygons, 'polygon', 'polygons')}"
        if self.keypoints:
            yield f"left out the keypoints of {counted(self.keypoints, 'object', 'objects')}"
        if self.repeated:
            yield f"left out {counted(self.repeated, 'line', 'lines')} that repeated another of the same file"
        if self.unlabelled:
            yield f"took {counted(self.unlabelled, 'picture', 'pictures')} without a label file as background"
        yield from box_notes(self.clipped, self.dropped)
        yield from other_class_notes(self.other)


@dataclass(frozen=True)
class _Reading:
    """How the label files of a split are read; what is wrong with them and what was done to them is added up."""

    root: Path
    names: tuple[str, ...]
    keypoints: int
    label_of: dict[str, int]
    other_classes: OtherClasses
    bad_boxes: BadBoxes
    faults: list[Fault]
    counts: _Counts = field(default_factory=_Counts)

    def record(self, picture: Picture, annotated: bool) -> ImageRecord:
        """A picture with its objects; without any where it is not annotated."""
        labels, boxes = np.empty(0, np.int64), np.empty((0, 4))
        path = _label_path(self.root, picture.path)
        if annotated and is_file(path):
            objects = _read_labels(path, self.names, self.keypoints, self.counts, self.faults)
            labels, boxes = self.known(path, *self.fitted(path, objects, picture))
        elif annotated:
            self.counts.unlabelled += 1
        return ImageRecord(
            id=picture.path.relative_to(self.root).with_suffix("").as_posix(),
            path=picture.path,
            width=picture.width,
            height=picture.height,
            boxes=boxes,
            labels=labels,
            difficult=np.zeros(len(labels), dtype=bool),
            crowd=np.zeros(len(labels), dtype=bool),
            area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        )

    def fitted(self, path: Path, objects: _Objects, picture: Picture) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Classes (G,), from 0, and boxes (G, 4) in pixels of the objects that lie in the picture."""
        size = np.array([picture.width, picture.height], dtype=np.float64)
        boxes = objects.boxes * np.tile(size, 2)
        fitted = fit_boxes(boxes, size)
        self.counts.clipped += _told(boxes, fitted.boxes, fitted.clipped)
        self.counts.dropped += int(fitted.bad.sum())
        if self.bad_boxes == "error":
            for index in np.flatnonzero(fitted.bad):
                found = f"{[round(value, 2) for value in boxes[index].tolist()]} px: {box_problem(boxes[index], *size)}"
                self.faults.append(Fault(path, f"line {objects.lines[index]}", found, BOX_ALLOWED))
        return objects.classes[~fitted.bad], fitted.boxes[~fitted.bad]

    def known(
        self, path: Path, numbers: NDArray[np.int64], boxes: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Labels (G,) and boxes (G, 4) of the objects whose class is in the class list."""
        names = [self.names[number] for number in numbers.tolist()]
        known = np.array([name in self.label_of for name in names], dtype=bool)
        strange = Counter(name for name in names if name not in self.label_of)
        if self.other_classes == "error":
            allowed = f"{listed(list(self.label_of))} (or other_classes: drop)"
            self.faults.extend(Fault(path, "", f"unknown class {quoted(name)}", allowed) for name in strange)
        self.counts.other.update(strange)
        return np.array([self.label_of[name] for name in names if name in self.label_of], np.int64), boxes[known]


def read_yolo(
    yaml_path: Path,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    other_classes: OtherClasses = "error",
    bad_boxes: BadBoxes = "error",
    annotations: Annotations = "required",
) -> DetectionDataset:
    """Read one split of one YOLO data set. An image's id is its path from the data's folder, without the suffix.

    Nothing outside the folder of ``yaml_path`` is read: a ``path`` that leads elsewhere, as to where the data was once
    made, is left aside and told, and so is ``download``, which Ultralytics would run.

    Args:
        yaml_path: the file ``data.yaml``, with ``names`` and the split's pictures: a folder (with those inside it), a
            text file with a picture a line, or a list of these.
        split: ``train``, ``val`` or ``test``.
        classes: the class list, in order, of names among those of the file. Without it: all, in the file's order.
        other_classes: whether boxes of classes outside the list are faults or left out and counted.
        bad_boxes: the same for boxes that are empty or outside their image.
        annotations: ``none``: label files are not looked at.

    Raises:
        DataError: with every fault of the split.
        OhemError: when the class list is unusable, or there is no such split.
    """
    document = _load(yaml_path)
    if document.get(split) is None:
        there = [f"{yaml_path}@{name}" for name in yolo_splits(yaml_path)]
        raise OhemError(f"{yaml_path}: found no split {quoted(split)}; allowed: {listed(there) or 'none is there'}")
    faults: list[Fault] = []

    def report(field: str, found: str, allowed: str) -> None:
        faults.append(Fault(yaml_path, field, found, allowed))

    names = _read_names(document, report)
    label_of = _labels(names, classes, report)
    keypoints = _read_keypoints(document, report)
    root, notes = _root(yaml_path, document)
    reading = _Reading(root, names, keypoints, label_of, other_classes, bad_boxes, faults)
    records = []
    for path in _pictures(root, split, document[split], yaml_path, faults, notes):
        try:
            picture = Picture(path, *image_size(path))
        except DataError as error:
            faults += error.faults
            continue
        records.append(reading.record(picture, annotated=annotations == "required"))
    if faults:
        raise AnnotationError(faults, [Picture(record.path, record.width, record.height) for record in records])
    return DetectionDataset(
        name=f"{yaml_path.resolve().parent.name}@{split}",
        format="yolo",
        root=yaml_path,
        classes=tuple(label_of),
        category_ids=tuple(label_of.values()),
        records=tuple(records),
        notes=(*notes, *reading.counts.notes()),
    )


def yolo_splits(yaml_path: Path) -> list[str]:
    """The splits that the file names."""
    document = _load(yaml_path)
    return [split for split in SPLITS if document.get(split) is not None]


def _load(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.safe_load(read_text(path, MAX_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError([Fault(path, "", f"malformed YAML ({one_line(str(error))})", "well-formed YAML")]) from error
    if not isinstance(document, dict):
        found = f"YAML that is a {type(document).__name__}"
        raise DataError([Fault(path, "", found, "names, and one of train, val, test")])
    return document


def _read_names(document: dict[Any, Any], report: Report) -> tuple[str, ...]:
    names = document.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    allowed = f"{CLASSES_ALLOWED}: a list, or a mapping from 0, 1, ..."
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        report("names", quoted(names) if "names" in document else "nothing", allowed)
        return ()
    problem = class_list_problem(names)
    if problem is not None:
        report("names", problem, allowed)
    if document.get("nc", len(names)) != len(names):
        report("nc", quoted(document["nc"]), f"{len(names)}, the number of names")
    return tuple(names)


def _read_keypoints(document: dict[Any, Any], report: Report) -> int:
    """How many values of keypoints stand behind the box of each object."""
    shape = document.get("kpt_shape", [0, 2])
    match shape:
        case [int(points), (2 | 3) as dims] if points >= 0:
            return points * int(dims)
    report("kpt_shape", quoted(shape), "[number of keypoints, 2 or 3]")
    return 0


def _labels(names: tuple[str, ...], classes: Sequence[str] | None, report: Report) -> dict[str, int]:
    """Class name -> label."""
    wanted = names if classes is None else checked_classes(classes)
    for name in wanted:
        if names and name not in names:
            report("names", f"no class {quoted(name)}, which is in the class list", listed(names))
    return {name: label for label, name in enumerate(wanted, start=1)}


def _root(yaml_path: Path, document: dict[Any, Any]) -> tuple[Path, list[str]]:
    """The folder that the splits start from, and what a user is told of it."""
    folder, given = yaml_path.parent, document.get("path")
    notes = ["did not run the file's download"] if document.get("download") else []
    inside = _inside(folder, given) if isinstance(given, str) else None
    if inside is not None and is_folder(inside):
        return inside, notes
    if given is not None:
        notes.append(f"took the folder of {yaml_path.name} in the place of its path {quoted(given)}")
    return folder, notes


def _inside(folder: Path, name: str) -> Path | None:
    """``folder/name``, or an absolute path in the folder; None where it would leave the folder."""
    for here in (Path(os.path.abspath(folder)), folder.resolve()):  # noqa: PTH100  as written, and where links lead
        if Path(name).is_relative_to(here):
            return path_inside(folder, str(Path(name).relative_to(here)))
    return path_inside(folder, name)


def _pictures(
    root: Path, split: str, value: object, yaml_path: Path, faults: list[Fault], notes: list[str]
) -> list[Path]:
    """The pictures of a split, each once, in the order of the file, sorted within a folder."""
    found: dict[Path, Path] = {}
    others: list[Path] = []
    before = len(faults)
    for entry in value if isinstance(value, list) else [value]:
        # Roboflow writes ../train/images where it means train/images, and Ultralytics reads it so.
        path = _inside(root, entry.removeprefix("../")) if isinstance(entry, str) and entry else None
        if path is not None and is_file(path) and path.suffix.lower() == ".txt":
            pictures = list(_listed_pictures(root, path, faults))
        elif path is not None and is_folder(path):
            files = sorted(_files_below(path))
            pictures = list(filter(is_picture, files))
            others += [file for file in files if not is_picture(file)]
        else:
            allowed = f"a folder of pictures, or a text file that lists them, inside {root}"
            faults.append(Fault(yaml_path, split, quoted(entry), allowed))
            continue
        for picture in pictures:
            twin = found.setdefault(picture.with_suffix(""), picture)
            if twin != picture:
                allowed = f"a name of its own but for the suffix; {twin.name} has this one"
                faults.append(Fault(picture, "", quoted(picture.name), allowed))
    others = [file for file in others if file.with_suffix("") not in found]
    notes += _notes_of_labelled(root, others)
    if not found and len(faults) == before:
        faults.append(Fault(yaml_path, split, f"{quoted(value)}, without a picture in it", "at least one picture"))
    return list(found.values())


def _notes_of_labelled(root: Path, others: list[Path]) -> list[str]:
    """What is told of files that are no pictures, and have labels as if they were."""
    labelled = [file.name for file in others if file.suffix != ".txt" and is_file(_label_path(root, file))]
    if not labelled:
        return []
    number = counted(len(labelled), "file", "files")
    return [f"left out {number} with labels that are no picture of a kind that is read: {listed(labelled, 5)}"]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files inside, also through links to folders, each folder once; hidden ones are passed over."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if here not in seen else []
        if here not in seen:
            yield from (Path(place, name) for name in names if not name.startswith("."))
        seen.add(here)


def _listed_pictures(root: Path, path: Path, faults: list[Fault]) -> Iterator[Path]:
    try:
        lines = read_text(path, MAX_BYTES).splitlines()
    except DataError as error:
        faults += error.faults
        return
    first_line: dict[Path, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        picture = _inside(path.parent if line.startswith("./") else root, line)
        if picture is None or not is_file(picture):
            allowed = f"a picture inside {root} (./NAME starts beside this list)"
            faults.append(Fault(path, f"line {number}", quoted(line), allowed))
        elif first_line.setdefault(picture, number) != number:
            found = f"{quoted(line)} again, after line {first_line[picture]}"
            faults.append(Fault(path, f"line {number}", found, "each picture once"))
        else:
            yield picture


def _label_path(root: Path, picture: Path) -> Path:
    parts = list(picture.relative_to(root).with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return root.joinpath(*parts)


def _read_labels(path: Path, names: tuple[str, ...], keypoints: int, counts: _Counts, faults: list[Fault]) -> _Objects:
    """The lines of a label file that have no fault of their own, each once."""
    try:
        lines = read_text(path, MAX_BYTES).splitlines()
    except DataError as error:
        faults += error.faults
        lines = []
    rows: dict[tuple[float, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if keypoints and len(words) == 5 + keypoints:
            counts.keypoints += 1
            words = words[:5]
        problem = _line_problem(words, names, keypoints)
        if problem is not None:
            faults.append(Fault(path, f"line {number}", *problem))
        elif names:
            row = (float(words[0]), *_box([float(word) for word in words[1:]]))
            counts.polygons += len(words) > 5
            counts.repeated += row in rows
            rows.setdefault(row, number)
    table = np.array(list(rows), dtype=np.float64).reshape(-1, 5)
    return _Objects(tuple(rows.values()), table[:, 0].astype(np.int64), table[:, 1:])


def _line_problem(words: list[str], names: tuple[str, ...], keypoints: int) -> tuple[str, str] | None:
    """(what was found, what is allowed) of a line, or None."""
    if keypoints and len(words) != 5:
        return counted(len(words), "value", "values"), f"class cx cy w h, and {keypoints} values (kpt_shape) or none"
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        return counted(len(words), "value", "values"), "class cx cy w h, or class x1 y1 x2 y2 x3 y3 ..."
    strange = next((word for word in words if not _NUMBER.fullmatch(word)), None)
    if strange is not None:
        return quoted(strange), "numbers"
    number = float(words[0])
    if not number.is_integer() or number < 0 or (names and number >= len(names)):
        return f"class {one_line(words[0])}", f"a whole number from 0 to {max(len(names) - 1, 0)}"
    outside = next((word for word in words[1:] if not 0 <= float(word) <= 1), None)
    return None if outside is None else (one_line(outside), "shares of the picture's sides, from 0 to 1")


def _box(values: list[float]) -> tuple[float, float, float, float]:
    """Xyxy of a box ``cx cy w h``, or around a polygon."""
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    xs, ys = values[::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _told(boxes: NDArray[np.float64], fitted: NDArray[np.float64], clipped: NDArray[np.bool_]) -> int:
    """How many clipped boxes to tell of: six digits after the point move an edge by less than 0.01 px."""
    return int((clipped & (np.abs(boxes - fitted).max(axis=1, initial=0) > 0.01)).sum())
