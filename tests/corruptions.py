"""Tiny valid data sets, and every way we know to break one.

`make_voc`, `make_coco` and `make_yolo` write three pictures: one with two objects, one with one, one with none. Each of
`CORRUPTIONS` breaks a fresh copy in one way.
"""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

SIDES = ("xmin", "ymin", "xmax", "ymax")
SIZES = {"000001.jpg": (64, 48), "000002.png": (50, 40), "000003.jpg": (32, 40)}


class Corruption(NamedTuple):
    """One way to break a data set.

    Attributes:
        name: for the test's id.
        format: which of the data sets it breaks.
        corrupt: breaks the data set in a folder.
        expect: stands in one of the faults.
        file: the name of the file that this fault names.
        faults: how many there are in all.
        found_by: reading the annotations, looking at the images' headers, or decoding them.
    """

    name: str
    format: Literal["voc", "coco", "yolo"]
    corrupt: Callable[[Path], None]
    expect: str
    file: str
    faults: int = 1
    found_by: Literal["reading", "headers", "decoding"] = "reading"


def make_pictures(folder: Path) -> None:
    """Write three small noisy pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)


def voc_object(name: str, corners: tuple[object, object, object, object], inner: str = "") -> str:
    """One <object>, its corners as VOC counts them."""
    tags = "".join(f"<{tag}>{value}</{tag}>\n" for tag, value in zip(SIDES, corners, strict=True))
    return f"<object>\n<name>{name}</name>\n{inner}<bndbox>\n{tags}</bndbox>\n</object>\n"


def voc_xml(file_name: str, size: tuple[int, int], objects: str) -> str:
    """One annotation file."""
    return (
        f"<annotation>\n<filename>{file_name}</filename>\n"
        f"<size>\n<width>{size[0]}</width>\n<height>{size[1]}</height>\n<depth>3</depth>\n</size>\n"
        f"{objects}</annotation>\n"
    )


def make_voc(folder: Path) -> None:
    """Write a tiny VOC folder with the split ``trainval``."""
    make_pictures(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    part = "<difficult>0</difficult>\n<part>\n<name>head</name>\n<bndbox>\n<xmin>12</xmin>\n<ymin>6</ymin>\n"
    part += "<xmax>20</xmax>\n<ymax>14</ymax>\n</bndbox>\n</part>\n"
    objects = {
        "000001.jpg": voc_object("person", (11, 5, 30, 44), part)
        + voc_object("dog", (1, 1, 64, 48), "<difficult>1</difficult>\n"),
        "000002.png": voc_object("dog", (21, 11, 40, 20)),
        "000003.jpg": "",
    }
    for name, size in SIZES.items():
        (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(voc_xml(name, size, objects[name]))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002\n000003\n")


def make_coco(folder: Path) -> None:
    """Write a tiny COCO folder: ``instances.json`` and ``images/``."""
    make_pictures(folder / "images")
    images = [
        {"id": 10 * index, "file_name": name, "width": width, "height": height}
        for index, (name, (width, height)) in enumerate(SIZES.items(), start=1)
    ]
    annotations = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 4, 20, 40], "area": 500.5, "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 3, "bbox": [20.5, 10, 19.5, 10], "area": 195, "iscrowd": 0},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 1},
    ]
    categories = [{"id": 7, "name": "person"}, {"id": 3, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document, indent=1))


def make_yolo(folder: Path) -> None:
    """Write a tiny YOLO folder with the split ``train``; the objects are those of `make_voc`."""
    make_pictures(folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "000001.txt").write_text("1 0.3125 0.5 0.3125 0.8333333333\n0 0.5 0.5 1 1\n")
    (folder / "labels" / "train" / "000002.txt").write_text("0 0.6 0.375 0.4 0.25\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames: [dog, person]\n")


def _replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace the first occurrence of a text that must be there."""

    def corrupt(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return corrupt


def _write(path: str, content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def corrupt(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return corrupt


def _delete(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def _cut(path: str, part: float) -> Callable[[Path], None]:
    """Keep the first part of a file."""

    def corrupt(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(len(data) * part)])

    return corrupt


def _both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        for step in steps:
            step(folder)

    return corrupt


def _folder_instead(path: str) -> Callable[[Path], None]:
    return _both(_delete(path), lambda folder: (folder / path).mkdir())


def _json(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Edit the COCO document; Python writes NaN and Infinity as they are."""

    def corrupt(folder: Path) -> None:
        document = json.loads((folder / "instances.json").read_text())
        edit(document)
        (folder / "instances.json").write_text(json.dumps(document))

    return corrupt


def _set(key: str, index: int, **values: object) -> Callable[[Path], None]:
    return _json(lambda document: document[key][index].update(values))


def _unset(key: str, index: int, name: str) -> Callable[[Path], None]:
    return _json(lambda document: document[key][index].pop(name))


def _huge_png(path: str) -> Callable[[Path], None]:
    """A PNG of under 100 bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return _write(path, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def _swollen_text(path: str) -> Callable[[Path], None]:
    """Give a PNG a comment of 64 MB in 300 kB."""

    def corrupt(folder: Path) -> None:
        data = (folder / path).read_bytes()
        body = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(2**26), 1)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        (folder / path).write_bytes(data[:33] + chunk + data[33:])  # behind the header

    return corrupt


def _sideways(path: str) -> Callable[[Path], None]:
    """Give a JPEG the EXIF orientation 6: displayed with width and height swapped."""

    def corrupt(folder: Path) -> None:
        with Image.open(folder / path) as image:
            image.load()
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / path, exif=exif)

    return corrupt


_XML1, _XML2, _XML3 = (f"Annotations/00000{number}.xml" for number in (1, 2, 3))
_SPLIT = "ImageSets/Main/trainval.txt"
_JPG = "JPEGImages/000001.jpg"
_BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<annotation>&b;</annotation>'
_OUTSIDE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<annotation>&a;</annotation>'


def _voc(name: str, corrupt: Callable[[Path], None], expect: str, file: str = _XML2, faults: int = 1) -> Corruption:
    return Corruption(name, "voc", corrupt, expect, Path(file).name, faults)


def _coco(name: str, corrupt: Callable[[Path], None], expect: str, faults: int = 1) -> Corruption:
    return Corruption(name, "coco", corrupt, expect, "instances.json", faults)


def _other_picture(name: str) -> Callable[[Path], None]:
    return _both(_replace(_XML2, "000002.png", name), _delete("JPEGImages/000002.png"))


VOC_CORRUPTIONS = [
    _voc("annotation missing", _delete(_XML2), "line 2: found '000002', which has no file", _SPLIT),
    _voc("annotation is a folder", _folder_instead(_XML2), "line 2: found '000002', which has no file", _SPLIT),
    _voc("image missing", _delete(_JPG), "filename: found '000001.jpg' and no such picture", _XML1),
    _voc(
        "two images to choose from",
        _both(_replace(_XML3, "000003.jpg", "photo"), _write("JPEGImages/000003.png", "")),
        "000003.jpg, 000003.png in JPEGImages",
        _XML3,
    ),
    _voc("image annotated twice", _other_picture("000001.jpg"), "the picture of 000001.xml"),
    _voc("image name escapes", _other_picture("../../secret.jpg"), "filename: found '../../secret.jpg'"),
    _voc("image name absolute", _other_picture("/etc/secret.jpg"), "filename: found '/etc/secret.jpg'"),
    _voc("image name endless", _other_picture("x" * 5000), "filename: found 'xxx"),
    _voc("XML cut off", _cut(_XML2, 0.5), "found malformed XML ("),
    _voc("XML empty", _write(_XML2, ""), "malformed XML (no element found"),
    _voc("XML tag not closed", _replace(_XML2, "</size>", ""), "mismatched tag"),
    _voc("XML entity bomb", _write(_XML2, _BOMB), "an entity declaration"),
    _voc("XML external entity", _write(_XML2, _OUTSIDE), "an entity declaration"),
    _voc("XML of something else", _write(_XML2, "<html/>"), "<html> as the outermost tag"),
    _voc("XML in a strange encoding", _write(_XML2, "<?xml version='1.0' encoding='foo'?><a/>"), "encoding: foo"),
    _voc("XML far too large", _write(_XML2, b" " * (9 * 2**20)), "at most 8388608 bytes"),
    _voc("no name", _replace(_XML2, "<name>dog</name>", ""), "object[0].name: found no <name>"),
    _voc("name on two lines", _replace(_XML2, ">dog<", ">do\ng<"), "object[0].name: found 'do\\ng'"),
    _voc(
        "XML says UTF-8 and is Latin-1",
        _write(_XML2, b"<annotation><filename>\xe9</filename></annotation>"),
        "malformed XML",
    ),
    _voc("XML holds a control character", _replace(_XML2, ">dog<", ">d\x1b[31m<"), "malformed XML"),
    _voc("XML nested without end", _write(_XML2, "<annotation>" + "<part>" * 100_000), "malformed XML"),
    _voc("exponent too large", _replace(_XML2, "<xmax>40", "<xmax>1e999"), "xmax: found '1e999'"),
    _voc("hexadecimal", _replace(_XML2, "<xmax>40", "<xmax>0x28"), "xmax: found '0x28'"),
    _voc("Arabic digits", _replace(_XML2, "<xmax>40", "<xmax>\u0664\u0660"), "xmax: found"),
    _voc("size of 10^400", _replace(_XML2, "<width>50", "<width>1" + "0" * 400), "size.width: found '1000"),
    _voc("empty name", _replace(_XML2, ">dog<", "> <"), "object[0].name: found an empty name"),
    _voc(
        "no box but a part's",
        _both(
            _replace(_XML1, "<bndbox>\n<xmin>11", "<box>\n<xmin>11"),
            _replace(_XML1, "44</ymax>\n</bndbox>", "44</ymax>\n</box>"),
        ),
        "object[0].bndbox: found no <bndbox>",
        _XML1,
    ),
    _voc("two boxes", _replace(_XML2, "</object>", "<bndbox/></object>"), "object[0].bndbox: found 2 <bndbox>"),
    _voc("no xmin", _replace(_XML2, "<xmin>21</xmin>", ""), "object[0].bndbox.xmin: found no <xmin>"),
    _voc("a word for a number", _replace(_XML2, ">21<", ">left<"), "object[0].bndbox.xmin: found 'left'"),
    _voc("nothing for a number", _replace(_XML2, ">21<", "><"), "object[0].bndbox.xmin: found ''"),
    _voc("NaN", _replace(_XML2, ">21<", ">nan<"), "xmin: found 'nan'"),
    _voc("infinity", _replace(_XML2, "<xmax>40", "<xmax>inf"), "xmax: found 'inf'"),
    _voc("number too large", _replace(_XML2, "<xmax>40", "<xmax>1e308"), "xmax: found '1e308'"),
    _voc("number only Python reads", _replace(_XML2, ">21<", ">2_1<"), "xmin: found '2_1'"),
    _voc("box reversed", _replace(_XML2, "<xmin>21", "<xmin>45"), "xmin 45, ymin 11, xmax 40, ymax 20: reversed"),
    _voc("box empty", _replace(_XML2, "<ymin>11", "<ymin>21"), "ymin 21, xmax 40, ymax 20: empty"),
    _voc("box outside", _replace(_XML2, "<xmax>40", "<xmax>55"), "outside the 50 x 40 picture by 5 px"),
    _voc("box outside on the left", _replace(_XML2, ">21<", ">-3<"), "outside the 50 x 40 picture by 4 px"),
    _voc(
        "box beside the picture",
        _both(_replace(_XML2, "<xmin>21", "<xmin>51"), _replace(_XML2, "<xmax>40", "<xmax>51")),
        "nothing of it inside the 50 x 40 picture",
    ),
    _voc("difficult is 2", _replace(_XML1, "t>1<", "t>2<"), "object[1].difficult: found '2'; allowed: 0 or 1", _XML1),
    _voc("difficult is a word", _replace(_XML1, "t>1<", "t>yes<"), "object[1].difficult: found 'yes'", _XML1),
    _voc(
        "difficult twice",
        _replace(_XML1, "<difficult>1<", "<difficult>0</difficult><difficult>1<"),
        "object[1].difficult: found 2 <difficult>",
        _XML1,
    ),
    _voc("width 0", _replace(_XML2, "<width>50", "<width>0"), "size.width: found 0; allowed: a whole number"),
    _voc("width negative", _replace(_XML2, "<width>50", "<width>-50"), "size.width: found -50"),
    _voc("width broken", _replace(_XML2, "<width>50", "<width>50.5"), "size.width: found 50.5"),
    _voc("width missing", _replace(_XML2, "<width>50</width>", ""), "size.width: found no <width>"),
    _voc("two sizes", _replace(_XML2, "</size>", "</size><size/>"), "size: found 2 <size>"),
    _voc(
        "size absurd",
        _both(_replace(_XML2, "<width>50", "<width>90000"), _replace(_XML2, "<height>40", "<height>90000")),
        "size: found 90000 x 90000",
    ),
    _voc(
        "no size and no readable image",
        _both(
            _replace(_XML2, "size>", "siez>"), _replace(_XML2, "size>", "siez>"), _write("JPEGImages/000002.png", "")
        ),
        "found an empty file",
        "JPEGImages/000002.png",
    ),
    _voc("split empty", _write(_SPLIT, "\n \n"), "found an empty split", _SPLIT),
    _voc("split names an image twice", _write(_SPLIT, "000001\n000001\n"), "line 2: found '000001' again", _SPLIT),
    _voc("split escapes", _write(_SPLIT, "000001\n../../secret\n"), "line 2: found '../../secret'", _SPLIT),
    _voc("split flag is 7", _write(_SPLIT, "000001 1\n000002 7\n"), "line 2: found '000002 7'", _SPLIT),
    _voc("split is binary", _write(_SPLIT, b"\xff\xfe\x00"), "bytes that are not UTF-8", _SPLIT),
    _voc(
        "class not in classes.txt",
        _write("classes.txt", "dog\n"),
        "object[0].name: found unknown class 'person'",
        _XML1,
    ),
    _voc(
        "classes.txt names a class twice",
        _write("classes.txt", "dog\nperson\ndog\n"),
        "dog more than once",
        "classes.txt",
    ),
    _voc("classes.txt empty", _write("classes.txt", "\n"), "an empty list", "classes.txt"),
    _voc(
        "three faults in two files",
        _both(_replace(_XML1, ">30<", ">5<"), _replace(_XML1, "t>1<", "t>x<"), _replace(_XML2, ">21<", ">?<")),
        "xmin 11, ymin 5, xmax 5, ymax 44: reversed",
        _XML1,
        faults=3,
    ),
]

COCO_CORRUPTIONS = [
    _coco("JSON cut off", _cut("instances.json", 0.5), "malformed JSON"),
    _coco("JSON empty", _write("instances.json", ""), "line 1: found malformed JSON"),
    _coco("JSON not UTF-8", _write("instances.json", b'{"a": "\xff"}'), "malformed JSON"),
    _coco("JSON too deep", _write("instances.json", "[" * 200_000), "malformed JSON"),
    _coco("JSON with an endless number", _write("instances.json", "[" + "1" * 5000 + "]"), "malformed JSON"),
    _coco("JSON NaN for a list", _write("instances.json", '{"images": NaN}'), "images: found nan", 2),
    _coco("name moves the cursor", _set("categories", 1, name="\x1b[2J"), "categories[1].name: found '\\x1b[2J'"),
    _coco(
        "RLE of nonsense that is not a crowd",
        _set("annotations", 1, segmentation={"counts": "x" * 99}, area=-1),
        "area",
    ),
    _coco(
        "10 GB claimed", _set("images", 0, width=10**5, height=10**5), "images[0].width: found 100000; allowed: at most"
    ),
    _coco("image id beyond 64 bits", _set("images", 2, id=2**64), "images[2].id: found 18446744073709551616"),
    _coco("JSON of something else", _write("instances.json", "[]"), "JSON that is a list"),
    _coco("no images", _json(lambda document: document.pop("images")), "images: found nothing; allowed: a list"),
    _coco("images null", _json(lambda document: document.update(images=None)), "images: found None"),
    _coco("images empty", _json(lambda document: document.update(images=[])), "images: found an empty list"),
    _coco("annotations an object", _json(lambda document: document.update(annotations={})), "annotations: found {}"),
    _coco("annotation a number", _json(lambda document: document["annotations"].append(3)), "annotations[3]: found 3"),
    _coco("categories empty", _json(lambda document: document.update(categories=[])), "categories: found an empty"),
    _coco("image id twice", _set("images", 2, id=10), "images[2].id: found 10; allowed: an integer of its own"),
    _coco("image id a word", _set("images", 2, id="30"), "images[2].id: found '30'"),
    _coco("image file twice", _set("images", 2, file_name="000001.jpg"), "images[0] has this one"),
    _coco(
        "image file missing", _set("images", 2, file_name="x.jpg"), "images[2].file_name: found 'x.jpg', which is not"
    ),
    _coco(
        "all image files missing",
        _both(*(_set("images", index, file_name=f"x{index}.jpg") for index in range(3))),
        "images: found 'x0.jpg' and none of the other 2 files in",
    ),
    _coco(
        "image name escapes", _set("images", 2, file_name="../instances.json"), "file_name: found '../instances.json'"
    ),
    _coco("image name absolute", _set("images", 2, file_name="/etc/passwd"), "file_name: found '/etc/passwd'"),
    _coco("image name endless", _set("images", 2, file_name="x" * 5000), "images[2].file_name: found 'xxx"),
    _coco("image name with NUL", _set("images", 2, file_name="a\0.jpg"), "images[2].file_name: found 'a\\x00.jpg'"),
    _coco("image name a number", _set("images", 2, file_name=3), "images[2].file_name: found 3"),
    _coco("width 0", _set("images", 2, width=0), "images[2].width: found 0; allowed: a whole number of pixels"),
    _coco("width a word", _set("images", 2, width="32"), "images[2].width: found '32'"),
    _coco("width broken", _set("images", 2, width=32.5), "images[2].width: found 32.5"),
    _coco("width missing", _unset("images", 2, "width"), "images[2].width: found nothing"),
    _coco(
        "size absurd", _set("images", 0, width=10**6, height=10**6), "images[0].width: found 1000000; allowed: at most"
    ),
    _coco("category id twice", _set("categories", 1, id=7), "categories[1].id: found 7", 3),
    _coco("category name twice", _set("categories", 1, name="person"), "categories[1].name: found 'person'"),
    _coco("category name null", _set("categories", 1, name=None), "categories[1].name: found None"),
    _coco("annotation id twice", _set("annotations", 1, id=1), "annotations[1].id: found 1"),
    _coco("annotation id missing", _unset("annotations", 1, "id"), "annotations[1].id: found nothing"),
    _coco("image_id dangles", _set("annotations", 1, image_id=99), "annotations[1].image_id: found 99"),
    _coco("image_id a truth value", _set("annotations", 1, image_id=True), "annotations[1].image_id: found True"),
    _coco("image_id a list", _set("annotations", 1, image_id=[10]), "annotations[1].image_id: found [10]"),
    _coco("category_id dangles", _set("annotations", 1, category_id=99), "annotations[1].category_id: found 99"),
    _coco("category_id beyond 64 bits", _set("annotations", 1, category_id=2**70), "annotations[1].category_id: found"),
    _coco(
        "box null", _set("annotations", 1, bbox=None), "annotations[1].bbox: found None; allowed: [x, y, width, height]"
    ),
    _coco("box missing", _unset("annotations", 1, "bbox"), "annotations[1].bbox: found nothing"),
    _coco("box of three", _set("annotations", 1, bbox=[1, 2, 3]), "annotations[1].bbox: found [1, 2, 3]"),
    _coco("box of words", _set("annotations", 1, bbox=["1", 2, 3, 4]), "annotations[1].bbox: found ['1', 2, 3, 4]"),
    _coco("box with NaN", _set("annotations", 1, bbox=[1, 2, float("nan"), 4]), "bbox: found [1, 2, nan, 4]"),
    _coco("box with infinity", _set("annotations", 1, bbox=[1, 2, float("inf"), 4]), "bbox: found [1, 2, inf, 4]"),
    _coco("box too large", _set("annotations", 1, bbox=[1e308, 2, 1e308, 4]), "bbox: found [1e+308, 2, 1e+308, 4]"),
    _coco("box beyond floats", _set("annotations", 1, bbox=[1, 2, 10**400, 4]), "bbox: found [1, 2, 1000"),
    _coco("box reversed", _set("annotations", 1, bbox=[30, 10, -5, 4]), "[30.0, 10.0, -5.0, 4.0]: reversed"),
    _coco(
        "box empty",
        _set("annotations", 1, bbox=[30, 10, 5, 0]),
        "annotations[1].bbox: found [30.0, 10.0, 5.0, 0.0]: empty",
    ),
    _coco("box outside", _set("annotations", 1, bbox=[30, 10, 25, 5]), "outside the 50 x 40 picture by 5 px"),
    _coco("box beside the picture", _set("annotations", 1, bbox=[50, 10, 1, 5]), "nothing of it inside"),
    _coco("iscrowd is 2", _set("annotations", 1, iscrowd=2), "annotations[1].iscrowd: found 2; allowed: 0 or 1"),
    _coco("iscrowd null", _set("annotations", 1, iscrowd=None), "annotations[1].iscrowd: found None"),
    _coco("area null", _set("annotations", 1, area=None), "annotations[1].area: found None"),
    _coco("area NaN", _set("annotations", 1, area=float("nan")), "annotations[1].area: found nan"),
    _coco("area negative", _set("annotations", 1, area=-1), "annotations[1].area: found -1"),
    _coco(
        "three faults in three places",
        _both(
            _set("images", 2, width=0), _set("annotations", 0, bbox=[5, 5, 0, 9]), _set("annotations", 2, iscrowd="no")
        ),
        "annotations[2].iscrowd: found 'no'",
        3,
    ),
]

IMAGE_CORRUPTIONS = [
    corruption
    for kind, jpg, png in (
        ("voc", "JPEGImages/000001.jpg", "JPEGImages/000002.png"),
        ("coco", "images/000001.jpg", "images/000002.png"),
    )
    for corruption in (
        Corruption("JPEG cut off", kind, _cut(jpg, 0.7), "truncated", "000001.jpg", found_by="decoding"),
        Corruption("PNG cut off", kind, _cut(png, 0.7), "unreadable picture", "000002.png", found_by="decoding"),
        Corruption("image of zero bytes", kind, _write(jpg, ""), "an empty file", "000001.jpg", found_by="headers"),
        Corruption("image is text", kind, _write(jpg, "not a picture"), "no picture", "000001.jpg", found_by="headers"),
        Corruption(
            "image is a program",
            kind,
            _write(jpg, b"\x7fELF" + bytes(60)),
            "no picture",
            "000001.jpg",
            found_by="headers",
        ),
        Corruption("image is a drawing", kind, _write(jpg, "<svg/>"), "no picture", "000001.jpg", found_by="headers"),
        Corruption(
            "image starts a program",
            kind,
            _write(jpg, "%!PS-Adobe-3.0 EPSF-3.0\n"),
            "no picture",
            "000001.jpg",
            found_by="headers",
        ),
        Corruption("image of one byte", kind, _write(jpg, b"\xff"), "no picture", "000001.jpg", found_by="headers"),
        Corruption(
            "image with a comment that swells",
            kind,
            _swollen_text(png),
            "unreadable picture",
            "000002.png",
            found_by="headers",
        ),
        Corruption("image a bomb", kind, _huge_png(png), "178956970 pixels", "000002.png", found_by="headers"),
        Corruption(
            "image of another size",
            kind,
            _both(_delete(jpg), lambda folder, jpg=jpg: Image.new("RGB", (64, 47)).save(folder / jpg)),
            "size: found 64 x 47 pixels, but 64 x 48 declared;",
            "000001.jpg",
            found_by="headers",
        ),
        Corruption(
            "image annotated without its EXIF rotation",
            kind,
            _sideways(jpg),
            "48 x 64 pixels, but 64 x 48 declared, which is its size without the EXIF rotation",
            "000001.jpg",
            found_by="headers",
        ),
    )
]

_TWO = "labels/train/000002.txt"
_LINE = "0 0.6 0.375 0.4 0.25"
_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntrain: images/train\nnames: *c\n"


def _labels(name: str, text: str, expect: str, faults: int = 1) -> Corruption:
    return Corruption(name, "yolo", _write(_TWO, text), expect, "000002.txt", faults)


def _yaml(name: str, old: str, new: str, expect: str, faults: int = 1) -> Corruption:
    return Corruption(name, "yolo", _replace("data.yaml", old, new), expect, "data.yaml", faults)


YOLO_CORRUPTIONS = [
    _labels("too few values", "0 0.6 0.375 0.4", "line 1: found 4 values"),
    _labels("a confidence behind the box", f"{_LINE} 0.9", "line 1: found 6 values"),
    _labels("half a point of a polygon", "0 .1 .1 .2 .2 .3 .3 .4", "line 1: found 8 values"),
    _labels("a word", f"{_LINE}\n0 0.6 left 0.4 0.25", "line 2: found 'left'; allowed: numbers"),
    _labels("no number", "0 0.6 nan 0.4 0.25", "line 1: found 'nan'"),
    _labels("infinite", "0 0.6 1e999 0.4 0.25", "line 1: found 1e999; allowed: shares"),
    _labels("a name for a class", "dog 0.6 0.375 0.4 0.25", "line 1: found 'dog'"),
    _labels("class out of range", "2 0.6 0.375 0.4 0.25", "line 1: found class 2; allowed: a whole number from 0 to 1"),
    _labels("class below 0", "-1 0.6 0.375 0.4 0.25", "line 1: found class -1"),
    _labels("half a class", "0.5 0.6 0.375 0.4 0.25", "line 1: found class 0.5"),
    _labels("pixels", "0 30 15 20 10", "line 1: found 30; allowed: shares of the picture's sides, from 0 to 1"),
    _labels("below 0", "0 0.6 -0.375 0.4 0.25", "line 1: found -0.375"),
    _labels("empty box", "0 0.6 0.375 0 0.25", "empty; allowed: positive width"),
    _labels("box sticks out", "0 0.9 0.375 0.4 0.25", "outside the 50 x 40 picture by 5 px"),
    _labels("several at once", "9 .5 .5 .1 .1\n0 x .5 .1 .1\n0 .5 .5 0 .1\n0", "line 4: found 1 value;", faults=4),
    Corruption("labels of no text", "yolo", _write(_TWO, b"\xff\xfe\x00"), "not UTF-8", "000002.txt"),
    Corruption("labels without end", "yolo", _write(_TWO, b"0 " * 5_000_001), "at most 10000000 bytes", "000002.txt"),
    Corruption("no yaml", "yolo", _write("data.yaml", "names: [dog"), "malformed YAML", "data.yaml"),
    Corruption("yaml with code", "yolo", _write("data.yaml", "!!python/name:os.system"), "malformed YAML", "data.yaml"),
    Corruption("yaml a list", "yolo", _write("data.yaml", "[train]"), "YAML that is a list", "data.yaml"),
    Corruption("yaml a bomb", "yolo", _write("data.yaml", _BOMB), "names: found [[[", "data.yaml"),
    Corruption("yaml nested deep", "yolo", _write("data.yaml", "[" * 9000), "malformed YAML", "data.yaml"),
    _yaml("no names", "names: [dog, person]", "", "names: found nothing"),
    _yaml("a name twice", "[dog, person]", "[dog, dog]", "names: found dog more than once"),
    _yaml("names with a gap", "[dog, person]", "{0: dog, 2: person}", "names: found {0: 'dog', 2: 'person'}"),
    _yaml("another number of names", "nc: 2", "nc: 3", "nc: found 3; allowed: 2, the number of names"),
    _yaml("pictures elsewhere", "images/train", "/etc", "train: found '/etc'; allowed: a folder of pictures"),
    _yaml("pictures above", "images/train", "../../x", "train: found '../../x'"),
    _yaml("pictures nowhere", "images/train", "images/val", "train: found 'images/val'"),
    _yaml("pictures of another kind", "images/train", "{a: 1}", "train: found {'a': 1}"),
    _yaml("no pictures", "images/train", "labels/train", "without a picture in it"),
    _yaml("a name too long", "images/train", "a" * 5000, "train: found 'aaa"),
]

CORRUPTIONS = [*VOC_CORRUPTIONS, *COCO_CORRUPTIONS, *YOLO_CORRUPTIONS, *IMAGE_CORRUPTIONS]
