"""Unpack archives from strangers into a folder that holds other things, safely and so that it can be stopped.

Everything is unpacked into a folder of its own first, and moved into place when the whole archive was good: nothing
half-written ever stands under its own name. A file that is in place already stays if it is the same, and stops the
archive if it is not.
"""

import filecmp
import gzip
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ohem.data.rules import one_line, path_inside, quoted
from ohem.errors import OhemError
from ohem.files import write_atomically


def unpack(
    archive: Path, folder: Path, progress: Callable[[str, int, int], None] = lambda task, done, total: None
) -> None:
    """Unpack a zip, or a tar compressed or not, and note what it held for `is_unpacked`.

    Args:
        archive: zip if its name ends so, else tar.
        folder: to unpack into; it exists.
        progress: told of the task, and how many members are done and there are.

    Raises:
        OhemError: a damaged archive, a member that would leave the folder (by its name or as a link), too little
            space, or a file of other content in the way. Nothing in the folder is changed then.
    """
    staging = folder / f".{archive.name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with _opened(archive) as opened:
            sizes = opened.sizes()
            for name in sizes:
                if path_inside(folder, name) is None:
                    raise OhemError(f"{archive}: found a member {quoted(name)}; allowed: names inside the folder")
            check_space(folder, sum(sizes.values()), shutil.disk_usage(folder).free)
            for done, _ in enumerate(opened.extract_all(staging), start=1):
                progress(f"unpacking {archive.name}", done, len(sizes))
        _move(archive, staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_unpacked(folder: Path, name: str) -> bool:
    """Whether all files of the archive of this name were unpacked into the folder, and are there in their sizes."""
    try:
        sizes = json.loads(_manifest(folder, name).read_text())
    except (OSError, ValueError):
        return False
    return all((folder / file).is_file() and (folder / file).stat().st_size == size for file, size in sizes.items())


def check_space(folder: Path, needed: int, free: int) -> None:
    """Refuse when ``needed`` bytes are more than the ``free`` ones.

    Raises:
        OhemError: they are.
    """
    if needed > free:
        raise OhemError(f"{folder}: found {free / 1e9:.2f} GB free; allowed: at least {needed / 1e9:.2f} GB")


def _manifest(folder: Path, name: str) -> Path:
    """File -> size in bytes, of each file that was unpacked."""
    return folder / f".{name}.files.json"


def _move(archive: Path, staging: Path, folder: Path) -> None:
    """Move everything into place, unless something of other content is there."""
    files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_symlink() or path.is_file())
    there = {file for file in files if (folder / file).is_symlink() or (folder / file).exists()}
    other = [file for file in files if file in there and not _same(staging / file, folder / file)]
    if other:
        more = f", and {len(other) - 1} more such files" if other[1:] else ""
        raise OhemError(
            f"{folder / other[0]}: found another file than in {archive.name}{more}; allowed: another folder, or none"
        )
    sizes = {str(file): (staging / file).stat().st_size for file in files if (staging / file).is_file()}
    for file in files:
        if file not in there:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).rename(folder / file)
    write_atomically(_manifest(folder, archive.name), json.dumps(sizes))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


class _Archive(Protocol):
    def sizes(self) -> dict[str, int]:
        """Name -> bytes, of every member."""

    def extract_all(self, folder: Path) -> Iterator[None]:
        """Unpack one member after the other."""


class _Zip:
    """Its members are never links: the standard library writes those as small files."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    def sizes(self) -> dict[str, int]:
        return {info.filename: info.file_size for info in self._file.infolist()}

    def extract_all(self, folder: Path) -> Iterator[None]:
        for info in self._file.infolist():
            self._file.extract(info, folder)
            yield


class _Tar:
    """The standard library's filter ``data`` refuses links out of the folder and devices."""

    def __init__(self, file: tarfile.TarFile) -> None:
        self._file = file

    def sizes(self) -> dict[str, int]:
        return {member.name: member.size for member in self._file.getmembers()}

    def extract_all(self, folder: Path) -> Iterator[None]:
        for member in self._file.getmembers():
            self._file.extract(member, folder, filter="data")
            yield


@contextmanager
def _opened(archive: Path) -> Iterator[_Archive]:
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                yield _Zip(zipped)
        else:
            with tarfile.open(archive) as tarred:
                yield _Tar(tarred)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OhemError(f"{archive}: found {one_line(str(error))}; allowed: a whole, harmless zip or tar") from error
