"""The cache of proposals: what is made, kept, made again; what survives being killed; and which files it refuses."""

import multiprocessing
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.images import read_image
from ohem.errors import DataError, OhemError
from ohem.models.spec import ProposalSpec
from ohem.opening import SILENT, open_proposals
from ohem.proposals.cache import MakeReport, ProposalCache, ProposalSetting, default_cache_path, make_proposals
from ohem.proposals.selective_search import selective_search

SIZE = (48, 36)
SETTING = ProposalSetting()


def write_picture(path, seed, size=SIZE):
    """A plain square, on the left or on the right, on noise; all pictures of one size have files of one size."""
    width, height = size
    image = np.random.default_rng(seed).integers(80, 160, (height, width, 3), dtype=np.uint8)
    left = (seed % 2) * width // 2
    image[4:20, left + 2 : left + 18] = (230, 30, 30)
    Image.fromarray(image).save(path, format="BMP")


def record_of(image_id, path, size=SIZE):
    none = np.zeros(0)
    return ImageRecord(image_id, path, *size, np.zeros((0, 4)), none.astype(np.int64), none > 0, none > 0, none)


def make_records(folder, count=4, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.bmp" for i in range(count)]
    for seed, path in enumerate(paths):
        write_picture(path, seed, size)
    return [record_of(path.stem, path, size) for path in paths]


@pytest.fixture
def records(tmp_path):
    return make_records(tmp_path / "images")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "proposals.sqlite"


def counts(report: MakeReport):
    return {"made": report.made, "reused": report.reused, "invalidated": report.invalidated}


def rows(path, columns="image_id, rowid"):
    """By image id; a row that is written again gets another rowid."""
    with closing(sqlite3.connect(path)) as connection:
        return {image_id: rest for image_id, *rest in connection.execute(f"SELECT {columns} FROM proposals")}


# What is made


def test_boxes_are_selective_searchs_whatever_the_number_of_workers(records, path, tmp_path):
    report = make_proposals(records, path, SETTING, workers=3)
    assert counts(report) == {"made": 4, "reused": 0, "invalidated": 0}
    cache = ProposalCache(path)
    assert sorted(cache) == ["000", "001", "002", "003"]
    assert len(cache) == 4
    for record in records:
        assert np.array_equal(cache[record.id], selective_search(read_image(record.path)))
        assert cache[record.id].dtype == np.float32
        assert cache[record.id].flags.writeable


def test_the_setting_is_obeyed(records, path):
    setting = ProposalSetting(mode="quality", max_proposals=3, min_size=12, long_side=40)
    make_proposals(records[:1], path, setting)
    expected = selective_search(read_image(records[0].path), "quality", 3, 12, 40)
    assert np.array_equal(ProposalCache(path)["000"], expected)


def test_integer_ids_and_texts_that_look_like_them_stay_apart(records, path):
    one, text = replace(records[0], id=1), replace(records[1], id="1")
    make_proposals([one, text], path, SETTING)
    cache = ProposalCache(path)
    assert set(cache) == {1, "1"}
    assert np.array_equal(cache[1], selective_search(read_image(one.path)))
    assert np.array_equal(cache["1"], selective_search(read_image(text.path)))


def test_an_image_that_is_not_there_is_a_key_error(records, path):
    make_proposals(records[:1], path, SETTING)
    cache = ProposalCache(path)
    assert "000" in cache
    assert "001" not in cache
    assert None not in cache
    with pytest.raises(KeyError, match="001"):
        cache["001"]


def test_progress_goes_from_what_is_there_to_all(records, path):
    make_proposals(records[:2], path, SETTING)
    told = []
    make_proposals(records, path, SETTING, workers=2, progress=lambda *counts: told.append(counts))
    assert (told[0], told[-1]) == ((2, 4), (4, 4))
    assert {total for _, total in told} == {4}
    assert told == sorted(set(told))


def test_opencvs_threads_are_as_before(records, path):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    make_proposals(records, path, SETTING)
    after = cv2.getNumThreads()
    cv2.setNumThreads(before)
    assert after == 2


# What is made again


def test_finished_images_are_not_made_again(records, path):
    make_proposals(records[:3], path, SETTING)
    before = rows(path)
    assert counts(make_proposals(records, path, SETTING)) == {"made": 1, "reused": 3, "invalidated": 0}
    assert {key: rows(path)[key] for key in before} == before


def test_an_image_that_changed_is_made_again(records, path):
    make_proposals(records, path, SETTING)
    before = rows(path)
    write_picture(records[1].path, seed=10)
    assert counts(make_proposals(records, path, SETTING)) == {"made": 1, "reused": 3, "invalidated": 1}
    after = rows(path)
    assert [key for key in before if before[key] != after[key]] == ["001"]
    assert np.array_equal(ProposalCache(path)["001"], selective_search(read_image(records[1].path)))


def test_another_time_with_the_same_content_only_renews_the_stamp(records, path):
    make_proposals(records, path, SETTING)
    before = rows(path)
    os.utime(records[2].path, ns=(1, 1_000_000_007))
    assert counts(make_proposals(records, path, SETTING)) == {"made": 0, "reused": 4, "invalidated": 0}
    assert rows(path) == before
    assert rows(path, "image_id, mtime_ns")["002"] == [1_000_000_007]


def test_a_cache_that_is_given_must_be_of_these_pictures(records, path):
    make_proposals(records, path, SETTING)
    os.utime(records[2].path, ns=(1, 1_000_000_007))
    assert ProposalCache(path).changed_pictures(records) == []
    write_picture(records[1].path, seed=10)
    dataset = DetectionDataset("a", "voc", path, ("cat",), (1,), tuple(records))
    with pytest.raises(DataError) as caught:
        open_proposals(dataset, str(path), ProposalSpec(), 1, SILENT)
    assert [fault.file for fault in caught.value.faults] == [records[1].path]
    assert "found another picture, of the same name; allowed: the picture whose proposals" in str(caught.value)


def test_a_file_of_the_same_size_and_time_is_taken_for_unchanged(records, path):
    """The way it is fast; no editor or copy leaves both as they were."""
    make_proposals(records, path, SETTING)
    then = records[0].path.stat().st_mtime_ns
    write_picture(records[0].path, seed=10)
    os.utime(records[0].path, ns=(then, then))
    assert make_proposals(records, path, SETTING).reused == 4


def test_a_data_set_may_move(records, path, tmp_path):
    make_proposals(records, path, SETTING)
    moved = make_records(tmp_path / "elsewhere")
    assert counts(make_proposals(moved, path, SETTING)) == {"made": 0, "reused": 4, "invalidated": 0}


def test_other_images_in_the_cache_stay(records, path):
    make_proposals(records, path, SETTING)
    make_proposals(records[:1], path, SETTING)
    assert len(ProposalCache(path)) == 4


# Images that cannot be searched


def test_faulty_images_are_told_together_after_all_others_are_done(records, path):
    records[0].path.write_bytes(b"no picture")
    records[1].path.unlink()
    records[2] = replace(records[2], width=49)
    told = []
    with pytest.raises(DataError) as raised:
        make_proposals(records, path, SETTING, workers=2, progress=lambda *counts: told.append(counts))
    faults = raised.value.faults
    assert [fault.file for fault in faults] == [record.path for record in records[:3]]
    assert str(faults[1]) == f"{records[1].path}: found No such file or directory; allowed: a readable file"
    assert str(faults[2]) == f"{records[2].path}: size: found 48 x 36 px; allowed: 49 x 36 px, as annotated"
    assert told[-1] == (4, 4)
    assert list(ProposalCache(path)) == ["003"]
    write_picture(records[0].path, 0)
    write_picture(records[1].path, 1)
    report = make_proposals([*records[:2], replace(records[2], width=48), records[3]], path, SETTING)
    assert counts(report) == {"made": 3, "reused": 1, "invalidated": 0}


def test_an_image_that_opencv_fails_on_is_a_fault_of_that_image(records, path, monkeypatch):
    """No such image is known; one among a hundred thousand must not keep the others from being made."""

    def search(image, *setting):
        if np.array_equal(image, read_image(records[1].path)):
            raise cv2.error("(-215:Assertion failed)\n 0 <= roi.x")
        return selective_search(image, *setting)

    monkeypatch.setattr("ohem.proposals.cache.selective_search", search)
    with pytest.raises(DataError) as raised:
        make_proposals(records, path, SETTING)
    assert str(raised.value) == (
        f"{records[1].path}: found an image that OpenCV fails on ((-215:Assertion failed) 0 <= roi.x); "
        "allowed: an image that can be searched"
    )
    assert set(ProposalCache(path)) == {"000", "002", "003"}


# Ends that come too early


def run_script(body, *arguments, **options):
    """A Python process of its own that knows this file's names."""
    head = f"import sys; sys.path[:0] = {sys.path!r}\nfrom test_proposals_cache import *\n"
    return subprocess.Popen([sys.executable, "-c", head + body, *map(str, arguments)], text=True, **options)


# A test run in the background of a shell has SIGINT ignored, and would hand that on.
MAKE = """
signal.signal(signal.SIGINT, signal.default_int_handler)
records = [record_of(p.stem, p, (160, 120)) for p in sorted(Path(sys.argv[1]).iterdir())]
tell = lambda done, total: print(done, flush=True)
make_proposals(records, Path(sys.argv[2]), SETTING, workers=2, progress=tell)
"""


def interrupted(folder, path, number):
    """Make proposals in a process that gets the signal after 5 images; its exit status and error output."""
    process = run_script(MAKE, folder, path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if int(line) >= 5:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_finished_when_the_process_was_ended_is_not_made_again(tmp_path, path, number):
    records = make_records(tmp_path / "images", count=30, size=(160, 120))
    status, errors = interrupted(tmp_path / "images", path, number)
    if number == signal.SIGINT:
        assert errors.strip().endswith("KeyboardInterrupt")
    else:
        assert status == -signal.SIGKILL
    before = rows(path)
    assert 5 <= len(before) < 30
    report = make_proposals(records, path, SETTING, workers=2)
    assert counts(report) == {"made": 30 - len(before), "reused": len(before), "invalidated": 0}
    after = rows(path)
    assert {key: after[key] for key in before} == before
    assert len(after) == 30
    cache = ProposalCache(path)
    for record in (records[0], records[-1]):
        assert np.array_equal(cache[record.id], selective_search(read_image(record.path)))


def test_readers_undo_what_a_killed_writer_left_half_done(records, path):
    make_proposals(records, path, SETTING)
    expected = rows(path, "image_id, boxes")
    script = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.executescript("PRAGMA cache_size = 1; BEGIN; UPDATE proposals SET boxes = zeroblob(100000)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_script(script, path).wait() == -signal.SIGKILL
    assert Path(f"{path}-journal").stat().st_size > 0
    cache = ProposalCache(path)
    assert {image_id: [cache[image_id].tobytes()] for image_id in cache} == expected


def test_two_processes_may_make_one_cache_at_once(tmp_path, path):
    records = make_records(tmp_path / "images", count=12, size=(160, 120))
    processes = [run_script(MAKE, tmp_path / "images", path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert make_proposals(records, path, SETTING).reused == 12


def test_a_cache_may_be_begun_by_many_at_once(tmp_path):
    for attempt in range(10):
        path = tmp_path / f"{attempt}.sqlite"
        with ThreadPoolExecutor(8) as pool:
            reports = list(pool.map(make_proposals, [[]] * 8, [path] * 8, [SETTING] * 8))
        assert [report.made for report in reports] == [0] * 8
        assert len(ProposalCache(path)) == 0


# Reading from elsewhere


def first_of(cache):
    return cache["000"].tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_read_in_other_processes(records, path, method):
    make_proposals(records, path, SETTING)
    cache = ProposalCache(path)
    expected = first_of(cache)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(first_of, [cache] * 4) == [expected] * 4
    assert first_of(cache) == expected


def test_a_forked_process_opens_the_file_itself(records, path):
    make_proposals(records, path, SETTING)
    cache = ProposalCache(path)
    expected = first_of(cache)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put((first_of(cache), len(cache._connections))))
    child.start()
    child.join()
    assert results.get() == (expected, 2)


def test_read_in_threads(records, path):
    make_proposals(records, path, SETTING)
    cache = ProposalCache(path)
    results = []
    threads = [threading.Thread(target=lambda: results.append(first_of(cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [first_of(cache)] * 3


def test_pickled_from_a_relative_path_it_finds_its_file_from_anywhere(records, path, tmp_path, monkeypatch):
    make_proposals(records, path, SETTING)
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(ProposalCache(Path(path.name)))
    monkeypatch.chdir(tmp_path)
    assert len(pickle.loads(pickled)) == 4


def test_names_that_mean_something_in_an_address(records, tmp_path):
    path = tmp_path / "50% of #1?mode=ro.sqlite"
    make_proposals(records, path, SETTING)
    assert len(ProposalCache(path)) == 4


# Files that are something else


def refused(path, records):
    """The one line that both the writer and, where it does not ask for a setting, the reader say."""
    with pytest.raises(OhemError) as raised:
        make_proposals(records, path, SETTING)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_cache_of_another_setting(records, path):
    make_proposals(records, path, ProposalSetting(mode="quality", min_size=4))
    before = path.read_bytes()
    assert refused(path, records) == (
        f"{path}: setting: found mode quality, min_size 4; allowed: mode fast, min_size 8, as asked for; or another file"
    )
    assert path.read_bytes() == before


def test_equal_settings_are_equal_however_they_are_written(records, path):
    make_proposals(records, path, ProposalSetting(min_size=8.0))
    assert make_proposals(records, path, ProposalSetting(min_size=8)).reused == 4


def test_a_cache_of_another_format(records, path):
    make_proposals(records, path, SETTING)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    assert refused(path, records) == f"{path}: format: found 2; allowed: 1"
    with pytest.raises(DataError, match="format: found 2; allowed: 1"):
        ProposalCache(path)


OTHER_TABLES = {
    "someone else's": "CREATE TABLE letters (body TEXT); INSERT INTO letters VALUES ('dear')",
    "one with our names": "CREATE TABLE meta (key, value); CREATE TABLE proposals (x); INSERT INTO meta VALUES ('kind', 'x')",
}


@pytest.mark.parametrize("tables", OTHER_TABLES.values(), ids=OTHER_TABLES)
def test_another_programs_database_is_refused_and_left_as_it_is(records, tmp_path, tables):
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(tables)
    before = path.read_bytes()
    assert "found an SQLite file with something else in it; allowed: a cache of proposals" in refused(path, records)
    with pytest.raises(DataError, match="something else in it"):
        ProposalCache(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(records, tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("dear " * 1000)
    assert refused(path, records) == (
        f"{path}: found file is not a database; allowed: a cache of proposals, as `ohem propose` makes it"
    )
    with pytest.raises(DataError, match="not a database"):
        ProposalCache(path)
    assert path.read_text() == "dear " * 1000


def test_an_empty_file_becomes_a_cache(records, tmp_path):
    path = tmp_path / "new.sqlite"
    path.touch()
    assert make_proposals(records, path, SETTING).made == 4


def test_a_damaged_cache_is_told_in_one_line(path, tmp_path):
    records = make_records(tmp_path / "images", count=30)
    make_proposals(records, path, SETTING, workers=2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "malformed" in refused(path, records)


def test_boxes_of_another_length_are_told(records, path):
    make_proposals(records, path, SETTING)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE proposals SET boxes = 'text' WHERE image_id = '001'")
    with pytest.raises(DataError, match="boxes of '001': found something else; allowed: rows of 4 float32"):
        ProposalCache(path)["001"]


def test_places_where_there_can_be_no_cache(records, tmp_path):
    assert "unable to open database file" in refused(tmp_path, records)
    (tmp_path / "file").touch()
    assert "allowed: a path in a folder that can be made" in refused(tmp_path / "file" / "cache.sqlite", records)
    with pytest.raises(DataError, match=r"nothing\.sqlite: found no such file; allowed: a cache of proposals"):
        ProposalCache(tmp_path / "nothing.sqlite")
    assert not (tmp_path / "nothing.sqlite").exists()


# Settings and names


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"mode": "slow"}, "mode: found 'slow'; allowed: fast or quality"),
        ({"method": "rpn"}, "method: found 'rpn'; allowed: selective_search"),
        ({"max_proposals": 0}, "max_proposals: found 0; allowed: a number from 1, or none"),
        ({"min_size": float("nan")}, "min_size: found nan; allowed: a number of pixels from 0"),
        ({"min_size": -1}, "min_size: found -1; allowed: a number of pixels from 0"),
        ({"long_side": 0}, "long_side: found 0; allowed: a number of pixels from 1"),
        ({"mode": "slow", "long_side": 0}, "mode: found 'slow'.*\nlong_side: found 0"),
    ],
)
def test_settings_out_of_range(values, line):
    with pytest.raises(OhemError, match=line):
        ProposalSetting(**values)


def dataset_of(records, name="VOC2007@trainval", root=Path("VOC2007")):
    return DetectionDataset(name, "voc", root, ("cat",), (1,), tuple(records))


def test_default_path_is_readable_and_in_the_users_cache(records, tmp_path, monkeypatch):
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path))
    path = default_cache_path(dataset_of(records, "my pets/VOC2007@trainval"), SETTING)
    assert path.parent == tmp_path / "proposals"
    assert re.fullmatch(r"my-pets-VOC2007@trainval-fast-[0-9a-f]{10}\.sqlite", path.name)
    monkeypatch.delenv("OHEM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_path(dataset_of(records), SETTING).parent == tmp_path / "home/.cache/ohem/proposals"


def test_default_path_differs_where_the_proposals_would(records, tmp_path):
    elsewhere = make_records(tmp_path / "elsewhere")
    paths = [
        default_cache_path(dataset_of(records), SETTING),
        default_cache_path(dataset_of(records), ProposalSetting(min_size=9)),
        default_cache_path(dataset_of(records, root=Path("VOC2012")), SETTING),
        default_cache_path(dataset_of([*records, *elsewhere]), SETTING),
        default_cache_path(dataset_of(records, "VOC2007@test"), SETTING),
    ]
    assert len(set(paths)) == 5
    assert default_cache_path(dataset_of(records[::-1]), ProposalSetting(min_size=8)) == paths[0]
