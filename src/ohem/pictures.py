"""Detections on people's own pictures: find them, detect, draw."""

import colorsys
import glob
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ohem.data.dataset import DetectionDataset, Detections, ImageId, ImageRecord
from ohem.data.images import image_size, is_picture, read_image
from ohem.data.rules import as_names
from ohem.errors import DataError, Fault, OhemError
from ohem.files import atomic_writer, new_folder, user_path, write_atomically
from ohem.judging import run_detector
from ohem.models.weights import load_detector
from ohem.opening import SILENT, Reporter, open_proposals
from ohem.training.run import Weights, find_weights

JPEG_MAX_SIDE = 65500
"""Pixels, of libjpeg."""

Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """A colour for class 1..C, far from that of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803) % 1.0, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    captions: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """A copy of the image with boxes and captions drawn on it.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (D, 4) xyxy, 0-based half-open pixels; the last is drawn on top.
        captions: one a box; empty for none.
        colours: one a box.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(10, round(min(picture.size) / 28)))
    for (x1, y1, x2, y2), caption, colour in zip(boxes.tolist(), captions, colours, strict=True):
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        if caption:
            left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
            width, height = right - left + 4, bottom - top + 4
            start, above = max(0.0, min(x1, picture.width - 1 - width)), max(0.0, y1 - height)
            pen.rectangle((start, above, start + width, above + height), fill=colour)
            pen.text((start + 2 - left, above + 2 - top), caption, fill=_readable_on(colour), font=font)
    return picture


def drawn_names(classes: Sequence[str]) -> list[str]:
    """Names of the labels 1..C for captions: ``class N`` in place of one with letters that the font does not have."""
    font = ImageFont.load_default(size=20)

    def drawn(letter: str) -> bytes:
        mask: Any = font.getmask(letter)
        return bytes(mask)

    none = drawn("\uffff")  # no character: what a font shows for all that it does not have
    return [
        f"class {label}" if any(drawn(letter) == none for letter in set(name)) else name
        for label, name in enumerate(classes, start=1)
    ]


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


@dataclass(frozen=True, eq=False)
class DetectedPictures:
    """What :func:`detect_pictures` found, and where it wrote it.

    Attributes:
        folder: with the drawn pictures and detections.json.
        classes: names of the labels 1..C.
        detections: picture -> detections, in its pixels.
        listing: what detections.json holds.
    """

    folder: Path
    classes: tuple[str, ...]
    detections: Mapping[Path, Detections]
    listing: Mapping[str, Any]


def detect_pictures(
    source: Path | str,
    images: Sequence[str] | str,
    *,
    out: Path | None = None,
    threshold: float = 0.5,
    weights: Weights = "best",
    device: str | None = None,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> DetectedPictures:
    """Detect objects in pictures, draw them on copies, and write them as JSON.

    Args:
        source: a run's folder, or a weights file.
        images: files, folders, or glob patterns.
        out: a new folder; the first free of ``detections``, ``detections-2``, ... when omitted.
        threshold: detections with a lower score are left out.
        weights: which of a run's weights.
        device: such as ``cuda:1``; CUDA where there is one, when omitted.
        workers: processes that read images and make proposals.
        reporter: told of what goes on.

    Raises:
        OhemError: no such weights or pictures, or a picture cannot be read.
    """
    detector, spec, classes = load_detector(find_weights(source, weights))
    pictures = _as_dataset(find_pictures(as_names(images)), classes)
    records = pictures.records
    with new_folder(out, Path("detections")) as folder:
        start = time.perf_counter()
        proposals = open_proposals(pictures, (), spec.given_proposals, workers, reporter)
        made = time.perf_counter()
        shown = spec.detection.model_copy(update={"score_threshold": threshold})
        spec = spec.model_copy(update={"detection": shown})
        found = run_detector(detector, spec, records, proposals, device=device, workers=workers, reporter=reporter)
        done = time.perf_counter()
        reporter.say(f"{done - start:.1f} s, {100 * (made - start) / (done - start):.0f} % of it making proposals")
        listing = _write(folder, records, found, classes, reporter)
    of_picture = {record.path: found[record.id] for record in pictures.records}
    return DetectedPictures(folder, classes, of_picture, listing)


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Files, the pictures in folders, and what glob patterns match; each once, in order.

    Raises:
        OhemError: a name leads to no picture.
    """
    found: list[Path] = []
    for name in names:
        path = user_path(name)
        if not name:
            here = []
        elif path.is_dir():
            here = sorted(child for child in path.iterdir() if is_picture(child))
        elif path.is_file():
            here = [path]
        else:
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
            here = [match for match in matches if match.is_file()]
        if not here:
            raise OhemError(
                f"{name or 'an empty name'}: found no pictures; allowed: files, folders with pictures, or glob patterns in quotes"
            )
        found += here
    return list(dict.fromkeys(found))


def _as_dataset(paths: Sequence[Path], classes: tuple[str, ...]) -> DetectionDataset:
    """A data set without annotations. All headers are read first, so that every broken picture is named at once."""
    records: list[ImageRecord] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            width, height = image_size(path)
        except DataError as error:
            faults += error.faults
            continue
        nothing = np.zeros(0, dtype=bool)
        boxes, labels = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
        key = str(path.resolve())
        records.append(ImageRecord(key, path, width, height, boxes, labels, nothing, nothing, np.zeros(0)))
    if faults:
        raise DataError(faults)
    ids = tuple(range(1, len(classes) + 1))
    return DetectionDataset("pictures", "voc", paths[0].parent, classes, ids, tuple(records))


def _write(
    folder: Path,
    records: Sequence[ImageRecord],
    found: Mapping[ImageId, Detections],
    classes: Sequence[str],
    reporter: Reporter,
) -> dict[str, Any]:
    names, captions = _names_of_drawings(records), drawn_names(classes)
    shown = sorted({int(label) - 1 for record in records for label in found[record.id].labels})
    replaced = [f"{classes[i]} is {captions[i]}" for i in shown if captions[i] != classes[i]]
    if replaced:
        reporter.warn(f"the font of drawn pictures lacks letters of some classes: in them, {', '.join(replaced)}")
    listing = []
    for record, name in zip(records, names, strict=True):
        one = found[record.id]
        objects = [
            {"class": classes[label - 1], "score": float(score), "box": [float(value) for value in box]}
            for label, score, box in zip(one.labels, one.scores, one.boxes, strict=True)
        ]
        listing.append({"image": str(record.path), "picture": name, "objects": objects})
    content = {"boxes": "x1 y1 x2 y2, pixels of the image, 0-based, half-open", "images": listing}
    write_atomically(folder / "detections.json", json.dumps(content, indent=1) + "\n")
    for record, name in zip(records, names, strict=True):
        one = found[record.id]
        order = np.argsort(one.scores, kind="stable")
        picture = draw_boxes(
            read_image(record.path),
            one.boxes[order],
            [
                f"{captions[label - 1]} {score:.2f}"
                for label, score in zip(one.labels[order], one.scores[order], strict=True)
            ],
            [class_colour(int(label)) for label in one.labels[order]],
        )
        with atomic_writer(folder / name) as file:
            picture.save(file, "PNG" if name.endswith(".png") else "JPEG", quality=90)
    return content


def _names_of_drawings(records: Sequence[ImageRecord]) -> list[str]:
    """``STEM.jpg``, or ``.png`` of what is too long for JPEG; pictures of one stem must not replace each other."""
    stems = Counter(record.path.stem.lower() for record in records)  # some disks do not tell a from A
    names = []
    for record in records:
        twin = stems[record.path.stem.lower()] > 1
        tail = f"-{hashlib.sha256(str(record.id).encode()).hexdigest()[:6]}" if twin else ""
        suffix = ".jpg" if max(record.width, record.height) <= JPEG_MAX_SIDE else ".png"
        names.append(f"{record.path.stem}{tail}{suffix}")
    return names
