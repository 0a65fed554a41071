"""Proposals from files: Fast R-CNN's ``.mat``, COCO's results JSON, and our own cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from ohem.data.dataset import ImageId, ImageRecord, Proposals
from ohem.data.rules import SLACK, box_problem, counted, fit_boxes, listed, one_line, quoted
from ohem.errors import DataError, Fault
from ohem.proposals.cache import ProposalCache
from ohem.proposals.mat_files import read_mat

_SHOWN = 20
"""Faults of one kind that are told one by one; the others are counted."""

_GOOD_BOX = f"positive width and height, inside the picture to within {SLACK:g} px"


def load_proposals(paths: Sequence[Path]) -> tuple[Proposals, list[str]]:
    """Read proposal files by their suffix (``.mat``, ``.json``, or a cache's ``.sqlite``) and join them.

    A cache stays on disk and is read one image at a time; the others are read into memory.

    Args:
        paths: at least one.

    Returns:
        the boxes of all images, and one sentence for each file about what it held.

    Raises:
        DataError: with the faults of all files; an image id that stands in two of them is one.
    """
    loaders = {".mat": load_mat, ".json": load_coco_proposals, ".sqlite": ProposalCache}
    parts: list[Proposals] = []
    faults: list[Fault] = []
    for path in paths:
        load = loaders.get(path.suffix.lower())
        if load is None:
            faults.append(Fault(path, "", f"a file name that ends in {quoted(path.suffix)}", listed(list(loaders))))
            continue
        try:
            parts.append(load(path))
        except DataError as error:
            faults += error.faults
    if faults:
        raise DataError(faults)
    notes = [
        f"{path}: proposals of {counted(len(part), 'image', 'images')}" for path, part in zip(paths, parts, strict=True)
    ]
    return (parts[0] if len(parts) == 1 else _Joined(paths, parts)), notes


class _Joined(Mapping[ImageId, NDArray[np.float32]]):
    """Several files' proposals as one, each still read in its own way."""

    def __init__(self, paths: Sequence[Path], parts: Sequence[Proposals]) -> None:
        self.parts = parts
        self._part_of: dict[ImageId, Proposals] = {}
        faults = []
        for path, part in zip(paths, parts, strict=True):
            shared = [str(image_id) for image_id in part if image_id in self._part_of]
            if shared:
                found = f"{counted(len(shared), 'image id', 'image ids')} of the files before it: {listed(shared, 5)}"
                faults.append(Fault(path, "", found, "each image in one file only"))
            self._part_of.update(dict.fromkeys(part, part))
        if faults:
            raise DataError(faults)

    def __getitem__(self, image_id: ImageId) -> NDArray[np.float32]:
        return self._part_of[image_id][image_id]

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._part_of)

    def __len__(self) -> int:
        return len(self._part_of)


def load_mat(path: Path) -> dict[ImageId, NDArray[np.float32]]:
    """Read proposals in the form Fast R-CNN published: MATLAB cell arrays ``boxes`` and ``images`` of one length.

    ``images`` holds file stems; ``boxes`` (P, 4) numbers, 1-based inclusive ``y1 x1 y2 x2``, which become ``x1 - 1,
    y1 - 1, x2, y2`` here. Cells may be wrapped in cells of their own, and ``images`` may be rows of characters.

    Raises:
        DataError: with every fault: no MATLAB file up to version 7, no such arrays, a cell of another kind.
    """
    variables = read_mat(path, ("images", "boxes"))
    faults: list[Fault] = []
    stems, boxes = (_cells(path, variables, name, faults) for name in ("images", "boxes"))
    if not faults and len(stems) != len(boxes):
        faults.append(Fault(path, "boxes", f"{len(boxes)} cells", f"{len(stems)}, one for each of `images`"))
    if faults:
        raise DataError(faults)
    proposals: dict[ImageId, NDArray[np.float32]] = {}
    for number, (stem_cell, box_cell) in enumerate(zip(stems, boxes, strict=True), start=1):
        stem, corners = _unwrapped(stem_cell), _corners(_unwrapped(box_cell))
        if not isinstance(stem, str) or not stem.strip() or stem.strip() in proposals:
            faults.append(Fault(path, f"images{{{number}}}", _described(stem), "a file stem of its own"))
        elif corners is None:
            faults.append(Fault(path, f"boxes{{{number}}}", _described(box_cell), "(P, 4) numbers"))
        else:
            proposals[stem.strip()] = corners
    if faults:
        raise DataError(_shortened(faults))
    return proposals


def _cells(path: Path, variables: Mapping[str, Any], name: str, faults: list[Fault]) -> list[Any]:
    """The elements of a cell array or, one for each row, of a matrix of characters."""
    value = variables.get(name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return list(value.flat)
    found = "no such variable" if value is None else _described(value)
    faults.append(Fault(path, name, found, "a cell array"))
    return []


def _unwrapped(cell: Any) -> Any:
    """What is in a cell, out of further cells of one element; characters as ``str``."""
    while isinstance(cell, np.ndarray) and cell.size == 1 and cell.dtype.kind in "OU":
        cell = cell.item()
    return cell


def _corners(boxes: Any) -> NDArray[np.float32] | None:
    """MATLAB's boxes in our convention; None if they are no boxes."""
    if not isinstance(boxes, np.ndarray) or boxes.dtype.kind not in "iuf":
        return None
    if boxes.size == 0:
        return np.empty((0, 4), dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    # Through float64: unsigned integers would wrap around at 0.
    y1, x1, y2, x2 = boxes.astype(np.float64).T
    return np.stack([x1 - 1, y1 - 1, x2, y2], axis=1).astype(np.float32)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} in shape {value.shape}"
    return quoted(value)


_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(slots=True)
class _Entry:
    image_id: StrictInt | StrictStr
    bbox: tuple[_Number, _Number, _Number, _Number]
    score: _Number


_ENTRIES = TypeAdapter(list[_Entry])


def load_coco_proposals(path: Path) -> dict[ImageId, NDArray[np.float32]]:
    """Read proposals in COCO's results form: a JSON list of objects with ``image_id``, ``bbox`` and ``score``.

    ``bbox`` is 0-based ``x, y, width, height``. Other keys, such as ``category_id``, are passed over. The boxes of an
    image are put in the order of falling score; equal ones stay in the order of the file. A million boxes take about
    5 s and, while they are read, 1 GB.

    Raises:
        DataError: with every fault: the file is not readable, not JSON, or an entry lacks a value of the right kind.
    """
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError([Fault(path, "", error.strerror or str(error), "a readable file")]) from error
    except ValidationError as error:
        raise DataError(_shortened(_json_faults(path, error))) from error
    positions: dict[ImageId, int] = {}
    image = np.array([positions.setdefault(entry.image_id, len(positions)) for entry in entries], dtype=np.int64)
    score = np.array([entry.score for entry in entries])
    xywh = np.array([entry.bbox for entry in entries]).reshape(-1, 4)
    order = np.lexsort((-score, image))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is told by validate_proposals
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)[order].astype(np.float32)
    starts = np.searchsorted(image[order], np.arange(1, len(positions)))
    return dict(zip(positions, np.split(boxes, starts), strict=False))


_ALLOWED = {
    "": "an object",
    "image_id": "an integer or a text",
    "bbox": "[x, y, width, height], finite numbers",
    "score": "a finite number",
}


def _json_faults(path: Path, error: ValidationError) -> list[Fault]:
    """One fault for each value; pydantic tells one for each type that it might have had and each part of it."""
    faults: dict[str, Fault] = {}
    for problem in error.errors(include_url=False):
        found = {"missing": "nothing", "json_invalid": one_line(problem["msg"])}.get(problem["type"])
        found = found or quoted(problem["input"])
        if not problem["loc"]:
            return [Fault(path, "", found, "a JSON list of objects")]
        index, key = (*problem["loc"], "")[:2]
        field = f"[{index}].{key}".rstrip(".")
        faults.setdefault(field, Fault(path, field, found, _ALLOWED[str(key)]))
    return list(faults.values())


def validate_proposals(proposals: Proposals, records: Sequence[ImageRecord]) -> list[Fault]:
    """What is wrong with the proposals of these images; all images are looked at, the first faults told one by one.

    Right is: each image has an entry, (P, 4) float32, of finite boxes with positive sides that lie in the image to
    within 1 px. Boxes that stick out by less, as rounding leaves them, are used as they are. Images may have no boxes.
    Of a cache of ours, pictures must be those that were searched.
    """
    faults = []
    for part in proposals.parts if isinstance(proposals, _Joined) else [proposals]:
        if isinstance(part, ProposalCache):
            faults += part.changed_pictures(records)
    for record in records:
        try:
            found, allowed = _problem(proposals[record.id], record)
        except KeyError:
            found, allowed = "none", "an entry for every image"
        if found:
            faults.append(Fault(record.path, "proposals", found, allowed))
    return _shortened(faults)


def _problem(boxes: NDArray[np.float32], record: ImageRecord) -> tuple[str, str]:
    """What was found and what is allowed; two empty texts where nothing is wrong."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32:
        return _described(boxes), "(P, 4) float32"
    broken = ~np.isfinite(boxes).all(axis=1)
    if broken.any():
        return f"{counted(int(broken.sum()), 'box', 'boxes')} of {len(boxes)} not finite", "finite numbers"
    exact = boxes.astype(np.float64)
    bad = fit_boxes(exact, np.array([record.width, record.height], dtype=np.float64)).bad
    if not bad.any():
        return "", ""
    first = exact[bad.argmax()]
    reason = f"the first {first.tolist()}: {box_problem(first, record.width, record.height)}"
    return f"{counted(int(bad.sum()), 'bad box', 'bad boxes')} of {len(boxes)}, {reason}", _GOOD_BOX


def _shortened(faults: Sequence[Fault]) -> list[Fault]:
    """The first faults, and how many more there are."""
    rest = len(faults) - _SHOWN
    if rest <= 0:
        return list(faults)
    return [*islice(faults, _SHOWN), Fault(faults[_SHOWN].file, "", f"{rest} more faults like these", "none")]
