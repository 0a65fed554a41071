"""Pictures of every kind come out as a person sees them: upright, 8-bit RGB, (H, W, 3)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ohem.data.images import FORMATS, image_size, read_image
from ohem.errors import DataError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> list[list[tuple[int, ...]]]:
    """The picture as rows of tuples, after checking what every picture must keep."""
    picture = read_image(path)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.flags["C_CONTIGUOUS"]
    assert picture.flags["WRITEABLE"]
    assert image_size(path) == (picture.shape[1], picture.shape[0])
    return [[tuple(pixel) for pixel in row] for row in picture.tolist()]


def greys(path: Path) -> list[int]:
    """The first row of a picture that must be grey."""
    row = pixels(path)[0]
    assert all(red == green == blue for red, green, blue in row)
    return [red for red, _, _ in row]


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (1, 2, 3))
    image.putpixel((1, 0), (250, 251, 252))
    assert pixels(saved(image, tmp_path / "a.png")) == [[(1, 2, 3), (250, 251, 252)]]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), 255)
    assert greys(saved(image, tmp_path / "a.png")) == [0, 255]


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_transparent_pixels_are_laid_over_white(ending: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (*GREEN, 255))
    image.putpixel((1, 0), (*GREEN, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    (row,) = pixels(saved(image, tmp_path / f"a.{ending}", lossless=True, exact=True))
    assert row == [GREEN, WHITE, (204, 204, 204)]


def test_grey_with_alpha(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    assert greys(saved(image, tmp_path / "a.png")) == [100, 255]


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("ending", ["png", "gif"])
@pytest.mark.parametrize(("transparency", "second"), [({}, GREEN), ({"transparency": 1}, WHITE)])
def test_palettes(ending: str, transparency: dict[str, int], second: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(palette_image(), tmp_path / f"a.{ending}", **transparency)
    assert pixels(path) == [[RED, second]]


def test_a_transparent_colour_of_an_rgb_png(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(saved(image, tmp_path / "a.png", transparency=GREEN)) == [[RED, WHITE]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read_image(path), np.full((8, 8, 3), RED), atol=3)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(ending: str, tmp_path: Path) -> None:
    samples = np.array([[0, 255, 257, 32896, 65535]], dtype=np.uint16)
    assert greys(saved(Image.fromarray(samples), tmp_path / f"a.{ending}")) == [0, 1, 1, 128, 255]


def test_32_bit_integers_of_16_bit_range_are_scaled_likewise(tmp_path: Path) -> None:
    samples = np.array([[0, 32896, 65535]], dtype=np.int32)
    assert greys(saved(Image.fromarray(samples), tmp_path / "a.tif")) == [0, 128, 255]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 2570.0, 65535.0], [0, 10, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 0.0, 200000.0], [0, 0, 255]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_the_white_level_they_fit(
    samples: list[float], expected: list[int], tmp_path: Path
) -> None:
    image = Image.fromarray(np.array([samples], dtype=np.float32))
    assert greys(saved(image, tmp_path / "a.tif")) == expected


def test_floats_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), tmp_path / "a.tif")
    with pytest.raises(DataError, match="not finite"):
        read_image(path)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_is_its_first_frame(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(frames[0], tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    assert pixels(path) == [[RED] * 4] * 3


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300)])
def test_pictures_one_pixel_wide_or_high(size: tuple[int, int], tmp_path: Path) -> None:
    assert pixels(saved(Image.new("RGB", size, RED), tmp_path / "a.png")) == [[RED] * size[0]] * size[1]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{ending}", exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert pixels(path) == [[tuple(pixel) for pixel in row] for row in np.asarray(expected).tolist()]
    assert image_size(path) == ((6, 10) if orientation > 4 else (10, 6))


def test_the_size_as_stored_can_be_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.new("RGB", (10, 6)), tmp_path / "a.jpg", exif=exif)
    assert image_size(path) == (6, 10)
    assert image_size(path, as_displayed=False) == (10, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_broken_exif_leaves_a_picture_as_stored(exif: bytes, tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (10, 6)), tmp_path / "a.jpg", exif=exif)
    assert read_image(path).shape == (6, 10, 3)
    assert image_size(path) == (10, 6)


def test_16_bit_grey_can_be_rotated_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    samples = np.array([[0, 65535]], dtype=np.uint16)
    assert greys(saved(Image.fromarray(samples), tmp_path / "a.png", exif=exif)) == [255, 0]


def test_the_ending_does_not_matter(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (2, 1), RED), tmp_path / "a.jpg", format="PNG")
    assert pixels(path) == [[RED, RED]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_is_read(name: str, tmp_path: Path) -> None:
    image = Image.new("L" if name == "GIF" else "RGB", (16, 8), "white")
    assert read_image(saved(image, tmp_path / "a", format=name)).tolist() == [[list(WHITE)] * 16] * 8


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8)), tmp_path / "a.eps")
    with pytest.raises(DataError, match="no picture"):
        read_image(path)


def test_a_missing_file_is_one_fault(tmp_path: Path) -> None:
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="No such file") as caught:
            read(tmp_path / "a.jpg")
        assert len(caught.value.faults) == 1


@pytest.mark.parametrize(("ending", "part"), [("jpg", 0.6), ("png", 0.6), ("gif", 0.6), ("bmp", 0.6), ("webp", 0.6)])
def test_a_truncated_picture_is_one_fault(ending: str, part: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{ending}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match="picture") as caught:
        read_image(path)
    assert len(caught.value.faults) == 1
    assert "\n" not in str(caught.value)
