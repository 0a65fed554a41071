"""Proposals made once and kept: one SQLite file for a data set and a setting, resumable and checked against the images.

A row of ``proposals`` holds an image's id (text or integer, as the data set's), its boxes (float32 little-endian,
(P, 4) xyxy, 0-based half-open pixels) and the stamp of the file they were made from; ``meta`` holds the format and the
setting. Paths are not kept: a data set may move.
"""

import hashlib
import json
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionDataset, ImageId, ImageRecord
from ohem.data.images import read_image
from ohem.data.rules import one_line
from ohem.errors import DataError, Fault, OhemError
from ohem.files import user_path
from ohem.proposals.selective_search import Mode, selective_search
from ohem.threads import opencv_in_one_thread

_KIND, _FORMAT = "ohem proposals", "1"

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS proposals (
    image_id PRIMARY KEY NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    boxes BLOB NOT NULL
);
"""

_COLUMNS = {"meta": ("key", "value"), "proposals": ("image_id", "size", "mtime_ns", "sha256", "boxes")}

_WAIT_FOR_LOCK = 60.0
"""Seconds. Another process holds the file for milliseconds at a time, while it commits one image."""

_A_CACHE = "a cache of proposals, as `ohem propose` makes it"


@dataclass(frozen=True)
class ProposalSetting:
    """How proposals are made; a cache holds those of one setting. See `selective_search` for the values.

    Raises:
        OhemError: a value is out of range.
    """

    method: Literal["selective_search"] = "selective_search"
    mode: Mode = "fast"
    max_proposals: int | None = None
    min_size: float = 8.0
    long_side: int = 500

    def __post_init__(self) -> None:
        checks = (
            ("method", self.method == "selective_search", "selective_search"),
            ("mode", self.mode in get_args(Mode), " or ".join(get_args(Mode))),
            ("max_proposals", self.max_proposals is None or self.max_proposals >= 1, "a number from 1, or none"),
            ("min_size", 0 <= self.min_size < math.inf, "a number of pixels from 0"),
            ("long_side", self.long_side >= 1, "a number of pixels from 1"),
        )
        wrong = [
            f"{name}: found {getattr(self, name)!r}; allowed: {allowed}" for name, right, allowed in checks if not right
        ]
        if wrong:
            raise OhemError("\n".join(wrong))


@dataclass(frozen=True)
class MakeReport:
    """What `make_proposals` did.

    Attributes:
        made: images searched.
        reused: images that the cache had already.
        invalidated: of those made, images that the cache had, from a file that has changed since.
        seconds: by the clock.
    """

    made: int
    reused: int
    invalidated: int
    seconds: float


def default_cache_path(dataset: DetectionDataset, setting: ProposalSetting) -> Path:
    """Where the proposals of a data set are kept unless the user says otherwise.

    In the folder ``proposals`` of ``$OHEM_CACHE`` (``~/.cache/ohem`` when unset). The name is the data set's and the
    mode, with a digest of the setting and of where the data set and its images are.
    """
    home = user_path(os.environ.get("OHEM_CACHE") or "~/.cache/ohem")
    folders = sorted(str(folder.resolve()) for folder in {record.path.parent for record in dataset.records})
    key = json.dumps([str(dataset.root.resolve()), folders, _in_words(setting)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:10]
    name = re.sub(r"[^\w.@+-]+", "-", dataset.name)[:80]
    return home / "proposals" / f"{name}-{setting.mode}-{digest}.sqlite"


class ProposalCache(Mapping[ImageId, NDArray[np.float32]]):
    """The boxes in a cache, read one image at a time: image id -> (P, 4) float32, best first.

    It may be pickled, and used after a fork and from several threads: each process and thread opens the file itself.

    Raises:
        DataError: the file is missing, or not a cache of this format; on use also: it has become unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        with _errors_named(self.path):
            _read_meta(self._connection(), self.path)

    def __reduce__(self) -> tuple[type["ProposalCache"], tuple[Path]]:
        return ProposalCache, (self.path,)

    def __getitem__(self, image_id: ImageId) -> NDArray[np.float32]:
        row = self._select("SELECT boxes FROM proposals WHERE image_id = ?", image_id)
        if not row:
            raise KeyError(image_id)
        (blob,) = row[0]
        if not isinstance(blob, bytes) or len(blob) % 16:
            raise DataError([Fault(self.path, f"boxes of {image_id!r}", "something else", "rows of 4 float32")])
        return np.frombuffer(blob, dtype="<f4").astype(np.float32).reshape(-1, 4)

    def __contains__(self, image_id: object) -> bool:
        known = "SELECT 1 FROM proposals WHERE image_id = ?"
        return isinstance(image_id, str | int) and bool(self._select(known, image_id))

    def __iter__(self) -> Iterator[ImageId]:
        return (image_id for (image_id,) in self._select("SELECT image_id FROM proposals"))

    def changed_pictures(self, records: Iterable[ImageRecord]) -> list[Fault]:
        """The pictures that have changed since their proposals were made, by the same signs as in :func:`make_proposals`.

        Raises:
            DataError: a picture cannot be read.
        """
        with _errors_named(self.path):
            known = _stamps(self._connection())
        allowed = f"the picture whose proposals {self.path.name} has (ohem propose makes them anew)"
        return [
            Fault(record.path, "", "another picture, of the same name", allowed)
            for record in records
            if record.id in known
            and not _looks_same(record.path, known[record.id])
            and _stamp(record.path).sha256 != known[record.id].sha256
        ]

    def __len__(self) -> int:
        return int(self._select("SELECT COUNT(*) FROM proposals")[0][0])

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with _errors_named(self.path):
            return self._connection().execute(query, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        # A connection of another process may not even be closed (sqlite.org/howtocorrupt.html, 2.6): it is left alone.
        key = (os.getpid(), threading.get_ident())
        if key not in self._connections:
            if not self.path.is_file():
                raise DataError([Fault(self.path, "", "no such file", _A_CACHE)])
            # Not read-only: what a killed writer left half done can only be undone by writing.
            uri = f"{self.path.as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_FOR_LOCK, isolation_level=None)
            connection.execute("PRAGMA query_only = ON")
            self._connections[key] = connection
        return self._connections[key]


def make_proposals(
    records: Sequence[ImageRecord],
    cache_path: Path,
    setting: ProposalSetting,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MakeReport:
    """Bring a cache up to date: search the images that it lacks, or whose files have changed since.

    An image is unchanged when its file has the same size and time of change, or else the same SHA-256. What is
    finished is committed at once, so whatever ends the process loses only the images being searched. Several processes
    may do this to one file at once; it costs time, not correctness.

    Args:
        records: the images; what the cache holds of others is left alone.
        cache_path: made when missing, with its folder.
        setting: how; a cache made in another way is refused.
        workers: threads, at least 1. Threads suffice: the search is OpenCV's, which works outside Python's lock.
        progress: told how many of the images have their proposals or are faulty, and of how many; at the start and
            after each commit, in the calling thread.

    Raises:
        DataError: the file is something else or of another setting; or, when all other images are done, with every
            image that cannot be read or has another size than its record says.
        OhemError: see `selective_search`.
    """
    start = time.monotonic()
    made = invalidated = done = 0
    faults: list[Fault] = []
    with _errors_named(cache_path), closing(_open_for_writing(cache_path, setting)) as connection:
        known = _stamps(connection)
        changed = [record for record in records if not _looks_same(record.path, known.get(record.id))]
        done = reused = len(records) - len(changed)
        progress(done, len(records))
        with opencv_in_one_thread(), closing(_search(changed, known, setting, workers)) as results:
            for finished in results:
                images = list(_sound(finished, faults))
                _save(connection, images)
                searched = [image.id for image in images if image.boxes is not None]
                made += len(searched)
                reused += len(images) - len(searched)
                invalidated += len(known.keys() & searched)
                done += len(finished)
                progress(done, len(records))
    if faults:
        raise DataError(sorted(faults))
    return MakeReport(made, reused, invalidated, time.monotonic() - start)


class _Stamp(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    mtime_ns: int
    sha256: str


class _Image(NamedTuple):
    """One image looked at; no boxes where its file turned out to be what the cache knows."""

    id: ImageId
    stamp: _Stamp
    boxes: NDArray[np.float32] | None


def _search(
    records: Iterable[ImageRecord], known: Mapping[ImageId, _Stamp], setting: ProposalSetting, workers: int
) -> Generator[set[Future[_Image]]]:
    """What is finished, whenever something is. Closing it, or an interruption, gives up what has not been begun."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = (pool.submit(_look_at, record, known.get(record.id), setting) for record in records)
        running = set(islice(waiting, 2 * workers))
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                running.update(islice(waiting, len(finished)))
                yield finished
        finally:
            for future in running:
                future.cancel()


def _sound(finished: Iterable[Future[_Image]], faults: list[Fault]) -> Iterator[_Image]:
    """The images without a fault; the faults of the others are added."""
    for future in finished:
        try:
            yield future.result()
        except DataError as error:
            faults += error.faults


def _look_at(record: ImageRecord, known: _Stamp | None, setting: ProposalSetting) -> _Image:
    # The stamp is taken first: a file that changes while it is read will not match it, and is searched again next time.
    stamp = _stamp(record.path)
    if known is not None and stamp.sha256 == known.sha256:
        return _Image(record.id, stamp, None)
    image = read_image(record.path)
    height, width = image.shape[:2]
    if (width, height) != (record.width, record.height):
        allowed = f"{record.width} x {record.height} px, as annotated"
        raise DataError([Fault(record.path, "size", f"{width} x {height} px", allowed)])
    try:
        boxes = selective_search(image, setting.mode, setting.max_proposals, setting.min_size, setting.long_side)
    except cv2.error as error:
        found = f"an image that OpenCV fails on ({one_line(str(error))})"
        raise DataError([Fault(record.path, "", found, "an image that can be searched")]) from error
    return _Image(record.id, stamp, boxes)


def _stamp(path: Path) -> _Stamp:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _Stamp(status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise DataError([Fault(path, "", error.strerror or str(error), "a readable file")]) from error


def _looks_same(path: Path, stamp: _Stamp | None) -> bool:
    """Whether the file has the stamp's size and time, without reading it."""
    if stamp is None:
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (stamp.size, stamp.mtime_ns)


def _open_for_writing(path: Path, setting: ProposalSetting) -> sqlite3.Connection:
    """A connection that opens no transaction by itself. Tables are made in a new or empty file, never in another's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            [Fault(path, "", error.strerror or str(error), "a path in a folder that can be made")]
        ) from error
    asked = _in_words(setting)
    connection = sqlite3.connect(path, timeout=_WAIT_FOR_LOCK, isolation_level=None)
    try:
        if not connection.execute("SELECT name FROM sqlite_master").fetchall():
            connection.executescript(_SCHEMA)
            meta = {"kind": _KIND, "format": _FORMAT, **asked}
            connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta.items())
            connection.execute("COMMIT")
        found = _read_meta(connection, path)
        different = [name for name in asked if found.get(name) != asked[name]]
        if different:
            theirs, ours = (", ".join(f"{name} {these.get(name)}" for name in different) for these in (found, asked))
            raise DataError([Fault(path, "setting", theirs, f"{ours}, as asked for; or another file")])
    except BaseException:
        connection.close()
        raise
    return connection


def _in_words(setting: ProposalSetting) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(setting).items()} | {"min_size": f"{setting.min_size:g}"}


def _read_meta(connection: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The format and setting of a cache, after checking that it is one."""
    # Views, triggers and computed columns are programs, and may be made to run for ever.
    things = set(connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
    plain = things == {("table", name) for name in _COLUMNS} and all(
        [(name, 0) for name in columns]
        == connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (table,)).fetchall()
        for table, columns in _COLUMNS.items()
    )
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall()) if plain else {}
    if meta.get("kind") != _KIND:
        raise DataError([Fault(path, "", "an SQLite file with something else in it", _A_CACHE)])
    if meta.get("format") != _FORMAT:
        raise DataError([Fault(path, "format", str(meta.get("format")), _FORMAT)])
    return meta


def _stamps(connection: sqlite3.Connection) -> dict[ImageId, _Stamp]:
    rows = connection.execute("SELECT image_id, size, mtime_ns, sha256 FROM proposals")
    return {image_id: _Stamp(*stamp) for image_id, *stamp in rows}


def _save(connection: sqlite3.Connection, images: Iterable[_Image]) -> None:
    """All of them in one commit, which takes as long as many searches where there are many workers."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for image in images:
            if image.boxes is None:
                stamped = "UPDATE proposals SET size = ?, mtime_ns = ? WHERE image_id = ?"
                connection.execute(stamped, (image.stamp.size, image.stamp.mtime_ns, image.id))
            else:
                row = (image.id, *image.stamp, image.boxes.astype("<f4").tobytes())
                connection.execute("INSERT OR REPLACE INTO proposals VALUES (?, ?, ?, ?, ?)", row)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, in one line that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError([Fault(path, "", one_line(str(error)), _A_CACHE)]) from error
