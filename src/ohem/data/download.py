"""Get published archives into a folder: download, verify, unpack. What is there already is not fetched again.

An archive that is not there is received into ``NAME.part`` and gets its name when it is whole and verified. One that
is there, from an earlier call or put there by hand, needs no network. Only ``ohem data`` comes here.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ohem.data.published import Archive, Published
from ohem.data.rules import one_line
from ohem.data.unpack import check_space, is_unpacked, unpack
from ohem.errors import OhemError

CHUNK = 2**20
"""Bytes that are read at once."""

ATTEMPTS = 5
"""Connections that may break off before a download is given up; each goes on where the last one ended."""

TIMEOUT = 60
"""Seconds without a byte after which a connection counts as broken."""

Progress = Callable[[str, int, int], None]
"""Told of a task how much of it is done and how much there is, in MB or files."""


def get(
    published: Published,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda task, done, total: None,
) -> list[str]:
    """Get a data set's archives and unpack them into a folder.

    Args:
        published: what to get.
        folder: made when missing. Archives in it, under their own names, are used; they stay.
        say: told in sentences what goes on.
        progress: told of long work.

    Returns:
        The arguments of our commands that name what is there now.

    Raises:
        OhemError: no network, too little space, a wrong checksum, or a file in the way. Nothing of the user's is
            changed, and the same call goes on from where this one ended.
    """
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [archive for archive in published.archives if not is_unpacked(folder, archive.name)]
        if not missing:
            say(f"{published.name}: already in {folder}")
        check_space(folder, _needed(missing, folder), shutil.disk_usage(folder).free)
        # Those that are there first: without a network they are all that can be done.
        for archive in sorted(missing, key=lambda one: not (folder / one.name).exists()):
            path = folder / archive.name
            if path.exists():
                problem = _problem(path, archive, say, progress)
                if problem:
                    raise OhemError(f"{path}: {problem}; allowed: the whole archive, or no file of this name")
            else:
                part = _download(archive, folder, missing, progress)
                problem = _problem(part, archive, say, progress)
                if problem:
                    part.unlink()  # else the next call would go on from it
                    raise _by_hand(f"{archive.url}: {problem}, and threw them away", folder, missing)
                part.rename(path)
            unpack(path, folder, progress)
            say(f"{archive.name}: unpacked; the archive itself is no longer needed")
    return [argument.format(folder=folder) for argument in published.use]


def _needed(missing: list[Archive], folder: Path) -> int:
    """Bytes still to be received, and about as many to unpack: images and weights hardly compress."""
    received = 0
    for archive in missing:
        path = folder / archive.name
        part = folder / f"{archive.name}.part"
        received += archive.size if path.exists() else min(_size(part), archive.size)
    return max(0, 2 * sum(archive.size for archive in missing) - received)


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = one_line(error.strerror or str(error))
        raise OhemError(
            f"{error.filename or folder}: found {found}; allowed: a folder that can be written to"
        ) from error


def _download(archive: Archive, folder: Path, missing: list[Archive], progress: Progress) -> Path:
    """The whole archive as it was received, not yet verified."""
    part = folder / f"{archive.name}.part"
    if _size(part) == archive.size:
        return part
    for _ in range(ATTEMPTS):
        try:
            whole = _receive(archive, part, progress)
        except _NoConnectionError as error:
            raise _by_hand(f"{archive.url}: found no way there ({error})", folder, missing) from error
        if whole:
            return part
    raise OhemError(
        f"{part}: found {_size(part)} bytes when the connection broke off for the {ATTEMPTS}th time; allowed: the same "
        "command again, which goes on from there"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _NoConnectionError(Exception):
    """The server cannot be reached, or refuses."""


class _BrokenOffError(Exception):
    """The connection ended before its time."""


def _receive(archive: Archive, part: Path, progress: Progress) -> bool:
    """Add to ``part`` what one connection gives; whether that was all."""
    start = _size(part)
    request = Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NoConnectionError(f"HTTP {error.code} {error.reason}") from error
        if _total(error.headers.get("Content-Range")) == start:
            return True
        part.unlink()
        return False
    except (OSError, HTTPException) as error:
        raise _NoConnectionError(one_line(str(getattr(error, "reason", error)))) from error
    with response:
        try:
            return _append(response, part, start, archive, progress)
        except _BrokenOffError:
            return False


def _append(response: HTTPResponse, part: Path, start: int, archive: Archive, progress: Progress) -> bool:
    task = f"downloading {archive.name}, MB"
    # A server that knows no ranges sends everything, from the beginning.
    done = start if _goes_on(response, start) else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    try:
        with part.open("ab" if done else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                progress(task, done // CHUNK, max(total or archive.size, done) // CHUNK + 1)
    finally:
        progress(task, 1, 1)
    return total is None or done == total


def _goes_on(response: HTTPResponse, start: int) -> bool:
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return response.status == HTTPStatus.PARTIAL_CONTENT and begins is not None and int(begins[1]) == start


def _total(content_range: str | None) -> int | None:
    """The size in ``bytes */1234``."""
    found = re.fullmatch(r"bytes \*/(\d+)", content_range or "")
    return int(found[1]) if found else None


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise _BrokenOffError from error
        if not chunk:
            return
        yield chunk


def _by_hand(problem: str, folder: Path, missing: list[Archive]) -> OhemError:
    error = OhemError(f"{problem}; allowed: a network, or these files put in place by hand and the same command again")
    for archive in missing:
        path = folder / archive.name
        if not path.exists():
            known = archive.checksum or "no published checksum"
            error.add_note(f"  {archive.url} to {path} ({in_words(archive.size)}, {known})")
    return error


def _problem(path: Path, archive: Archive, say: Callable[[str], None], progress: Progress) -> str | None:
    """Why a file is not the archive, by its published checksum; where there is none, that is said."""
    wanted = archive.checksum or "sha256:"
    found = _checksum(path, wanted.partition(":")[0], progress)
    if archive.checksum is None:
        say(f"{archive.name}: not verified, since no checksum of it is published; it has {found}")
    elif found != wanted:
        return f"found {path.stat().st_size} bytes with {found}, not {wanted}"
    return None


def _checksum(path: Path, algorithm: str, progress: Progress) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    total = path.stat().st_size // CHUNK + 1
    with path.open("rb") as file:
        for done, chunk in enumerate(iter(lambda: file.read(CHUNK), b""), start=1):
            digest.update(chunk)
            progress(f"verifying {path.name}, MB", done, total)
    progress(f"verifying {path.name}, MB", 1, 1)
    return f"{algorithm}:{digest.hexdigest()}"


def in_words(size: int) -> str:
    """Bytes for people: ``13.5 GB``, ``253 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
