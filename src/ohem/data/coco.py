"""Read data sets in MS COCO's form: one JSON file with ``images``, ``annotations`` and ``categories``.

COCO's boxes are ``[x, y, width, height]``, 0-based (cocodataset.org, "Data format"); they become ``x, y, x + width, y +
height`` here.
Of an annotation's segmentation only the ``area`` is kept.
"""

import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.images import MAX_PIXELS
from ohem.data.rules import (
    BOX_ALLOWED,
    MAX_COORDINATE,
    AnnotationError,
    Annotations,
    BadBoxes,
    FittedBoxes,
    OtherClasses,
    Picture,
    Report,
    box_notes,
    box_problem,
    checked_classes,
    counted,
    fit_boxes,
    is_file,
    listed,
    one_line,
    other_class_notes,
    path_inside,
    quoted,
)
from ohem.errors import DataError, Fault


@dataclass(frozen=True)
class _Image:
    """One entry of ``images``; size (0, 0) where the declared one is faulty."""

    id: int
    path: Path
    width: int
    height: int


_ROW = np.dtype(
    [
        ("index", np.int64),  # in ``annotations``
        ("image", np.int64),  # position in the list of images
        ("category", np.int64),
        ("xywh", np.float64, 4),
        ("crowd", np.bool_),
        ("area", np.float64),  # NaN where the file has none
    ]
)
"""One annotation without a fault of its own."""


def read_coco(
    json_path: Path,
    image_dirs: Path | Sequence[Path],
    classes: Sequence[str] | None = None,
    *,
    other_classes: OtherClasses = "error",
    bad_boxes: BadBoxes = "error",
    annotations: Annotations = "required",
) -> DetectionDataset:
    """Read one COCO JSON file.

    Args:
        json_path: the file; 860,000 boxes with polygons take about 1.5 GB and 20 s.
        image_dirs: the folder that ``file_name`` starts from; of several, the first that has the file's first image.
        classes: the class list, in order. Without it: all categories, in the order of their ids, but for the one that
            Roboflow's exports begin with: without a box, and named as the ``supercategory`` of others.
        other_classes: whether boxes of categories outside the list, and classes of the list that are no category of the
            file, are faults; or left out and counted, and told. At least one class must be a category.
        bad_boxes: the same for boxes that are reversed, empty or outside their image.
        annotations: ``none``: the file need have none, and they are not looked at.

    Raises:
        DataError: with every fault of the file, and the images that are not there.
        OhemError: when the class list is unusable.
    """
    faults: list[Fault] = []

    def report(field: str, found: str, allowed: str) -> None:
        faults.append(Fault(json_path, field, found, allowed))

    document = _load(json_path)
    groups = _groups(document, classes or ())
    categories = _read_categories(document, groups, report)
    images = _read_images(document, _image_dir(document, image_dirs), report)
    if not categories or not images:
        # Every annotation would dangle: one fault must not become a million.
        raise DataError(faults)
    rows = np.empty(0, dtype=_ROW)
    if annotations == "required":
        rows = _read_annotations(document, images, categories, report)
    absent = _absent(categories, classes, other_classes, report)
    categories = categories | absent
    label_of = _labels(categories, classes)

    wanted = np.isin(rows["category"], list(label_of))
    others = Counter(categories[category] for category in rows["category"][~wanted].tolist())
    if other_classes == "error":
        allowed = f"{listed([categories[category] for category in label_of])} (or other_classes: drop)"
        for name, number in others.items():
            report("annotations", f"unknown class {quoted(name)} on {counted(number, 'box', 'boxes')}", allowed)
    rows = rows[wanted]
    fitted = _fit(rows, images, bad_boxes, report)
    if faults:
        sized = [image for image in images.values() if image.width and is_file(image.path)]
        raise AnnotationError(faults, [Picture(image.path, image.width, image.height) for image in sized])
    return DetectionDataset(
        name=f"{json_path.resolve().parent.name}/{json_path.stem}",
        format="coco",
        root=json_path,
        classes=tuple(categories[category] for category in label_of),
        category_ids=tuple(label_of),
        records=_records(images, rows[~fitted.bad], fitted.boxes[~fitted.bad], label_of),
        notes=(
            *box_notes(int(fitted.clipped.sum()), int(fitted.bad.sum())),
            *other_class_notes(others),
            *(
                [f"left out categories that group others and have no box: {listed(list(groups.values()))}"]
                if groups
                else []
            ),
            *([f"classes that are no category of the file: {listed(list(absent.values()))}"] if absent else []),
        ),
    )


def _load(path: Path) -> dict[str, Any]:
    """The JSON object in the file, without segmentations: most of COCO's bulk, let go while it is being read."""

    def without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        return entry

    try:
        document = json.loads(path.read_bytes(), object_hook=without_segmentation)
    except OSError as error:
        fault = Fault(path, "", one_line(error.strerror or str(error)), "a readable file")
    except json.JSONDecodeError as error:
        found = f"malformed JSON ({error.msg}, column {error.colno})"
        fault = Fault(path, f"line {error.lineno}", found, "well-formed JSON")
    except (ValueError, RecursionError) as error:
        fault = Fault(path, "", f"malformed JSON ({one_line(str(error))})", "well-formed JSON in UTF-8")
    else:
        if isinstance(document, dict):
            return document
        fault = Fault(path, "", f"JSON that is a {type(document).__name__}", "an object, as COCO's instances files")
    raise DataError([fault])


def _entries(document: dict[str, Any], key: str, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a list of the document, each with its position."""
    entries = document.get(key)
    if not isinstance(entries, list):
        report(key, _shown(document, key), "a list")
        return
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield index, entry
        else:
            report(f"{key}[{index}]", quoted(entry), "an object")


def _shown(entry: dict[str, Any], key: str) -> str:
    return quoted(entry[key]) if key in entry else "nothing"


def _is_integer(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: object, limit: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limit


def _groups(document: dict[str, Any], wanted: Sequence[str]) -> dict[int, str]:
    """Categories that are no classes but group others, as Roboflow's exports begin with one: id -> name.

    Its name may be that of a class, too. A wanted name that no other category has is a class.
    """
    entries = _objects(document, "categories")
    ids, names, parents = ([entry.get(key) for entry in entries] for key in ("id", "name", "supercategory"))
    found = {
        category_id: name
        for category_id, name, parent in zip(ids, names, parents, strict=True)
        if parent == "none" != name
        and name in parents
        and (name not in wanted or names.count(name) > 1)
        and _is_integer(category_id)
        and ids.count(category_id) == 1
    }
    boxed = [entry.get("category_id") for entry in _objects(document, "annotations")] if found else []
    return {category_id: str(name) for category_id, name in found.items() if category_id not in boxed}


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects in a list of the document, for a look ahead; the reader tells what is none."""
    entries = document.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _read_categories(document: dict[str, Any], groups: Container[int], report: Report) -> dict[int, str]:
    """Category id -> name, in the order of the ids, without groups."""
    names: dict[int, str] = {}
    for index, entry in _entries(document, "categories", report):
        field, category_id, name = f"categories[{index}]", entry.get("id"), entry.get("name")
        if not _is_integer(category_id) or category_id in names:
            report(f"{field}.id", _shown(entry, "id"), "an integer of its own")
            continue
        if category_id in groups:
            continue
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name in names.values():
            report(f"{field}.name", _shown(entry, "name"), "a printable name of its own")
        names[category_id] = str(name)
    if document.get("categories") == []:
        report("categories", "an empty list", "at least one category")
    return dict(sorted(names.items()))


def _image_dir(document: dict[str, Any], image_dirs: Path | Sequence[Path]) -> Path:
    """The folder of the images; the first where none has them, which the reader then tells."""
    if isinstance(image_dirs, Path):
        return image_dirs
    name = next((entry.get("file_name") for entry in _objects(document, "images")), None)
    for folder in image_dirs:
        path = path_inside(folder, name) if isinstance(name, str) and name else None
        if path is not None and is_file(path):
            return folder
    return image_dirs[0]


def _read_images(document: dict[str, Any], image_dir: Path, report: Report) -> dict[int, _Image]:
    """Image id -> image, in the order of the file; faulty ones too, so that their annotations do not dangle."""
    images: dict[int, _Image] = {}
    user_of: dict[str, int] = {}
    missing: list[tuple[int, str]] = []
    for index, entry in _entries(document, "images", report):
        image_id, name = entry.get("id"), entry.get("file_name")
        path = path_inside(image_dir, name) if isinstance(name, str) and name else None
        problems = list(_image_problems(entry, images, path))
        if isinstance(name, str) and user_of.setdefault(name, index) != index:
            problems.append(("file_name", f"a file of its own; images[{user_of[name]}] has this one"))
        for key, allowed in problems:
            report(f"images[{index}].{key}", _shown(entry, key), allowed)
        if path is not None and not is_file(path):
            missing.append((index, str(name)))
        if _is_integer(image_id):
            size = (0, 0) if problems else (entry["width"], entry["height"])
            images.setdefault(image_id, _Image(image_id, path or image_dir, *size))
    if document.get("images") == []:
        report("images", "an empty list", "at least one image")
    if len(missing) == len(images) > 1:
        found = f"{quoted(missing[0][1])} and none of the other {len(missing) - 1} files in {image_dir}"
        report("images", found, "the folder of the images; name it after the file, as in FILE.json@FOLDER")
    else:
        for index, name in missing:
            report(f"images[{index}].file_name", f"{quoted(name)}, which is not there", f"a file in {image_dir}")
    return images


def _image_problems(entry: dict[str, Any], images: dict[int, _Image], path: Path | None) -> Iterator[tuple[str, str]]:
    """(key, what is allowed) for each value of an image's entry that is not."""
    if not _is_integer(entry.get("id")) or entry["id"] in images:
        yield "id", "an integer of its own"
    if path is None:
        yield "file_name", "the name of a file inside the folder of images"
    width, height = entry.get("width"), entry.get("height")
    for key, side in (("width", width), ("height", height)):
        if not _is_integer(side) or side < 1:
            yield key, "a whole number of pixels from 1"
    if _is_integer(width) and _is_integer(height) and width * height > MAX_PIXELS:
        yield "width", f"at most {MAX_PIXELS} pixels in width times height"


def _read_annotations(
    document: dict[str, Any], images: dict[int, _Image], categories: dict[int, str], report: Report
) -> NDArray[Any]:
    """(N,) `_ROW`, in the order of the file."""
    position = {image_id: index for index, image_id in enumerate(images)}
    seen: set[int] = set()
    rows = []
    for index, entry in _entries(document, "annotations", report):
        problems = list(_annotation_problems(entry, seen, position, categories))
        for key, allowed in problems:
            report(f"annotations[{index}].{key}", _shown(entry, key), allowed)
        if not problems:
            crowd, area = entry.get("iscrowd", 0), entry.get("area", np.nan)
            rows.append((index, position[entry["image_id"]], entry["category_id"], tuple(entry["bbox"]), crowd, area))
    return np.array(rows, dtype=_ROW)


def _annotation_problems(
    entry: dict[str, Any], seen: set[int], position: dict[int, int], categories: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """(key, what is allowed) for each value of an annotation that is not; its id is added to ``seen``."""
    annotation_id, image_id, category_id, box = map(entry.get, ("id", "image_id", "category_id", "bbox"))
    if not _is_integer(annotation_id) or annotation_id in seen:
        yield "id", "an integer of its own"
    else:
        seen.add(annotation_id)
    if not _is_integer(image_id) or image_id not in position:
        yield "image_id", "the id of one of the images"
    if not _is_integer(category_id) or category_id not in categories:
        yield "category_id", "the id of one of the categories"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value, MAX_COORDINATE) for value in box):
        yield "bbox", f"[x, y, width, height], numbers of at most {MAX_COORDINATE:g} in size"
    if entry.get("iscrowd", 0) not in (0, 1):
        yield "iscrowd", "0 or 1"
    area = entry.get("area", 0)
    if not _is_number(area, MAX_COORDINATE**2) or area < 0:
        yield "area", "a number of square pixels from 0"


def _absent(
    categories: dict[int, str], classes: Sequence[str] | None, other_classes: OtherClasses, report: Report
) -> dict[int, str]:
    """Classes of the list that are no category, under ids of their own; faults where the list must be the file's."""
    names = () if classes is None else checked_classes(classes)
    absent = [name for name in names if name not in categories.values()]
    if other_classes == "error" or len(absent) == len(names):
        allowed = f"{listed(list(categories.values()))} (or other_classes: drop, where some are there)"
        for name in absent:
            report("categories", f"no category {quoted(name)}, which is in the class list", allowed)
    return dict(enumerate(absent, start=max(categories) + 1))


def _labels(categories: dict[int, str], classes: Sequence[str] | None) -> dict[int, int]:
    """Category id -> label, in the order of the labels. Two categories of one name keep a label each: a fault already."""
    id_of = {name: category_id for category_id, name in categories.items()}
    ids = list(categories) if classes is None else [id_of[name] for name in classes]
    return {category_id: label for label, category_id in enumerate(ids, start=1)}


def _fit(rows: NDArray[Any], images: dict[int, _Image], bad_boxes: BadBoxes, report: Report) -> FittedBoxes:
    """Clip the rows' boxes to their images; report the bad ones, except on images whose size is faulty."""
    sizes = np.array([(image.width, image.height) for image in images.values()], dtype=np.float64).reshape(-1, 2)
    sizes = sizes[rows["image"]]
    boxes = np.concatenate([rows["xywh"][:, :2], rows["xywh"][:, :2] + rows["xywh"][:, 2:]], axis=1)
    fitted = fit_boxes(boxes, sizes)
    if bad_boxes == "error":
        for row, box, (width, height) in zip(rows[fitted.bad], boxes[fitted.bad], sizes[fitted.bad], strict=True):
            if width:
                found = f"{row['xywh'].tolist()}: {box_problem(box, width, height)}"
                report(f"annotations[{row['index']}].bbox", found, BOX_ALLOWED)
    return fitted


def _records(
    images: dict[int, _Image], rows: NDArray[Any], boxes: NDArray[np.float64], label_of: dict[int, int]
) -> tuple[ImageRecord, ...]:
    order = np.argsort(rows["image"], kind="stable")
    rows, boxes = rows[order], boxes[order]
    labels = np.array([label_of[category] for category in rows["category"].tolist()], dtype=np.int64)
    area = np.where(np.isnan(rows["area"]), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), rows["area"])
    crowd = rows["crowd"].copy()
    ends = np.searchsorted(rows["image"], np.arange(len(images) + 1))
    return tuple(
        ImageRecord(
            id=image.id,
            path=image.path,
            width=image.width,
            height=image.height,
            boxes=boxes[start:end],
            labels=labels[start:end],
            difficult=np.zeros(end - start, dtype=bool),
            crowd=crowd[start:end],
            area=area[start:end],
        )
        for image, start, end in zip(images.values(), ends[:-1], ends[1:], strict=True)
    )
