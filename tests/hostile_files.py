"""Files that a command may be given, and every way we know to break one or to fill it with malice.

Data sets are broken in ``corruptions``; here are proposals, recipes, weights, checkpoints and the files of a run. Each of
`HOSTILE` is made in a folder that has ``data`` (a VOC folder of three pictures), ``run`` (a run that was interrupted)
and ``done`` (a finished and evaluated one).
"""

import io
import json
import pickle
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from safetensors.torch import save

Make = Callable[[Path], None]

STEMS = ("000001", "000002", "000003")
BOXES = np.array([[1, 1, 20, 20], [5, 5, 30, 30]], dtype=np.float64)


class Hostile(NamedTuple):
    """One bad file.

    Attributes:
        name: for the test's id.
        make: writes it into a folder.
        command: of ``ohem``, that is to refuse it.
        expect: stands in the complaint.
    """

    name: str
    make: Make
    command: tuple[str, ...]
    expect: str


def _write(path: str, content: bytes | str) -> Make:
    data = content.encode() if isinstance(content, str) else content

    def make(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return make


def _cut(path: str, part: float) -> Make:
    def make(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(part * len(data))])

    return make


def _json(path: str, edit: Callable[[dict[str, Any]], object]) -> Make:
    def make(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        edit(content)
        (folder / path).write_text(json.dumps(content))

    return make


class Executes:
    """An object whose pickle makes a file when it is read by a careless reader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


# ------------------------------------------------------------------------------------------------------ proposals: .mat


def _cells(values: list[Any]) -> np.ndarray[Any, Any]:
    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return cells


def _mat(**variables: Any) -> Make:
    good = {"images": _cells(list(STEMS)), "boxes": _cells([BOXES] * 3)}

    def make(folder: Path) -> None:
        scipy.io.savemat(folder / "p.mat", {**good, **variables})

    return make


def _mat_header() -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)


def _mat_element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _mat_matrix(flags: int, sizes: tuple[int, int], name: bytes, rest: bytes) -> bytes:
    body = _mat_element(6, struct.pack("<II", flags, 0)) + _mat_element(5, struct.pack("<ii", *sizes))
    return _mat_element(14, body + _mat_element(1, name) + rest)


def _mat_claims(rows: int) -> bytes:
    """Boxes of so many rows, and the bytes of none."""
    return _mat_header() + _mat_matrix(6, (rows, 4), b"boxes", _mat_element(9, b""))


def _mat_nested(depth: int) -> bytes:
    """A cell in a cell in a cell."""
    inner = _mat_matrix(6, (0, 0), b"", _mat_element(9, b""))
    for _ in range(depth):
        inner = _mat_matrix(1, (1, 1), b"boxes", inner)
    return _mat_header() + inner


def _mat_bomb() -> bytes:
    """A variable of 512 MB that takes 2 MB on the disk."""
    squeeze = zlib.compressobj(1)
    size = 2**29
    packed = squeeze.compress(struct.pack("<II", 14, size))
    packed += b"".join(squeeze.compress(bytes(2**20)) for _ in range(size // 2**20)) + squeeze.flush()
    return _mat_header() + struct.pack("<II", 15, len(packed)) + packed


def _mat_function() -> bytes:
    """A function handle, which is code."""
    inner = _mat_matrix(6, (0, 0), b"", _mat_element(9, b""))
    return _mat_header() + _mat_matrix(16, (1, 1), b"boxes", inner)


_MAT = ("propose", "data@trainval", "--proposals", "p.mat")

MAT = [
    Hostile("mat missing", lambda folder: None, _MAT, "p.mat: found No such file"),
    Hostile("mat empty", _write("p.mat", b""), _MAT, "p.mat: found no MATLAB file"),
    Hostile("mat is text", _write("p.mat", "boxes, images\n" * 50), _MAT, "p.mat: found no MATLAB file"),
    Hostile("mat of format 7.3", _write("p.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"), _MAT, "7.3 (HDF5)"),
    Hostile("mat cut off", lambda f: (_mat()(f), _cut("p.mat", 0.6)(f))[0], _MAT, "found no MATLAB file"),
    Hostile("mat without boxes", _mat(boxes="none"), _MAT, "p.mat: "),
    Hostile("mat without images", _mat(images=np.zeros(3)), _MAT, "p.mat: images: found an array of"),
    Hostile("mat of unequal lists", _mat(boxes=_cells([BOXES] * 2)), _MAT, "boxes: found 2 cells; allowed: 3"),
    Hostile("mat boxes of three columns", _mat(boxes=_cells([BOXES[:, :3]] * 3)), _MAT, "boxes{1}: found"),
    Hostile("mat boxes complex", _mat(boxes=_cells([BOXES * 1j] * 3)), _MAT, "boxes{1}: found"),
    Hostile("mat boxes are words", _mat(boxes=_cells(["a", "b", "c"])), _MAT, "boxes{1}: found"),
    Hostile("mat NaN", _mat(boxes=_cells([BOXES * np.nan] * 3)), _MAT, "2 boxes of 2 not finite"),
    Hostile("mat boxes far away", _mat(boxes=_cells([BOXES * 1e30] * 3)), _MAT, "2 bad boxes of 2"),
    Hostile("mat image twice", _mat(images=_cells(["000001"] * 3)), _MAT, "images{2}: found '000001'; allowed: a file"),
    Hostile("mat of other images", _mat(images=_cells(["a", "b", "c"])), _MAT, "proposals: found none"),
    Hostile("mat claims 32 GB", _write("p.mat", _mat_claims(10**9)), _MAT, "p.mat: "),
    Hostile("mat negative size", _write("p.mat", _mat_claims(-1)), _MAT, "p.mat: "),
    Hostile("mat a bomb", lambda folder: (folder / "p.mat").write_bytes(_mat_bomb()) and None, _MAT, "p.mat: "),
    Hostile("mat nested without end", _write("p.mat", _mat_nested(20_000)), _MAT, "p.mat: "),
    Hostile("mat holds a function", _write("p.mat", _mat_function()), _MAT, "p.mat: "),
    Hostile("unknown ending", _write("p.pkl", pickle.dumps(Executes())), (*_MAT[:-1], "p.pkl"), "ends in '.pkl'"),
]

# ----------------------------------------------------------------------------------------------------- proposals: .json

_JSON = ("propose", "data@trainval", "--proposals", "p.json")
_GOOD = [{"image_id": stem, "bbox": [1, 1, 9, 9], "score": 1.0} for stem in STEMS]


def _entry(**values: Any) -> Make:
    return _write("p.json", json.dumps([*_GOOD[:2], {**_GOOD[2], **values}]))


JSON = [
    Hostile("json empty", _write("p.json", ""), _JSON, "p.json: found Invalid JSON"),
    Hostile("json cut off", _write("p.json", json.dumps(_GOOD)[:50]), _JSON, "p.json: found Invalid JSON"),
    Hostile("json not UTF-8", _write("p.json", b'[{"image_id": "\xff\xfe"}]'), _JSON, "p.json: "),
    Hostile("json of something else", _write("p.json", "{}"), _JSON, "allowed: a JSON list"),
    Hostile("json too deep", _write("p.json", "[" * 300_000), _JSON, "p.json: "),
    Hostile("json NaN", _entry(score=float("nan")), _JSON, "[2].score: "),
    Hostile("json 1e308", _entry(bbox=[1e308, 1, 1e308, 1]), _JSON, "not finite"),
    Hostile("json endless number", _write("p.json", "[" + "9" * 10_000 + "]"), _JSON, "p.json: "),
    Hostile("json null", _entry(bbox=None), _JSON, "[2].bbox: found None"),
    Hostile("json words", _entry(bbox=["1", "1", "9", "9"]), _JSON, "[2].bbox: found"),
    Hostile("json of three", _entry(bbox=[1, 2, 3]), _JSON, "[2].bbox: found"),
    Hostile(
        "json without score", _write("p.json", '[{"image_id": 1, "bbox": [1, 1, 2, 2]}]'), _JSON, "score: found not"
    ),
    Hostile("json id a truth value", _entry(image_id=True), _JSON, "[2].image_id: found True"),
    Hostile("json negative width", _entry(bbox=[9, 9, -5, 3]), _JSON, "reversed"),
    Hostile("json image missing", _write("p.json", json.dumps(_GOOD[:2])), _JSON, "proposals: found none"),
]

# --------------------------------------------------------------------------------------------------- proposals: .sqlite

_SQLITE = ("propose", "data@trainval", "--proposals", "p.sqlite")
_META = {"kind": "ohem proposals", "format": "1", "method": "selective_search", "mode": "fast"}
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE proposals (image_id PRIMARY KEY NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL, boxes BLOB NOT NULL);
"""
_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def _cache(script: str = "", boxes: bytes | str = BOXES.astype("<f4").tobytes(), **meta: Any) -> Make:
    def make(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "p.sqlite")) as connection, connection:
            connection.executescript(_TABLES)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", {**_META, **meta}.items())
            rows = [(stem, 0, 0, "", boxes) for stem in STEMS]
            connection.executemany("INSERT INTO proposals VALUES (?, ?, ?, ?, ?)", rows)
            connection.commit()
            connection.executescript(script)

    return make


def _cut_cache(folder: Path) -> None:
    _cache()(folder)
    _cut("p.sqlite", 0.5)(folder)


SQLITE = [
    Hostile("cache missing", lambda folder: None, _SQLITE, "p.sqlite: found no such file"),
    Hostile("cache empty", _write("p.sqlite", b""), _SQLITE, "something else in it"),
    Hostile("cache is text", _write("p.sqlite", "image_id, boxes\n" * 99), _SQLITE, "file is not a database"),
    Hostile("cache cut off", _cut_cache, _SQLITE, "p.sqlite: "),
    Hostile("cache of another format", _cache(format="2"), _SQLITE, "format: found 2; allowed: 1"),
    Hostile("cache of another kind", _cache(kind="photos"), _SQLITE, "something else in it"),
    Hostile("cache of bytes for words", _cache(kind=b"\xff"), _SQLITE, "something else in it"),
    Hostile("cache without a table", _cache("DROP TABLE proposals"), _SQLITE, "something else in it"),
    Hostile(
        "cache without a column", _cache("ALTER TABLE proposals DROP COLUMN boxes"), _SQLITE, "something else in it"
    ),
    Hostile("cache of half boxes", _cache(boxes=b"\0" * 15), _SQLITE, "boxes of '000001': found something else"),
    Hostile("cache of words for boxes", _cache(boxes="boxes"), _SQLITE, "boxes of '000001': found something else"),
    Hostile("cache of NaN", _cache(boxes=np.full(4, np.nan, "<f4").tobytes()), _SQLITE, "not finite"),
    Hostile(
        "cache without end",
        _cache(f"DROP TABLE proposals; CREATE VIEW proposals AS {_ENDLESS} SELECT i AS image_id, i AS boxes FROM n"),
        _SQLITE,
        "something else in it",
    ),
    Hostile(
        "cache of a setting without end",
        _cache(f"DROP TABLE meta; CREATE VIEW meta AS {_ENDLESS} SELECT i AS key, i AS value FROM n"),
        _SQLITE,
        "something else in it",
    ),
    Hostile(
        "cache with a column without end",
        _cache(
            "DROP TABLE proposals; CREATE TABLE proposals (image_id, size, mtime_ns, sha256,"
            " boxes GENERATED ALWAYS AS (zeroblob(900000000)) VIRTUAL);"
            "INSERT INTO proposals VALUES ('000001', 0, 0, ''), ('000002', 0, 0, ''), ('000003', 0, 0, '')"
        ),
        _SQLITE,
        "something else in it",
    ),
]

# -------------------------------------------------------------------------------------------------------------- recipes

_RECIPE = ("train", "r.yaml", "--data", "data@trainval", "--run", "new")
_LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def _recipe(text: bytes | str) -> Make:
    return _write("r.yaml", text)


RECIPES = [
    Hostile("recipe a folder", lambda folder: (folder / "r.yaml").mkdir(), _RECIPE, "r.yaml: found no such file"),
    Hostile("recipe not YAML", _recipe("a: [b"), _RECIPE, "r.yaml: found no readable YAML"),
    Hostile("recipe not UTF-8", _recipe(b"seed: 1 # \xff"), _RECIPE, "r.yaml: found no readable YAML"),
    Hostile("recipe of NULs", _recipe(b"\0" * 64), _RECIPE, "r.yaml: found no readable YAML"),
    Hostile("recipe a list", _recipe("- seed\n"), _RECIPE, "r.yaml: found list"),
    Hostile("recipe a number", _recipe("3\n"), _RECIPE, "r.yaml: found int"),
    Hostile("recipe too deep", _recipe("[" * 20_000), _RECIPE, "r.yaml: found no readable YAML"),
    Hostile("recipe executes", _recipe("seed: !!python/object/apply:pathlib.Path.touch [executed]\n"), _RECIPE, "YAML"),
    Hostile("recipe laughs", _recipe(_LAUGHS), _RECIPE, "a: found an unknown field"),
    Hostile("recipe laughs in a field", _recipe(_LAUGHS + "seed: *i\n"), _RECIPE, "seed: found"),
    Hostile("recipe laughs in a sampler", _recipe(_LAUGHS + "sampler: {kind: *i}\n"), _RECIPE, "found"),
    Hostile("recipe laughs in a detector", _recipe(_LAUGHS + "detector: {kind: *i}\n"), _RECIPE, "kind: found"),
    Hostile("recipe laughs in a choice", _recipe(_LAUGHS + "mining: *i\n"), _RECIPE, "mining: found"),
    Hostile("recipe of itself", _recipe("a: &a [*a]\n"), _RECIPE, "a: found an unknown field"),
    Hostile("recipe with itself as base", _recipe("base: r.yaml\n"), _RECIPE, "base: found a circle"),
    Hostile("recipe with a list as base", _recipe("base: [lite0]\n"), _RECIPE, "base: found ['lite0']"),
    Hostile("recipe lr NaN", _recipe("base: lite0\noptimizer: {lr: .nan}\n"), _RECIPE, "optimizer.lr: found nan"),
    Hostile("recipe lr infinite", _recipe("base: lite0\noptimizer: {lr: .inf}\n"), _RECIPE, "optimizer.lr: found inf"),
    Hostile("recipe seed 10^400", _recipe("base: lite0\nseed: 1" + "0" * 400), _RECIPE, "seed: found"),
    Hostile("recipe field a list", _recipe("base: lite0\n[seed]: 1\n"), _RECIPE, "r.yaml: "),
    Hostile("recipe field a number", _recipe("base: lite0\n3: 1\n"), _RECIPE, "r.yaml: "),
    Hostile("recipe part a number", _recipe("base: lite0\noptimizer: 3\n"), _RECIPE, "optimizer: found 3"),
    Hostile("recipe part null", _recipe("base: lite0\ndetector: null\n"), _RECIPE, "detector: found None"),
    Hostile("recipe sampler null", _recipe("base: lite0\nsampler: null\n"), _RECIPE, "sampler"),
    Hostile("recipe sampler of NaN", _recipe("base: lite0\nsampler: {kind: hard, nms_iou: .nan}"), _RECIPE, "nms_iou"),
]

# ------------------------------------------------------------------------------------------------- weights, checkpoints

_WEIGHTS = ("detect", "w.safetensors", "data/JPEGImages/000001.jpg")
_RESUME = ("train", "--resume", "run", "--workers", "0")


def _claims(length: int) -> bytes:
    return struct.pack("<Q", length) + b"{}"


def _header(header: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _metadata(edit: Callable[[dict[str, Any]], object]) -> Make:
    """The finished run's weights, with other metadata."""

    def make(folder: Path) -> None:
        data = (folder / "done/weights.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        meta = json.loads(header["__metadata__"]["ohem"])
        edit(meta)
        header["__metadata__"]["ohem"] = json.dumps(meta)
        (folder / "w.safetensors").write_bytes(_header(header, data[8 + size :]))

    return make


def _torch_file(path: str, value: object, **options: Any) -> Make:
    def make(folder: Path) -> None:
        torch.save(value, folder / path, **options)

    return make


def _zip_bomb(path: str) -> Make:
    """A torch file that holds 512 MB of zeros in 2 MB."""

    def make(folder: Path) -> None:
        stream = io.BytesIO()
        torch.save({"format": 2, "x": torch.zeros(1)}, stream)
        with (
            zipfile.ZipFile(stream) as whole,
            zipfile.ZipFile(folder / path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
        ):
            for name in whole.namelist():
                if not name.endswith("data/0"):
                    bomb.writestr(name, whole.read(name))
                    continue
                with bomb.open(name, "w", force_zip64=True) as member:
                    for _ in range(512):
                        member.write(bytes(2**20))

    return make


_LAST = "run/checkpoints/last.pt"

WEIGHTS = [
    Hostile("weights empty", _write("w.safetensors", b""), _WEIGHTS, "w.safetensors: found no safetensors"),
    Hostile("weights are text", _write("w.safetensors", "weights" * 99), _WEIGHTS, "found no safetensors"),
    Hostile("weights claim 10 GB", _write("w.safetensors", _claims(10**10)), _WEIGHTS, "found no safetensors"),
    Hostile("weights claim 99 MB", _write("w.safetensors", _claims(99_000_000)), _WEIGHTS, "found no safetensors"),
    Hostile(
        "weights point outside",
        _write("w.safetensors", _header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}})),
        _WEIGHTS,
        "found no safetensors",
    ),
    Hostile("weights of another program", _write("w.safetensors", save({"a": torch.ones(2)})), _WEIGHTS, "format"),
    Hostile(
        "weights of a later format", _metadata(lambda m: m.update(format="ohem-detector-9")), _WEIGHTS, "detector-9"
    ),
    Hostile("weights without classes", _metadata(lambda m: m.pop("classes")), _WEIGHTS, "damaged"),
    Hostile(
        "weights of 10^9 units",
        _metadata(lambda m: m["spec"]["head"].update(fc=[10**9])),
        _WEIGHTS,
        "allowed: shape (84, 1000000000)",
    ),
    Hostile("weights of one class more", _metadata(lambda m: m["classes"].append("x")), _WEIGHTS, "shape (22, 4)"),
    Hostile("weights' spec a list", _metadata(lambda m: m.update(spec=[])), _WEIGHTS, "damaged"),
    Hostile(
        "weights' backbone unknown", _metadata(lambda m: m["spec"]["backbone"].update(name="os")), _WEIGHTS, "'os'"
    ),
    Hostile(
        "weights that colour the terminal",
        _metadata(lambda m: m.update(classes=["\x1b[31m", *m["classes"][1:]])),
        _WEIGHTS,
        "which cannot be printed",
    ),
    Hostile(
        "weights cut off",
        lambda f: (_metadata(lambda m: None)(f), _cut("w.safetensors", 0.9)(f))[0],
        _WEIGHTS,
        "w.safetensors: found no safetensors",
    ),
    Hostile(
        "weights of a backbone execute",
        _torch_file("w.pth", {"a": Executes()}),
        ("train", "lite0", "detector.backbone.weights=w.pth", "--data", "data@trainval", "--run", "new"),
        "w.pth: found no readable weights",
    ),
    Hostile("checkpoint empty", _write(_LAST, b""), _RESUME, "last.pt: found no readable checkpoint"),
    Hostile("checkpoint cut off", _cut(_LAST, 0.7), _RESUME, "last.pt: found no readable checkpoint"),
    Hostile("checkpoint executes", _torch_file(_LAST, Executes()), _RESUME, "last.pt: found no readable checkpoint"),
    Hostile(
        "checkpoint executes inside", _torch_file(_LAST, {"format": 2, "detector": Executes()}), _RESUME, "last.pt"
    ),
    Hostile(
        "checkpoint of the old form executes",
        _torch_file(_LAST, Executes(), _use_new_zipfile_serialization=False),
        _RESUME,
        "last.pt: found no readable checkpoint",
    ),
    Hostile("checkpoint a bare pickle", _write(_LAST, pickle.dumps(Executes())), _RESUME, "last.pt: found no readable"),
    Hostile("checkpoint a list", _torch_file(_LAST, [1]), _RESUME, "format: found 'list'"),
    Hostile("checkpoint of an older format", _torch_file(_LAST, {"format": 1}), _RESUME, "format: found 1; allowed: 2"),
    Hostile("checkpoint of a later format", _torch_file(_LAST, {"format": 3}), _RESUME, "format: found 3; allowed: 2"),
    Hostile("checkpoint without parts", _torch_file(_LAST, {"format": 2}), _RESUME, "found the state of"),
    Hostile(
        "checkpoint of other parts",
        _torch_file(_LAST, {"format": 2, "iteration": 1, "best": None, "detector": 3, "optimizer": {}}),
        _RESUME,
        "found the state of another detector",
    ),
    Hostile(
        "checkpoint without iteration",
        _torch_file(_LAST, {"format": 2, "detector": {}, "optimizer": {}}),
        _RESUME,
        "last.pt: ",
    ),
    Hostile("checkpoint a bomb", _zip_bomb(_LAST), _RESUME, "last.pt: "),
]

# ------------------------------------------------------------------------------------------------------ a run's folder

_COMPARE = ("compare", "done", "run")
_EVALUATE = ("evaluate", "done", "--data", "data@trainval", "--workers", "0")

RUNS = [
    Hostile("run.json empty", _write("run/run.json", ""), _RESUME, "run.json: found no readable JSON"),
    Hostile("run.json a list", _write("run/run.json", "[]"), _RESUME, "run.json: found list"),
    Hostile(
        "run.json not UTF-8", _write("run/run.json", b'{"a": "\xff"}'), _RESUME, "run.json: found no readable JSON"
    ),
    Hostile("run.json too deep", _write("run/run.json", "[" * 200_000), _RESUME, "run.json: found no readable JSON"),
    Hostile(
        "run.json of a later format",
        _json("run/run.json", lambda i: i.update(format=9)),
        _RESUME,
        "found 9; allowed: 1",
    ),
    Hostile(
        "run.json without sources", _json("run/run.json", lambda i: i.pop("sources")), _RESUME, "run.json: sources"
    ),
    Hostile(
        "run.json with strange sources", _json("run/run.json", lambda i: i["sources"].update(x=[])), _RESUME, "sources"
    ),
    Hostile(
        "run.json with null sources", _json("run/run.json", lambda i: i.update(sources={"train": None})), _RESUME, "sou"
    ),
    Hostile(
        "run.json with strange preprocessing",
        _json("run/run.json", lambda i: i.update(preprocessing={"mean": "x"})),
        _RESUME,
        "run.json: preprocessing",
    ),
    Hostile("run.json without data", _json("run/run.json", lambda i: i.pop("data")), _RESUME, "run.json: data"),
    Hostile(
        "run's recipe damaged", _write("run/recipe.yaml", "seed: ["), _RESUME, "recipe.yaml: found no readable YAML"
    ),
    Hostile("run's recipe of another version", _write("run/recipe.yaml", "sneed: 1"), _RESUME, "did you mean seed?"),
    Hostile(
        "run's recipe leaves the run", _write("run/recipe.yaml", "base: ../../x.yaml"), _RESUME, "x.yaml: found no"
    ),
    Hostile(
        "log damaged", _write("run/log.jsonl", '{"kind": "train", "itera\n{}\n'), _RESUME, "log.jsonl: line 1: found"
    ),
    Hostile("log of something else", _write("run/log.jsonl", "3\n"), _RESUME, "log.jsonl: line 1: found"),
    Hostile("log binary", _write("run/log.jsonl", b"\xff\xfe\n"), _RESUME, "log.jsonl"),
    Hostile("weights of an unfinished run", lambda folder: None, ("evaluate", "run", *_EVALUATE[2:]), "a finished run"),
    Hostile("comparison of an unfinished run", lambda folder: None, _COMPARE, "found a training that is not finished"),
    Hostile(
        "metrics damaged", _write("done/evaluation/metrics.json", "{"), _COMPARE, "metrics.json: found no readable"
    ),
    Hostile("metrics a list", _write("done/evaluation/metrics.json", "[]"), _COMPARE, "metrics.json"),
]

HOSTILE = [*MAT, *JSON, *SQLITE, *RECIPES, *WEIGHTS, *RUNS]
