"""Proposals from files: the conventions of `.mat` and JSON, several files as one, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ohem.data.dataset import ImageRecord
from ohem.errors import DataError
from ohem.proposals.cache import ProposalCache, ProposalSetting, make_proposals
from ohem.proposals.imports import load_coco_proposals, load_mat, load_proposals, validate_proposals

# 1-based inclusive y1 x1 y2 x2: rows 1..20 and columns 3..40, then the single pixel in row 5, column 6.
MATLAB = [[1, 3, 20, 40], [5, 6, 5, 6]]
OURS = [[2, 0, 40, 20], [5, 4, 6, 5]]


def cells(*values, column=False):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array[:, None] if column else array[None, :]


def save_mat(path, boxes, images, **options):
    scipy.io.savemat(path, {"boxes": boxes, "images": images}, **options)
    return path


def faults_of(load, path):
    with pytest.raises(DataError) as raised:
        load(path)
    return [str(fault).removeprefix(f"{path}: ") for fault in raised.value.faults]


def as_lists(proposals):
    return {image_id: boxes.tolist() for image_id, boxes in proposals.items()}


# MATLAB


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("compressed", [False, True])
def test_mat_boxes_are_turned_into_ours(tmp_path, dtype, compressed):
    boxes = cells(np.array(MATLAB, dtype), np.array(MATLAB[:1], dtype))
    path = save_mat(tmp_path / "a.mat", boxes, cells("000001", "000002", column=True), do_compression=compressed)
    proposals = load_mat(path)
    assert as_lists(proposals) == {"000001": OURS, "000002": OURS[:1]}
    assert proposals["000001"].dtype == np.float32


def test_mat_of_one_image_with_one_box(tmp_path):
    path = save_mat(tmp_path / "a.mat", cells(np.array(MATLAB[:1])), cells("000001"))
    assert as_lists(load_mat(path)) == {"000001": OURS[:1]}


@pytest.mark.parametrize("shape", [(0, 0), (0, 4)])
def test_mat_image_without_boxes(tmp_path, shape):
    boxes = cells(np.array(MATLAB), np.zeros(shape))
    proposals = load_mat(save_mat(tmp_path / "a.mat", boxes, cells("a", "b")))
    assert proposals["b"].shape == (0, 4)


def test_mat_cells_inside_cells(tmp_path):
    boxes, images = cells(cells(np.array(MATLAB))), cells(cells("000001"), column=True)
    assert as_lists(load_mat(save_mat(tmp_path / "a.mat", boxes, images))) == {"000001": OURS}


def test_mat_names_as_rows_of_characters(tmp_path):
    boxes = cells(np.array(MATLAB), np.array(MATLAB[1:]))
    path = save_mat(tmp_path / "a.mat", boxes, np.array(["first", "2nd"]))
    assert as_lists(load_mat(path)) == {"first": OURS, "2nd": OURS[1:]}


def test_mat_other_variables_are_not_looked_at(tmp_path):
    path = tmp_path / "a.mat"
    content = {"boxes": cells(np.array(MATLAB)), "images": cells("a"), "scores": np.ones(3), "notes": {"by": "x"}}
    scipy.io.savemat(path, content)
    assert list(load_mat(path)) == ["a"]


def test_mat_faults_are_told_together(tmp_path):
    boxes = cells(
        np.ones((2, 5)), np.array(MATLAB), "text", np.array(MATLAB), np.ones((1, 4), complex), np.ones((1, 4))
    )
    images = cells("a", "", "c", "d", "e", "d")
    assert faults_of(load_mat, save_mat(tmp_path / "a.mat", boxes, images)) == [
        "boxes{1}: found an array of float64 in shape (2, 5); allowed: (P, 4) numbers",
        "images{2}: found an array of <U1 in shape (0,); allowed: a file stem of its own",
        "boxes{3}: found an array of <U4 in shape (1,); allowed: (P, 4) numbers",
        "boxes{5}: found an array of complex128 in shape (1, 4); allowed: (P, 4) numbers",
        "images{6}: found 'd'; allowed: a file stem of its own",
    ]


def test_mat_without_the_two_arrays(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"boxes": np.ones((3, 4))})
    assert faults_of(load_mat, path) == [
        "images: found no such variable; allowed: a cell array",
        "boxes: found an array of float64 in shape (3, 4); allowed: a cell array",
    ]


def test_mat_with_different_numbers_of_cells(tmp_path):
    path = save_mat(tmp_path / "a.mat", cells(np.array(MATLAB)), cells("a", "b"))
    assert faults_of(load_mat, path) == ["boxes: found 1 cells; allowed: 2, one for each of `images`"]


def test_mat_of_version_7_3(tmp_path):
    path = tmp_path / "a.mat"
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(head.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert faults_of(load_mat, path) == [
        "found MATLAB's format 7.3 (HDF5); allowed: format 7 or older: in MATLAB, save with '-v7'"
    ]


def test_mat_cut_at_any_place_is_a_fault_and_never_fewer_boxes(tmp_path):
    whole = save_mat(tmp_path / "a.mat", cells(np.array(MATLAB)), cells("a"), do_compression=True).read_bytes()
    path = tmp_path / "cut.mat"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_mat(path)


def test_mat_that_is_not_there(tmp_path):
    assert faults_of(load_mat, tmp_path / "no.mat") == ["found No such file or directory; allowed: a readable file"]


# COCO


def save_json(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(image_id, bbox, score, **others):
    return {"image_id": image_id, "bbox": bbox, "score": score, **others}


def test_json_boxes_are_sorted_by_score_within_their_image(tmp_path):
    path = save_json(
        tmp_path / "a.json",
        [
            entry(7, [0, 0, 1, 1], 0.1, category_id=3),
            entry(9, [10.5, 20, 5, 2.25], -2, area=5),
            entry(7, [1, 2, 3, 4], 0.8),
            entry(7, [0, 0, 2, 2], 0.1),
            entry("7", [0, 0, 3, 3], 1),
        ],
    )
    proposals = load_coco_proposals(path)
    assert as_lists(proposals) == {
        7: [[1, 2, 4, 6], [0, 0, 1, 1], [0, 0, 2, 2]],
        9: [[10.5, 20, 15.5, 22.25]],
        "7": [[0, 0, 3, 3]],
    }
    assert proposals[9].dtype == np.float32


def test_json_without_boxes(tmp_path):
    assert load_coco_proposals(save_json(tmp_path / "a.json", [])) == {}


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ("{}", ["found {}; allowed: a JSON list of objects"]),
        ("[1]", ["[0]: found 1; allowed: an object"]),
        (
            '[{"image_id": true, "bbox": [1, 2, 3], "score": "9"}, {"bbox": [1, 2, 3, NaN], "score": 1e999}]',
            [
                "[0].image_id: found True; allowed: an integer or a text",
                "[0].bbox: found nothing; allowed: [x, y, width, height], finite numbers",
                "[0].score: found '9'; allowed: a finite number",
                "[1].image_id: found nothing; allowed: an integer or a text",
                "[1].bbox: found nan; allowed: [x, y, width, height], finite numbers",
                "[1].score: found inf; allowed: a finite number",
            ],
        ),
    ],
)
def test_json_faults_are_told_together(tmp_path, content, faults):
    assert faults_of(load_coco_proposals, save_json(tmp_path / "a.json", content)) == faults


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "\ud800"])
def test_json_that_is_none(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    (fault,) = faults_of(load_coco_proposals, path)
    assert fault.startswith("found Invalid JSON: ")
    assert fault.endswith("; allowed: a JSON list of objects")


def test_json_that_is_not_there(tmp_path):
    path = tmp_path / "no.json"
    assert faults_of(load_coco_proposals, path) == ["found No such file or directory; allowed: a readable file"]


# Several files


def record(image_id, width=100, height=80, path=None):
    none = np.zeros(0)
    path = path or Path(f"{image_id}.jpg")
    return ImageRecord(image_id, path, width, height, np.zeros((0, 4)), none.astype(np.int64), none > 0, none > 0, none)


def make_cache(folder, image_id):
    image, path = folder / "image.png", folder / "made.sqlite"
    Image.new("RGB", (20, 16)).save(image)
    make_proposals([record(image_id, 20, 16, image)], path, ProposalSetting())
    return path


def test_files_of_all_kinds_are_joined(tmp_path):
    mat = save_mat(tmp_path / "a.MAT", cells(np.array(MATLAB)), cells("a"))
    coco = save_json(tmp_path / "b.json", [entry(1, [0, 0, 5, 5], 1), entry(2, [0, 0, 6, 6], 1)])
    cache = make_cache(tmp_path, "c")
    proposals, notes = load_proposals([mat, coco, cache])
    assert as_lists(proposals) == {"a": OURS, 1: [[0, 0, 5, 5]], 2: [[0, 0, 6, 6]], "c": [[0, 0, 20, 16]]}
    assert len(proposals) == 4
    assert notes == [
        f"{mat}: proposals of 1 image",
        f"{coco}: proposals of 2 images",
        f"{cache}: proposals of 1 image",
    ]


def test_a_cache_stays_on_disk(tmp_path):
    proposals, _ = load_proposals([make_cache(tmp_path, "c")])
    assert isinstance(proposals, ProposalCache)


def test_an_image_in_two_files_is_a_fault(tmp_path):
    first = save_json(tmp_path / "a.json", [entry(i, [0, 0, 5, 5], 1) for i in range(9)])
    second = save_json(tmp_path / "b.json", [entry(i, [0, 0, 5, 5], 1) for i in range(2, 12)])
    with pytest.raises(DataError) as raised:
        load_proposals([first, second])
    assert str(raised.value) == (
        f"{second}: found 7 image ids of the files before it: 2, 3, 4, 5, 6, ... (7 in all); "
        "allowed: each image in one file only"
    )


def test_the_faults_of_all_files_are_told_together(tmp_path):
    paths = [tmp_path / "a.pkl", save_json(tmp_path / "b.json", "[1]"), tmp_path / "c.mat", tmp_path / "d.sqlite"]
    with pytest.raises(DataError) as raised:
        load_proposals(paths)
    assert [fault.file for fault in raised.value.faults] == paths
    assert str(raised.value.faults[0]) == (
        f"{paths[0]}: found a file name that ends in '.pkl'; allowed: .mat, .json, .sqlite"
    )


# Validation


def boxes(*rows):
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def problems(given, records):
    return [str(fault) for fault in validate_proposals(given, records)]


def test_sound_proposals_have_no_faults():
    edge = boxes([0, 0, 100, 80], [-1, -0.5, 101, 81], [99, 79, 100, 80])
    assert problems({"a": edge, "b": boxes(), "unused": np.ones(3)}, [record("a"), record("b")]) == []


ALLOWED = "allowed: positive width and height, inside the picture to within 1 px"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (np.zeros((2, 5), np.float32), "found an array of float32 in shape (2, 5); allowed: (P, 4) float32"),
        (np.zeros((2, 4)), "found an array of float64 in shape (2, 4); allowed: (P, 4) float32"),
        (boxes([0, 0, np.nan, 5], [0, 0, 5, np.inf]), "found 2 boxes of 2 not finite; allowed: finite numbers"),
        (
            boxes([0, 0, 5, 5], [9, 0, 5, 5], [0, 5, 5, 5]),
            f"found 2 bad boxes of 3, the first [9.0, 0.0, 5.0, 5.0]: reversed; {ALLOWED}",
        ),
        (boxes([0, 5, 5, 5]), f"found 1 bad box of 1, the first [0.0, 5.0, 5.0, 5.0]: empty; {ALLOWED}"),
        (
            boxes([0, 0, 101.5, 5]),
            f"found 1 bad box of 1, the first [0.0, 0.0, 101.5, 5.0]: outside the 100 x 80 picture by 1.5 px; {ALLOWED}",
        ),
        (
            boxes([100, 0, 101, 5]),
            "found 1 bad box of 1, the first [100.0, 0.0, 101.0, 5.0]: nothing of it inside the 100 x 80 picture; "
            + ALLOWED,
        ),
    ],
)
def test_bad_boxes_are_told(given, line):
    assert problems({"a": given, "b": boxes()}, [record("a"), record("b")]) == [f"a.jpg: proposals: {line}"]


def test_images_without_an_entry_are_told_and_all_counted():
    records = [record(f"{i:03d}") for i in range(120)]
    lines = problems({"000": boxes()}, records)
    assert len(lines) == 21
    assert lines[0] == "001.jpg: proposals: found none; allowed: an entry for every image"
    assert lines[20] == "021.jpg: found 99 more faults like these; allowed: none"
