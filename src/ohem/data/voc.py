"""Read data sets in PASCAL VOC's form.

    ROOT/Annotations/ID.xml
    ROOT/JPEGImages/ID.jpg
    ROOT/ImageSets/Main/SPLIT.txt     lines ``ID`` or ``ID FLAG``, the flag being -1, 0 or 1

VOC's boxes count pixels from 1 and include both corners (VOC2012 devkit documentation, section 4.2): the box ``xmin,
ymin, xmax, ymax`` becomes ``xmin - 1, ymin - 1, xmax, ymax`` here.

Reading goes in two steps, so that joined data sets can share one class list: `scan_voc` reads what the files say,
`label_voc` turns class names into labels.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePath
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.images import MAX_PIXELS, image_size, is_picture
from ohem.data.rules import (
    BOX_ALLOWED,
    CLASSES_ALLOWED,
    MAX_COORDINATE,
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
    listed,
    one_line,
    other_class_notes,
    path_inside,
    quoted,
    read_text,
)
from ohem.errors import DataError, Fault, OhemError, did_you_mean

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes in the order of VOC's development kit."""

MAX_XML_BYTES = 8 * 2**20
"""An annotation file of more is refused unread: 20,000 objects need less."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
SIDES = ("xmin", "ymin", "xmax", "ymax")
"""A box's tags, in the order in which we keep them; VOC's files order them otherwise at times."""


@dataclass(frozen=True)
class VocObject:
    """One <object> as it stands.

    Attributes:
        field: its place in the file, such as ``object[2]``, counted from 0.
        name: its class.
        difficult: VOC's flag; False where it is missing.
        corners: xmin, ymin, xmax, ymax as VOC counts them: from 1, inclusive.
    """

    field: str
    name: str
    difficult: bool
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class VocImage:
    """One annotation file as it stands.

    Attributes:
        id: the file's stem.
        xml: the annotation file; of images read without annotations, where it would be.
        path: the image.
        width: in pixels, declared, or from the image where <size> is missing.
        height: likewise.
        objects: G of them, one for each box.
        boxes: (G, 4) float64, xyxy, 0-based half-open, clipped to the image.
        clipped: how many boxes were.
        dropped: how many bad boxes were left out.
    """

    id: str
    xml: Path
    path: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]
    boxes: NDArray[np.float64]
    clipped: int
    dropped: int


@dataclass(frozen=True, eq=False)
class VocScan:
    """One split of one VOC folder as it stands, before class names become labels.

    Attributes:
        root: the folder.
        name: for people, such as ``VOC2007@trainval``.
        images: those without a fault, in the order of the split.
        faults: everything found wrong so far.
        notes: what was left out, counted.
        pictures: those of all images, with a fault or without, where they are there and their size is known.
    """

    root: Path
    name: str
    images: tuple[VocImage, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @cached_property
    def class_names(self) -> frozenset[str]:
        """The class names that objects have."""
        return frozenset(item.name for image in self.images for item in image.objects)


def voc_splits(root: Path) -> tuple[str, ...]:
    """The splits of a VOC folder, sorted; without ``CLASS_SPLIT`` where there is a ``SPLIT``."""
    names = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt")}
    return tuple(sorted(name for name in names if name.rpartition("_")[2] not in names - {name}))


def voc_class_list(scans: Sequence[VocScan], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The one class list of scans that belong together.

    ``classes`` where it is given; else that of ``ROOT/classes.txt`` (one name a line); else VOC's twenty where no other
    name occurs; else the names that occur, sorted.

    Raises:
        DataError: when a ``classes.txt`` is unusable.
        OhemError: when ``classes`` is, or two scans' ``classes.txt`` differ.
    """
    if classes is not None:
        return checked_classes(classes)
    files = {path: _read_class_file(path) for scan in scans if (path := scan.root / "classes.txt").is_file()}
    if len(set(files.values())) > 1:
        paths = listed([str(path) for path in files])
        raise OhemError(f"classes.txt: found different lists in {paths}; allowed: one list, or give classes")
    if files:
        return next(iter(files.values()))
    found = frozenset[str]().union(*(scan.class_names for scan in scans))
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _read_class_file(path: Path) -> tuple[str, ...]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = tuple(line for line in lines if line)
    problem = class_list_problem(names)
    if problem is not None:
        raise DataError([Fault(path, "", problem, CLASSES_ALLOWED)])
    return names


def label_voc(scan: VocScan, classes: tuple[str, ...], *, other_classes: OtherClasses) -> DetectionDataset:
    """Turn class names into labels 1..C.

    Raises:
        DataError: with the faults of the scan and those of class names, sorted by file.
    """
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    strange = [(image.xml, item) for image in scan.images for item in image.objects if item.name not in label_of]
    faults = list(scan.faults)
    if other_classes == "error":
        allowed = f"{listed(classes)} (or other_classes: drop)"
        for xml, item in strange:
            faults.append(Fault(xml, f"{item.field}.name", f"unknown class {quoted(item.name)}", allowed))
    if faults:
        raise AnnotationError(sorted(faults, key=lambda fault: fault.file), scan.pictures)
    return DetectionDataset(
        name=scan.name,
        format="voc",
        root=scan.root,
        classes=classes,
        category_ids=tuple(label_of.values()),
        records=tuple(_record(image, label_of) for image in scan.images),
        notes=(*scan.notes, *other_class_notes(Counter(item.name for _, item in strange))),
    )


def _record(image: VocImage, label_of: dict[str, int]) -> ImageRecord:
    kept = [index for index, item in enumerate(image.objects) if item.name in label_of]
    objects = [image.objects[index] for index in kept]
    boxes = image.boxes[kept]
    return ImageRecord(
        id=image.id,
        path=image.path,
        width=image.width,
        height=image.height,
        boxes=boxes,
        labels=np.array([label_of[item.name] for item in objects], dtype=np.int64),
        difficult=np.array([item.difficult for item in objects], dtype=bool),
        crowd=np.zeros(len(objects), dtype=bool),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def scan_voc(
    root: Path, split: str | None, *, bad_boxes: BadBoxes = "error", annotations: Annotations = "required"
) -> VocScan:
    """Read one split of one VOC folder as far as it can be read without a class list.

    Raises:
        OhemError: when the folder is not in VOC's form, or the split does not exist.
    """
    annotated = annotations == "required"
    for folder in ("Annotations", "JPEGImages") if annotated else ("JPEGImages",):
        if not (root / folder).is_dir():
            raise OhemError(f"{root}: found no folder {folder}; allowed: a VOC folder, which has one")
    faults: list[Fault] = []
    pictures = _Pictures(root / "JPEGImages")
    seen: dict[Path, Picture] = {}
    if split is None:
        ids = _all_ids(root) if annotated else pictures.ids()
    elif annotated:
        ids = _split_ids(root, split, faults, "Annotations/ID.xml", partial(_has_annotation, root))
    else:
        ids = _split_ids(root, split, faults, "JPEGImages/ID.jpg", pictures.by_stem.__contains__)
    scan = _scan_image if annotated else _scan_picture
    images = [
        image for image_id in ids if (image := scan(root, image_id, pictures, bad_boxes, faults, seen)) is not None
    ]
    notes = box_notes(sum(image.clipped for image in images), sum(image.dropped for image in images))
    if pictures.misnamed:
        files = counted(pictures.misnamed, "annotation", "annotations")
        notes.append(f"{files} with another picture in <filename> than that of the file's own name: took the latter")
    unused = pictures.unused()
    if split is None and unused:
        notes.append(f"left out {counted(len(unused), 'picture', 'pictures')} without annotation: {listed(unused, 5)}")
    name = root.resolve().name
    return VocScan(
        root,
        name if split is None else f"{name}@{split}",
        tuple(images),
        tuple(faults),
        tuple(notes),
        tuple(seen.values()),
    )


def _all_ids(root: Path) -> list[str]:
    ids = sorted(path.stem for path in (root / "Annotations").glob("*.xml") if not path.name.startswith("."))
    if not ids:
        raise OhemError(f"{root / 'Annotations'}: found no file *.xml; allowed: at least one")
    return ids


def _split_ids(root: Path, split: str, faults: list[Fault], wanted: str, exists: Callable[[str], bool]) -> list[str]:
    """The IDs in a split file; ``exists`` tells whether an ID's file, in the form ``wanted``, is there."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not is_file(path):
        there = voc_splits(root)
        hint = did_you_mean(split, there)
        raise OhemError(f"{path}: found no such split{hint}; allowed: {listed(there) or 'none is there'}")
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        image_id = _id_in(line.strip(), exists)
        if image_id in first_line:
            found = f"{quoted(image_id)} again, after line {first_line[image_id]}"
            faults.append(Fault(path, f"line {number}", found, "each image once"))
        elif not exists(image_id):
            found = f"{quoted(image_id)}, which has no file in {PurePath(wanted).parent}"
            allowed = f"the ID of a file {wanted}, and after it, if anything, a flag -1, 0 or 1"
            faults.append(Fault(path, f"line {number}", found, allowed))
        else:
            first_line[image_id] = number
    if not first_line and not faults:
        faults.append(Fault(path, "", "an empty split", "at least one image"))
    return list(first_line)


def _id_in(line: str, exists: Callable[[str], bool]) -> str:
    """The line's ID, without its flag; names with spaces are IDs where such a file exists."""
    flagged = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
    return flagged[1] if flagged and not exists(line) else line


def _has_annotation(root: Path, image_id: str) -> bool:
    path = path_inside(root / "Annotations", f"{image_id}.xml")
    return path is not None and is_file(path)


class _Pictures:
    """The files of JPEGImages, and who has claimed which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[str]] = {}
        for path in sorted(folder.iterdir()):
            if is_picture(path):
                self.by_stem.setdefault(path.stem, []).append(path.name)
        self.claimed: dict[Path, str] = {}
        self.misnamed = 0

    def find(self, image_id: str, file_name: str, report: Report) -> Path | None:
        """The picture with the annotation's own stem, as VOC's kit has it; else, or of several, what <filename> names."""
        same_stem, named = self.by_stem.get(image_id, []), path_inside(self.folder, file_name)
        if len(same_stem) == 1:
            path = self.folder / same_stem[0]
            self.misnamed += named is not None and named != path and is_file(named)
        elif named is None:
            report("filename", quoted(file_name), "a file inside JPEGImages")
            return None
        elif is_file(named):
            path = named
        else:
            here = f"{listed(same_stem)} in JPEGImages" if same_stem else "no such picture in JPEGImages"
            report("filename", f"{quoted(file_name)} and {here}", f"one picture, named so or {image_id}.jpg")
            return None
        claimant = self.claimed.setdefault(path, image_id)
        if claimant != image_id:
            report("filename", f"{quoted(path.name)}, the picture of {claimant}.xml", "a picture of its own")
        return path

    def ids(self) -> list[str]:
        """The stems of all pictures, sorted."""
        if not self.by_stem:
            raise OhemError(f"{self.folder}: found no picture; allowed: at least one, such as ID.jpg")
        return sorted(self.by_stem)

    def unused(self) -> list[str]:
        """The names of pictures that no annotation claimed, sorted."""
        claimed = {path.name for path in self.claimed}
        return sorted(name for names in self.by_stem.values() for name in names if name not in claimed)


def _scan_image(
    root: Path, image_id: str, pictures: _Pictures, bad_boxes: BadBoxes, faults: list[Fault], seen: dict[Path, Picture]
) -> VocImage | None:
    xml = root / "Annotations" / f"{image_id}.xml"
    before = len(faults)

    def report(field: str, found: str, allowed: str) -> None:
        faults.append(Fault(xml, field, found, allowed))

    annotation = _parse(xml, report)
    if annotation is None:
        return None
    path = pictures.find(image_id, (annotation.findtext("filename") or "").strip(), report)
    size = _read_size(annotation, path, faults, report)
    objects = [
        item
        for index, element in enumerate(annotation.findall("object"))
        if (item := _read_object(element, f"object[{index}]", report)) is not None
    ]
    if path is None or size is None:
        return None
    seen.setdefault(path, Picture(path, *size))
    boxes = np.array([item.corners for item in objects], dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0)
    fitted = fit_boxes(boxes, np.array(size, dtype=np.float64))
    if bad_boxes == "error":
        for index in np.flatnonzero(fitted.bad):
            corners = ", ".join(f"{side} {value:g}" for side, value in zip(SIDES, objects[index].corners, strict=True))
            report(f"{objects[index].field}.bndbox", f"{corners}: {box_problem(boxes[index], *size)}", BOX_ALLOWED)
    if len(faults) > before:
        return None
    kept = np.flatnonzero(~fitted.bad)
    return VocImage(
        id=image_id,
        xml=xml,
        path=path,
        width=size[0],
        height=size[1],
        objects=tuple(objects[index] for index in kept),
        boxes=fitted.boxes[kept],
        clipped=int(fitted.clipped.sum()),
        dropped=int(fitted.bad.sum()),
    )


def _scan_picture(
    root: Path, image_id: str, pictures: _Pictures, _: BadBoxes, faults: list[Fault], seen: dict[Path, Picture]
) -> VocImage | None:
    """As `_scan_image`, of an image of which nothing is known but the picture."""
    names = pictures.by_stem[image_id]
    if len(names) > 1:
        faults.append(Fault(pictures.folder, image_id, listed(names), "one picture for each ID"))
        return None
    path = pictures.folder / names[0]
    pictures.claimed[path] = image_id
    try:
        width, height = image_size(path)
    except DataError as error:
        faults += error.faults
        return None
    seen.setdefault(path, Picture(path, width, height))
    xml = root / "Annotations" / f"{image_id}.xml"
    return VocImage(image_id, xml, path, width, height, (), np.zeros((0, 4)), clipped=0, dropped=0)


def _parse(xml: Path, report: Report) -> Element | None:
    try:
        if xml.stat().st_size > MAX_XML_BYTES:
            report("", f"{xml.stat().st_size} bytes", f"at most {MAX_XML_BYTES} bytes")
            return None
        annotation: Element = ElementTree.fromstring(xml.read_bytes())
    except OSError as error:
        report("", one_line(error.strerror or str(error)), "a readable file")
    except ElementTree.ParseError as error:
        report(f"line {error.position[0]}", f"malformed XML ({one_line(str(error))})", "well-formed XML")
    except DefusedXmlException as error:
        report("", f"an entity declaration ({type(error).__name__})", "XML without entities of its own")
    except (ValueError, LookupError) as error:
        report("", one_line(str(error)), "XML in UTF-8, or another encoding that Python's expat reads")
    else:
        if annotation.tag == "annotation":
            return annotation
        report("", f"<{one_line(annotation.tag)}> as the outermost tag", "<annotation>")
    return None


def _read_size(annotation: Element, path: Path | None, faults: list[Fault], report: Report) -> tuple[int, int] | None:
    if annotation.find("size") is None:
        try:
            return None if path is None else image_size(path)
        except DataError as error:
            faults += error.faults
            return None
    size = _only(annotation, "size", "size", report)
    if size is None:
        return None
    width, height = (_whole_number(size, side, f"size.{side}", report) for side in ("width", "height"))
    if width is None or height is None:
        return None
    if width * height > MAX_PIXELS:
        report("size", f"{width} x {height}", f"at most {MAX_PIXELS} pixels")
        return None
    return width, height


def _read_object(element: Element, field: str, report: Report) -> VocObject | None:
    name = _text(element, "name", f"{field}.name", report)
    if name is not None and not (name and name.isprintable()):
        report(f"{field}.name", quoted(name) if name else "an empty name", "a class name of printable characters")
        name = None
    no_flag = element.find("difficult") is None
    difficult = "0" if no_flag else _text(element, "difficult", f"{field}.difficult", report)
    if difficult not in ("0", "1", None):
        report(f"{field}.difficult", quoted(difficult), "0 or 1")
    # Only the object's own box: its <part> elements (head, hand, foot) hold boxes too.
    box = _only(element, "bndbox", f"{field}.bndbox", report)
    if box is None:
        return None
    corners = [_number(box, side, f"{field}.bndbox.{side}", report) for side in SIDES]
    x1, y1, x2, y2 = corners
    if not name or x1 is None or y1 is None or x2 is None or y2 is None:
        return None
    return VocObject(field, name, difficult == "1", (x1, y1, x2, y2))


def _only(parent: Element, tag: str, field: str, report: Report) -> Element | None:
    children = parent.findall(tag)
    if len(children) != 1:
        report(field, f"{len(children) or 'no'} <{tag}>", f"one <{tag}>")
        return None
    return children[0]


def _text(parent: Element, tag: str, field: str, report: Report) -> str | None:
    child = _only(parent, tag, field, report)
    return None if child is None else (child.text or "").strip()


def _number(parent: Element, tag: str, field: str, report: Report) -> float | None:
    text = _text(parent, tag, field, report)
    if text is None:
        return None
    if _NUMBER.fullmatch(text) and abs(float(text)) <= MAX_COORDINATE:
        return float(text)
    report(field, quoted(text), f"a number, at most {MAX_COORDINATE:g} in size")
    return None


def _whole_number(parent: Element, tag: str, field: str, report: Report) -> int | None:
    value = _number(parent, tag, field, report)
    if value is None or (value >= 1 and value.is_integer()):
        return None if value is None else int(value)
    report(field, f"{value:g}", "a whole number of pixels from 1")
    return None
