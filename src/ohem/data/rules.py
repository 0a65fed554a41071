"""The rules that every annotation keeps, whichever format it stands in, and the words for those that do not."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from reprlib import Repr
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ohem.errors import DataError, Fault, OhemError

OtherClasses = Literal["error", "drop"]
"""What to do with objects whose class is not in the class list: report them, or leave them out and count them."""

BadBoxes = Literal["error", "drop"]
"""What to do with boxes that are reversed, empty or outside: report them, or leave them out and count them.

COCO's own train2017 has two boxes of height 0, so `error` everywhere would refuse it.
"""

Annotations = Literal["required", "none"]
"""Whether a missing annotation is a fault, or none are looked at, as of test sets whose annotations are kept secret."""

Report = Callable[[str, str, str], None]
"""Takes down one fault of the file being read: its field, what was found, what is allowed."""

MAX_COORDINATE = 1e9
"""No coordinate comes near it; float64 keeps 1e-7 px there and sums of it cannot overflow."""

SLACK = 1.0
"""How far, in pixels, a box may stick out of its picture and be clipped: what rounding explains."""

LEAST_SIDE = 0.01
"""Pixels below which a box is empty: as float32, resized and mirrored, it would have no area."""

CLASSES_ALLOWED = "at least one class name, each once, of printable characters"
"""What a fault of a class list says."""

BOX_ALLOWED = (
    f"positive width and height, {LEAST_SIDE} px or more, inside the picture to within 1 px (or bad_boxes: drop)"
)
"""What a fault of a box says."""


@dataclass(frozen=True)
class Picture:
    """An image file, and the size in pixels that its annotations declare."""

    path: Path
    width: int
    height: int


class AnnotationError(DataError):
    """Annotations with faults. What they say of the pictures can still be checked, for all faults to be told at once.

    Attributes:
        pictures: those that the annotations name and that are there.
    """

    def __init__(self, faults: Sequence[Fault], pictures: Sequence[Picture]) -> None:
        super().__init__(faults)
        self.pictures = tuple(pictures)


def as_names(given: Sequence[str] | str) -> Sequence[str]:
    """Several names, or the one that a single string is."""
    return [given] if isinstance(given, str) else given


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """The text of a file in UTF-8, with a byte order mark or without.

    Raises:
        DataError: it cannot be read, or is larger than ``most_bytes``.
    """
    try:
        if most_bytes is not None and path.stat().st_size > most_bytes:
            raise DataError([Fault(path, "", f"{path.stat().st_size} bytes", f"at most {most_bytes} bytes")])
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = one_line(getattr(error, "strerror", None) or "bytes that are not UTF-8")
        raise DataError([Fault(path, "", found, "a readable text file in UTF-8")]) from error


def one_line(text: str, limit: int = 100) -> str:
    """The text on one line, cut to ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


_short = Repr()
_short.maxlevel = 4
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 8
_short.maxstring = _short.maxother = _short.maxlong = 200


def quoted(value: object) -> str:
    """The value as Python writes it, on one short line, however much there is of it."""
    return one_line(_short.repr(value))


def listed(names: Sequence[str], limit: int = 20) -> str:
    """The names on one line, with commas between them, the first ``limit`` of them where there are more."""
    head = ", ".join(one_line(name) for name in names[:limit])
    return head if len(names) <= limit else f"{head}, ... ({len(names)} in all)"


def counted(number: int, one: str, many: str) -> str:
    """``1 box``, ``2 boxes``."""
    return f"{number} {one if number == 1 else many}"


def path_inside(folder: Path, name: str) -> Path | None:
    """``folder/name``, or None where the name would leave the folder.

    Links inside the folder are followed: whoever made the folder may keep the pictures elsewhere.
    """
    path = PurePath(name)
    return None if path.anchor or ".." in path.parts else folder / path


def is_file(path: Path) -> bool:
    """Whether the file exists; a name too long for the file system does not."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """The same of a folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def class_list_problem(classes: Sequence[str]) -> str | None:
    """What is wrong with a class list, or None."""
    if isinstance(classes, str):
        return f"the text {quoted(classes)}"
    repeated = [name for name, times in Counter(classes).items() if times > 1]
    if repeated:
        return f"{listed(repeated)} more than once"
    unprintable = [name for name in classes if not name.isprintable()]
    if unprintable:
        return f"{quoted(unprintable[0])}, which cannot be printed"
    return None if classes and all(classes) else "an empty list or name"


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """A class list that a user gave, as a tuple.

    Raises:
        OhemError: when it is empty, or a name is empty or stands there twice.
    """
    problem = class_list_problem(classes)
    if problem is not None:
        raise OhemError(f"classes: found {problem}; allowed: {CLASSES_ALLOWED}")
    return tuple(classes)


@dataclass(frozen=True, eq=False)
class FittedBoxes:
    """Boxes after clipping to their pictures.

    Attributes:
        boxes: (G, 4) float64, xyxy.
        clipped: (G,) bool, those that stuck out by at most `SLACK` and were cut.
        bad: (G,) bool, those that are reversed, empty (below `LEAST_SIDE`), stick out further, or have nothing inside;
            not cut.
    """

    boxes: NDArray[np.float64]
    clipped: NDArray[np.bool_]
    bad: NDArray[np.bool_]


def fit_boxes(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> FittedBoxes:
    """Clip boxes (G, 4) xyxy to pictures whose sizes, (G, 2) or (2,), are (width, height)."""
    limits = np.tile(np.broadcast_to(sizes, (len(boxes), 2)), 2)
    inside = np.clip(boxes, 0.0, limits)
    empty = np.any(inside[:, 2:] - inside[:, :2] < LEAST_SIDE, axis=1)
    bad = empty | np.any(np.abs(boxes - inside) > SLACK, axis=1)
    clipped = np.any(boxes != inside, axis=1) & ~bad
    return FittedBoxes(np.where(bad[:, None], boxes, inside), clipped, bad)


def box_problem(box: NDArray[np.float64], width: float, height: float) -> str:
    """Why `fit_boxes` calls this xyxy box bad."""
    x1, y1, x2, y2 = box.tolist()
    if x2 < x1 or y2 < y1:
        return "reversed"
    if x2 == x1 or y2 == y1:
        return "empty"
    if min(x2 - x1, y2 - y1) < LEAST_SIDE:
        return f"{min(x2 - x1, y2 - y1):.2g} px wide or high"
    outside = max(-x1, -y1, x2 - width, y2 - height)
    if outside > SLACK:
        return f"outside the {width:g} x {height:g} picture by {outside:g} px"
    return f"nothing of it inside the {width:g} x {height:g} picture"


def box_notes(clipped: int, dropped: int) -> list[str]:
    """The sentences that tell a user what happened to boxes."""
    notes = []
    if clipped:
        notes.append(f"clipped {counted(clipped, 'box', 'boxes')} that stuck out of the picture by up to {SLACK:g} px")
    if dropped:
        notes.append(f"left out {counted(dropped, 'box', 'boxes')}: reversed, empty or outside the picture")
    return notes


def other_class_notes(left_out: Counter[str]) -> list[str]:
    """The sentence that tells a user which objects were left out for their class."""
    if not left_out:
        return []
    names = listed([f"{name} {number}" for name, number in left_out.most_common()])
    return [f"left out {counted(left_out.total(), 'object', 'objects')} of classes not in the list: {names}"]
