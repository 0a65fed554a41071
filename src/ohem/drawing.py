"""Boxes on pictures."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
            height = bottom - top + 4
            above = max(0.0, y1 - height)
            pen.rectangle((x1, above, x1 + right - left + 4, above + height), fill=colour)
            pen.text((x1 + 2 - left, above + 2 - top), caption, fill=_readable_on(colour), font=font)
    return picture


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
