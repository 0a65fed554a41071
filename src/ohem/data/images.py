"""Pictures from files, as a person sees them: upright, 8-bit RGB, nothing hidden by transparency.

Everything that reads pixels or sizes goes through these two functions, so boxes, sizes and pixels agree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ohem.data.rules import one_line
from ohem.errors import DataError, Fault

MAX_PIXELS = 178_956_970
"""The most pixels a picture may declare: Pillow's own limit, held here even if other code has lifted Pillow's."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA")
"""Pillow's names of the formats we open. It knows more; some of those (EPS) start other programs."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
"""Endings, in any case, of the names of pictures that we can open."""


def is_picture(path: Path) -> bool:
    """Whether a name is that of a picture; hidden files, such as macOS's ``._a.jpg``, are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


# EXIF 2.32, tag 0x0112: what brings the stored pixels upright. 1 is upright already.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture as displayed: EXIF orientation applied, the first frame of an animation.

    Transparent pixels are laid over white, the page they are usually seen on, since the colours hidden under them
    are noise nobody annotated. 16-bit greyscale is scaled by 255 / 65535. 32-bit integers and floats declare no
    white: the white level is the first of 65535 (integers) or of 1, 255, 65535 (floats) that no sample exceeds;
    samples below 0 or above 65535 have their own range stretched to 0..255 instead.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: with one fault, when the file is missing, empty, truncated, no picture in one of `FORMATS`, or
            declares more than `MAX_PIXELS` pixels (told from its header, before any pixel is decoded).
    """
    with _opened(path) as image:
        upright = _UPRIGHT.get(_orientation(image))
        image.load()
        return np.array(_to_rgb(image.transpose(upright) if upright is not None else image))


def image_size(path: Path, *, as_displayed: bool = True) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, after EXIF rotation unless ``as_displayed`` is false.

    Raises:
        DataError: as `read_image`, as far as the header tells.
    """
    with _opened(path) as image:
        width, height = image.size
        sideways = as_displayed and _orientation(image) in (5, 6, 7, 8)
        return (height, width) if sideways else (width, height)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise Image.DecompressionBombError(f"Image size ({pixels} pixels) is too large")
            yield image
    except Image.DecompressionBombError as error:
        # Pillow's text goes on about attacks behind the comma.
        raise _fault(path, str(error).partition(",")[0], f"at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        found = "an empty file" if path.stat().st_size == 0 else "no picture"
        raise _fault(path, found, f"a picture in one of the formats {', '.join(FORMATS)}") from error
    # Pillow's decoders meet hostile bytes with exceptions of every kind (struct.error, zlib.error, SyntaxError ...).
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _fault(path, f"an unreadable picture ({one_line(reason)})", "a whole, readable picture") from error


def _fault(path: Path, found: str, allowed: str) -> DataError:
    return DataError([Fault(path, "", found, allowed)])


def _orientation(image: Image.Image) -> int:
    """EXIF's 1..8; 1 where there is none, it is unreadable, or Pillow applies it itself while decoding."""
    if image.format == "TIFF":
        return 1
    # Where the header has no EXIF, Pillow would decode the whole PNG to look for some behind the pixels.
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A picture with broken EXIF is displayed as it is stored, and Pillow's parser fails in many ways.
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image.convert("RGB")


def _to_8_bit(samples: NDArray[Any]) -> NDArray[np.uint8]:
    values = samples.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("samples that are not finite numbers")
    levels = (1.0, 255.0, 65535.0) if samples.dtype.kind == "f" else (65535.0,)
    low, high = values.min(), values.max()
    white = next((level for level in levels if high <= level), None)
    if low >= 0 and white is not None:
        low, high = 0.0, white
    scaled: NDArray[np.uint8] = np.rint((values - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)
    return scaled
