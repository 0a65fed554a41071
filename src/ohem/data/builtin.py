"""The built-in data set: handwritten digits over photographs, drawn on this machine, with nothing to download.

Its pixels are real and come from two installed packages: scikit-learn's handwritten digits (8x8, UCI) and the
photographs inside scikit-image's wheel. It is made to reward hard-example mining: most regions are plain background,
and a few hold *look-alikes* (digits mirrored, turned or with their halves swapped), easily taken for a digit. A test
image shares no handwritten digit and no pixel of a photograph with any training image.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ohem.errors import DataError, Fault, OhemError
from ohem.extras import need

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Raised whenever the same parameters would write other files.
_VERSION = 1

# Those in scikit-image's wheel that are CC0 or in the public domain and show no writing.
_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "rocket.jpg",
)
_TRAIN_SHARE = 0.6
_META = "builtin.json"
# A look-alike's least distance from any digit, in ink: but for one, every digit has another one nearer than this.
_UNLIKE = 31
# The classes that each kind of look-alike is made of: those that nobody reads as a digit then (a turned 6 may be a 9).
_LOOK_ALIKES = {
    "mirrored": (3, 4, 7),
    "upside down": (3, 4, 7),
    "turned": (3, 4),
    "halves swapped": (0, 1, 2, 3, 4, 5, 7, 9),
}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_Array = NDArray[np.float32]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Source:
    """What the images of one split are drawn from.

    Attributes:
        digits: for each of the ten classes, (n, 8, 8) float32, ink in [0, 16].
        known: (N, 64) float32, every digit of both splits, which no look-alike may resemble.
        photos: (h, w, 3) float32 regions of photographs, RGB in [0, 255].
    """

    digits: tuple[_Array, ...]
    known: _Array
    photos: tuple[_Array, ...]


@dataclass(frozen=True)
class _Object:
    """A digit as drawn: its class (0..9), and the mask (H, W) of its ink, whole and as far as still visible."""

    digit: int
    whole: _Mask
    visible: _Mask


def make_builtin(
    folder: Path,
    *,
    train_images: int = 400,
    test_images: int = 200,
    seed: int = 0,
    size: tuple[int, int] = (192, 144),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Draw the built-in data set as an ordinary VOC folder, or reuse the same one already there.

    ``ImageSets/Main`` holds ``train.txt``, ``trainval.txt`` (the same images: there is no val split) and ``test.txt``;
    ``classes.txt`` holds the ten names in order. Boxes hold the visible ink of a digit, written 1-based and inclusive
    as VOC has them; ``truncated`` marks a digit whose box is smaller than the digit because something covers it.
    The folder appears whole or not at all. The same parameters and library versions give the same bytes, and a larger
    ``train_images`` or ``test_images`` only adds images to the smaller set.

    Args:
        folder: where to write; new, empty, or holding this data set already. Its parents are made.
        train_images: how many training images; two to six digits in most, none in one of twenty.
        test_images: how many test images.
        seed: 0 or more.
        size: width and height of the images in pixels. Digits are 16 to 48 pixels high at any size.
        progress: called after each image with the number done and the number there are.

    Returns:
        ``folder``.

    Raises:
        DataError: a parameter out of range, other things in ``folder``, or a photograph missing from scikit-image.
        OhemError: scikit-learn or scikit-image is not installed, or ``folder`` cannot be written.
    """
    _check_parameters(folder, train_images, test_images, seed, size)
    parameters = {
        "builtin": _VERSION,
        "train_images": train_images,
        "test_images": test_images,
        "seed": seed,
        "size": list(size),
    }
    if _is_made(folder, parameters):
        return folder
    sources = _load_sources()
    made_with = {name: version(name) for name in ("numpy", "pillow", "scikit-learn", "scikit-image")}
    made_with["opencv"] = cv2.__version__
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            draft = Path(temporary) / "draft"
            _write_voc(draft, sources, (train_images, test_images), seed, size, progress)
            # No fsync: a write lost in a crash shows in the fingerprint, and the data set can be made again.
            meta = parameters | {"sha256": _fingerprint(draft), "made_with": made_with}
            (draft / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            if target.is_dir():
                target.rmdir()  # removes nothing but an empty folder
            draft.rename(target)
    except OSError as error:
        if not _is_made(folder, parameters):  # else another process made it in the meantime
            raise OhemError(f"{folder}: the built-in data set cannot be written there: {error}") from error
    return folder


def _check_parameters(folder: Path, train_images: int, test_images: int, seed: int, size: tuple[int, int]) -> None:
    ranges = {
        "train_images": (train_images, 1, 99_999),
        "test_images": (test_images, 1, 99_999),
        "seed": (seed, 0, 2**32 - 1),
        "size[0]": (size[0], 128, 1024),
        "size[1]": (size[1], 128, 1024),
    }
    faults = [
        Fault(folder, name, str(value), f"{low} to {high}")
        for name, (value, low, high) in ranges.items()
        if not low <= value <= high
    ]
    if faults:
        raise DataError(faults)


def _is_made(folder: Path, parameters: dict[str, object]) -> bool:
    """Tell whether ``folder`` holds this very data set; False if it is new or empty, DataError if neither."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        found = "a file"
    elif not (folder / _META).is_file():
        found = f"other things in it, such as {min(path.name for path in folder.iterdir())!r}"
    else:
        meta = _read_meta(folder / _META)
        theirs = {name: meta.get(name) for name in parameters}
        if theirs == parameters and meta.get("sha256") == _fingerprint(folder):
            return True
        found = "this data set, but its files changed since it was made"
        if theirs != parameters:
            found = "a built-in data set of " + _spell(theirs)
    raise DataError([Fault(folder, "", found, f"a new or empty folder, or the data set of {_spell(parameters)}")])


def _spell(parameters: dict[str, object]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in parameters.items())


def _read_meta(file: Path) -> dict[str, object]:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of the data set's own files; other files beside them do not count."""
    total = hashlib.sha256()
    own = [folder / "classes.txt"]
    for room in ("Annotations", "ImageSets", "JPEGImages"):
        own += sorted(path for path in (folder / room).rglob("*") if path.is_file())
    for path in own:
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return total.hexdigest()


def _load_sources() -> tuple[_Source, _Source]:
    """Return what the train and the test images are drawn from: other digits, other regions of the photographs."""
    skimage = need("skimage", "demo")
    digits, labels = need("sklearn.datasets", "demo").load_digits(return_X_y=True)
    known = digits.astype(np.float32)
    clear = _is_clear(known, labels)
    by_class = [known[clear & (labels == digit)].reshape(-1, 8, 8) for digit in range(len(CLASSES))]
    # The folder inside the wheel, not skimage.data's functions: those may download.
    photos = _load_photos(Path(skimage.__file__).parent / "data")
    # The samples come writer by writer, so cutting in order gives the test images mostly other hands.
    digit_parts = [np.split(samples, [int(_TRAIN_SHARE * len(samples))]) for samples in by_class]
    photo_parts = [np.split(photo, [int(_TRAIN_SHARE * photo.shape[1])], axis=1) for photo in photos]
    train, test = (
        _Source(tuple(parts[i] for parts in digit_parts), known, tuple(parts[i] for parts in photo_parts))
        for i in (0, 1)
    )
    return train, test


def _load_photos(folder: Path) -> list[_Array]:
    missing = [folder / name for name in _PHOTOS if not (folder / name).is_file()]
    if missing:
        allowed = "the photographs in scikit-image's wheel: pip install --force-reinstall scikit-image"
        raise DataError([Fault(file, "", "no such file", allowed) for file in missing])
    photos = []
    for name in _PHOTOS:
        with Image.open(folder / name) as photo:
            photos.append(np.asarray(photo.convert("RGB"), np.float32))
    return photos


def _is_clear(digits: _Array, labels: NDArray[np.int64]) -> _Mask:
    """(N,) bool: digits (N, 64) whose five nearest others all bear the same label. A person can read these."""
    distances = _squared_distances(digits, digits)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :5]
    clear: _Mask = (labels[nearest] == labels[:, None]).all(1)
    return clear


def _squared_distances(left: _Array, right: _Array) -> _Array:
    """Return the squared distances (L, R) between figures (L, 64) and (R, 64); exact, as ink is a small integer."""
    distances: _Array = np.square(left).sum(1)[:, None] + np.square(right).sum(1) - 2 * left @ right.T
    return distances


def _write_voc(
    folder: Path,
    sources: tuple[_Source, _Source],
    counts: tuple[int, int],
    seed: int,
    size: tuple[int, int],
    progress: Callable[[int, int], None],
) -> None:
    for room in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / room).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    for stream, split in enumerate(("train", "test")):
        painter = _Painter(sources[stream], np.random.default_rng([seed, stream]), size)
        stems = [f"{split}_{number:05d}" for number in range(1, counts[stream] + 1)]
        for number, stem in enumerate(stems, start=1):
            picture, objects = painter.paint()
            # Without chroma subsampling the colours of thin strokes stay where they were drawn.
            Image.fromarray(picture).save(folder / "JPEGImages" / f"{stem}.jpg", quality=95, subsampling=0)
            (folder / "Annotations" / f"{stem}.xml").write_text(_annotation(stem, size, objects), encoding="utf-8")
            progress(sum(counts[:stream]) + number, sum(counts))
        for name in ("train", "trainval") if split == "train" else ("test",):
            lines = "".join(f"{stem}\n" for stem in stems)
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(lines, encoding="utf-8")


def _annotation(stem: str, size: tuple[int, int], objects: Sequence[_Object]) -> str:
    """Return the VOC annotation; its boxes are 1-based with inclusive corners (VOC2007 development kit)."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    add(root, folder="builtin", filename=f"{stem}.jpg")
    add(ElementTree.SubElement(root, "source"), database="ohem built-in data set", annotation=f"version {_VERSION}")
    add(ElementTree.SubElement(root, "size"), width=size[0], height=size[1], depth=3)
    add(root, segmented=0)
    for drawn in objects:
        x1, y1, x2, y2 = _bounds(drawn.visible)
        truncated = int((x1, y1, x2, y2) != _bounds(drawn.whole))
        element = ElementTree.SubElement(root, "object")
        add(element, name=CLASSES[drawn.digit], pose="Unspecified", truncated=truncated, difficult=0)
        add(ElementTree.SubElement(element, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _bounds(mask: _Mask) -> tuple[int, int, int, int]:
    """Return the tight box around a mask (H, W): xyxy, 0-based half-open."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class _Painter:
    """Paints the images of one split, one after the other, from one stream of randomness."""

    def __init__(self, source: _Source, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self._source = source
        self._rng = rng
        self._size = size
        # Dealt like cards, so that classes and handwritten digits come up equally often.
        self._classes = self._deal(len(CLASSES))
        self._samples = [self._deal(len(samples)) for samples in source.digits]
        self._photos = self._deal(len(source.photos))

    def _deal(self, count: int) -> Iterator[int]:
        while True:
            yield from self._rng.permutation(count).tolist()

    def paint(self) -> tuple[NDArray[np.uint8], list[_Object]]:
        """Return an image (H, W, 3) uint8 RGB and the digits in it."""
        rng = self._rng
        scene = _Scene(self._background(), rng)
        digits = 0 if rng.random() < 0.05 else int(rng.integers(2, 7))
        for _ in range(digits):
            digit = next(self._classes)
            scene.draw_glyph(self._source.digits[digit][next(self._samples[digit])], digit)
        for _ in range(rng.integers(3, 8)):
            scene.draw_glyph(self._look_alike())
        for _ in range(rng.integers(2, 5)):
            scene.draw_patch(self._crop(next(self._photos), 0.8))
        scene.picture += rng.normal(0, rng.uniform(1, 4), scene.picture.shape)
        return np.clip(scene.picture, 0, 255).astype(np.uint8), scene.objects

    def _background(self) -> _Array:
        """Return a crop of the next photograph, as large as the image, often flipped, tinted and toned down."""
        picture = self._crop(next(self._photos), float(self._rng.uniform(0.6, 1)))
        mean = picture.mean((0, 1))
        gain = self._rng.uniform(0.9, 1.1, 3) * self._rng.uniform(0.8, 1.1)
        faded = (mean + (picture - mean) * self._rng.uniform(0.5, 1)) * gain
        return np.asarray(np.clip(faded, 0, 255), np.float32)

    def _crop(self, photo: int, share: float) -> _Array:
        """Return a random window of a photograph, ``share`` of the largest that fits, resized to the image's size."""
        pixels = self._source.photos[photo]
        height, width = pixels.shape[:2]
        scale = share * min(width / self._size[0], height / self._size[1])
        w, h = int(scale * self._size[0]), int(scale * self._size[1])
        x, y = self._rng.integers(0, width - w, endpoint=True), self._rng.integers(0, height - h, endpoint=True)
        window = pixels[y : y + h, x : x + w]
        if self._rng.random() < 0.5:
            window = window[:, ::-1]
        return np.asarray(cv2.resize(window, self._size, interpolation=cv2.INTER_AREA), np.float32)

    def _look_alike(self) -> _Array:
        """Return an (8, 8) figure made of digits, and far from every digit there is."""
        rng = self._rng
        kind = rng.choice(list(_LOOK_ALIKES), p=(0.2, 0.2, 0.2, 0.4))
        while True:
            figure = rng.choice(self._source.digits[rng.choice(_LOOK_ALIKES[kind])])
            if kind == "mirrored":
                figure = figure[:, ::-1]
            elif kind == "upside down":
                figure = figure[::-1, ::-1]
            elif kind == "turned":
                figure = np.rot90(figure, rng.choice([1, 3]))
            else:
                under = rng.choice(self._source.digits[rng.integers(10)])
                figure = np.concatenate([figure[4:], under[:4]])
            shifted = np.stack([np.roll(figure, step, 1).reshape(64) for step in (-1, 0, 1)])
            if _squared_distances(shifted, self._source.known).min() > _UNLIKE**2:
                return np.ascontiguousarray(figure, np.float32)


class _Scene:
    """One image while it is being drawn."""

    def __init__(self, picture: _Array, rng: np.random.Generator) -> None:
        self.picture = picture
        self.objects: list[_Object] = []
        self._rng = rng
        self._taken: _Mask = np.zeros(picture.shape[:2], np.bool_)  # where no glyph may lie
        self._solid: _Mask = np.zeros(picture.shape[:2], np.bool_)  # where no patch may: look-alikes, other patches

    def draw_glyph(self, figure: _Array, digit: int | None = None) -> None:
        """Draw an (8, 8) figure at a free place, sometimes on a plate of its own; without room, nothing is drawn."""
        rng = self._rng
        alpha = _render(figure, height=float(np.exp(rng.uniform(*np.log([16, 48])))), angle=rng.uniform(-15, 15))
        height, width = alpha.shape
        plated = rng.random() < 0.4
        margin = int(max(3, (0.15 + 0.15 * rng.random()) * height)) if plated else 2
        corner = self._find_room(width + 2 * margin, height + 2 * margin)
        if corner is None:
            return
        x, y = corner
        outer = np.s_[y : y + height + 2 * margin, x : x + width + 2 * margin]
        inner = np.s_[y + margin : y + margin + height, x + margin : x + margin + width]
        self._taken[outer] = True
        if plated:
            plate = _superellipse(height + 2 * margin, width + 2 * margin, rng.choice([2.5, 4, 12]))
            self._blend(outer, plate * rng.uniform(0.7, 1), self._contrasting(outer, 30, 80))
        self._blend(inner, alpha * rng.uniform(0.8, 1), self._contrasting(inner, 40, 120))
        if digit is None:
            self._solid[outer] = True
        else:
            ink = np.zeros_like(self._taken)
            ink[inner] = alpha >= 0.5
            self.objects.append(_Object(digit, ink, ink))

    def draw_patch(self, texture: _Array) -> None:
        """Cover a place with a plain or textured shape, and at most a quarter of any digit."""
        rng = self._rng
        height, width = rng.integers(12, 36, 2)
        alpha = _superellipse(height, width, rng.choice([2, 4, 12]))
        for _ in range(20):
            x, y = self._random_corner(width, height)
            place = np.s_[y : y + height, x : x + width]
            hidden = np.zeros_like(self._taken)
            hidden[place] = alpha >= 0.5
            remaining = [drawn.visible & ~hidden for drawn in self.objects]
            legible = all(4 * left.sum() >= 3 * o.whole.sum() for left, o in zip(remaining, self.objects, strict=True))
            if legible and not self._solid[place].any():
                break
        else:
            return
        self._solid[place] = True
        self._blend(place, alpha, texture[place] if rng.random() < 0.5 else self._contrasting(place, 30, 100))
        self.objects = [_Object(o.digit, o.whole, left) for o, left in zip(self.objects, remaining, strict=True)]

    def _find_room(self, width: int, height: int) -> tuple[int, int] | None:
        for _ in range(40):
            x, y = self._random_corner(width, height)
            if not self._taken[y : y + height, x : x + width].any():
                return x, y
        return None

    def _random_corner(self, width: int, height: int) -> tuple[int, int]:
        free_height, free_width = self._taken.shape[0] - height, self._taken.shape[1] - width
        return int(self._rng.integers(free_width, endpoint=True)), int(self._rng.integers(free_height, endpoint=True))

    def _blend(self, place: tuple[slice, slice], alpha: _Array, colour: _Array) -> None:
        part = self.picture[place]
        part += (alpha[..., None] * (colour - part)).astype(np.float32)

    def _contrasting(self, place: tuple[slice, slice], least: float, most: float) -> _Array:
        """Return a colour (3,) lighter or darker than a place by ``least`` to ``most`` of 255, more if it is rough."""
        lumas = self.picture[place] @ _LUMA
        luma, step = lumas.mean(), self._rng.uniform(least, most) + 0.7 * lumas.std()
        lighter = self._rng.random() < 1 - luma / 255
        if (luma + step > 245) if lighter else (luma - step < 10):
            lighter = luma < 128
        chroma = self._rng.normal(0, 32, 3).astype(np.float32)
        colour = luma + (step if lighter else -step) + chroma - chroma @ _LUMA
        return np.asarray(np.clip(colour, 0, 255), np.float32)


def _render(figure: _Array, height: float, angle: float) -> _Array:
    """Return an (8, 8) figure as a smooth stroke: coverage (h, w) in [0, 1], cropped to its ink and one pixel around.

    Args:
        figure: ink in [0, 16]; sharpened first, so that small counters stay open.
        height: the height of the eight rows, in pixels.
        angle: degrees, counter-clockwise.
    """
    over = 2  # drawn this many times larger, then averaged: smooth edges
    figure = np.pad(figure / 16, 2)
    figure = figure + 1.5 * (figure - cv2.GaussianBlur(figure, (0, 0), 1))
    scale = over * height / 8
    side = over * (int(1.5 * height) + 4)
    turn = np.asarray(cv2.getRotationMatrix2D((5.5, 5.5), angle, scale), np.float64)
    turn[:, 2] += (side - 1) / 2 - 5.5
    large = cv2.warpAffine(figure, turn, (side, side), flags=cv2.INTER_CUBIC)
    large = cv2.GaussianBlur(large, (0, 0), 0.25 * scale)
    strokes = np.clip((large - 0.5) / 0.2 + 0.5, 0, 1)
    alpha: _Array = np.asarray(
        cv2.resize(strokes, (side // over, side // over), interpolation=cv2.INTER_AREA), np.float32
    )
    x1, y1, x2, y2 = _bounds(alpha >= 0.5)
    return alpha[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1]


def _superellipse(height: int, width: int, power: float) -> _Array:
    """Return coverage (height, width) in [0, 1]: an ellipse at power 2, nearly a rectangle at 12."""
    v = np.abs(np.linspace(-1, 1, height, dtype=np.float32))[:, None] ** power
    u = np.abs(np.linspace(-1, 1, width, dtype=np.float32)) ** power
    edge = (1 - (u + v) ** (1 / power)) * min(height, width) / 2
    return np.asarray(np.clip(edge, 0, 1), np.float32)
