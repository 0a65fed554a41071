"""Find and join data sets by the short names that recipes and the command line use.

A source is ``PATH`` or ``PATH@SPLIT``; several are joined, as in training on VOC's 07+12:

    VOC2007@trainval                       a VOC folder and one of its splits
    coco@val2017                           annotations/instances_val2017.json, with the images in val2017/
    coco/annotations/instances_val2017.json
    pets/instances.json@photos             a COCO file and the folder of its images
    pets                                   a folder with one COCO file in it, and its images beside it
    birds@valid                            birds/valid/_annotations.coco.json, with the images beside it
    birds@train, birds/data.yaml@train     a YOLO folder, with data.yaml in it, and one of its splits
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ohem.data.coco import read_coco
from ohem.data.dataset import DetectionDataset
from ohem.data.rules import AnnotationError, Annotations, BadBoxes, OtherClasses, Picture, as_names, listed
from ohem.data.voc import label_voc, scan_voc, voc_class_list, voc_splits
from ohem.data.yolo import read_yolo, yolo_splits
from ohem.errors import DataError, Fault, OhemError, did_you_mean
from ohem.files import user_path


@dataclass(frozen=True)
class VocSource:
    """One split of one VOC folder; without a split, all its annotations."""

    root: Path
    split: str | None


@dataclass(frozen=True)
class CocoSource:
    """One COCO JSON file and the folders that its images may be in: in the first that has the first of them."""

    json_path: Path
    image_dirs: tuple[Path, ...]


@dataclass(frozen=True)
class YoloSource:
    """One split of one YOLO data set, by its ``data.yaml``."""

    yaml_path: Path
    split: str


def load_dataset(
    sources: Sequence[str] | str,
    classes: Sequence[str] | None = None,
    *,
    other_classes: OtherClasses = "error",
    bad_boxes: BadBoxes = "error",
    annotations: Annotations = "required",
) -> DetectionDataset:
    """Read the sources and join them into one data set.

    Args:
        sources: at least one; all of one format. See `locate` for how they are found.
        classes: the class list, in order; without it as `voc_class_list` (over all sources together) and `read_coco`.
        other_classes: whether objects of other classes are faults or left out and counted.
        bad_boxes: the same for boxes that are reversed, empty or outside their image.
        annotations: ``none`` reads images alone, as of VOC2012's and COCO's test sets; annotations that are there all
            the same are not looked at.

    Raises:
        DataError: with every fault of every source.
        OhemError: when a source cannot be found, or the sources do not belong together.
    """
    sources = as_names(sources)
    found = [locate(source, annotations) for source in sources]
    if not found or len(set(found)) < len(found):
        raise OhemError(f"sources: found {listed(sources) or 'none'}; allowed: at least one, each once")
    voc = [source for source in found if isinstance(source, VocSource)]
    coco = [source for source in found if isinstance(source, CocoSource)]
    yolo = [source for source in found if isinstance(source, YoloSource)]
    formats = [name for name, of_it in (("VOC", voc), ("COCO", coco), ("YOLO", yolo)) if of_it]
    if len(formats) > 1:
        raise OhemError(
            f"sources: found {' and '.join(formats)} in {listed(sources)}; allowed: one format in a data set"
        )
    rules: dict[str, Any] = {
        "classes": classes,
        "other_classes": other_classes,
        "bad_boxes": bad_boxes,
        "annotations": annotations,
    }
    readers: list[Callable[[], DetectionDataset]]
    if coco:
        readers = [partial(read_coco, source.json_path, source.image_dirs, **rules) for source in coco]
    elif yolo:
        readers = [partial(read_yolo, source.yaml_path, source.split, **rules) for source in yolo]
    else:
        scans = [scan_voc(source.root, source.split, bad_boxes=bad_boxes, annotations=annotations) for source in voc]
        class_list = voc_class_list(scans, classes)
        readers = [partial(label_voc, scan, class_list, other_classes=other_classes) for scan in scans]
    dataset = join(_all(readers))
    _require_utf8(dataset)
    return dataset


def _require_utf8(dataset: DetectionDataset) -> None:
    """Raise AnnotationError for names that cannot be written: caches, results and reports are in UTF-8."""
    faults = []
    for record in dataset.records:
        try:
            f"{record.id}/{record.path.name}".encode()
        except UnicodeEncodeError:
            faults.append(Fault(record.path, "", "a file name that is not UTF-8", "UTF-8, as convmv makes it"))
    if faults:
        raise AnnotationError(faults, [Picture(r.path, r.width, r.height) for r in dataset.records])


def _all(readers: Iterable[Callable[[], DetectionDataset]]) -> list[DetectionDataset]:
    """What the readers return, or the faults of all of them."""
    datasets: list[DetectionDataset] = []
    faults: list[Fault] = []
    pictures: list[Picture] = []
    for read in readers:
        try:
            datasets.append(read())
        except AnnotationError as error:
            faults += error.faults
            pictures += error.pictures
        except DataError as error:
            faults += error.faults
    if faults:
        pictures += [Picture(r.path, r.width, r.height) for dataset in datasets for r in dataset.records]
        raise AnnotationError(faults, pictures)
    return datasets


def join(datasets: Sequence[DetectionDataset]) -> DetectionDataset:
    """One data set of all the images, in order.

    COCO files number their images and categories each for itself. Where two have an image id in common, all images of
    all files get ids made of the pictures' names; categories get the first file's ids. Both is told.

    Raises:
        DataError: when two data sets have a picture or, but for COCO's, an image id in common, or differ in format or
            classes.
    """
    first = datasets[0]
    if len(datasets) == 1:
        return first
    faults = []
    datasets = _renumbered(datasets)
    source_of: dict[str | int, str] = {}
    path_of: dict[Path, str] = {}
    for dataset in datasets:
        for what in ("format", "classes"):
            theirs, ours = getattr(dataset, what), getattr(first, what)
            if theirs != ours:
                faults.append(Fault(dataset.root, what, _short(theirs), f"{_short(ours)}, as in {first.name}"))
        shared = [record.id for record in dataset.records if record.id in source_of]
        if shared:
            found = (
                f"image ids that {source_of[shared[0]]} has too: {listed([str(image_id) for image_id in shared], 5)}"
            )
            faults.append(Fault(dataset.root, "", found, "ids of its own in each of the joined data sets"))
        elif twice := [record.path for record in dataset.records if record.path in path_of]:
            found = f"pictures that {path_of[twice[0]]} has too: {listed([path.name for path in twice], 5)}"
            faults.append(Fault(dataset.root, "", found, "each picture in one of the joined data sets"))
        source_of.update((record.id, dataset.name) for record in dataset.records)
        path_of.update((record.path, dataset.name) for record in dataset.records)
    if faults:
        raise DataError(faults)
    return DetectionDataset(
        name="+".join(dataset.name for dataset in datasets),
        format=first.format,
        root=first.root,
        classes=first.classes,
        category_ids=first.category_ids,
        records=tuple(record for dataset in datasets for record in dataset.records),
        notes=tuple(f"{dataset.name}: {note}" for dataset in datasets for note in dataset.notes),
    )


def _renumbered(datasets: Sequence[DetectionDataset]) -> list[DetectionDataset]:
    """The data sets, COCO's with ids as :func:`join` wants them; those that show a picture twice keep theirs.

    Ids made of names, and not counted on, do not depend on the order of the files: what was written by the ids of
    other sources finds no image, in place of another one.
    """
    records = [record for dataset in datasets for record in dataset.records]
    if any(dataset.format != "coco" for dataset in datasets) or len({r.path for r in records}) < len(records):
        return list(datasets)
    first = datasets[0]
    numbers_alike = len({record.id for record in records}) < len(records)
    home = os.path.commonpath([record.path.parent.absolute() for record in records])
    joined = []
    for dataset in datasets:
        notes = []
        if numbers_alike:
            dataset = replace(dataset, records=tuple(replace(r, id=_id_of(r.path, home)) for r in dataset.records))
            notes.append("image ids made of the names of the pictures, since files of the data number alike")
        if dataset.category_ids != first.category_ids and dataset.classes == first.classes:
            dataset = replace(dataset, category_ids=first.category_ids)
            notes.append(f"category ids of {first.name} in place of its own")
        joined.append(replace(dataset, notes=(*dataset.notes, *notes)))
    return joined


def _id_of(picture: Path, home: str) -> int:
    """A number under 2**53, which every reader of JSON keeps whole."""
    name = picture.absolute().relative_to(home).as_posix()
    return int(hashlib.sha256(name.encode()).hexdigest()[:13], 16)


def _short(value: object) -> str:
    return listed([str(item) for item in value]) if isinstance(value, tuple) else str(value)


def locate(source: str, annotations: Annotations = "required") -> VocSource | CocoSource | YoloSource:
    """Find what ``PATH`` or ``PATH@SPLIT`` means.

    The ``@`` parts path and split only where the whole is no path. Then, in this order:

    - a folder with ``Annotations`` is VOC's. Without a split: the only file of ``ImageSets/Main``, else
      ``trainval``, else, where there are no files, all annotations;
    - a JSON file is COCO's. Its images are in the folder SPLIT, relative to the file; without one in the first of
      these that has the file's first image: ``images`` beside the file; for ``instances_X.json`` in ``../X``, for any
      ``annotations/*.json`` also in ``../images/X``, ``../images`` and ``..``; the file's own folder;
    - a folder with ``annotations/instances_SPLIT.json`` (SPLIT may be left out where there is one such file), else
      with exactly one ``*.json``, else with ``SPLIT/_annotations.coco.json``, is COCO's;
    - a file ``*.yaml``, or a folder with ``data.yaml``, is YOLO's, also beside a JSON file. SPLIT may be left out
      where there is one.

    Where no annotations are required, a folder with ``JPEGImages`` is VOC's, and COCO's file is
    ``annotations/image_info_SPLIT.json``; its images are in ``SPLIT``, those of ``test-dev2015`` in ``test2015``, of
    which they are a part.

    Raises:
        OhemError: in one line, when nothing is found or the choice is not plain; it lists what there is.
    """
    path, split = _parted(source)
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return _yolo(path, split)
    if not path.is_dir():
        return _coco_file(path, split)
    voc_folder, prefix = ("Annotations", "instances_") if annotations == "required" else ("JPEGImages", "image_info_")
    if voc_folder in {child.name for child in path.iterdir()}:
        return VocSource(path, split if split is not None else _default_split(path))
    if (path / "data.yaml").is_file():
        return _yolo(path / "data.yaml", split)
    there = set(_names(path))
    if {"images", "labels"} <= there <= {"images", "labels", "classes.txt", "notes.json"}:  # as Label Studio exports
        raise OhemError(
            f"{path}: found images and labels, but no data.yaml; allowed: one with `train: images` and `names: [CLASS, "
            "CLASS]`, those of classes.txt where there is one"
        )
    return _coco_folder(path, split, prefix)


def _yolo(path: Path, split: str | None) -> YoloSource:
    splits = yolo_splits(path)
    if split in splits:
        return YoloSource(path, str(split))
    if split is None and len(splits) == 1:
        return YoloSource(path, splits[0])
    named = f"no split {split!r}{did_you_mean(split, splits)}" if split is not None else None
    found = named or f"{len(splits)} splits and none named"
    allowed = _with(path, splits) or "one of the keys train, val, test"
    raise OhemError(f"{path}: found {found}; allowed: {allowed}")


def _parted(source: str) -> tuple[Path, str | None]:
    whole = user_path(source)
    if source and whole.exists():
        return whole, None
    head, at, split = source.rpartition("@")
    path = user_path(head)
    if at and head and split and path.exists():
        return path, split
    wanted = path if at and head else whole
    near = get_close_matches(wanted.name, _names(wanted.parent), n=1)
    hint = f"; did you mean {wanted.parent / near[0]}?" if near else ""
    raise OhemError(
        f"{source or 'an empty source'}: found no such file or folder; allowed: a VOC folder, a COCO JSON file or a "
        f"folder with one, a YOLO data.yaml or its folder, and after it, if anything, @SPLIT{hint}"
    )


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []


def _default_split(root: Path) -> str | None:
    splits = voc_splits(root)
    if len(splits) <= 1:
        return splits[0] if splits else None
    if "trainval" in splits:
        return "trainval"
    raise OhemError(f"{root}: found {len(splits)} splits and none named; allowed: {_with(root, splits)}")


def _with(path: Path, splits: Sequence[str]) -> str:
    return listed([f"{path}@{split}" for split in splits])


def _coco_file(path: Path, folder: str | None) -> CocoSource:
    if path.suffix.lower() != ".json":
        raise OhemError(f"{path}: found a file that is not *.json; allowed: a COCO JSON file, or a folder")
    beside, above = path.parent, path.parent.parent
    if folder is not None:
        if not (beside / folder).is_dir():
            raise OhemError(f"{path}@{folder}: found no folder {beside / folder}; allowed: the folder of the images")
        return CocoSource(path, (beside / folder,))
    standard = re.fullmatch(r"instances_(.+)|image_info_(.+)", path.stem)
    part = (standard[1] or standard[2].replace("-dev", "")) if standard else ""
    candidates = [beside / "images", *([above / part] if part else [])]
    if beside.name == "annotations":
        candidates += [above / "images" / part, above / "images", above]
    return CocoSource(path, (*dict.fromkeys(filter(Path.is_dir, candidates)), beside))


def _coco_folder(path: Path, split: str | None, prefix: str) -> CocoSource:
    standard = {file.stem.removeprefix(prefix): file for file in sorted((path / "annotations").glob(f"{prefix}*.json"))}
    files = [file for file in sorted(path.glob("*.json")) if not file.name.startswith(".")]
    if not standard and not files:  # as Roboflow exports
        standard = {file.parent.name: file for file in sorted(path.glob("*/_annotations.coco.json"))}
    if split in standard:
        return _coco_file(standard[split], None)
    if split is None and len(standard) == 1:
        return _coco_file(next(iter(standard.values())), None)
    if len(files) == 1 and not standard:
        return _coco_file(files[0], split)
    if standard or files:
        choices = _with(path, list(standard)) if standard else listed([str(file) for file in files])
        wanted = f"{split}{did_you_mean(split, standard)}" if split else "a source without @SPLIT"
        raise OhemError(f"{path}: found no plain choice for {wanted}; allowed: {choices}")
    inner = [child for child in sorted(path.iterdir()) if (child / "Annotations").is_dir()]
    hint = f"; did you mean {listed([str(child) for child in inner])}?" if inner else ""
    raise OhemError(
        f"{path}: found neither Annotations nor a COCO JSON file nor data.yaml in it; allowed: a VOC folder "
        f"(Annotations, JPEGImages), a YOLO folder (data.yaml) or a COCO folder (one *.json, annotations/{prefix}SPLIT.json, "
        f"or SPLIT/_annotations.coco.json){hint}"
    )
