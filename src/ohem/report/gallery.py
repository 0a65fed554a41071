"""Cut-outs of images with boxes on them, as cards of a page whose size is bounded."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ohem.data.dataset import ImageRecord
from ohem.data.images import read_image
from ohem.errors import DataError, Fault

SIDE = 224
"""Pixels of the longest side of a cut-out."""

QUALITY = 72
MOST_BYTES = 14_000_000
"""Of all cut-outs of a page together, as they stand in it."""

CONTEXT = 2.0
"""Sides of a cut-out, in sides of the box that it shows."""

Role = Literal["region", "object", "proposed", "other"]
"""What a box is: the one that the card is about, an annotated one of its class, the fix, or one of the others."""

Box = NDArray[np.floating]


@dataclass(frozen=True)
class Outline:
    """A box (4,) on a picture, in pixels of the image, xyxy."""

    box: Box
    role: Role


@dataclass(frozen=True)
class Sketch:
    """A card before its picture is cut out.

    Attributes:
        record: the image.
        focus: (4,) the box that the cut-out is around.
        outlines: drawn in order.
        kind: a word that filters.
        label: the name of a class, which filters too.
        title: the first line below the picture.
        detail: the second one.
        run: whose card it is, where a page has several.
    """

    record: ImageRecord
    focus: Box
    outlines: tuple[Outline, ...]
    kind: str
    label: str
    title: str
    detail: str
    run: str = ""


@dataclass(frozen=True)
class Card:
    """A sketch with its picture: a data URI of ``width`` x ``height`` pixels, and boxes (x, y, w, h) on it."""

    sketch: Sketch
    uri: str
    width: int
    height: int
    outlines: tuple[tuple[Role, float, float, float, float], ...]


@dataclass(frozen=True)
class Gallery:
    """Cards, how many more there would have been had the page no bound, and what is wrong with pictures that have none."""

    cards: tuple[Card, ...]
    left_out: int = 0
    faults: tuple[Fault, ...] = ()

    def kinds(self) -> list[str]:
        """In the order of the cards."""
        return list(dict.fromkeys(card.sketch.kind for card in self.cards))

    def labels(self) -> list[str]:
        """Sorted."""
        return sorted({card.sketch.label for card in self.cards})

    def runs(self) -> list[str]:
        """In the order of the cards."""
        return list(dict.fromkeys(card.sketch.run for card in self.cards))


def make_gallery(
    sketches: Sequence[Sketch],
    most_bytes: int = MOST_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gallery:
    """Cut out the pictures of sketches, in order, until they would be too many bytes.

    Args:
        sketches: the cards, in order.
        most_bytes: of the pictures, in the page.
        progress: called after each sketch with the number done and the number there are.

    Pictures that cannot be read have no cards, and are told in ``faults``.
    """
    faults: dict[Fault, None] = {}
    cards: list[Card] = []
    used = left_out = 0
    for done, sketch in enumerate(sketches, start=1):
        try:
            card = _card(sketch) if used < most_bytes else None
        except DataError as error:
            faults.update(dict.fromkeys(error.faults))
        else:
            if card is None or used + len(card.uri) > most_bytes:
                left_out, used = left_out + 1, most_bytes
            else:
                used += len(card.uri)
                cards.append(card)
        progress(done, len(sketches))
    return Gallery(tuple(cards), left_out, tuple(faults))


def _card(sketch: Sketch) -> Card:
    image = read_image(sketch.record.path)
    left, top, right, bottom = _window(sketch.focus, image.shape[1], image.shape[0])
    cut = image[top:bottom, left:right]
    factor = SIDE / max(cut.shape[:2])
    width, height = (max(1, round(factor * side)) for side in (cut.shape[1], cut.shape[0]))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    file = io.BytesIO()
    Image.fromarray(cv2.resize(cut, (width, height), interpolation=method)).save(file, "JPEG", quality=QUALITY)
    outlines = []
    for outline in sketch.outlines:
        x1, y1, x2, y2 = ((outline.box - np.array([left, top, left, top])) * factor).tolist()
        outlines.append((outline.role, round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1)))
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Card(sketch, uri, width, height, tuple(outlines))


def _window(focus: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The focus and as much around it, within the image; at least 48 pixels wide and high where the image is."""
    centre, half = (focus[:2] + focus[2:]) / 2, np.maximum(focus[2:] - focus[:2], 24.0) * CONTEXT / 2
    low = np.floor(np.maximum(centre - half, 0)).astype(int)
    high = np.ceil(np.minimum(centre + half, (width, height))).astype(int)
    low, high = np.minimum(low, (width - 1, height - 1)), np.maximum(high, 1)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def spread(labels: Sequence[object], most: int) -> list[int]:
    """Places of at most so many of a list, taken in turn from each label, so that none crowds out the others."""
    seen: dict[object, int] = {}
    turns = []
    for place, label in enumerate(labels):
        turns.append((seen.get(label, 0), place))
        seen[label] = turns[-1][0] + 1
    return sorted(place for _, place in sorted(turns)[:most])
